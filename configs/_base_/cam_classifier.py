# A CAM network of a classifier alone. What depends on the data set and the backbone
# stands in the experiment's file.
model = dict(
    type='mmwsss.CAMClassifier',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[0, 0, 0],
        std=[255, 255, 255],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
)

# With image labels given, as CAMs are made; it says nothing about a segmentor.
val_evaluator = [dict(type='mmwsss.CAMMetric', prefix='cam')]
test_evaluator = val_evaluator
# The new layer learns ten times as fast.
head_speed = dict(custom_keys=dict(classifier=dict(lr_mult=10.0)))
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmwsss.CheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
