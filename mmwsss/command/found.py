"""Configs and recipes by name, wherever mmwsss is installed, and changed by options."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmwsss.errors import InputError

if TYPE_CHECKING:
    from mmengine.config import Config

RECIPES = 'recipes'


def resources() -> Path:
    """The folder that holds configs/ and tools/: the repository, or an installed copy.

    A wheel has them in ``mmwsss/.mim``, where OpenMMLab's own packages keep theirs.
    """
    package = Path(__file__).resolve().parents[1]
    installed = package / '.mim'
    return installed if installed.is_dir() else package.parent


def known_configs(*, folder: str = '') -> dict[str, Path]:
    """Name -> file of the configs in ``configs/FOLDER``, without bases."""
    files = sorted((resources() / 'configs' / folder).glob('*.py'))
    return {path.stem: path for path in files}


def find_config(name: str, *, folder: str = '') -> Path:
    """A config's file.

    Args:
        name: A path, or a name with or without ``.py``: a file comes first.
        folder: Of the configs that have names: ``''`` or ``'recipes'``.

    Raises:
        InputError: There is none; names what comes near.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = known_configs(folder=folder)
    wanted = path.stem if path.suffix == '.py' else path.name
    plain = path.parent in (Path(), Path('configs'), Path('configs') / folder)
    if plain and wanted in known:
        return known[wanted]
    what = 'recipe' if folder else 'config'
    other = '' if folder else RECIPES
    if plain and wanted in known_configs(folder=other):
        right = f'mmwsss recipe {wanted}' if other else f'mmwsss train {wanted}'
        raise InputError(
            f'{wanted} is a {RECIPES[:-1] if other else "config"}, not a {what}; use '
            f'it as in: {right}'
        )
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    hint = f'did you mean {" or ".join(near)}? ' if near else ''
    raise InputError(
        f'there is neither a file {name} nor a {what} of that name; {hint}'
        '`mmwsss configs` lists all names'
    )


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
    return parser.parse_args(['--options', *words]).options or {}


def changes(
    config: Path, words: Sequence[str], *, data: Path | None
) -> dict[str, object]:
    """Changes of a config for ``merge_from_dict``.

    Args:
        config: The config file.
        words: ``KEY=VALUE``; they win.
        data: Takes the place of the config's ``data_root`` wherever that stands, at
            the beginning of longer paths as well; None leaves it.

    Raises:
        InputError: A word cannot be read, ``data`` is no folder, or the config has no
            ``data_root``.
    """
    found = {} if data is None else _other_data(config, data)
    return {**found, **parse_options(words)}


def _other_data(config: Path, data: Path) -> dict[str, object]:
    from mmengine.config import Config

    if not data.is_dir():
        raise InputError(f'--data {data} is no folder; give the root of the data set')
    # Nothing is built here, so what the models import is not needed.
    content = Config.fromfile(str(config), import_custom_modules=False)
    root = content.get('data_root')
    if not isinstance(root, str):
        raise InputError(
            f'{config} sets no data_root that --data could replace; use --cfg-options '
            'train_dataloader.dataset.data_root=FOLDER and the same for the others'
        )
    return dict(_replacements(content.to_dict(), '', root, str(data)))


def _replacements(
    content: object, key: str, root: str, data: str
) -> Iterator[tuple[str, object]]:
    """What changes in nested dicts and lists, by their keys with dots between."""
    entries = ()
    if isinstance(content, Mapping):
        entries = content.items()
    elif isinstance(content, list) and any(isinstance(c, Mapping) for c in content):
        entries = enumerate(content)
    for name, inner in entries:
        yield from _replacements(inner, f'{key}.{name}' if key else name, root, data)
    # MMEngine reaches into lists of dicts, but other lists must be given as a whole.
    changed = content if entries else _replaced(content, root, data)
    if changed != content:
        yield key, changed


def _replaced(content: object, root: str, data: str) -> object:
    if isinstance(content, list | tuple):
        return type(content)(_replaced(inner, root, data) for inner in content)
    if isinstance(content, str) and (content == root or content.startswith(f'{root}/')):
        return data + content[len(root) :]
    return content


def read_config(
    config: Path,
    words: Sequence[str] = (),
    *,
    data: Path | None = None,
    work_dir: Path | None = None,
) -> 'Config':
    """A config with the changes of the command line, its work dir set.

    Args:
        config: The file, as ``find_config`` gives it.
        words: See ``changes``.
        data: See ``changes``.
        work_dir: None for the config's own, or ``work_dirs/NAME``.
    """
    from mmwsss.apis.train import load_config

    folder = None if work_dir is None else str(work_dir)
    return load_config(str(config), changes(config, words, data=data), folder)


def count_photos(config: 'Config', split: str) -> tuple[int, str]:
    """Number of photos of a config's data loader, and the folder of the data set.

    Args:
        config: With the loader.
        split: ``'train'``, ``'train_eval'``, ``'val'`` or ``'test'``.

    Raises:
        InputError: The loader is missing, or what its data set names.
    """
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    name = f'{split}_dataloader'
    if config.get(name) is None:
        raise InputError(
            f'{config.filename or "the config"} has no {name}; add one, or give a '
            'config that has it'
        )
    init_default_scope(config.get('default_scope', 'mmseg'))
    dataset = DATASETS.build(config[name].dataset)
    return len(dataset), str(getattr(dataset, 'data_root', '') or '')
