"""Photos, with tags or without, to masks and how far to trust them."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from mmwsss.apis.evaluate import load_model
from mmwsss.apis.jobs import device_of
from mmwsss.apis.label_rules import BackgroundRule, build_refiners
from mmwsss.apis.make_cams import SEGMENTOR_KINDS
from mmwsss.apis.make_pseudo_labels import DEFAULT_THRESHOLD, OWN, reliability_of
from mmwsss.apis.photos import Photo, photo_batch, photo_pipeline
from mmwsss.apis.select_threshold import (
    TaggedPhoto,
    ThresholdChoice,
    select_threshold,
)
from mmwsss.apis.train import load_config
from mmwsss.checkpoints import read_checkpoint
from mmwsss.datasets.cam_store import grid_size
from mmwsss.datasets.image_label_dataset import find_photos
from mmwsss.datasets.image_labels import ImageLabels, load_image_labels
from mmwsss.datasets.transforms import LoadPhoto, read_photo
from mmwsss.errors import InputError, tool
from mmwsss.evaluation.explained import explained_photos, resized_label
from mmwsss.files import find_checkpoint
from mmwsss.functional import restrict_to_image_classes, scores_to_label
from mmwsss.visualization.overlay import overlay_labels

MAX_SIDE = 1024
# A class that the tags do not name is worth a word from this share of the photo on.
UNEXPECTED_SHARE = 0.005
# What a segmentor's answer can be made of; a CAM network names its own kinds of maps.
PREDICTION = 'prediction'

PhotoInput = str | os.PathLike | np.ndarray
Tags = Mapping[str, Sequence[str]] | ImageLabels | str | os.PathLike | Sequence


@dataclass(frozen=True, eq=False)
class Inference:
    """What is known about one photo.

    Attributes:
        id: Path below the given folder without suffix, the file's name without
            suffix, or the position among the photos for an array.
        path: The photo's file, None for an array.
        photo: (H, W, 3) uint8 RGB, upright.
        mask: (H, W) uint8: 0 background, k the k-th foreground class, 255 undecided.
        reliability: (H, W) float32 in [0, 1]: the share of the label's score among
            those of background and the photo's classes; 0 where undecided.
        numbered_classes: Index in the mask and name of the classes in it, ascending.
        tags: The photo's tags in that order, None where it came without.
        missing: Tags without a pixel in the mask; () without tags.
        unexpected: Classes without a tag that the network sees on ``UNEXPECTED_SHARE``
            of the photo or more when nothing restricts it (a CAM network: whose
            probability is above 0.5); () without tags, None where it cannot say.
        scores: (C, H, W) float32 in [0, 1] if they were asked for; channel 0 is the
            background, absent classes are 0.
    """

    id: str
    path: str | None
    photo: np.ndarray
    mask: np.ndarray
    reliability: np.ndarray
    numbered_classes: tuple[tuple[int, str], ...]
    tags: tuple[str, ...] | None
    missing: tuple[str, ...]
    unexpected: tuple[str, ...] | None
    scores: np.ndarray | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the mask, in the order of the class list."""
        return tuple(name for _, name in self.numbered_classes)

    def overlay(self, *, max_side: int | None = None) -> np.ndarray:
        """The mask over the faded photo, (h, w, 3) uint8 RGB.

        Args:
            max_side: Make it smaller where its longest side has more pixels.
        """
        photo = _within(self.photo, max_side)
        mask = resized_label(torch.from_numpy(self.mask), None, photo.shape[:2])
        return overlay_labels(photo, mask.numpy())


@dataclass(frozen=True, eq=False)
class _Answer:
    """A network's answer on the grid that it looked at.

    ``maps`` are (K, h, w) >= 0, absent classes 0, ``own`` is the background (h, w) that
    they bring along or None, ``present`` is (K,) 0/1 and ``seen`` what an unrestricted
    network sees, (K,) bool or None.
    """

    maps: Tensor
    own: Tensor | None
    present: Tensor
    seen: Tensor | None


