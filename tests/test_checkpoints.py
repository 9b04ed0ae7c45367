"""Files that try to run something, and files that do not."""

import enum
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import resumable_run
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.optim import OneCycleLR
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from mmwsss import checkpoints
from mmwsss.apis.evaluate import load_model
from mmwsss.apis.train import build_training, run_test
from mmwsss.checkpoints import (
    TRUST_VARIABLE,
    as_objects,
    as_plain,
    is_data,
    read_checkpoint,
    trust_checkpoints,
)
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm


class Writes:
    """Unpickled, it writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, 'was here')


def config_text(marker):
    return f'a = open({str(marker)!r}, "w").write("was here")\nmodel = dict()\n'


@pytest.fixture
def marker(tmp_path):
    return tmp_path / 'marker'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run of this package."""
    folder = tmp_path_factory.mktemp('trained')
    resumable_run.train(folder)
    return folder


ATTACKS = ('pickle', 'meta.cfg', 'meta.config', 'message_hub.runtime_info.cfg')


def attack(trained, folder, marker, kind):
    """The work dir of a run whose last checkpoint is evil, and fits its digest."""
    folder = resumable_run.stopped_at(trained, 8, folder)
    path = folder / 'iter_8.pth'
    content = torch.load(path, weights_only=True)
    if kind == 'pickle':
        content['message_hub']['log_scalars']['loss'] = Writes(marker)
    else:
        part = content
        *keys, last = kind.split('.')
        for key in keys:
            part = part[key]
        part[last] = config_text(marker)
    torch.save(content, path)
    path.with_name(path.name + '.sha256').unlink()
    return folder, path


# ------------------------------------------------------------------------------ attacks
@pytest.mark.parametrize('kind', ATTACKS)
def test_no_way_to_load_runs_what_hides_in_a_file(kind, trained, tmp_path, marker):
    folder, path = attack(trained, tmp_path / 'run', marker, kind)
    asks = r'Path\.write_text|pathlib' if kind == 'pickle' else kind

    def resume():
        resumable_run.train(folder, resume=True)

    def load_from():
        build_training(Config({**config, 'load_from': str(path)})).train()

    def pretrained():
        given = dict(type='Pretrained', checkpoint=str(path))
        net = BaseModule(init_cfg=given)
        net.init_weights()

    def infer():
        # What MMEngine's and our inferencers begin with.
        CheckpointLoader.load_checkpoint(str(path), 'cpu')

    config = resumable_run.config(tmp_path / 'other')
    ways = dict(
        resume=resume,
        load_from=load_from,
        test=lambda: run_test(_test_config(config), path),
        label=lambda: load_model(_mmseg(config), path, 'cpu'),
        load_checkpoint=lambda: load_checkpoint(nn.Linear(1, 1), str(path)),
        pretrained=pretrained,
        infer=infer,
    )
    for name, way in ways.items():
        with pytest.raises(InputError, match=asks) as caught:
            way()
        assert 'nothing was run' in str(caught.value), name
        assert '--trust' in str(caught.value), name
        assert not marker.exists(), name


def _test_config(config):
    found = Config(config.to_dict())
    for name in ('dataloader', 'evaluator', 'cfg'):
        found[f'test_{name}'] = found[f'val_{name}']
    return found


def _mmseg(config):
    found = Config(config.to_dict())
    found.model['type'] = 'mmengine.DroppingNet'
    return found


@pytest.mark.parametrize('kind', ATTACKS)
def test_the_attacks_are_real(kind, trained, tmp_path, marker, monkeypatch):
    """Else the tests above would show nothing."""
    _, path = attack(trained, tmp_path / 'run', marker, kind)
    if kind == 'pickle':
        monkeypatch.setenv(TRUST_VARIABLE, '')
        trust_checkpoints()
        read_checkpoint(path)
    else:
        Config.fromstring(config_text(marker), '.py')
    assert marker.exists()


@pytest.mark.parametrize('kind', ATTACKS[1:])
def test_a_trusted_file_runs_no_config_text(
    kind, trained, tmp_path, marker, monkeypatch
):
    folder, _ = attack(trained, tmp_path / 'run', marker, kind)
    monkeypatch.setenv(TRUST_VARIABLE, '1')
    resumable_run.train(folder, resume=True)
    assert not marker.exists()
    assert (folder / 'iter_10.pth').exists()


