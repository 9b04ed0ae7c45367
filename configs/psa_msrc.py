# AffinityNet (PSA) on real photos (MSRC v2, 16 things): MobileOne-S0 frozen with
# ImageNet weights, affinities learned from IR labels. Before it, as for irnet_msrc.py:
#   python tools/make_cams.py CONFIG CHECKPOINT --out work_dirs/psa_msrc_input/cams
#   python tools/make_pseudo_labels.py configs/psa_msrc.py \
#     --cams work_dirs/psa_msrc_input/cams --out work_dirs/psa_msrc_input/ir_labels \
#     --ir 0.30 0.05 \
#     --refine "DenseCRF(gt_prob=0.7, bilateral_xy=50, bilateral_weight=10)"
# Photos without any object become background everywhere and take part. After it, labels
# of the random walk: make_pseudo_labels.py with
#   --refine "TrainedRefiner(config='configs/psa_msrc.py',
#     checkpoint='work_dirs/psa_msrc')"
_base_ = ['./_base_/default_runtime.py', './_base_/msrc.py']

# Frequently modified
input_root = 'work_dirs/psa_msrc_input'
cam_root = f'{input_root}/cams'  # of the train photos
label_root = f'{input_root}/ir_labels/SegmentationClass'
max_iters = 72  # 4 epochs of 18 steps
batch_size = 16
base_lr = 0.01
long_side = 320  # of a training photo in pixels, times 0.5 to 1.5
crop_size = (256, 256)
background_threshold = 0.25  # None where the CAMs bring their own background (SIPE)
cam_power = 1.0

model = dict(
    type='mmwsss.AffinityNet',
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
        type='mmwsss.FrozenBackbone',
        backbone=dict(
            type='mmpretrain.MobileOne',
            arch='s0',
            deploy=True,
            out_indices=(1, 2, 3),
        ),
        weights=f'{_base_.weights_root}/mobileone-s0_in1k_fp16.safetensors',
        unstride=['stage4.0.branch_reparam'],
    ),
    channels=(32, 64, 128),
    stride=8,
    radius=5,
    beta=8.0,
    num_steps=256,
    cam_power=cam_power,
    background_threshold=background_threshold,
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
# Scored are the labels that the stored CAMs of the train photos become.
test_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(type='mmwsss.LoadMask', num_classes=_base_.num_classes),
    dict(type='mmwsss.LoadCAMs', cam_root=cam_root),
    dict(type='mmwsss.PackCAMs'),
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
val_dataloader = train_eval_dataloader
test_dataloader = train_eval_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU', 'mFscore'])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=base_lr, momentum=0.9, weight_decay=5e-4),
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
