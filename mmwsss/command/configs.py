"""``mmwsss configs``: what is found by name."""

from pathlib import Path

import click

from mmwsss.command.common import verb
from mmwsss.command.found import RECIPES, known_configs


@verb('configs', example='mmwsss configs msrc')
@click.argument('words', nargs=-1)
def command(words: tuple[str, ...]) -> int:
    """List configs and recipes whose names contain all WORDS, with their first line."""
    number = 0
    for folder, head in (('', 'configs'), (RECIPES, 'recipes (mmwsss recipe NAME)')):
        known = known_configs(folder=folder)
        found = [name for name in known if all(word in name for word in words)]
        if not found:
            continue
        print(f'{head}:')
        width = max(map(len, found))
        for name in found:
            print(f'  {name:<{width}}  {_first_line(known[name])}')
        number += len(found)
    print(f'{number} found')
    return 0 if number else 1


def _first_line(path: Path) -> str:
    """The first sentence of the comment at the top of a config, cut to one line."""
    lines = []
    for line in path.read_text(encoding='utf-8').splitlines():
        if not line.startswith('#'):
            break
        lines.append(line.lstrip('# '))
    sentence = ' '.join(lines).partition('. ')[0].split(': ')[0].rstrip('.:')
    return sentence if len(sentence) <= 80 else f'{sentence[:77]}...'
