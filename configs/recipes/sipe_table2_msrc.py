# Table 2 of AE-SIPE on real photos (MSRC v2), three seeds: enhancement, hierarchical
# features for the seeds, normalisation of the maps; the fourth switch, the background
# times 0.8, needs no training and is in the columns.
#   python tools/run_recipe.py configs/recipes/sipe_table2_msrc.py --jobs 3
_base_ = './_base_/sipe_msrc.py'

summary = 'table2'
parts = dict(
    hierarchical=dict(
        model=dict(
            train_seed_features='hierarchical', test_seed_features='hierarchical'
        )
    ),
    minmax=dict(model=dict(norm='minmax')),
)
rows = {
    'CAM': ['classifier'],
    'SIPE': ['sipe'],
    'PAMR, Pr, IS': ['ae'],
    '+ hierarchical seeds': ['ae', 'hierarchical'],
    '+ min-max': ['ae', 'hierarchical', 'minmax'],
    # What the configs recommend for short trainings is without hierarchical seeds.
    'PAMR, Pr, IS + min-max': ['ae', 'minmax'],
}
