# A vision transformer learns from the CNN of crossarch_synth_teacher where smoke is, on
# the drawn co-occurrence benchmark, from scratch. A minute on one thread. Before it:
#   python tools/make_co_occurrence.py data/co_occurrence
#   python tools/train.py configs/crossarch_synth_teacher.py
# Controls: --cfg-options model.teacher=None (the student alone) or
# model.teacher_checkpoint=untrained.
_base_ = [
    './_base_/default_runtime.py',
    './_base_/co_occurrence.py',
    './_base_/crossarch.py',
]

# Frequently modified
max_iters = 228  # 12 epochs of 19 steps
base_lr = 1e-3
teacher_checkpoint = 'work_dirs/crossarch_synth_teacher'

model = dict(
    data_preprocessor=dict(size=(48, 48)),
    num_classes=1,
    student=dict(
        type='mmwsss.ViTBranch',
        backbone=dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=64, num_layers=5, num_heads=4, feedforward_channels=256
            ),
            img_size=48,
            patch_size=4,
            out_type='raw',
            out_indices=[-1],
        ),
    ),
    teacher=dict(
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
    teacher_checkpoint=teacher_checkpoint,
    # The plumes are a few patches large: enlarged photos have four times as many.
    test_scales=(2.0,),
    **_base_.transfer,
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
