"""The photos of a report: one card for each, with the pictures of every run."""

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mmwsss.errors import InputError, tool
from mmwsss.visualization.colors import voc_palette
from mmwsss.visualization.report_runs import SPLIT_TITLES, Group, Run

TILE_SIDE_PX = 360
MAX_PHOTOS = 60
# What an annotator corrects first: a network's mistakes on photos it has not seen,
# and those in the labels that it learned from.
_JUDGED_BY = {'val': 'prediction', 'train': 'refined'}
_JUDGED_TITLES = {'prediction': 'segmentor', 'refined': 'refined label'}
_SHOWN_FIRST = {'val': 'prediction', 'train': 'label'}
_NAMES = {
    'photo': 'Photo',
    'cam': 'CAM',
    'refined': 'Refined',
    'label': 'Pseudo label',
    'reliability': 'Reliability',
    'prediction': 'Segmentor',
    'target': 'Truth',
}


def gallery(groups: Sequence[Group], *, max_photos: int) -> dict:
    """Cards of the photos that all runs have drawn, the worst first.

    Args:
        groups: All runs of the page.
        max_photos: Photos shown of each set, shared by the runs: a page of eight runs
            weighs as much as one of a single run.

    Returns:
        ``sets``, ``classes`` (name, colour, number of photos), ``steps`` (kind ->
        title), all in the order in which they are shown; {} without pictures.

    Raises:
        InputError: A picture is missing or broken.
    """
    runs = [run for group in groups for run in group.runs if run.metrics]
    names = [name for group in groups for name in group.run_names()]
    drawn = [name for group in groups for name in _with_metrics(group)]
    if not runs:
        return {}
    classes = list(dict.fromkeys(c for run in runs for c in run.metrics['classes']))
    limit = max(max_photos // len(runs), min(max_photos, 4))
    sets = [_set(split, runs, drawn, classes, limit) for split in ('val', 'train')]
    sets = [entry for entry in sets if entry['cards'] or entry['not_common']]
    if not any(entry['cards'] for entry in sets):
        return {}
    cards = [card for entry in sets for card in entry['cards']]
    found = {t['kind'] for c in cards for view in c['views'] for t in view['tiles']}
    palette = runs[0].metrics.get('palette', [])
    return {
        'sets': sets,
        'classes': [
            {
                'index': i,
                'name': name,
                'color': _hex(voc_palette() if palette is None else palette, i),
                'photos': sum(i in card['indices'] for card in cards),
            }
            for i, name in enumerate(classes)
            if any(i in card['indices'] for card in cards)
        ],
        'steps': {kind: name for kind, name in _NAMES.items() if kind in found},
        'runs': len(runs),
        'columns': _columns(len(runs)),
        'missing': [name for name in names if name not in drawn],
    }


def _columns(num_views: int) -> int:
    """Up to four side by side, in rows as even as can be."""
    rows = -(-num_views // 4)
    return -(-num_views // rows)


def _with_metrics(group: Group) -> list[str]:
    named = zip(group.runs, group.run_names(), strict=True)
    return [name for run, name in named if run.metrics]


def _hex(palette: Sequence, index: int) -> str | None:
    if index >= len(palette):
        return None
    return '#' + ''.join(f'{int(part):02x}' for part in palette[index])


def _set(
    split: str, runs: Sequence[Run], names: Sequence[str], classes: list, limit: int
) -> dict:
    by_id = [
        {p['id']: p for p in run.metrics.get('pictures', {}).get(split) or ()}
        for run in runs
    ]
    everywhere = [i for i in by_id[0] if all(i in own for own in by_id)]
    anywhere = {i for own in by_id for i in own}
    judged = _JUDGED_BY[split]
    scores = {
        i: _mean([own[i]['iou'].get(judged) for own in by_id]) for i in everywhere
    }
    # Photos without a mask have no score and come last.
    order = sorted(everywhere, key=lambda i: (scores[i] is None, scores[i] or 0.0, i))
    shown = order[:limit]
    return {
        'split': split,
        'title': SPLIT_TITLES[split],
        'first': _SHOWN_FIRST[split],
        'judged': _JUDGED_TITLES[judged],
        'worst': any('fixed' in own[i] for own in by_id for i in own),
        'cards': [
            _card(i, [own[i] for own in by_id], runs, names, classes, scores[i])
            for i in shown
        ],
        'common': len(order),
        'not_common': len(anywhere) - len(everywhere),
        'photos': max(run.metrics['photos'].get(split, 0) for run in runs),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _card(
    photo_id: str,
    pictures: Sequence[dict],
    runs: Sequence[Run],
    names: Sequence[str],
    classes: list[str],
    score: float | None,
) -> dict:
    views, seen = [], set()
    for picture, run, name in zip(pictures, runs, names, strict=True):
        tiles = []
        for tile in picture['tiles']:
            path = run.result_dir / tile['file']
            kind, step = _kind(path), path.stem
            content = _read(path)
            # The photo and its mask are the same for all runs: the page holds them
            # once and the script hands them on.
            digest = (step, hashlib.sha256(content).digest())
            tiles.append({'kind': kind, 'step': step, 'title': tile['title']})
            if digest not in seen:
                tiles[-1] |= _inline(content, path)
            seen.add(digest)
        views.append({'run': name, 'tiles': tiles, 'iou': picture['iou']})
    # The pictures of a photo have one shape, which keeps upright ones from towering.
    sizes = [t for view in views for t in view['tiles'] if 'width' in t]
    ratio = sizes[0]['width'] / sizes[0]['height'] if sizes else 1.0
    first = pictures[0]
    return {
        'id': photo_id,
        'classes': first['classes'],
        'indices': [classes.index(name) for name in first['classes']],
        'score': score,
        'ratio': ratio,
        'views': views,
        'steps': _steps(views),
    }


def _steps(views: Sequence[dict]) -> list[dict]:
    """What can be shown of a photo, in the order of the way it went."""
    tiles = {tile['step']: tile for view in views for tile in view['tiles']}
    order = list(_NAMES)
    return sorted(tiles.values(), key=lambda tile: order.index(tile['kind']))


def _kind(path: Path) -> str:
    kind = path.stem.split('_')[0]
    if kind not in _NAMES:
        raise InputError(
            f'{path} is no picture of {tool("evaluate")}, which names them '
            f'{", ".join(_NAMES)}; run it again'
        )
    return kind


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise _broken(path) from None


def _broken(path: Path) -> InputError:
    return InputError(
        f'the picture {path} is missing or broken; run {tool("evaluate")} again'
    )


def _inline(content: bytes, path: Path) -> dict:
    try:
        with Image.open(io.BytesIO(content)) as image:
            picture = image.convert('RGB')
    except OSError:
        raise _broken(path) from None
    picture.thumbnail((TILE_SIDE_PX, TILE_SIDE_PX))
    stream = io.BytesIO()
    picture.save(stream, format='WEBP', quality=80, method=4)
    text = base64.b64encode(stream.getvalue()).decode()
    return {
        'source': f'data:image/webp;base64,{text}',
        'width': picture.width,
        'height': picture.height,
    }
