"""Stores joined by a rule, and by an ORANDNet that tools/train.py trained."""

import json
import signal
import subprocess
import time
from pathlib import Path

import fake_cams
import numpy as np
import pytest
import tiny_run
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmwsss.apis.fuse_cams import FusionOptions, fuse_cams_command, fuse_stores
from mmwsss.apis.photos import list_photos
from mmwsss.datasets import CAMStore, StoredCAMs
from mmwsss.datasets.cam_store import grid_size
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm

SIZE = (48, 64)


def fill(root: Path, labels: dict, *, seed: int, background: bool = False) -> Path:
    """A store of noise, steps of 1 / 1024 so that float16 keeps them."""
    generator = np.random.default_rng(seed)
    grid = grid_size(SIZE)
    for name, names in labels.items():
        classes = np.array([tiny_run.CLASSES.index(n) for n in names], dtype=np.int64)
        cams = generator.integers(0, 1025, (len(names), *grid)) / 1024
        own = np.full(grid, 0.5, np.float32) if background else None
        stored = StoredCAMs(classes, cams.astype(np.float32), SIZE, own)
        CAMStore(root).write(name, stored)
    return root


def orandnet_config(folder: Path) -> Path:
    """As configs/orandnet_*.py, on the drawn photos."""
    content = tiny_run.config(folder / 'data', batch_size=3)
    stores = [str(folder / name) for name in ('first', 'second')]
    load = [
        dict(type='mmwsss.LoadPhoto'),
        dict(type='mmwsss.LoadCAMStores', cam_roots=stores),
    ]
    dataset = content['train_dataloader']['dataset']
    flip = [dict(type='RandomFlip', prob=0.5), dict(type='mmwsss.PackCAMStores')]
    content['train_dataloader']['dataset'] = dataset | dict(pipeline=[*load, *flip])
    mask = [dict(type='mmwsss.LoadMask', num_classes=3)]
    content['val_dataloader'] = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset
        | dict(
            pipeline=[*load, *mask, dict(type='mmwsss.PackCAMStores')], test_mode=True
        ),
    )
    content['model'] = dict(
        type='mmwsss.ORANDNet',
        data_preprocessor=content['model']['data_preprocessor']
        | dict(size=None, size_divisor=16),
        network=dict(type='mmwsss.LightUNet', widths=(4, 8)),
        offsets=(0.0, 0.15),
        stride=4,
    )
    content['val_cfg'] = dict(type='ValLoop')
    content['val_evaluator'] = dict(type='mmwsss.CAMMetric', prefix='cam')
    content['custom_imports']['imports'].append('mmwsss.evaluation')
    content['train_cfg']['val_interval'] = 8
    return tiny_run.write_config(folder / 'orandnet.py', content)


@pytest.fixture
def case(tmp_path):
    """Photos, two stores and a config."""
    root = tiny_run.draw(tmp_path / 'data')
    labels = json.loads((root / 'image_labels.json').read_text())['labels']
    fill(tmp_path / 'first', labels, seed=1)
    fill(tmp_path / 'second', labels, seed=2, background=True)
    orandnet_config(tmp_path)
    return tmp_path


def fuse(case, out, *, overwrite=False, stores=('first', 'second'), **options):
    config = Config.fromfile(str(case / 'orandnet.py'))
    init_default_scope(config.default_scope)
    found = list_photos(config, split='train')
    options = {
        'config': str(case / 'orandnet.py'),
        'stores': tuple(case / name for name in stores),
        'out': out,
        'device': 'cpu',
        'num_classes': 2,
    } | options
    return fuse_stores(
        config, found, FusionOptions(**options), overwrite=overwrite, show=False
    )


