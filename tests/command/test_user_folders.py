"""What belongs to the user is never written to, by any verb and any tool.

A folder holds all that one can hand over: photos, tags, masks, configs, checkpoints,
and what earlier commands made, as the input of the next ones. Every verb and every
tool that reads something of it does its work, with its output elsewhere. Afterwards
each file has its bytes, its mode and its time of change, and each folder too, so that
a temporary file or a lock that came and went is seen as well.
"""

import hashlib
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import fake_cams
import fake_clips
import fake_inference
import fake_run
import numpy as np
import pytest
import tiny_run
import torch
from click.testing import CliRunner
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from PIL import Image

from mmwsss.command import VERBS, group
from mmwsss.command.found import read_config
from mmwsss.datasets import CAMStore, StoredCAMs
from mmwsss.datasets.cam_store import grid_size
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm
TOOLS = tiny_run.ROOT / 'tools'
TOWERS = tiny_run.ROOT / 'mmwsss/datasets/tiny_towers'
# What ``convert masks`` writes of a format, and what of it is read.
WRITTEN = {
    'voc': ('SegmentationClass/photo_7.png', ''),
    'coco': ('instances.json', '/instances.json'),
    'labelme': ('photo_7.json', ''),
    'x-anylabeling': ('photo_7.json', ''),
    'cvat': ('annotations.xml', '/annotations.xml'),
    'label-studio': ('tasks.json', '/tasks.json'),
}


def state(folder):
    """Path below the folder -> mode, time of change in ns and SHA-256 or link."""
    found = {}
    for path in sorted([folder, *folder.rglob('*')]):
        entry = path.lstat()
        content = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        name = path.relative_to(folder).as_posix()
        found[name] = entry.st_mode, entry.st_mtime_ns, content
    return found


def call(*words, code=0):
    result = CliRunner().invoke(group, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)


def start_tool(monkeypatch, name, *words):
    """Do what ``python tools/NAME.py`` does, in this process to save its start."""
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, words)])
    assert not runpy.run_path(str(TOOLS / f'{name}.py'))['main']()


# --------------------------------------------------------------------- what is theirs
def write_config(path, data, **changes):
    """A training of two iterations, with test photos and masks."""
    content = tiny_run.tested_config(data)
    content['data_root'] = str(data)
    content.update(changes)
    return tiny_run.write_config(path, content)


def student(root):
    """Of ``write_config``: a small network that learns from stored labels."""
    arch = dict(
        num_blocks=[1, 1, 1, 1],
        width_factor=[0.25] * 4,
        num_conv_branches=[1] * 4,
        num_se_blocks=[0] * 4,
    )
    backbone = dict(type='mmpretrain.MobileOne', arch=arch, out_indices=(3,))
    content = tiny_run.config(root / 'data')
    content['train_dataloader']['dataset']['pipeline'] = [
        dict(type='mmwsss.LoadPhoto'),
        dict(type='mmwsss.LoadPseudoLabels', label_root='nowhere', num_classes=3),
        dict(type='mmwsss.RandomCropWithBox', crop_size=(32, 40)),
        dict(type='mmwsss.PackPseudoLabels'),
    ]
    preprocessor = content['model']['data_preprocessor'] | dict(seg_pad_val=255)
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=preprocessor,
        backbone=dict(type='mmwsss.PretrainedBackbone', backbone=backbone),
        decode_head=dict(
            type='FCNHead',
            in_channels=128,
            in_index=0,
            channels=8,
            num_convs=1,
            concat_input=False,
            num_classes=3,
            norm_cfg=dict(type='BN'),
            align_corners=False,
        ),
        test_cfg=dict(mode='whole'),
    )
    return dict(
        model=model, train_dataloader=content['train_dataloader'], custom_hooks=[]
    )


def write_network(config, folder):
    """A work directory with a checkpoint, the network as it is drawn."""
    cfg = read_config(config)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    folder.mkdir()
    path = folder / 'iter_2.pth'
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, path)
    (folder / 'last_checkpoint').write_text(str(path))


