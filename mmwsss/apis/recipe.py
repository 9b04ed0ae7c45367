"""A recipe: tool calls that follow each other, for several configs and seeds.

A recipe file sets ``work_dir`` and may set

``seeds``
    Seeds of the runs, (0,) by default.
``config``, ``common``, ``parts``, ``rows``
    The config of the runs: a row is a list of parts, a part a change of the config, as
    MMEngine merges; ``common`` is changed in all rows, before the parts. In both,
    ``add_hooks`` is appended to ``custom_hooks``, and ``values`` is as below, for the
    row. Without rows there is one run a seed.
``configs``
    More configs of each run, name -> ``dict(config=FILE, changes={...})``.
``values``
    Name -> text, for placeholders.
``stages``
    Tool calls, see ``STAGE_KEYS``; by default training and scoring.
``columns``
    Of the table over rows: heading -> (JSON file, path of keys with dots between). In
    a list a key finds the entry whose ``'key'`` it is.
``summary``
    Name of the table's files in ``work_dir``, for recipes that share it.

Every run has a folder, ``work_dir/ROW/seed_N`` (``work_dir/seed_N`` without rows). All
texts may have placeholders: ``{run}`` is that folder, ``{seed}`` its seed, ``{config}``
and the names of ``configs`` are the run's configs, which are written there, and the
names of ``values`` are theirs.
"""

import copy
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from mmwsss.apis.config_files import merging, read_config_file
from mmwsss.apis.stages import Stage, in_order
from mmwsss.errors import InputError
from mmwsss.files import write_text

# Key of a stage -> what it is. Texts, or lists of texts.
STAGE_KEYS = {
    'name': 'shown to the user',
    'command': 'a tool (path from the repository) and its arguments; files .py among '
    'them are configs, whose content counts as an input',
    'needs': 'names of the stages before it; without it the one listed before',
    'inputs': 'files and folders whose content decides whether it must run again',
    'outputs': 'what it leaves behind',
    'resume': 'arguments added where it was begun and not finished',
    'stale': "what is removed before a start from scratch, in the run's folder",
}
DEFAULT_STAGES = (
    dict(
        name='train',
        command=['tools/train.py', '{config}', '--work-dir', '{run}/run'],
        outputs=['{run}/run/last_checkpoint'],
        resume=['--resume'],
        stale=['{run}/run/last_checkpoint'],
    ),
    dict(
        name='score',
        command=[
            *('tools/evaluate.py', '{config}', '{run}/run'),
            *('--out', '{run}/evaluation'),
        ],
        outputs=['{run}/evaluation/metrics.json'],
    ),
)
_METRICS = '{run}/evaluation/metrics.json'
DEFAULT_COLUMNS = {
    'Segmentor, val': (_METRICS, 'numbers.val/segmentor.miou'),
    'Pseudo-labels, train': (_METRICS, 'numbers.train/labels.miou'),
    'Refined, train': (_METRICS, 'numbers.train/refined.miou'),
    'Raw CAMs, train': (_METRICS, 'numbers.train/raw_cams.miou'),
}
# Kind of a value, and of what is in it; None where that may be anything.
_KINDS = {
    'work_dir': (str, None),
    'seeds': ((list, tuple), int),
    'config': (str, None),
    'common': (dict, None),
    'parts': (dict, dict),
    'rows': (dict, None),
    'configs': (dict, dict),
    'values': (dict, None),
    'stages': ((dict, list, tuple), dict),
    'columns': (dict, None),
    'summary': (str, None),
}
_PLACEHOLDER = re.compile(r'\{([A-Za-z_][A-Za-z0-9_]*)\}')
_PATH_KEYS = ('inputs', 'outputs', 'stale')
_OWN_NAMES = ('run', 'seed', 'config')


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe file says, see the top of this file.

    Attributes:
        path: The recipe file.
        work_dir: Receives a folder per run and the summary.
        seeds: Seeds of the runs.
        config: The config that all rows start from; None where no stage has one.
        common: Changes of the config that all rows share, a smaller budget, say.
        parts: Part name -> changes of the config.
        rows: Row name -> the parts it has, in order; a single nameless row is ''.
        configs: Name -> ``{'config', 'changes'}`` of the other configs of a run.
        values: Name -> text.
        stages: As written, with placeholders.
        columns: Heading -> JSON file and path of keys.
        summary: Name of the summary's files.
    """

    path: Path
    work_dir: Path
    seeds: Sequence[int]
    config: Path | None
    common: dict
    parts: Mapping[str, dict]
    rows: Mapping[str, Sequence[str]]
    configs: Mapping[str, dict]
    values: Mapping[str, str]
    stages: Sequence[dict]
    columns: Mapping[str, tuple[str, str]]
    summary: str

    def runs(self) -> dict[str, tuple[str, int]]:
        """Run name (also its folder) -> row and seed; seed by seed."""
        return {
            run_name(row, seed): (row, seed) for seed in self.seeds for row in self.rows
        }


def run_name(row: str, seed: int) -> str:
    """The folder of a run: the row's words and the seed."""
    if not row:
        return f'seed_{seed}'
    words = re.findall('[a-z0-9]+', row.lower())
    return f'{"_".join(words)}/seed_{seed}'