class WSSSInferencer:
    """Masks, reliability and overlays of photos, one after the other.

    Nothing is kept of a photo once the next one is asked for, so memory does not grow
    with their number.

    Args:
        config: Config of the network: any segmentor of MMSegmentation or a CAM network.
        checkpoint: Its checkpoint, or a work directory whose last one is taken.
        classes: K names of the foreground classes; None reads them from the checkpoint.
        kind: What the masks are made of. A segmentor's ``'prediction'`` (default), or
            of ``mmwsss.WSSSSegmentor`` ``'cams'`` and ``'refined'`` (its scores after
            all refiners); for a CAM network one of its kinds of maps, None for the
            one it is made for. CAMs need tags, unless the network also says which
            classes a photo shows (``class_probs``).
        background: Where the score of the background comes from; None takes the one
            that the scores bring along, or a threshold of 0.25 for CAMs without.
        refiners: Configs of score refiners in order, as ``dict(type='mmwsss.PAMR')``.
        low: With ``high``: a best class score up to here is background.
        high: From here on it is that class; 255 between the two.
        max_side: Longest side in pixels that the network and the refiners see; a
            larger photo is made smaller, its mask has the photo's own size. None for
            no limit.
        device: For example ``'cuda:0'``; None takes a GPU if there is one.
        cfg_options: Changes of the config.

    Raises:
        InputError: Config and checkpoint do not fit, or an argument is unusable.
    """

    def __init__(
        self,
        config: str | os.PathLike,
        checkpoint: str | os.PathLike,
        *,
        classes: Sequence[str] | None = None,
        kind: str | None = None,
        background: BackgroundRule | None = None,
        refiners: Sequence[dict] = (),
        low: float | None = None,
        high: float | None = None,
        max_side: int | None = MAX_SIDE,
        device: str | None = None,
        cfg_options: dict | None = None,
    ) -> None:
        if (low is None) != (high is None):
            raise InputError('give both low and high, or neither')
        if low is not None and not 0 <= low <= high <= 1:
            raise InputError(f'0 <= low <= high <= 1 must hold, got {low} and {high}')
        if max_side is not None and max_side < 16:
            raise InputError(f'max_side must be 16 pixels or more, got {max_side}')
        self.device = device_of(0, device)
        loaded = load_config(str(config), cfg_options, None)
        init_default_scope(loaded.get('default_scope', 'mmseg'))
        checkpoint = find_checkpoint(checkpoint)
        self.classes = tuple(classes or trained_classes(loaded, checkpoint))
        self.background, self.low, self.high = background, low, high
        self.max_side = max_side
        self.model, _ = load_model(loaded, checkpoint, self.device)
        self._source = self._find_source(loaded, kind)
        self.refiners = build_refiners(refiners, self.device)
        for refiner in self.refiners:
            if getattr(refiner, 'photo_inputs', {}):
                raise InputError(
                    f'{type(refiner).__name__} reads stored files of each photo, which '
                    f'photos of your own do not have; use {tool("make_pseudo_labels")}'
                )

    def __call__(
        self,
        photos: PhotoInput | Iterable[PhotoInput],
        tags: Tags | None = None,
        *,
        scores: bool = False,
    ) -> Iterator[Inference]:
        """Look at photos; each result is there before the next photo is opened.

        Args:
            photos: A file, a folder (all photos below it), an array (H, W, 3) uint8
                RGB, or an iterable of files and arrays.
            tags: What the photos show: names that hold for all of them; a list of
                names per photo, in order; or names by photo id (a mapping, image
                labels, or the path of their JSON). None puts no limit on the classes.
            scores: Hand out the scores too, C maps a photo.

        Raises:
            InputError: A photo cannot be read or has no tags, or a tag is unknown.
        """
        tags_of = _tag_finder(tags)
        for position, (image_id, photo) in enumerate(listed_photos(photos)):
            yield self.infer(
                _pixels(photo),
                image_id=image_id,
                path=None if isinstance(photo, np.ndarray) else str(photo),
                tags=tags_of(position, image_id),
                scores=scores,
            )

    @torch.no_grad()
    def infer(
        self,
        photo: np.ndarray,
        *,
        image_id: str = '0',
        path: str | None = None,
        tags: Sequence[str] | None = None,
        scores: bool = False,
    ) -> Inference:
        """Look at one photo (H, W, 3) uint8 RGB; see ``__call__``."""
        image_label = None if tags is None else self.image_label(tags, image_id)
        size, seen_photo = photo.shape[:2], _within(photo, self.max_side)
        answer = self._source(seen_photo, image_id, image_label)
        refined = self._refined(seen_photo, answer)
        label = scores_to_label(
            refined, answer.present[None], low=self.low, high=self.high
        )
        sure = reliability_of(refined, label, answer.present[None])[0]
        mask = resized_label(label[0], None, size).byte().cpu().numpy()
        named = None if image_label is None else self._names(image_label > 0)
        shown = np.bincount(mask.ravel(), minlength=256)[1 : len(self.classes) + 1] > 0
        found = tuple(
            (k, name) for k, name in enumerate(self.classes, 1) if shown[k - 1]
        )
        return Inference(
            id=image_id,
            path=path,
            photo=photo,
            mask=mask,
            reliability=resized_label(sure.float(), None, size).cpu().numpy(),
            numbered_classes=found,
            tags=named,
            missing=tuple(n for n in named or () if n not in dict(found).values()),
            unexpected=self._unexpected(answer, image_label),
            scores=self._scores_at(refined, answer, size) if scores else None,
        )

    def choose_threshold(
        self, photos: PhotoInput | Iterable[PhotoInput], tags: Tags
    ) -> ThresholdChoice:
        """Choose the threshold of the CAMs by the photos, without a mask, and take it.

        Some hundred photos with tags are enough.

        Args:
            photos: As for ``__call__``.
            tags: As for ``__call__``.

        Raises:
            InputError: The network's scores have a background of their own, or the
                photos tell nothing.
        """
        choice = select_threshold(self._tagged_cams(photos, tags))
        # Six digits are what is shown and recorded.
        value = float(f'{choice.threshold:g}')
        self.background = BackgroundRule('threshold', value, choice.described)
        return choice

    @torch.no_grad()
    def _tagged_cams(
        self, photos: PhotoInput | Iterable[PhotoInput], tags: Tags
    ) -> Iterator[TaggedPhoto]:
        tags_of = _tag_finder(tags)
        for position, (image_id, photo) in enumerate(listed_photos(photos)):
            image_label = self.image_label(tags_of(position, image_id), image_id)
            pixels = _within(_pixels(photo), self.max_side)
            answer = self._source(pixels, image_id, image_label)
            if answer.own is not None:
                raise InputError(
                    f'the scores of a {type(self.model).__name__} (kind {self.kind}) '
                    'have a background of their own; no threshold is needed'
                )
            present, grid = answer.present > 0, grid_size(pixels.shape[:2])
            # Interpolation takes no map of zero channels, so all go along.
            maps = F.interpolate(
                answer.maps[None], grid, mode='bilinear', align_corners=False
            )
            yield TaggedPhoto(
                torch.from_numpy(pixels).movedim(-1, 0), maps[0, present].cpu()
            )

    def image_label(self, tags: Sequence[str], image_id: str) -> Tensor:
        """image_label (K,) of a photo's tags."""
        if isinstance(tags, str):
            raise InputError(f'the tags of {image_id!r} must be a list, got {tags!r}')
        label = torch.zeros(len(self.classes))
        for name in tags:
            if name not in self.classes:
                raise InputError(
                    f'the photo {image_id!r} has the tag {name!r}, which the network '
                    f'was not trained for; it knows {", ".join(self.classes)}'
                )
            label[self.classes.index(name)] = 1
        return label

    # -------------------------------------------------------------------- the parts
    def _find_source(self, config: Config, kind: str | None):
        """(photo, image_id, image_label or None) -> _Answer."""
        model = self.model
        if hasattr(model, 'cams'):
            self.kind = kind or model.default_kind
            return self._by_cam_network
        allowed = [PREDICTION]
        allowed += SEGMENTOR_KINDS if hasattr(model, 'explain') else ()
        self.kind = kind or PREDICTION
        if self.kind not in allowed:
            raise InputError(
                f'a {type(model).__name__} gives {", ".join(allowed)}, it has no '
                f'{kind!r}'
            )
        steps = photo_pipeline(config).transforms
        self._steps = [
            s for s in steps if not isinstance(s, (LoadPhoto, LoadImageFromFile))
        ]
        if self.kind == PREDICTION:
            return self._by_prediction
        return self._by_explanation

    def _by_prediction(
        self, photo: np.ndarray, image_id: str, image_label: Tensor | None
    ) -> _Answer:
        known = len(self.classes)
        label = torch.ones(known) if image_label is None else image_label
        batch = self._batch(photo, image_id, label)
        logits = self.model.test_step(batch)[0].seg_logits.data.float()[None]
        if logits.shape[1] != known + 1:
            raise InputError(
                f'the segmentor predicts {logits.shape[1]} classes, but the class list '
                f'has {known + 1} with background; they must be the same'
            )
        label = label.to(logits.device)
        scores = restrict_to_image_classes(logits, label[None]).softmax(1)[0]
        counts = logits[0].max(0).indices.flatten().bincount(minlength=known + 1)
        seen = counts[1:] >= UNEXPECTED_SHARE * logits[0, 0].numel()
        return _Answer(scores[1:], scores[0], label, seen)

    def _by_explanation(
        self, photo: np.ndarray, image_id: str, image_label: Tensor | None
    ) -> _Answer:
        label = self._needed(image_label, image_id)
        batch = self._batch(photo, image_id, label)
        (found,) = explained_photos(self.model, batch, inference=False)
        label = label.to(found['cams'].device)
        if self.kind == 'cams':
            return _Answer(found['cams'], None, label, None)
        return _Answer(found['refined'][1:], found['refined'][0], label, None)

    def _by_cam_network(
        self, photo: np.ndarray, image_id: str, image_label: Tensor | None
    ) -> _Answer:
        pixels = torch.from_numpy(np.ascontiguousarray(photo)).movedim(-1, 0)
        seen = None
        if hasattr(self.model, 'class_probs'):
            seen = self.model.class_probs(pixels) > 0.5
        if image_label is None and seen is not None:
            image_label = seen.float().cpu()
        label = self._needed(image_label, image_id)
        found = self.model.cams(pixels, label, kind=self.kind)
        label = label.to(found.cams.device)
        if found.scores is None:
            return _Answer(found.cams.float(), None, label, seen)
        return _Answer(found.scores[1:].float(), found.scores[0].float(), label, seen)

    def _needed(self, image_label: Tensor | None, image_id: str) -> Tensor:
        if image_label is None:
            raise InputError(
                f'a {type(self.model).__name__} does not say which classes a photo '
                f'shows; give the tags of {image_id!r}, or take a trained segmentor'
            )
        return image_label

    def _batch(self, photo: np.ndarray, image_id: str, image_label: Tensor) -> dict:
        """A batch of one photo, through the config's own steps after loading."""
        classes = tuple(image_label.nonzero()[:, 0].tolist())
        bgr = np.ascontiguousarray(photo[..., ::-1])

        def steps(results: dict) -> dict:
            results.update(img=bgr, img_shape=bgr.shape[:2], ori_shape=bgr.shape[:2])
            for step in self._steps:
                results = step(results)
            return results

        return photo_batch(
            steps, Photo(id=image_id, path=image_id, classes=classes), len(image_label)
        )

    def _refined(self, photo: np.ndarray, answer: _Answer) -> Tensor:
        default = DEFAULT_THRESHOLD if answer.own is None else OWN
        scores = (self.background or default).scores(answer.maps, answer.own)
        size = photo.shape[:2]
        if self.refiners:
            pixels = torch.from_numpy(np.ascontiguousarray(photo)).movedim(-1, 0)
            image = pixels[None].to(scores.device).float() / 255
            for refiner in self.refiners:
                scores = refiner(image, scores, answer.present[None])
        scores = scores.float()
        if tuple(scores.shape[-2:]) != size:
            scores = F.interpolate(scores, size, mode='bilinear', align_corners=False)
        return scores

    def _scores_at(
        self, scores: Tensor, answer: _Answer, size: tuple[int, int]
    ) -> np.ndarray:
        kept = restrict_to_image_classes(scores, answer.present[None], fill=0.0)
        if tuple(kept.shape[-2:]) != tuple(size):
            kept = F.interpolate(kept, size, mode='bilinear', align_corners=False)
        return kept[0].cpu().numpy()

    def _unexpected(
        self, answer: _Answer, image_label: Tensor | None
    ) -> tuple[str, ...] | None:
        if image_label is None:
            return ()
        if answer.seen is None:
            return None
        return self._names(answer.seen.cpu() & (image_label == 0))

    def _names(self, chosen: Tensor) -> tuple[str, ...]:
        return tuple(self.classes[k] for k in chosen.nonzero()[:, 0].tolist())


