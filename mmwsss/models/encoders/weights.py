"""Read pretrained weights from disk and say in one sentence what is wrong with them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from mmwsss.errors import InputError, MissingWeights

from .torchscript import read_torchscript

# Scalars that OpenAI's archives carry besides the parameters.
_OPENAI_SCALARS = ('input_resolution', 'context_length', 'vocab_size')
_WRAPPERS = ('state_dict', 'model')


def read_weights(path: str | os.PathLike, *, how_to_get: str) -> dict[str, Tensor]:
    """Read the tensors of a weights file, on the CPU and in float32.

    Understands safetensors, TorchScript archives (OpenAI's CLIP) and ``torch.save``
    files with or without a ``state_dict`` around the tensors; nothing in a file is
    run, be it a pickle or a TorchScript program.

    Args:
        path: The file.
        how_to_get: Half sentence for the error message of a missing file.

    Returns:
        Names to tensors; floating point ones in float32, a leading ``module.`` cut.

    Raises:
        MissingWeights: There is no such file.
        InputError: The file is unreadable or holds other things.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingWeights(
            f"There is no weights file at '{path.absolute()}': {how_to_get}."
        )
    try:
        content = _read_any(path)
    except UnpicklingError as error:
        raise InputError(
            f"The weights file '{path}' holds more than tensors and is not unpickled "
            'for safety: save its state_dict alone, best as .safetensors.'
        ) from error
    except Exception as error:
        # torch, safetensors and zipfile raise a dozen types for a damaged file.
        reason = str(error).strip().split('\n')[0]
        raise InputError(
            f"The weights file '{path}' cannot be read ({reason}): it is damaged or no "
            'torch or safetensors file, so get it again.'
        ) from error
    return _as_float_tensors(content, path)


def load_exactly(
    module: nn.Module, tensors: Mapping[str, Tensor], *, path: object, what: str
) -> None:
    """Load tensors into a module; every parameter must be met and no name left over.

    Args:
        module: Where to.
        tensors: Names to tensors, as in the module's own state dict.
        path: Origin of the tensors, for the message.
        what: Name of the network, for the message.

    Raises:
        InputError: A name is missing or left over, or a shape differs.
    """
    own = module.state_dict()
    problems = [
        *_named('missing', own.keys() - tensors.keys()),
        *_named('left over', tensors.keys() - own.keys()),
    ]
    if not problems:
        try:
            module.load_state_dict(dict(tensors), strict=False)
        except RuntimeError as error:
            problems = [str(error).strip().split('\n')[-1].strip().rstrip('.')]
    if problems:
        raise InputError(
            f"The weights file '{path}' does not fit {what} ({'; '.join(problems)}): "
            'give the file or the name that belongs to the other.'
        )


def is_openai_archive(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are OpenAI's CLIP weights, which need QuickGELU."""
    return any(name in tensors for name in _OPENAI_SCALARS)


def without_openai_scalars(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what OpenAI's archives carry besides parameters."""
    return {k: v for k, v in tensors.items() if k not in _OPENAI_SCALARS}


def without_prefix(
    tensors: Mapping[str, Tensor], prefix: str, *, path: object
) -> dict[str, Tensor]:
    """Keep the tensors whose name starts with the prefix, and cut it.

    Raises:
        InputError: No name starts with it.
    """
    kept = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    if not kept:
        raise InputError(
            f"No tensor of '{path}' has a name starting with prefix='{prefix}' (the "
            f"first is '{next(iter(tensors))}'): give the right prefix, '' for none."
        )
    return kept


def _read_any(path: Path) -> object:
    if path.suffix == '.safetensors':
        from safetensors.torch import load_file

        return load_file(path)
    if _is_torchscript(path):
        return read_torchscript(path)
    return torch.load(path, map_location='cpu', weights_only=True)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith('/constants.pkl') for name in archive.namelist())


def _as_float_tensors(content: object, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise InputError(
            f"The weights file '{path}' holds no state dict (names to tensors): give "
            'one, or a checkpoint with a `state_dict` entry.'
        )
    return {
        name.removeprefix('module.'): value.float()
        if value.is_floating_point()
        else value
        for name, value in content.items()
    }


def _named(problem: str, names: set[str]) -> list[str]:
    # Some converters drop BatchNorm's step counters, which inference never reads.
    names = sorted(n for n in names if not n.endswith('num_batches_tracked'))
    if not names:
        return []
    more = f' and {len(names) - 2} more' if len(names) > 2 else ''
    return [f'{problem}: {", ".join(names[:2])}{more}']