# ------------------------------------------------------------------------- the loading
def load_recipe(path: Path, *, root: Path) -> Recipe:
    """Read a recipe file and check it.

    Args:
        path: The file, a config of MMEngine's: it may have ``_base_``.
        root: The repository, where the tools are.

    Raises:
        InputError: Something is missing or does not fit.
    """
    if not path.is_file():
        raise InputError(f'the recipe {path} does not exist')
    content = _read(path).to_dict()
    if 'work_dir' not in content:
        raise InputError(f'the recipe {path} does not set work_dir')
    _check_kinds(content, path)
    config = content.get('config')
    stages = content.get('stages')
    recipe = Recipe(
        path=path,
        work_dir=Path(content['work_dir']),
        # One seed named twice is still one run.
        seeds=tuple(dict.fromkeys(content.get('seeds', [0]))),
        config=None if config is None else _from_root(config, root),
        common=content.get('common', {}),
        parts=content.get('parts', {}),
        rows=content.get('rows', {'': []}),
        configs=_configs_from_root(content.get('configs', {}), root),
        values=content.get('values', {}),
        stages=DEFAULT_STAGES if stages is None else _listed(stages, path),
        columns=content.get('columns', DEFAULT_COLUMNS if stages is None else {}),
        summary=content.get('summary', 'summary'),
    )
    _check_rows(recipe)
    _check_configs(recipe)
    _check_stages(recipe, root)
    _check_columns(recipe)
    return recipe


def _check_kinds(content: Mapping[str, object], path: Path) -> None:
    """Refuse values of another kind, down to where recipes say what is missing."""
    for name, (outer, inner) in _KINDS.items():
        value = content.get(name)
        # None is as good as nothing, where there is a default.
        if name in content and not (value is None and name in ('config', 'stages')):
            _check_kind(value, outer, inner, f'{name!r} in {path}')
            keys = list(value) if isinstance(value, Mapping) else []
            _check_kind(keys, list, str, f'a name among {name!r} in {path}')
    rows, parts = content.get('rows', {}), content.get('parts', {})
    for row, names in rows.items():
        _check_kind(names, (list, tuple), str, f'the row {row!r} in {path}')
    for name, part in {**parts, 'common': content.get('common', {})}.items():
        _check_kind(part.get('values', {}), dict, None, f'values of {name!r} in {path}')
    for name, entry in content.get('configs', {}).items():
        where = f'the config {name!r} in {path}'
        _check_kind(entry.get('config', ''), str, None, where)
        _check_kind(entry.get('changes', {}), dict, None, where)


