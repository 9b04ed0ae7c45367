# Plain CAMs on real photos (MSRC v2, 16 things) from image labels alone: MobileOne-S0
# at stride 16 with ImageNet weights, stem and stages 1-2 frozen. Minutes on a CPU.
_base_ = [
    './_base_/default_runtime.py',
    './_base_/msrc.py',
    './_base_/cam_classifier.py',
]

# Frequently modified
max_iters = 144  # 8 epochs of 18 steps
batch_size = 16
base_lr = 0.1  # of the backbone; ten times that for the new layer
warmup_iters = 18
long_side = (256, 512)  # of a training photo in pixels, uniform
crop_size = (256, 256)

model = dict(
    data_preprocessor=dict(size=crop_size),
    num_classes=_base_.num_classes - 1,
    backbone=dict(
        type='mmpretrain.MobileOne',
        arch='s0',
        deploy=True,
        out_indices=(3,),
        frozen_stages=2,
    ),
    weights=f'{_base_.weights_root}/mobileone-s0_in1k_fp16.safetensors',
    unstride=['stage4.0.branch_reparam'],
    test_scales=(1.0, 0.5, 1.5, 2.0),
    test_flip=True,
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
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='mmwsss.SeededStreamSampler', shuffle=True),
    dataset=dict(**_base_.dataset, ann_file=_base_.train_list, pipeline=train_pipeline),
)
train_eval_dataloader = dict(
    batch_size=1,
    num_workers=1,
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
    num_workers=1,
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
    # The released code hands weight_decay to SGD as momentum; 0 does the same.
    optimizer=dict(type='SGD', lr=base_lr, momentum=0.0, weight_decay=1e-4),
    paramwise_cfg=_base_.head_speed,
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    *(
        [dict(type='LinearLR', start_factor=0.01, end=warmup_iters, by_epoch=False)]
        if warmup_iters
        else []
    ),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
