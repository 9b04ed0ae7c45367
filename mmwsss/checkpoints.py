"""Checkpoints and weights files: read without running anything, checked by a digest.

A pickle can call any function, so files are read by torch's restricted reader, and
MMEngine's own types in older checkpoints by stand-ins that do nothing but hold data.
The text of the config in a checkpoint is never run; one that is code and not data
is refused all the same, since MMEngine's tools would run it.

Importing this module makes MMEngine read the same way, everywhere in this process:
``load_from``, ``resume``, ``init_cfg=dict(type='Pretrained', ...)`` and inferencers.
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from types import FunctionType, MethodType

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import (
    CheckpointLoader,
    get_external_models,
    get_torchvision_models,
)
from mmengine.utils import digit_version

from mmwsss.errors import InputError
from mmwsss.files import file_digest, zip_is_whole

DIGEST_SUFFIX = '.sha256'
# Seen by the worker processes of a tool too.
TRUST_VARIABLE = 'MMWSSS_TRUST_CHECKPOINTS'
# Where MMEngine looks for the text of a config, ``config`` in older versions.
CONFIG_TEXTS = (
    ('meta', 'cfg'),
    ('meta', 'config'),
    ('message_hub', 'runtime_info', 'cfg'),
)
# Below, the restricted reader itself can be made to run code (CVE-2025-32434).
SAFE_TORCH = '2.6.0'
_HISTORY = 'history of a scalar'


# ------------------------------------------------------------------------- reading
def read_checkpoint(path: str | Path, *, map_location: object = 'cpu') -> dict:
    """Read a checkpoint, or a file of tensors, without running anything in it.

    Args:
        path: The file; where a digest lies beside it (``NAME.sha256``), it must fit.
        map_location: As of ``torch.load``.

    Returns:
        The content. The planted key ``meta.config``, which ``Runner.resume`` runs as
        Python, is left out.

    Raises:
        InputError: The file is missing, damaged, not what its digest says, or holds
            code; ``trust_checkpoints`` allows the last.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f'the checkpoint {path} does not exist')
    if not fits_digest(path):
        raise InputError(
            f'{path} is not the file that {path.name}{DIGEST_SUFFIX} was made for: it '
            'was cut off or changed; take an earlier checkpoint or get it again'
        )
    content = _read(path, map_location)
    if not isinstance(content, dict):
        raise InputError(
            f'{path} holds a {type(content).__name__} and no checkpoint or state dict'
        )
    _check_config_texts(content, path)
    if isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)
    return content


def trust_checkpoints() -> None:
    """Unpickle what cannot be read safely, in this process and those it starts.

    For older files of people one trusts; a file can then run any code.
    """
    os.environ[TRUST_VARIABLE] = '1'


def _trusted() -> bool:
    return os.environ.get(TRUST_VARIABLE) == '1'


def _read(path: Path, map_location: object) -> object:
    old = digit_version(torch.__version__) < digit_version(SAFE_TORCH)
    if old and not _trusted():
        raise InputError(
            f'torch {torch.__version__} cannot read {path} without running what may '
            f'hide in it (CVE-2025-32434); take torch {SAFE_TORCH} or newer, or add '
            '--trust if the file comes from someone you trust'
        )
    try:
        return as_objects(_load(path, map_location))
    except UnpicklingError as error:
        raise InputError(_refusal(path, str(error))) from None
    except Exception as error:
        # torch, pickle and zipfile raise a dozen types for a damaged file.
        reason = ' '.join(str(error).split())[:200]
        raise InputError(
            f'the checkpoint {path} cannot be read ({reason}): it is damaged or no '
            'checkpoint, so take an earlier one or get it again'
        ) from None


def _load(path: Path, map_location: object) -> object:
    if _trusted():
        return torch.load(path, map_location=map_location, weights_only=False)
    with torch.serialization.safe_globals(_STAND_INS):
        return torch.load(path, map_location=map_location, weights_only=True)


