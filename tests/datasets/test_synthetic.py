import hashlib
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmwsss.datasets.synthetic import (
    CLASSES,
    MARKER,
    draw_photo,
    generate,
    voc_palette,
)
from mmwsss.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def digest(folder):
    """One hash per file, by its path inside the folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def benchmark(tmp_path_factory):
    root = tmp_path_factory.mktemp('synthetic') / 'data'
    assert generate(root, seed=3, num_train=24, num_val=8)
    return root


@pytest.fixture(scope='module')
def photos():
    return [draw_photo(0, index) for index in range(200)]


def read_ids(root, split):
    path = root / 'ImageSets' / 'Segmentation' / f'{split}.txt'
    return path.read_text().split()


def test_layout_is_vocs_and_complete(benchmark):
    train, val = read_ids(benchmark, 'train'), read_ids(benchmark, 'val')
    assert (len(train), len(val), len({*train, *val})) == (24, 8, 32)
    labels = json.loads((benchmark / 'image_labels.json').read_text())
    assert tuple(labels['classes']) == CLASSES
    assert set(labels['labels']) == {*train, *val}
    names = (benchmark / 'classes.txt').read_text().split()
    assert names == ['background', *CLASSES]
    for name in train + val:
        photo = Image.open(benchmark / 'JPEGImages' / f'{name}.jpg')
        mask = Image.open(benchmark / 'SegmentationClass' / f'{name}.png')
        assert photo.size == mask.size
        assert (photo.mode, mask.mode) == ('RGB', 'P')
        assert mask.getpalette() == voc_palette().ravel().tolist()
        found = set(np.unique(np.asarray(mask)).tolist()) - {0, 255}
        assert found == {CLASSES.index(c) + 1 for c in labels['labels'][name]}


def test_voc_palette_has_the_known_colours():
    palette = voc_palette()
    assert palette[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]


def test_same_seed_same_bytes_in_another_process(benchmark, tmp_path):
    command = [
        sys.executable,
        str(ROOT / 'tools' / 'make_synthetic.py'),
        str(tmp_path / 'again'),
        *('--seed', '3', '--num-train', '24', '--num-val', '8'),
    ]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert '24 train and 8 val photos drawn' in done.stdout
    assert digest(tmp_path / 'again') == digest(benchmark)


def test_photos_do_not_depend_on_order_or_process():
    backwards = {index: draw_photo(5, index) for index in reversed(range(4))}
    with ProcessPoolExecutor(2) as pool:
        parallel = list(pool.map(draw_photo, [5] * 4, range(4)))
    for index, photo in enumerate(parallel):
        assert pickle.dumps(photo) == pickle.dumps(backwards[index])


def test_seeds_and_streams_share_no_photo():
    drawn = [
        draw_photo(seed, 0, stream=stream).image.tobytes()
        for seed in (0, 1)
        for stream in ('train', 'val', 'towers')
    ]
    assert len(set(drawn)) == 6


def test_photos_are_varied_and_hard(photos):
    sizes = {photo.image.shape[:2] for photo in photos}
    assert all(min(s) >= 120 and max(s) <= 192 for s in sizes)
    assert len(sizes) > 60
    numbers = [len(photo.classes) for photo in photos]
    assert {0, 1, 2, 3} <= set(numbers)
    seen = [name for photo in photos for name in photo.classes]
    assert min(seen.count(name) for name in CLASSES) >= 8
    share = np.mean([(p.mask % 255 > 0).mean() for p in photos])
    assert 0.1 < share < 0.35
    band = np.mean([(p.mask == 255).mean() for p in photos])
    assert 0.003 < band < 0.03


def test_context_gives_classes_away_but_not_always(photos):
    def share_with(name, word):
        words = [photo.words for photo in photos if name in photo.classes]
        return np.mean([word in w for w in words])

    for name, word in (('boat', 'water'), ('train', 'railroad'), ('car', 'road')):
        assert share_with(name, word) > 0.6
        background = [photo for photo in photos if word in photo.words]
        assert any(name not in photo.classes for photo in background)


def test_mask_follows_the_object():
    # In the photo the edges of the mask are edges of the picture.
    at_edges, elsewhere = [], []
    for index in range(30):
        photo = draw_photo(1, index)
        grey = photo.image.mean(2)
        step = np.abs(np.diff(grey, axis=1))
        edge = photo.mask[:, 1:] == 255
        at_edges.append(step[edge])
        elsewhere.append(step[~edge])
    assert np.concatenate(at_edges).mean() > 1.8 * np.concatenate(elsewhere).mean()


def test_labels_are_the_visible_classes(photos):
    for photo in photos:
        counts = np.bincount(photo.mask.ravel(), minlength=256)
        visible = [name for k, name in enumerate(CLASSES, 1) if counts[k]]
        assert photo.classes == tuple(visible)
        assert all(counts[CLASSES.index(name) + 1] >= 40 for name in visible)


def test_complete_folder_is_left_alone(benchmark):
    before = {p: p.stat().st_mtime_ns for p in benchmark.rglob('*')}
    assert not generate(benchmark, seed=3, num_train=24, num_val=8)
    assert before == {p: p.stat().st_mtime_ns for p in benchmark.rglob('*')}


def test_folder_of_other_content_is_refused(benchmark, tmp_path):
    with pytest.raises(InputError, match='remove it or choose another folder'):
        generate(benchmark, seed=4, num_train=24, num_val=8)
    (tmp_path / 'thesis.txt').write_text('mine')
    with pytest.raises(InputError, match='is not the synthetic benchmark'):
        generate(tmp_path, num_train=1, num_val=0)
    assert (tmp_path / 'thesis.txt').read_text() == 'mine'


def test_stopped_run_leaves_nothing_behind(tmp_path):
    def stop(done, total):
        assert total == 5
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / 'data', num_train=4, num_val=1, progress=stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'data').mkdir()
    assert generate(tmp_path / 'data', num_train=1, num_val=0)
    assert (tmp_path / 'data' / MARKER).is_file()


@pytest.mark.parametrize('arguments', [{'seed': -1}, {'num_train': 0}, {'num_val': -2}])
def test_numbers_out_of_range(tmp_path, arguments):
    with pytest.raises(InputError, match='cannot draw'):
        generate(tmp_path / 'data', **arguments)


def test_unknown_stream():
    with pytest.raises(InputError, match="stream 'test'"):
        draw_photo(0, 0, stream='test')
