"""A benchmark with a planted bias: an object that a distractor nearly always attends.

A smoke plume rises from a chimney. Every photo with smoke has a chimney
(``p_dis_pos``), some photos without smoke have one too (``p_dis_neg``): the fewer, the
better a classifier does by looking for chimneys. Clouds and roofs have the colours of
smoke and stand in both kinds of photos. A second class, a boat with its pond, and short
clips in place of photos (the smoke drifts, the chimney stands still) are options.

Layout of the folder, VOC's::

    JPEGImages/ID.jpg               RGB photos
    SegmentationClass/ID.png        0 background, 1 smoke (2 boat), palette PNG
    DistractorMask/ID.png           0 none, 1 chimney, the distractor of class 1 (2
                                    pond), also where translucent smoke lies over it
    ImageSets/Segmentation/S.txt    ids of split S: train, val, test; and by cells of
                                    the first class: val_obj_dis, val_obj_only,
                                    val_dis_only, val_none, and those of test
    image_labels.json               {"classes": [...], "labels": {ID: [names]}}, an
                                    empty list where there is no object
    classes.txt, co_occurrence.json the classes with background, and the settings

With clips an ID is ``CLIP/FRAME`` (all of the above is there for single frames), and
there are in addition::

    clips.json                  {"classes": [...], "clips": {CLIP: {"frames": [ID, ...],
                                "labels": [names], "group": CAMERA}}}; frames in order
                                of time, as paths below JPEGImages without suffix
    ImageSets/Clips/S.txt       clip names of the same splits

Clips of one camera show the same view, with and without smoke; no camera is in two
splits.

Everything about photo number ``i`` follows from the settings and ``(split, i)``. What
chimneys the two dials add or take away changes nothing else in a photo, so benchmarks
of several ``p_dis_neg`` differ in those alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mmwsss.errors import InputError

from .drawn_folder import draw_folder, write_lines
from .synthetic import voc_palette

CLASSES = ('smoke', 'boat')
SPLITS = ('train', 'val', 'test')
# In the order of their counts; (has the object, has the distractor).
CELLS = {
    'obj_dis': (True, True),
    'dis_only': (False, True),
    'obj_only': (True, False),
    'none': (False, False),
}
FORMAT_VERSION = 1
MARKER = 'co_occurrence.json'

# All lengths below are in units of a 48th of the side.
_SIDE = 48.0
_CLIPS_PER_CAMERA = 4
# Streams of random numbers of one photo, so that none depends on what another drew.
_VIEW, _MOMENT, _NOISE, _PLAN = range(4)
_QUALITY = 95

Colour = np.ndarray


@dataclass(frozen=True, kw_only=True)
class CoOccurrence:
    """Settings of a benchmark.

    Attributes:
        seed: Of everything, >= 0.
        size: Side of the square photos in pixels, >= 32.
        num_classes: 1 (smoke) or 2 (and boats, drawn independently of the smoke).
        num_frames: 1 for photos; more for clips.
        num_pos: Train photos, or clips, with the object; of each class.
        num_neg: Train photos without it.
        p_dis_pos: Share of the train photos with the object that have its distractor;
            exact, rounded to whole photos.
        p_dis_neg: The same for the photos without the object.
        cells: Photos of val, and of test, that have object and distractor, the
            distractor only, the object only, neither.
    """

    seed: int = 0
    size: int = 48
    num_classes: int = 1
    num_frames: int = 1
    num_pos: int = 300
    num_neg: int = 300
    p_dis_pos: float = 1.0
    p_dis_neg: float = 0.5
    cells: tuple[int, int, int, int] = (150, 150, 150, 100)

    def __post_init__(self) -> None:
        rules = {
            'seed must be >= 0': self.seed >= 0,
            'size must be 32 to 1024': 32 <= self.size <= 1024,
            'num_classes must be 1 or 2': self.num_classes in (1, 2),
            'num_frames must be 1 to 1000': 1 <= self.num_frames <= 1000,
            'num_pos must be >= 1': self.num_pos >= 1,
            'num_neg must be >= 0': self.num_neg >= 0,
            'p_dis_pos must be 0 to 1': 0 <= self.p_dis_pos <= 1,
            'p_dis_neg must be 0 to 1': 0 <= self.p_dis_neg <= 1,
            'cells must be four counts >= 0': len(self.cells) == 4
            and min(self.cells) >= 0,
        }
        for rule, kept in rules.items():
            if not kept:
                name = rule.split()[0]
                raise InputError(f'{rule}, got {getattr(self, name)}')

    def count(self, split: str) -> int:
        """Photos, or clips, of a split."""
        return self.num_pos + self.num_neg if split == 'train' else sum(self.cells)


@dataclass(frozen=True)
class Photo:
    """One drawn photo or frame.

    Attributes:
        image: (S, S, 3) RGB uint8.
        mask: (S, S) uint8, 0 background, 1..K classes.
        distractor: (S, S) uint8, 0 none, k the distractor of class k.
    """

    image: np.ndarray
    mask: np.ndarray
    distractor: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What the photos of a split show, one row each.

    Attributes:
        objects: (n, K) bool.
        distractors: (n, K) bool.
        cameras: Camera name per row; a photo has one of its own.
    """

    objects: np.ndarray
    distractors: np.ndarray
    cameras: tuple[str, ...]

    def cell(self, row: int) -> str:
        """The cell of a photo by the first class."""
        shown = bool(self.objects[row, 0]), bool(self.distractors[row, 0])
        return next(name for name, value in CELLS.items() if value == shown)


