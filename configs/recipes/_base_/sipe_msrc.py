# What the tables of AE-SIPE share: every row is trained once and its CAMs are scored on
# the train photos, with and without a dense CRF.
config = 'configs/aesipe_msrc.py'
# The recipes of both tables have rows in common, whose runs are then done.
work_dir = 'work_dirs/recipes/sipe_tables_msrc'
seeds = [0, 1, 2]

values = dict(
    kind='enhanced',
    # Rules of make_pseudo_labels.py; the second one is Table 2's background.
    background='own',
    lower='own*0.8',
)
common = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
parts = dict(
    # A classifier alone; its CAMs bring no background along.
    classifier=dict(
        model=dict(
            enhancement=[], gsc_weights=dict(_delete_=True), loss_schedules=None
        ),
        values=dict(kind='cam', background='0.25', lower='0.2'),
    ),
    sipe=dict(
        model=dict(
            enhancement=[],
            gsc_weights=dict(_delete_=True, is_cam=1.0),
            loss_schedules=None,
        ),
        values=dict(kind='is_cam'),
    ),
    ae=dict(model=dict(enhancement=['pamr', 'prototypes', 'is_cam'])),
)

data = '../shared/data/msrc'
masks = f'{data}/SegmentationClass'
train_list = f'{data}/ImageSets/Segmentation/train.txt'
crf = 'DenseCRF(gt_prob=0.7, bilateral_xy=50, bilateral_weight=10)'
score = 'tools/eval_pseudo_labels.py'
on_train = [masks, '--list', train_list, '--classes', f'{data}/classes.txt']
make = ['tools/make_pseudo_labels.py', '{config}', '--cams', '{run}/cams']
# Sets of labels: rule for the background, refinement, what is made before.
refined = ['--refine', crf]
label_sets = {
    'CRF': ('{background}', refined, ['make CAMs']),
    'lower': ('{lower}', [], ['make CAMs']),
    'lower CRF': ('{lower}', refined, ['make CAMs']),
    'fixed CRF': ('0.25', refined, ['make CAMs']),
    'best CRF': ('best:{run}/scores/cams.json', refined, ['make CAMs', 'score CAMs']),
}
stages = [
    dict(
        name='train',
        command=['tools/train.py', '{config}', '--work-dir', '{run}/sipe'],
        inputs=[f'{data}/ImageSets', f'{data}/image_labels.json'],
        outputs=['{run}/sipe/last_checkpoint'],
        resume=['--resume'],
        stale=['{run}/sipe'],
    ),
    dict(
        name='make CAMs',
        command=[
            *('tools/make_cams.py', '{config}', '{run}/sipe', '--kind', '{kind}'),
            *('--out', '{run}/cams'),
        ],
        outputs=['{run}/cams/made_from.json'],
        stale=['{run}/cams'],
    ),
    dict(
        name='score CAMs',
        command=[score, '{run}/cams', *on_train, '--json', '{run}/scores/cams.json'],
        inputs=[masks],
        outputs=['{run}/scores/cams.json'],
    ),
]
stages += [
    stage
    for name, (rule, refine, needs) in label_sets.items()
    for folder in [name.lower().replace(' ', '_') + '_labels']
    for stage in [
        dict(
            name=f'make {name} labels',
            needs=needs,
            command=[
                *(*make, '--background', rule, *refine),
                *('--out', '{run}/' + folder),
            ],
            outputs=['{run}/' + folder + '/made_from.json'],
            stale=['{run}/' + folder],
        ),
        dict(
            name=f'score {name} labels',
            needs=[f'make {name} labels'],
            command=[
                *(score, '{run}/' + folder + '/SegmentationClass', *on_train),
                *('--json', '{run}/scores/' + folder + '.json'),
            ],
            inputs=[masks],
            outputs=['{run}/scores/' + folder + '.json'],
        ),
    ]
]

cams = '{run}/scores/cams.json'
# The classifier has no background of its own; its labels are those at 0.25 and 0.2.
columns = {
    'best threshold': (cams, 'policies.best.miou'),
    'best + CRF': ('{run}/scores/best_crf_labels.json', 'miou'),
    '0.25': (cams, 'policies.fixed.miou'),
    '0.25 + CRF': ('{run}/scores/fixed_crf_labels.json', 'miou'),
    'own background': (cams, 'policies.own.miou'),
    'own + CRF': ('{run}/scores/crf_labels.json', 'miou'),
    'own x 0.8': ('{run}/scores/lower_labels.json', 'miou'),
    'own x 0.8 + CRF': ('{run}/scores/lower_crf_labels.json', 'miou'),
}
