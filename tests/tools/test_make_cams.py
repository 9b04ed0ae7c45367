import json
import os
import signal
import socket
import subprocess
import sys
import time

import fake_cams
import fake_clips
import numpy as np
import pytest
import tiny_run
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mmwsss.apis.make_cams import (
    CAMOptions,
    Explanation,
    make_cams,
    make_cams_command,
    stored_cams,
    with_all_classes,
)
from mmwsss.apis.photos import Photo, list_photos
from mmwsss.datasets import CAMStore
from mmwsss.errors import InputError
from mmwsss.models.cam_networks.base import PhotoCAMs
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm


@MODELS.register_module()
class FakeIRNetwork(fake_cams.FakeCAMNetwork):
    """Its CAMs are empty where the IR label is background."""

    def cams(self, photo, image_label, *, kind=None, ir_label=None):
        found = super().cams(photo, image_label, kind=kind).cams
        if ir_label is not None:
            found = found * (ir_label != 0)
        return PhotoCAMs(cams=found)


@MODELS.register_module()
class FakeNetworkWithProbs(fake_cams.FakeCAMNetwork):
    """Says with a probability of 0.25 and 0.75 that a photo shows its classes."""

    def cams(self, photo, image_label, *, kind=None):
        found = super().cams(photo, image_label, kind=kind).cams
        return PhotoCAMs(cams=found, probs=torch.tensor([0.25, 0.75]))


@pytest.fixture
def network(tmp_path):
    return fake_cams.write(tmp_path)


def make(network, out, *, overwrite=False, list_file=None, split='train', **options):
    """The tool without its process; returns the number of files made."""
    config = Config.fromfile(str(network[0]))
    init_default_scope(config.default_scope)
    found = list_photos(config, split=split, list_file=list_file)
    if options.get('all_classes'):
        found = with_all_classes(found)
    options = {
        'config': str(network[0]),
        'checkpoint': network[1],
        'out': out,
        'device': 'cpu',
        'num_classes': len(found.class_names),
    } | options
    return make_cams(
        config, found, CAMOptions(**options), overwrite=overwrite, show=False
    )


def files(out):
    return {p.stem for p in out.glob('*.npz')}


# ---------------------------------------------------------------------- what it makes
def test_cams_are_those_of_the_network(network, tmp_path):
    out = tmp_path / 'cams'
    assert make(network, out) == 8
    root = network[0].parent / 'data'
    store = CAMStore(out)
    labels = json.loads((root / 'image_labels.json').read_text())['labels']
    for name, classes in labels.items():
        stored = store.read(name)
        assert [tiny_run.CLASSES[k] for k in stored.classes] == classes
        assert stored.size == (48, 64)
        assert stored.background is None
        image = np.asarray(Image.open(root / f'JPEGImages/{name}.jpg'), dtype=float)
        red, blue = image[..., 0], image[..., 2]
        for k, cam in zip(stored.classes, stored.cams, strict=True):
            own = np.maximum(red - blue if k == 0 else blue - red, 0)
            own /= own.max()
            # At stride 4 the sample lies between the two middle pixels.
            cells = own.reshape(12, 4, 16, 4)[:, 1:3, :, 1:3].mean((1, 3))
            np.testing.assert_allclose(cam, cells, atol=2e-3)


def test_every_class_and_the_probabilities_are_stored_when_asked_for(network, tmp_path):
    config = network[0].read_text().replace('FakeCAMNetwork', 'FakeNetworkWithProbs')
    network[0].write_text(config)
    make(network, tmp_path / 'own')
    make(network, tmp_path / 'all', all_classes=True)
    root = network[0].parent / 'data'
    labels = json.loads((root / 'image_labels.json').read_text())['labels']
    for name, classes in labels.items():
        own = CAMStore(tmp_path / 'own').read(name)
        every = CAMStore(tmp_path / 'all').read(name)
        assert [tiny_run.CLASSES[k] for k in own.classes] == classes
        assert every.classes.tolist() == [0, 1]
        np.testing.assert_array_equal(every.cams[own.classes], own.cams)
        assert own.probs.tolist() == every.probs.tolist() == [0.25, 0.75]
    assert any(len(classes) < 2 for classes in labels.values())
    with pytest.raises(InputError, match='another choice of classes: it was nothing'):
        make(network, tmp_path / 'own', all_classes=True)
    with pytest.raises(InputError, match='--all-classes is for networks'):
        make(network, tmp_path / 'x', all_classes=True, import_dir=tmp_path)