def _check_kind(value: object, outer, inner, where: str) -> None:
    good = isinstance(value, outer)
    if good and inner is not None:
        inside = value.values() if isinstance(value, Mapping) else value
        good = all(isinstance(one, inner) for one in inside)
    if not good:
        kinds = outer if isinstance(outer, tuple) else (outer,)
        names = ' or '.join(kind.__name__ for kind in kinds)
        raise InputError(
            f'{where} is of another kind than expected ({names}): {value!r:.200}; '
            'compare it with a recipe in configs/recipes'
        )


def _from_root(file: str, root: Path) -> Path:
    """A config that a recipe names: here, or else where the tools are."""
    path = Path(file)
    return path if path.is_file() or not (root / path).is_file() else root / path


def _configs_from_root(configs: Mapping[str, dict], root: Path) -> dict[str, dict]:
    return {
        name: {**entry, 'config': str(_from_root(entry['config'], root))}
        if 'config' in entry
        else entry
        for name, entry in configs.items()
    }


def _listed(stages: object, path: Path) -> list[dict]:
    """Stages as a list, however they are written."""
    if isinstance(stages, Mapping):
        stages = [{'name': name, **stage} for name, stage in stages.items()]
    listed = []
    for stage in stages:
        name = stage.get('name')
        if not name or not isinstance(name, str):
            raise InputError(f'a stage of {path} has no name: {stage}')
        for key in stage:
            if key not in STAGE_KEYS:
                raise InputError(
                    f'the stage "{name}" of {path} sets {key!r}, but a stage has '
                    f'{", ".join(STAGE_KEYS)}'
                )
        if not stage.get('command'):
            raise InputError(f'the stage "{name}" of {path} has no command')
        for key, value in stage.items():
            if not isinstance(value, str):
                where = f'{key} of the stage "{name}" of {path}'
                # Numbers are arguments as well.
                inner = (str, int, float) if key == 'command' else str
                _check_kind(value, (list, tuple), inner, where)
        lists = {
            key: [value] if isinstance(value, str) else list(value)
            for key, value in stage.items()
            if key != 'name'
        }
        listed.append({'name': name, **lists})
    if not listed:
        raise InputError(f'{path} has no stages')
    return listed


def _check_rows(recipe: Recipe) -> None:
    path, rows = recipe.path, recipe.rows
    for row, names in rows.items():
        unknown = [name for name in names if name not in recipe.parts]
        if unknown:
            raise InputError(
                f'row {row!r} of {path} has the part {unknown[0]!r}, but the parts '
                f'are {sorted(recipe.parts)}'
            )
    slugs = [run_name(row, 0) for row in rows]
    if len(set(slugs)) < len(slugs):
        raise InputError(f'two rows of {path} differ in signs only: {list(rows)}')
    if '/seed_0' in slugs:
        raise InputError(
            f'a row of {path} has no letter from a to z and no digit in its name, so '
            f'its runs have no folder: {list(rows)}'
        )
    if not rows or not recipe.seeds:
        raise InputError(f'{path} has no runs: give it rows and seeds')


def _check_configs(recipe: Recipe) -> None:
    path = recipe.path
    changed = recipe.common or recipe.parts
    if recipe.config is None and (changed or recipe.stages is DEFAULT_STAGES):
        raise InputError(f'the recipe {path} does not set config')
    files = [] if recipe.config is None else [recipe.config]
    for name, entry in recipe.configs.items():
        if not {'config'} <= set(entry) <= {'config', 'changes'}:
            raise InputError(
                f'{name!r} in the configs of {path} must be dict(config=FILE, '
                f'changes=dict(...)), it has {sorted(entry)}'
            )
        files.append(Path(entry['config']))
    for file in files:
        if not file.is_file():
            raise InputError(f'{path} starts from {file}, which does not exist')
    names = [*_OWN_NAMES, *recipe.configs]
    for name in (*recipe.configs, *recipe.values):
        if names.count(name) + (name in recipe.values) > 1:
            raise InputError(
                f'{name!r} in {path} stands for two things; the placeholders '
                f'{", ".join(_OWN_NAMES)}, those of configs and those of values must '
                'differ'
            )
        if not _PLACEHOLDER.fullmatch(f'{{{name}}}'):
            raise InputError(
                f'{name!r} in {path} is no name for a placeholder; write letters, '
                'digits and _'
            )


