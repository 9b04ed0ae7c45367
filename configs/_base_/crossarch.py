# A CrossArch network without its branches: they, the data set and the recipe stand in
# the experiment's file.
model = dict(
    type='mmwsss.CrossArch',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[0, 0, 0],
        std=[255, 255, 255],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
)
# Asked of a config with a teacher alone; lambda of the paper is loss_weight, a ramp of
# it for example model.loss_schedules = {'loss_kt': [[0.0, 0.0], [0.1, 1.0]]}.
transfer = dict(
    paradigm='teacher_student',  # or 'co_training'
    teacher_target='cam+bg',  # or 'cam', 'feature'
    projection=dict(type='mmwsss.PointwiseProjection'),
    loss_kt=dict(
        type='mmwsss.KnowledgeTransferLoss',
        mode='global',  # channel, spatial, spatial_map, gram, logits
        metric='cosine',  # l1, l2, kl
        loss_weight=1.0,
    ),
)

# With image labels given, as CAMs are made; it says nothing about a segmentor.
val_evaluator = [dict(type='mmwsss.CAMMetric', prefix='cam')]
test_evaluator = val_evaluator
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmwsss.CheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=2
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
# New layers may learn faster than a pretrained backbone.
head_speed = dict(
    custom_keys=dict(
        classifier=dict(lr_mult=10.0),
        pcm=dict(lr_mult=10.0),
        projection=dict(lr_mult=10.0),
    )
)
