import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmwsss.datasets import ImageLabelDataset
from mmwsss.datasets.co_occurrence import (
    CELLS,
    MARKER,
    SPLITS,
    CoOccurrence,
    draw_photo,
    generate,
    plan,
)
from mmwsss.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SMALL = CoOccurrence(seed=2, num_pos=4, num_neg=4, cells=(2, 2, 2, 1))


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def read_list(root, name, kind='Segmentation'):
    return (root / 'ImageSets' / kind / f'{name}.txt').read_text().split()


@pytest.fixture(scope='module')
def benchmark(tmp_path_factory):
    root = tmp_path_factory.mktemp('co') / 'data'
    assert generate(root, SMALL)
    return root


@pytest.fixture(scope='module')
def photos():
    settings = CoOccurrence(num_pos=150, num_neg=150)
    return [draw_photo(settings, 'train', index) for index in range(300)]


@pytest.mark.parametrize('p_dis_neg', [0.0, 0.05, 0.2, 0.5, 1.0])
def test_the_dials_are_exact(p_dis_neg):
    settings = CoOccurrence(p_dis_neg=p_dis_neg, p_dis_pos=0.9, num_classes=2)
    planned = plan(settings, 'train')
    assert planned.objects.sum(0).tolist() == [300, 300]
    both = planned.objects & planned.distractors
    assert both.sum(0).tolist() == [270, 270]
    alone = planned.distractors & ~planned.objects
    assert alone.sum(0).tolist() == [round(300 * p_dis_neg)] * 2
    # The classes know nothing of each other.
    together = (planned.objects[:, 0] & planned.objects[:, 1]).mean()
    assert 0.18 < together < 0.32


def test_a_dial_changes_nothing_but_its_chimneys():
    few, many = CoOccurrence(p_dis_neg=0.2), CoOccurrence(p_dis_neg=0.5)
    there = [plan(settings, 'train').distractors[:, 0] for settings in (few, many)]
    assert not (there[0] & ~there[1]).any()
    added = np.flatnonzero(~there[0] & there[1])
    assert len(added) == 90
    for index in added[:5]:
        one, two = (draw_photo(s, 'train', int(index)) for s in (few, many))
        elsewhere = two.distractor == 0
        assert np.array_equal(one.image[elsewhere], two.image[elsewhere])
        assert not np.array_equal(one.image, two.image)
    same = int(np.flatnonzero(there[0] == there[1])[0])
    one, two = (draw_photo(s, 'train', same) for s in (few, many))
    assert np.array_equal(one.image, two.image)


def test_layout_lists_and_cells(benchmark):
    content = json.loads((benchmark / 'image_labels.json').read_text())
    assert content['classes'] == ['smoke']
    ids = {split: read_list(benchmark, split) for split in SPLITS}
    assert {s: len(i) for s, i in ids.items()} == {'train': 8, 'val': 7, 'test': 7}
    assert set(content['labels']) == {name for part in ids.values() for name in part}
    counts = dict(zip(CELLS, SMALL.cells, strict=True))
    for split in ('val', 'test'):
        cells = {cell: read_list(benchmark, f'{split}_{cell}') for cell in CELLS}
        assert {cell: len(part) for cell, part in cells.items()} == counts
        assert sorted(chain(*cells.values())) == sorted(ids[split])
        for cell, names in cells.items():
            for name in names:
                maps = [
                    np.asarray(Image.open(benchmark / folder / f'{name}.png'))
                    for folder in ('SegmentationClass', 'DistractorMask')
                ]
                assert (maps[0].any(), maps[1].any()) == CELLS[cell]
                assert set(np.unique(np.stack(maps)).tolist()) <= {0, 1}
                assert bool(content['labels'][name]) == CELLS[cell][0]
    photo = Image.open(benchmark / 'JPEGImages' / f'{ids["train"][0]}.jpg')
    assert (photo.size, photo.mode) == ((48, 48), 'RGB')


def test_the_data_set_keeps_photos_without_object(benchmark):
    dataset = ImageLabelDataset(
        data_root=str(benchmark),
        image_labels='image_labels.json',
        ann_file='ImageSets/Segmentation/train.txt',
        data_prefix=dict(img_path='JPEGImages'),
    )
    labels = [dataset.get_data_info(i)['image_label'].tolist() for i in range(8)]
    assert sorted(labels) == [[0.0]] * 4 + [[1.0]] * 4


