"""COCO instances JSON: one annotation per connected region.

Runs (RLE) hold any region exactly. Polygons follow the edges of pixels, so they do as
well; COCO knows no holes, which are therefore joined to their outline by a slit.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmwsss.errors import InputError
from mmwsss.files import read_json, write_json

from .runs import coco_counts, from_coco_counts
from .shapes import Drawn, Painted, Region, checked_size, polygon_pixels

FILE = 'instances.json'


class Writer:
    """Collects photos and writes one file.

    Args:
        out: Folder.
        classes: Names of all labels, in the order of the category ids from 1.
        polygons: Polygons instead of runs.
        tolerance: Of polygons, in pixels.
    """

    def __init__(
        self, out: Path, classes: Sequence[str], *, polygons: bool, tolerance: float
    ) -> None:
        self.path = out / FILE
        self.polygons, self.tolerance = polygons, tolerance
        self.ids = {name: k for k, name in enumerate(classes, 1)}
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add(self, drawn: Drawn) -> None:
        """Add a photo, also one with no region."""
        height, width = drawn.size
        image_id = len(self.images) + 1
        self.images.append(
            {'id': image_id, 'file_name': drawn.file, 'height': height, 'width': width}
        )
        for region in drawn.regions:
            self.annotations.append(
                {
                    'id': len(self.annotations) + 1,
                    'image_id': image_id,
                    'category_id': self.ids[region.label],
                    'segmentation': self._segmentation(region, drawn.size),
                    'area': region.area,
                    'bbox': list(region.box),
                    'iscrowd': 0,
                }
            )

    def _segmentation(self, region: Region, size: tuple[int, int]) -> object:
        if self.polygons:
            return [region.polygon(self.tolerance).ravel().tolist()]
        return {'size': list(size), 'counts': coco_counts(region.whole(size))}

    def close(self) -> None:
        """Write the file."""
        categories = [{'id': k, 'name': n} for n, k in self.ids.items()]
        write_json(
            self.path,
            {
                'images': self.images,
                'annotations': self.annotations,
                'categories': categories,
            },
        )


def read(source: Path) -> Iterator[Painted]:
    """What a file says about each image; smaller regions lie above larger ones.

    Raises:
        InputError: Anything malformed.
    """
    path = source / FILE if source.is_dir() else source
    content = read_json(path)
    try:
        names = {c['id']: str(c['name']) for c in content['categories']}
        images = {i['id']: i for i in content['images']}
        annotations = list(content['annotations'])
        of_image = defaultdict(list)
        for annotation in annotations:
            if annotation['image_id'] not in images:
                raise KeyError(f'image {annotation["image_id"]}')
            of_image[annotation['image_id']].append(annotation)
    except (KeyError, TypeError) as error:
        raise InputError(
            f'{path} is no COCO instances JSON ({error} is missing); export it again'
        ) from None
    for image_id, image in images.items():
        where = f'image {image_id} of {path}'
        size = checked_size(image.get('height'), image.get('width'), where)
        layers = []
        for annotation in of_image[image_id]:
            # A list, say, cannot even be looked for.
            if annotation.get('category_id') not in list(names):
                raise InputError(
                    f'an annotation of {where} has the category '
                    f'{annotation.get("category_id")!r}, which the file does not name'
                )
            pixels = _pixels(annotation.get('segmentation'), size, where)
            layers.append((names[annotation['category_id']], pixels))
        # COCO has no order; what is small would vanish under what is large.
        layers.sort(key=lambda layer: -layer[1].sum())
        name = image.get('file_name')
        if not isinstance(name, str) or not name:
            raise InputError(f'{where} has no file_name; export it again')
        yield Painted(names=(name,), size=size, layers=layers, where=where)


def _pixels(segmentation: object, size: tuple[int, int], where: str) -> np.ndarray:
    if isinstance(segmentation, list):
        parts = [polygon_pixels([p], size, where) for p in segmentation]
        # As COCO's own tools do: parts are joined, none cuts a hole.
        return np.any(parts, axis=0) if parts else np.zeros(size, bool)
    if not isinstance(segmentation, dict):
        raise InputError(
            f'an annotation of {where} has no segmentation; export it again'
        )
    given = tuple(segmentation.get('size') or ())
    if given != size:
        raise InputError(
            f'a mask of {where} has the size {given}, but the image has {size}'
        )
    try:
        return from_coco_counts(segmentation.get('counts'), size)
    except (TypeError, ValueError) as error:
        raise InputError(f'a mask of {where} is damaged: {error}') from None
