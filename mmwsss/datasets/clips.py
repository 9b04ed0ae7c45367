"""The one file of clips, splits that keep a camera together, frames of video files.

``{"classes": [...], "clips": {clip_id: {"frames": [...], "labels": [class names],
"group": camera}}}``. Frames are image ids in order, paths below the photo folder
without suffix; or one text: a folder of photos there, or a ``.npy`` file (T, H, W, 3)
RGB uint8. The label is the clip's: a class may be in some of the frames only.
"""

import logging
import os.path as osp
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from mmengine.logging import print_log

from mmwsss.errors import InputError, tool
from mmwsss.files import read_json

from .image_label_dataset import find_photos
from .image_labels import check_classes, class_indices
from .sampler import stable_seed
from .transforms import NPY_FRAME, open_npy_clip

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.gif')
FORMAT = (
    '{"classes": [...], "clips": {clip id: {"frames": [image ids], "labels": [class '
    'names], "group": camera}}}'
)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip.

    Attributes:
        id: Of the clip.
        frames: Image ids in order, or None where they are what ``source`` holds.
        source: Folder or ``.npy`` file below the photo folder, or None.
        classes: Ascending indices into the foreground classes.
        group: What must not be in two splits, a camera or a day.
    """

    id: str
    frames: tuple[str, ...] | None
    source: str | None
    classes: tuple[int, ...]
    group: str

    @property
    def folder(self) -> str:
        """Start of the image ids of a clip with a ``source``."""
        return self.source.removesuffix('.npy')


@dataclass(frozen=True, kw_only=True)
class ClipList:
    """All clips of a data set.

    Attributes:
        classes: Names of the K foreground classes.
        clips: Clip id -> clip, in the order of the file.
        path: Of the file, for messages.
    """

    classes: tuple[str, ...]
    clips: Mapping[str, Clip]
    path: str

    def named(self, clip_ids: Iterable[str]) -> list[Clip]:
        """The clips of these ids; one that is not there raises InputError."""
        clip_ids = list(clip_ids)
        unknown = [name for name in clip_ids if name not in self.clips]
        if unknown:
            raise InputError(
                f'{len(unknown)} of {len(clip_ids)} clips are not in {self.path}, the '
                f'first is {unknown[0]!r}; correct the list of clips'
            )
        return [self.clips[name] for name in clip_ids]

    def in_order(self, image_ids: Iterable[str]) -> dict[str, list[str]]:
        """Clip id -> those of the images that are its frames, in order.

        Raises:
            InputError: An image is no frame of any clip.
        """
        place = {
            frame: (clip.id, number)
            for clip in self.clips.values()
            for number, frame in enumerate(clip.frames or ())
        }
        folders = {c.folder: c.id for c in self.clips.values() if c.frames is None}
        found = defaultdict(list)
        for image_id in image_ids:
            folder = folders.get(osp.dirname(image_id))
            clip, number = place.get(image_id, (folder, image_id))
            if clip is None:
                raise InputError(
                    f'the image {image_id!r} is no frame of any clip in {self.path}; '
                    'add it there or leave it out of the list of images'
                )
            found[clip].append((number, image_id))
        return {clip: [i for _, i in sorted(frames)] for clip, frames in found.items()}


def load_clips(path: str | Path) -> ClipList:
    """Read the file; anything malformed raises InputError."""
    content = read_json(Path(path))
    if not isinstance(content, dict) or not {'classes', 'clips'} <= content.keys():
        raise InputError(f'{path} must hold {FORMAT}')
    check_classes(content['classes'], path)
    if not isinstance(content['clips'], dict) or not content['clips']:
        raise InputError(f'"clips" in {path} must name one clip or more: {FORMAT}')
    index = {name: number for number, name in enumerate(content['classes'])}
    clips = {
        name: _clip(name, entry, index, path)
        for name, entry in content['clips'].items()
    }
    _refuse_shared_frames(clips.values(), path)
    return ClipList(classes=tuple(content['classes']), clips=clips, path=str(path))


def _clip(name: str, entry: object, index: Mapping[str, int], path: object) -> Clip:
    known = {'frames', 'labels', 'group'}
    if not isinstance(entry, dict) or not {'frames', 'labels'} <= entry.keys() <= known:
        raise InputError(
            f'the clip {name!r} in {path} must hold frames, labels and group and '
            f'nothing else: {FORMAT}'
        )
    frames, group = entry['frames'], entry.get('group', name)
    if not isinstance(group, str):
        raise InputError(
            f'the group of clip {name!r} in {path} must be a text, got {group!r}'
        )
    if isinstance(frames, str):
        _refuse_video_file(name, frames, path)
        source, frames = frames.rstrip('/'), None
    else:
        source = None
        _check_frames(name, frames, path)
    return Clip(
        id=name,
        frames=None if frames is None else tuple(frames),
        source=source,
        classes=class_indices(entry['labels'], index, f'clip {name!r} in {path}'),
        group=group,
    )


def _check_frames(name: str, frames: object, path: object) -> None:
    if (
        not isinstance(frames, list)
        or not frames
        or not all(isinstance(frame, str) and frame for frame in frames)
    ):
        raise InputError(
            f'the frames of clip {name!r} in {path} must be image ids in order, or one '
            f'folder or .npy file, got {str(frames)[:60]}'
        )


def _refuse_video_file(name: str, source: str, path: object) -> None:
    suffix = osp.splitext(source)[1].lower()
    if suffix not in VIDEO_SUFFIXES:
        return
    folder = source[: -len(suffix)]
    raise InputError(
        f'clip {name!r} in {path} is the video file {source}, which is not read frame '
        'by frame in training; extract it once with: python -c "from mmwsss.datasets '
        f"import extract_frames; extract_frames('{source}', '{folder}')\" (or ffmpeg "
        f'-i {source} {folder}/%06d.jpg) and write "frames": "{folder}"'
    )


def _refuse_shared_frames(clips: Iterable[Clip], path: object) -> None:
    owner: dict[str, str] = {}
    for clip in clips:
        for frame in clip.frames or (clip.folder,):
            if frame in owner:
                raise InputError(
                    f'{frame!r} is twice among the frames in {path}, in the clips '
                    f'{owner[frame]!r} and {clip.id!r}; leave one out'
                )
            owner[frame] = clip.id


# ------------------------------------------------------------------------------ frames
def frame_files(clip: Clip, folder: str, suffix: str) -> list[tuple[str, str]]:
    """(image id, path) of the frames of a clip, in order; what is missing is named."""
    if clip.frames is not None:
        return [(name, osp.join(folder, name + suffix)) for name in clip.frames]
    path = osp.join(folder, clip.source)
    if clip.source.endswith('.npy'):
        numbers = range(len(open_npy_clip(path)))
        return [npy_frame_file(clip, folder, number) for number in numbers]
    if not osp.isdir(path):
        raise InputError(
            f'the folder {osp.abspath(path)} of clip {clip.id!r} does not exist; '
            'correct "frames" in the list of clips, or data_prefix.img_path'
        )
    found = find_photos(path)
    if not found:
        raise InputError(
            f'the folder {osp.abspath(path)} of clip {clip.id!r} holds no photo; add '
            'its frames, take the clip out of the list, or name it in a list for '
            'exclude'
        )
    return [(f'{clip.folder}/{name}', osp.join(path, file)) for name, file in found]


def npy_frame_file(clip: Clip, folder: str, number: int) -> tuple[str, str]:
    """(image id, path) of one frame of a clip that is an array."""
    path = osp.join(folder, clip.source)
    return f'{clip.folder}/{number:06d}', f'{path}{NPY_FRAME}{number}'


def extract_frames(video: str | Path, folder: str | Path, *, every: int = 1) -> int:
    """Write the frames of a video file as JPEGs 000000.jpg, 000001.jpg, ...

    Args:
        video: any file that OpenCV's build reads.
        folder: receives the frames.
        every: take each so-manyth frame.

    Returns:
        The number of frames written; frames that cannot be read are left out, with a
        warning that counts them.

    Raises:
        InputError: if the file cannot be read, or the folder holds frames already.
    """
    folder = Path(folder)
    if every < 1:
        raise InputError(f'every must be 1 or more, got {every}')
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f'the folder {folder} is not empty; give another one')
    capture = cv2.VideoCapture(str(video))
    if not capture.isOpened():
        raise InputError(f'{video} does not exist or is no video that OpenCV can read')
    folder.mkdir(parents=True, exist_ok=True)
    written, number, broken = 0, 0, 0
    while capture.grab():
        if number % every == 0:
            readable, image = capture.retrieve()
            if readable:
                _write_frame(folder / f'{written:06d}.jpg', image)
                written += 1
            else:
                broken += 1
        number += 1
    # Where the file ends before its header says so, grab() says nothing.
    total = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), number)
    capture.release()
    if not written:
        raise InputError(f'{video} holds no frame that OpenCV can read')
    lost = total - number + broken
    if lost:
        print_log(
            f'left out: {lost} of {total} frames that {video} should have by its '
            'header, which cannot be read; if it is truncated or damaged, replace it '
            f'and empty {folder}',
            'current',
            logging.WARNING,
        )
    return written


def _write_frame(target: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(target), image, [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise InputError(f'{target} cannot be written; make room there')


# ------------------------------------------------------------------------------ splits
def split_clips(
    clips: ClipList, shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, list[str]]:
    """Split by group, so that no camera is in two splits.

    The groups come in an order that the seed decides; each goes to the split that
    lacks most of its share of the clips.

    Args:
        clips: to be split.
        shares: name of a split -> its share of the clips; they sum to 1.
        seed: of the order.

    Returns:
        Name of a split -> clip ids, in the order of the file.

    Raises:
        InputError: if there are fewer groups than splits, or the shares are wrong.
    """
    if min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(
            'the shares of the splits must be positive and sum to 1, got '
            f'{dict(shares)}'
        )
    groups = defaultdict(list)
    for clip in clips.clips.values():
        groups[clip.group].append(clip.id)
    if len(groups) < len(shares):
        raise InputError(
            f'{clips.path} has {len(groups)} groups, which cannot be split into '
            f'{len(shares)} parts ({", ".join(shares)}) without one in two of them; '
            'take fewer splits'
        )
    names = sorted(groups)
    random.Random(stable_seed(seed, 'groups')).shuffle(names)
    # Large groups first, or the last one could not be made up for.
    names.sort(key=lambda name: -len(groups[name]))
    lacking = {name: share * len(clips.clips) for name, share in shares.items()}
    chosen: dict[str, set] = {name: set() for name in shares}
    for number, group in enumerate(names):
        empty = [name for name, ids in chosen.items() if not ids]
        left = len(names) - number
        # None may stay empty.
        open_splits = empty if len(empty) == left else list(shares)
        split = max(open_splits, key=lacking.get)
        chosen[split].update(groups[group])
        lacking[split] -= len(groups[group])
    return {n: [i for i in clips.clips if i in ids] for n, ids in chosen.items()}


def check_apart(clips: ClipList, splits: Mapping[str, Sequence[str]]) -> None:
    """Raise an InputError if a group has clips in two splits.

    Args:
        clips: with the groups.
        splits: name of a split -> clip ids.
    """
    owner: dict[str, tuple[str, str]] = {}
    for split, clip_ids in splits.items():
        for clip in clips.named(clip_ids):
            first_split, first_clip = owner.setdefault(clip.group, (split, clip.id))
            if first_split != split:
                raise InputError(
                    f'the group {clip.group!r} of {clips.path} is in two splits: clip '
                    f'{first_clip!r} in {first_split} and {clip.id!r} in {split}; '
                    f'split by group: {tool("split_clips")}'
                )


def read_clip_ids(path: str | Path) -> list[str]:
    """Clip ids, one a line."""
    return _lines(path, f'clip id a line ({tool("split_clips")} makes such lists)')


def read_excluded(path: str | Path) -> set[str]:
    """Ids of clips and of frames, one a line."""
    what = 'clip id or image id a line (correct exclude in the config)'
    return set(_lines(path, what))


def _lines(path: str | Path, what: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f'the list {osp.abspath(path)} cannot be read; it should hold one {what}'
        ) from None
    return [line.strip() for line in lines if line.strip()]