@lru_cache(maxsize=16)
def plan(settings: CoOccurrence, split: str) -> Plan:
    """Which photos of a split have which objects and distractors.

    Raises:
        InputError: An unknown split.
    """
    if split not in SPLITS:
        raise InputError(f'the splits are {", ".join(SPLITS)}, got {split!r}')
    if split == 'train':
        counts = (settings.num_pos, settings.num_neg)
        dials = (settings.p_dis_pos, settings.p_dis_neg)
        groups = list(zip((True, False), counts, dials, strict=True))
        objects = [o for o, count, _ in groups for _ in range(count)]
        distractors = [
            i < round(dial * count) for _, count, dial in groups for i in range(count)
        ]
    else:
        repeats = zip(CELLS.values(), settings.cells, strict=True)
        rows = [value for value, count in repeats for _ in range(count)]
        objects, distractors = zip(*rows, strict=True) if rows else ((), ())
    orders = [
        _rng(settings, split, _PLAN, k).permutation(len(objects))
        for k in range(settings.num_classes)
    ]
    shown = [
        np.stack([np.array(values, bool)[order] for order in orders], axis=1)
        for values in (objects, distractors)
    ]
    return Plan(*shown, _cameras(settings, split, shown[1]))


def _cameras(
    settings: CoOccurrence, split: str, distractors: np.ndarray
) -> tuple[str, ...]:
    """A few clips with the same distractors share a camera; photos do not."""
    if settings.num_frames == 1:
        return tuple(f'{split}_{i:06d}' for i in range(len(distractors)))
    seen: dict[bytes, int] = {}
    names = []
    for row in distractors:
        place = seen.get(row.tobytes(), 0)
        seen[row.tobytes()] = place + 1
        kind = ''.join('d' if there else 'n' for there in row)
        names.append(f'{split}_{kind}{place // _CLIPS_PER_CAMERA:03d}')
    return tuple(names)


def _rng(
    settings: CoOccurrence, split: str, stream: int, *parts: int
) -> np.random.Generator:
    key = [settings.seed, SPLITS.index(split), stream, *parts]
    return np.random.default_rng(key)


# ---------------------------------------------------------------- what is to be drawn
def _colour(rng: np.random.Generator, low: tuple, high: tuple) -> Colour:
    """A colour between two, all channels moving together, then slightly varied."""
    share = rng.random()
    base = np.array(low) + share * (np.array(high) - np.array(low))
    return np.clip(base + rng.normal(0, 0.02, 3), 0, 1).astype(np.float32)


