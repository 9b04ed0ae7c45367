# What the recipes of CrossArch on photos share. A run trains a teacher of its own, then
# the network of its row; 'val' scores maps of all classes on the val photos, at the
# threshold that is best on train, so that false alarms count; 'labels' are those of val
# with image labels given, before and after a dense CRF, at the same threshold. Masks of
# train choose that one number, those of val choose nothing.
_base_ = './crossarch.py'

values = dict(
    data='',  # root of the data set, VOC's layout
    train_list='',  # ids of the photos that choose the threshold
    classes='',  # file with the names, one a line
)
# Of the recipes' part 'cnn'.
rows = {
    'teacher': ['cnn', 'alone', 'direct'],
    'student alone': ['alone', 'grad'],
    'student with transfer': [],
}
crf = 'DenseCRF(gt_prob=0.7, bilateral_xy=50, bilateral_weight=10)'

lists = '{data}/ImageSets/Segmentation'
photos = [lists, '{data}/image_labels.json']
masks = '{data}/SegmentationClass'
val_list = f'{lists}/val.txt'
make = ['tools/make_cams.py', '{config}', '{run}/network', '--kind', '{kind}']
of_train = ['--list', '{train_list}']
of_val = ['--list', val_list]
# Labels -> their refinement.
labels = {'plain': [], 'crf': ['--refine', crf]}
stages = [
    *(dict(stage, inputs=photos) for stage in _base_.trainings),
    *(
        dict(
            name=f'CAMs {split}',
            needs=['train'],
            command=[
                *(*make, '--all-classes', '--split', 'test', *chosen),
                *('--out', '{run}/cams/all'),
            ],
            inputs=photos,
            outputs=['{run}/cams/all/made_from.json'],
        )
        for split, chosen in (('train', of_train), ('val', of_val))
    ),
    dict(
        name='score',
        needs=['CAMs train', 'CAMs val'],
        command=[
            *('tools/eval_co_occurrence.py', '{run}/cams/all', masks, *of_val),
            *('--val-list', '{train_list}', '--policies', 'fixed', 'val', 'oracle'),
            *('--json', '{run}/scores/val.json'),
        ],
        inputs=[masks],
        outputs=['{run}/scores/val.json'],
    ),
    *(
        dict(
            name=f'given CAMs {split}',
            needs=['train'],
            command=[
                *(*make, '--split', 'test', *chosen),
                *('--out', '{run}/cams/given'),
            ],
            inputs=photos,
            outputs=['{run}/cams/given/made_from.json'],
        )
        for split, chosen in (('train', of_train), ('val', of_val))
    ),
    dict(
        name='choose',
        needs=['given CAMs train'],
        command=[
            *('tools/eval_pseudo_labels.py', '{run}/cams/given', masks, *of_train),
            *('--json', '{run}/scores/train.json'),
        ],
        inputs=[masks],
        outputs=['{run}/scores/train.json'],
    ),
    *(
        dict(
            name=f'{name} labels',
            needs=['given CAMs val', 'choose'],
            command=[
                *('tools/make_pseudo_labels.py', '{config}', '--split', 'test'),
                *(*of_val, '--cams', '{run}/cams/given', '--background'),
                *('best:{run}/scores/train.json', *refine),
                *('--out', '{run}/labels/' + name),
            ],
            outputs=['{run}/labels/' + name + '/made_from.json'],
            stale=['{run}/labels/' + name],
        )
        for name, refine in labels.items()
    ),
    *(
        dict(
            name=f'score {name} labels',
            needs=[f'{name} labels'],
            command=[
                'tools/eval_co_occurrence.py',
                '{run}/labels/' + name + '/SegmentationClass',
                *(masks, *of_val, '--classes', '{classes}'),
                *('--gate', 'label', '--json', '{run}/scores/' + name + '.json'),
            ],
            inputs=[masks],
            outputs=['{run}/scores/' + name + '.json'],
        )
        for name in labels
    ),
]

# Shares. IoU is the mean of the photos' own over those with the object; the false area
# is that of photos without it, before and after the network's own decision on photos.
val = '{run}/scores/val.json'
columns = {
    'IoU': (val, 'policies.val.img_fg_iou'),
    'IoU pooled': (val, 'policies.val.fg_iou'),
    'mIoU': (val, 'policies.val.miou'),
    'false area': (val, 'policies.val.FPR_pix_neg'),
    'false area gated': (val, 'policies.val.FPR_pix_neg_gated'),
    'accuracy': (val, 'policies.val.accuracy'),
    'FPR_img': (val, 'policies.val.FPR_img_neg'),
    'threshold': (val, 'policies.val.threshold'),
    'IoU at 0.3': (val, 'policies.fixed.img_fg_iou'),
    'IoU oracle': (val, 'policies.oracle.img_fg_iou'),
    # With image labels given.
    'labels, IoU': ('{run}/scores/plain.json', 'policies.labels.img_fg_iou'),
    'labels + CRF, IoU': ('{run}/scores/crf.json', 'policies.labels.img_fg_iou'),
    'labels + CRF, pooled': ('{run}/scores/crf.json', 'policies.labels.fg_iou'),
}