def _refusal(path: Path, reason: str) -> str:
    found = re.search(r'GLOBAL ([\w.]+)', reason)
    what = f'asks for {found[1]}' if found else 'is no plain torch file'
    return (
        f'{path} holds more than tensors and plain values ({what}) and could run any '
        'code if it was read; nothing was run; if it comes from someone you trust add '
        '--trust, otherwise delete it'
    )


# ----------------------------------------------------------------- text of the config
def _check_config_texts(content: dict, path: Path) -> None:
    for keys in CONFIG_TEXTS:
        text = _look_up(content, keys)
        if text is not None and not is_data(text) and not _trusted():
            raise InputError(
                f'the config text in {path} ({".".join(keys)}) is code and not data '
                'alone, and would run where MMEngine reads it; nothing was run; if '
                'the file comes from someone you trust add --trust'
            )


def _look_up(content: object, keys: tuple[str, ...]) -> object:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def is_data(text: object) -> bool:
    """Whether a config's text does nothing but name values.

    Names are given literals, also inside ``dict(...)``. Not allowed are bases, which
    are files that run, and ``{{...}}``, which MMEngine exchanges before it runs a text.
    """
    if not isinstance(text, str) or '{{' in text:
        return False
    try:
        return all(_names_value(step) for step in ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _names_value(step: ast.stmt) -> bool:
    return (
        isinstance(step, ast.Assign)
        and all(isinstance(t, ast.Name) and t.id != '_base_' for t in step.targets)
        and _is_value(step.value)
    )


def _is_value(node: ast.expr) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return all(map(_is_value, parts))
        case ast.Dict(keys=keys, values=values):
            # A key of None is **something.
            return all(k is not None and _is_value(k) for k in keys) and all(
                map(_is_value, values)
            )
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant() as number):
            return isinstance(number.value, int | float | complex)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id='inf')):
            return True
        case ast.Name(id='inf' | 'nan'):
            return True
        case ast.Call(
            func=ast.Name(id='dict' | 'set' | 'slice'), args=parts, keywords=given
        ):
            # A name of None is **something.
            return all(map(_is_value, parts)) and all(
                k.arg is not None and _is_value(k.value) for k in given
            )
    return False


# ------------------------------------------------------------------ plain and objects
def as_plain(value: object, name: str = '') -> object:
    """Exchange what the restricted reader would refuse for tensors and plain values.

    Args:
        value: Part of a checkpoint.
        name: Its place there, for the log.

    Returns:
        The same with new containers; ``as_objects`` gives histories back. Functions
        are left out of dicts; what else cannot be told in plain values becomes None,
        with a line in the log.
    """
    match value:
        case None | bool() | torch.Tensor() | torch.Size() | torch.dtype() | bytes():
            return value
        case HistoryBuffer():
            log, counts = value.data
            return {
                'type': _HISTORY,
                'log': torch.from_numpy(np.array(log)),
                'counts': torch.from_numpy(np.array(counts)),
                'max_length': value.max_length,
            }
        case np.generic():
            return value.item()
        case np.ndarray():
            return value.tolist()
        case dict():
            return {
                as_plain(k, name): as_plain(v, f'{name}.{k}')
                for k, v in value.items()
                # Whoever reads a state with functions in it has them already, as
                # MMEngine's OneCycleLR does.
                if not isinstance(v, FunctionType | MethodType)
            }
        case tuple():
            return tuple(as_plain(part, name) for part in value)
        case set() | frozenset():
            return {as_plain(part, name) for part in value}
    for kind in (int, float, complex, str):
        # An enumeration or a seeded index says more than the reader would take.
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    try:
        return [as_plain(part, name) for part in value]
    except TypeError:
        print_log(
            f'{name} is a {type(value).__name__}, which a checkpoint that can be read '
            'safely cannot hold; it is left out',
            logger='current',
        )
        return None


