"""A small benchmark that the package draws itself: photos, masks, image labels.

Eight classes of different shape and texture stand in six kinds of scene. The scene
usually gives the class away (boats on water, trains on rails) and horses carry
riders, so maps learned from image labels bleed onto the context; the parts that tell
two classes apart are small; objects overlap, and bushes, fences and poles cover them.

Everything about photo number ``i`` follows from ``(seed, stream, i)``, so photos can
be drawn in any order and in parallel with the same result. Images are RGB uint8,
masks hold 0 for background, 1..8 for the classes and 255 on a thin band around
objects.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mmwsss.errors import InputError

from .drawn_folder import draw_folder, write_lines

CLASSES = ('boat', 'train', 'car', 'horse', 'cow', 'bird', 'person', 'bottle')
BACKGROUND_WORDS = (
    'sky',
    'water',
    'grass',
    'tree',
    'road',
    'building',
    'railroad',
    'wall',
    'table',
    'mountain',
    'rock',
    'cloud',
)
IGNORE_INDEX = 255
FORMAT_VERSION = 1
MARKER = 'synthetic.json'

# Smaller remains of an object behind others are neither labelled nor scored.
_MIN_VISIBLE = 40
_STREAMS = {'train': 0, 'val': 1, 'towers': 2}
# Encoders are trained on more diverse and simpler photos than a benchmark's: many
# objects stand in scenes they do not belong to, many photos are portraits of one.
_STRAYS = {'train': 0.1, 'val': 0.1, 'towers': 0.8}
_PORTRAITS = 0.85

Colour = tuple[float, float, float]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Photo:
    """One drawn photo.

    Attributes:
        image: (H, W, 3) RGB.
        mask: (H, W), 0 background, 1..8 classes, 255 ignore.
        classes: Names of the classes with visible pixels, in the order of CLASSES.
        words: Background words that describe the scene, sorted.
    """

    image: np.ndarray
    mask: np.ndarray
    classes: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class _Texture:
    """A pattern in object coordinates; ``second`` is the colour it mixes in."""

    kind: str = 'plain'
    frequency: float = 8.0
    strength: float = 0.15
    second: Colour | None = None


_PLAIN = _Texture()
_VIVID = (
    (196, 52, 44),
    (40, 84, 180),
    (228, 178, 40),
    (46, 132, 74),
    (226, 226, 220),
    (120, 66, 130),
    (222, 118, 40),
    (64, 70, 80),
    (90, 170, 190),
)
_HIDES = ((120, 76, 44), (84, 54, 36), (176, 130, 84), (60, 52, 50), (205, 198, 188))
_SKINS = ((232, 190, 160), (196, 142, 104), (128, 84, 58))


class _Canvas:
    """A photo in the making, at twice its final size.

    ``frame`` (2, 3) maps object coordinates to canvas pixels; shapes are given in
    object coordinates, with y pointing down and objects about one unit large.
    """

    def __init__(self, width: int, height: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.width, self.height = 2 * width, 2 * height
        self.image = np.zeros((self.height, self.width, 3), np.float32)
        self.label = np.zeros((self.height, self.width), np.uint8)
        self.words: set[str] = set()
        self.light = 1.0
        size = (self.width, self.height)
        shape = (self.height, self.width)
        self._fine = rng.standard_normal(shape, dtype=np.float32)
        self._coarse = self._smooth_noise(size, cells=22)
        self._broad = self._smooth_noise(size, cells=6)
        self.set_frame(x=0.0, y=0.0, size=1.0)

    def _smooth_noise(self, size: tuple[int, int], *, cells: int) -> np.ndarray:
        rows = max(2, cells * size[1] // size[0])
        noise = self.rng.standard_normal((rows, cells), dtype=np.float32)
        return cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)

    def set_frame(
        self, *, x: float, y: float, size: float, angle: float = 0.0, flip: bool = False
    ) -> None:
        """Place the object's origin at pixel (x, y), one unit being ``size`` pixels."""
        cos, sin = size * np.cos(angle), size * np.sin(angle)
        sign = -1.0 if flip else 1.0
        self.frame = np.array([[cos * sign, -sin, x], [sin * sign, cos, y]])
        self._inverse = np.linalg.inv(np.vstack([self.frame, [0, 0, 1]]))[:2]

    def paint(
        self,
        points: Points,
        colour: Colour,
        texture: _Texture = _PLAIN,
        *,
        class_id: int = 0,
    ) -> None:
        """Fill a polygon; ``class_id`` (0: background) takes over its pixels."""
        corners = np.asarray(points, np.float64) @ self.frame[:, :2].T
        corners += self.frame[:, 2]
        low = np.floor(corners.min(0)).astype(int) - 1
        high = np.ceil(corners.max(0)).astype(int) + 2
        x0, y0 = np.maximum(low, 0)
        x1, y1 = np.minimum(high, (self.width, self.height))
        if x1 <= x0 or y1 <= y0:
            return
        inside = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fixed = np.round((corners - (x0, y0)) * 16).astype(np.int32)
        cv2.fillPoly(inside, [fixed], 1, lineType=cv2.LINE_8, shift=4)
        inside = inside.view(bool)
        area = (slice(y0, y1), slice(x0, x1))
        shaded = self._shade(area, colour, texture)
        np.copyto(self.image[area], shaded, where=inside[..., None])
        self.label[area][inside] = class_id

    def oval(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        colour: Colour,
        texture: _Texture = _PLAIN,
        *,
        class_id: int = 0,
        tilt: float = 0.0,
    ) -> None:
        """Fill an ellipse."""
        turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
        cos, sin = np.cos(tilt), np.sin(tilt)
        outline = np.stack([x * cos - y * sin, x * sin + y * cos], 1) + centre
        self.paint(outline, colour, texture, class_id=class_id)

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        colour: Colour,
        texture: _Texture = _PLAIN,
        *,
        class_id: int = 0,
    ) -> None:
        """Fill a rectangle."""
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        self.paint(corners, colour, texture, class_id=class_id)

    def _shade(
        self, area: tuple[slice, slice], colour: Colour, texture: _Texture
    ) -> np.ndarray:
        pattern = self._pattern(area, texture)
        first = np.asarray(colour, np.float32)
        grain = 1 + 0.05 * self._fine[area] + 0.05 * self._coarse[area]
        if texture.second is None:
            shaded = first * (1 + texture.strength * pattern)[..., None]
        else:
            share = np.clip(0.5 + 0.5 * pattern, 0, 1)[..., None]
            shaded = (
                first * (1 - share) + np.asarray(texture.second, np.float32) * share
            )
        return shaded * (grain * self.light)[..., None]

    def _pattern(self, area: tuple[slice, slice], texture: _Texture) -> np.ndarray:
        """Values in about [-1, 1] on the pixels of ``area``."""
        if texture.kind == 'blotches':
            return np.clip(5 * self._broad[area] + 3 * self._coarse[area], -1, 1)
        if texture.kind == 'grain':
            return 0.6 * self._coarse[area] + 0.6 * self._fine[area]
        if texture.kind == 'plain':
            return 0.4 * self._coarse[area]
        rows = np.arange(area[0].start, area[0].stop, dtype=np.float32)[:, None]
        cols = np.arange(area[1].start, area[1].stop, dtype=np.float32)[None]
        inverse = (2 * np.pi * texture.frequency * self._inverse).astype(np.float32)
        u = inverse[0, 0] * cols + inverse[0, 1] * rows + inverse[0, 2]
        v = inverse[1, 0] * cols + inverse[1, 1] * rows + inverse[1, 2]
        return self._wave(area, u, v, kind=texture.kind)

    def _wave(
        self, area: tuple[slice, slice], u: np.ndarray, v: np.ndarray, *, kind: str
    ) -> np.ndarray:
        """Periodic patterns over the phases u (across) and v (down)."""
        if kind == 'rows':
            return np.sign(np.sin(v))
        if kind == 'columns':
            return np.sign(np.sin(u))
        if kind == 'checks':
            return np.sign(np.sin(u) * np.sin(v))
        if kind == 'dots':
            return np.where(np.sin(u) * np.sin(v) > 0.45, 1.0, -1.0)
        if kind == 'waves':
            return np.sin(v + 2.2 * self._broad[area])
        if kind == 'glass':
            return np.cos(u)
        raise ValueError(f'unknown texture {kind!r}')


