# ORANDNet's second pair on PASCAL VOC 2012 in the published sizes: AMN and MCTformer;
# the rest as in orand_r50_vit_voc. Needs a GPU, except for --dry-run.
#   python tools/run_recipe.py configs/recipes/orand_amn_mct_voc.py
_base_ = './_base_/orand.py'

work_dir = 'work_dirs/recipes/orand_amn_mct_voc'

configs = dict(
    classifier=dict(config='configs/cam_r50_voc.py', changes=_base_.no_validation),
    first=dict(
        config='configs/amn_r50_voc.py',
        changes={_base_.label_root: '{run}/ir_labels/classifier/SegmentationClass'},
    ),
    second=dict(config='configs/mctformer_deit_s_voc.py'),
    orandnet=dict(
        config='configs/orandnet_voc.py',
        # Both CAMs are spread between 0 and 1: nothing is added to either.
        changes={'model.offsets': [0.0, 0.0]},
    ),
    irnet=dict(config='configs/irnet_r50_voc.py'),
    segmentor=dict(
        config='configs/deeplabv1_r101_voc_scale.py',
        # One process; its batch norms need no others.
        changes=dict(
            model=dict(
                backbone=dict(norm_cfg=dict(type='BN')),
                decode_head=dict(norm_cfg=dict(type='BN')),
            )
        ),
    ),
)
values = dict(
    data='data/VOCdevkit/VOC2012',
    num_classes='21',
    # CAMs are made of train_aug, masks there are of train.
    train_list='data/VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt',
    checkpoint='iter_20000.pth',
)
stages = [*_base_.amn_and_mctformer, *_base_.rest]
