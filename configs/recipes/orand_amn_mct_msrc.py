# ORANDNet's other pair on real photos (MSRC v2), three seeds: AMN, on IR labels of a
# MobileOne's class maps, and MCTformer:
#   python tools/run_recipe.py configs/recipes/orand_amn_mct_msrc.py --jobs 3
_base_ = './_base_/orand.py'

work_dir = 'work_dirs/recipes/orand_amn_mct_msrc'
seeds = [0, 1, 2]

configs = dict(
    classifier=dict(
        config='configs/cam_mobileone_msrc.py', changes=_base_.no_validation
    ),
    first=dict(
        config='configs/amn_mobileone_msrc.py',
        changes={_base_.label_root: '{run}/ir_labels/classifier/SegmentationClass'},
    ),
    second=dict(config='configs/mctformer_msrc.py'),
    orandnet=dict(config='configs/orandnet_msrc.py'),
    irnet=dict(config='configs/irnet_msrc.py'),
    segmentor=dict(config='configs/deeplabv3_mobileone_msrc_scale.py'),
)
values = dict(
    data='../shared/data/msrc',
    num_classes='17',
    train_list='../shared/data/msrc/ImageSets/Segmentation/train.txt',
    checkpoint='iter_300.pth',
)
stages = [*_base_.amn_and_mctformer, *_base_.rest]