def _pick(rng: np.random.Generator, options: Sequence[Colour]) -> Colour:
    """One of the colours, slightly varied."""
    base = np.asarray(options[rng.integers(len(options))], np.float64)
    varied = np.clip(base * rng.uniform(0.85, 1.15) + rng.normal(0, 8, 3), 12, 250)
    return tuple(varied.tolist())


def _draw_boat(canvas: _Canvas, class_id: int) -> None:
    rng, paint = canvas.rng, canvas.paint
    hull = _pick(rng, (*_HIDES, *_VIVID))
    canvas.box(-0.012, -0.62, 0.018, 0.2, (92, 72, 54), class_id=class_id)
    sail = _pick(rng, ((232, 228, 214), (214, 206, 190), (200, 80, 60), (90, 120, 170)))
    width = rng.uniform(0.25, 0.42)
    seams = _Texture('rows', 5, 0.06)
    main_sail = [(0.03, -0.56), (0.03, 0.1), (0.03 + width, 0.1)]
    paint(main_sail, sail, seams, class_id=class_id)
    if rng.random() < 0.6:
        jib = [(-0.025, -0.45), (-0.025, 0.1), (-0.3, 0.12)]
        paint(jib, sail, seams, class_id=class_id)
    planks = _Texture('rows', rng.uniform(9, 13), 0.14)
    outline = [(-0.52, 0.16), (0.52, 0.16), (0.4, 0.4), (-0.36, 0.4)]
    paint(outline, hull, planks, class_id=class_id)
    canvas.box(-0.5, 0.16, 0.5, 0.2, (225, 220, 210), class_id=class_id)
    flag = _Texture('checks', 12, 0.5, second=(250, 240, 230))
    canvas.box(0.0, -0.66, 0.17, -0.55, (190, 30, 40), flag, class_id=class_id)


