# Table 3 of AE-SIPE on real photos (MSRC v2), three seeds: the steps of the enhancement
# in five orders, beside a classifier's CAMs and SIPE's.
#   python tools/run_recipe.py configs/recipes/sipe_table3_msrc.py --jobs 3
_base_ = './_base_/sipe_msrc.py'

summary = 'table3'
parts = dict(
    again=dict(model=dict(enhancement=['prototypes', 'is_cam'])),
    late=dict(
        model=dict(enhancement=['prototypes', 'is_cam', 'pamr', 'prototypes', 'is_cam'])
    ),
    early=dict(
        model=dict(enhancement=['pamr', 'prototypes', 'is_cam', 'prototypes', 'is_cam'])
    ),
    # Four orders are the published ones. This one, the enhancement done twice, takes
    # the place of the fifth; like them it ends with the maps that train.
    twice=dict(model=dict(enhancement=['pamr', 'prototypes', 'is_cam'] * 2)),
)
rows = {
    'CAM': ['classifier'],
    'SIPE': ['sipe'],
    'Pr, IS': ['again'],
    'PAMR, Pr, IS': ['ae'],
    'PAMR, Pr, IS, Pr, IS': ['early'],
    'Pr, IS, PAMR, Pr, IS': ['late'],
    'PAMR, Pr, IS, PAMR, Pr, IS': ['twice'],
}