def test_same_settings_same_bytes_in_another_process(benchmark, tmp_path):
    command = [
        sys.executable,
        str(ROOT / 'tools' / 'make_co_occurrence.py'),
        str(tmp_path / 'again'),
        *('--seed', '2', '--num-pos', '4', '--num-neg', '4'),
        *('--cells', '2', '2', '2', '1'),
    ]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert '8 train, 7 val, 7 test photos drawn' in done.stdout
    assert digest(tmp_path / 'again') == digest(benchmark)


def test_seeds_and_splits_share_no_photo():
    drawn = [
        draw_photo(replace(SMALL, seed=seed), split, 0).image.tobytes()
        for seed in (0, 1)
        for split in SPLITS
    ]
    assert len(set(drawn)) == 6


def test_object_and_distractor_have_the_intended_size(photos):
    smoke = [p.mask.mean() for p in photos if p.mask.any()]
    chimney = [p.distractor.mean() for p in photos if p.distractor.any()]
    assert len(smoke) == 150
    assert len(chimney) == 225
    assert 0.05 < np.mean(smoke) < 0.065
    assert min(smoke) > 0.03
    assert 0.024 < np.mean(chimney) < 0.031
    assert min(chimney) > 0.012


def test_smoke_rises_from_the_chimney(photos):
    for photo in photos:
        if not (photo.mask.any() and photo.distractor.any()):
            continue
        top = np.argwhere(photo.distractor == 1).min(0)[0]
        columns = np.flatnonzero(photo.distractor[top])
        y, x = np.nonzero(photo.mask)
        near = np.hypot(y - top, x - columns.mean()).min()
        assert near < 3


def test_colour_alone_is_not_enough(photos):
    def bins(image):
        parts = image.astype(int) * 12 // 256
        return (parts[..., 0] * 12 + parts[..., 1]) * 12 + parts[..., 2]

    halves = photos[:150], photos[150:]
    counts = np.zeros((2, 12**3))
    for photo in halves[0]:
        for value in (0, 1):
            shown = bins(photo.image)[photo.mask == value]
            counts[value] += np.bincount(shown, minlength=12**3)
    share = counts[1] / (counts.sum(0) + 1)
    best = 0
    for threshold in np.arange(0.05, 0.95, 0.05):
        pairs = [(share[bins(p.image)] > threshold, p.mask == 1) for p in halves[1]]
        hit = sum((a & b).sum() for a, b in pairs)
        best = max(best, hit / sum((a | b).sum() for a, b in pairs))
    # Colour tells something: 0.05 is what guessing everything gives.
    assert 0.15 < best < 0.45


def test_twice_the_size_shows_the_same():
    small, large = (
        draw_photo(replace(SMALL, size=size), 'test', 0) for size in (48, 96)
    )
    assert large.image.shape == (96, 96, 3)
    halved = large.mask[::2, ::2] != small.mask
    assert halved.mean() < 0.02
    assert np.abs(large.mask.mean() - small.mask.mean()) < 0.01


def test_the_second_class_has_a_distractor_of_its_own():
    settings = CoOccurrence(num_classes=2, num_pos=40, num_neg=40)
    planned = plan(settings, 'train')
    for index in range(80):
        photo = draw_photo(settings, 'train', index)
        for k in (0, 1):
            assert (photo.mask == k + 1).any() == planned.objects[index, k]
            # A boat may hide much of a chimney, never all.
            shown = (photo.distractor == k + 1).any()
            assert shown == planned.distractors[index, k]


VIDEO = CoOccurrence(
    seed=1, num_pos=6, num_neg=6, cells=(5, 1, 1, 1), num_frames=4, p_dis_neg=0.5
)


