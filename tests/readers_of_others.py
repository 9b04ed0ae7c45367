"""What `mmwsss convert masks` writes, read by the annotation tools' own code.

In an environment of their own, which needs neither torch nor mmwsss:

    pip install labelme datumaro label-studio-sdk pycocotools
    python tests/readers_of_others.py MASKS EXPORTED --classes classes.txt

EXPORTED has a folder for each row of READERS, made before from the masks:

    for format in coco cvat labelme label-studio voc; do
      mmwsss convert masks MASKS --format $format --classes classes.txt \
        --out EXPORTED/$format
    done
    for format in coco cvat labelme label-studio; do
      mmwsss convert masks MASKS --format $format --classes classes.txt --polygons \
        --out EXPORTED/$format-polygons
    done

Each mask that a tool reads is laid over the others and compared with ours, pixel by
pixel. Exit code 1 if one that should be equal is not.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

IGNORE = 255
# Image id, name of the label, pixels (H, W) bool or, for a whole map, of indices.
Layers = Iterator[tuple[str, str, np.ndarray]]
# Image id -> height and width.
Sizes = Mapping[str, tuple[int, int]]


# --------------------------------------------------------------------------- readers
def pycocotools(folder: Path, sizes: Sizes) -> Layers:
    """``COCO.annToMask``."""
    from pycocotools.coco import COCO

    content = COCO(folder / 'instances.json')
    for annotation in content.anns.values():
        image = content.imgs[annotation['image_id']]
        name = content.cats[annotation['category_id']]['name']
        yield _id(image['file_name']), name, content.annToMask(annotation) > 0


def labelme(folder: Path, sizes: Sizes) -> Layers:
    """``LabelFile`` and ``shapes_to_label``, for one shape at a time."""
    from labelme._label_file import read_label_file
    from labelme.utils import shapes_to_label

    for path in sorted(folder.rglob('*.json')):
        content = json.loads(path.read_text())
        if 'shapes' not in content:
            continue
        size = sizes[path.stem]
        # Without its photo a file cannot be opened.
        Image.new('RGB', size[::-1]).save(path.parent / content['imagePath'])
        for shape in read_label_file(str(path)).shapes:
            found, _ = shapes_to_label(size, [shape], {shape['label']: 1})
            yield path.stem, shape['label'], found > 0


def label_studio(folder: Path, sizes: Sizes) -> Layers:
    """The SDK's own decoder of brush strokes; corners of polygons in percent."""
    import cv2
    from label_studio_sdk.converter.brush import decode_from_annotation

    for task in json.loads((folder / 'tasks.json').read_text()):
        for result in task['predictions'][0]['result']:
            size = sizes[_id(task['data']['image'])]
            name = result['value'][result['type']][0]
            if result['type'] == 'brushlabels':
                flat = {**result, **result['value']}
                (layer,) = decode_from_annotation('label', [flat]).values()
                yield _id(task['data']['image']), name, layer > 0
                continue
            corners = np.array(result['value']['points']) * size[::-1] / 100
            canvas = np.zeros(size, np.uint8)
            cv2.fillPoly(canvas, [corners.round().astype(np.int32)], 1)
            yield _id(task['data']['image']), name, canvas > 0


def datumaro(name: str) -> Callable[[Path, Sizes], Layers]:
    """An importer of datumaro, polygons as its own rasterizer fills them."""

    def read(folder: Path, sizes: Sizes) -> Layers:
        from datumaro import AnnotationType, Dataset
        from datumaro.util.mask_tools import rles_to_mask

        content = Dataset.import_from(str(_laid_out(folder, name, sizes)), name)
        labels = content.categories()[AnnotationType.label]
        for item in content:
            for one in item.annotations:
                if one.type == AnnotationType.mask:
                    mask = np.asarray(one.image) > 0
                elif one.type == AnnotationType.polygon:
                    height, width = sizes[item.id]
                    mask = rles_to_mask([one.points], width, height) > 0
                else:
                    continue
                yield item.id, labels[one.label].name, mask

    return read


def _laid_out(folder: Path, name: str, sizes: Sizes) -> Path:
    """A copy as an importer wants it: with photos, COCO's file under another name."""
    place = Path(tempfile.mkdtemp()) / 'copy'
    shutil.copytree(folder, place)
    photos = {'coco_instances': 'images/default', 'cvat': 'images'}.get(name)
    if photos is not None:
        (place / photos).mkdir(parents=True)
        for image_id, size in sizes.items():
            Image.new('RGB', size[::-1]).save(place / photos / f'{image_id}.jpg')
    if name == 'coco_instances':
        (place / 'annotations').mkdir()
        new = place / 'annotations/instances_default.json'
        shutil.move(place / 'instances.json', new)
    return place


READERS = (
    ('pycocotools', 'coco', pycocotools, True),
    ('pycocotools', 'coco-polygons', pycocotools, True),
    ('datumaro', 'coco', datumaro('coco_instances'), True),
    ('datumaro', 'coco-polygons', datumaro('coco_instances'), True),
    ('datumaro', 'cvat', datumaro('cvat'), True),
    ('datumaro', 'cvat-polygons', datumaro('cvat'), True),
    ('datumaro', 'voc', datumaro('voc_segmentation'), True),
    ('labelme', 'labelme', labelme, True),
    # It draws the outline itself, half a pixel outside.
    ('labelme', 'labelme-polygons', labelme, False),
    ('label-studio-sdk', 'label-studio', label_studio, True),
    # OpenCV fills them here, with the outline; the SDK has no rasterizer.
    ('label-studio-sdk', 'label-studio-polygons', label_studio, False),
)


# ------------------------------------------------------------------------ comparison
def _id(file: str) -> str:
    return Path(file).stem


def compare(masks: Path, folder: Path, read: Callable, classes: list[str]) -> dict:
    """Numbers of photos, and of pixels that differ.

    Args:
        masks: Ours.
        folder: What was exported of them.
        read: One of ``READERS``.
        classes: K names.
    """
    ours = {p.stem: np.asarray(Image.open(p)) for p in sorted(masks.glob('*.png'))}
    theirs = {name: np.zeros_like(label) for name, label in ours.items()}
    values = {n: k for k, n in enumerate(classes, 1)} | {'ignore': IGNORE}
    sizes = {name: label.shape for name, label in ours.items()}
    for name, label, pixels in read(folder, sizes):
        if label != 'background':
            theirs[name][pixels] = values[label]
    wrong = {n: int((theirs[n] != ours[n]).sum()) for n in ours}
    return {
        'photos': len(ours),
        'equal': sum(not count for count in wrong.values()),
        'pixels': sum(label.size for label in ours.values()),
        'wrong': sum(wrong.values()),
    }


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument('masks', type=Path)
    parser.add_argument('exported', type=Path)
    parser.add_argument('--classes', type=Path, required=True)
    args = parser.parse_args()
    classes = args.classes.read_text().split('\n')
    classes = [name for name in classes if name and name != 'background']
    failed = 0
    print('| program | version | format | equal photos | pixels that differ |')
    print('|---|---|---|---|---|')
    for program, form, read, exact in READERS:
        with contextlib.redirect_stdout(io.StringIO()):
            found = compare(args.masks, args.exported / form, read, classes)
        failed += exact and found['wrong'] > 0
        print(
            f'| {program} | {version(program)} | {form} | {found["equal"]} of '
            f'{found["photos"]} | {found["wrong"]} of {found["pixels"]} |'
        )
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
