"""Configs for own photos and classes: what follows the image labels, and what stays."""

import json
import shutil
from pathlib import Path

import fake_clips
import numpy as np
import pytest
import tiny_run
from click.testing import CliRunner
from mmengine.config import Config
from PIL import Image

from mmwsss.apis.own_data import (
    missing_labels,
    with_data,
    with_labels,
    without_photos,
)
from mmwsss.command import group
from mmwsss.command.found import build_dataset, changes, find_config, read_config
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm
NAMES = ['cat', 'traffic_light', 'sky']
TAGS = [['cat'], ['traffic_light', 'sky'], []]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Six photos of three classes; photo 0 has no tags, 4 and 5 are held out."""
    monkeypatch.chdir(tmp_path)
    root = Path('own')
    (root / 'photos/trip').mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(7):
        suffix = '.jpg' if number % 2 else '.PNG'
        pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f'photos/{image_id(number)}{suffix}')
    labels = {image_id(n): TAGS[n % 3] for n in range(1, 7)}
    write_labels(root, labels)
    return root


def image_id(number):
    return f'{"trip/" if number > 3 else ""}p{number}'


def write_labels(root, labels, names=NAMES):
    content = {'classes': names, 'labels': labels}
    (root / 'image_labels.json').write_text(json.dumps(content))


def add_masks(root, *numbers):
    for number in numbers:
        path = root / f'masks/{image_id(number)}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((48, 64), number % 4, np.uint8)).save(path)
    held_out = [image_id(4), image_id(5)]
    (root / 'val.txt').write_text(''.join(f'{name}\n' for name in held_out))


def ids(config, split):
    dataset = build_dataset(config, split)
    return [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]


# ----------------------------------------------------------------------- the classes
# Of the shipped configs: every place that counts classes, written down by hand.
COUNTS = {
    'dual_frozen_msrc_refine': {
        'model.cam_source.num_classes': 3,
        'model.labeler.gate.num_classes': 4,
        'model.decode_head.num_classes': 4,
    },
    'clipdino_refine_voc': {
        'model.labeler.gate.num_classes': 4,
        'model.decode_head.num_classes': 4,
        'tta_pipeline.1.transforms.2.0.num_classes': 4,
    },
    'sipe_r50_voc': {'model.num_classes': 3},
    'aesipe_msrc': {'model.num_classes': 3},
    'cam_vit_synth': {'model.num_classes': 3},
    'crossarch_smoke': {'model.num_classes': 3},
    'deeplabv3_mobileone_synth': {
        'model.decode_head.num_classes': 4,
        'model.auxiliary_head.num_classes': 4,
        'train_dataloader.dataset.pipeline.1.num_classes': 4,
    },
}


def at(content, key):
    for name in key.split('.'):
        content = content[int(name) if name.isdigit() else name]
    return content


@pytest.mark.parametrize('name', COUNTS)
def test_everything_that_counts_classes_follows_the_labels(name, own):
    add_masks(own, 4, 5)
    path = find_config(name)
    before = Config.fromfile(path)
    text = before.pretty_text
    config = with_data(before, own)
    assert before.pretty_text == text
    for key, count in COUNTS[name].items():
        assert at(config, key) == count, key
    mask_steps = [
        s for s in config.val_dataloader.dataset.pipeline if 'num_classes' in s
    ]
    assert [step.num_classes for step in mask_steps] == [4]
    # Nothing but places that count changed in the model.
    same = {k: v for k, v in flat(before.model) if k not in COUNTS[name]}
    left = dict(flat(config.model))
    for key, value in same.items():
        words = ('num_classes', 'class_names', 'background_words')
        assert key.rpartition('.')[2] in words or left[key] == value, key
    # A dump is all that is needed afterwards.
    config.dump('saved.py')
    assert Config.fromfile('saved.py').to_dict() == config.to_dict()


def flat(content, key=''):
    for name, value in content.items():
        where = f'{key}.{name}'.lstrip('.')
        yield from flat(value, where) if isinstance(value, dict) else [(where, value)]


def test_words_for_clip_are_the_names_unless_they_say_the_same(own):
    config = with_data(Config.fromfile(find_config('clipdino_refine_voc')), own)
    clip = config.model.backbone.encoders.clip
    assert clip.class_names == ['cat', 'traffic light', 'sky']
    # A class is no background; the rest of the words stays, in order.
    around = Config.fromfile(find_config('clipdino_refine_voc')).background_words
    assert clip.background_words == [word for word in around if word != 'sky']
    assert 'sky' in around

    names = [
        *('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat'),
        *('chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person'),
        *('pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'),
    ]
    voc = with_data_of(own, names)
    assert voc.class_names[2] == 'bird avian'
    assert voc.background_words == around
    # As many, but others.
    assert with_data_of(own, names[::-1]).class_names == names[::-1]


def with_data_of(root, names):
    write_labels(root, {image_id(1): []}, names)
    config = with_data(Config.fromfile(find_config('clipdino_refine_voc')), root)
    return config.model.backbone.encoders.clip


def test_a_weight_for_each_class_is_refused_unless_it_fits(own):
    config = Config.fromfile(find_config('deeplabv3_mobileone_msrc'))
    config.model.decode_head.loss_decode.class_weight = [1.0] * 17
    with pytest.raises(InputError, match=r'loss_decode\.class_weight .* 17 .* have 4'):
        with_data(config, own)
    write_labels(own, {image_id(1): []}, [f'n{k}' for k in range(16)])
    assert with_data(config, own).model.decode_head.num_classes == 17


# ------------------------------------------------------------------------ the photos
@pytest.fixture
def config(tmp_path):
    return Config.fromfile(find_config('dual_frozen_msrc_refine'))


def test_photos_and_tags_alone_are_enough(own, config):
    found = with_data(config, own)
    # Photo 0 has no entry.
    assert ids(found, 'train') == [image_id(n) for n in range(1, 7)]
    assert build_dataset(found, 'train').data_root == 'own'
    for name in ('val_dataloader', 'val_cfg', 'val_evaluator', 'train_eval_dataloader'):
        assert found[name] is None
    assert 'mmwsss.PseudoLabelProbeHook' not in [h.type for h in found.custom_hooks]
    assert len(found.custom_hooks) == len(config.custom_hooks) - 1
    # Its pipeline says how a photo is seen when labels are made.
    assert len(ids(found, 'test')) == 6
    assert found.test_dataloader.dataset.pipeline[0].type == 'mmwsss.LoadPhoto'


def test_held_out_photos_are_scored_and_not_learned_from(own, config):
    add_masks(own, 4)
    found = with_data(config, own)
    assert ids(found, 'train') == [image_id(n) for n in (1, 2, 3, 6)]
    # Number 5 is in the list but has no mask.
    assert ids(found, 'val') == ids(found, 'test') == [image_id(4)]
    assert found.train_eval_dataloader is None
    sample = build_dataset(found, 'val')[0]['data_samples']
    assert sample.gt_sem_seg.data.unique().tolist() == [0]

    add_masks(own, 2, 5, 6)
    found = with_data(config, own)
    assert ids(found, 'train_eval') == [image_id(2), image_id(6)]
    assert len(ids(found, 'val')) == 2
    assert 'mmwsss.PseudoLabelProbeHook' in [h.type for h in found.custom_hooks]

    (own / 'train.txt').write_text(f'{image_id(6)}\n{image_id(1)}\n')
    assert ids(with_data(config, own), 'train') == [image_id(6), image_id(1)]


@pytest.mark.parametrize('place', ['images', 'JPEGImages', ''])
def test_photos_are_found_where_people_put_them(own, config, place):
    for path in (own / 'photos').iterdir():
        (own / place).mkdir(exist_ok=True)
        shutil.move(path, own / place / path.name)
    found = with_data(config, own)
    assert found.train_dataloader.dataset.data_prefix.img_path == place
    assert len(ids(found, 'train')) == 6


def test_a_folder_laid_out_as_the_config_expects_keeps_its_lists(tmp_path):
    root = tiny_run.draw(tmp_path / 'drawn')
    lists = root / 'ImageSets/Segmentation'
    lists.mkdir(parents=True)
    for name, numbers in (('train', (0, 1, 2)), ('val', (5,))):
        (lists / f'{name}.txt').write_text(''.join(f'photo_{n}\n' for n in numbers))
    path = find_config('sipe_msrc')
    plain, found = Config.fromfile(path), with_data(Config.fromfile(path), root)
    for name in ('train', 'train_eval', 'val', 'test'):
        wanted = plain[f'{name}_dataloader'].to_dict()
        wanted['dataset']['data_root'] = str(root)
        if name != 'train':
            wanted['dataset']['pipeline'][1]['num_classes'] = 3
        assert found[f'{name}_dataloader'].to_dict() == wanted
    assert found.val_evaluator == plain.val_evaluator


def test_what_does_not_fit_is_one_sentence(own, config):
    with pytest.raises(InputError, match='is no folder'):
        with_data(config, own / 'nowhere')
    write_labels(own, {'x1': [], 'x2': []})
    with pytest.raises(InputError, match=r"the first is 'x1', lies in own/JPEGImages"):
        with_data(config, own)
    write_labels(own, {})
    with pytest.raises(InputError, match='names no photo'):
        with_data(config, own)
    write_labels(own, {image_id(1): ['cat']})
    for loader in ('train', 'train_eval', 'val', 'test'):
        for step in config[f'{loader}_dataloader'].dataset.pipeline:
            step.pop('num_classes', None)
    config.model.decode_head.pop('num_classes')
    with pytest.raises(InputError, match='how many classes'):
        with_data(config, own)


def test_changes_are_those_that_make_the_same_config_elsewhere(own):
    add_masks(own, 4)
    path, words = find_config('sipe_msrc'), ['model.test_scales=(1.0,)']
    wanted = read_config(path, words, data=own)
    options = changes(path, words, data=own)
    # Twice: what is handed over must not wear out.
    for _ in range(2):
        from mmwsss.apis.train import load_config

        assert load_config(str(path), options, None).to_dict() == wanted.to_dict()
    assert wanted.model.test_scales == (1.0,)


# ----------------------------------------------------------------------- the labels
def store(folder, numbers, names=NAMES, value=1):
    for number in numbers:
        path = Path(folder, f'SegmentationClass/{image_id(number)}.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((48, 64), value, np.uint8)).save(path)
    Path(folder, 'classes.txt').write_text('\n'.join(names))


def test_corrected_labels_stand_in_front_and_photos_without_are_left_out(own):
    store('made', (1, 2, 3), value=1)
    store('corrected', (2,), value=2)
    config = with_data(Config.fromfile(find_config('deeplabv3_mobileone_msrc')), own)
    assert missing_labels(config).startswith('work_dirs/')
    found = with_labels(config, [Path('corrected'), Path('made')])
    assert missing_labels(found) is None
    assert ids(found, 'train') == [image_id(n) for n in (1, 2, 3)]
    dataset = build_dataset(found, 'train')
    dataset.pipeline.transforms = dataset.pipeline.transforms[:2]
    values = [int(dataset[i]['gt_seg_map'].max()) for i in range(3)]
    assert values == [1, 2, 1]


def test_corrected_labels_are_sure_where_others_have_a_reliability(own):
    store('made', (1,))
    (Path('made') / 'Reliability').mkdir()
    Image.fromarray(np.full((48, 64), 51, np.uint8)).save('made/Reliability/p1.png')
    store('corrected', (2,))
    config = Config.fromfile(find_config('deeplabv3_r50_reliability_voc'))
    steps = config.train_dataloader.dataset.pipeline
    steps[1].reliability_root = 'somewhere'
    found = with_labels(with_data(config, own), [Path('corrected'), Path('made')])
    dataset = build_dataset(found, 'train')
    dataset.pipeline.transforms = dataset.pipeline.transforms[:2]
    assert [int(dataset[i]['reliability_map'].max()) for i in range(2)] == [51, 255]


def test_labels_of_other_classes_or_none_are_refused(own):
    config = with_data(Config.fromfile(find_config('deeplabv3_mobileone_msrc')), own)
    store('made', (1,), names=['cat', 'sky', 'traffic_light'])
    with pytest.raises(InputError, match='in the same order'):
        with_labels(config, [Path('made')])
    Path('empty').mkdir()
    with pytest.raises(InputError, match='holds no labels'):
        with_labels(config, [Path('empty')])
    store('made', (1,))
    sipe = with_data(Config.fromfile(find_config('sipe_msrc')), own)
    with pytest.raises(InputError, match='image labels alone'):
        with_labels(sipe, [Path('made')])


# -------------------------------------------------------------------- the whole way
def call(*words):
    result = CliRunner().invoke(group, [str(word) for word in words])
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout.splitlines()


def test_a_work_directory_is_all_that_other_verbs_need(own):
    add_masks(own, 4, 5)
    content = tiny_run.add_monitors(tiny_run.gated_config(Path('elsewhere')))
    content['data_root'] = 'elsewhere'
    for name in ('val', 'test'):
        content[f'{name}_dataloader'] = content['train_eval_dataloader']
        content[f'{name}_cfg'] = dict(type=f'{name.title()}Loop')
        content[f'{name}_evaluator'] = dict(type='IoUMetric', iou_metrics=['mIoU'])
    content['train_cfg']['val_interval'] = 8
    tiny_run.write_config(Path('tiny.py'), content)
    given = ['train', 'tiny.py', '--data', own, '--work-dir', 'run', '--max-iters', 2]
    lines = call(*given, '--dry-run')
    assert 'would read   classes: 3 (cat, traffic_light, sky)' in lines
    assert 'would read   train photos: own (4)' in lines
    assert 'training: 2 iterations of 2 photos each' in lines
    assert call(*given)[-1] == '1 ok, 0 skipped, 0 failed'

    photos, tags = own / 'photos', own / 'image_labels.json'
    made = call('label', 'run', 'run', photos, '--tags', tags, '--out', 'made')
    assert made[-1] == '6 ok, 1 skipped, 0 failed'
    assert Path('made/classes.txt').read_text().split() == NAMES
    scored = call('evaluate', 'run', 'run', '--split', 'val', '--out', 'numbers')
    assert scored[-1] == '2 ok, 0 skipped, 0 failed'
    assert call('test', 'run', 'run')[-1] == '2 ok, 0 skipped, 0 failed'
    cams = call('make-cams', 'run', 'run', '--out', 'cams')
    assert cams[-1] == '4 ok, 0 skipped, 0 failed'
    # The same by the config's name, for which the folder is said again.
    given = ['make-cams', 'tiny.py', 'run', '--data', own, '--out', 'again']
    assert call(*given)[-1] == '4 ok, 0 skipped, 0 failed'


def test_a_folder_without_the_one_config_of_a_training_is_refused(own):
    Path('run').mkdir()
    with pytest.raises(InputError, match='it holds none'):
        find_config('run')
    for name in ('a', 'b'):
        Path(f'run/{name}.py').write_text('')
    with pytest.raises(InputError, match=r'a\.py, b\.py'):
        find_config('run')
    # A config's own name comes first.
    Path('sipe_msrc').mkdir()
    assert find_config('sipe_msrc').is_file()


def test_words_for_clip_are_said_before_training(own):
    lines = call('train', 'clipdino_refine_voc', '--data', own, '--dry-run')
    assert 'would read   words for CLIP: cat; traffic light; sky' in lines


def test_a_network_of_stored_labels_says_which_option_is_missing(own):
    with pytest.raises(InputError, match='--labels FOLDER'):
        call('train', 'deeplabv3_mobileone_msrc', '--data', own, '--dry-run')


def test_to_test_without_masks_says_what_to_do(own):
    given = ['test', 'sipe_msrc', 'run', '--data', own]
    for words in (given, [*given, '--dry-run']):
        with pytest.raises(InputError, match='own has no masks') as error:
            call(*words)
    said = str(error.value)
    assert 'into own/masks, named as their photos, and their ids into own/val' in said
    assert said.endswith(
        'mmwsss label sipe_msrc run own/photos --tags own/image_labels.json --out masks'
    )
    add_masks(own, 4, 5)
    (own / 'val.txt').unlink()
    with pytest.raises(InputError, match=r'no list in own says .* mask in own'):
        call(*given)
    # A config of one's own is called by its path.
    Path('mine.py').write_text(Path(find_config('sipe_msrc')).read_text())
    for name in ('default_runtime', 'msrc', 'sipe'):
        base = find_config('sipe_msrc').parent / f'_base_/{name}.py'
        Path('_base_').mkdir(exist_ok=True)
        shutil.copy(base, f'_base_/{name}.py')
    with pytest.raises(InputError, match=r'mmwsss label mine\.py run'):
        call('test', 'mine.py', *given[2:])
    # Either list will do.
    for name in ('val', 'test'):
        (own / f'{name}.txt').write_text(f'{image_id(4)}\n')
        with pytest.raises(InputError, match='run does not exist'):
            call(*given)
        (own / f'{name}.txt').unlink()


def test_photos_of_the_test_list_are_not_learned_from(own, config):
    add_masks(own, 1, 2, 4, 6)
    (own / 'test.txt').write_text(f'{image_id(6)}\n')
    found = with_data(config, own)
    assert ids(found, 'train') == [image_id(n) for n in (1, 2, 3)]
    assert ids(found, 'train_eval') == [image_id(n) for n in (1, 2)]
    assert ids(found, 'val') == [image_id(4)]
    assert ids(found, 'test') == [image_id(6)]
    (own / 'val.txt').unlink()
    found = with_data(config, own)
    assert ids(found, 'train') == [image_id(n) for n in range(1, 6)]
    assert found.val_dataloader is None
    assert ids(found, 'test') == [image_id(6)]


def test_weights_that_are_not_there_are_named_with_the_option(own):
    given = ['train', 'cam_mobileone_msrc', '--data', own, '--work-dir', 'run']
    for words in (given, [*given, '--dry-run']):
        with pytest.raises(InputError, match='cam_mobileone_msrc starts from') as error:
            call(*words)
    said = str(error.value)
    assert 'MobileOne-S0 of ImageNet-1k' in said
    assert 'mobileone-s0_8xb32_in1k' in said
    assert '--cfg-options model.weights=mobileone-s0.pth' in said
    assert '\n' not in said
    assert not Path('run').exists()
    # Any file will do, and is then looked at where it is loaded.
    Path('mine.pth').write_text('')
    options = ['--cfg-options', 'model.weights=mine.pth', '--dry-run']
    assert call(*given, *options)[-1].startswith('dry run: 1 to make')
    # Two encoders start from two files, each of which has its option.
    both = ['train', 'dual_frozen_msrc', '--data', own]
    with pytest.raises(InputError) as error:
        call(*both)
    for part in ('vit-tiny', 'mobileone-s0'):
        assert f'.weights={part}' in str(error.value)


def test_clips_and_their_frames_are_left_out_of_a_training(tmp_path):
    root = fake_clips.draw(tmp_path / 'data')
    dataset = dict(type='mmwsss.VideoClipDataset', data_root=str(root), exclude='a.txt')
    wrapped = dict(type='RepeatDataset', dataset=dataset)
    content = Config(dict(train_dataloader=dict(dataset=wrapped)))
    (tmp_path / 'broken.txt').write_text('c0\nc1/3\n')
    changed = without_photos(content, [tmp_path / 'broken.txt'])
    options = changed.train_dataloader.dataset.dataset
    assert options.exclude == ['a.txt', str(tmp_path / 'broken.txt')]
    assert content.train_dataloader.dataset.dataset.exclude == 'a.txt'
    content.train_dataloader.dataset.dataset.type = 'BaseSegDataset'
    with pytest.raises(
        InputError, match=r'ImageLabelDataset or mmwsss.VideoClipDataset'
    ):
        without_photos(content, [tmp_path / 'broken.txt'])