def test_clips_move_where_there_is_smoke():
    settings = replace(VIDEO, num_frames=8)
    planned = plan(settings, 'test')
    motion = []
    for index in range(8):
        frames = [draw_photo(settings, 'test', index, frame=t) for t in range(8)]
        chimneys = {frame.distractor.tobytes() for frame in frames}
        smokes = {frame.mask.tobytes() for frame in frames}
        assert len(chimneys) == 1
        assert len(smokes) == (8 if planned.objects[index, 0] else 1)
        images = np.stack([f.image.astype(float) for f in frames])
        moving = np.abs(images - np.median(images, 0)).mean((0, 3))
        if planned.objects[index, 0]:
            seen = np.any([f.mask for f in frames], 0)
            # The noise moves everywhere.
            motion.append(moving[seen].mean() / moving[42:].mean())
        still = frames[0].distractor == 1
        if planned.distractors[index, 0]:
            assert moving[still].mean() < 12
    assert np.mean(motion) > 1.5
    assert min(motion) > 1.1


def test_first_frames_of_clips_and_photos_show_the_same_smoke():
    photo = draw_photo(replace(VIDEO, num_frames=1), 'test', 0)
    clip = draw_photo(VIDEO, 'test', 0)
    assert photo.mask.any() == clip.mask.any()


def test_cameras_are_in_one_split_and_show_one_view(tmp_path):
    root = tmp_path / 'clips'
    assert generate(root, VIDEO)
    content = json.loads((root / 'clips.json').read_text())
    assert content['classes'] == ['smoke']
    groups = {}
    for name, clip in content['clips'].items():
        split = name.split('_')[0]
        groups.setdefault(clip['group'], []).append(name)
        assert clip['group'].startswith(split)
        assert clip['frames'] == [f'{name}/{t:03d}' for t in range(4)]
        masks = [
            np.asarray(Image.open(root / 'SegmentationClass' / f'{frame}.png')).any()
            for frame in clip['frames']
        ]
        assert masks == [clip['labels'] == ['smoke']] * 4
        assert all((root / 'JPEGImages' / f'{f}.jpg').is_file() for f in clip['frames'])
    assert max(map(len, groups.values())) == 4
    # The same camera, with smoke and without.
    labels = [{bool(content['clips'][n]['labels']) for n in g} for g in groups.values()]
    assert {True, False} in labels
    for names in groups.values():
        masks = {
            (root / 'DistractorMask' / name / '000.png').read_bytes() for name in names
        }
        assert len(masks) == 1
    assert read_list(root, 'test', 'Clips') == [
        name for name in content['clips'] if name.startswith('test')
    ]
    frames = [
        f'{name}/{t:03d}'
        for name in read_list(root, 'test_none', 'Clips')
        for t in range(4)
    ]
    assert read_list(root, 'test_none') == frames


def test_complete_folder_is_left_alone_and_others_refused(benchmark):
    before = digest(benchmark)
    assert not generate(benchmark, SMALL)
    with pytest.raises(InputError, match='is not the co-occurrence benchmark'):
        generate(benchmark, replace(SMALL, p_dis_neg=0.2))
    assert digest(benchmark) == before


def test_stopped_run_leaves_nothing_behind(tmp_path):
    def stop(done, total):
        assert total == 22
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / 'data', SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert generate(tmp_path / 'data', SMALL)
    assert (tmp_path / 'data' / MARKER).is_file()


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'seed': -1}, 'seed must be >= 0, got -1'),
        ({'size': 8}, 'size must be 32 to 1024, got 8'),
        ({'num_classes': 3}, 'num_classes must be 1 or 2, got 3'),
        ({'p_dis_neg': 1.5}, 'p_dis_neg must be 0 to 1, got 1.5'),
        ({'cells': (1, 2, 3)}, r'cells must be four counts >= 0, got \(1, 2, 3\)'),
        ({'num_pos': 0}, 'num_pos must be >= 1, got 0'),
    ],
)
def test_settings_out_of_range(change, sentence):
    with pytest.raises(InputError, match=sentence):
        CoOccurrence(**change)


def test_photos_that_are_not_there():
    with pytest.raises(InputError, match="got 'valid'"):
        draw_photo(SMALL, 'valid', 0)
    with pytest.raises(InputError, match=r'test has 7 photos .* got photo 7'):
        draw_photo(SMALL, 'test', 7)
    with pytest.raises(InputError, match='frame 1'):
        draw_photo(SMALL, 'test', 0, frame=1)


def test_a_benchmark_without_test_photos():
    planned = plan(replace(SMALL, cells=(0, 0, 0, 0)), 'test')
    assert planned.cameras == ()
