# What each part of the refinement adds on the synthetic benchmark, three seeds:
#   python tools/make_synthetic.py data/synthetic
#   python tools/run_recipe.py configs/recipes/clipdino_ablation_synth.py --jobs 4
config = 'configs/clipdino_refine_synth.py'
work_dir = 'work_dirs/ablation_synth'
seeds = [0, 1, 2]

hooks = [dict(type='mmwsss.ProgressHook'), dict(type='mmwsss.IterationSeedHook')]
gate_hook = dict(type='mmwsss.ReliabilityGatedPseudoLabelHook')
teacher_hook = dict(type='mmwsss.TeacherHook', momentum=0.98)

# The config has gate, boundary and teacher; most parts take one out.
parts = dict(
    no_gate=dict(
        model=dict(
            labeler=dict(
                _delete_=True,
                type='mmwsss.ScoreLabeler',
                low=0.35,
                high=0.5,
                self_label_start=0.6,
                self_label_threshold=0.75,
            ),
        ),
        custom_hooks=[*hooks, teacher_hook],
    ),
    cross=dict(
        model=dict(
            decode_head=dict(
                loss_cross=dict(
                    type='mmwsss.CrossViewLoss', use_gates=True, loss_weight=0.1
                )
            ),
            # At the start the streams' argmax is noise, so they listen later.
            loss_schedules={'decode.loss_cross': [[0.0, 0.0], [0.1, 1.0]]},
        )
    ),
    no_boundary=dict(
        model=dict(
            decode_head=dict(loss_boundary=None),
            loss_schedules={'decode.loss_boundary': None},
        )
    ),
    no_teacher=dict(
        model=dict(
            loss_teacher=None,
            loss_schedules={'teacher.loss_consistency': None},
            test_cfg=dict(use_teacher=False),
        ),
        custom_hooks=[*hooks, gate_hook],
    ),
    no_hooks=dict(custom_hooks=hooks),
    # Of temporal agreement, confidence and structure; the config has 0.2, 0.6, 0.2.
    published=dict(model=dict(labeler=dict(gate=dict(weights=(0.30, 0.35, 0.35))))),
)
rows = {
    'baseline': ['no_teacher', 'no_boundary', 'no_gate', 'no_hooks'],
    '+ gate': ['no_teacher', 'no_boundary', 'published'],
    '+ boundary': ['no_teacher', 'published'],
    '+ teacher': ['published'],
    '+ cross-view': ['cross', 'published'],
    'no gate': ['no_gate'],
    '+ weights': [],
}
