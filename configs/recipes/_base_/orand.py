# ORANDNet: the CAMs of two classifiers, joined; each single and joined store scored at
# every threshold, at its best one and at equal recall; IRNet; a segmentor on labels,
# with and without scale scheduling. A recipe sets values, the files of configs, and
# stages = [*one of the two beginnings, *_base_.rest].
#
# Thresholds. What is scored as "best" has its threshold chosen on the train photos that
# it is scored on. Labels are made of CAMs at that same threshold: masks of the train
# photos choose one number per store, those of val choose nothing.
values = dict(
    data='',  # root of the data set, VOC's layout
    num_classes='',  # with background
    train_list='',  # ids of the photos that are scored as train
    single='first',  # whose CAMs alone make labels for a segmentor, or 'second'
    # Added to the CAMs before OR and AND, as in the config of the ORANDNet.
    first_offset='0',
    second_offset='0',
    # IRN cuts CAMs at 0.15, sure objects at 0.30 and sure background at 0.05: twice and
    # a third of the threshold, which is far from there for an AND.
    ir_objects='2',
    ir_background='0.333',
    checkpoint='',  # of the segmentor, its last one
)
crf = 'DenseCRF(gt_prob=0.7, bilateral_xy=50, bilateral_weight=10)'
# The AND of two CAMs is best at a few hundredths.
thresholds = [
    '--thresholds',
    *('0.001:0.009:0.001', '0.01:0.095:0.005', '0.1:0.99:0.01'),
]

# Each step is scored by a stage of its own.
no_validation = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
label_root = 'train_dataloader.dataset.pipeline.1.label_root'
configs = dict(
    first=dict(changes=no_validation),
    second=dict(changes=no_validation),
    orandnet=dict(
        changes={
            **no_validation,
            'train_dataloader.dataset.pipeline.1.cam_roots': [
                '{run}/cams/first',
                '{run}/cams/second',
            ],
        }
    ),
    # Its walk carries the background along as one more map, see the labels below.
    irnet=dict(changes=dict(**no_validation, model=dict(background_threshold=None))),
    # With scale scheduling; its labels are named by the stages.
    segmentor=dict(changes=no_validation),
)

lists = '{data}/ImageSets/Segmentation'
photos = [lists, '{data}/image_labels.json']
masks = '{data}/SegmentationClass'
score = 'tools/eval_pseudo_labels.py'
on_train = [masks, '--list', '{train_list}', '--num-classes', '{num_classes}']
make_labels = ['tools/make_pseudo_labels.py', '{orandnet}', '--cams']
better = ['--at-recall', '{run}/scores/first.json', '{run}/scores/second.json']

# ------------------------------------------------------------- beginnings: two stores
train_first = dict(
    name='train first',
    command=['tools/train.py', '{first}', '--work-dir', '{run}/first'],
    inputs=photos,
    outputs=['{run}/first/last_checkpoint'],
    resume=['--resume'],
    stale=['{run}/first'],
)
train_second = dict(
    name='train second',
    needs=[],
    command=['tools/train.py', '{second}', '--work-dir', '{run}/second'],
    inputs=photos,
    outputs=['{run}/second/last_checkpoint'],
    resume=['--resume'],
    stale=['{run}/second'],
)
second_cams = dict(
    name='CAMs second',
    needs=['train second'],
    command=[
        *('tools/make_cams.py', '{second}', '{run}/second'),
        *('--out', '{run}/cams/second'),
    ],
    outputs=['{run}/cams/second/made_from.json'],
    stale=['{run}/cams/second'],
)
# Two classifiers, each with its own kind of CAMs.
two_classifiers = [
    train_first,
    dict(
        name='CAMs first',
        needs=['train first'],
        command=[
            *('tools/make_cams.py', '{first}', '{run}/first'),
            *('--out', '{run}/cams/first'),
        ],
        outputs=['{run}/cams/first/made_from.json'],
        stale=['{run}/cams/first'],
    ),
    train_second,
    second_cams,
]
# AMN is the first, on IR labels of a classifier's CAMs; the second is an MCTformer.
amn_and_mctformer = [
    dict(
        name='train classifier',
        needs=[],
        command=['tools/train.py', '{classifier}', '--work-dir', '{run}/classifier'],
        inputs=photos,
        outputs=['{run}/classifier/last_checkpoint'],
        resume=['--resume'],
        stale=['{run}/classifier'],
    ),
    dict(
        name='CAMs classifier',
        command=[
            *('tools/make_cams.py', '{classifier}', '{run}/classifier'),
            *('--out', '{run}/cams/classifier'),
        ],
        outputs=['{run}/cams/classifier/made_from.json'],
        stale=['{run}/cams/classifier'],
    ),
    dict(
        name='score classifier',
        needs=['CAMs classifier'],
        command=[
            *(score, '{run}/cams/classifier', *on_train, *thresholds),
            *('--json', '{run}/scores/classifier.json'),
        ],
        inputs=[masks],
        outputs=['{run}/scores/classifier.json'],
    ),
    dict(
        name='IR labels classifier',
        needs=['CAMs classifier'],
        # AMN's thresholds.
        command=[
            *(*make_labels, '{run}/cams/classifier', '--ir', '0.45', '0.15'),
            *('--refine', crf, '--out', '{run}/ir_labels/classifier'),
        ],
        outputs=['{run}/ir_labels/classifier/made_from.json'],
        stale=['{run}/ir_labels/classifier'],
    ),
    {**train_first, 'needs': ['IR labels classifier']},
    dict(
        name='CAMs first',
        needs=['train first'],
        command=[
            *('tools/make_cams.py', '{first}', '{run}/first'),
            *('--ir-labels', '{run}/ir_labels/classifier/SegmentationClass'),
            *('--out', '{run}/cams/first'),
        ],
        outputs=['{run}/cams/first/made_from.json'],
        stale=['{run}/cams/first'],
    ),
    train_second,
    second_cams,
]