def write_coco(root):
    """COCO 2014 as it is unpacked, of one photo a split."""
    (root / 'annotations').mkdir(parents=True)
    for number, split in enumerate(('train', 'val')):
        (root / f'{split}2014').mkdir()
        photo = root / f'{split}2014/{split}.jpg'
        Image.new('RGB', (8, 6)).save(photo)
        image = {'id': 1, 'file_name': photo.name, 'width': 8, 'height': 6}
        drawn = {'image_id': 1, 'category_id': 3, 'area': 9 + number}
        drawn |= {'segmentation': [[2, 1, 5, 1, 5, 4, 2, 4]]}
        content = {
            'images': [image],
            'categories': [{'id': 3, 'name': 'disc'}],
            'annotations': [drawn],
        }
        path = root / f'annotations/instances_{split}2014.json'
        path.write_text(json.dumps(content))


def write_clips(root):
    """Clips, their config and a store of the CAMs of their frames."""
    fake_clips.draw(root, num_clips=4, num_frames=3)
    clips = json.loads((root / 'clips.json').read_text())['clips']
    for clip in clips.values():
        for name in clip['frames']:
            cams = np.full((len(clip['labels']), *grid_size(fake_clips.SIZE)), 0.5)
            classes = np.arange(len(cams))
            stored = StoredCAMs(classes, np.float32(cams), fake_clips.SIZE)
            CAMStore(root / 'cams').write(name, stored)
    content = dict(
        default_scope='mmseg',
        custom_imports=dict(
            imports=['mmwsss.models', 'mmwsss.datasets'], allow_failed_imports=False
        ),
        train_dataloader=dict(
            dataset=dict(
                type='mmwsss.VideoClipDataset',
                data_root=str(root),
                clips='clips.json',
                data_prefix=dict(img_path='JPEGImages'),
                img_suffix='.png',
                frames='stride',
            )
        ),
    )
    tiny_run.write_config(root / 'clips.py', content)


def write_store_with_probs(folder):
    """CAMs of all classes of the drawn photos; some photos are decided wrongly."""
    for number in range(fake_cams.NUM_PHOTOS):
        cams = np.full((2, *grid_size((48, 64))), 0.1, np.float32)
        cams[:, 2:5, 3:6] = 0.75
        probs = np.float32([0.9, 0.1 * number])
        stored = StoredCAMs(np.arange(2), cams, (48, 64), probs=probs)
        CAMStore(folder).write(f'photo_{number}', stored)


def write_recipe(root):
    stages = [
        dict(
            name='score',
            command=[
                'tools/eval_pseudo_labels.py',
                str(root / 'labels/SegmentationClass'),
                str(root / 'data/SegmentationClass'),
                '--num-classes',
                '3',
                '--json',
                '{run}/scores.json',
            ],
            inputs=[str(root / 'labels')],
            outputs=['{run}/scores.json'],
        )
    ]
    tiny_run.write_config(root / 'recipe.py', dict(work_dir='work', stages=stages))


@pytest.fixture(scope='module')
def user(tmp_path_factory):
    """The folder."""
    root = tmp_path_factory.mktemp('user') / 'mine'
    fake_cams.write(root)
    fake_inference.write(root)
    data, photos = root / 'data', root / 'data/JPEGImages'
    tags = json.loads((data / 'image_labels.json').read_text())['labels']
    lines = [','.join([f'{name}.jpg', *names]) for name, names in tags.items()]
    (root / 'tags.csv').write_text('\n'.join(lines) + '\n')
    choices = {'type': 'choices', 'from_name': 'tags', 'to_name': 'image'}
    task = {
        'data': {'image': 'photo_1.jpg'},
        'annotations': [{'result': [choices | {'value': {'choices': ['disc']}}]}],
    }
    (root / 'choices.json').write_text(json.dumps([task]))
    (root / 'classes.txt').write_text('background\ndisc\nbar\n')
    (root / 'leave_out.txt').write_text('photo_6\n')
    for name in ('disc', 'bar'):
        (root / f'sorted/{name}').mkdir(parents=True)
        shutil.copy2(
            photos / f'photo_{1 + (name == "bar")}.jpg', root / 'sorted' / name
        )
    (root / 'voc/Annotations').mkdir(parents=True)
    (root / 'voc/Annotations/photo_1.xml').write_text(
        '<annotation><object><name>dog</name></object></annotation>'
    )
    write_network(write_config(root / 'tiny.py', data), root / 'run')
    trained = write_config(root / 'student.py', data, **student(root))
    write_network(trained, root / 'student_run')
    write_store_with_probs(root / 'probs')
    write_coco(root / 'coco')
    write_clips(root / 'video')
    drawn = fake_run.draw_photos(root / 'drawn', num_train=2, num_val=2)
    config = fake_run.write_run(root / 'scored_run', drawn)
    call(
        *('evaluate', config, root / 'scored_run', '--out', root / 'numbers'),
        *('--device', 'cpu'),
    )
    cams = root / 'cams'
    call(
        'make-cams', root / 'fake.py', root / 'fake.pth', '--kind', 'cam', '--out', cams
    )
    call(
        'make-pseudo-labels', root / 'fake.py', '--cams', cams, '--out', root / 'labels'
    )
    masks = ['convert', 'masks', data / 'SegmentationClass', '--images', photos]
    masks += ['--classes', root / 'classes.txt']
    for name in WRITTEN:
        call(*masks, '--format', name, '--out', root / f'annotated/{name}')
    write_recipe(root)
    # As it is copied from a camera; what is written anew gets another time.
    for path in [root, *root.rglob('*')]:
        os.utime(path, (1_500_000_000, 1_500_000_000))
    return root


