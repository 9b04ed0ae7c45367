# What the recipes of CrossArch on the drawn co-occurrence benchmark share. A run draws
# the benchmark of its seed (train, val and test are different draws; runs of the same
# seed and {p} share it), trains a teacher of its own, then the network of its row, and
# scores its maps twice: 'cell' are the 150 test photos with smoke and chimney, 'all'
# the 550 of the four cells. Thresholds: val is the best one on 150 val photos with
# smoke and chimney; oracle, as in the published figures, on the scored photos
# themselves.
_base_ = './crossarch.py'

config = 'configs/crossarch_synth.py'

values = dict(p='0.5')  # share of the train photos without smoke that have a chimney

data = 'data/co_occurrence_p{p}/seed_{seed}'
roots = {
    'train_dataloader.dataset.data_root': data,
    'train_eval_dataloader.dataset.data_root': data,
    'test_dataloader.dataset.data_root': data,
}
common = roots
# What follows on the loading of a train photo; a test compares it with the config.
after_loading = [
    dict(
        type='RandomResize',
        scale=(56, 56),
        ratio_range=(48 / 56, 1.0),
        keep_ratio=True,
    ),
    dict(type='mmwsss.RandomCropWithBox', crop_size=(48, 48)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmwsss.PackWSSSInputs'),
]
configs = dict(
    teacher=dict(
        config='configs/crossarch_synth_teacher.py',
        changes={**_base_.no_validation, **roots},
    )
)
# The network and the schedule of the teacher; a test compares them with its config.
cnn_backbone = dict(
    type='ResNet',
    depth=18,
    stem_channels=16,
    base_channels=16,
    num_stages=3,
    strides=(1, 1, 1),
    dilations=(1, 1, 1),
    out_indices=(1, 2),
)
parts = dict(
    cnn={
        'model.student': dict(
            _delete_=True,
            type='mmwsss.CNNBranch',
            backbone=cnn_backbone,
            pcm=dict(type='mmwsss.PixelCorrelation', channels=32),
        ),
        # Enlarged photos are worth it for the transformer alone.
        'model.test_scales': (1.0,),
        'optim_wrapper.optimizer.lr': 3e-3,
        'param_scheduler.0.eta_max': 3e-3,
    },
    short={
        'train_cfg.max_iters': 114,
        'param_scheduler.0.total_steps': 114,
        'param_scheduler.0.end': 114,
    },
    untrained={'model.teacher_checkpoint': 'untrained'},
    fifth=dict(values=dict(p='0.2')),
    twentieth=dict(values=dict(p='0.05')),
)

lists = f'{data}/ImageSets/Segmentation'
masks = f'{data}/SegmentationClass'
photos = [lists, f'{data}/image_labels.json']
make = ['tools/make_cams.py', '{config}', '{run}/network', '--all-classes', '--kind']
make_stages = [
    dict(
        name=f'{split} CAMs own',
        needs=['train'],
        command=[
            *(*make, '{kind}', '--split', 'test', '--list', f'{lists}/{ids}.txt'),
            *('--out', '{run}/cams/own'),
        ],
        inputs=photos,
        outputs=['{run}/cams/own/made_from.json'],
    )
    for split, ids in (('val', 'val_obj_dis'), ('test', 'test'))
]
against = [
    *(masks, '--distractors', f'{data}/DistractorMask'),
    *('--val-list', f'{lists}/val_obj_dis.txt'),
]
score_stages = [
    dict(
        name=f'score {scores}',
        needs=['val CAMs own', 'test CAMs own'],
        command=[
            *('tools/eval_co_occurrence.py', '{run}/cams/own', *against),
            *('--list', f'{lists}/{ids}.txt', '--policies', 'val', 'oracle'),
            *('--gate', gate, '--json', '{run}/scores/' + scores + '.json'),
        ],
        inputs=[masks],
        outputs=['{run}/scores/' + scores + '.json'],
    )
    for scores, ids, gate in (
        ('cell_own', 'test_obj_dis', 'none'),
        ('all', 'test', 'pred'),
    )
]
stages = [
    dict(
        name='draw',
        command=[
            *('tools/make_co_occurrence.py', data, '--p-dis-neg', '{p}'),
            *('--seed', '{seed}'),
        ],
        outputs=[f'{data}/image_labels.json'],
    ),
    *(dict(stage, inputs=photos) for stage in _base_.trainings),
    *make_stages,
    *score_stages,
]

# Shares. IoU is the mean of the photos' own, DAR the share of the chimneys' pixels
# outside of the smoke that is predicted.
own = '{run}/scores/cell_own.json'
everything = '{run}/scores/all.json'
columns = {
    'IoU': (own, 'policies.val.img_fg_iou'),
    'DAR': (own, 'policies.val.DAR'),
    'BAR': (own, 'policies.val.BAR'),
    'IoU oracle': (own, 'policies.oracle.img_fg_iou'),
    'DAR oracle': (own, 'policies.oracle.DAR'),
    # Of photos, by the class probability.
    'FPR_img_D': (everything, 'policies.val.FPR_img_D'),
    'FPR_img_0': (everything, 'policies.val.FPR_img_0'),
    'TPR_obj_dis': (everything, 'policies.val.TPR_obj_dis'),
    'TPR_obj_only': (everything, 'policies.val.TPR_obj_only'),
    'worst cell': (everything, 'policies.val.conflict_acc'),
    # Pixels on photos with a chimney and no smoke, as gated by that probability.
    'FPR_pix_D': (everything, 'policies.val.FPR_pix_D_gated'),
    'IoU of all': (everything, 'policies.val.img_fg_iou'),
}
