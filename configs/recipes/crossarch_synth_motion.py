# The shortcut against moving smoke: clips of eight frames, in which chimneys stand
# still, on the drawn benchmark with few chimneys without smoke; maps of the student
# with transfer before and after tools/pool_cams.py, three seeds:
#   python tools/run_recipe.py configs/recipes/crossarch_synth_motion.py --jobs 4
_base_ = './_base_/crossarch_synth.py'

work_dir = 'work_dirs/recipes/crossarch_synth_motion'
seeds = [0, 1, 2]

# As many train photos as without clips; {p} and the seed as ever.
data = 'data/co_occurrence_clips_p{p}/seed_{seed}'
common = dict.fromkeys(_base_.roots, data)
configs = dict(teacher=dict(changes=common))
rows = {
    'transfer, 0.5': [],
    'transfer, 0.2': ['fifth'],
    'transfer, 0.05': ['twentieth'],
}

lists = f'{data}/ImageSets/Segmentation'
masks = f'{data}/SegmentationClass'
photos = [lists, f'{data}/image_labels.json']
# Folder of maps -> how they are pooled; LayerCAM beside the projected maps.
kinds = {'own': '{kind}', 'layer': 'layer'}
pooled = {
    'still': [],
    'half': ['--motion', '0.5'],
    'full': ['--motion', '1.0'],
    'full_max': ['--motion', '1.0', '--window', '3'],
    'full_flow': ['--motion', '1.0', '--window', '3', '--flow'],
}
make_stages = [
    dict(
        name=f'{split} CAMs {store}',
        needs=['train'],
        command=[
            *('tools/make_cams.py', '{config}', '{run}/network', '--all-classes'),
            *('--kind', kind, '--split', 'test', '--list'),
            *(f'{lists}/{split}_obj_dis.txt', '--out', '{run}/cams/' + store),
        ],
        inputs=photos,
        outputs=['{run}/cams/' + store + '/made_from.json'],
    )
    for store, kind in kinds.items()
    for split in ('val', 'test')
]
pool_stages = [
    dict(
        name=f'{split} {store} {name}',
        needs=[f'{split} CAMs {store}'],
        command=[
            *('tools/pool_cams.py', '{config}', '{run}/cams/' + store),
            *('--clips', f'{data}/clips.json', *how, '--split', 'test', '--list'),
            *(f'{lists}/{split}_obj_dis.txt', '--out'),
            '{run}/cams/' + f'{store}_{name}',
        ],
        outputs=['{run}/cams/' + f'{store}_{name}/made_from.json'],
    )
    for store in kinds
    for name, how in pooled.items()
    if how
    for split in ('val', 'test')
]
score_stages = [
    dict(
        name=f'score {store} {name}',
        needs=[f'{split} {store} {name}' for split in ('val', 'test')]
        if how
        else [f'{split} CAMs {store}' for split in ('val', 'test')],
        command=[
            'tools/eval_co_occurrence.py',
            '{run}/cams/' + (f'{store}_{name}' if how else store),
            *(masks, '--distractors', f'{data}/DistractorMask'),
            *('--val-list', f'{lists}/val_obj_dis.txt'),
            *('--list', f'{lists}/test_obj_dis.txt', '--policies', 'val', 'oracle'),
            *('--gate', 'none', '--json'),
            '{run}/scores/' + f'{store}_{name}.json',
        ],
        inputs=[masks],
        outputs=['{run}/scores/' + f'{store}_{name}.json'],
    )
    for store in kinds
    for name, how in pooled.items()
]
stages = [
    dict(
        name='draw',
        command=[
            *('tools/make_co_occurrence.py', data, '--p-dis-neg', '{p}'),
            *('--seed', '{seed}', '--frames', '8', '--num-pos', '75', '--num-neg'),
            *('75', '--cells', '20', '20', '20', '14'),
        ],
        outputs=[f'{data}/image_labels.json'],
    ),
    *(dict(stage, inputs=photos) for stage in _base_.trainings),
    *(*make_stages, *pool_stages, *score_stages),
]
columns = {
    '_delete_': True,
    **{
        f'{word}{name.replace("_", " ")} {figure}': (
            '{run}/scores/' + f'{store}_{name}.json',
            f'policies.{policy}.{key}',
        )
        for store, word in (('own', ''), ('layer', 'LayerCAM '))
        for name in pooled
        for figure, policy, key in (
            ('IoU', 'val', 'img_fg_iou'),
            ('DAR', 'val', 'DAR'),
            ('IoU oracle', 'oracle', 'img_fg_iou'),
        )
    },
}
