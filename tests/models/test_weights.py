"""Weights files that hold programs or pickles, and what is taken from them."""

import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from mmwsss.errors import InputError
from mmwsss.models.encoders.weights import read_weights

pytestmark = pytest.mark.mm


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 3, bias=width > 2)
        # Not in a state dict.
        self.mask = torch.ones(2)

    def forward(self, x):
        return self.linear(x) * self.mask.sum()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(2), Block(4))
        self.norm = nn.BatchNorm2d(2)
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer('table', torch.arange(12).reshape(3, 4).T)
        self.register_buffer('coarse', torch.rand(3, 1).half())
        self.register_buffer('empty', torch.empty(0))
        self.tied = self.blocks[0].linear
        self.name = 'net'

    def forward(self, x):
        return self.blocks[1](x) * self.scale


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / 'net.pt'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.script(Net()).save(path)
    return path


def test_torchscript_gives_what_torch_would_load(archive):
    found = read_weights(archive, how_to_get='')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        expected = torch.jit.load(archive).state_dict()
    assert found.keys() == expected.keys()
    assert {'blocks.0.linear.weight', 'tied.weight', 'norm.running_var'} <= set(found)
    assert not any('mask' in name for name in found)
    for name in found:
        assert torch.equal(found[name].double(), expected[name].double()), name
    assert found['coarse'].dtype == torch.float32


def exchange(path, end, content):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, old in parts.items():
            archive.writestr(name, content if name.endswith(end) else old)


class WritesAFile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, 'was here')


def test_a_pickle_in_an_archive_is_not_run(archive, tmp_path):
    marker = tmp_path / 'marker'
    exchange(archive, '/data.pkl', pickle.dumps(WritesAFile(marker), 2))
    with pytest.raises(InputError, match='more than tensors'):
        read_weights(archive, how_to_get='')
    assert not marker.exists()
    exchange(archive, '/data.pkl', b'\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.')
    with pytest.raises(InputError, match='more than tensors'):
        read_weights(archive, how_to_get='')


def test_a_program_in_an_archive_is_not_run(tmp_path):
    """TorchScript sets modules up by programs, which may map and so make files."""
    marker = tmp_path / 'marker'

    class Maps(nn.Module):
        def __init__(self, path: str):
            super().__init__()
            self.path = path
            self.numbers = torch.zeros(1)

        def forward(self, x):
            return x

        @torch.jit.export
        def __getstate__(self):
            return self.path, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]):
            self.path = state[0]
            self.training = state[1]
            self.numbers = torch.from_file(self.path, shared=True, size=4)

    path = tmp_path / 'maps.pt'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.script(Maps(str(marker))).save(path)
        assert not marker.exists()
        with pytest.raises(InputError, match='more than tensors'):
            read_weights(path, how_to_get='')
        assert not marker.exists()
        torch.jit.load(path)
    assert marker.exists()


@pytest.mark.parametrize(
    ('end', 'content'),
    [('/data.pkl', b'\x80\x02'), ('/data/0', b''), ('/byteorder', b'big')],
)
def test_damaged_archives_are_one_sentence(end, content, archive):
    exchange(archive, end, content)
    with pytest.raises(InputError, match='cannot be read'):
        read_weights(archive, how_to_get='')


def test_tensors_do_not_reach_outside_their_numbers(archive):
    with zipfile.ZipFile(archive) as content:
        (name,) = (n for n in content.namelist() if n.endswith('/data.pkl'))
        raw = content.read(name)
    # The scale is one number; its tensor now claims 200 of them.
    wrong = raw.replace(b'(t(t\x88', b'(K\xc8t(K\x01t\x88', 1)
    assert wrong != raw
    exchange(archive, '/data.pkl', wrong)
    with pytest.raises(InputError, match='cannot be read'):
        read_weights(archive, how_to_get='')
