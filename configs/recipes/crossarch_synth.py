# The table of CrossArch on the drawn benchmark, where half of the photos without smoke
# have a chimney: student with transfer against teacher, student alone and two controls,
# five seeds.
#   python tools/run_recipe.py configs/recipes/crossarch_synth.py --jobs 4
_base_ = './_base_/crossarch_synth.py'

work_dir = 'work_dirs/recipes/crossarch_synth'
seeds = [0, 1, 2, 3, 4]
parts = dict(lambda_03={'model.loss_kt.loss_weight': 0.3})
rows = {
    'teacher': ['cnn', 'short', 'alone', 'direct'],
    'student alone': ['alone', 'grad'],
    'student with transfer': [],
    # The best weight of crossarch_synth_modes, which has three of the seeds.
    'lambda 0.3': ['lambda_03'],
    'same architecture': ['cnn'],
    'untrained teacher': ['untrained'],
}

# Grad-CAM and LayerCAM of every row for comparison, of the photos with both.
data = _base_.data
lists = f'{data}/ImageSets/Segmentation'
photos = [lists, f'{data}/image_labels.json']
kinds = {'grad': 'Grad-CAM', 'layer': 'LayerCAM'}
make_stages = [
    dict(
        name=f'{split} CAMs {kind}',
        needs=['train'],
        command=[
            *('tools/make_cams.py', '{config}', '{run}/network', '--all-classes'),
            *('--kind', kind, '--split', 'test', '--list'),
            *(f'{lists}/{split}_obj_dis.txt', '--out', '{run}/cams/' + kind),
        ],
        inputs=photos,
        outputs=['{run}/cams/' + kind + '/made_from.json'],
    )
    for kind in kinds
    for split in ('val', 'test')
]
score_stages = [
    dict(
        name=f'score cell_{kind}',
        needs=[f'val CAMs {kind}', f'test CAMs {kind}'],
        command=[
            *('tools/eval_co_occurrence.py', '{run}/cams/' + kind, *_base_.against),
            *('--list', f'{lists}/test_obj_dis.txt', '--policies', 'val', 'oracle'),
            *('--gate', 'none', '--json', '{run}/scores/cell_' + kind + '.json'),
        ],
        inputs=[f'{data}/SegmentationClass'],
        outputs=['{run}/scores/cell_' + kind + '.json'],
    )
    for kind in kinds
]
stages = [*_base_.stages, *make_stages, *score_stages]
columns = {
    f'{word} {figure}{policy.replace("val", "").replace("oracle", " oracle")}': (
        '{run}/scores/cell_' + kind + '.json',
        f'policies.{policy}.{key}',
    )
    for kind, word in kinds.items()
    for policy in ('val', 'oracle')
    for figure, key in (('IoU', 'img_fg_iou'), ('DAR', 'DAR'))
}
