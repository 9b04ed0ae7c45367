# COCO 2014 from image labels: CLIP ViT-B/16 and DINOv2-S, both frozen.
_base_ = [
    './_base_/default_runtime.py',
    './_base_/coco.py',
    './_base_/clipdino.py',
]

# Frequently modified
batch_size = 8
max_iters = 80000
val_interval = 8000
base_lr = 2e-5  # everything that is trained stands in the x10 group below
photo_side = 640  # longest side of a training photo at scale 1, pixels
clip_weights = 'openai'  # or the path of a local file
dino_weights = 'download'  # or the path of a local file

model = dict(
    backbone=dict(
        encoders=dict(
            clip=dict(
                weights=clip_weights,
                class_names=_base_.class_names,
                background_words=_base_.background_words,
                num_attentions=8,
            ),
            dino=dict(arch='small', weights=dino_weights),
        )
    ),
    cam_refiner=dict(box_threshold=0.7),
    labeler=dict(
        gate=dict(
            num_classes=_base_.num_classes,
            # 82,081 photos: 0.1 GB, shared among the processes, in each checkpoint.
            history=dict(grid_size=16),
        )
    ),
    decode_head=dict(num_classes=_base_.num_classes),
)

train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='RandomResize',
        scale=(photo_side, photo_side),
        ratio_range=(0.5, 2.0),
        keep_ratio=True,
    ),
    dict(type='mmwsss.RandomCropWithBox', crop_size=_base_.crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmwsss.PackWSSSInputs'),
]
test_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(type='Resize', scale=(512, 512), keep_ratio=True),
    dict(type='mmwsss.LoadMask', num_classes=_base_.num_classes),
    dict(type='mmwsss.PackWSSSInputs'),
]
tta_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(512, 512), keep_ratio=True),
                dict(type='Resize', scale=(768, 768), keep_ratio=True),
            ],
            [
                dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='mmwsss.LoadMask', num_classes=_base_.num_classes)],
            [dict(type='mmwsss.PackWSSSInputs')],
        ],
    ),
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
    optimizer=dict(type='AdamW', lr=base_lr, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval
)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmwsss.ReliabilityGatedPseudoLabelHook'),
    dict(type='mmwsss.TeacherHook', momentum=0.999),
    dict(type='mmwsss.PseudoLabelProbeHook', num_images=64, interval=val_interval),
    dict(type='mmwsss.PseudoLabelVisualizationHook', interval=1000),
]
