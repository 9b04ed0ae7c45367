"""Labelling of very many photos with a network that costs nothing.

What it shows does not depend on the network: that memory does not grow with the number
of photos, what a run costs that goes on after a kill, and one that finds all done.
The photos are hard links to a few drawn ones, under names of their own; the network,
the ``ColourSegmentor`` of tests/fake_inference.py, looks at colours.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from mmwsss.apis.benchmark.case import CHECKOUT, TESTS
from mmwsss.apis.benchmark.report import machine
from mmwsss.datasets.image_labels import load_image_labels, save_image_labels
from mmwsss.errors import InputError
from mmwsss.files import write_json

_PER_FOLDER = 1000


def labelling_command() -> int:
    """Parse the command line, measure, print the table, write the JSON.

    Returns:
        0, or 1 where photos were lost or made twice.
    """
    parser = argparse.ArgumentParser(
        description='Label many generated photos with a network that costs nothing: '
        'memory at a tenth, half and all of them, a kill in the middle, the run that '
        'goes on, and one that finds everything done. Needs a checkout, and about '
        '10 kB of disk per photo.'
    )
    parser.add_argument(
        '--photos', type=int, default=100_000, help='default: %(default)s'
    )
    parser.add_argument(
        '--dir', type=Path, help='where to write, and remove (default: the system)'
    )
    parser.add_argument('--json', type=Path, help='write the numbers to this file too')
    args = parser.parse_args()
    if args.photos < 20:
        raise InputError(f'--photos must be 20 or more, got {args.photos}')
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        result = measure_labelling(Path(folder), args.photos)
    print(markdown(result))
    if args.json:
        write_json(args.json, {'machine': machine('cpu'), **result})
    return int(result['lost'] != 0)


def measure_labelling(folder: Path, number: int) -> dict:
    """Label, be killed half way, go on, find everything done.

    Args:
        folder: Empty; receives photos and masks.
        number: Photos.

    Returns:
        ``photos``; ``memory``, photos -> MB of resident memory when so many were
        labelled; of ``first`` (until it was killed), ``second`` and ``third`` run
        ``made``, ``there``, ``seconds`` and ``seconds_to_first``, from the beginning
        of the work to the first new mask; ``lost``, photos without a mask at the end.
    """
    given = _draw(folder, number)
    stops = [number // 10, number // 2]
    runs, memory = {}, {}
    for name, kill_at in (('first', stops[-1]), ('second', None), ('third', None)):
        runs[name] = _run([*map(str, given), *map(str, stops)], kill_at)
        for photos, megabytes in runs[name].pop('memory').items():
            memory.setdefault(photos, megabytes)
    masks = sum(1 for _ in (given[-1] / 'SegmentationClass').rglob('*.png'))
    return {'photos': number, 'memory': memory, **runs, 'lost': number - masks}


def _draw(folder: Path, number: int) -> tuple[Path, ...]:
    """Config, checkpoint, photos, their image labels, and where masks will be."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    from fake_inference import write

    root, config, checkpoint = write(folder)
    few = load_image_labels(root / 'image_labels.json')
    files = sorted((root / 'JPEGImages').iterdir())
    photos, labels = folder / 'photos', {}
    for place in range(number):
        group = photos / f'{place // _PER_FOLDER:04d}'
        group.mkdir(parents=True, exist_ok=True)
        file = files[place % len(files)]
        os.link(file, group / f'{place:07d}{file.suffix}')
        names = [few.classes[k] for k in few.labels[file.stem]]
        labels[f'{group.name}/{place:07d}'] = names
    tags = folder / 'tags.json'
    save_image_labels(tags, few.classes, labels)
    return config, checkpoint, photos, tags, folder / 'masks'


def _run(words: Sequence[str], kill_at: int | None) -> dict:
    """A run in a process of its own; what it says, also if it is killed."""
    path = os.pathsep.join([str(CHECKOUT), str(TESTS)])
    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-m', __name__, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': path},
    )
    said = {'memory': {}}
    with process:
        for line in process.stdout:
            if not line.startswith('{'):
                continue  # what the mm packages print
            entry = json.loads(line)
            said['memory'].update(entry.pop('memory'))
            said.update(entry)
            if kill_at is not None and entry['made'] >= kill_at:
                process.kill()
                break
    if kill_at is None and process.returncode:
        raise RuntimeError(f'labelling ended with {process.returncode}')
    return said


def markdown(result: dict) -> str:
    """Two tables for people."""
    photos = [int(n) for n in result['memory']]
    memory = [f'{megabytes:.0f}' for megabytes in result['memory'].values()]
    lines = [
        f'| photos labelled | {" | ".join(f"{n:,}" for n in photos)} |',
        f'|---|{"---|" * len(photos)}',
        f'| resident memory, MB | {" | ".join(memory)} |',
        '',
        '| run | made | there already | first new mask after, s | seconds |',
        '|---|---|---|---|---|',
    ]
    names = {
        'first': 'first, killed (SIGKILL)',
        'second': 'the same command again',
        'third': 'and again',
    }
    for name, title in names.items():
        run = result[name]
        first = run['seconds_to_first']
        shown = '' if first is None else f'{first:.1f}'
        there = f'{run["there"]:,}' if 'there' in run else ''
        lines.append(
            f'| {title} | {run["made"]:,} | {there} | {shown} | {run["seconds"]:.1f} |'
        )
    lines += ['', f'{result["lost"]} photos without a mask']
    return '\n'.join(lines)


# ------------------------------------------------------------------- in a process
def _label(words: Sequence[str]) -> None:
    """Label, and say how far it is and how large the process has become."""
    from mmwsss.apis.label import Labelling, LabellingOptions, tags_from

    config, checkpoint, photos, tags, out = map(Path, words[:5])
    stops = [int(word) for word in words[5:]]
    options = LabellingOptions(
        photos=photos, out=out, config=config, checkpoint=checkpoint, overlays=False
    )
    labelling = Labelling(options, tags_from(tags, photos))
    begin = time.monotonic()
    for entry in _progress(labelling, stops):
        entry['seconds'] = round(time.monotonic() - begin, 2)
        print(json.dumps(entry), flush=True)


def _progress(labelling, stops: Sequence[int]) -> Iterator[dict]:
    begin, made, first = time.monotonic(), 0, None
    for made, _ in enumerate(labelling.run(), start=1):
        if made == 1:
            first = round(time.monotonic() - begin, 2)
        done = made + labelling.there
        if done in stops:
            yield {
                'made': made,
                'seconds_to_first': first,
                'memory': {str(done): _megabytes()},
            }
    memory = {str(made + labelling.there): _megabytes()} if made else {}
    yield {
        'made': made,
        'there': labelling.there,
        'seconds_to_first': first,
        'memory': memory,
    }


def _megabytes() -> float:
    return round(psutil.Process().memory_info().rss / 1e6, 1)


if __name__ == '__main__':
    _label(sys.argv[1:])
