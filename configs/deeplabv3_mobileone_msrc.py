# MMSegmentation's DeepLabV3 on MSRC v2 (16 things), trained from stored pseudo-labels
# alone: MobileOne-S0 at stride 16 with ImageNet weights. Minutes on a CPU. The labels
# are palette PNGs of make_pseudo_labels.py, one for each train photo, 255 undecided.
# Loaded by mmwsss, so that a training that was stopped goes on bit by bit.
_base_ = ['./_base_/default_runtime.py', './_base_/msrc.py']

# Frequently modified
label_root = 'work_dirs/deeplabv3_msrc_input/SegmentationClass'
max_iters = 300  # about 8 epochs
batch_size = 8
base_lr = 1e-3  # of the heads; 3 % of it for the backbone
crop_size = (256, 256)
norm_cfg = dict(type='BN')

head = dict(
    num_classes=_base_.num_classes,
    norm_cfg=norm_cfg,
    dropout_ratio=0.1,
    align_corners=False,
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
    ),
    backbone=dict(
        type='mmwsss.PretrainedBackbone',
        backbone=dict(
            type='mmpretrain.MobileOne',
            arch='s0',
            deploy=True,
            out_indices=(0, 1, 2, 3),
        ),
        weights=f'{_base_.weights_root}/mobileone-s0_in1k_fp16.safetensors',
        unstride=['stage4.0.branch_reparam'],
    ),
    decode_head=dict(
        type='ASPPHead',
        in_channels=1024,
        in_index=3,
        channels=128,
        dilations=(1, 3, 6, 9),  # of 16 x 16 cells
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
        **head,
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=256,
        in_index=2,
        channels=64,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True, loss_weight=0.4),
        **head,
    ),
    test_cfg=dict(mode='whole'),
)

train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='mmwsss.LoadPseudoLabels',
        label_root=label_root,
        num_classes=_base_.num_classes,
    ),
    dict(
        type='RandomResize',
        scale=(320, 320),
        ratio_range=(0.75, 1.5),
        keep_ratio=True,
    ),
    dict(type='mmwsss.RandomCropWithBox', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='mmwsss.PackPseudoLabels'),
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
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=base_lr, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.03))),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmwsss.CheckpointHook', by_epoch=False, interval=100, max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