@dataclass
class _View:
    """What a camera always sees; drawn in full, shown in part."""

    rng: np.random.Generator
    sky: tuple[Colour, Colour] = field(init=False)
    ground: Colour = field(init=False)
    horizon: float = field(init=False)
    grain: np.ndarray = field(init=False)
    roofs: list = field(init=False)
    chimney: dict = field(init=False)
    pond: dict = field(init=False)

    def __post_init__(self) -> None:
        rng = self.rng
        top = _colour(rng, (0.32, 0.50, 0.76), (0.66, 0.70, 0.76))
        low = _colour(rng, (0.70, 0.78, 0.88), (0.80, 0.76, 0.70))
        self.sky = (top, low)
        self.ground = _colour(rng, (0.30, 0.40, 0.20), (0.50, 0.42, 0.32))
        self.horizon = rng.uniform(0.70, 0.82) * _SIDE
        self.grain = rng.standard_normal((14, 14), dtype=np.float32)
        self.roofs = [self._roof() for _ in range(rng.integers(1, 4))]
        height = rng.uniform(12, 19)
        base = self.horizon + rng.uniform(1, 4)
        self.chimney = dict(
            x=rng.uniform(0.15, 0.85) * _SIDE,
            width=rng.uniform(3, 5),
            top=base - height,
            base=base,
            stripe=rng.uniform(1.8, 3.0),
        )
        self.pond = dict(
            x=rng.uniform(0.2, 0.8) * _SIDE,
            y=self.horizon + rng.uniform(4, 6),
            rx=rng.uniform(8, 11),
            ry=rng.uniform(2, 3.2),
            colour=_colour(rng, (0.26, 0.40, 0.58), (0.42, 0.55, 0.66)),
        )

    def _roof(self) -> dict:
        rng = self.rng
        return dict(
            x=rng.uniform(0, 1) * _SIDE,
            width=rng.uniform(6, 13),
            height=rng.uniform(3, 7),
            gable=rng.uniform(0, 3),
            base=self.horizon + rng.uniform(0, 3),
            # The greys and browns of the smoke, so that colour does not give it away.
            colour=_colour(rng, (0.34, 0.32, 0.30), (0.66, 0.62, 0.58)),
        )


@dataclass
class _Moment:
    """What changes from photo to photo of one camera, and in a clip."""

    rng: np.random.Generator
    clouds: list = field(init=False)
    smoke: dict = field(init=False)
    boat: dict = field(init=False)
    gain: float = field(init=False)

    def __post_init__(self) -> None:
        rng = self.rng
        self.clouds = [self._cloud() for _ in range(rng.integers(0, 3))]
        self.smoke = dict(
            x=rng.uniform(0.2, 0.8) * _SIDE,
            y=rng.uniform(20, 34),
            side=rng.choice([-1, 1]),
            drift=rng.uniform(9, 16),
            rise=rng.uniform(6, 13),
            radii=(rng.uniform(1.8, 2.6), rng.uniform(5.6, 7.8)),
            jitter=rng.normal(0, 0.8, (5, 2)),
            alpha=rng.uniform(0.52, 0.65),
            colour=_colour(rng, (0.30, 0.27, 0.24), (0.62, 0.58, 0.54)),
            grain=rng.standard_normal((12, 12), dtype=np.float32),
        )
        self.boat = dict(
            x=rng.uniform(0.2, 0.8) * _SIDE,
            y=rng.uniform(2, 5),
            length=rng.uniform(11, 15),
            mast=rng.uniform(8, 12),
            side=rng.choice([-1, 1]),
            hull=_colour(rng, (0.30, 0.20, 0.16), (0.62, 0.58, 0.54)),
            sail=_colour(rng, (0.70, 0.22, 0.18), (0.92, 0.90, 0.86)),
            speed=rng.uniform(-0.4, 0.4),
        )
        self.gain = rng.uniform(0.85, 1.1)
        # In a clip the puffs travel and the wind turns, by radians at the far end.
        self.smoke |= dict(
            speed=rng.uniform(0.3, 0.5),
            turn=rng.choice([-1, 1]) * rng.uniform(0.45, 0.85),
            pace=rng.uniform(0.12, 0.2),
        )

    def _cloud(self) -> dict:
        rng = self.rng
        return dict(
            x=rng.uniform(0, 1) * _SIDE,
            y=rng.uniform(0.06, 0.36) * _SIDE,
            rx=rng.uniform(5, 11),
            ry=rng.uniform(2, 4.5),
            bulge=rng.uniform(-0.6, 0.6),
            alpha=rng.uniform(0.55, 0.95),
            # From white to the grey of rain, which smoke can have as well.
            colour=_colour(rng, (0.52, 0.50, 0.50), (0.97, 0.97, 0.97)),
            speed=rng.uniform(-0.25, 0.25),
        )


