"""What every CAM network offers: trained with image labels, asked photo by photo.

A CAM network is an MMEngine model. ``tools/train.py`` calls ``loss`` through
``forward(mode='loss')``; whoever makes, stores or scores CAMs calls ``cams`` (one kind
of map) or ``all_cams`` (several from the same passes) and needs to know nothing else
about it. A subclass writes ``loss``, ``scale_maps`` and ``finish_maps``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from torch import Tensor

from mmwsss.errors import InputError
from mmwsss.functional import piecewise_linear

from ..encoders.base import IMAGENET_MEAN, IMAGENET_STD


@dataclass
class PhotoCAMs:
    """What a CAM network says about one photo, at the photo's size.

    Attributes:
        cams: (K, H, W) in [0, 1], absent classes exactly 0.
        scores: (C, H, W) in [0, 1] with a background of its own in channel 0, absent
            classes exactly 0: the label is their argmax. None where the background
            has to come from a threshold on ``cams``.
        probs: (K,) in [0, 1], whether the photo shows each class, by the network and
            not by the image label. None where the network does not say.
    """

    cams: Tensor
    scores: Tensor | None = None
    probs: Tensor | None = None


class CAMNetwork(BaseModel):
    """A network that learns from image labels and gives CAMs of photos.

    Data samples need ``image_label`` (K,); masks are never read. Images are RGB in
    [0, 1] (data preprocessor with mean 0 and std 255); the network normalises them
    and gives padding the mean colour.

    Args:
        num_classes: K, foreground classes.
        data_preprocessor: MMSegmentation's, see above.
        mean: image mean of the pretrained backbone, RGB, 0..255.
        std: image standard deviation, RGB, 0..255.
        test_scales: sizes of a photo whose maps are added up.
        test_flip: each size is seen mirrored too.
        max_side: longest side of a scaled photo in pixels; larger ones are cut to it,
            since the relation of all cells grows with the fourth power.
        loss_schedules: loss name as logged -> [[progress, factor], ...], a
            piecewise-linear factor on that loss.
        init_cfg: MMEngine initialisation.
    """

    # Kinds of maps a photo can be asked for; a subclass names its own.
    kinds: tuple[str, ...] = ('cam',)

    def __init__(
        self,
        *,
        num_classes: int,
        data_preprocessor: dict | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        test_scales: Sequence[float] = (1.0,),
        test_flip: bool = False,
        max_side: int = 2048,
        loss_schedules: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if num_classes < 1:
            raise ValueError(f'num_classes must be at least 1, got {num_classes}')
        if not test_scales or min(test_scales) <= 0:
            raise ValueError(f'test_scales must be positive, got {test_scales}')
        if max_side < 1:
            raise ValueError(f'max_side must be at least 1, got {max_side}')
        self.num_classes = num_classes
        self.test_scales = tuple(test_scales)
        self.test_flip = test_flip
        self.max_side = max_side
        self.loss_schedules = dict(loss_schedules or {})
        # Set by ProgressHook before every iteration: the hook owns time.
        self.progress = 0.0
        for name, values in (('mean', mean), ('std', std)):
            values = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) / 255
            self.register_buffer(name, values, persistent=False)

    # ------------------------------------------------------------ for the subclass
    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Losses of one batch of padded images (N, 3, H, W)."""
        raise NotImplementedError

    def scale_maps(
        self, image: Tensor, image_label: Tensor, kinds: Sequence[str]
    ) -> dict[str, Tensor]:
        """Maps of one photo at one scale; those of all scales are added up.

        Args:
            image: (1, 3, H, W) RGB in [0, 1].
            image_label: (1, K) 0/1.
            kinds: which maps.

        Returns:
            kind -> (1, K or C, h, w) >= 0, any resolution.
        """
        raise NotImplementedError

    def finish_maps(self, kind: str, total: Tensor, image_label: Tensor) -> PhotoCAMs:
        """Sum over the scales (1, K or C, H, W) at the photo's size -> result."""
        raise NotImplementedError

    # -------------------------------------------------------- for tools and metrics
    @property
    def default_kind(self) -> str:
        """The kind of maps that the network is made for."""
        return self.kinds[-1]

    def cams(
        self, photo: Tensor, image_label: Tensor, *, kind: str | None = None
    ) -> PhotoCAMs:
        """CAMs of one photo, fused over scales and flips; without gradient.

        Call it in eval mode. Works on the network's device, whatever the photo's.

        Args:
            photo: (3, H, W) RGB, uint8 or floating point in [0, 1], any size.
            image_label: (K,) 0/1; a photo without any class is legal.
            kind: one of ``kinds``; None for ``default_kind``.

        Returns:
            Maps at the photo's size on the network's device.

        Raises:
            InputError: if the photo, its label or the kind is not as above.
        """
        kind = kind or self.default_kind
        return self.all_cams(photo, image_label, kinds=(kind,))[kind]

    @torch.no_grad()
    def all_cams(
        self,
        photo: Tensor,
        image_label: Tensor,
        *,
        kinds: Sequence[str] | None = None,
    ) -> dict[str, PhotoCAMs]:
        """Several kinds of CAMs from the same passes; None for all of ``kinds``."""
        kinds = tuple(kinds or self.kinds)
        unknown = [kind for kind in kinds if kind not in self.kinds]
        if unknown:
            raise InputError(
                f'{type(self).__name__} gives the maps {self.kinds}, it has no '
                f'{unknown[0]!r}'
            )
        image = self._photo_as_image(photo)
        image_label = self._label_of_photo(image_label)
        size = tuple(image.shape[-2:])
        totals: dict[str, Tensor] = {}
        for scale in self.test_scales:
            scaled = resized_photo(image, scaled_size(size, scale, self.max_side))
            for kind, maps in self.scale_maps(scaled, image_label, kinds).items():
                maps = F.interpolate(
                    maps.float(), size, mode='bilinear', align_corners=False
                )
                totals[kind] = totals[kind] + maps if kind in totals else maps
        return {
            kind: self.finish_maps(kind, total, image_label)
            for kind, total in totals.items()
        }

    def _photo_as_image(self, photo: Tensor) -> Tensor:
        if photo.ndim != 3 or photo.shape[0] != 3 or 0 in photo.shape:
            raise InputError(
                f'a photo must be (3, H, W), RGB, got a tensor {tuple(photo.shape)}'
            )
        if not (photo.dtype == torch.uint8 or photo.is_floating_point()):
            raise InputError(
                f'a photo must be uint8 or floating point in [0, 1], got {photo.dtype}'
            )
        scale = 255 if photo.dtype == torch.uint8 else 1
        return photo[None].to(self.mean) / scale

    def _label_of_photo(self, image_label: Tensor) -> Tensor:
        if tuple(image_label.shape) != (self.num_classes,):
            raise InputError(
                f'the image label must hold {self.num_classes} numbers, one per '
                f'foreground class, got a tensor {tuple(image_label.shape)}; the '
                "network's classes and those of the label file must be the same"
            )
        return (image_label[None] > 0).to(self.mean)

    # ------------------------------------------------------------- MMEngine's modes
    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> dict | list:
        """'loss' gives the losses, 'predict' the data samples with CAMs and labels."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        raise ValueError(f"mode must be 'loss' or 'predict', got {mode!r}")

    def predict(self, inputs: Tensor, data_samples: list) -> list:
        """Add ``cams`` and, with a background, ``pred_sem_seg`` at ``ori_shape``.

        Also ``class_probs`` (K,) of a network that says it.
        """
        for image, sample in zip(inputs, data_samples, strict=True):
            height, width = sample.img_shape[:2]
            found = self.cams(image[:, :height, :width], sample.image_label)
            size = tuple(sample.ori_shape[:2])
            sample.set_field(_at(found.cams, size), 'cams', dtype=Tensor)
            if found.probs is not None:
                sample.set_field(found.probs, 'class_probs', dtype=Tensor)
            if found.scores is not None:
                label = _at(found.scores, size).argmax(0, keepdim=True)
                sample.pred_sem_seg = PixelData(data=label)
        return data_samples

    # ---------------------------------------------------------- parts of a training
    def normalized(self, image: Tensor) -> Tensor:
        """RGB in [0, 1] as the backbone expects it."""
        return (image - self.mean) / self.std

    def padding_filled(self, inputs: Tensor, valid: Tensor) -> Tensor:
        """Images (N, 3, H, W) whose padding has the mean colour, 0 when normalised."""
        return torch.where(valid > 0, inputs, self.mean)

    def apply_schedules(self, losses: dict) -> None:
        """Scale the losses that ``loss_schedules`` names, in place."""
        for name, points in self.loss_schedules.items():
            if name not in losses:
                raise ValueError(
                    f'loss_schedules names {name!r}, but the losses are '
                    f'{sorted(losses)}'
                )
            losses[name] = losses[name] * piecewise_linear(self.progress, points)


def scaled_size(size: tuple[int, int], scale: float, max_side: int) -> tuple[int, int]:
    """(height, width) times the scale, at least 1 and at most ``max_side`` pixels."""
    scale = min(scale, max_side / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def resized_photo(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, 3, H, W) in [0, 1] as Pillow's bicubic, to within a grey level."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    scaled = F.interpolate(
        image, size, mode='bicubic', align_corners=False, antialias=True
    )
    return (scaled * 255).round().clamp(0, 255) / 255


def unflipped_sum(views: Tensor) -> Tensor:
    """(1 or 2, C, h, w), the second view mirrored -> (1, C, h, w)."""
    if views.shape[0] == 1:
        return views
    return views[:1] + views[1:].flip(-1)


def _at(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps[None], size, mode='bilinear', align_corners=False)[0]