# ----------------------------------------------------------------- from two stores on
lifted = ['--offset', '{first_offset}', '{second_offset}']
joined = {'mean': [], 'or': lifted, 'and': lifted}
stores = ['first', 'second', *joined, 'orandnet']
singles = [
    dict(
        name=f'score {store}',
        needs=[f'CAMs {store}'],
        command=[
            *(score, '{run}/cams/' + store, *on_train, *thresholds),
            *('--json', '{run}/scores/' + store + '.json'),
        ],
        inputs=[masks],
        outputs=['{run}/scores/' + store + '.json'],
    )
    for store in ('first', 'second')
]
fusions = [
    dict(
        name=f'CAMs {mode}',
        needs=['CAMs first', 'CAMs second'],
        command=[
            *('tools/fuse_cams.py', '{orandnet}'),
            *('{run}/cams/first', '{run}/cams/second', '--mode', mode, *offsets),
            *('--out', '{run}/cams/' + mode),
        ],
        outputs=['{run}/cams/' + mode + '/made_from.json'],
        stale=['{run}/cams/' + mode],
    )
    for mode, offsets in joined.items()
]
network = [
    dict(
        name='train ORANDNet',
        needs=['CAMs first', 'CAMs second'],
        command=['tools/train.py', '{orandnet}', '--work-dir', '{run}/orandnet'],
        outputs=['{run}/orandnet/last_checkpoint'],
        resume=['--resume'],
        stale=['{run}/orandnet'],
    ),
    dict(
        name='CAMs orandnet',
        command=[
            *('tools/fuse_cams.py', '{orandnet}'),
            *('{run}/cams/first', '{run}/cams/second'),
            *('--checkpoint', '{run}/orandnet', '--out', '{run}/cams/orandnet'),
        ],
        outputs=['{run}/cams/orandnet/made_from.json'],
        stale=['{run}/cams/orandnet'],
    ),
]
# Once more for the single ones, since only both tell which is the better.
comparisons = [
    dict(
        name=f'compare {store}',
        needs=[f'CAMs {store}', 'score first', 'score second'],
        command=[
            *(score, '{run}/cams/' + store, *on_train, *thresholds, *better),
            *('--json', '{run}/compared/' + store + '.json'),
            *('--curve', '{run}/compared/' + store + '.png'),
        ],
        inputs=[masks],
        outputs=['{run}/compared/' + store + '.json'],
    )
    for store in stores
]
# Labels at each store's best threshold: folder -> store, its stages, refinement.
cut = {
    'single': ('{single}', ['compare first', 'compare second'], []),
    'orandnet': ('orandnet', ['compare orandnet'], []),
    **{
        f'{store}_crf': (store, [f'compare {store}'], ['--refine', crf])
        for store in stores
    },
}
cut_labels = [
    dict(
        name=f'labels {labels}',
        needs=needs,
        command=[
            *(*make_labels, '{run}/cams/' + store),
            *('--background', 'best:{run}/compared/' + store + '.json', *refine),
            *('--out', '{run}/labels/' + labels),
        ],
        outputs=['{run}/labels/' + labels + '/made_from.json'],
        stale=['{run}/labels/' + labels],
    )
    for labels, (store, needs, refine) in cut.items()
]
# Where IRNet follows: the mean, a naive ensemble, and ORANDNet.
walked = ['mean', 'orandnet']
ir_labels = [
    dict(
        name=f'IR labels {store}',
        needs=[f'compare {store}'],
        command=[
            *(*make_labels, '{run}/cams/' + store, '--ir'),
            'best*{ir_objects}:{run}/compared/' + store + '.json',
            'best*{ir_background}:{run}/compared/' + store + '.json',
            *('--refine', crf, '--out', '{run}/ir_labels/' + store),
        ],
        outputs=['{run}/ir_labels/' + store + '/made_from.json'],
        stale=['{run}/ir_labels/' + store],
    )
    for store in walked
]
irnets = [
    dict(
        name=f'train IRNet {store}',
        needs=[f'IR labels {store}'],
        command=[
            *('tools/train.py', '{irnet}', '--work-dir', '{run}/irnet/' + store),
            '--cfg-options',
            label_root + '={run}/ir_labels/' + store + '/SegmentationClass',
        ],
        outputs=['{run}/irnet/' + store + '/last_checkpoint'],
        resume=['--resume'],
        stale=['{run}/irnet/' + store],
    )
    for store in walked
]
walked_labels = [
    dict(
        name=f'labels {store}_irn',
        needs=[f'compare {store}', f'train IRNet {store}'],
        # The threshold goes into the walk as the background's map. The usual 0.25
        # behind it is out of proportion to an AND, whose threshold is some hundredths.
        command=[
            *(*make_labels, '{run}/cams/' + store),
            *('--background', 'best:{run}/compared/' + store + '.json', '--refine'),
            "TrainedRefiner(config='{irnet}', checkpoint='{run}/irnet/" + store + "')",
            *('--out', '{run}/labels/' + store + '_irn'),
        ],
        outputs=['{run}/labels/' + store + '_irn/made_from.json'],
        stale=['{run}/labels/' + store + '_irn'],
    )
    for store in walked
]
all_labels = [*cut, *(f'{store}_irn' for store in walked)]
label_scores = [
    dict(
        name=f'score labels {labels}',
        needs=[f'labels {labels}'],
        command=[
            *(score, '{run}/labels/' + labels + '/SegmentationClass', *on_train),
            *('--json', '{run}/scores/labels_' + labels + '.json'),
        ],
        inputs=[masks],
        outputs=['{run}/scores/labels_' + labels + '.json'],
    )
    for labels in all_labels
]

