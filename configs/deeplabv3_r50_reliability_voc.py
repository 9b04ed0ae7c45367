# PASCAL VOC 2012: MMSegmentation's DeepLabV3-R50, trained from stored pseudo-labels
# that a reliability gate repairs on the way. The labels are palette PNGs, one for each
# photo of train_aug, 255 undecided; MMEngine downloads the ImageNet weights once.
_base_ = ['./_base_/default_runtime.py', './_base_/voc.py']

# Frequently modified
label_root = f'{_base_.data_root}/PseudoLabels'
reliability_root = None  # or the folder of grey PNGs, 255 for full reliability
batch_size = 8
max_iters = 40000
val_interval = 4000
base_lr = 0.005
crop_size = (512, 512)
pretrained = 'open-mmlab://resnet50_v1c'
norm_cfg = dict(type='SyncBN')  # 'BN' without a GPU

head = dict(
    num_classes=_base_.num_classes,
    norm_cfg=norm_cfg,
    dropout_ratio=0.1,
    align_corners=False,
)
model = dict(
    type='mmwsss.PseudoLabelSegmentor',
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
        type='ResNetV1c',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
        contract_dilation=True,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    decode_head=dict(
        type='ASPPHead',
        in_channels=2048,
        in_index=3,
        channels=512,
        dilations=(1, 12, 24, 36),
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
        **head,
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=1024,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True, loss_weight=0.4),
        **head,
    ),
    gate=dict(
        type='mmwsss.ReliabilityGate',
        num_classes=_base_.num_classes,
        history=dict(type='mmwsss.PredictionHistory', grid_size=32, decay=0.8),
    ),
    test_cfg=dict(mode='whole'),
)

train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(
        type='mmwsss.LoadPseudoLabels',
        label_root=label_root,
        reliability_root=reliability_root,
        num_classes=_base_.num_classes,
    ),
    dict(
        type='RandomResize',
        scale=(2048, 512),
        ratio_range=(0.5, 2.0),
        keep_ratio=True,
    ),
    dict(type='mmwsss.RandomCropWithBox', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='mmwsss.PackPseudoLabels'),
]
test_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
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
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=base_lr, momentum=0.9, weight_decay=5e-4),
)
param_scheduler = [
    dict(
        type='PolyLR', power=0.9, eta_min=1e-4, begin=0, end=max_iters, by_epoch=False
    ),
]
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval
)
custom_hooks = [
    *_base_.custom_hooks,
    # The network has to learn from the labels before it may repair them.
    dict(type='mmwsss.ReliabilityGatedPseudoLabelHook'),
    dict(type='mmwsss.PseudoLabelVisualizationHook', interval=1000),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmwsss.CheckpointHook', by_epoch=False, interval=2000, max_keep_ckpts=3
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