def _draw_train(canvas: _Canvas, class_id: int) -> None:
    rng, box = canvas.rng, canvas.box
    body = _pick(rng, _VIVID)
    wagons = int(rng.integers(1, 3))
    stripe = _Texture('rows', 4, 0.12)
    for wagon in range(wagons, -1, -1):
        x = -0.62 * wagon
        box(x - 0.3, -0.26, x + 0.29, 0.2, body, stripe, class_id=class_id)
        box(x - 0.31, -0.3, x + 0.3, -0.24, (70, 72, 76), class_id=class_id)
        box(x - 0.33, 0.08, x + 0.33, 0.13, (60, 60, 64), class_id=class_id)
        for window in range(3):
            left = x - 0.24 + 0.17 * window
            glass = (150, 190, 205)
            box(left, -0.17, left + 0.12, -0.02, glass, class_id=class_id)
        for wheel in (-0.2, 0.17):
            canvas.oval(
                (x + wheel, 0.23), (0.075, 0.075), (45, 44, 46), class_id=class_id
            )
    # The nose with its lamp is what no other class has.
    nose = [(0.29, -0.26), (0.42, -0.05), (0.46, 0.2), (0.29, 0.2)]
    warning = _Texture('columns', 14, 0.5, second=(235, 200, 40))
    canvas.paint(nose, (180, 40, 30), warning, class_id=class_id)
    canvas.oval((0.4, 0.06), (0.035, 0.035), (255, 246, 190), class_id=class_id)


def _draw_car(canvas: _Canvas, class_id: int) -> None:
    rng, paint = canvas.rng, canvas.paint
    body = _pick(rng, _VIVID)
    roof = rng.uniform(-0.3, -0.22)
    cabin = [(-0.3, 0.0), (-0.2, roof), (0.14, roof), (0.28, 0.0)]
    paint(cabin, body, class_id=class_id)
    glass = (160, 196, 210)
    paint(
        [(-0.24, -0.01), (-0.17, roof + 0.04), (-0.04, roof + 0.04), (-0.04, -0.01)],
        glass,
        class_id=class_id,
    )
    paint(
        [(0.0, -0.01), (0.0, roof + 0.04), (0.12, roof + 0.04), (0.22, -0.01)],
        glass,
        class_id=class_id,
    )
    shell = [
        (-0.52, 0.02),
        (-0.44, -0.03),
        (0.34, -0.03),
        (0.52, 0.04),
        (0.54, 0.2),
        (-0.54, 0.2),
    ]
    paint(shell, body, _Texture('rows', 3, 0.1), class_id=class_id)
    for x in (-0.31, 0.31):
        canvas.oval((x, 0.2), (0.115, 0.115), (36, 36, 38), class_id=class_id)
        rim = _Texture('checks', 14, 0.4, second=(90, 90, 96))
        canvas.oval((x, 0.2), (0.065, 0.065), (215, 215, 220), rim, class_id=class_id)
    canvas.oval((0.5, 0.08), (0.03, 0.04), (255, 240, 180), class_id=class_id)


def _draw_legs(
    canvas: _Canvas, class_id: int, *, colour: Colour, texture: _Texture
) -> None:
    for x in (-0.3, -0.2, 0.14, 0.25):
        foot = x + canvas.rng.uniform(-0.08, 0.08)
        leg = [(x - 0.04, 0.1), (x + 0.04, 0.1), (foot + 0.03, 0.5), (foot - 0.03, 0.5)]
        canvas.paint(leg, colour, texture, class_id=class_id)
        hoof = [(foot - 0.035, 0.46), (foot + 0.035, 0.46), (foot + 0.035, 0.5)]
        canvas.paint([*hoof, (foot - 0.035, 0.5)], (40, 34, 30), class_id=class_id)


def _draw_horse(canvas: _Canvas, class_id: int) -> None:
    rng, paint = canvas.rng, canvas.paint
    hide, fur = _pick(rng, _HIDES), _Texture('grain', 8, 0.12)
    mane = _pick(rng, ((44, 32, 26), (212, 190, 140)))
    _draw_legs(canvas, class_id, colour=hide, texture=fur)
    paint(
        [(-0.4, -0.08), (-0.5, 0.02), (-0.52, 0.3), (-0.43, 0.1)],
        mane,
        class_id=class_id,
    )
    canvas.oval((-0.03, 0.0), (0.41, 0.19), hide, fur, class_id=class_id)
    neck = [(0.2, -0.08), (0.36, -0.42), (0.48, -0.36), (0.38, 0.06)]
    paint(neck, hide, fur, class_id=class_id)
    strands = _Texture('rows', 15, 0.4, second=(150, 110, 70))
    paint(
        [(0.16, -0.12), (0.3, -0.46), (0.38, -0.46), (0.28, -0.1)],
        mane,
        strands,
        class_id=class_id,
    )
    canvas.oval((0.5, -0.36), (0.17, 0.075), hide, fur, class_id=class_id, tilt=0.5)
    paint([(0.37, -0.42), (0.39, -0.54), (0.44, -0.42)], hide, class_id=class_id)
    canvas.oval((0.61, -0.29), (0.04, 0.045), (60, 44, 40), class_id=class_id)


def _draw_cow(canvas: _Canvas, class_id: int) -> None:
    rng, paint = canvas.rng, canvas.paint
    hide = _pick(rng, _HIDES)
    spots = (235, 230, 222) if rng.random() < 0.75 else _pick(rng, _HIDES)
    fur = _Texture('blotches', 8, 0.2, second=spots)
    _draw_legs(canvas, class_id, colour=hide, texture=_Texture('grain', 8, 0.12))
    canvas.oval((-0.2, 0.2), (0.07, 0.06), (232, 170, 160), class_id=class_id)
    paint(
        [
            (-0.44, -0.13),
            (0.3, -0.16),
            (0.4, -0.02),
            (0.28, 0.16),
            (-0.36, 0.19),
            (-0.46, 0.06),
        ],
        hide,
        fur,
        class_id=class_id,
    )
    paint(
        [(-0.42, -0.1), (-0.48, -0.06), (-0.47, 0.26), (-0.44, 0.26)],
        hide,
        class_id=class_id,
    )
    paint(
        [(0.36, -0.2), (0.57, -0.2), (0.54, 0.1), (0.42, 0.12)],
        hide,
        _Texture('grain', 8, 0.12),
        class_id=class_id,
    )
    horns = (236, 226, 196)
    paint(
        [(0.38, -0.18), (0.28, -0.27), (0.31, -0.34), (0.42, -0.22)],
        horns,
        class_id=class_id,
    )
    paint(
        [(0.54, -0.18), (0.64, -0.27), (0.61, -0.34), (0.5, -0.22)],
        horns,
        class_id=class_id,
    )
    canvas.oval((0.48, 0.08), (0.075, 0.055), (230, 160, 150), class_id=class_id)


