"""Label Studio: the export "JSON", brush strokes or polygons, one per region.

Written are predictions, which an annotator takes over and corrects. Read are the
annotations, and the predictions of a task that nobody has worked on.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from mmwsss.apis.tags.label_studio import photo_names, task_place, valid_annotations
from mmwsss.errors import InputError
from mmwsss.files import read_json, write_json, write_text

from .cvat import label_colors
from .runs import brush_bytes, from_brush_bytes
from .shapes import Drawn, Painted, Region, checked_size, polygon_pixels

FILE = 'tasks.json'
CONFIG = 'labeling_config.xml'
_KINDS = {
    False: ('brushlabels', 'BrushLabels'),
    True: ('polygonlabels', 'PolygonLabels'),
}


class Writer:
    """Collects photos and writes the tasks and the labelling config.

    Args:
        out: Folder.
        classes: Names of all labels.
        polygons: Polygons instead of brush strokes.
        tolerance: Of polygons, in pixels.
        prefix: In front of the photos' paths, as ``/data/local-files/?d=photos/``.
    """

    def __init__(
        self,
        out: Path,
        classes: Sequence[str],
        *,
        polygons: bool,
        tolerance: float,
        prefix: str,
    ) -> None:
        self.out, self.prefix, self.tolerance = out, prefix, tolerance
        self.polygons = polygons
        self.kind, element = _KINDS[polygons]
        self.config = [
            '<View>',
            '  <Image name="image" value="$image" zoom="true"/>',
            f'  <{element} name="label" toName="image">',
            *(
                f'    <Label value={quoteattr(name)} background="{color}"/>'
                for name, color in label_colors(classes).items()
            ),
            f'  </{element}>',
            '</View>',
            '',
        ]
        self.tasks: list[dict] = []

    def add(self, drawn: Drawn) -> None:
        """Add a photo, also one with no region."""
        results = [
            self._result(region, drawn.size, f'{drawn.id}-{number}')
            for number, region in enumerate(drawn.regions)
        ]
        scores = [r.score for r in drawn.regions if r.score is not None]
        prediction = {'model_version': 'mmwsss', 'result': results}
        if scores:
            prediction['score'] = round(float(np.mean(scores)), 4)
        self.tasks.append(
            {
                'data': {'image': f'{self.prefix}{drawn.file}'},
                'predictions': [prediction],
            }
        )

    def _result(self, region: Region, size: tuple[int, int], name: str) -> dict:
        height, width = size
        if self.polygons:
            corners = region.polygon(self.tolerance) * (100 / width, 100 / height)
            value = {'points': corners.tolist(), 'closed': True}
        else:
            value = {'format': 'rle', 'rle': brush_bytes(region.whole(size))}
        result = {
            'id': name,
            'type': self.kind,
            'from_name': 'label',
            'to_name': 'image',
            'original_width': width,
            'original_height': height,
            'image_rotation': 0,
            'value': {**value, self.kind: [region.label]},
        }
        return result if region.score is None else {**result, 'score': region.score}

    def close(self) -> None:
        """Write both files."""
        write_json(self.out / FILE, self.tasks)
        write_text(self.out / CONFIG, '\n'.join(self.config))


def read(source: Path) -> Iterator[Painted]:
    """What the last annotation of each task says; later regions lie above.

    A task without a region is left out: the file does not say how large its photo is.

    Raises:
        InputError: Anything malformed.
    """
    path = source / FILE if source.is_dir() else source
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise InputError(f'{path} is no list of tasks; export as JSON')
    for position, task in enumerate(tasks, start=1):
        where = task_place(task, position, path)
        found = valid_annotations(task, where)[-1:]
        if not task.get('annotations'):
            predictions = task.get('predictions') or []
            if not isinstance(predictions, list):
                raise InputError(f'{where}: "predictions" must be a list; export again')
            found = [
                one
                for one in predictions[-1:]
                if isinstance(one, dict) and isinstance(one.get('result'), list)
            ]
        shapes = [s for one in found for s in one['result'] if _is_shape(s)]
        if not shapes:
            continue
        size = checked_size(
            shapes[0].get('original_height'), shapes[0].get('original_width'), where
        )
        yield Painted(
            names=photo_names(task['data'], where),
            size=size,
            layers=[_layer(shape, size, where) for shape in shapes],
            where=where,
        )


def _is_shape(result: object) -> bool:
    # Choices and texts say nothing about pixels.
    return isinstance(result, dict) and str(result.get('type')).endswith('labels')


def _layer(shape: dict, size: tuple[int, int], where: str) -> tuple[str, np.ndarray]:
    kind, value = shape['type'], shape.get('value')
    names = value.get(kind) if isinstance(value, dict) else None
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise InputError(f'a region of {where} has not one label but {names!r}')
    if kind == 'brushlabels':
        try:
            return names[0], from_brush_bytes(value.get('rle'), size)
        except (TypeError, ValueError) as error:
            raise InputError(f'a brush of {where} is damaged: {error}') from None
    try:
        points = _points(kind, value)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f'a region of {where} cannot be read: {error}') from None
    corners = points * (size[1] / 100, size[0] / 100)
    return names[0], polygon_pixels([corners], size, where)


def _points(kind: str, value: dict) -> np.ndarray:
    """Corners (N, 2) in percent of width and height."""
    if kind == 'polygonlabels':
        return np.asarray(value['points'], dtype=np.float64).reshape(-1, 2)
    if kind == 'rectanglelabels' and not value.get('rotation'):
        left, top = float(value['x']), float(value['y'])
        right, bottom = left + float(value['width']), top + float(value['height'])
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    raise ValueError('draw with brush, polygons or boxes that are not turned')