def test_getattr_of_an_older_checkpoint_finds_nothing(tmp_path):
    """MMEngine's list of safe names holds it, and with it everything."""

    class Looks:
        def __reduce__(self):
            return getattr, (HistoryBuffer, 'update')

    path = tmp_path / 'a.pth'
    torch.save({'x': Looks()}, path)
    assert read_checkpoint(path) == {}
    # getattr(...)(), which pickle itself does not write: empty tuple, REDUCE.
    called = pickle.dumps(Looks(), 2).replace(b'.', b')R.')
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in parts.items():
            archive.writestr(name, called if name.endswith('data.pkl') else content)
    with pytest.raises(InputError, match='nothing was run'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'cannot be read|no plain torch file'),
        (b'nothing of the kind', 'cannot be read|no plain torch file'),
        (pickle.dumps({'state_dict': 1}), 'cannot be read|no plain torch file'),
        ([1, 2], 'holds a list and no checkpoint'),
    ],
)
def test_other_files_are_one_sentence(content, message, tmp_path):
    path = tmp_path / 'x.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=message):
        read_checkpoint(path)
    with pytest.raises(InputError, match=r'y\.pth does not exist'):
        read_checkpoint(tmp_path / 'y.pth')


@pytest.mark.parametrize('scheme', ['pavi', 's3', 'cluster:s3', 'petrel', 'mmcls'])
def test_places_that_unpickle_are_refused(scheme):
    with pytest.raises(InputError, match='get the file and give its path'):
        CheckpointLoader.load_checkpoint(f'{scheme}://a/b.pth', 'cpu')


def test_named_weights_are_fetched_and_read_safely(tmp_path, monkeypatch, marker):
    asked = []

    def fetch(url, path, *, hash_prefix, progress):
        asked.append((url, hash_prefix))
        torch.save({'state_dict': {'w': torch.ones(2)}}, path)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    for name in ('torchvision://resnet50', 'open-mmlab://vgg16_caffe'):
        found = CheckpointLoader.load_checkpoint(name, 'cpu')
        assert found['state_dict']['w'].tolist() == [1, 1]
    (url, prefix), (other, _) = asked
    assert url.startswith('https://download.pytorch.org/models/resnet50-')
    assert url.endswith(f'-{prefix}.pth')
    assert 'vgg16_caffe' in other
    # It is there now, and is not believed for that.
    torch.save({'w': Writes(marker)}, tmp_path / 'checkpoints' / url.split('/')[-1])
    with pytest.raises(InputError, match='nothing was run'):
        CheckpointLoader.load_checkpoint('torchvision://resnet50', 'cpu')
    assert len(asked) == 2
    assert not marker.exists()
    with pytest.raises(InputError, match='no weights are known'):
        CheckpointLoader.load_checkpoint('torchvision://nowhere', 'cpu')


def test_an_old_torch_is_not_relied_on(tmp_path, monkeypatch):
    torch.save({}, tmp_path / 'a.pth')
    monkeypatch.setattr(checkpoints.torch, '__version__', '2.5.1+cpu')
    with pytest.raises(InputError, match='CVE-2025-32434'):
        read_checkpoint(tmp_path / 'a.pth')


# ------------------------------------------------------------------------- config texts
@pytest.mark.parametrize(
    'text',
    [
        '',
        "a = 1\nb = dict(c=[1.5, -2, None, True], d=('x', \"y\"), e={'f': {1, 2}})",
        "loss_schedules = dict({'decode.loss': [[0.4, 0.0]]})",
        'lr = inf\nlow = -inf\nbad = nan\nz = 1e-3\ns = slice(0, 3, None)\nt = set()',
        "model = dict(type='mmwsss.CAMHead')",
    ],
)
def test_values_are_data(text):
    assert is_data(text)
    Config.fromstring(text.replace('inf', '1').replace('nan', '2'), '.py')


@pytest.mark.parametrize(
    'text',
    [
        'import os',
        'a = open("x", "w")',
        'a = dict(b=print())',
        'a = [x for x in ()]',
        'a = f"{print()}"',
        'a = dict(**print())',
        'a = {**print()}',
        'a = (lambda: 1)',
        'a = b',
        'a = 1 if 2 else 3',
        'a = 10 ** 10 ** 10',
        'a.b = 1',
        'a[0] = 1',
        'a: print() = 1',
        'print()',
        'def f(): pass',
        'with open("x"): pass',
        "_base_ = ['evil.py']",
        'dict.x = 1',
        'a = dict(1)(2)',
        'a = "x".join(())',
        "a = ['{{$N:\\}}', '+print()+']",
        "a = '{{ fileDirname }}'",
        'a = (' * 500,
        'a = ' + '-' * 100000 + '1',
        'a = 1\x00',
        b'a = 1',
        7,
    ],
)
def test_anything_else_is_not(text):
    assert not is_data(text)


