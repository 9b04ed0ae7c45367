# Real photos (MSRC v2, 16 things), image labels alone, two frozen ImageNet encoders.
# CAMs come from heads trained on the encoders' features during the same run.
_base_ = ['./_base_/default_runtime.py', './_base_/msrc.py']

# Frequently modified
max_iters = 400
batch_size = 8
crop_size = (320, 320)
learning_rate = 5e-4

# From here on everything follows from the above.
train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='RandomResize', scale=(320, 320), ratio_range=(0.8, 1.6), keep_ratio=True
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
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

model = dict(
    type='mmwsss.WSSSSegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[0, 0, 0],
        std=[255, 255, 255],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
    ),
    backbone=dict(
        type='mmwsss.FrozenEncoders',
        order=['vit', 'cnn'],  # of the feature maps that in_index below counts
        encoders=dict(
            vit=dict(
                type='mmwsss.FrozenBackbone',
                backbone=dict(
                    type='mmpretrain.VisionTransformer',
                    arch='deit-tiny',
                    img_size=224,
                    patch_size=16,
                    out_type='featmap',
                    out_indices=[-1],
                ),
                weights=f'{_base_.weights_root}/vit-tiny-p16_in1k_fp16.safetensors',
                mean=[127.5, 127.5, 127.5],
                std=[127.5, 127.5, 127.5],
                num_attentions=6,
            ),
            cnn=dict(
                type='mmwsss.FrozenBackbone',
                backbone=dict(
                    type='mmpretrain.MobileOne',
                    arch='s0',
                    deploy=True,
                    out_indices=(2, 3),
                ),
                weights=f'{_base_.weights_root}/mobileone-s0_in1k_fp16.safetensors',
                unstride=['stage4.0.branch_reparam'],
            ),
        ),
    ),
    cam_source=dict(
        type='mmwsss.CAMHead',
        in_channels=dict(vit=192, cnn=1024),
        num_classes=_base_.num_classes - 1,
    ),
    cam_refiner=dict(
        type='mmwsss.AttentionRefiner',
        source='vit',
        use_decoder_affinity=False,
        use_predictions=False,
        box_threshold=0.4,
    ),
    refiners=[dict(type='mmwsss.PAR', num_iters=10, scale=0.5)],
    labeler=dict(type='mmwsss.ScoreLabeler', low=0.25, high=0.45),
    decode_head=dict(
        type='mmwsss.DualStreamHead',
        in_channels=[192, 256, 1024],
        in_index=[0, 1, 2],
        channels=128,
        num_classes=_base_.num_classes,
        num_layers=2,
        num_heads=4,
        loss_decode=[
            dict(type='mmwsss.BalancedCrossEntropyLoss'),
            dict(type='mmwsss.PresentDiceLoss'),
        ],
        loss_affinity=dict(type='mmwsss.AffinityLoss', loss_weight=0.1),
    ),
    # The CAM heads learn first; labels from untrained heads would teach noise.
    loss_schedules={
        'decode.loss_balanced_ce': [[0.15, 0.0], [0.25, 1.0]],
        'decode.loss_present_dice': [[0.15, 0.0], [0.25, 1.0]],
    },
    test_cfg=dict(mode='whole'),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=learning_rate, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=50, by_epoch=False),
    dict(
        type='PolyLR', power=1.0, eta_min=0.0, begin=50, end=max_iters, by_epoch=False
    ),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmwsss.CheckpointHook', by_epoch=False, interval=250, max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
