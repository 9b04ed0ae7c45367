"""Config files at the door: whatever is wrong with one is a sentence.

A config is Python, and what it says is handed to MMEngine, so that anything may come
back; the sentence has its first line.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry

from mmwsss.apis.cli import find_sentence
from mmwsss.errors import InputError


def read_config_file(path: str | Path, *, imports: bool = True) -> Config:
    """Read a config or a recipe.

    Args:
        path: The file.
        imports: Also import what its ``custom_imports`` names.

    Raises:
        InputError: The file cannot be read as a config.
    """
    try:
        return Config.fromfile(str(path), import_custom_modules=imports)
    except ImportError:
        # A package that is not there, which says so itself.
        raise
    except Exception as error:
        raise InputError(
            f'the config {path} cannot be read ({_line(error)}); correct it there'
        ) from error


def merge_options(config: Config, options: Mapping[str, object]) -> None:
    """Change a config in place; keys have dots between.

    Raises:
        InputError: The config has no such place.
    """
    with merging(config, f'the options {", ".join(options)}'):
        # MMEngine takes things out of what it merges.
        config.merge_from_dict(copy.deepcopy(dict(options)))


@contextmanager
def merging(config: Config, what: str) -> Iterator[None]:
    """Make an InputError of what goes wrong where ``what`` changes a config."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f'{what} cannot be merged into {config.filename or "the config"} '
            f'({_line(error)}); correct that'
        ) from error


def dataset_config(config: Config, loader: str) -> ConfigDict:
    """What a config says of a data loader's data set.

    Raises:
        InputError: It says nothing that could be a data set.
    """
    content = config[loader]
    content = content.get('dataset') if isinstance(content, ConfigDict) else None
    if not isinstance(content, ConfigDict):
        raise InputError(
            f'{loader} of {config.filename or "the config"} must be dict(dataset='
            f'dict(type=...), ...), its data set is {content!r}'
        )
    return content


def build_from_config(registry: Registry, content: object, what: str) -> object:
    """Build what a config describes.

    Args:
        registry: Of such things.
        content: The part of the config.
        what: It, for the message.

    Raises:
        InputError: It has a key too many, or a value of another kind.
    """
    try:
        return registry.build(content)
    except Exception as error:
        if find_sentence(error) is not None:
            raise
        raise InputError(
            f'{what} cannot be built from its config ({_line(error)}); correct it there'
        ) from error


def _line(error: Exception) -> str:
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    return text if len(text) <= 300 else f'{text[:297]}...'
