"""Writes docs/models.md from the metafiles:  python docs/make_models.py."""

from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'models.md'
HEAD = """# Models

<!-- Made by docs/make_models.py from configs/metafile.yml; edit that file. -->

Every config, what it learns from, and what was measured. The last two columns are empty
where nothing was. Percent mIoU, or what the policy says; mean and standard deviation
over the seeds. How the figures were made, and on what machine, stands in the
[results](results.md). No checkpoint is offered for download.

*Learns from*: image labels are tags; IR labels and pseudo-labels are label maps of
`tools/make_pseudo_labels.py`; CAM stores are made by `tools/make_cams.py`.
*Pretrained*: weights that a network starts from, or that stay frozen.
"""

RECIPES_HEAD = """## Recipes

A recipe runs the stages of a method for one or several rows and seeds:
`python tools/run_recipe.py configs/recipes/NAME.py`, or `mmwsss recipe NAME`.
"""


def read_metafiles(index: Path = ROOT / 'model-index.yml') -> tuple[list, list]:
    """Collections and models of all metafiles that the index names."""
    collections, models = [], []
    for name in yaml.safe_load(index.read_text())['Import']:
        content = yaml.safe_load((index.parent / name).read_text())
        collections += content['Collections']
        models += content['Models']
    return collections, models


def render(collections: list[Mapping], models: list[Mapping]) -> str:
    """The page."""
    parts = [HEAD]
    for collection in collections:
        own = [m for m in models if m['In Collection'] == collection['Name']]
        parts.append('\n'.join(_section(collection, own)))
    parts.append('\n'.join(_recipes()))
    return '\n'.join(parts)


def _recipes() -> Iterator[str]:
    """What the comments at the top of the recipes say."""
    yield RECIPES_HEAD
    yield '| recipe | what it does |'
    yield '|---|---|'
    for path in sorted((ROOT / 'configs' / 'recipes').glob('*.py')):
        lines = takewhile(lambda line: line[:1] == '#', path.read_text().splitlines())
        comment = ' '.join(line.lstrip('# ') for line in lines)
        sentence = comment.partition('. ')[0].partition(': python')[0].rstrip('.')
        yield f'| `{path.stem}` | {sentence} |'
    yield ''


def _section(collection: Mapping, models: list[Mapping]) -> Iterator[str]:
    page = Path(collection['README']).relative_to('docs').as_posix()
    yield f'## {collection["Name"]}\n'
    yield f'{collection["Paper"]["Title"]}; see [the page]({page}).\n'
    yield '| config | data | learns from | pretrained | figure | policy |'
    yield '|---|---|---|---|---|---|'
    commands: dict[str, list[str]] = {}
    for model in models:
        about = model['Metadata']
        cells = [f'`{model["Name"]}`']
        cells += [about[k] for k in ('Training Data', 'Learns From', 'Pretrained')]
        results = model.get('Results') or [None]
        for result in results:
            yield f'| {" | ".join([*cells, *_figure(result)])} |'
            if result:
                commands.setdefault(result['Command'], []).append(model['Name'])
    yield ''
    if commands:
        yield 'Made by:\n\n```bash'
        for command, names in commands.items():
            yield f'# {", ".join(names)}\n{command}'
        yield '```\n'


def _figure(result: Mapping | None) -> tuple[str, str]:
    if result is None:
        return '', ''
    (value, spread) = result['Metrics'].values()
    return f'{value} ± {spread}', result['Policy']


if __name__ == '__main__':
    PAGE.write_text(render(*read_metafiles()), encoding='utf-8')
    print(f'written: {PAGE}')
