"""CAMs of frames pooled over time, moved by flow, gated by motion, in a new store."""

import json
import signal
import subprocess
import time

import fake_cams
import fake_clips
import numpy as np
import pytest
import tiny_run
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from scipy import ndimage

from mmwsss.apis.photos import list_photos
from mmwsss.apis.pool_cams import PoolOptions, pool_cams_command, pool_store
from mmwsss.datasets import CAMStore, StoredCAMs
from mmwsss.datasets.cam_store import grid_size
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm
GRID = grid_size(fake_clips.SIZE)

CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(
    imports=['mmwsss.models', 'mmwsss.datasets'], allow_failed_imports=False)
train_dataloader = dict(dataset=dict(
    type='mmwsss.VideoClipDataset', data_root={root!r}, clips='clips.json',
    data_prefix=dict(img_path='JPEGImages'), img_suffix='.png', frames='stride'))
"""


def fill(root, name, *, seed, classes=(0,)):
    generator = np.random.default_rng(seed)
    # Steps that float16 keeps.
    cams = generator.integers(0, 1025, (len(classes), *GRID)) / 1024
    stored = StoredCAMs(
        np.array(classes, np.int64),
        cams.astype(np.float32),
        fake_clips.SIZE,
        np.full(GRID, 0.5, np.float32),
        probs=np.array([seed / 128], np.float32),
    )
    CAMStore(root).write(name, stored)


@pytest.fixture
def case(tmp_path):
    """Four clips, two with smoke, a store of noise and a config."""
    root = fake_clips.draw(tmp_path / 'data')
    clips = json.loads((root / 'clips.json').read_text())['clips']
    for number, (clip, entry) in enumerate(clips.items()):
        for t, name in enumerate(entry['frames']):
            classes = (0,) if entry['labels'] else ()
            fill(tmp_path / 'cams', name, seed=10 * number + t, classes=classes)
            assert name == f'{clip}/{t}'
    (tmp_path / 'config.py').write_text(CONFIG.format(root=str(root)))
    return tmp_path


def pool(case, out, *, overwrite=False, **options):
    config = Config.fromfile(str(case / 'config.py'))
    init_default_scope('mmseg')
    found = list_photos(config, split='train')
    options = {
        'store': case / 'cams',
        'clips': case / 'data/clips.json',
        'out': out,
        'num_classes': 1,
    } | options
    return pool_store(found, PoolOptions(**options), overwrite=overwrite, show=False)


def motion_by_hand(clip, t, *, kappa, blur):
    """On the store's grid, frames made small by 4 x 4 means."""
    frames = np.stack(
        [fake_clips.frame(n, puff=clip % 2) for n in range(fake_clips.NUM_FRAMES)]
    )
    small = frames.reshape(len(frames), GRID[0], 4, GRID[1], 4, 3).mean((2, 4)) / 255
    difference = np.abs(small[t] - np.median(small, axis=0)).sum(-1)
    sharp = np.clip(difference / kappa, 0, 1)
    if not blur:
        return sharp
    maps = [
        ndimage.gaussian_filter(m, blur, mode='constant', radius=int(np.ceil(3 * blur)))
        for m in (sharp, np.ones_like(sharp))
    ]
    return maps[0] / maps[1]


@pytest.mark.parametrize('reduce', ['max', 'mean'])
def test_pooled_cams_are_those_of_the_neighbours(case, tmp_path, reduce):
    out = tmp_path / 'out'
    assert pool(case, out, window=3, reduce=reduce) == 20
    for t in range(5):
        near = [
            CAMStore(case / 'cams').read(f'c1/{n}').cams
            for n in range(max(t - 1, 0), min(t + 2, 5))
        ]
        found = CAMStore(out).read(f'c1/{t}')
        expected = getattr(np, reduce)(np.stack(near), axis=0)
        np.testing.assert_allclose(found.cams, expected, atol=1e-3)
        assert found.size == fake_clips.SIZE
        assert found.background is None
        assert found.probs.tolist() == [(10 + t) / 128]
    # Frames with nothing on them are there as well.
    assert CAMStore(out).read('c2/3').cams.shape == (0, *GRID)


