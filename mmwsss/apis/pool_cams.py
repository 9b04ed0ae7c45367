"""CAMs of the frames of clips, pooled over time and gated by motion, in a new store."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import mmwsss
from mmwsss.apis.cli import Counts, parse_and_run
from mmwsss.apis.outputs import OutputFolder, file_hash, make_missing, text_hash
from mmwsss.apis.photos import (
    Photo,
    PhotoList,
    add_photo_arguments,
    find_photos,
    say_made,
)
from mmwsss.apis.stored_cams import check_store, read_cams
from mmwsss.datasets.cam_store import DTYPES, CAMStore, StoredCAMs, grid_size
from mmwsss.datasets.clips import load_clips
from mmwsss.errors import InputError, tool
from mmwsss.functional import motion_gate, motion_map, still_image
from mmwsss.functional.temporal import REDUCTIONS, reduce_frames, warp

# Of OpenCV: three sizes of the photo, windows of 15 pixels.
_FARNEBACK = dict(
    pyr_scale=0.5,
    levels=3,
    winsize=15,
    iterations=3,
    poly_n=5,
    poly_sigma=1.2,
    flags=0,
)


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """What makes the pooled CAMs; sent to every worker process.

    Attributes:
        store: Folder of the CAM store.
        clips: The JSON of clips.
        window: Frames that are pooled, odd; 1 for none.
        reduce: ``'max'`` or ``'mean'``.
        flow: Whether optical flow brings the neighbours to the frame before that.
        motion: Strength of the motion gate in [0, 1]; 0 for none.
        kappa: See ``functional.motion_map``.
        blur: The same, in cells of the store's grid, four pixels each.
        out: Folder of the new store.
        dtype: Of the stored maps.
        num_classes: K, of the data set.
    """

    store: Path
    clips: Path
    window: int = 1
    reduce: str = 'max'
    flow: bool = False
    motion: float = 0.0
    kappa: float = 0.3
    blur: float = 1.0
    out: Path
    dtype: str = 'float16'
    num_classes: int = 0


@dataclass(frozen=True)
class _Frame:
    """A frame, the one to be made among its neighbours, and its whole clip."""

    photo: Photo
    near: tuple[Photo, ...]
    clip: tuple[Photo, ...]


def pool_cams_command() -> int:
    """Parse the command line, make what is missing, say what was made."""
    return parse_and_run(add_arguments, run)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the options say."""
    _, found = find_photos(args)
    options = PoolOptions(
        store=args.store,
        clips=args.clips,
        window=args.window,
        reduce=args.reduce,
        flow=args.flow,
        motion=args.motion,
        kappa=args.kappa,
        blur=args.blur,
        out=args.out,
        dtype=args.dtype,
        num_classes=len(found.class_names),
    )
    pool_store(
        found,
        options,
        jobs=args.jobs,
        overwrite=args.overwrite,
        counts=counts,
        dry_run=args.dry_run,
        max_unreadable=args.max_unreadable,
    )
    say_made(args, counts, 'CAM files')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, and what they are for."""
    parser.description = (
        'CAMs of frames in a new store: first pooled with those of their '
        'neighbours in the clip, which optical flow can bring to the frame, then '
        'lowered where nothing moves. A background that the store may have is left '
        'out, nothing is normalised afterwards. Stopped at any moment, the same '
        'command goes on. Under torchrun the ranks share the frames.'
    )
    parser.add_argument(
        'config', help='config of the data set, whose photos are frames'
    )
    parser.add_argument('store', type=Path, help=f'a store of {tool("make_cams")}')
    parser.add_argument(
        '--clips', type=Path, required=True, help='the JSON of clips: frames in order'
    )
    parser.add_argument(
        '--window', type=int, default=1, help='frames that are pooled, odd (default: 1)'
    )
    parser.add_argument(
        '--reduce', choices=REDUCTIONS, default='max', help='how (default: max)'
    )
    parser.add_argument(
        '--flow',
        action='store_true',
        help='bring the neighbours to the frame by optical flow (Farneback) before '
        'they are pooled',
    )
    parser.add_argument(
        '--motion',
        type=float,
        default=0.0,
        metavar='STRENGTH',
        help='gate by motion, for a camera that stands still: CAMs keep 1 - STRENGTH '
        'of their height where a frame is like the median of its clip (default: 0)',
    )
    parser.add_argument(
        '--kappa',
        type=float,
        default=0.3,
        help='difference from the median, summed over RGB in [0, 1], that is motion '
        'for sure (default: 0.3)',
    )
    parser.add_argument(
        '--blur',
        type=float,
        default=1.0,
        help='of the motion, in cells of four pixels (default: 1)',
    )
    parser.add_argument('--out', type=Path, required=True, help='the new store')
    parser.add_argument(
        '--dtype', choices=DTYPES, default='float16', help='default: float16'
    )
    add_photo_arguments(parser, what='CAMs')


def pool_store(
    found: PhotoList,
    options: PoolOptions,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    show: bool = True,
    counts: Counts | None = None,
    dry_run: bool = False,
    max_unreadable: int = 0,
) -> int:
    """Make the pooled CAMs that are missing.

    Args:
        found: The frames; neighbours of a frame are those of its clip among them.
        options: What makes the CAMs.
        jobs: Processes.
        overwrite: Replace a store of other settings.
        show: Show a progress bar.
        counts: See ``make_missing``.
        dry_run: The same.
        max_unreadable: The same.

    Returns:
        Number of files made, by all ranks together.

    Raises:
        InputError: Bad input; what is done stays done.
    """
    _check(options)
    frames = _frames(found, options)
    return make_missing(
        partial(_folder, found, frames, options),
        partial(_build, options),
        frames,
        what='CAMs',
        jobs=jobs,
        overwrite=overwrite,
        show=show,
        counts=counts,
        dry_run=dry_run,
        max_unreadable=max_unreadable,
    )


def _check(options: PoolOptions) -> None:
    # --overwrite would remove what is to be read.
    if options.out.resolve() == options.store.resolve():
        raise InputError(f'--out {options.out} is the store itself; give another')
    if options.window < 1 or options.window % 2 == 0:
        raise InputError(f'--window must be odd and positive, got {options.window}')
    if not 0 <= options.motion <= 1:
        raise InputError(f'--motion must be in [0, 1], got {options.motion}')
    if not options.kappa > 0 or not options.blur >= 0:
        raise InputError(
            f'--kappa must be positive and --blur not negative, got {options.kappa} '
            f'and {options.blur}'
        )
    if options.window == 1 and not options.motion:
        raise InputError(
            'nothing to do: give --window 3, say, or --motion 0.5, or both'
        )
    if options.flow and options.window == 1:
        raise InputError('--flow moves the neighbours of a frame: add --window 3, say')


def _frames(found: PhotoList, options: PoolOptions) -> dict[str, _Frame]:
    """Photo id -> frame, clip by clip in their order."""
    photos = {photo.id: photo for photo in found.photos}
    reach = options.window // 2
    frames = {}
    for ids in load_clips(options.clips).in_order(photos).values():
        clip = tuple(photos[name] for name in ids)
        for number, photo in enumerate(clip):
            near = clip[max(number - reach, 0) : number + reach + 1]
            frames[photo.id] = _Frame(photo, near, clip)
    return frames


def _folder(
    found: PhotoList, frames: Mapping[str, _Frame], options: PoolOptions
) -> OutputFolder:
    store = CAMStore(options.out)
    return OutputFolder(
        options.out,
        what='CAMs',
        settings=_settings(options, found.class_names),
        inputs=_inputs(options, frames, found),
        files=lambda image_id: [store.path(image_id)],
    )


def _settings(options: PoolOptions, class_names: Sequence[str]) -> dict:
    settings = {
        'window and reduction': [options.window, options.reduce],
        'motion gate': options.motion,
        'dtype': options.dtype,
        'class list': list(class_names),
        'version of mmwsss': mmwsss.__version__,
    }
    if options.flow:
        settings['optical flow'] = _FARNEBACK
    if options.motion:
        settings['kappa and blur of the motion'] = [options.kappa, options.blur]
    return settings


def _inputs(
    options: PoolOptions, frames: Mapping[str, _Frame], found: PhotoList
) -> dict[str, str]:
    """What only one frame's CAMs depend on: stored CAMs near by, all its clip."""
    store = CAMStore(options.store)
    check_store(store, found.photos)
    hashes = {name: file_hash(store.path(name)) for name in frames}
    records = {p.id: p.record(found.class_names) for p in found.photos}
    clips: dict[str, str] = {}
    inputs = {}
    for name, frame in frames.items():
        near = ' '.join(hashes[photo.id] for photo in frame.near)
        inputs[name] = f'{records[name]}; CAMs {near}'
        if options.flow:
            shown = text_hash([records[photo.id] for photo in frame.near])
            inputs[name] += f'; frames {shown}'
        if options.motion:
            first = frame.clip[0].id
            if first not in clips:
                clips[first] = text_hash([(p.id, records[p.id]) for p in frame.clip])
            inputs[name] += f'; clip {clips[first]}'
    return inputs