# ------------------------------------------------------------------------- the brush
class _Canvas:
    """A float photo and its two label maps, painted from back to front."""

    def __init__(self, size: int) -> None:
        centres = (np.arange(size, dtype=np.float32) + 0.5) * (_SIDE / size)
        self.y, self.x = centres[:, None], centres[None]
        self.size = size
        self.image = np.zeros((size, size, 3), np.float32)
        self.mask = np.zeros((size, size), np.uint8)
        self.distractor = np.zeros((size, size), np.uint8)

    def lay(self, alpha: np.ndarray, colour: np.ndarray) -> None:
        """Mix a colour, or a picture, in."""
        alpha = alpha.astype(np.float32)[..., None]
        self.image += alpha * (colour - self.image)

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        """Squared distance from the centre, 1 on the outline."""
        return ((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2

    def noise(self, cells: np.ndarray) -> np.ndarray:
        """Smooth noise over the whole photo."""
        shape = (self.size, self.size)
        return cv2.resize(cells, shape, interpolation=cv2.INTER_CUBIC)


def _paint_sky(canvas: _Canvas, view: _View, moment: _Moment, time: float) -> None:
    top, low = view.sky
    share = np.clip(canvas.y / view.horizon, 0, 1)[..., None]
    canvas.image[:] = top + share * (low - top)
    for cloud in moment.clouds:
        x = cloud['x'] + cloud['speed'] * time
        rx, ry = cloud['rx'], cloud['ry']
        second = x + cloud['bulge'] * rx, cloud['y'] + 0.3 * ry
        near = np.minimum(
            canvas.ellipse(x, cloud['y'], rx, ry),
            canvas.ellipse(*second, 0.8 * rx, 0.9 * ry),
        )
        canvas.lay(cloud['alpha'] * np.clip(1.5 - 1.5 * near, 0, 1), cloud['colour'])


def _paint_ground(canvas: _Canvas, view: _View) -> None:
    ground = view.ground * (1 + 0.10 * canvas.noise(view.grain))[..., None]
    below = np.broadcast_to(canvas.y >= view.horizon, canvas.mask.shape)
    canvas.lay(below, ground)
    for roof in view.roofs:
        beside = np.abs(canvas.x - roof['x'])
        eaves = roof['base'] - roof['height']
        ridge = eaves - roof['gable'] * (1 - 2 * beside / roof['width'])
        inside = (beside < roof['width'] / 2) & (canvas.y < roof['base'])
        house = inside & (canvas.y > ridge)
        shade = np.where(canvas.y < eaves + 0.45 * roof['height'], 1.0, 0.8)
        canvas.lay(house, roof['colour'] * shade[..., None])


def _paint_pond(canvas: _Canvas, view: _View) -> None:
    pond = view.pond
    water = canvas.ellipse(pond['x'], pond['y'], pond['rx'], pond['ry']) < 1
    waves = 1 + 0.12 * np.sin(2.5 * canvas.y + 0.6 * canvas.x)
    canvas.lay(water, pond['colour'] * waves[..., None])
    canvas.distractor[water] = 2


def _paint_chimney(canvas: _Canvas, view: _View) -> None:
    chimney = view.chimney
    beside = (canvas.x - chimney['x']) / (chimney['width'] / 2)
    tall = (canvas.y >= chimney['top']) & (canvas.y < chimney['base'])
    inside = (np.abs(beside) < 1) & tall
    red = np.sin(np.pi * (canvas.y - chimney['top']) / chimney['stripe']) >= 0
    colours = np.where(red[..., None], (0.72, 0.20, 0.17), (0.90, 0.88, 0.86))
    canvas.lay(inside, colours * (1 - 0.12 * beside)[..., None])
    canvas.distractor[inside] = 1


def _paint_smoke(
    canvas: _Canvas, view: _View, moment: _Moment, time: float, *, chimney: bool
) -> None:
    smoke = moment.smoke
    x, y = smoke['x'], smoke['y']
    if chimney:
        x, y = view.chimney['x'], view.chimney['top']
    # Away from a near border, where it would leave the photo at once.
    side = smoke['side'] if 14 < x < _SIDE - 14 else np.sign(_SIDE / 2 - x)
    first, last = smoke['radii']
    wind = smoke['turn'] * np.sin(2 * np.pi * smoke['pace'] * time)
    near = np.zeros(canvas.mask.shape, np.float32)
    for number, (dx, dy) in enumerate(smoke['jitter']):
        age = ((number + smoke['speed'] * time) % 5) / 4.5
        along = side * smoke['drift'] * age + age * dx
        up = smoke['rise'] * age**0.7 - age * dy
        angle = age * wind
        centre = (
            x + along * np.cos(angle) - up * np.sin(angle),
            y - along * np.sin(angle) - up * np.cos(angle),
        )
        radius = first + (last - first) * age
        puff = canvas.ellipse(*centre, radius, 0.8 * radius)
        near = np.maximum(near, (1.1 - 0.3 * age) * np.clip(1.5 - 1.3 * puff, 0, 1))
    texture = 1 + 0.16 * canvas.noise(smoke['grain'])
    alpha = np.minimum(smoke['alpha'] * np.clip(near * texture, 0, 1), 0.65)
    canvas.lay(alpha, smoke['colour'] * (1 + 0.5 * (texture - 1))[..., None])
    canvas.mask[alpha > 0.25] = 1


def _paint_boat(
    canvas: _Canvas, view: _View, moment: _Moment, time: float, *, pond: bool
) -> None:
    boat = moment.boat
    x, y = boat['x'], view.horizon + boat['y']
    if pond:
        x, y = view.pond['x'], view.pond['y']
    x += boat['speed'] * time
    along = boat['side'] * (canvas.x - x)
    depth = np.clip((y - canvas.y) / 3, 0, 1)
    wide = np.abs(along) < boat['length'] * (0.32 + 0.18 * depth)
    hull = wide & (canvas.y < y) & (canvas.y >= y - 3)
    up = (y - 3 - canvas.y) / boat['mast']
    sail = (up > 0.06) & (along > -1) & (along < 0.5 * boat['length'] * (1 - up))
    mast = (np.abs(along + 1.2) < 0.5) & (up > 0) & (up < 1.05)
    for part, colour in ((mast, 0.7 * boat['hull']), (sail, boat['sail'])):
        canvas.lay(part, colour)
    canvas.lay(hull, boat['hull'])
    whole = hull | sail | mast
    canvas.mask[whole] = 2
    canvas.distractor[whole] = 0


def draw_photo(
    settings: CoOccurrence, split: str, index: int, *, frame: int = 0
) -> Photo:
    """Draw one photo, or one frame of a clip.

    Args:
        settings: Of the benchmark.
        split: 'train', 'val' or 'test'.
        index: Of the photo or clip in its split.
        frame: Of the clip.

    Raises:
        InputError: There is no such split, photo or frame.
    """
    planned = plan(settings, split)
    count = len(planned.cameras)
    if not (0 <= index < count and 0 <= frame < settings.num_frames):
        raise InputError(
            f'{split} has {count} photos of {settings.num_frames} frames, got photo '
            f'{index}, frame {frame}'
        )
    camera = planned.cameras.index(planned.cameras[index])
    view = _View(_rng(settings, split, _VIEW, camera))
    moment = _Moment(_rng(settings, split, _MOMENT, index))
    objects, distractors = planned.objects[index], planned.distractors[index]
    canvas = _Canvas(settings.size)
    _paint_sky(canvas, view, moment, frame)
    _paint_ground(canvas, view)
    if settings.num_classes == 2 and distractors[1]:
        _paint_pond(canvas, view)
    if distractors[0]:
        _paint_chimney(canvas, view)
    if objects[0]:
        _paint_smoke(canvas, view, moment, frame, chimney=distractors[0])
    if settings.num_classes == 2 and objects[1]:
        _paint_boat(canvas, view, moment, frame, pond=distractors[1])
    noise = _rng(settings, split, _NOISE, index, frame)
    grain = noise.standard_normal(canvas.image.shape, dtype=np.float32)
    image = np.clip(moment.gain * canvas.image + 0.03 * grain, 0, 1)
    return Photo(
        image=np.round(image * 255).astype(np.uint8),
        mask=canvas.mask,
        distractor=canvas.distractor,
    )


# ------------------------------------------------------------------------- on the disk
def generate(
    root: str | os.PathLike,
    settings: CoOccurrence,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Write the benchmark; the same settings give the same bytes.

    The folder appears all at once or not at all; a complete one of the same settings is
    left alone.

    Args:
        root: Folder to make, see the top of this module.
        settings: What to draw.
        progress: Called with (frames done, frames in all) after each.

    Returns:
        True if photos were drawn, False if they were there.

    Raises:
        InputError: ``root`` holds something else.
    """
    marker = {'format': FORMAT_VERSION, **asdict(settings)}
    marker['cells'] = list(settings.cells)
    return draw_folder(
        Path(root),
        marker_name=MARKER,
        marker=marker,
        what='the co-occurrence benchmark',
        draw=lambda folder: _write(folder, settings, progress),
    )


def _write(
    root: Path, settings: CoOccurrence, progress: Callable[[int, int], None] | None
) -> None:
    classes = CLASSES[: settings.num_classes]
    total = settings.num_frames * sum(map(settings.count, SPLITS))
    labels: dict[str, list[str]] = {}
    clips: dict[str, dict] = {}
    for split in SPLITS:
        planned = plan(settings, split)
        lists: dict[str, list[str]] = {split: []}
        for index, camera in enumerate(planned.cameras):
            name = f'{split}_{index:06d}'
            shown = planned.objects[index]
            names = [c for c, there in zip(classes, shown, strict=True) if there]
            frames = _frame_ids(name, settings.num_frames)
            for frame, image_id in enumerate(frames):
                photo = draw_photo(settings, split, index, frame=frame)
                _save(root, image_id, photo)
                labels[image_id] = names
                if progress is not None:
                    progress(len(labels), total)
            clips[name] = {'frames': frames, 'labels': names, 'group': camera}
            lists[split].append(name)
            if split != 'train':
                lists.setdefault(f'{split}_{planned.cell(index)}', []).append(name)
        _write_lists(root, lists, clips, video=settings.num_frames > 1)
    content = {'classes': list(classes), 'labels': labels}
    write_lines(root / 'image_labels.json', [json.dumps(content)])
    write_lines(root / 'classes.txt', ['background', *classes])
    if settings.num_frames > 1:
        content = {'classes': list(classes), 'clips': clips}
        write_lines(root / 'clips.json', [json.dumps(content)])


def _frame_ids(name: str, num_frames: int) -> list[str]:
    if num_frames == 1:
        return [name]
    return [f'{name}/{frame:03d}' for frame in range(num_frames)]


def _write_lists(root: Path, lists: dict, clips: dict, *, video: bool) -> None:
    for split, names in lists.items():
        frames = [image_id for name in names for image_id in clips[name]['frames']]
        write_lines(root / 'ImageSets' / 'Segmentation' / f'{split}.txt', frames)
        if video:
            write_lines(root / 'ImageSets' / 'Clips' / f'{split}.txt', names)


def _save(root: Path, image_id: str, photo: Photo) -> None:
    path = root / 'JPEGImages' / f'{image_id}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    # Full colour resolution: a chimney is four pixels wide.
    Image.fromarray(photo.image).save(path, quality=_QUALITY, subsampling=0)
    maps = {'SegmentationClass': photo.mask, 'DistractorMask': photo.distractor}
    for folder, values in maps.items():
        path = root / folder / f'{image_id}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(values)
        picture.putpalette(voc_palette().ravel().tolist())
        picture.save(path)
