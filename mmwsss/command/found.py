"""Configs and recipes by name, and changed by options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmwsss.apis.config_names import RECIPES, find_config, known_configs, resources
from mmwsss.errors import InputError

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.dataset import BaseDataset

__all__ = [
    'RECIPES',
    'build_dataset',
    'changes',
    'count_photos',
    'find_config',
    'known_configs',
    'parse_options',
    'read_config',
    'resources',
]


def parse_options(words: Sequence[str]) -> dict[str, object]:
    """``KEY=VALUE`` words as MMEngine reads them: numbers, lists, tuples, texts."""
    import argparse

    from mmengine.config import DictAction

    for word in words:
        if '=' not in word:
            raise InputError(
                f'--cfg-options needs KEY=VALUE, got {word!r}; for example '
                '--cfg-options train_cfg.max_iters=100'
            )
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction)
    try:
        return parser.parse_args(['--options', *words]).options or {}
    except (AssertionError, argparse.ArgumentError, SystemExit) as error:
        raise InputError(
            f'--cfg-options {" ".join(words)} cannot be read ({error}); quote words '
            "with brackets, as in 'a.b=[1,2]'"
        ) from None


def changes(
    config: Path, words: Sequence[str], *, data: Path | None
) -> dict[str, object]:
    """Changes of a config for ``merge_from_dict``, see ``read_config``."""
    if data is None:
        return parse_options(words)
    from mmengine.config import Config

    # Nothing is built here, so what the models import is not needed.
    before = Config.fromfile(str(config), import_custom_modules=False).to_dict()
    after = read_config(config, words, data=data).to_dict()
    changed = {k: v for k, v in after.items() if k not in before or before[k] != v}
    # As a whole: what is no longer there must not come back from the file.
    return {
        key: {**value, '_delete_': True} if isinstance(value, Mapping) else value
        for key, value in changed.items()
    }


def read_config(
    config: Path,
    words: Sequence[str] = (),
    *,
    data: Path | None = None,
    labels: Sequence[Path] = (),
    exclude: Sequence[Path] = (),
    max_iters: int | None = None,
    work_dir: Path | None = None,
) -> 'Config':
    """A config with the changes of the command line, its work dir set.

    Args:
        config: The file, as ``find_config`` gives it.
        words: ``KEY=VALUE``; they win.
        data: Folder of the data set, see ``with_data``; None leaves the config's.
        labels: Folders of stored labels, see ``with_labels``; none leave the config's.
        exclude: Lists of photos that are not trained on, see ``without_photos``.
        max_iters: Length of the training, see ``with_max_iters``.
        work_dir: None for the config's own, or ``work_dirs/NAME``.

    Raises:
        InputError: Something does not fit the config, or a word cannot be read.
    """
    from mmwsss.apis.config_files import merge_options
    from mmwsss.apis.train import load_config

    folder = None if work_dir is None else str(work_dir)
    cfg = load_config(str(config), None, folder)
    if data is not None or labels:
        from mmwsss.apis.own_data import with_data, with_labels

        cfg = cfg if data is None else with_data(cfg, data)
        cfg = with_labels(cfg, labels) if labels else cfg
    if exclude:
        from mmwsss.apis.own_data import without_photos

        cfg = without_photos(cfg, exclude)
    if max_iters is not None:
        from mmwsss.apis.training_length import with_max_iters

        cfg = with_max_iters(cfg, max_iters)
    merge_options(cfg, parse_options(words))
    return cfg


def build_dataset(config: 'Config', split: str) -> 'BaseDataset':
    """The data set of a config's data loader.

    Args:
        config: With the loader.
        split: ``'train'``, ``'train_eval'``, ``'val'`` or ``'test'``.

    Raises:
        InputError: The loader is missing, or what its data set names.
    """
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    from mmwsss.apis.config_files import build_from_config, dataset_config

    name = f'{split}_dataloader'
    if config.get(name) is None:
        raise InputError(
            f'{config.filename or "the config"} has no {name}; add one, or give a '
            'config that has it'
        )
    init_default_scope(config.get('default_scope', 'mmseg'))
    return build_from_config(
        DATASETS, dataset_config(config, name), f'the data set of {name}'
    )


def count_photos(config: 'Config', split: str) -> tuple[int, str]:
    """Number of photos and folder of ``build_dataset``."""
    dataset = build_dataset(config, split)
    return len(dataset), str(getattr(dataset, 'data_root', '') or '')
