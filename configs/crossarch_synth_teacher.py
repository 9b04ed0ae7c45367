# The teacher of crossarch_synth: a small CNN with pixel correlation on the drawn
# co-occurrence benchmark, from scratch. Seconds on one thread.
_base_ = [
    './_base_/default_runtime.py',
    './_base_/co_occurrence.py',
    './_base_/crossarch.py',
]

# Frequently modified
max_iters = 114  # 6 epochs of 19 steps
base_lr = 3e-3

model = dict(
    data_preprocessor=dict(size=(48, 48)),
    num_classes=1,
    student=dict(
        type='mmwsss.CNNBranch',
        backbone=dict(
            type='ResNet',
            depth=18,
            stem_channels=16,
            base_channels=16,
            num_stages=3,
            strides=(1, 1, 1),
            dilations=(1, 1, 1),
            out_indices=(1, 2),
        ),
        pcm=dict(type='mmwsss.PixelCorrelation', channels=32),
    ),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=base_lr, weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=base_lr,
        total_steps=max_iters,
        end=max_iters,
        by_epoch=False,
    ),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
