# What all recipes of CrossArch share: a run trains a teacher of its own, then the
# network of its row. What the trainings read is added where the data are known.
values = dict(
    kind='proj',  # maps of the row, of 'proj', 'grad', 'layer', 'direct'
    first='teacher',  # which of the configs trains the teacher
)
no_validation = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
common = {
    **no_validation,
    'model.teacher_checkpoint': '{run}/teacher',
    # Maps of all photos, of those without the object too.
    'model.gate': None,
}
parts = dict(
    alone={'model.teacher': None, 'model.teacher_checkpoint': None},
    direct=dict(values=dict(kind='direct')),
    grad=dict(values=dict(kind='grad')),
)
trainings = [
    dict(
        name='train teacher',
        command=['tools/train.py', '{run}/{first}.py', '--work-dir', '{run}/teacher'],
        outputs=['{run}/teacher/last_checkpoint'],
        resume=['--resume'],
        stale=['{run}/teacher'],
    ),
    dict(
        name='train',
        command=['tools/train.py', '{config}', '--work-dir', '{run}/network'],
        outputs=['{run}/network/last_checkpoint'],
        resume=['--resume'],
        stale=['{run}/network', '{run}/cams', '{run}/labels'],
    ),
]
