# The teacher of crossarch_smoke: MobileOne-S0 at stride 16 with ImageNet weights and
# pixel correlation, on real smoke crops. Minutes on a CPU.
_base_ = [
    './_base_/default_runtime.py',
    './_base_/smoke.py',
    './_base_/crossarch.py',
]

# Frequently modified
max_iters = 136  # 8 epochs of 17 steps
base_lr = 1e-4  # of the backbone; ten times that for the new layers

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    num_classes=1,
    student=dict(
        type='mmwsss.CNNBranch',
        backbone=dict(
            type='mmpretrain.MobileOne',
            arch='s0',
            deploy=True,
            out_indices=(2, 3),
            frozen_stages=2,
        ),
        weights=f'{_base_.weights_root}/mobileone-s0_in1k_fp16.safetensors',
        unstride=['stage4.0.branch_reparam'],
        pcm=dict(type='mmwsss.PixelCorrelation', channels=64),
    ),
    test_scales=(1.0, 0.5, 1.5, 2.0),
    test_flip=True,
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=base_lr, weight_decay=0.01),
    paramwise_cfg=_base_.head_speed,
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
