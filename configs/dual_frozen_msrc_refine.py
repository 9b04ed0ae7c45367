# dual_frozen_msrc with refinement: labels behind a reliability gate, borders, an
# averaged teacher. Cross-view consistency is left out, since it takes points away here;
# the recipe that measures each part is recipes/clipdino_ablation_msrc.py.
_base_ = './dual_frozen_msrc.py'

model = dict(
    labeler=dict(
        type='mmwsss.ReliabilityGatedLabeler',
        gate=dict(
            type='mmwsss.ReliabilityGate',
            num_classes=_base_.num_classes,
            structure_source='vit',
            # Of temporal agreement, confidence and structure.
            weights=(0.2, 0.6, 0.2),
            history=dict(type='mmwsss.PredictionHistory', grid_size=32, decay=0.8),
        ),
    ),
    decode_head=dict(loss_boundary=dict(type='mmwsss.BoundaryLoss', bridge=3)),
    loss_teacher=dict(type='mmwsss.TeacherLoss', loss_weight=0.1),
    loss_schedules={
        'decode.loss_boundary': [[0.44, 0.0], [0.6, 1.0]],
        'teacher.loss_consistency': [[0.44, 0.0], [0.6, 1.0]],
    },
    test_cfg=dict(use_teacher=True),
)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmwsss.ReliabilityGatedPseudoLabelHook'),
    # 400 iterations are too few for the 0.999 of long trainings.
    dict(type='mmwsss.TeacherHook', momentum=0.98),
    dict(type='mmwsss.PseudoLabelProbeHook', num_images=48, interval=100),
    dict(type='mmwsss.PseudoLabelVisualizationHook', interval=100),
]
