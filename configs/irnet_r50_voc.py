# IRNet on PASCAL VOC 2012 as published: ResNet-50 frozen, 3 epochs of the 10,582 photos
# of train_aug in batches of 32 (divide by the number of processes). Before it, with any
# CAM network:
#   python tools/make_cams.py CONFIG CHECKPOINT --out work_dirs/irnet_voc_input/cams
#   python tools/make_pseudo_labels.py configs/irnet_r50_voc.py \
#     --cams work_dirs/irnet_voc_input/cams --out work_dirs/irnet_voc_input/ir_labels \
#     --ir 0.30 0.05 \
#     --refine "DenseCRF(gt_prob=0.7, bilateral_xy=50, bilateral_weight=10)"
# (SIPE's CAMs: --ir own own*0.8.) After it, labels of the random walk:
# make_pseudo_labels.py with --refine "TrainedRefiner(config='configs/irnet_r50_voc.py',
#   checkpoint='work_dirs/irnet_r50_voc')"
_base_ = ['./_base_/default_runtime.py', './_base_/voc.py']

# Frequently modified
input_root = 'work_dirs/irnet_voc_input'
cam_root = f'{input_root}/cams'  # of train_aug
label_root = f'{input_root}/ir_labels/SegmentationClass'
max_iters = 990
batch_size = 32
base_lr = 0.1  # of the boundaries; ten times that for the displacements
crop_size = (512, 512)
background_threshold = 0.25  # None where the CAMs bring their own background (SIPE)
cam_power = 1.0  # AMN: 1.3, SIPE: 1.5
# The ImageNet weights; MMEngine downloads them once, a local file does as well.
pretrained = (
    'https://download.openmmlab.com/mmclassification/v0/resnet/'
    'resnet50_8xb32_in1k_20210831-ea4938fc.pth'
)

model = dict(
    type='mmwsss.IRNet',
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
            type='mmpretrain.ResNet',
            depth=50,
            strides=(1, 2, 2, 1),
            out_indices=(0, 1, 2, 3),
            style='pytorch',
        ),
        weights=pretrained,
    ),
    stem='maxpool',
    strides=(4, 4, 8, 16, 16),
    displacement_channels=(64, 128, 256, 256, 256),
    radius=10,
    walk_radius=5,
    walk_beta=10.0,
    walk_num_steps=256,
    cam_power=cam_power,
    background_threshold=background_threshold,
    # Group norms see the padding, so it is what training saw.
    pad_size=512,
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
val_dataloader = train_eval_dataloader
test_dataloader = train_eval_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU', 'mFscore'])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    # The released code hands weight_decay to SGD as momentum; 0 does the same.
    optimizer=dict(type='SGD', lr=base_lr, momentum=0.0, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(displacement=dict(lr_mult=10.0))),
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmwsss.CheckpointHook', by_epoch=False, interval=330, max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