def test_motion_lowers_what_stands_still(case, tmp_path):
    out = tmp_path / 'out'
    options = dict(kappa=0.5, blur=0.8)
    assert pool(case, out, motion=0.75, **options) == 20
    for clip, t in ((1, 0), (1, 4), (3, 2)):
        before = CAMStore(case / 'cams').read(f'c{clip}/{t}').cams
        motion = motion_by_hand(clip, t, **options)
        found = CAMStore(out).read(f'c{clip}/{t}').cams
        np.testing.assert_allclose(found, before * (0.25 + 0.75 * motion), atol=1e-3)
        # On the chimney nothing is left but a quarter.
        np.testing.assert_allclose(found[0, 4:, 1], before[0, 4:, 1] / 4, atol=0.02)


def test_pooling_comes_before_the_gate(case, tmp_path):
    pool(case, tmp_path / 'both', window=5, motion=0.5, blur=0)
    pooled = tmp_path / 'pooled'
    pool(case, pooled, window=5)
    pool(case, tmp_path / 'then', store=pooled, motion=0.5, blur=0)
    for t in range(5):
        both, then = (
            CAMStore(tmp_path / n).read(f'c3/{t}').cams for n in ('both', 'then')
        )
        np.testing.assert_allclose(both, then, atol=1e-3)


def pan(root, *, step=8, num_frames=3):
    """One clip of a camera that pans to the left: all moves ``step`` pixels right."""
    noise = np.random.default_rng(0).uniform(0, 255, (64, 160, 3))
    scene = ndimage.gaussian_filter(noise, (3, 3, 0))
    scene = (255 * (scene - scene.min()) / np.ptp(scene)).astype(np.uint8)
    names = [f'p/{t}' for t in range(num_frames)]
    (root / 'JPEGImages/p').mkdir(parents=True)
    for t, name in enumerate(names):
        left = 40 - step * t
        Image.fromarray(scene[:, left : left + 96]).save(
            root / f'JPEGImages/{name}.png'
        )
    fake_clips.write(root, {'p': {'frames': names, 'labels': ['smoke']}})
    return names


@pytest.mark.parametrize('reduce', ['max', 'mean'])
def test_flow_brings_the_neighbours_to_the_frame(tmp_path, reduce):
    root, step = tmp_path / 'data', 8
    names = pan(root, step=step)
    (tmp_path / 'config.py').write_text(CONFIG.format(root=str(root)))
    size, cams = (64, 96), np.zeros((3, 1, 16, 24), np.float32)
    # The same place of the scene in the first and in the last frame.
    cams[0, 0, 6:9, 8:11], cams[2, 0, 6:9, 12:15] = 1, 1
    for name, own in zip(names, cams, strict=True):
        stored = StoredCAMs(np.array([0]), own, size)
        CAMStore(tmp_path / 'cams').write(name, stored)
    out = tmp_path / 'out'
    assert pool(tmp_path, out, window=3, reduce=reduce, flow=True) == 3
    found = CAMStore(out).read('p/1').cams[0]
    expected = np.zeros((16, 24))
    expected[6:9, 10:13] = 1 if reduce == 'max' else 2 / 3
    assert np.abs(found - expected).max() < 0.2
    # Without it nobody meets, and the frame itself is not forgotten.
    pool(tmp_path, tmp_path / 'still', window=3, reduce='max')
    assert np.abs(CAMStore(tmp_path / 'still').read('p/1').cams - expected).max() == 1
    # A neighbour's photo counts as well as its maps.
    path = root / 'JPEGImages/p/2.png'
    path.write_bytes((root / 'JPEGImages/p/0.png').read_bytes())
    assert pool(tmp_path, out, window=3, reduce=reduce, flow=True) == 2


# ------------------------------------------------------------ going on, changed inputs
def test_it_makes_what_is_missing_or_changed_alone(case, tmp_path):
    out = tmp_path / 'out'
    pool(case, out, window=3, motion=0.5)
    whole = fake_cams.contents(out)
    assert pool(case, out, window=3, motion=0.5) == 0
    (out / 'c3/2.npz').unlink()
    assert pool(case, out, window=3, motion=0.5) == 1
    assert fake_cams.contents(out) == whole
    # Other CAMs of a frame are seen by its neighbours.
    fill(case / 'cams', 'c1/4', seed=99)
    assert pool(case, out, window=3, motion=0.5) == 2
    after = fake_cams.contents(out)
    changed = {name for name in whole if whole[name] != after[name]}
    assert changed == {'c1/3.npz', 'c1/4.npz', 'made_from.json'}
    # Another frame, another median of all its clip.
    path = case / 'data/JPEGImages/c1/0.png'
    path.write_bytes((case / 'data/JPEGImages/c0/0.png').read_bytes())
    assert pool(case, out, window=3, motion=0.5) == 5
    assert pool(case, tmp_path / 'plain', window=3) == 20