def test_a_background_of_its_own_is_kept(network, tmp_path):
    make(network, tmp_path / 'cams', kind='own', dtype='uint8')
    stored = CAMStore(tmp_path / 'cams').read('photo_3')
    expected = (1 - stored.cams.max(0)) ** 3
    assert stored.background.shape == (12, 16)
    # Both were made at the photo's size and sampled afterwards.
    assert np.abs(stored.background - expected).mean() < 0.02


def test_padding_of_sizes_that_stride_four_does_not_divide():
    photo = Photo(id='a', path='', classes=(1,))
    cams = torch.rand(2, 9, 14)
    stored = stored_cams(Explanation(cams, torch.rand(9, 14)), photo)
    assert stored.cams.shape == (1, 3, 4)
    assert stored.background.shape == (3, 4)
    nothing = stored_cams(Explanation(cams), Photo(id='a', path='', classes=()))
    assert nothing.cams.shape == (0, 3, 4)


def test_one_stage_segmentor_gives_its_cams_and_refined_scores(tmp_path):
    from mmwsss.registry import MODELS

    root = tiny_run.draw(tmp_path / 'data')
    content = tiny_run.config(root)
    step = [dict(type='mmwsss.LoadPhoto'), dict(type='mmwsss.LoadMask')]
    dataset = content['train_dataloader']['dataset']
    content['val_dataloader'] = dict(
        dataset={**dataset, 'pipeline': [*step, dict(type='mmwsss.PackWSSSInputs')]}
    )
    path = tiny_run.write_config(tmp_path / 'tiny.py', content)
    config = Config.fromfile(str(path))
    init_default_scope('mmseg')
    model = MODELS.build(config.model).eval()
    checkpoint = tmp_path / 'tiny.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {'iter': 8}}, checkpoint)
    network = path, checkpoint
    assert make(network, tmp_path / 'cams') == 8
    make(network, tmp_path / 'refined', kind='refined')
    photo = list_photos(config, split='train').photos[3]
    model.progress = 1.0
    image = photo.pixels()[None].float() / 255
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo={'img_shape': (48, 64), 'img_id': photo.id})
    sample.set_field(photo.image_label(2), 'image_label', dtype=torch.Tensor)
    explained = model.explain(image, [sample])
    for folder, maps, background in (
        ('cams', explained.cams[0], None),
        ('refined', explained.refined[0, 1:], explained.refined[0, 0]),
    ):
        expected = stored_cams(Explanation(maps, background), photo)
        stored = CAMStore(tmp_path / folder).read(photo.id)
        np.testing.assert_allclose(stored.cams, expected.cams, atol=1e-3)
        assert (stored.background is None) == (background is None)
    with pytest.raises(InputError, match="it has no 'is_cam'"):
        make(network, tmp_path / 'other', kind='is_cam')


# ------------------------------------------------------------ going on, changed inputs
def test_it_makes_what_is_missing_alone(network, tmp_path):
    out = tmp_path / 'cams'
    make(network, out)
    whole = fake_cams.contents(out)
    assert make(network, out) == 0
    (out / 'photo_2.npz').unlink()
    assert make(network, out) == 1
    assert fake_cams.contents(out) == whole


def test_more_photos_are_added(network, tmp_path):
    out, few = tmp_path / 'cams', tmp_path / 'few.txt'
    few.write_text('photo_1\nphoto_5\n')
    assert make(network, out, list_file=few) == 2
    assert make(network, out) == 6


def test_another_network_kind_or_type_is_refused_and_loses_nothing(network, tmp_path):
    out = tmp_path / 'cams'
    make(network, out)
    before = fake_cams.contents(out)
    config, checkpoint = network
    other = fake_cams.write_checkpoint(tmp_path / 'other.pth', gain=2.0)
    with pytest.raises(
        InputError, match=r'made with another checkpoint: it was .*fake'
    ):
        make((config, other), out)
    with pytest.raises(InputError, match=r'another kind of maps: .* is now own; give'):
        make(network, out, kind='own')
    with pytest.raises(InputError, match='another dtype: it was float16'):
        make(network, out, dtype='uint8')
    assert fake_cams.contents(out) == before
    # The same weights elsewhere are the same network.
    moved = tmp_path / 'moved.pth'
    moved.write_bytes(checkpoint.read_bytes())
    assert make((config, moved), out) == 0
    assert make((config, other), out, overwrite=True) == 8