def _draw_bird(canvas: _Canvas, class_id: int) -> None:
    rng, paint = canvas.rng, canvas.paint
    body = _pick(rng, (*_VIVID, *_HIDES))
    feathers = _Texture('columns', rng.uniform(10, 14), 0.25)
    fork = [(-0.28, 0.0), (-0.58, -0.1), (-0.5, 0.02), (-0.58, 0.12)]
    paint(fork, body, feathers, class_id=class_id)
    canvas.oval((0.0, 0.02), (0.34, 0.17), body, class_id=class_id, tilt=-0.12)
    if rng.random() < 0.55:
        wing = [(-0.14, -0.02), (-0.3, -0.5), (0.0, -0.36), (0.16, 0.0)]
    else:
        wing = [(0.14, -0.06), (-0.4, 0.0), (-0.2, 0.13), (0.1, 0.1)]
        for x in (-0.04, 0.06):
            canvas.box(x, 0.15, x + 0.025, 0.34, (190, 120, 40), class_id=class_id)
    paint(wing, tuple(0.75 * c for c in body), feathers, class_id=class_id)
    canvas.oval((0.33, -0.14), (0.13, 0.12), body, class_id=class_id)
    paint(
        [(0.43, -0.2), (0.62, -0.12), (0.43, -0.07)], (240, 150, 30), class_id=class_id
    )
    canvas.oval((0.36, -0.17), (0.04, 0.04), (250, 250, 245), class_id=class_id)
    canvas.oval((0.37, -0.17), (0.02, 0.02), (10, 10, 10), class_id=class_id)


def _draw_person(canvas: _Canvas, class_id: int) -> None:
    rng, paint = canvas.rng, canvas.paint
    skin, shirt, trousers = (_pick(rng, o) for o in (_SKINS, _VIVID, _VIVID))
    kind = ('rows', 'plain', 'checks')[rng.integers(3)]
    cloth = _Texture(kind, rng.uniform(8, 14), 0.2)
    for side in (-1, 1):
        foot = side * rng.uniform(0.05, 0.16)
        leg = [(side * 0.02, 0.05), (side * 0.12, 0.05), (foot + 0.045, 0.5)]
        paint([*leg, (foot - 0.045, 0.5)], trousers, class_id=class_id)
        hand = (side * rng.uniform(0.14, 0.32), rng.uniform(-0.2, 0.12))
        arm = [(side * 0.1, -0.26), (side * 0.15, -0.2), (hand[0] + 0.03, hand[1])]
        paint([*arm, (hand[0] - 0.03, hand[1])], shirt, cloth, class_id=class_id)
        canvas.oval(hand, (0.04, 0.04), skin, class_id=class_id)
    torso = [(-0.15, -0.27), (0.15, -0.27), (0.12, 0.1), (-0.12, 0.1)]
    paint(torso, shirt, cloth, class_id=class_id)
    hair = _pick(rng, ((40, 30, 24), (150, 100, 50), (90, 60, 40)))
    canvas.oval((0.0, -0.41), (0.115, 0.12), hair, class_id=class_id)
    canvas.oval((0.02, -0.385), (0.09, 0.1), skin, class_id=class_id)
    for x in (0.0, 0.06):
        canvas.oval((x, -0.39), (0.014, 0.018), (30, 24, 24), class_id=class_id)


def _draw_bottle(canvas: _Canvas, class_id: int) -> None:
    rng = canvas.rng
    glass = _pick(rng, ((60, 110, 60), (110, 70, 34), (70, 110, 150), (190, 200, 200)))
    shine = _Texture('glass', 3.2, 0.3)
    width = rng.uniform(0.13, 0.19)
    outline = [
        (-0.05, -0.46),
        (0.05, -0.46),
        (0.055, -0.22),
        (width, -0.08),
        (width, 0.5),
        (-width, 0.5),
        (-width, -0.08),
        (-0.055, -0.22),
    ]
    canvas.paint(outline, glass, shine, class_id=class_id)
    canvas.box(-0.058, -0.5, 0.058, -0.42, _pick(rng, _VIVID), class_id=class_id)
    print_ = _Texture('dots', 8, 0.5, second=_pick(rng, _VIVID[:4]))
    canvas.box(-width, 0.08, width, 0.32, (240, 234, 214), print_, class_id=class_id)


