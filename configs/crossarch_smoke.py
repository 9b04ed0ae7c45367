# ViT-Ti/16 learns from the MobileOne-S0 of crossarch_smoke_teacher where smoke is, on
# real crops, half of them without smoke. Minutes on a CPU. Before it:
#   python tools/train.py configs/crossarch_smoke_teacher.py
# The student alone: --cfg-options model.teacher=None
_base_ = [
    './_base_/default_runtime.py',
    './_base_/smoke.py',
    './_base_/crossarch.py',
]

# Frequently modified
max_iters = 170  # 10 epochs of 17 steps
base_lr = 3e-5  # of the backbone; ten times that for the new layers
teacher_checkpoint = 'work_dirs/crossarch_smoke_teacher'

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    num_classes=1,
    student=dict(
        type='mmwsss.ViTBranch',
        backbone=dict(
            type='mmpretrain.VisionTransformer',
            arch='deit-tiny',
            img_size=224,
            patch_size=16,
            out_type='raw',
            out_indices=[-1],
        ),
        weights=f'{_base_.weights_root}/vit-tiny-p16_in1k_fp16.safetensors',
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
    ),
    teacher=dict(
        type='mmwsss.CNNBranch',
        backbone=dict(
            type='mmpretrain.MobileOne',
            arch='s0',
            deploy=True,
            out_indices=(2, 3),
            frozen_stages=2,
        ),
        unstride=['stage4.0.branch_reparam'],
        pcm=dict(type='mmwsss.PixelCorrelation', channels=64),
    ),
    teacher_checkpoint=teacher_checkpoint,
    test_scales=(1.0, 0.5, 1.5, 2.0),
    test_flip=True,
    **_base_.transfer,
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
