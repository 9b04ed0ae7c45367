# AE-SIPE's pipeline: CAMs, IR labels, IRNet, its labels, a segmentor. The recipe sets
# config, the files of configs, and the values.
values = dict(
    data='',  # root of the data set, VOC's layout
    num_classes='',  # with background
    train_list='',  # ids of the photos that are scored as train
    # Background rules of make_pseudo_labels.py: of the labels, and of the IR labels
    # where the CAMs' own background is as it comes and times 0.8.
    background='own',
    ir_objects='own',
    ir_background='own*0.8',
    checkpoint='',  # of the segmentor, its last one
)
crf = 'DenseCRF(gt_prob=0.7, bilateral_xy=50, bilateral_weight=10)'
walk = "TrainedRefiner(config='{irnet}', checkpoint='{run}/irnet')"

# Each step is scored by a stage of its own.
no_validation = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
common = no_validation
configs = dict(
    irnet=dict(
        changes={
            **no_validation,
            # SIPE's CAMs bring a background along, which walks with them.
            'model.background_threshold': None,
            'model.cam_power': 1.5,
            'train_dataloader.dataset.pipeline.1.label_root': (
                '{run}/ir_labels/SegmentationClass'
            ),
            'train_eval_dataloader.dataset.pipeline.2.cam_root': '{run}/cams',
            'test_dataloader.dataset.pipeline.2.cam_root': '{run}/cams',
        }
    ),
    segmentor=dict(
        changes={
            **no_validation,
            'train_dataloader.dataset.pipeline.1.label_root': (
                '{run}/labels/SegmentationClass'
            ),
        }
    ),
)

lists = '{data}/ImageSets/Segmentation'
photos = [lists, '{data}/image_labels.json']
masks = '{data}/SegmentationClass'
score = 'tools/eval_pseudo_labels.py'
on_train = [masks, '--list', '{train_list}', '--num-classes', '{num_classes}']
stages = [
    dict(
        name='train SIPE',
        command=['tools/train.py', '{config}', '--work-dir', '{run}/sipe'],
        inputs=photos,
        outputs=['{run}/sipe/last_checkpoint'],
        resume=['--resume'],
        stale=['{run}/sipe'],
    ),
    dict(
        name='make CAMs',
        command=['tools/make_cams.py', '{config}', '{run}/sipe', '--out', '{run}/cams'],
        outputs=['{run}/cams/made_from.json'],
        stale=['{run}/cams'],
    ),
    dict(
        name='score CAMs',
        command=[score, '{run}/cams', *on_train, '--json', '{run}/scores/cams.json'],
        inputs=[masks],
        outputs=['{run}/scores/cams.json'],
    ),
    dict(
        name='make CRF labels',
        needs=['make CAMs'],
        command=[
            *('tools/make_pseudo_labels.py', '{config}', '--cams', '{run}/cams'),
            *('--background', '{background}', '--refine', crf),
            *('--out', '{run}/crf_labels'),
        ],
        outputs=['{run}/crf_labels/made_from.json'],
        stale=['{run}/crf_labels'],
    ),
    dict(
        name='score CRF labels',
        command=[
            *(score, '{run}/crf_labels/SegmentationClass', *on_train),
            *('--json', '{run}/scores/crf_labels.json'),
        ],
        inputs=[masks],
        outputs=['{run}/scores/crf_labels.json'],
    ),
    dict(
        name='make IR labels',
        needs=['make CAMs'],
        command=[
            *('tools/make_pseudo_labels.py', '{config}', '--cams', '{run}/cams'),
            *('--ir', '{ir_objects}', '{ir_background}', '--refine', crf),
            *('--out', '{run}/ir_labels'),
        ],
        outputs=['{run}/ir_labels/made_from.json'],
        stale=['{run}/ir_labels'],
    ),
    dict(
        name='train IRNet',
        command=['tools/train.py', '{irnet}', '--work-dir', '{run}/irnet'],
        outputs=['{run}/irnet/last_checkpoint'],
        resume=['--resume'],
        stale=['{run}/irnet'],
    ),
    dict(
        name='make labels',
        needs=['make CAMs', 'train IRNet'],
        command=[
            *('tools/make_pseudo_labels.py', '{config}', '--cams', '{run}/cams'),
            *('--background', '{background}', '--refine', walk),
            *('--out', '{run}/labels'),
        ],
        outputs=['{run}/labels/made_from.json'],
        stale=['{run}/labels'],
    ),
    dict(
        name='score labels',
        command=[
            *(score, '{run}/labels/SegmentationClass', *on_train),
            *('--json', '{run}/scores/labels.json'),
        ],
        inputs=[masks],
        outputs=['{run}/scores/labels.json'],
    ),
    dict(
        name='train DeepLabV3',
        needs=['make labels'],
        command=['tools/train.py', '{segmentor}', '--work-dir', '{run}/segmentor'],
        outputs=['{run}/segmentor/{checkpoint}'],
        resume=['--resume'],
        stale=['{run}/segmentor'],
    ),
    dict(
        name='predict val',
        command=[
            *('tools/test.py', '{segmentor}', '{run}/segmentor/{checkpoint}'),
            *('--work-dir', '{run}/val', '--out', '{run}/val/SegmentationClass'),
        ],
        outputs=['{run}/val/SegmentationClass'],
        stale=['{run}/val'],
    ),
    dict(
        name='score val',
        command=[
            *(score, '{run}/val/SegmentationClass', masks),
            *('--list', f'{lists}/val.txt', '--num-classes', '{num_classes}'),
            *('--json', '{run}/scores/val.json'),
        ],
        inputs=[masks],
        outputs=['{run}/scores/val.json'],
    ),
]

cams = '{run}/scores/cams.json'
columns = {
    'DeepLabV3, val': ('{run}/scores/val.json', 'miou'),
    'after IRNet, train': ('{run}/scores/labels.json', 'miou'),
    'CAMs + CRF, train': ('{run}/scores/crf_labels.json', 'miou'),
    'CAMs, own background': (cams, 'policies.own.miou'),
    'CAMs, best threshold': (cams, 'policies.best.miou'),
    'CAMs, 0.25': (cams, 'policies.fixed.miou'),
}
