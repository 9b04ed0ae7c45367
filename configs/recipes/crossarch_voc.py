# CrossArch on PASCAL VOC 2012, whose 20 classes have companions of their own (boat and
# water, train and rails): the ResNet-50 teacher, a DeiT-S alone, the DeiT-S with
# transfer, each with a dense CRF as well. Needs a GPU, except for --dry-run. Nobody has
# published figures. Data: see configs/_base_/voc.py; the names of the 20 classes stand
# in its classes.txt, one a line.
#   python tools/run_recipe.py configs/recipes/crossarch_voc.py
_base_ = './_base_/crossarch_real.py'

config = 'configs/crossarch_r50_vits_voc.py'
work_dir = 'work_dirs/recipes/crossarch_voc'
seeds = [0, 1, 2]

configs = dict(teacher=dict(config='configs/crossarch_r50_vits_voc_teacher.py'))
values = dict(
    data='data/VOCdevkit/VOC2012',
    # Trained on train_aug; masks there are of train.
    train_list='data/VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt',
    classes='data/VOCdevkit/VOC2012/classes.txt',
)
parts = dict(
    cnn={
        'model.student': dict(
            _delete_=True,
            type='mmwsss.CNNBranch',
            backbone=dict(
                type='ResNet',
                depth=50,
                strides=(1, 2, 2, 1),
                dilations=(1, 1, 1, 1),
                out_indices=(2, 3),
                style='pytorch',
                norm_eval=True,
                frozen_stages=1,
                init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
            ),
            pcm=dict(type='mmwsss.PixelCorrelation'),
        ),
        'param_scheduler.0.end': 6615,
        'train_cfg.max_iters': 6615,
    },
)