def test_a_changed_label_or_photo_is_made_again(network, tmp_path):
    out, root = tmp_path / 'cams', network[0].parent / 'data'
    make(network, out)
    fake_cams.relabel(root, 'photo_3', ['bar'])
    assert make(network, out) == 1
    assert CAMStore(out).read('photo_3').classes.tolist() == [1]
    Image.new('RGB', (10, 6), 'red').save(root / 'JPEGImages/photo_1.jpg')
    assert make(network, out) == 1
    assert CAMStore(out).read('photo_1').size == (6, 10)


def test_values_that_are_not_finite_are_a_sentence(network, tmp_path):
    with pytest.raises(InputError, match='not finite'):
        make(network, tmp_path / 'cams', cfg_options={'model.broken': True})
    # That one shows nothing.
    assert files(tmp_path / 'cams') <= {'photo_0'}


# --------------------------------------------------------------------- IR labels
@pytest.fixture
def ir_network(network):
    config = network[0].with_name('ir.py')
    config.write_text(network[0].read_text().replace('FakeCAM', 'FakeIR'))
    return config, network[1]


def write_ir_labels(folder):
    """Object in the lower half alone, undecided at the right."""
    folder.mkdir()
    label = np.zeros((48, 64), np.uint8)
    label[24:] = 1
    label[24:, 60:] = 255
    for number in range(8):
        Image.fromarray(label).save(folder / f'photo_{number}.png')
    return folder


def test_networks_get_the_ir_label_of_each_photo(ir_network, tmp_path):
    folder = write_ir_labels(tmp_path / 'ir')
    make(ir_network, tmp_path / 'without')
    assert make(ir_network, tmp_path / 'cams', ir_labels=folder) == 8
    plain, masked = (
        CAMStore(tmp_path / name).read('photo_3').cams for name in ('without', 'cams')
    )
    assert plain[:, :6].max() > 0.1
    assert (masked[:, :6] == 0).all()
    np.testing.assert_array_equal(masked[:, 6:], plain[:, 6:])


def test_a_changed_ir_label_makes_its_photo_again(ir_network, tmp_path):
    folder, out = write_ir_labels(tmp_path / 'ir'), tmp_path / 'cams'
    make(ir_network, out, ir_labels=folder)
    assert make(ir_network, out, ir_labels=folder) == 0
    Image.fromarray(np.ones((48, 64), np.uint8)).save(folder / 'photo_3.png')
    assert make(ir_network, out, ir_labels=folder) == 1
    assert CAMStore(out).read('photo_3').cams[:, :6].max() > 0.1
    # The same labels elsewhere are the same labels.
    assert make(ir_network, out, ir_labels=folder.rename(tmp_path / 'moved')) == 0
    with pytest.raises(InputError, match='another use of IR labels: it was one for'):
        make(ir_network, out)


def test_ir_labels_that_do_not_fit_are_a_sentence(network, ir_network, tmp_path):
    folder, out = write_ir_labels(tmp_path / 'ir'), tmp_path / 'cams'
    with pytest.raises(InputError, match=r'has a mmwsss\.FakeCAMNetwork; leave it out'):
        make(network, out, ir_labels=folder)
    with pytest.raises(InputError, match='nowhere does not exist; make IR labels with'):
        make(ir_network, out, ir_labels=tmp_path / 'nowhere')
    with pytest.raises(InputError, match='an imported file is taken as is'):
        make(network, out, checkpoint=None, import_dir=folder, ir_labels=folder)
    assert not out.exists()
    Image.new('L', (9, 7)).save(folder / 'photo_2.png')
    with pytest.raises(InputError, match=r'photo_2\.png is 9 x 7 but its photo is'):
        make(ir_network, out, ir_labels=folder)
    Image.new('L', (64, 48), 3).save(folder / 'photo_2.png')
    with pytest.raises(InputError, match='holds the index 3, but there are 3 classes'):
        make(ir_network, out, ir_labels=folder)
    (folder / 'photo_5.png').unlink()
    with pytest.raises(InputError, match='has no map for image photo_5'):
        make(ir_network, out, ir_labels=folder)


