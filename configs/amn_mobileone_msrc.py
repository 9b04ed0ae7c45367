# AMN on real photos (MSRC v2, 16 things): MobileOne-S0 at stride 16 with ImageNet
# weights, stem and stages 1-2 frozen. Minutes on a CPU. Before it, with any CAM
# network:
#   python tools/make_cams.py CONFIG CHECKPOINT \
#     --out work_dirs/amn_mobileone_msrc_input/cams
#   python tools/make_pseudo_labels.py configs/amn_mobileone_msrc.py \
#     --cams work_dirs/amn_mobileone_msrc_input/cams \
#     --out work_dirs/amn_mobileone_msrc_input/ir_labels \
#     --ir 0.45 0.15 \
#     --refine "DenseCRF(gt_prob=0.7, bilateral_xy=50, bilateral_weight=10)"
_base_ = ['./_base_/default_runtime.py', './_base_/msrc.py']

# Frequently modified
label_root = 'work_dirs/amn_mobileone_msrc_input/ir_labels/SegmentationClass'
max_iters = 144  # 8 epochs of 18 steps
batch_size = 16
base_lr = 1e-4  # of the backbone; ten times that for the new layers
label_smoothing = 0.4
long_side = 320  # of a training photo in pixels, times 0.5 to 1.5
crop_size = (256, 256)

model = dict(
    type='mmwsss.AMN',
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
        type='mmpretrain.MobileOne',
        arch='s0',
        deploy=True,
        out_indices=(0, 1, 2, 3),
        frozen_stages=2,
    ),
    weights=f'{_base_.weights_root}/mobileone-s0_in1k_fp16.safetensors',
    unstride=['stage4.0.branch_reparam'],
    num_classes=_base_.num_classes - 1,
    dilations=(6, 12, 18, 24),
    dropout_ratio=0.1,
    label_smoothing=label_smoothing,
    test_scales=(1.0, 0.5, 1.5, 2.0),
    test_flip=True,
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
        scale=(long_side, long_side),
        ratio_range=(0.5, 1.5),
        keep_ratio=True,
        interpolation='bicubic',
        backend='pillow',
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
# With image labels given, as CAMs are made; it says nothing about a segmentor.
val_evaluator = dict(type='mmwsss.CAMMetric', prefix='cam')
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=base_lr, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys=dict(label_embedding=dict(lr_mult=10.0), pyramid=dict(lr_mult=10.0))
    ),
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=10, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmwsss.CheckpointHook', by_epoch=False, interval=50, max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