# ----------------------------------------------------------------------- in a worker
def _build(options: PoolOptions, number: int) -> Callable[[_Frame], None]:
    """The function from a frame to its file."""
    return partial(_make, options)


def _make(options: PoolOptions, frame: _Frame) -> None:
    store = CAMStore(options.store)
    parts = [read_cams(store, photo) for photo in frame.near]
    own = parts[frame.near.index(frame.photo)]
    for photo, part in zip(frame.near, parts, strict=True):
        if part.size != own.size:
            raise InputError(
                f'the frames of a clip must have one size, but {frame.photo.id} has '
                f'{own.size} and {photo.id} {part.size}; make two clips of them'
            )
    cams = torch.stack([part.dense(options.num_classes) for part in parts])
    if options.flow:
        flows = [_flow(frame.photo, photo, own.size) for photo in frame.near]
        cams = warp(cams, torch.cat(flows))
    cams = reduce_frames(cams, options.reduce)[None]
    if options.motion:
        motion = motion_map(
            _on_grid(frame.photo, own.size),
            _still(frame.clip, own.size),
            kappa=options.kappa,
            blur=options.blur,
        )
        cams = motion_gate(cams, motion, strength=options.motion)
    stored = StoredCAMs(
        classes=own.classes,
        cams=cams[0, own.classes].numpy(),
        size=own.size,
        probs=own.probs,
    )
    CAMStore(options.out).write(frame.photo.id, stored, dtype=options.dtype)