def test_the_tool_says_that_no_ir_labels_were_given(
    network, ir_network, tmp_path, monkeypatch, capsys
):
    folder = write_ir_labels(tmp_path / 'ir')

    def said(files, out, *arguments):
        words = [*files, '--out', tmp_path / out, *arguments]
        monkeypatch.setattr(sys, 'argv', ['make_cams.py', *map(str, words)])
        assert make_cams_command() == 0
        return capsys.readouterr().out

    sentence = 'mmwsss.FakeIRNetwork was given no --ir-labels; its own decision'
    assert sentence in said(ir_network, 'without')
    assert 'no --ir-labels' not in said(ir_network, 'with', '--ir-labels', folder)
    assert 'no --ir-labels' not in said(network, 'other')


# ----------------------------------------------------------------------- old files
def test_files_of_other_repositories_are_imported_with_trust(network, tmp_path):
    folder = tmp_path / 'npy'
    folder.mkdir()
    root = network[0].parent / 'data'
    labels = json.loads((root / 'image_labels.json').read_text())['labels']
    for name, classes in labels.items():
        keys = [tiny_run.CLASSES.index(c) for c in classes]
        maps = np.full((len(keys), 48, 64), 0.5, np.float32)
        np.save(folder / f'{name}.npy', {'keys': np.array(keys), 'high_res': maps})
    old = {'checkpoint': None, 'import_dir': folder}
    with pytest.raises(InputError, match='--trust-pickle'):
        make(network, tmp_path / 'cams', **old)
    assert not (tmp_path / 'cams').exists()
    assert make(network, tmp_path / 'cams', **old, trust_pickle=True) == 8
    stored = CAMStore(tmp_path / 'cams').read('photo_3')
    assert stored.classes.tolist() == [0, 1]
    assert (stored.cams == 0.5).all()
    np.save(folder / 'photo_0.npy', {0: np.zeros((48, 64))})
    with pytest.raises(InputError, match=r'classes \[0\], but .* has \[\]'):
        make(network, tmp_path / 'cams', **old, trust_pickle=True)
    (folder / 'photo_0.npy').unlink()
    with pytest.raises(InputError, match=r'photo_0\.npy does not exist'):
        make(network, tmp_path / 'cams', **old, trust_pickle=True)


# ------------------------------------------------------------------ the command line
def test_bad_input_is_one_sentence(network, tmp_path, monkeypatch):
    config, checkpoint = network
    out = ('--out', tmp_path / 'cams')
    cases = [
        ((config, tmp_path / 'none.pth', *out), 'none.pth does not exist'),
        ((tmp_path / 'none.py', checkpoint, *out), 'none.py does not exist'),
        ((config, checkpoint, *out, '--kind', 'is_cam'), "it has no 'is_cam'"),
        ((config, checkpoint, *out, '--split', 'val'), 'has no val_dataloader'),
        ((config, checkpoint, *out, '--list', 'none.txt'), 'none.txt does not exist'),
    ]
    photo = config.parent / 'data/JPEGImages/photo_5.jpg'
    for arguments, expected in cases:
        assert expected in fake_cams.refusal(make_cams_command, monkeypatch, *arguments)
    photo.write_bytes(photo.read_bytes()[:300])
    done = fake_cams.run('make_cams.py', config, checkpoint, *out, '--jobs', '2')
    assert done.returncode == 1
    assert 'photo_5.jpg is truncated or damaged' in done.stdout
    # The others are made.
    assert files(tmp_path / 'cams') == {f'photo_{i}' for i in range(8) if i != 5}
    *_, said = done.stdout.splitlines()
    assert f'1 photos, listed in {tmp_path}/cams/unreadable.txt; replace' in said
    done = fake_cams.run(
        'make_cams.py', config, checkpoint, *out, '--max-unreadable', '0'
    )
    assert 'photo_5.jpg is truncated or damaged' in fake_cams.sentence(done)