def _check_stages(recipe: Recipe, root: Path) -> None:
    for stage in recipe.stages:
        tool = root / str(stage['command'][0])
        if not tool.is_file() or tool.suffix != '.py':
            raise InputError(
                f'the stage "{stage["name"]}" of {recipe.path} calls {tool}, which is '
                'no Python file'
            )
    # Finds what is wrong with placeholders, names and needs.
    for run in recipe.runs():
        in_order(stages_of(recipe, run, root=root, configs={}))


def check_stage_names(recipe: Recipe, names: Sequence[str | None]) -> None:
    """Raise InputError for a stage that the recipe has not; None is no name."""
    known = [stage['name'] for stage in recipe.stages]
    for name in names:
        if name is not None and name not in known:
            hint = f'; for that run write --run {name}' if name in recipe.runs() else ''
            raise InputError(
                f'{recipe.path} has no stage "{name}"; its stages are '
                f'{", ".join(known)}{hint}'
            )


def _check_columns(recipe: Recipe) -> None:
    for heading, column in recipe.columns.items():
        pair = isinstance(column, list | tuple) and len(column) == 2
        if not pair or not all(isinstance(part, str) for part in column):
            raise InputError(
                f'the column {heading!r} of {recipe.path} must be (JSON file, keys '
                f'with dots between), got {column!r}'
            )


# --------------------------------------------------------------------- placeholders
def placeholders(recipe: Recipe, run: str) -> dict[str, str]:
    """What the placeholders of a run stand for."""
    if run not in recipe.runs():
        raise InputError(f'{run!r} is none of the runs {list(recipe.runs())}')
    row, seed = recipe.runs()[run]
    folder = recipe.work_dir / run
    known = {'run': str(folder), 'seed': str(seed), **_row_values(recipe, row)}
    if recipe.config is not None:
        known['config'] = str(folder / 'config.py')
    return known | {name: str(folder / f'{name}.py') for name in recipe.configs}


def _row_values(recipe: Recipe, row: str) -> dict[str, str]:
    values = dict(recipe.values)
    for part in (recipe.common, *(recipe.parts[name] for name in recipe.rows[row])):
        for name, value in part.get('values', {}).items():
            if name not in values:
                raise InputError(
                    f'row {row!r} of {recipe.path} sets the value {name!r}, which '
                    f'is none of the values {sorted(recipe.values)}'
                )
            values[name] = value
    return {name: str(value) for name, value in values.items()}


