"""Tensors of a TorchScript archive, as OpenAI published CLIP, without its programs.

``torch.jit.load`` runs the programs in an archive that set up its modules, and those
may write files. Here the archive is read for what it is: a zip file of tensors and a
pickle that names them, of which nothing but names and numbers is taken.
"""

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

_STORAGES = {
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
}
_LISTS = ('build_intlist', 'build_doublelist', 'build_boollist', 'build_tensorlist')
_CLASS = re.compile(
    r'^class (\w+)\(Module\):\n'
    r'  __parameters__ = \[(.*)\]\n'
    r'  __buffers__ = \[(.*)\]$',
    re.MULTILINE,
)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The state dict of the module in an archive, on the CPU.

    Args:
        path: The archive.

    Returns:
        Names to tensors, of parameters and buffers.

    Raises:
        UnpicklingError: The pickle asks for more than tensors and modules.
        Exception: Others, for a damaged archive.
    """
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (n for n in archive.namelist() if _within(n) == 'data.pkl')
        root = pickled.removesuffix('data.pkl')
        order = f'{root}byteorder'
        if order in archive.namelist() and archive.read(order) != b'little':
            raise ValueError('its bytes are in another order')
        module = _Reader(archive, root).load()
        return dict(_tensors(module, _saved_names(archive, root)))


def _within(name: str) -> str:
    return name.partition('/')[2]


class _Module:
    """A module of the archive; ``kind`` is its class there."""

    kind: str
    parts: dict

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f'GLOBAL {self.kind} sets itself up')
        self.parts = state


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f'{root}data.pkl')))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> object:
        """What a name stands for; there are no others."""
        if module.split('.')[0] == '__torch__':
            return type(name, (_Module,), {'kind': f'{module}.{name}'})
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return _tensor
        if module == 'torch' and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ('collections', 'OrderedDict'):
            return OrderedDict
        if module == 'torch.jit._pickle' and name in _LISTS:
            return list
        raise pickle.UnpicklingError(f'GLOBAL {module}.{name}')

    def persistent_load(self, pid: tuple) -> Tensor:
        """The numbers of a tensor, one after the other."""
        _, dtype, key, _, number = pid
        if key not in self._storages:
            raw = bytearray(self._archive.read(f'{self._root}data/{key}'))
            empty = torch.empty(0, dtype=dtype)
            self._storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else empty
        return self._storages[key][:number]


def _tensor(
    storage: Tensor, offset: int, size: tuple, stride: tuple, *other: object
) -> Tensor:
    # as_strided refuses what lies outside.
    return storage.as_strided(size, stride, offset)


def _saved_names(archive: zipfile.ZipFile, root: str) -> dict[str, set[str]]:
    """Class -> names of its parameters and buffers, from the text of its program."""
    found = {}
    for name in archive.namelist():
        if not (name.startswith(f'{root}code/') and name.endswith('.py')):
            continue
        module = name[len(f'{root}code/') : -len('.py')].replace('/', '.')
        for kind, *lists in _CLASS.findall(archive.read(name).decode()):
            names = (n for part in lists for n in re.findall(r'"([^"]+)"', part))
            found[f'{module}.{kind}'] = set(names)
    return found


def _tensors(module: _Module, saved: dict[str, set[str]], prefix: str = ''):
    for name, part in module.parts.items():
        if isinstance(part, _Module):
            yield from _tensors(part, saved, f'{prefix}{name}.')
        elif isinstance(part, Tensor) and name in saved[module.kind]:
            yield prefix + name, part
