# What each part of the refinement adds on real photos (MSRC v2), three seeds:
#   python tools/run_recipe.py configs/recipes/clipdino_ablation_msrc.py --jobs 4
config = 'configs/dual_frozen_msrc.py'
work_dir = 'work_dirs/ablation_msrc'
seeds = [0, 1, 2]
# A third of the budget of the config, so that all rows fit into an hour on 4 cores.
max_iters = 240
crop_size = (256, 256)

common = dict(
    model=dict(data_preprocessor=dict(size=crop_size)),
    train_dataloader=dict(
        dataset=dict(
            pipeline={'1': dict(scale=crop_size), '2': dict(crop_size=crop_size)}
        )
    ),
    param_scheduler={'1': dict(end=max_iters)},
    train_cfg=dict(max_iters=max_iters, val_interval=max_iters),
)

parts = dict(
    gate=dict(
        model=dict(
            labeler=dict(
                type='mmwsss.ReliabilityGatedLabeler',
                low=0.25,
                high=0.45,
                gate=dict(
                    type='mmwsss.ReliabilityGate',
                    num_classes=17,
                    structure_source='vit',
                    history=dict(type='mmwsss.PredictionHistory'),
                ),
            )
        ),
        add_hooks=[dict(type='mmwsss.ReliabilityGatedPseudoLabelHook')],
    ),
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
    # Of temporal agreement, confidence and structure, as in our configs; the other
    # rows have the published 0.30, 0.35, 0.35.
    weights=dict(model=dict(labeler=dict(gate=dict(weights=(0.2, 0.6, 0.2))))),
)
rows = {
    'baseline': [],
    '+ gate': ['gate'],
    '+ boundary': ['gate', 'boundary'],
    '+ teacher': ['gate', 'boundary', 'teacher'],
    '+ cross-view': ['gate', 'boundary', 'teacher', 'cross'],
    'no gate': ['boundary', 'teacher'],
    '+ weights': ['gate', 'boundary', 'teacher', 'weights'],
}