def test_other_settings_are_refused_and_lose_nothing(case, tmp_path):
    out = tmp_path / 'out'
    pool(case, out, window=3)
    before = fake_cams.contents(out)
    for options, message in (
        (dict(window=5), r"window and reduction: it was \[3, 'max'\]"),
        (dict(window=3, reduce='mean'), 'window and reduction'),
        (
            dict(window=3, motion=0.5),
            r'another motion gate \(and 1 more\): it was 0\.0',
        ),
        (dict(window=3, dtype='uint8'), 'another dtype'),
    ):
        with pytest.raises(InputError, match=message):
            pool(case, out, **options)
    assert fake_cams.contents(out) == before
    # Numbers of a gate that is off bind nobody.
    assert pool(case, out, window=3, kappa=0.7) == 0
    assert pool(case, out, window=5, overwrite=True) == 20


def test_bad_input_is_one_sentence(case, tmp_path, monkeypatch):
    clips = case / 'data/clips.json'
    begin = (case / 'config.py', case / 'cams', '--clips', clips)
    rest = ('--out', tmp_path / 'out')
    cases = [
        ((*begin, *rest), 'nothing to do'),
        ((*begin, '--window', '2', *rest), '--window must be odd'),
        ((*begin, '--flow', '--motion', '1', *rest), '--flow moves the neighbours'),
        ((*begin, '--motion', '2', *rest), '--motion must be in [0, 1], got 2'),
        ((*begin, '--motion', '1', '--kappa', '0', *rest), '--kappa must be positive'),
        ((*begin, '--window', '3', '--out', case / 'cams'), 'is the store itself'),
        (
            (begin[0], tmp_path / 'none', *begin[2:], '--window', '3', *rest),
            'lacks the CAMs of 20 of 20',
        ),
    ]
    for arguments, expected in cases:
        message = fake_cams.refusal(pool_cams_command, monkeypatch, *arguments)
        assert expected in message
    other = fake_clips.write(tmp_path / 'x', {'a': {'frames': ['c0/0'], 'labels': []}})
    arguments = (*begin[:2], '--clips', other, '--window', '3', *rest)
    message = fake_cams.refusal(pool_cams_command, monkeypatch, *arguments)
    assert "'c0/1' is no frame of any clip" in message
    assert not (tmp_path / 'out').exists()


def test_frames_of_two_sizes_are_one_sentence(case, tmp_path):
    stored = StoredCAMs(np.array([0]), np.zeros((1, 2, 2), np.float32), (8, 8))
    CAMStore(case / 'cams').write('c1/2', stored)
    with pytest.raises(InputError, match='the frames of a clip must have one size'):
        pool(case, tmp_path / 'out', window=3)
    with pytest.raises(InputError, match='the frames of a clip must have one size'):
        pool(case, tmp_path / 'other', motion=0.5)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(case, tmp_path):
    arguments = (case / 'config.py', case / 'cams', '--clips', case / 'data/clips.json')
    arguments += ('--window', '3', '--motion', '0.5')
    pool(case, tmp_path / 'whole', window=3, motion=0.5)
    out = tmp_path / 'out'
    process = subprocess.Popen(
        fake_cams.command('pool_cams.py', *arguments, '--out', out, '--jobs', '2'),
        env=fake_cams.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tiny_run.ROOT,
    )
    deadline = time.monotonic() + 240
    while not list(out.glob('*/*.npz')) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in out.glob('*/*.npz'):
        CAMStore(out).read(str(path.relative_to(out).with_suffix('')))
    done = fake_cams.run('pool_cams.py', *arguments, '--out', out)
    assert done.returncode == 0, done.stderr
    assert 'CAM files made' in done.stdout
    assert fake_cams.contents(out) == fake_cams.contents(tmp_path / 'whole')