# ------------------------------------------------------------------------ what is done
# Name -> words of the verb (or of the tool of that name), and what comes out. {} is the
# user's folder, everything else is in the one where the command is given.
SAME = {
    'train': ('train {}/tiny.py --work-dir new', 'new/iter_2.pth'),
    'test': (
        'test {}/tiny.py {}/run/iter_2.pth --work-dir new --out maps',
        'maps/photo_7.png',
    ),
    'make-cams': ('make-cams {}/tiny.py {}/run --out cams', 'cams/photo_7.npz'),
    'fuse-cams': (
        'fuse-cams {}/fake.py {}/cams {}/cams --mode mean --out cams',
        'cams/photo_7.npz',
    ),
    'pool-cams': (
        'pool-cams {}/video/clips.py {}/video/cams --clips {}/video/clips.json '
        '--window 3 --flow --motion 0.5 --out pooled',
        'pooled/c1/2.npz',
    ),
    'select-threshold': (
        'select-threshold {}/fake.py --cams {}/cams --masks {}/data/SegmentationClass '
        '--json chosen.json',
        'chosen.json',
    ),
    'make-pseudo-labels': (
        'make-pseudo-labels {}/fake.py --cams {}/cams --background auto '
        '--refine PAR(num_iters=1) --out labels',
        'labels/SegmentationClass/photo_7.png',
    ),
    'make-pseudo-labels of a network': (
        'make-pseudo-labels {}/colours.py --checkpoint {}/colours.pth --out labels '
        '--reliability',
        'labels/SegmentationClass/photo_7.png',
    ),
    'eval-pseudo-labels': (
        'eval-pseudo-labels {}/cams {}/data/SegmentationClass --json scores.json '
        '--curve curve.png',
        'curve.png',
    ),
    'eval-co-occurrence': (
        'eval-co-occurrence {}/probs {}/data/SegmentationClass --distractors '
        '{}/data/SegmentationClass --list {}/data/train.txt --classes {}/classes.txt '
        '--json scores.json',
        'scores.json',
    ),
    'evaluate': (
        'evaluate {}/tiny.py {}/run --split val --num-pictures 1 --out numbers',
        'numbers/metrics.json',
    ),
    'report': (
        'report {}/numbers --run {}/scored_run --out pages/page.html',
        'pages/page.html',
    ),
    'recipe': ('recipe {}/recipe.py --run seed_0', 'work/seed_0/scores.json'),
    'check-prompts': (
        f'check-prompts {{}}/fake.py --model {TOWERS}/clip.json '
        f'--weights {TOWERS}/clip.safetensors --background-words sky --out embeddings',
        'embeddings/photo_7.npz',
    ),
    'find-shortcuts': (
        'find-shortcuts {}/fake.py {}/probs --weights weights.json --factor 3 '
        '--regions regions',
        'regions/regions.json',
    ),
    'split-clips': (
        'split-clips {}/video/clips.json --val 0.5 --out lists',
        'lists/val_clips.txt',
    ),
    'prepare-data tags': (
        'prepare-data tags {}/tags.csv --images {}/data/JPEGImages --out tags.json',
        'tags.json',
    ),
    'prepare-data folders': ('prepare-data folders {}/sorted --out t.json', 't.json'),
    'prepare-data voc': ('prepare-data voc {}/voc --out tags.json', 'tags.json'),
    'prepare-data check': (
        'prepare-data check photos {}/data/JPEGImages --workers 1 --list broken.txt',
        'broken.txt',
    ),
    'prepare-data crops': (
        'prepare-data crops {}/data/JPEGImages {}/data/SegmentationClass crops '
        '--size 16 --foreground 1 2',
        'crops/image_labels.json',
    ),
    'prepare-data binary-masks': (
        'prepare-data binary-masks {}/data/SegmentationClass masks --foreground 1 2',
        'masks/photo_7.png',
    ),
}
VERBS_ALONE = {
    'doctor': (
        'doctor {}/data --masks {}/data/SegmentationClass --split '
        'train={}/data/train.txt --jobs 1 --only-data --json found.json',
        'found.json',
    ),
    'train on a folder': (
        'train {}/tiny.py --data {}/data --exclude {}/leave_out.txt --work-dir new '
        '--cfg-options load_from={}/run/iter_2.pth',
        'new/iter_2.pth',
    ),
    'train on labels': (
        'train {}/student.py --labels {}/labels --work-dir new',
        'new/iter_2.pth',
    ),
    'label': (
        'label {}/colours.py {}/colours.pth {}/data/JPEGImages --tags {}/tags.csv '
        '--refine PAR(num_iters=1) --device cpu --out masks',
        'masks/SegmentationClass/photo_7.png',
    ),
    'export': (
        'export {}/student.py {}/student_run --photo {}/data/JPEGImages/photo_1.jpg '
        '--out model.onnx',
        'model.onnx',
    ),
    'convert tags of folders': ('convert tags {}/sorted --out t.json', 't.json'),
    'convert tags of label-studio': (
        'convert tags {}/choices.json --images {}/data/JPEGImages --out t.json',
        't.json',
    ),
    'convert tags of voc': (
        'convert tags {}/voc/Annotations --images {}/data/JPEGImages --out t.json',
        't.json',
    ),
    'convert tags of csv': (
        'convert tags {}/tags.csv --images {}/data/JPEGImages --out t.json',
        't.json',
    ),
}
for _name, (_made, _source) in WRITTEN.items():
    VERBS_ALONE[f'convert masks to {_name}'] = (
        f'convert masks {{}}/data/SegmentationClass --format {_name} '
        '--classes {}/classes.txt --images {}/data/JPEGImages --out annotated',
        f'annotated/{_made}',
    )
    VERBS_ALONE[f'convert annotations of {_name}'] = (
        f'convert annotations {{}}/annotated/{_name}{_source} --format {_name} '
        '--classes {}/classes.txt --images {}/data/JPEGImages --out strong',
        'strong/SegmentationClass/photo_7.png',
    )
    # Masks without tags, and predictions, which are no tags.
    if _name not in ('voc', 'label-studio'):
        VERBS_ALONE[f'convert tags of {_name}'] = (
            f'convert tags {{}}/annotated/{_name}{_source} --shapes '
            '--images {}/data/JPEGImages --out t.json',
            't.json',
        )