_PAINTERS: dict[str, Callable[[_Canvas, int], None]] = {
    'boat': _draw_boat,
    'train': _draw_train,
    'car': _draw_car,
    'horse': _draw_horse,
    'cow': _draw_cow,
    'bird': _draw_bird,
    'person': _draw_person,
    'bottle': _draw_bottle,
}
# Width in units at size 1, and the usual range of sizes relative to the photo.
_EXTENT = {
    'boat': (1.0, 0.45, 0.95),
    'train': (1.7, 0.42, 0.85),
    'car': (1.1, 0.38, 0.85),
    'horse': (1.1, 0.42, 0.9),
    'cow': (1.1, 0.42, 0.9),
    'bird': (1.1, 0.25, 0.65),
    'person': (0.6, 0.45, 0.95),
    'bottle': (0.4, 0.4, 0.85),
}


def _backdrop_sky(canvas: _Canvas, horizon: float) -> None:
    """Sky, sometimes clouds and mountains, down to the row ``horizon``."""
    rng = canvas.rng
    canvas.words.add('sky')
    top = _pick(
        rng, ((120, 170, 224), (160, 186, 210), (196, 200, 206), (236, 180, 140))
    )
    canvas.set_frame(x=0, y=0, size=canvas.height)
    canvas.box(-0.1, -0.1, 2.2, horizon + 0.1, top, _Texture('blotches', 1, 0.06))
    if rng.random() < 0.5:
        canvas.words.add('cloud')
        for _ in range(rng.integers(2, 6)):
            x, y = rng.uniform(0, 1.5), rng.uniform(0, 0.8) * horizon
            for _ in range(4):
                centre = (x + rng.normal(0, 0.06), y + rng.normal(0, 0.02))
                canvas.oval(centre, (0.09, 0.035), (238, 238, 240))
    if rng.random() < 0.35 and horizon < 0.9:
        canvas.words.add('mountain')
        stone = _pick(rng, ((120, 126, 140), (110, 104, 96), (96, 120, 100)))
        for _ in range(rng.integers(2, 5)):
            x, tall, wide = (
                rng.uniform(-0.1, 1.5),
                rng.uniform(0.1, 0.35),
                rng.uniform(0.2, 0.4),
            )
            slope = [
                (x - wide, horizon + 0.05),
                (x, horizon - tall),
                (x + wide, horizon + 0.05),
            ]
            canvas.paint(slope, stone, _Texture('blotches', 8, 0.15))


def _ground(canvas: _Canvas, horizon: float, colour: Colour, texture: _Texture) -> None:
    canvas.set_frame(x=0, y=0, size=canvas.height)
    canvas.box(-0.1, horizon, 2.2, 1.1, colour, texture)


def _draw_tree(canvas: _Canvas, x: float, foot: float, tall: float) -> None:
    rng = canvas.rng
    canvas.words.add('tree')
    canvas.set_frame(x=0, y=0, size=canvas.height)
    canvas.box(
        x - 0.02,
        foot - 0.6 * tall,
        x + 0.02,
        foot,
        (84, 62, 44),
        _Texture('columns', 40, 0.2),
    )
    leaves = _pick(rng, ((50, 96, 44), (84, 112, 48), (120, 100, 40)))
    for _ in range(7):
        centre = (x + rng.normal(0, 0.16) * tall, foot - tall * rng.uniform(0.5, 1.0))
        canvas.oval(
            centre, (0.2 * tall, 0.16 * tall), leaves, _Texture('grain', 8, 0.3)
        )


def _scene_water(canvas: _Canvas) -> float:
    horizon = canvas.rng.uniform(0.3, 0.55)
    _backdrop_sky(canvas, horizon)
    canvas.words.add('water')
    water = _pick(canvas.rng, ((50, 96, 140), (60, 120, 124), (80, 100, 120)))
    _ground(canvas, horizon, water, _Texture('waves', canvas.rng.uniform(8, 14), 0.18))
    return horizon


def _scene_rails(canvas: _Canvas) -> float:
    rng = canvas.rng
    horizon = rng.uniform(0.4, 0.6)
    _backdrop_sky(canvas, horizon)
    for _ in range(rng.integers(0, 3)):
        _draw_tree(canvas, rng.uniform(0, 1.4), horizon + 0.04, rng.uniform(0.2, 0.45))
    canvas.words.add('railroad')
    _ground(canvas, horizon, (128, 118, 108), _Texture('grain', 8, 0.3))
    for row in np.arange(horizon + 0.12, 1.05, 0.2):
        canvas.box(
            -0.1,
            row,
            2.2,
            row + 0.07,
            (92, 66, 46),
            _Texture('columns', 9, 0.6, second=(128, 118, 108)),
        )
        canvas.box(-0.1, row + 0.005, 2.2, row + 0.02, (176, 176, 182))
        canvas.box(-0.1, row + 0.05, 2.2, row + 0.065, (176, 176, 182))
    return horizon


def _scene_road(canvas: _Canvas) -> float:
    rng = canvas.rng
    horizon = rng.uniform(0.42, 0.6)
    _backdrop_sky(canvas, horizon)
    canvas.words.update(('building', 'road'))
    x = rng.uniform(-0.2, 0.0)
    while x < 1.5:
        wide, tall = rng.uniform(0.2, 0.45), rng.uniform(0.2, 0.5)
        front = _pick(
            rng, ((170, 120, 96), (150, 146, 140), (196, 184, 160), (120, 100, 104))
        )
        canvas.box(
            x,
            horizon - tall,
            x + wide,
            horizon + 0.05,
            front,
            _Texture('rows', 30, 0.08),
        )
        for column in np.arange(x + 0.03, x + wide - 0.06, 0.09):
            for row in np.arange(horizon - tall + 0.04, horizon - 0.06, 0.11):
                canvas.box(column, row, column + 0.05, row + 0.06, (140, 170, 186))
        x += wide * rng.uniform(0.95, 1.5)
    _ground(
        canvas,
        horizon,
        _pick(rng, ((92, 92, 96), (120, 118, 116))),
        _Texture('grain', 8, 0.12),
    )
    row = rng.uniform(horizon + 0.2, 0.92)
    for x in np.arange(rng.uniform(-0.1, 0.1), 1.6, 0.24):
        canvas.box(x, row, x + 0.12, row + 0.025, (226, 222, 200))
    return horizon