# The segmentor's labels, and its schedules.
trained_on = ['single', 'orandnet', 'mean_irn', 'orandnet_irn']
schedules = {
    'full_size': ['model.data_preprocessor.scales=[(0.0, 1.0)]'],
    'scheduled': [],
}
segmentors = {
    f'{labels} {schedule}': (f'{labels}_{schedule}', labels, options)
    for labels in trained_on
    for schedule, options in schedules.items()
}
trainings = [
    dict(
        name=f'train segmentor {name}',
        needs=[f'labels {labels}'],
        command=[
            *('tools/train.py', '{segmentor}'),
            *('--work-dir', '{run}/segmentor/' + folder, '--cfg-options'),
            label_root + '={run}/labels/' + labels + '/SegmentationClass',
            *options,
        ],
        outputs=['{run}/segmentor/' + folder + '/{checkpoint}'],
        resume=['--resume'],
        stale=['{run}/segmentor/' + folder],
    )
    for name, (folder, labels, options) in segmentors.items()
]
predictions = [
    dict(
        name=f'predict val {name}',
        needs=[f'train segmentor {name}'],
        command=[
            *('tools/test.py', '{segmentor}'),
            '{run}/segmentor/' + folder + '/{checkpoint}',
            *('--work-dir', '{run}/val/' + folder),
            *('--out', '{run}/val/' + folder + '/SegmentationClass'),
        ],
        outputs=['{run}/val/' + folder + '/SegmentationClass'],
        stale=['{run}/val/' + folder],
    )
    for name, (folder, _, _) in segmentors.items()
]
val_scores = [
    dict(
        name=f'score val {name}',
        needs=[f'predict val {name}'],
        command=[
            *(score, '{run}/val/' + folder + '/SegmentationClass', masks),
            *('--list', f'{lists}/val.txt', '--num-classes', '{num_classes}'),
            *('--json', '{run}/scores/val_' + folder + '.json'),
        ],
        inputs=[masks],
        outputs=['{run}/scores/val_' + folder + '.json'],
    )
    for name, (folder, _, _) in segmentors.items()
]
rest = [
    *(*singles, *fusions, *network, *comparisons),
    *(*cut_labels, *ir_labels, *irnets, *walked_labels, *label_scores),
    *(*trainings, *predictions, *val_scores),
]

figures = dict(miou='mIoU', precision='precision', recall='recall')
columns = {
    **{
        f'segmentor on {name}, val': ('{run}/scores/val_' + folder + '.json', 'miou')
        for name, (folder, _, _) in segmentors.items()
    },
    **{
        f'CAMs {store} {policy.replace("_", " ")}, {word}': (
            '{run}/compared/' + store + '.json',
            f'policies.{policy}.{key}',
        )
        for store in stores
        for policy in ('best', 'equal_recall')
        for key, word in {**figures, 'threshold': 'threshold'}.items()
    },
    **{
        f'labels {labels}, {word}': ('{run}/scores/labels_' + labels + '.json', key)
        for labels in all_labels
        for key, word in figures.items()
    },
}