@pytest.mark.parametrize('mode', ['or', 'and', 'mean', 'max'])
def test_fused_cams_are_those_of_the_rule(case, tmp_path, mode):
    out = tmp_path / 'out'
    assert fuse(case, out, mode=mode, offsets=(0.0, 0.15)) == 8
    sizes = []
    for path in sorted((case / 'first').glob('*.npz')):
        a, b = (CAMStore(case / n).read(path.stem) for n in ('first', 'second'))
        lifted = np.minimum(b.cams + 0.15, 1)
        expected = {
            'or': 1 - (1 - a.cams) * (1 - lifted),
            'and': a.cams * lifted,
            'mean': (a.cams + lifted) / 2,
            'max': np.maximum(a.cams, lifted),
        }[mode]
        found = CAMStore(out).read(path.stem)
        assert found.classes.tolist() == a.classes.tolist()
        assert found.background is None
        assert found.size == SIZE
        np.testing.assert_allclose(found.cams, expected, atol=1e-3)
        sizes.append(len(found.cams))
    # The photos with nothing on them are there as well.
    assert sizes.count(0) == 2


def test_several_stores_and_eight_bits(case, tmp_path):
    out = tmp_path / 'out'
    three = ('first', 'second', 'first')
    assert fuse(case, out, mode='and', stores=three, dtype='uint8') == 8
    a, b = (CAMStore(case / n).read('photo_3').cams for n in ('first', 'second'))
    found = CAMStore(out).read('photo_3').cams
    np.testing.assert_allclose(found, a * a * b, atol=0.5 / 255 + 1e-6)


# ------------------------------------------------------------ going on, changed inputs
def test_it_makes_what_is_missing_or_changed_alone(case, tmp_path):
    out = tmp_path / 'out'
    fuse(case, out, mode='or')
    whole = fake_cams.contents(out)
    assert fuse(case, out, mode='or') == 0
    (out / 'photo_2.npz').unlink()
    assert fuse(case, out, mode='or') == 1
    assert fake_cams.contents(out) == whole
    fill(case / 'second', {'photo_5': ['disc']}, seed=9)
    assert fuse(case, out, mode='or') == 1
    after = fake_cams.contents(out)
    changed = {name for name in whole if whole[name] != after[name]}
    assert changed == {'photo_5.npz', 'made_from.json'}


def test_other_settings_are_refused_and_lose_nothing(case, tmp_path):
    out = tmp_path / 'out'
    fuse(case, out, mode='or')
    before = fake_cams.contents(out)
    with pytest.raises(InputError, match='another rule of fusion: it was or and is no'):
        fuse(case, out, mode='and')
    with pytest.raises(InputError, match=r'another offset: it was \[0\.0, 0\.0\]'):
        fuse(case, out, mode='or', offsets=(0.0, 0.1))
    with pytest.raises(InputError, match='another number of stores'):
        fuse(case, out, mode='or', stores=('first', 'second', 'second'))
    with pytest.raises(InputError, match='another dtype'):
        fuse(case, out, mode='or', dtype='uint8')
    assert fake_cams.contents(out) == before
    # No offset and offsets of zero are the same.
    assert fuse(case, out, mode='or', offsets=(0.0, 0.0)) == 0
    assert fuse(case, out, mode='and', overwrite=True) == 8


def test_the_stores_themselves_are_safe(case):
    before = fake_cams.contents(case / 'first')
    for out in (case / 'first', case / 'data' / '..' / 'first'):
        with pytest.raises(InputError, match='is one of the stores'):
            fuse(case, out, mode='or', overwrite=True)
    assert fake_cams.contents(case / 'first') == before


# ------------------------------------------------------------------ the command line
def test_bad_input_is_one_sentence(case, tmp_path, monkeypatch):
    config = case / 'orandnet.py'
    stores = (case / 'first', case / 'second')
    rest = ('--out', tmp_path / 'out')
    cases = [
        ((config, stores[0], '--mode', 'or', *rest), 'two CAM stores or more, got 1'),
        (
            (config, *stores, '--mode', 'or', '--offset', '0.1', *rest),
            '--offset needs 2 numbers',
        ),
        (
            (config, *stores, '--checkpoint', tmp_path / 'none.pth', *rest),
            'none.pth does not exist',
        ),
        (
            (config, stores[0], tmp_path / 'none', '--mode', 'or', *rest),
            'lacks the CAMs of 8 of 8 photos',
        ),
    ]
    for arguments, expected in cases:
        assert expected in fake_cams.refusal(fuse_cams_command, monkeypatch, *arguments)
    network, weights = fake_cams.write(tmp_path / 'other')
    arguments = (network, *stores, '--checkpoint', weights, *rest)
    message = fake_cams.refusal(fuse_cams_command, monkeypatch, *arguments)
    assert 'FakeCAMNetwork, which joins no CAMs' in message