def trained_classes(config: Config, checkpoint: Path) -> list[str]:
    """The K foreground classes that a checkpoint was trained for.

    Raises:
        InputError: Neither the checkpoint nor the config's training set names them.
    """
    content = read_checkpoint(checkpoint)
    meta = content.get('meta') or {} if isinstance(content, dict) else {}
    names = list((meta.get('dataset_meta') or {}).get('classes') or ())
    if names:
        if names[0] != 'background':
            raise InputError(
                f'{checkpoint} was trained for classes without a background, the first '
                f'is {names[0]!r}; masks here have background as index 0'
            )
        return names[1:]
    dataset = (config.get('train_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    if dataset.get('image_labels') is None:
        raise InputError(
            f'{checkpoint} does not say which classes it was trained for; give their '
            'names (classes=...)'
        )
    path = Path(dataset.get('data_root') or '', dataset['image_labels'])
    return list(load_image_labels(path).classes)


def listed_photos(
    photos: PhotoInput | Iterable[PhotoInput],
) -> Iterator[tuple[str, PhotoInput]]:
    """(id, file or array) of each photo, see ``WSSSInferencer.__call__``."""
    if isinstance(photos, np.ndarray):
        # A stack of photos is an iterable of arrays, one photo is not.
        photos = photos if photos.ndim == 4 else [photos]
    elif isinstance(photos, (str, os.PathLike)):
        folder = Path(photos)
        if folder.is_dir():
            found = find_photos(folder)
            if not found:
                raise InputError(f'the folder {folder} holds no photo')
            yield from ((image_id, folder / file) for image_id, file in found)
            return
        photos = [folder]
    for position, photo in enumerate(photos):
        if isinstance(photo, np.ndarray):
            yield str(position), photo
        elif isinstance(photo, (str, os.PathLike)):
            yield Path(photo).stem, photo
        else:
            raise InputError(
                'a photo must be a path or an array (H, W, 3) uint8, got a '
                f'{type(photo).__name__}'
            )


def _pixels(photo: PhotoInput) -> np.ndarray:
    """A photo as (H, W, 3) uint8 RGB, or an InputError if it is none."""
    if not isinstance(photo, np.ndarray):
        return np.ascontiguousarray(read_photo(str(photo))[..., ::-1])
    if photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise InputError(f'an array must be (H, W, 3), RGB, got {photo.shape}')
    if photo.dtype != np.uint8:
        raise InputError(f'an array must be uint8, 0 to 255, got {photo.dtype}')
    return photo


def _tag_finder(tags: Tags | None):
    """(position, image id) -> names, or None without tags."""
    if tags is None:
        return lambda position, image_id: None
    if isinstance(tags, (str, os.PathLike)):
        tags = load_image_labels(tags)
    if isinstance(tags, ImageLabels):
        names, labels = tags.classes, tags.labels
        tags = _NamesById(names, labels)
    if isinstance(tags, Mapping):
        return lambda position, image_id: _by_id(tags, image_id)
    tags = list(tags)
    if all(isinstance(name, str) for name in tags):
        return lambda position, image_id: tags
    return lambda position, image_id: _by_position(tags, position)


class _NamesById(Mapping):
    """Image labels as names, made when asked for."""

    def __init__(self, classes: Sequence[str], labels: Mapping) -> None:
        self.classes, self.labels = classes, labels

    def __getitem__(self, image_id: str) -> list[str]:
        return [self.classes[k] for k in self.labels[image_id]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)


def _by_id(tags: Mapping, image_id: str) -> Sequence[str]:
    if image_id not in tags:
        raise InputError(
            f'the tags have no entry for the photo {image_id!r}; add one (an empty '
            'list for a photo without objects)'
        )
    return tags[image_id]


def _by_position(tags: Sequence, position: int) -> Sequence[str]:
    if position >= len(tags):
        raise InputError(
            f'there are tags for {len(tags)} photos, but more photos; give one list of '
            'names per photo'
        )
    return tags[position]


def _within(photo: np.ndarray, max_side: int | None) -> np.ndarray:
    """A photo (H, W, 3) made so small that its longest side fits."""
    longest = max(photo.shape[:2])
    if max_side is None or longest <= max_side:
        return photo
    size = [max(1, round(side * max_side / longest)) for side in photo.shape[:2]]
    pixels = torch.from_numpy(np.ascontiguousarray(photo)).movedim(-1, 0)[None].float()
    small = F.interpolate(
        pixels, size, mode='bilinear', align_corners=False, antialias=True
    )
    return small[0].movedim(0, -1).round().clamp(0, 255).byte().numpy()