def test_frames_and_clips_that_cannot_be_read_are_listed_up_to_a_limit(tmp_path):
    root = fake_clips.draw(tmp_path / 'data', num_clips=2, num_frames=3)
    frames = np.stack([fake_clips.frame(t, puff=True) for t in range(3)])
    for name in ('whole', 'torn'):
        np.save(root / f'JPEGImages/{name}.npy', frames)
    clips = json.loads((root / 'clips.json').read_text())['clips']
    arrays = {n: {'frames': f'{n}.npy', 'labels': ['smoke']} for n in ('whole', 'torn')}
    fake_clips.write(root, clips | arrays, classes=('smoke', 'steam'))
    for file in ('torn.npy', 'c0/1.png'):
        path = root / 'JPEGImages' / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    config, checkpoint = fake_cams.write(tmp_path / 'photos')
    text = config.read_text()
    config.write_text(
        text[: text.index('train_dataloader')]
        + "train_dataloader = dict(dataset=dict(type='mmwsss.VideoClipDataset', "
        f"data_root={str(root)!r}, clips='clips.json', frames='stride', "
        "img_suffix='.png', data_prefix=dict(img_path='JPEGImages')))"
    )
    out = ('--out', tmp_path / 'cams')
    done = fake_cams.run(
        'make_cams.py', config, checkpoint, *out, '--max-unreadable', '1'
    )
    sentence = fake_cams.sentence(done)
    assert sentence.startswith('2 photos cannot be read, more than --max-unreadable 1')
    done = fake_cams.run('make_cams.py', config, checkpoint, *out)
    assert done.returncode == 1
    listed = tmp_path / 'cams/unreadable.txt'
    assert listed.read_text().splitlines() == ['c0/1', 'torn/000000']
    made = {'c0/0', 'c0/2', *(f'c1/{t}' for t in range(3))}
    made |= {f'whole/00000{t}' for t in range(3)}
    found = {
        p.relative_to(tmp_path / 'cams') for p in (tmp_path / 'cams').rglob('*.npz')
    }
    assert {str(p.with_suffix('')) for p in found} == made
    # The list is one for exclude.
    option = f'train_dataloader.dataset.exclude={listed}'
    done = fake_cams.run(
        'make_cams.py', config, checkpoint, *out, '--cfg-options', option
    )
    assert done.returncode == 0, done.stderr
    assert '0 CAM files made, 8 were there' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('jobs', ['1', '2'])
def test_a_killed_run_goes_on_to_the_same_files(tmp_path, jobs):
    network = fake_cams.write(tmp_path, delay_s=0.3)
    whole = tmp_path / 'whole'
    make(network, whole)
    out = tmp_path / 'cams'
    arguments = (*network, '--out', out, '--jobs', jobs)
    for signum in (signal.SIGKILL, signal.SIGTERM):
        before = len(files(out))
        process = subprocess.Popen(
            fake_cams.command('make_cams.py', *arguments),
            env=fake_cams.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tiny_run.ROOT,
        )
        deadline = time.monotonic() + 900
        while len(files(out)) <= before:
            assert process.poll() is None, 'the run ended before it could be killed'
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signum)
        process.wait()
    # What is there is whole.
    for name in files(out):
        CAMStore(out).read(name)
    done = fake_cams.run('make_cams.py', *arguments)
    assert done.returncode == 0, done.stderr
    assert '8 CAM files made' not in done.stdout
    assert fake_cams.contents(out) == fake_cams.contents(whole)


def free_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@pytest.mark.slow
def test_ranks_share_the_photos(network, tmp_path):
    whole, out = tmp_path / 'whole', tmp_path / 'cams'
    make(network, whole)

    def ranks(checkpoint):
        command = fake_cams.command('make_cams.py', network[0], checkpoint)
        start = ['-m', 'torch.distributed.run', '--nproc_per_node', '2']
        start += ['--master_port', str(free_port())]
        return subprocess.run(
            [sys.executable, *start, *command[3:], '--out', str(out)],
            env={**fake_cams.environment(), 'PYTHONWARNINGS': 'ignore'},
            capture_output=True,
            text=True,
            timeout=900,
            cwd=tiny_run.ROOT,
            check=False,
        )

    done = ranks(network[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('8 CAM files made, 0 were there') == 1
    assert fake_cams.contents(out) == fake_cams.contents(whole)
    other = fake_cams.write_checkpoint(tmp_path / 'other.pth', gain=2.0)
    done = ranks(other)
    assert done.returncode != 0
    assert 'error: ' in done.stderr
    assert 'made with another checkpoint' in done.stderr
    assert fake_cams.contents(out) == fake_cams.contents(whole)


@pytest.mark.slow
def test_two_runs_at_once_do_not_hurt_each_other(tmp_path):
    network = fake_cams.write(tmp_path, delay_s=0.05)
    out = tmp_path / 'cams'
    processes = [
        subprocess.Popen(
            fake_cams.command('make_cams.py', *network, '--out', out),
            env=fake_cams.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=tiny_run.ROOT,
        )
        for _ in range(2)
    ]
    for process in processes:
        _, message = process.communicate(timeout=900)
        assert process.returncode == 0, message
    assert len(files(out)) == 8
    assert not [p for p in os.listdir(out) if p.endswith('.tmp')]
