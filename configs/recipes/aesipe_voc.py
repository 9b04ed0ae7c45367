# AE-SIPE on PASCAL VOC 2012 in the published sizes: SIPE with a ResNet-50, IRNet with a
# ResNet-50, and MMSegmentation's DeepLabV3 with a ResNet-101. Needs a GPU, except for
# --dry-run. Data: see configs/_base_/voc.py.
#   python tools/run_recipe.py configs/recipes/aesipe_voc.py
_base_ = './_base_/aesipe.py'

config = 'configs/aesipe_r50_voc.py'
work_dir = 'work_dirs/recipes/aesipe_voc'

configs = dict(
    irnet=dict(config='configs/irnet_r50_voc.py'),
    segmentor=dict(
        config='configs/deeplabv3_r101_voc.py',
        # One process; its batch norms need no others.
        changes=dict(
            model=dict(
                backbone=dict(norm_cfg=dict(type='BN')),
                decode_head=dict(norm_cfg=dict(type='BN')),
                auxiliary_head=dict(norm_cfg=dict(type='BN')),
            )
        ),
    ),
)
values = dict(
    data='data/VOCdevkit/VOC2012',
    num_classes='21',
    # CAMs are made of train_aug, masks there are of train.
    train_list='data/VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt',
    # The config's bg_rescale of 0.8 is in the stored background already.
    ir_objects='own*1.25',
    ir_background='own',
    checkpoint='iter_20000.pth',
)
