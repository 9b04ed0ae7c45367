# Frozen CLIP ViT-B/16 and DINOv2-S, one transformer decoder for both (WeCLIP+), labels
# behind a reliability gate. What depends on the data set stands in the experiment's
# file; so do the hooks, which need the model's parts by name.
crop_size = (320, 320)

model = dict(
    type='mmwsss.WSSSSegmentor',
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
        type='mmwsss.FrozenEncoders',
        encoders=dict(
            clip=dict(
                type='mmwsss.FrozenCLIP',
                model='ViT-B-16',
                weights='openai',
                templates=['a clean origami {}.'],
                num_attentions=6,
                feature_layers=[-1],
                cam_input_layer=-1,
                # The released code feeds CLIP with ImageNet's normalisation.
                mean=[123.675, 116.28, 103.53],
                std=[58.395, 57.12, 57.375],
            ),
            dino=dict(type='mmwsss.FrozenDINOv2'),
        ),
    ),
    cam_source=dict(type='mmwsss.CLIPGradCAM', source='clip'),
    cam_refiner=dict(
        type='mmwsss.AttentionRefiner',
        source='clip',
        layer_filter='cls_mass',
        use_decoder_affinity=True,
        use_predictions=True,
        box_threshold=0.4,
    ),
    refiners=[dict(type='mmwsss.PAR', num_iters=10, scale=0.5)],
    labeler=dict(
        type='mmwsss.ReliabilityGatedLabeler',
        low=0.25,
        high=0.55,
        gate=dict(
            type='mmwsss.ReliabilityGate',
            num_classes=21,
            structure_source='dino',
            # Of temporal agreement, confidence and structure.
            weights=(0.2, 0.6, 0.2),
            history=dict(type='mmwsss.PredictionHistory', grid_size=32, decay=0.8),
        ),
    ),
    decode_head=dict(
        type='mmwsss.DualStreamHead',
        in_channels=[768, 384],
        in_index=[0, 1],
        channels=256,
        num_classes=21,
        num_layers=3,
        num_heads=8,
        dropout_ratio=0.1,
        loss_decode=[
            dict(type='mmwsss.BalancedCrossEntropyLoss'),
            dict(type='mmwsss.PresentDiceLoss'),
        ],
        loss_affinity=dict(type='mmwsss.AffinityLoss', radius=8, loss_weight=0.1),
        # mmwsss.CrossViewLoss is not among the losses: it did not help where it was
        # measured (recipes/clipdino_ablation_{msrc,synth}.py).
        loss_boundary=dict(type='mmwsss.BoundaryLoss', bridge=3),
    ),
    loss_teacher=dict(type='mmwsss.TeacherLoss', loss_weight=0.1),
    loss_schedules={
        # Borders and the teacher's opinion count once labels are repaired.
        'decode.loss_boundary': [[0.44, 0.0], [0.6, 1.0]],
        'teacher.loss_consistency': [[0.44, 0.0], [0.6, 1.0]],
    },
    test_cfg=dict(mode='whole', use_teacher=True),
)

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmwsss.CheckpointHook', by_epoch=False, interval=2000, max_keep_ckpts=3
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
