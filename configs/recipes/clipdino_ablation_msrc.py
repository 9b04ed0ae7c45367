# What each part of the refinement adds on real photos (MSRC v2), three seeds:
#   python tools/run_recipe.py configs/recipes/clipdino_ablation_msrc.py --jobs 4
config = 'configs/dual_frozen_msrc.py'
work_dir = 'work_dirs/ablation_msrc'
seeds = [0, 1, 2]

parts = dict(
    gate=dict(
        model=dict(
            labeler=dict(
                _delete_=True,
                type='mmwsss.ReliabilityGatedLabeler',
                low=0.25,
                high=0.45,
                gate=dict(
                    type='mmwsss.ReliabilityGate',
                    num_classes=17,
                    structure_source='vit',
                    history=dict(type='mmwsss.PredictionHistory'),
                    weight_power=None,
                ),
            )
        ),
        add_hooks=[dict(type='mmwsss.ReliabilityGatedPseudoLabelHook')],
    ),
    weights=dict(model=dict(labeler=dict(gate=dict(weight_power=2.0)))),
    boundary=dict(
        model=dict(
            decode_head=dict(loss_boundary=dict(type='mmwsss.BoundaryLoss', bridge=3)),
            loss_schedules={'decode.loss_boundary': [[0.44, 0.0], [0.6, 1.0]]},
        )
    ),
    cross=dict(
        model=dict(
            decode_head=dict(
                loss_cross=dict(
                    type='mmwsss.CrossViewLoss', use_gates=True, loss_weight=0.1
                )
            ),
            loss_schedules={'decode.loss_cross': [[0.15, 0.0], [0.25, 1.0]]},
        )
    ),
    teacher=dict(
        model=dict(
            loss_teacher=dict(type='mmwsss.TeacherLoss', loss_weight=0.1),
            loss_schedules={'teacher.loss_consistency': [[0.44, 0.0], [0.6, 1.0]]},
            test_cfg=dict(use_teacher=True),
        ),
        # 400 iterations are too few for the 0.999 of the long schedules.
        add_hooks=[dict(type='mmwsss.TeacherHook', momentum=0.98)],
    ),
)
rows = {
    'baseline': [],
    '+ gate': ['gate'],
    '+ weights': ['gate', 'weights'],
    '+ boundary': ['gate', 'weights', 'boundary'],
    '+ cross-view': ['gate', 'weights', 'boundary', 'cross'],
    '+ teacher (full)': ['gate', 'weights', 'boundary', 'cross', 'teacher'],
}