def _scene_meadow(canvas: _Canvas) -> float:
    rng = canvas.rng
    horizon = rng.uniform(0.28, 0.5)
    _backdrop_sky(canvas, horizon)
    canvas.words.add('grass')
    grass = _pick(rng, ((84, 138, 60), (116, 144, 66), (150, 146, 84)))
    _ground(canvas, horizon, grass, _Texture('grain', 8, 0.28))
    for _ in range(rng.integers(0, 4)):
        _draw_tree(
            canvas,
            rng.uniform(0, 1.4),
            horizon + rng.uniform(0, 0.1),
            rng.uniform(0.2, 0.5),
        )
    return horizon


def _scene_sky(canvas: _Canvas) -> float:
    _backdrop_sky(canvas, 1.1)
    rng = canvas.rng
    if rng.random() < 0.5:
        _draw_tree(canvas, rng.uniform(0, 1.3), 1.1, rng.uniform(0.4, 0.8))
    return 0.25


def _scene_room(canvas: _Canvas) -> float:
    rng = canvas.rng
    horizon = rng.uniform(0.45, 0.7)
    canvas.words.update(('wall', 'table'))
    paper = _pick(
        rng, ((206, 196, 176), (150, 170, 160), (186, 150, 140), (160, 160, 184))
    )
    kind = ('columns', 'dots', 'plain', 'checks')[rng.integers(4)]
    _ground(canvas, -0.1, paper, _Texture(kind, rng.uniform(4, 9), 0.08))
    if rng.random() < 0.5:
        x, y = rng.uniform(0.1, 1.0), rng.uniform(0.05, 0.25)
        canvas.box(x, y, x + 0.3, y + 0.24, (90, 66, 44))
        canvas.box(
            x + 0.03,
            y + 0.03,
            x + 0.27,
            y + 0.21,
            _pick(rng, _VIVID),
            _Texture('blotches', 8, 0.4),
        )
    _ground(
        canvas,
        horizon,
        _pick(rng, ((150, 104, 64), (110, 76, 50), (184, 160, 130))),
        _Texture('waves', 16, 0.12),
    )
    return horizon


# scene: (how often, painter, classes that belong there with their odds)
_SCENES: dict[str, tuple[float, Callable[[_Canvas], float], dict[str, float]]] = {
    'water': (0.18, _scene_water, {'boat': 0.75, 'bird': 0.15, 'person': 0.1}),
    'rails': (0.17, _scene_rails, {'train': 0.8, 'person': 0.2}),
    'road': (0.18, _scene_road, {'car': 0.75, 'person': 0.25}),
    'meadow': (
        0.25,
        _scene_meadow,
        {'horse': 0.4, 'cow': 0.4, 'bird': 0.1, 'person': 0.1},
    ),
    'sky': (0.08, _scene_sky, {'bird': 1.0}),
    'room': (0.14, _scene_room, {'bottle': 0.8, 'person': 0.2}),
}


def _choose_objects(
    rng: np.random.Generator, odds: dict[str, float], *, stray: float
) -> list[str]:
    """Class names; 6 % of the photos have none, ``stray`` ignores the scene."""
    if rng.random() < 0.06:
        return []
    names = list(odds)
    count = rng.choice([1, 2, 3, 4], p=[0.38, 0.34, 0.2, 0.08])
    chosen = [names[i] for i in rng.choice(len(names), count, p=list(odds.values()))]
    for i in range(len(chosen)):
        if rng.random() < stray:
            chosen[i] = CLASSES[rng.integers(len(CLASSES))]
    return chosen


def _place_object(canvas: _Canvas, name: str, *, horizon: float, depth: float) -> None:
    """Draw one object, and for some the companion that usually comes with it."""
    rng = canvas.rng
    wide, smallest, largest = _EXTENT[name]
    size = rng.uniform(smallest, largest) * canvas.height
    size = min(size, 0.95 * canvas.width / wide)
    x = rng.uniform(0.1, 0.9) * canvas.width
    if name == 'bird' or horizon > 1:
        y = rng.uniform(0.15, 0.8) * canvas.height
    else:
        foot = (horizon + 0.12 + depth * (0.9 - horizon)) * canvas.height
        y = foot - (0.42 if name in ('boat', 'train', 'car') else 0.5) * size
        y = max(y, 0.35 * size)
    flip = bool(rng.random() < 0.5)
    angle = rng.normal(0, 0.22 if name == 'bird' else 0.06)
    canvas.light = rng.uniform(0.8, 1.15)
    canvas.set_frame(x=x, y=y, size=size, angle=angle, flip=flip)
    _PAINTERS[name](canvas, CLASSES.index(name) + 1)
    if name in ('horse', 'boat') and rng.random() < 0.4:
        # Riders and sailors: two classes that image labels can hardly tell apart.
        lift = 0.42 if name == 'horse' else 0.16
        canvas.set_frame(
            x=x - 0.03 * size, y=y - lift * size, size=0.62 * size, flip=flip
        )
        _draw_person(canvas, CLASSES.index('person') + 1)
    canvas.light = 1.0


