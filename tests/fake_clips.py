"""Clips of a standing camera: a chimney that stays and, in some, a puff that moves."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)
NUM_FRAMES = 5


def frame(number: int, *, puff: bool) -> np.ndarray:
    """(H, W, 3) RGB uint8."""
    image = np.full((*SIZE, 3), 120, np.uint8)
    image[8:, 4:8] = (220, 30, 30)
    if puff:
        image[4:12, 8 + 4 * number : 12 + 4 * number] = 240
    return image


def draw(root: Path, *, num_clips: int = 4, num_frames: int = NUM_FRAMES) -> Path:
    """Clips c0, c1, ... on two cameras, every second one with smoke, as PNGs."""
    clips = {}
    for number in range(num_clips):
        puff = bool(number % 2)
        names = [f'c{number}/{t}' for t in range(num_frames)]
        for t, name in enumerate(names):
            path = root / f'JPEGImages/{name}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame(t, puff=puff)).save(path)
        clips[f'c{number}'] = {
            'frames': names,
            'labels': ['smoke'] if puff else [],
            'group': f'camera {number // 2}',
        }
    write(root, clips)
    return root


def write(root: Path, clips: dict, *, classes=('smoke',)) -> Path:
    path = root / 'clips.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'classes': list(classes), 'clips': clips}))
    return path
