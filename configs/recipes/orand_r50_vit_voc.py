# ORANDNet's first pair on PASCAL VOC 2012 in the published sizes: class maps of a
# ResNet-50 and relevance of a DeiT-B; IRNet with a ResNet-50; DeepLabV1-R101 with scale
# scheduling. Needs a GPU, except for --dry-run. Data: see configs/_base_/voc.py.
#   python tools/run_recipe.py configs/recipes/orand_r50_vit_voc.py
_base_ = './_base_/orand.py'

work_dir = 'work_dirs/recipes/orand_r50_vit_voc'

configs = dict(
    first=dict(config='configs/cam_r50_voc.py'),
    second=dict(config='configs/cam_deit_b_voc.py'),
    orandnet=dict(config='configs/orandnet_voc.py'),
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
    # The published best thresholds are 0.20 and 0.05.
    second_offset='0.15',
    checkpoint='iter_20000.pth',
)
stages = [*_base_.two_classifiers, *_base_.rest]
