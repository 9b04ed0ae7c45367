# MCTformer-V2 (CVPR 2022) on PASCAL VOC 2012 from image labels, DeiT-S/16, with the
# released values. RandAugment, colour jitter, random erasing and the strong random
# crops of the released training are left out.
_base_ = [
    './_base_/default_runtime.py',
    './_base_/voc.py',
    './_base_/cam_classifier.py',
]

# Frequently modified
max_iters = 9900  # 60 epochs
batch_size = 64  # of all processes together as published
base_lr = 6.25e-5  # 5e-4 for 512 photos
warmup_iters = 825  # 5 epochs
long_side = (224, 384)  # of a training photo in pixels, uniform
crop_size = (224, 224)

model = dict(
    type='mmwsss.MCTformer',
    data_preprocessor=dict(size=crop_size),
    num_classes=_base_.num_classes - 1,
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        arch='deit-small',
        img_size=224,
        patch_size=16,
        out_type='raw',
        out_indices=[-1],
        final_norm=False,
        drop_path_rate=0.1,
    ),
    weights=(
        'https://download.openmmlab.com/mmclassification/v0/deit/'
        'deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
    ),
    num_attention_layers=3,
    test_scales=(1.0,),
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
    optimizer=dict(type='AdamW', lr=base_lr, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(
            cls_token=dict(decay_mult=0.0), pos_embed=dict(decay_mult=0.0)
        ),
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.016, end=warmup_iters, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        begin=warmup_iters,
        end=max_iters,
        by_epoch=False,
    ),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
