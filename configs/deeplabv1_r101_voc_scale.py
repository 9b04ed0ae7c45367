# PASCAL VOC 2012: DeepLabV1 (ResNet-101 at stride 8 and one 1x1 convolution) on stored
# pseudo-labels with scale scheduling and the label-smoothed balanced cross-entropy, our
# reading of ORANDNet's second stage, whose code is not released. The labels are palette
# PNGs, one for each photo of train_aug, 255 undecided; MMEngine downloads the ImageNet
# weights once. Without the schedule: model.data_preprocessor.scales="[(0.0, 1.0)]"
_base_ = ['./_base_/default_runtime.py', './_base_/voc.py']

# Frequently modified
label_root = f'{_base_.data_root}/PseudoLabels'
# (progress, scale): half the size for a quarter of the training, then three quarters.
scales = ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0))
label_smoothing = 0.4  # AMN's; that of ORANDNet's second stage is not known
batch_size = 10
max_iters = 20000
val_interval = 2000
base_lr = 2.5e-4  # of the backbone; ten times that for the head
crop_size = (321, 321)
pretrained = 'open-mmlab://resnet101_v1c'
norm_cfg = dict(type='SyncBN')  # 'BN' without a GPU

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='mmwsss.ScaleScheduledDataPreProcessor',
        scales=scales,
        curve='steps',
        divisor=8,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
    ),
    backbone=dict(
        type='ResNetV1c',
        depth=101,
        num_stages=4,
        out_indices=(3,),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
        contract_dilation=True,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained),
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=2048,
        in_index=0,
        # Without convolutions the features go straight to the 1x1 one.
        channels=2048,
        num_convs=0,
        concat_input=False,
        num_classes=_base_.num_classes,
        norm_cfg=norm_cfg,
        dropout_ratio=0.0,
        align_corners=False,
        loss_decode=dict(
            type='mmwsss.BalancedCrossEntropyLoss', label_smoothing=label_smoothing
        ),
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
    # Most photos have a long side of 500 pixels.
    dict(
        type='RandomResize',
        scale=(500, 500),
        ratio_range=(0.5, 1.5),
        keep_ratio=True,
    ),
    dict(type='mmwsss.RandomCropWithBox', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmwsss.PackPseudoLabels'),
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
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=base_lr, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval
)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmwsss.CheckpointHook', by_epoch=False, interval=2000, max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