def as_objects(value: object) -> object:
    """Give back histories and arrays; dicts and lists are changed in place."""
    if isinstance(value, dict):
        if value.get('type') == _HISTORY:
            # A checkpoint may be read onto a GPU, where a history has no business.
            log, counts = (value[name].cpu().numpy() for name in ('log', 'counts'))
            return HistoryBuffer(log, counts, value['max_length'])
        # In place: a state dict carries more than its items.
        for key, part in list(value.items()):
            value[key] = as_objects(part)
            if isinstance(part, _Held) and value[key] is None:
                del value[key]
    elif isinstance(value, list):
        value[:] = [as_objects(part) for part in value]
    elif type(value) is tuple:
        return tuple(as_objects(part) for part in value)
    elif isinstance(value, _Held):
        return value.content()
    return value


class _Held:
    """What an older checkpoint has instead of data, held without doing anything."""

    def __init__(self, *given: object) -> None:
        self.given = given
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def content(self) -> object:
        return None


class _HeldHistory(_Held):
    # Made by __new__ alone, as pickle does.
    given = ()

    def content(self) -> HistoryBuffer:
        state = {key: as_objects(part) for key, part in self.state.items()}
        return HistoryBuffer(
            state['_log_history'], state['_count_history'], state['max_length']
        )


class _HeldType(_Held):
    """A NumPy number type."""

    def content(self) -> np.dtype:
        code = self.given[0]
        if not re.fullmatch(r'[biufcSU]\d+', code):
            raise ValueError(f'arrays of {code!r} are not read')
        order = self.state[1] if self.state else '='
        return np.dtype(code).newbyteorder(order if order in '<>' else '=')


class _HeldArray(_Held):
    """A NumPy array: (version, shape, type, column order, bytes)."""

    def content(self) -> np.ndarray:
        _, shape, kind, columns_first, raw = self.state
        flat = np.frombuffer(raw, kind.content())
        array = flat.reshape(shape, order='F' if columns_first else 'C')
        # In the machine's own byte order, and one that may be written to.
        return array.astype(array.dtype.newbyteorder('='))


class _HeldNumber(_Held):
    """A NumPy number: type, bytes."""

    def content(self) -> object:
        kind, raw = self.given
        return np.frombuffer(raw, kind.content(), count=1)[0].item()


def _stand_in(path: str, kind: type[_Held]) -> type[_Held]:
    """The class under the name that the reader is asked for."""
    module, _, name = path.rpartition('.')
    return type(name, (kind,), {'__module__': module, '__qualname__': name})


# getattr names the functions of a HistoryBuffer; here it looks up nothing.
_STAND_INS = [
    # Empty ones; others are strings in a pickle of torch.
    bytes,
    _stand_in('mmengine.logging.history_buffer.HistoryBuffer', _HeldHistory),
    _stand_in('builtins.getattr', _Held),
    # Its state has one of its functions, by getattr.
    _stand_in('mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler', _Held),
    _stand_in('numpy.dtype', _HeldType),
    _stand_in('numpy.ndarray', _HeldArray),
    *(
        _stand_in(f'numpy.{core}.multiarray.{name}', kind)
        for core in ('core', '_core')
        for name, kind in (('_reconstruct', _HeldArray), ('scalar', _HeldNumber))
    ),
]


# ------------------------------------------------------------------------ whole or not
def digest_path(path: Path) -> Path:
    """Where the SHA-256 of a checkpoint lies, as ``sha256sum --check`` reads it."""
    return path.with_name(path.name + DIGEST_SUFFIX)


def digest_line(name: str, digest: str) -> str:
    """The content of that file."""
    return f'{digest}  {name}\n'


def fits_digest(path: Path) -> bool:
    """Whether a file is what its digest says; True where none lies beside it."""
    try:
        words = digest_path(path).read_bytes().split()
    except FileNotFoundError:
        return True
    return bool(words) and words[0] == file_digest(path).hex().encode()


def is_whole(path: Path) -> bool:
    """Whether a file is as it was written, by its digest or its own check sums."""
    if not path.is_file() or not fits_digest(path):
        return False
    return digest_path(path).exists() or zip_is_whole(path)


