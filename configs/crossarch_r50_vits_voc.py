# DeiT-S/16 learns from the ResNet-50 of crossarch_r50_vits_voc_teacher where things
# are, on PASCAL VOC 2012 from image labels; nobody has published figures. Before it:
#   python tools/train.py configs/crossarch_r50_vits_voc_teacher.py
_base_ = [
    './_base_/default_runtime.py',
    './_base_/voc.py',
    './_base_/crossarch.py',
]

# Frequently modified
max_iters = 13230  # 10 epochs
batch_size = 8
base_lr = 1e-5  # of the backbone; ten times that, the paper's rate, for the new layers
long_side = (320, 640)  # of a training photo in pixels, uniform
crop_size = (512, 512)
teacher_checkpoint = 'work_dirs/crossarch_r50_vits_voc_teacher'

model = dict(
    data_preprocessor=dict(size=crop_size),
    num_classes=_base_.num_classes - 1,
    student=dict(
        type='mmwsss.ViTBranch',
        backbone=dict(
            type='mmpretrain.VisionTransformer',
            arch='deit-small',
            img_size=224,
            patch_size=16,
            out_type='raw',
            out_indices=[-1],
        ),
        weights=(
            'https://download.openmmlab.com/mmclassification/v0/deit/'
            'deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
        ),
    ),
    teacher=dict(
        type='mmwsss.CNNBranch',
        backbone=dict(
            type='ResNet',
            depth=50,
            strides=(1, 2, 2, 1),
            dilations=(1, 1, 1, 1),
            out_indices=(2, 3),
            style='pytorch',
            norm_eval=True,
        ),
        pcm=dict(type='mmwsss.PixelCorrelation'),
    ),
    teacher_checkpoint=teacher_checkpoint,
    test_scales=(1.0, 0.5, 1.5, 2.0),
    test_flip=True,
    max_side=1024,
    **_base_.transfer,
)

train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='RandomResize',
        scale=(long_side[1], long_side[1]),
        ratio_range=(long_side[0] / long_side[1], 1.0),
        keep_ratio=True,
        interpolation='bicubic',
        backend='pillow',
    ),
    dict(type='mmwsss.RandomCropWithBox', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmwsss.PackWSSSInputs'),
]
test_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(type='mmwsss.LoadMask', num_classes=_base_.num_classes),
    dict(type='mmwsss.PackWSSSInputs'),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='mmwsss.SeededStreamSampler', shuffle=True),
    dataset=dict(**_base_.dataset, ann_file=_base_.train_list, pipeline=train_pipeline),
)
train_eval_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **_base_.dataset,
        ann_file=_base_.train_eval_list,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **_base_.dataset,
        ann_file=_base_.val_list,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=base_lr, weight_decay=0.01),
    paramwise_cfg=_base_.head_speed,
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