def test_stores_of_other_labels_or_photos_are_one_sentence(case, tmp_path):
    fill(case / 'second', {'photo_3': ['disc']}, seed=3)
    with pytest.raises(InputError, match=r'classes \[0\], but .* has \[0, 1\]'):
        fuse(case, tmp_path / 'out', mode='or')
    cams = np.zeros((2, 3, 4), np.float32)
    other = StoredCAMs(np.array([0, 1]), cams, (12, 16))
    CAMStore(case / 'second').write('photo_3', other)
    with pytest.raises(InputError, match=r'photo of \(48, 64\) in .* and of \(12, 16'):
        fuse(case, tmp_path / 'out', mode='or')


# ------------------------------------------------------------------- with an ORANDNet
def finished(done):
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def weights(path):
    # The file is our own; its logs hold numpy types that safe loading refuses.
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


@pytest.mark.slow
def test_trained_network_fuses_the_stores(case, tmp_path):
    done = finished(tiny_run.train(case / 'orandnet.py', case / 'run'))
    assert 'loss_bce' in done.stderr + done.stdout
    (log,) = (case / 'run').glob('*/*.log')
    assert 'cam/' in log.read_text()
    before, after = (weights(case / f'run/iter_{i}.pth') for i in (2, 8))
    assert [n for n in after if torch.equal(before[n], after[n])] == []
    out = tmp_path / 'out'
    done = finished(
        fake_cams.run(
            'fuse_cams.py',
            *(case / 'orandnet.py', case / 'first', case / 'second'),
            *('--checkpoint', case / 'run', '--out', out, '--jobs', '2'),
        )
    )
    assert '8 CAM files made, 0 were there' in done.stdout
    from mmwsss.registry import MODELS

    config = Config.fromfile(str(case / 'orandnet.py'))
    init_default_scope('mmseg')
    model = MODELS.build(config.model)
    model.load_state_dict(after)
    a, b = (CAMStore(case / n).read('photo_3').cams for n in ('first', 'second'))
    b = np.minimum(b + 0.15, 1)
    either = torch.from_numpy(a + b - a * b)
    with torch.no_grad():
        expected = model.network(either[:, None])[:, 0].sigmoid()
    found = CAMStore(out).read('photo_3')
    np.testing.assert_allclose(found.cams, expected.numpy(), atol=1e-3)
    # The same in a chain of refiners, from the OR with its offsets.
    refiner = MODELS.build(
        dict(
            type='mmwsss.TrainedRefiner',
            config=str(case / 'orandnet.py'),
            checkpoint=str(case / 'run'),
        )
    )
    scores = torch.cat([torch.full_like(either[:1], 0.25), either])[None]
    refined = refiner(torch.rand(1, 3, *SIZE), scores, torch.ones(1, 2))
    expected = F.interpolate(expected[None], SIZE, mode='bilinear')
    assert torch.allclose(refined[:, 1:], expected, atol=1e-6)
    assert (refined[:, 0] == 0.25).all()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(case, tmp_path):
    arguments = (case / 'orandnet.py', case / 'first', case / 'second', '--mode', 'or')
    fuse(case, tmp_path / 'whole', mode='or')
    out = tmp_path / 'out'
    process = subprocess.Popen(
        fake_cams.command('fuse_cams.py', *arguments, '--out', out, '--jobs', '2'),
        env=fake_cams.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tiny_run.ROOT,
    )
    deadline = time.monotonic() + 240
    while not list(out.glob('*.npz')) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in out.glob('*.npz'):
        CAMStore(out).read(path.stem)
    done = fake_cams.run('fuse_cams.py', *arguments, '--out', out)
    finished(done)
    assert fake_cams.contents(out) == fake_cams.contents(tmp_path / 'whole')