def newest_whole_checkpoint(work_dir: str | Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint that a run goes on from.

    That is the one that ``last_checkpoint`` names, or if it is torn or was tampered
    with, the one written before it, and so on.

    Returns:
        The file, None in a folder without any; and those that were passed over.

    Raises:
        InputError: There are checkpoints, but none is whole.
    """
    passed = []
    for path in _checkpoints(Path(work_dir)):
        if is_whole(path):
            return path, passed
        passed.append(path)
    if passed:
        raise InputError(
            f'no checkpoint in {work_dir} is whole ({passed[0].name} and '
            f'{len(passed) - 1} more are torn or were changed); leave out --resume to '
            'begin anew'
        )
    return None, []


def _checkpoints(work_dir: Path) -> Iterator[Path]:
    """The last one, then older ones of fewer iterations, the newest first."""
    pointer = work_dir / 'last_checkpoint'
    if not pointer.is_file():
        return
    named = Path(pointer.read_text(errors='replace').strip())
    # A moved work directory still holds the file under its own name.
    last = named if named.is_file() else work_dir / named.name
    pattern, end = re.compile(r'(?:epoch|iter)_(\d+)\.pth'), None
    if named.name:
        yield last
        number = re.search(r'(\d+)(?!.*\d)', named.name)
        if number:
            end = int(number[1])
            before, after = named.name[: number.start()], named.name[number.end() :]
            pattern = re.compile(f'{re.escape(before)}(\\d+){re.escape(after)}')
    folder = last.parent if named.name else work_dir
    # By time: a higher number may be left from an earlier training in this folder.
    for path in sorted(
        folder.iterdir() if folder.is_dir() else (),
        key=lambda p: p.stat().st_mtime_ns,
        reverse=True,
    ):
        found = pattern.fullmatch(path.name)
        if found and (end is None or int(found[1]) < end):
            yield path


# ------------------------------------------------------------ MMEngine's ways to load
@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: object = None) -> dict:
    """A file on disk."""
    return read_checkpoint(filename, map_location=map_location)


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_http(filename: str, map_location: object = None) -> dict:
    """A download, kept in torch's cache folder."""
    return read_checkpoint(download(filename), map_location=map_location)


@CheckpointLoader.register_scheme(
    prefixes=('modelzoo://', 'torchvision://'), force=True
)
def load_from_torchvision(filename: str, map_location: object = None) -> dict:
    """Torchvision's weights by the name of the network."""
    return load_from_http(
        _named_url(filename, get_torchvision_models()), map_location=map_location
    )


@CheckpointLoader.register_scheme(
    prefixes=('open-mmlab://', 'openmmlab://'), force=True
)
def load_from_openmmlab(filename: str, map_location: object = None) -> dict:
    """OpenMMLab's weights by the name of the network."""
    return load_from_http(
        _named_url(filename, get_external_models()), map_location=map_location
    )


@CheckpointLoader.register_scheme(
    prefixes=('pavi://', 'mmcls://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://'),
    force=True,
)
def load_from_elsewhere(filename: str, map_location: object = None) -> dict:
    """Not supported: MMEngine unpickles what comes from there."""
    raise InputError(
        f'{filename} cannot be loaded safely from there; get the file and give its path'
    )


def _named_url(filename: str, urls: dict[str, str]) -> str:
    name = filename.partition('://')[2]
    if not urls.get(name, '').startswith(('http://', 'https://')):
        raise InputError(f'no weights are known under the name {filename}')
    return urls[name]


def download(url: str) -> str:
    """Fetch a weights file into torch's cache folder once and return its path.

    A name that ends in the first digits of a SHA-256, as torch's do, is checked.

    Raises:
        InputError: The download failed.
    """
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    target = folder / url.rsplit('/', 1)[-1]
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        prefix = re.search(r'-([a-f0-9]{8,})\.', target.name)
        try:
            # Written to a temporary name and renamed, so ranks may do it at once.
            torch.hub.download_url_to_file(
                url,
                str(target),
                hash_prefix=prefix[1] if prefix else None,
                progress=get_rank() == 0,
            )
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"'{url}' could not be downloaded ({error}): fetch it on a connected "
                'machine and give the file instead of its name.'
            ) from error
    return str(target)