# They read nothing of the user's.
VERBS_WITHOUT = {'configs'}
TOOLS_WITHOUT = {
    *('benchmark', 'benchmark_labelling', 'make_co_occurrence', 'make_random_weights'),
    *('make_synthetic', 'train_tiny_towers'),
}


def tool_of(verb):
    return {'recipe': 'run_recipe'}.get(verb, verb.replace('-', '_'))


def test_every_verb_and_tool_has_a_case():
    """Or a new one is not looked at."""
    shared = {text.split()[0] for text, _ in SAME.values()}
    alone = {text.split()[0] for text, _ in VERBS_ALONE.values()}
    assert shared | alone | VERBS_WITHOUT == set(VERBS)
    tools = {path.stem for path in TOOLS.glob('[!_]*.py')}
    assert {tool_of(verb) for verb in shared} | TOOLS_WITHOUT == tools


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Where the commands are given."""
    monkeypatch.chdir(tmp_path)
    # A stage of a recipe is a process of its own.
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(sys.path))
    return tmp_path


def check(user, elsewhere, do, case):
    text, made = case
    before = state(user)
    assert not (elsewhere / made).exists()
    do(*(word.replace('{}', str(user)) for word in text.split()))
    assert (elsewhere / made).is_file()
    assert state(user) == before


@pytest.mark.parametrize('name', [*SAME, *VERBS_ALONE])
def test_a_verb_leaves_what_it_reads(user, elsewhere, name):
    if name == 'export':
        pytest.importorskip('onnxruntime', reason='of the extra export')
        pytest.importorskip('onnxscript', reason='of the extra export')
    check(user, elsewhere, call, {**SAME, **VERBS_ALONE}[name])


@pytest.mark.parametrize('name', SAME)
def test_a_tool_leaves_what_it_reads(user, elsewhere, monkeypatch, name):
    def do(verb, *words):
        start_tool(monkeypatch, tool_of(verb), *words)

    check(user, elsewhere, do, SAME[name])


# What is to come to lie beside what is read: new files, and nothing else.
@pytest.mark.parametrize(
    ('text', 'new'),
    [
        ('prepare-data voc {}/voc', ['voc/image_labels.json']),
        (
            'prepare-data tags {}/tags.csv --images {}/sorted --skip-missing',
            ['sorted/image_labels.json'],
        ),
        (
            'prepare-data coco {}/coco --masks',
            [
                *('coco/ImageSets', 'coco/ImageSets/Segmentation'),
                *(f'coco/ImageSets/Segmentation/{s}.txt' for s in ('train', 'val')),
                *('coco/JPEGImages', 'coco/JPEGImages/train.jpg'),
                *('coco/JPEGImages/val.jpg', 'coco/SegmentationClass'),
                *(f'coco/SegmentationClass/{s}.png' for s in ('train', 'val')),
                'coco/image_labels.json',
            ],
        ),
    ],
)
def test_what_comes_to_lie_beside_it_is_new(user, elsewhere, text, new):
    mine = elsewhere / 'mine'
    shutil.copytree(user, mine, symlinks=True)
    before = state(mine)
    call(*(word.replace('{}', str(mine)) for word in text.split()))
    after = state(mine)
    assert sorted(set(after) - set(before)) == sorted(new)
    # A folder that gets a file changes its time, and nothing else does.
    gets = {Path(name).parent.as_posix() for name in new}
    for name in set(before) - gets:
        assert after[name] == before[name], name


# ----------------------------------------------------------- an --out that is not empty
# The verb or (with T) the tool -> what it says. Each would write a file that is there.
REFUSED = {
    'label {}/colours.py {}/colours.pth {}/data/JPEGImages '
    '--device cpu --out {}/data': (
        r'SegmentationClass/photo_0.png is there, but no made_from.json'
    ),
    # The list of its classes.
    'label {}/colours.py {}/colours.pth {}/data/JPEGImages --device cpu --out {}': (
        r'mine/classes.txt is there, but no made_from.json'
    ),
    'make-pseudo-labels {}/fake.py --cams {}/cams --out {}/data': (
        r'SegmentationClass/photo_0.png is there, but no made_from.json'
    ),
    'make-cams {}/fake.py {}/fake.pth --out {}/probs': r'photo_0.npz is there, but no',
    'fuse-cams {}/fake.py {}/cams {}/cams --mode mean --out {}/probs': (
        'photo_0.npz is there, but no'
    ),
    'test {}/tiny.py {}/run --out {}/data/SegmentationClass': 'is there already; give',
    'test {}/tiny.py {}/run --overwrite --out {}/data/SegmentationClass '
    '--cfg-options test_dataloader.dataset.data_root={}/data': (
        'is the folder of the masks that are scored against'
    ),
    'T test {}/tiny.py {}/run/iter_2.pth --out {}/data/../data/SegmentationClass '
    '--cfg-options test_dataloader.dataset.data_root={}/data': (
        'is the folder of the masks that are scored against'
    ),
    'convert masks {}/labels --format voc --classes {}/classes.txt --out {}/data': (
        'is there already; give another --out'
    ),
    'convert annotations {}/annotated/cvat/annotations.xml --format cvat '
    '--classes {}/classes.txt --out {}/data': 'is there already; give another --out',
    'convert tags {}/tags.csv --images {}/data/JPEGImages '
    '--out {}/data/image_labels.json': 'is there already; give another --out',
    'prepare-data tags {}/tags.csv --images {}/data/JPEGImages '
    '--out {}/data/image_labels.json': 'exists already; add --overwrite',
    'prepare-data binary-masks {}/annotated/voc/SegmentationClass '
    '{}/labels/SegmentationClass --foreground 1 2': 'already and is another mask',
    'prepare-data crops {}/data/JPEGImages {}/data/SegmentationClass {}/data --size 16 '
    '--foreground 1 2': 'remove it or choose another folder',
    'doctor {}/data --only-data --jobs 1 --json {}/data/image_labels.json': (
        'is there already; give another --json'
    ),
    'T report {}/numbers --out {}/data/image_labels.json': 'is there and is no report',
}


@pytest.mark.parametrize('text', REFUSED)
def test_what_is_theirs_is_not_replaced(user, elsewhere, monkeypatch, text):
    mine = elsewhere / 'mine'
    shutil.copytree(user, mine, symlinks=True)
    before = state(mine)
    words = [word.replace('{}', str(mine)) for word in text.split()]
    if words[0] == 'T':
        with pytest.raises(InputError) as caught:
            start_tool(monkeypatch, tool_of(words[1]), *words[2:])
        said = str(caught.value)
    else:
        result = CliRunner().invoke(group, words)
        assert result.exit_code == 1, result.output
        said = f'{result.output} {result.exception}'
    assert re.search(REFUSED[text], said), said
    after = state(mine)
    # A folder that was looked into may have got a lock or a record, and nothing else.
    for name, entry in before.items():
        assert after[name] == entry or (mine / name).is_dir(), name
    assert not {n for n in set(after) - set(before) if n.endswith(('.png', '.npz'))}


def test_lists_and_masks_of_coco_are_not_replaced(user, elsewhere):
    shutil.copytree(user / 'coco', 'coco')
    given = ['prepare-data', 'coco', 'coco', '--masks', '--out', 'tags.json']
    call(*given)
    before = state(Path('coco'))
    call(*given, '--overwrite')
    # What is as it should be is left alone.
    assert state(Path('coco')) == before
    for name in ('ImageSets/Segmentation/val.txt', 'SegmentationClass/train.png'):
        path = Path('coco', name)
        made = path.read_bytes()
        path.write_bytes(b'mine')
        Path('tags.json').unlink()
        result = CliRunner().invoke(group, given)
        assert f'{name} is there already and is another' in result.output
        assert path.read_bytes() == b'mine'
        assert not Path('tags.json').exists()
        call(*given, '--overwrite')
        assert path.read_bytes() == made


def test_masks_by_hand_are_replaced_when_asked_for(user, elsewhere):
    """And masks that a run has made are gone on from, as ever."""
    mine = elsewhere / 'mine'
    shutil.copytree(user, mine, symlinks=True)
    given = ['label', mine / 'colours.py', mine / 'colours.pth']
    given += [mine / 'data/JPEGImages', '--device', 'cpu', '--out', mine / 'data']
    call(*given, '--overwrite')
    by_network = mine / 'data/SegmentationClass/photo_1.png'
    theirs = user / 'data/SegmentationClass/photo_1.png'
    assert by_network.read_bytes() != theirs.read_bytes()
    by_network.unlink()
    call(*given)
    assert by_network.is_file()


def test_masks_of_one_object_are_written_again_where_they_are_the_same(elsewhere):
    for name, values in (('a', [[0, 1]]), ('b', [[1, 1]])):
        path = Path('masks', f'{name}.png')
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.array(values, np.uint8)).save(path)
    given = ['prepare-data', 'binary-masks', 'masks', 'out', '--foreground', '1']
    call(*given)
    Path('out/b.png').unlink()
    call(*given)
    np.testing.assert_array_equal(np.asarray(Image.open('out/b.png')), [[1, 1]])
    Image.fromarray(np.array([[1, 0]], np.uint8)).save('out/b.png')
    call(*given, code=1)
    np.testing.assert_array_equal(np.asarray(Image.open('out/b.png')), [[1, 0]])
