"""Palette PNG in VOC layout, as MMSegmentation, VOC and CVAT's mask format have it.

255 stays what it is. ``labelmap.txt`` says which colour is which class, for tools that
read colours, as CVAT's "Segmentation mask 1.1" does; it names 255 too, without which
CVAT refuses such masks.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmwsss.apis.label_folders import MAP_SUFFIXES, read_label_map
from mmwsss.apis.make_pseudo_labels import LABEL_FOLDER, write_map
from mmwsss.datasets.transforms import DAMAGED
from mmwsss.errors import InputError
from mmwsss.files import write_text
from mmwsss.visualization.colors import voc_palette

from .shapes import IGNORE_INDEX, IGNORE_LABEL, Painted

LABEL_MAP = 'labelmap.txt'
LIST = 'ImageSets/Segmentation/default.txt'


class Writer:
    """Writes masks, their list and the colours.

    Args:
        out: Folder.
        classes: Names of the K classes.
        ignore: Keep 255; False makes it background.
    """

    def __init__(self, out: Path, classes: Sequence[str], *, ignore: bool) -> None:
        self.out, self.classes, self.ignore = out, classes, ignore
        self.ids: list[str] = []

    def add_map(self, image_id: str, label: np.ndarray) -> None:
        """Write a photo's label map."""
        if not self.ignore:
            label = np.where(label == IGNORE_INDEX, 0, label).astype(np.uint8)
        write_map(self.out / LABEL_FOLDER / f'{image_id}.png', label, palette=True)
        self.ids.append(image_id)

    def close(self) -> None:
        """Write the list and the colours."""
        write_text(self.out / LIST, ''.join(f'{name}\n' for name in self.ids))
        palette = voc_palette()
        names = {0: 'background', **dict(enumerate(self.classes, 1))}
        if self.ignore:
            names[IGNORE_INDEX] = IGNORE_LABEL
        lines = [f'{n}:{",".join(map(str, palette[k]))}::' for k, n in names.items()]
        write_text(
            self.out / LABEL_MAP,
            '\n'.join(['# label:color_rgb:parts:actions', *lines, '']),
        )


def read(source: Path, classes: Sequence[str]) -> Iterator[Painted]:
    """Masks below a folder: of indices, or of the colours in ``labelmap.txt``.

    Raises:
        InputError: A file is no mask, or has other values.
    """
    folder = source / LABEL_FOLDER if (source / LABEL_FOLDER).is_dir() else source
    files = sorted(p for p in folder.rglob('*') if p.suffix.lower() in MAP_SUFFIXES)
    colors = _colors(source / LABEL_MAP)
    names = {0: 'background', **dict(enumerate(classes, 1)), IGNORE_INDEX: IGNORE_LABEL}
    for file in files:
        rgb = _rgb(file) if colors else None
        if rgb is None:
            label = read_label_map(file)
            layers = [(_named(v, names, file), label == v) for v in np.unique(label)]
        else:
            layers = _colored(rgb, colors, file)
        yield Painted(
            names=(file.relative_to(folder).with_suffix('').as_posix(),),
            size=layers[0][1].shape,
            layers=layers,
            where=str(file),
        )


def _named(value: int, names: Mapping[int, str], file: Path) -> str:
    if int(value) not in names:
        raise InputError(
            f'{file} holds the index {value}, but there are {len(names) - 1} classes '
            'with background; check the class list'
        )
    return names[int(value)]


def _colors(path: Path) -> dict[tuple[int, ...], str]:
    """Colour -> label; none without the file."""
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f'the label map {path} cannot be read ({error}); save it as UTF-8'
        ) from None
    colors = {}
    for line in lines:
        if not line.strip() or line.startswith('#'):
            continue
        try:
            name, color, *_ = line.split(':')
            red, green, blue = (int(part) for part in color.split(','))
        except ValueError:
            raise InputError(
                f'{path} has the line {line!r}; write name:red,green,blue::'
            ) from None
        colors[red, green, blue] = name
    return colors


def _rgb(file: Path) -> np.ndarray | None:
    """A colour picture (H, W, 3), None for one of indices."""
    try:
        with Image.open(file) as image:
            if image.mode in ('P', 'L', '1'):
                return None
            return np.asarray(image.convert('RGB'))
    except DAMAGED as error:
        raise InputError(f'{file} cannot be read as a mask ({error})') from None


def _colored(
    rgb: np.ndarray, colors: Mapping, file: Path
) -> list[tuple[str, np.ndarray]]:
    layers = []
    for color in np.unique(rgb.reshape(-1, 3), axis=0).tolist():
        if tuple(color) not in colors:
            raise InputError(
                f'{file} has the colour {tuple(color)}, which {LABEL_MAP} does not name'
            )
        layers.append((colors[tuple(color)], (rgb == color).all(2)))
    return layers