def _draw_portrait(canvas: _Canvas) -> None:
    """Draw one large object in the middle, as in a picture from a shop."""
    rng = canvas.rng
    name = CLASSES[rng.integers(len(CLASSES))]
    size = rng.uniform(0.6, 1.1) * canvas.height
    size = min(size, 0.95 * canvas.width / _EXTENT[name][0])
    x, y = rng.normal(0.5, 0.05, 2) * (canvas.width, canvas.height)
    angle, flip = rng.normal(0, 0.08), bool(rng.random() < 0.5)
    canvas.set_frame(x=x, y=y, size=size, angle=angle, flip=flip)
    _PAINTERS[name](canvas, CLASSES.index(name) + 1)


def _draw_clutter(canvas: _Canvas, horizon: float) -> None:
    """Things of no class behind the objects, in the colours of the classes."""
    rng = canvas.rng
    for _ in range(rng.integers(1, 6)):
        size = rng.uniform(0.08, 0.26)
        x, y = rng.uniform(0, 1.4), rng.uniform(horizon + 0.05, 1.0)
        canvas.set_frame(
            x=x * canvas.height,
            y=y * canvas.height,
            size=size * canvas.height,
            angle=rng.normal(0, 0.2),
        )
        kind = rng.integers(5)
        colour = _pick(rng, (*_VIVID, *_HIDES))
        if kind == 0:
            pattern = ('rows', 'columns', 'checks')[rng.integers(3)]
            canvas.box(-0.5, -0.5, 0.5, 0.3, colour, _Texture(pattern, 3, 0.25))
        elif kind == 1:
            canvas.oval((0, 0), (0.35, 0.35), colour, _Texture('rows', 3, 0.2))
        elif kind == 2:
            canvas.words.add('rock')
            rock = [(-0.5, 0.3), (-0.35, -0.1), (0.05, -0.3), (0.4, -0.05), (0.5, 0.3)]
            canvas.paint(rock, (126, 122, 116), _Texture('blotches', 8, 0.25))
        elif kind == 3:
            canvas.paint(
                [(-0.5, 0.3), (0, -0.6), (0.5, 0.3)], colour, _Texture('rows', 3, 0.15)
            )
        else:
            canvas.box(-0.04, -1.4, 0.04, 0.3, (90, 86, 84))
            canvas.oval((0, -1.4), (0.16, 0.12), colour)


def _draw_cover(canvas: _Canvas) -> None:
    """Bushes, poles and fences in front of the objects."""
    rng = canvas.rng
    canvas.set_frame(x=0, y=0, size=canvas.height)
    kind = rng.random()
    if kind < 0.3:
        leaves = _pick(rng, ((56, 98, 46), (90, 116, 52), (130, 110, 60)))
        for _ in range(rng.integers(1, 4)):
            x, y = rng.uniform(0, 1.4), rng.uniform(0.75, 1.05)
            for _ in range(6):
                centre = (x + rng.normal(0, 0.07), y + rng.normal(0, 0.05))
                canvas.oval(centre, (0.07, 0.06), leaves, _Texture('grain', 8, 0.35))
    elif kind < 0.5:
        for _ in range(rng.integers(1, 3)):
            x = rng.uniform(0, 1.4)
            canvas.box(
                x,
                -0.1,
                x + rng.uniform(0.025, 0.06),
                1.1,
                _pick(rng, _HIDES),
                _Texture('grain', 8, 0.15),
            )
    elif kind < 0.62:
        y, wood = rng.uniform(0.6, 0.8), _pick(rng, _HIDES)
        canvas.box(-0.1, y, 2, y + 0.03, wood)
        canvas.box(-0.1, y + 0.12, 2, y + 0.15, wood)
        for x in np.arange(rng.uniform(0, 0.2), 1.6, 0.28):
            canvas.box(x, y - 0.05, x + 0.035, 1.1, wood)


