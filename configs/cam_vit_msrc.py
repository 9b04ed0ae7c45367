# Relevance of a frozen ViT-Ti/16 with ImageNet weights on real photos (MSRC v2, 16
# things): image labels train a linear head on its class token, attention and its
# gradients say where the classes are. Minutes on a CPU.
_base_ = [
    './_base_/default_runtime.py',
    './_base_/msrc.py',
    './_base_/cam_classifier.py',
]

# Frequently modified
max_iters = 180  # 10 epochs of 18 steps
batch_size = 16
base_lr = 1e-2
long_side = (224, 320)  # of a training photo in pixels, uniform
crop_size = (224, 224)

model = dict(
    data_preprocessor=dict(size=crop_size),
    num_classes=_base_.num_classes - 1,
    backbone=dict(
        type='mmpretrain.VisionTransformer',
        arch='deit-tiny',
        img_size=224,
        patch_size=16,
        out_type='raw',
        out_indices=[-1],
    ),
    weights=f'{_base_.weights_root}/vit-tiny-p16_in1k_fp16.safetensors',
    mean=[127.5, 127.5, 127.5],
    std=[127.5, 127.5, 127.5],
    frozen=True,
    pool='cls_token',
    kind='relevance',
    max_side=640,
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
    optimizer=dict(type='AdamW', lr=base_lr, weight_decay=1e-4),
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