# ---------------------------------------------------------------------- plain and back
def old_checkpoint():
    """What MMEngine itself writes."""
    history = HistoryBuffer([1.5, 2.5], [1, 3], 100)
    state = OrderedDict(w=torch.arange(3.0))
    state._metadata = OrderedDict({'': dict(version=1)})
    return {
        'meta': dict(iter=3, cfg='a = 1', best=np.float64(0.25), n=np.int64(3)),
        'state_dict': state,
        'message_hub': dict(log_scalars=OrderedDict(loss=history)),
        'arrays': [
            np.arange(6, dtype=np.int16).reshape(2, 3).T,
            np.arange(3, dtype='>f8'),
            np.array(['ab', 'c']),
            np.array([], dtype=np.float16),
        ],
    }


def test_older_checkpoints_of_mmengine_are_read_without_trust(tmp_path):
    path = tmp_path / 'old.pth'
    torch.save(old_checkpoint(), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    found, expected = read_checkpoint(path), torch.load(path, weights_only=False)
    assert found['meta'] == expected['meta']
    assert type(found['meta']['best']) is float
    assert found['state_dict']._metadata == expected['state_dict']._metadata
    history = found['message_hub']['log_scalars']['loss']
    expected_history = expected['message_hub']['log_scalars']['loss']
    assert type(history) is HistoryBuffer
    assert history.max_length == 100
    for one, other in zip(history.data, expected_history.data, strict=True):
        assert np.array_equal(one, other)
        assert one.dtype == other.dtype
    for one, other in zip(found['arrays'], expected['arrays'], strict=True):
        assert np.array_equal(one, other)
        assert one.dtype == other.dtype
        assert one.flags.writeable


def test_arrays_of_objects_are_refused(tmp_path, marker):
    for array in (
        np.array([Writes(marker)]),
        np.array([{}]),
        np.array([(1, {})], 'i,O'),
    ):
        torch.save({'a': array}, tmp_path / 'a.pth')
        with pytest.raises(InputError):
            read_checkpoint(tmp_path / 'a.pth')
    assert not marker.exists()


class Kind(enum.IntEnum):
    FIRST = 1


def test_plain_values_can_be_read_safely_and_give_histories_back(tmp_path):
    content = {
        'history': HistoryBuffer([1, 2], [1, 1], 7),
        'deep': [dict(x=(np.float32(0.5), {Kind.FIRST}, Path('a/b'), None, 1j))],
        'config': Config(dict(a=dict(b=1))),
        'array': np.eye(2),
        'tensor': torch.ones(2),
        np.int64(3): True,
    }
    content['config'] = content['config']._cfg_dict
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        torch.save(as_plain(content), tmp_path / 'a.pth')
    found = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert found['deep'] == [{'x': (0.5, {1}, 'a/b', None, 1j)}]
    assert found['array'] == [[1, 0], [0, 1]]
    assert found['config'] == {'a': {'b': 1}}
    assert found[3] is True
    history = as_objects(found)['history']
    assert history.data[0].tolist() == [1, 2]
    assert history.max_length == 7
    history.update(3.0)
    assert history.mean() == 2


def test_what_has_no_plain_form_is_left_out(tmp_path):
    assert as_plain({'a': object(), 'b': 1}) == {'a': None, 'b': 1}


def one_cycle():
    """MMEngine's scheduler with a function in its state, two steps on."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scheduler = OneCycleLR(optimizer, eta_max=1.0, total_steps=10)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    return optimizer, scheduler


def next_rates(optimizer, scheduler):
    rates = []
    for _ in range(5):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]['lr'])
    return rates


@pytest.mark.parametrize('plain', [True, False])
def test_a_schedule_with_a_function_in_its_state_goes_on(plain, tmp_path):
    """Written by us, and by MMEngine as it is; both read without trust."""
    optimizer, scheduler = one_cycle()
    state = {'schedule': scheduler.state_dict(), 'sgd': optimizer.state_dict()}
    torch.save(as_plain(state) if plain else state, tmp_path / 'state.pth')
    wanted = next_rates(optimizer, scheduler)
    read = read_checkpoint(tmp_path / 'state.pth')
    again, schedule = one_cycle()
    # Somewhere else, so that nothing is right by chance.
    next_rates(again, schedule)
    again.load_state_dict(read['sgd'])
    schedule.load_state_dict(read['schedule'])
    assert next_rates(again, schedule) == wanted