def filled(content: object, known: Mapping[str, str], where: str) -> object:
    """Replace ``{name}`` in all texts of nested lists and dicts.

    Raises:
        InputError: A name is unknown; says where.
    """

    def value(match: re.Match) -> str:
        if match[1] not in known:
            raise InputError(
                f'{where} has the placeholder {match[0]}, but those are '
                f'{", ".join(sorted(known))}'
            )
        return known[match[1]]

    if isinstance(content, str):
        return _PLACEHOLDER.sub(value, content)
    if isinstance(content, Mapping):
        return {key: filled(inner, known, where) for key, inner in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(filled(inner, known, where) for inner in content)
    return content


# ------------------------------------------------------------------ configs of a run
def _read(path: Path) -> Config:
    # Nothing is built here, so what the models import is not needed.
    return read_config_file(path, imports=False)


def run_configs(recipe: Recipe, run: str) -> dict[Path, Config]:
    """The configs of one run by the file that each is to be written to."""
    known = placeholders(recipe, run)
    row, seed = recipe.runs()[run]
    configs = {}
    if recipe.config is not None:
        changes = [recipe.common, *(recipe.parts[p] for p in recipe.rows[row])]
        config = _merged(recipe.config, changes, known, f'a part of {recipe.path}')
        configs[Path(known['config'])] = config
    for name, entry in recipe.configs.items():
        changes = [entry.get('changes', {})]
        where = f'the config {name!r} of {recipe.path}'
        configs[Path(known[name])] = _merged(
            Path(entry['config']), changes, known, where
        )
    for config in configs.values():
        with merging(config, 'randomness.seed'):
            config.merge_from_dict({'randomness.seed': seed})
    return configs


def _merged(
    file: Path, changes: Sequence[dict], known: Mapping[str, str], where: str
) -> Config:
    config = _read(file)
    # Merging takes _delete_ out of what it merges.
    for part in copy.deepcopy(list(changes)):
        part = filled(part, known, where)
        with merging(config, where):
            _merge(config, part)
    return config


def _merge(config: Config, part: dict) -> None:
    # Merging would replace the list, and with it the hooks that the config has.
    config.custom_hooks = [
        *config.get('custom_hooks', []),
        *part.pop('add_hooks', []),
    ]
    part.pop('values', None)
    config.merge_from_dict(part)
    _clean(config)


def _clean(content: object) -> None:
    """Take out ``_delete_``, which MMEngine leaves where there was nothing before."""
    if isinstance(content, Config | dict):
        content.pop('_delete_', None)
        content = content.values()
    for inner in content if not isinstance(content, str) else ():
        if isinstance(inner, Config | dict | list | tuple):
            _clean(inner)


def write_configs(configs: Mapping[Path, Config]) -> None:
    """Write those that are not there as they are to be."""
    for path, config in configs.items():
        if not path.is_file() or path.read_text() != config.pretty_text:
            write_text(path, config.pretty_text)


# -------------------------------------------------------------------- stages of a run
def stages_of(
    recipe: Recipe, run: str, *, root: Path, configs: Mapping[Path, Config]
) -> list[Stage]:
    """The stages of one run, placeholders filled in.

    Args:
        recipe: The recipe.
        run: Name of the run.
        root: The repository, where the tools are.
        configs: Of ``run_configs``.
    """
    known = placeholders(recipe, run)
    return [
        _stage(
            stage,
            filled(stage, known, f'the stage "{stage["name"]}" of {recipe.path}'),
            folder=recipe.work_dir / run,
            root=root,
            configs=configs,
            lock=recipe.work_dir / '.shared.lock',
        )
        for stage in recipe.stages
    ]


def _stage(
    written: Mapping,
    content: Mapping,
    *,
    folder: Path,
    root: Path,
    configs: Mapping[Path, Config],
    lock: Path,
) -> Stage:
    tool, *arguments = content['command']
    files = {key: [Path(p) for p in content.get(key, ())] for key in _PATH_KEYS}
    outside = [path for path in files['stale'] if not _inside(path, folder)]
    if outside:
        raise InputError(
            f'the stage "{content["name"]}" would remove {outside[0]}, which is not in '
            f"its run's folder {folder}; begin the paths of stale with {{run}}/"
        )
    shares = any(not _inside(path, folder) for path in files['outputs'])
    return Stage(
        name=written['name'],
        command=[sys.executable, str(root / tool), *map(str, arguments)],
        needs=content.get('needs'),
        settings=_settings(arguments, configs),
        resume=content.get('resume', ()),
        # Runs that share an output make it one after the other.
        lock=lock if shares else None,
        **files,
    )


def _inside(path: Path, folder: Path) -> bool:
    # Without the folder itself.
    return Path(os.path.abspath(folder)) in Path(os.path.abspath(path)).parents


def _settings(
    arguments: Sequence[str], configs: Mapping[Path, Config]
) -> dict[str, str]:
    """Content of the configs among a tool's arguments, those in a refiner's too."""
    texts = ' '.join(map(str, arguments))
    found = {
        str(path): config for path, config in configs.items() if str(path) in texts
    }
    for word in map(str, arguments):
        if word.endswith('.py') and word not in found and Path(word).is_file():
            found[word] = _read(Path(word))
    return {name: repr(config.to_dict()) for name, config in found.items()}