def _flow(photo: Photo, near: Photo, size: tuple[int, int]) -> Tensor:
    """Where a frame's cells are in one near by, (1, 2, h, w), as ``warp`` reads it."""
    grid = grid_size(size)
    if photo is near:
        return torch.zeros(1, 2, *grid)
    found = cv2.calcOpticalFlowFarneback(
        _grey(photo, size), _grey(near, size), None, **_FARNEBACK
    )
    # OpenCV says columns first, and pixels.
    flow = torch.from_numpy(found).movedim(-1, 0).flip(0)[None]
    cells = flow.new_tensor([g / s for g, s in zip(grid, size, strict=True)])
    return F.interpolate(flow, grid, mode='area') * cells[:, None, None]


def _grey(photo: Photo, size: tuple[int, int]) -> np.ndarray:
    """A frame (H, W) uint8, where all light is."""
    return cv2.cvtColor(
        np.ascontiguousarray(_pixels(photo, size).movedim(0, -1).numpy()),
        cv2.COLOR_RGB2GRAY,
    )


@lru_cache(maxsize=1)
def _still(clip: tuple[Photo, ...], size: tuple[int, int]) -> Tensor:
    """The still image (3, h, w) of a clip; its frames come one after the other."""
    return still_image(torch.cat([_on_grid(photo, size) for photo in clip]))


def _on_grid(photo: Photo, size: tuple[int, int]) -> Tensor:
    """A frame (1, 3, h, w) in [0, 1] on the grid of the store."""
    pixels = _pixels(photo, size)[None].float() / 255
    return F.interpolate(pixels, grid_size(size), mode='area')


def _pixels(photo: Photo, size: tuple[int, int]) -> Tensor:
    """A frame (3, H, W) uint8 RGB, which must have the size of its CAMs."""
    pixels = photo.pixels()
    if tuple(pixels.shape[1:]) != size:
        raise InputError(
            f'the stored CAMs are of frames of {size}, but {photo.path} has '
            f'{tuple(pixels.shape[1:])}; the frames of a clip must have one size'
        )
    return pixels
