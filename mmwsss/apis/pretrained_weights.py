"""Pretrained weights that a config names and that are not there: which, and what then.

A training looks for them before anything is built. Beside a checkpoint few networks
need them, so they are looked for where they are loaded, as other files always are.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmwsss.errors import InputError, MissingWeights

if TYPE_CHECKING:
    from mmengine.config import Config

# File -> what it holds, and what mmpretrain calls public weights of the same network.
KNOWN = {
    'mobileone-s0_in1k_fp16.safetensors': (
        'MobileOne-S0 of ImageNet-1k, in its form for inference',
        'mobileone-s0_8xb32_in1k',
    ),
    'vit-tiny-p16_in1k_fp16.safetensors': (
        'ViT-Ti/16 of ImageNet-1k',
        'deit-tiny_4xb256_in1k',
    ),
}


def check_pretrained(config: 'Config') -> None:
    """Raise an InputError where a model starts from public weights that are not there.

    Args:
        config: Of the training.
    """
    places = _missing(config)
    if places:
        raise InputError(_sentence(config, places))


@contextmanager
def naming_pretrained(config: 'Config') -> Iterator[None]:
    """Where a model is built for a checkpoint: says what ``check_pretrained`` says.

    Frozen encoders are in no checkpoint, and read their weights as they are built.

    Args:
        config: Of the model.
    """
    try:
        yield
    except MissingWeights as error:
        places = _missing(config)
        if not any(Path(file).name in str(error) for file in places):
            raise
        raise InputError(_sentence(config, places)) from None


def is_known(file: str) -> bool:
    """Whether these are public weights that no package brings along."""
    return Path(file).name in KNOWN and '://' not in file


def how_to_give(places: Mapping[str, Sequence[str]]) -> str:
    """Options that give other files, for missing ones with the keys that name them."""
    options = ' '.join(
        f'--cfg-options {key}={_own(file)}'
        for file, keys in places.items()
        for key in keys
    )
    return (
        f'{options} (docs/troubleshooting.md makes such files, see "ImageNet weights")'
    )


def described(file: str) -> str:
    """A known file, what it holds, and mmpretrain's name of such weights."""
    content, name = KNOWN[Path(file).name]
    return f'{file} ({content}; in mmpretrain {name})'


def _missing(config: 'Config') -> dict[str, list[str]]:
    """File -> keys that name it, of the known ones that are not there."""
    places: dict[str, list[str]] = {}
    for key, file in _weights(config.get('model'), 'model'):
        if is_known(file) and not Path(file).expanduser().is_file():
            places.setdefault(file, []).append(key)
    return places


def _sentence(config: 'Config', places: Mapping[str, Sequence[str]]) -> str:
    missing = ' and '.join(map(described, places))
    name = Path(config.filename).stem if config.filename else 'the config'
    return (
        f'{name} starts from weights that are not there: {missing}; give a file or a '
        f'URL of yours: {how_to_give(places)}'
    )


def _own(file: str) -> str:
    return f'{Path(file).name.split("_")[0]}.pth'


def _weights(content: object, key: str) -> Iterator[tuple[str, str]]:
    """Keys, with dots between, and values of all ``weights`` that are texts."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            if name == 'weights' and isinstance(value, str):
                yield f'{key}.{name}', value
            else:
                yield from _weights(value, f'{key}.{name}')
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for number, value in enumerate(content):
            yield from _weights(value, f'{key}.{number}')
