# ORANDNet on real photos (MSRC v2, 16 things): a small U-Net on the grid of the stored
# CAMs, seconds to minutes on a CPU. Before it, with any two CAM networks:
#   python tools/make_cams.py CONFIG CHECKPOINT \
#     --out work_dirs/orandnet_msrc_input/cams_a  (and another one to cams_b)
# After it, its CAMs into a store (or --mode or, and, mean, max without a network):
#   python tools/fuse_cams.py configs/orandnet_msrc.py \
#     work_dirs/orandnet_msrc_input/cams_a work_dirs/orandnet_msrc_input/cams_b \
#     --checkpoint work_dirs/orandnet_msrc --out work_dirs/orandnet_msrc_cams
_base_ = ['./_base_/default_runtime.py', './_base_/msrc.py']

# Frequently modified
input_root = 'work_dirs/orandnet_msrc_input'
cam_roots = [f'{input_root}/cams_a', f'{input_root}/cams_b']
# Best threshold of the first minus that of each, where they differ much.
offsets = (0.0, 0.0)
loss_mode = 'bce'  # 'soft_ce' as released, with clip=False
max_iters = 360  # 10 epochs of 36 steps
batch_size = 8
base_lr = 1e-3

model = dict(
    type='mmwsss.ORANDNet',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[0, 0, 0],
        std=[255, 255, 255],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=16,
    ),
    network=dict(type='mmwsss.LightUNet', widths=(16, 32, 64, 128)),
    offsets=offsets,
    clip=True,
    loss_mode=loss_mode,
    stride=4,
)

train_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(type='mmwsss.LoadCAMStores', cam_roots=cam_roots),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmwsss.PackCAMStores'),
]
test_pipeline = [
    dict(type='mmwsss.LoadPhoto'),
    dict(type='mmwsss.LoadMask', num_classes=_base_.num_classes),
    dict(type='mmwsss.LoadCAMStores', cam_roots=cam_roots),
    dict(type='mmwsss.PackCAMStores'),
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
# Scored are the train photos, whose CAMs are stored.
val_dataloader = train_eval_dataloader
test_dataloader = train_eval_dataloader
val_evaluator = dict(type='mmwsss.CAMMetric', prefix='cam')
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='Adam', lr=base_lr, weight_decay=0.0)
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
        type='mmwsss.CheckpointHook', by_epoch=False, interval=100, max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
