"""Pretrained weights that a config names and that are not there: which, and what then.

They are looked for before anything is built. Other files and names are looked for where
they are loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from mmwsss.errors import InputError

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


def check_pretrained(config: Config) -> None:
    """Raise an InputError where a model starts from public weights that are not there.

    Args:
        config: Of the training.
    """
    places: dict[str, list[str]] = {}
    for key, file in _weights(config.get('model'), 'model'):
        known = Path(file).name in KNOWN and '://' not in file
        if known and not Path(file).expanduser().is_file():
            places.setdefault(file, []).append(key)
    if not places:
        return
    missing = ' and '.join(
        f'{file} ({KNOWN[Path(file).name][0]}; in mmpretrain '
        f'{KNOWN[Path(file).name][1]})'
        for file in places
    )
    options = ' '.join(
        f'--cfg-options {key}={_own(file)}'
        for file, keys in places.items()
        for key in keys
    )
    name = Path(config.filename).stem if config.filename else 'the config'
    raise InputError(
        f'{name} starts from weights that are not there: {missing}; give a file or a '
        f'URL of yours: {options} (docs/troubleshooting.md makes such files, see '
        '"ImageNet weights")'
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
