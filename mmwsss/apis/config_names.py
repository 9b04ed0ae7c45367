"""Configs and recipes by name, wherever mmwsss is installed."""

import difflib
from pathlib import Path

from mmwsss.errors import InputError

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
        name: A path, or a name with or without ``.py``: a file comes first, and a
            work directory, whose config is what a training left there, last.
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
    if path.is_dir() and not folder:
        return _saved_config(path)
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


def name_of(config: Path) -> str:
    """What to call a config on a command line: its name, or its path without one."""
    known = known_configs().get(config.stem)
    return config.stem if known == config.resolve() else str(config)


def _saved_config(work_dir: Path) -> Path:
    found = sorted(work_dir.glob('*.py'))
    if len(found) != 1:
        there = ', '.join(path.name for path in found) or 'none'
        raise InputError(
            f'{work_dir} should hold the one config that a training saves there, it '
            f'holds {there}; give the config itself'
        )
    return found[0]