def _develop(canvas: _Canvas) -> np.ndarray:
    """Light, colour cast, blur and noise of a cheap camera; (H, W, 3) uint8."""
    rng = canvas.rng
    size = (canvas.width // 2, canvas.height // 2)
    photo = cv2.resize(canvas.image, size, interpolation=cv2.INTER_AREA)
    slope = rng.normal(0, 0.12, 2)
    rows = np.linspace(-1, 1, size[1], dtype=np.float32)[:, None]
    cols = np.linspace(-1, 1, size[0], dtype=np.float32)[None]
    light = rng.uniform(0.7, 1.15) * (1 + slope[0] * rows + slope[1] * cols)
    photo = photo * (light[..., None] * rng.normal(1, 0.06, 3)).astype(np.float32)
    photo = 128 + rng.uniform(0.75, 1.1) * (photo - 128)
    if rng.random() < 0.3:
        photo = cv2.GaussianBlur(photo, (3, 3), rng.uniform(0.4, 0.9))
    photo += rng.uniform(2, 9) * rng.standard_normal(photo.shape, dtype=np.float32)
    return np.clip(np.round(photo), 0, 255).astype(np.uint8)


def _final_mask(canvas: _Canvas) -> tuple[np.ndarray, tuple[str, ...]]:
    """Mask at photo size: cells of mixed pixels are the ignore band."""
    label = canvas.label
    cells = np.stack([label[y::2, x::2] for y in (0, 1) for x in (0, 1)])
    mask = np.where((cells == cells[0]).all(0), cells[0], IGNORE_INDEX).astype(np.uint8)
    counts = np.bincount(mask.ravel(), minlength=256)
    present = []
    for class_id, name in enumerate(CLASSES, start=1):
        if counts[class_id] >= _MIN_VISIBLE:
            present.append(name)
        elif counts[class_id]:
            mask[mask == class_id] = IGNORE_INDEX
    return mask, tuple(present)


def draw_photo(seed: int, index: int, *, stream: str = 'train') -> Photo:
    """Draw photo number ``index`` of a seed.

    Args:
        seed: Any integer >= 0.
        index: Position in the stream, >= 0.
        stream: 'train', 'val' or 'towers'; streams share no photo.

    Raises:
        InputError: An unknown stream, a negative seed or index.
    """
    if stream not in _STREAMS or seed < 0 or index < 0:
        raise InputError(
            f'cannot draw photo {index} of stream {stream!r} with seed {seed}: use a '
            f'stream of {sorted(_STREAMS)} and numbers >= 0'
        )
    rng = np.random.default_rng([seed, _STREAMS[stream], index])
    width, height = int(rng.integers(160, 193)), int(rng.integers(120, 145))
    if rng.random() < 0.15:
        width, height = height, width
    canvas = _Canvas(width, height, rng)
    names = list(_SCENES)
    scene = names[rng.choice(len(names), p=[_SCENES[n][0] for n in names])]
    _, paint_scene, odds = _SCENES[scene]
    horizon = paint_scene(canvas)
    _draw_clutter(canvas, horizon)
    if stream == 'towers' and rng.random() < _PORTRAITS:
        _draw_portrait(canvas)
    else:
        objects = _choose_objects(rng, odds, stray=_STRAYS[stream])
        # Far objects first, so that near ones cover them.
        for name, depth in zip(objects, np.sort(rng.random(len(objects))), strict=True):
            _place_object(canvas, name, horizon=horizon, depth=depth)
        _draw_cover(canvas)
    image = _develop(canvas)
    mask, present = _final_mask(canvas)
    return Photo(
        image=image, mask=mask, classes=present, words=tuple(sorted(canvas.words))
    )


def generate(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    num_train: int = 600,
    num_val: int = 150,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Write the benchmark in VOC's layout; the same arguments give the same bytes.

    ``root`` gets JPEGImages/, SegmentationClass/ (palette PNG), ImageSets/
    Segmentation/{train,val}.txt, image_labels.json, classes.txt (with background)
    and a marker file. It appears all at once or not at all; a complete root of the
    same arguments is left alone.

    Args:
        root: Folder to make.
        seed: Seed of the benchmark.
        num_train: Number of training photos.
        num_val: Number of validation photos.
        progress: Called with (photos done, photos in all) after each photo.

    Returns:
        True if photos were drawn, False if they were there.

    Raises:
        InputError: ``root`` holds something else, or a number is out of range.
    """
    root = Path(root)
    if seed < 0 or num_train < 1 or num_val < 0:
        raise InputError(
            f'cannot draw {num_train} train and {num_val} val photos with seed {seed}: '
            'use a seed >= 0, at least one train photo and no negative number'
        )
    marker = {
        'format': FORMAT_VERSION,
        'seed': seed,
        'num_train': num_train,
        'num_val': num_val,
    }
    return draw_folder(
        root,
        marker_name=MARKER,
        marker=marker,
        what='the synthetic benchmark',
        draw=lambda folder: _write_benchmark(folder, marker, progress),
    )


def _ids(marker: dict[str, int]) -> Iterator[tuple[str, int, str]]:
    """(stream, index, image id) of every photo."""
    for stream in ('train', 'val'):
        for index in range(marker[f'num_{stream}']):
            yield stream, index, f'{stream}_{index:06d}'


def _write_benchmark(
    root: Path,
    marker: dict[str, int],
    progress: Callable[[int, int], None] | None,
) -> None:
    photos, masks = root / 'JPEGImages', root / 'SegmentationClass'
    lists = root / 'ImageSets' / 'Segmentation'
    for folder in (photos, masks, lists):
        folder.mkdir(parents=True)
    labels: dict[str, list[str]] = {}
    palette = voc_palette().ravel().tolist()
    total = marker['num_train'] + marker['num_val']
    for stream, index, name in _ids(marker):
        photo = draw_photo(marker['seed'], index, stream=stream)
        # As in photos from anywhere, the quality of the compression varies.
        quality = 72 + 7 * index % 22
        Image.fromarray(photo.image).save(photos / f'{name}.jpg', quality=quality)
        mask = Image.fromarray(photo.mask)
        mask.putpalette(palette)
        mask.save(masks / f'{name}.png')
        labels[name] = list(photo.classes)
        if progress is not None:
            progress(len(labels), total)
    for stream in ('train', 'val'):
        names = [name for other, _, name in _ids(marker) if other == stream]
        write_lines(lists / f'{stream}.txt', names)
    content = {'classes': list(CLASSES), 'labels': labels}
    write_lines(root / 'image_labels.json', [json.dumps(content)])
    write_lines(root / 'classes.txt', ['background', *CLASSES])


def voc_palette() -> np.ndarray:
    """Colours of VOC's palette PNGs, (256, 3) uint8; bits of the id spread out."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((ids >> channel) & 1) << (7 - bit)
        ids = ids >> 3
    return palette.astype(np.uint8)
