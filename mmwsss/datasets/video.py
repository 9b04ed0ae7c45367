"""Clips with one label each: frames as photos, and batches that keep clips whole."""

import logging
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence, Sized
from itertools import pairwise

import numpy as np
from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset

from mmwsss.errors import InputError, UnreadablePhoto
from mmwsss.registry import DATA_SAMPLERS, DATASETS

from .clips import (
    Clip,
    check_apart,
    frame_files,
    load_clips,
    npy_frame_file,
    read_clip_ids,
    read_excluded,
)
from .image_label_dataset import how_to_leave_out, voc_palette
from .sampler import SeededIndex, SeededStreamSampler, seed_augmentation, stable_seed
from .transforms import photo_file

FRAME_CHOICES = ('first_mid', 'uniform', 'random', 'stride')
# Clips that a sentence names.
NAMED = 10


@DATASETS.register_module()
class VideoClipDataset(BaseSegDataset):
    """Frames of labelled clips, those of a clip one after the other.

    Each sample is a frame with its clip's label, and ``clip_id``, ``frame_idx`` (from
    0) and ``num_frames`` (of the clip) as meta information. Frames are read like any
    photo, and everything that works on photos works on them: their image ids are the
    keys of CAM stores and pseudo-labels.

    A frame that cannot be read raises UnreadablePhoto with its name, and so does a
    ``.npy`` clip when the data set is built. In ``test_mode`` such a clip is one
    sample, its first frame, which raises when it is read: tools list it and go on.

    Args:
        clips: the JSON of clips (``datasets/clips.py``), relative to ``data_root``.
        ann_file: text file with one clip id a line, for example of
            ``tools/split_clips.py``; '' takes all clips.
        apart_from: such lists of the other splits; a camera (group) that is in two of
            them is refused.
        exclude: text file, relative to ``data_root``, or several, of clip ids and image
            ids of frames to leave out, one a line; '' leaves none out. How many are is
            told. Clips and frames that it names need not be there. The rest is as if
            ``clips`` had never named them: frames are counted and chosen among those
            that are left, and a clip without any is left out.
        frames: which frames of a clip: 'first_mid' its first and its middle one,
            'uniform' the middle of ``num_frames`` equal parts, 'random' one anywhere in
            each of these parts (in ``test_mode`` the middle), 'stride' each
            ``stride``-th. A clip with fewer frames repeats some, but not in
            ``test_mode``.
        num_frames: of 'uniform' and 'random'.
        stride: of 'stride'.
        data_root: folder that the other paths are relative to.
        data_prefix: ``img_path`` and, for evaluation, ``seg_map_path``.
        img_suffix: of frames that are named by their ids.
        seg_map_suffix: of the masks.
        pipeline: transforms.
        test_mode: as in MMSegmentation.
        indices: first so many frames, or these.
        serialize_data: share the list between workers.
        lazy_init: build the list later.
    """

    def __init__(
        self,
        *,
        clips: str,
        ann_file: str = '',
        apart_from: Sequence[str] = (),
        exclude: str | Sequence[str] = '',
        frames: str = 'uniform',
        num_frames: int = 8,
        stride: int = 1,
        data_root: str | None = None,
        data_prefix: dict | None = None,
        img_suffix: str = '.jpg',
        seg_map_suffix: str = '.png',
        pipeline: Sequence = (),
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
        serialize_data: bool = True,
        lazy_init: bool = False,
    ) -> None:
        if frames not in FRAME_CHOICES:
            raise InputError(f'frames must be one of {FRAME_CHOICES}, got {frames!r}')
        if num_frames < 1 or stride < 1:
            raise InputError(
                f'num_frames and stride must be 1 or more, got {num_frames} and '
                f'{stride}'
            )
        self.clips = load_clips(osp.join(data_root or '', clips))
        self.apart_from = tuple(osp.join(data_root or '', p) for p in apart_from)
        lists = [exclude] if isinstance(exclude, str) else exclude
        self.exclude = [osp.join(data_root or '', file) for file in lists if file]
        self.frames = frames
        self.num_frames = num_frames
        self.stride = stride
        classes = ('background', *self.clips.classes)
        super().__init__(
            ann_file=ann_file,
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            metainfo=dict(classes=classes, palette=voc_palette(len(classes))),
            data_root=data_root,
            data_prefix=data_prefix or dict(img_path=''),
            indices=indices,
            serialize_data=serialize_data,
            pipeline=list(pipeline),
            test_mode=test_mode,
            lazy_init=lazy_init,
            # A broken frame is an error with a name, never silently another one.
            max_refetch=0,
        )

    def load_data_list(self) -> list[dict]:
        """One entry per frame, checked."""
        ids = list(self.clips.clips)
        if self.ann_file:
            ids = read_clip_ids(self.ann_file)
        if not ids:
            raise InputError(f'{self.ann_file} names no clip; give a list of clip ids')
        excluded = {path: read_excluded(path) for path in self.exclude}
        clips = _kept_clips(self.clips.named(ids), excluded)
        kept = [clip.id for clip in clips]
        others = {path: read_clip_ids(path) for path in self.apart_from}
        check_apart(self.clips, {self.ann_file or 'this data set': kept, **others})
        self._files = self._kept_frames(clips, excluded)
        if not self._files:
            raise InputError(
                f'exclude ({", ".join(self.exclude)}) leaves none of {len(ids)} clips; '
                'take lines out of it'
            )
        return [
            entry
            for clip in clips
            if clip.id in self._files
            for entry in self._entries(clip)
        ]

    def _kept_frames(
        self, clips: Sequence[Clip], excluded: Mapping[str, set[str]]
    ) -> dict[str, list[tuple[str, str]]]:
        """Clip id -> (image id, path) of its frames, without those left out."""
        files, complaints = self._found_frames(clips)
        for path, names in excluded.items():
            before = sum(map(len, files.values()))
            for clip, frames in files.items():
                files[clip] = [frame for frame in frames if frame[0] not in names]
            _say_left_out('frames', path, before, sum(map(len, files.values())))
        empty = [clip for clip, frames in files.items() if not frames]
        if empty:
            sentence = f'{len(empty)} of {len(files)} clips ({_shown(empty)})'
            print_log(
                f'left out: {sentence}, of which no frame is left',
                'current',
                logging.WARNING,
            )
        kept = {clip: frames for clip, frames in files.items() if frames}
        if not self.test_mode:
            _refuse_unreadable({c: t for c, t in complaints.items() if c in kept}, kept)
        for clip, frames in kept.items():
            self._refuse_missing(clip, frames)
        return kept

    def _found_frames(
        self, clips: Sequence[Clip]
    ) -> tuple[dict[str, list[tuple[str, str]]], dict[str, str]]:
        """Clip id -> (image id, path) of its frames; -> why it cannot be read."""
        folder = self.data_prefix['img_path']
        files, complaints = {}, {}
        for clip in clips:
            try:
                files[clip.id] = frame_files(clip, folder, self.img_suffix)
            except UnreadablePhoto as error:
                # Nobody knows how many frames it has; the first stands for them.
                files[clip.id] = [npy_frame_file(clip, folder, 0)]
                complaints[clip.id] = str(error)
        return files, complaints

    def _refuse_missing(self, clip: str, files: Sequence[tuple[str, str]]) -> None:
        # An array was opened already.
        own = [path for _, path in files if photo_file(path) == path]
        missing = [path for path in own if not osp.isfile(path)]
        if missing:
            raise InputError(
                f'{len(missing)} of {len(files)} frames of clip {clip!r} are '
                f'missing, the first is {osp.abspath(missing[0])}; add them, take them '
                f'out of {self.clips.path}, or correct data_prefix or img_suffix'
            )

    def _entries(self, clip: Clip) -> Iterator[dict]:
        files = self._files[clip.id]
        label = np.zeros(len(self.clips.classes), dtype=np.float32)
        label[list(clip.classes)] = 1
        spans = self._spans(len(files))
        if self.test_mode:
            middles = {(start + end) // 2: (start, end) for start, end in spans}
            spans = list(middles.values())
        for start, end in spans:
            yield dict(
                **self._frame(clip.id, (start + end) // 2),
                image_label=label,
                label_map=None,
                reduce_zero_label=False,
                seg_fields=[],
                clip_id=clip.id,
                num_frames=len(files),
                frame_span=(start, end),
            )

    def _spans(self, total: int) -> list[tuple[int, int]]:
        """First and last possible frame of each sample of a clip, both included."""
        if self.frames == 'first_mid':
            return [(0, 0), (total // 2, total // 2)]
        if self.frames == 'stride':
            return [(n, n) for n in range(0, total, self.stride)]
        parts = [n * total // self.num_frames for n in range(self.num_frames + 1)]
        spans = [(a, max(a, b - 1)) for a, b in pairwise(parts)]
        if self.frames == 'random':
            return spans
        return [((a + b) // 2,) * 2 for a, b in spans]

    def _frame(self, clip_id: str, number: int) -> dict:
        """What depends on the frame alone."""
        image_id, path = self._files[clip_id][number]
        found = dict(img_path=path, img_id=image_id, frame_idx=number)
        masks = self.data_prefix.get('seg_map_path')
        if masks is not None:
            found['seg_map_path'] = osp.join(masks, image_id + self.seg_map_suffix)
        return found

    def prepare_data(self, idx: int) -> dict:
        """One frame through the pipeline; 'random' draws it."""
        info = self.get_data_info(idx)
        start, end = info['frame_span']
        if not self.test_mode and start < end:
            number = int(np.random.randint(start, end + 1))
            info.update(self._frame(info['clip_id'], number))
        return self.pipeline(info)

    def clip_slices(self) -> list[range]:
        """Indices of the samples of each clip."""
        names = [self.get_data_info(index)['clip_id'] for index in range(len(self))]
        starts = [n for n, name in enumerate(names) if not n or name != names[n - 1]]
        ends = [*starts[1:], len(names)]
        return [range(a, b) for a, b in zip(starts, ends, strict=True)]

    def get_cat_ids(self, idx: int) -> list[int]:
        """Indices of a frame's classes, for ``mmwsss.ClassBalancedDataset``."""
        return np.flatnonzero(self.get_data_info(idx)['image_label']).tolist()

    def __getitem__(self, index: int) -> dict:
        """One sample; a SeededIndex makes frame and augmentation reproducible."""
        seed_augmentation(index)
        try:
            return super().__getitem__(int(index))
        except UnreadablePhoto as error:
            clip = self.get_data_info(int(index))['clip_id']
            raise UnreadablePhoto(self._how_to_leave_out(clip, str(error))) from None

    def _how_to_leave_out(self, clip: str, sentence: str) -> str:
        paths = {photo_file(path) for _, path in self._files[clip]}
        # Frames of 'random' are drawn, so the sample does not say which it was.
        own = next((path for path in paths if f' {path} ' in sentence), None)
        if own is None:  # of another folder, that a transform has read
            return sentence
        if own.endswith('.npy'):
            return _how_to_leave_array_out(clip, sentence)
        return how_to_leave_out(sentence, self.data_prefix['img_path'])


def _kept_clips(
    clips: Sequence[Clip], excluded: Mapping[str, set[str]]
) -> Sequence[Clip]:
    for path, names in excluded.items():
        kept = [clip for clip in clips if clip.id not in names]
        _say_left_out('clips', path, len(clips), len(kept))
        clips = kept
    return clips


def _say_left_out(what: str, path: str, before: int, after: int) -> None:
    if after < before:
        number = f'{before - after} of {before} {what}'
        print_log(f'left out: {number}, which {path} names', 'current')


def _refuse_unreadable(complaints: Mapping[str, str], clips: Mapping) -> None:
    """Raise UnreadablePhoto with the names of all arrays that cannot be read."""
    if not complaints:
        return
    clip, sentence = next(iter(complaints.items()))
    if len(complaints) == 1:
        raise UnreadablePhoto(_how_to_leave_array_out(clip, sentence))
    raise UnreadablePhoto(
        f'{len(complaints)} of {len(clips)} clips cannot be read: '
        f'{_shown(list(complaints))} (the first: {sentence.partition("; ")[0]}); make '
        'them again, or write their ids into a list, one a line, and leave them out by '
        'exclude=broken.txt, with its full path, in the data set (mmwsss train '
        '--exclude broken.txt)'
    )


def _how_to_leave_array_out(clip: str, sentence: str) -> str:
    return (
        f'{sentence.partition("; ")[0]}; make it again, or write {clip}, the id of the '
        'clip, into a list and leave it out by exclude=broken.txt, with its full path, '
        'in the data set (mmwsss train --exclude broken.txt)'
    )


def _shown(ids: Sequence[str]) -> str:
    return ', '.join(ids[:NAMED]) + (', ...' if len(ids) > NAMED else '')


@DATA_SAMPLERS.register_module()
class ClipStreamSampler(SeededStreamSampler):
    """Endless stream of whole clips: the frames of each one after the other.

    Like ``SeededStreamSampler``, but clips take the place of photos: rank r of W takes
    the clips r, r + W, ... of the stream. The batch size should be a multiple of the
    frames of a clip, else a clip falls apart between two batches.

    Args:
        dataset: a ``VideoClipDataset`` with as many samples of every clip.
        shuffle: a new order of the clips in every epoch.
        seed: the same on all ranks; None draws one and shares it.

    Raises:
        InputError: for another data set, or clips with different numbers of samples.
    """

    def __init__(
        self, dataset: Sized, shuffle: bool = True, seed: int | None = None
    ) -> None:
        super().__init__(dataset, shuffle, seed)
        if not hasattr(dataset, 'clip_slices'):
            raise InputError(
                'ClipStreamSampler needs a mmwsss.VideoClipDataset without a wrapper, '
                f'got {type(dataset).__name__}'
            )
        self.slices = dataset.clip_slices()
        lengths = sorted({len(part) for part in self.slices})
        if len(lengths) > 1:
            raise InputError(
                f'ClipStreamSampler needs as many frames of every clip, but they have '
                f"{lengths[0]} to {lengths[-1]}; give the data set frames='uniform' or "
                "'random'"
            )
        self.frames_per_clip = lengths[0]
        self.size = len(self.slices)

    def __iter__(self) -> Iterator[SeededIndex]:
        number = self.skipped
        epoch, order = -1, None
        while True:
            visit, frame = divmod(number, self.frames_per_clip)
            position = visit * self.world_size + self.rank
            if position // self.size != epoch:
                epoch = position // self.size
                order = self._order(epoch)
            indices = self.slices[order[position % self.size]]
            seed = stable_seed(self.seed, position * self.frames_per_clip + frame)
            yield SeededIndex(indices[frame], seed)
            number += 1

    def __len__(self) -> int:
        """Length of the data set in frames; the stream itself has no end."""
        return self.size * self.frames_per_clip
