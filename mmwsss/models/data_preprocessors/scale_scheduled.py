"""Smaller pairs of images and pseudo-masks early in the training (ORANDNet)."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.structures import PixelData
from mmseg.models import SegDataPreProcessor
from torch import Tensor

from mmwsss.errors import InputError, tool
from mmwsss.functional import piecewise_constant, piecewise_linear
from mmwsss.functional.pseudo_label import most_frequent, resize_label
from mmwsss.registry import MODELS

_CURVES = {'steps': piecewise_constant, 'linear': piecewise_linear}
MASK_MODES = ('nearest', 'mode')


@MODELS.register_module()
class ScaleScheduledDataPreProcessor(SegDataPreProcessor):
    """MMSegmentation's data preprocessor, and a scale that grows with the training.

    The poster of ORANDNet says that pairs of images and masks are downsampled early in
    the training; scales, boundaries and resampling are ours. A training batch is
    resized after padding: images bilinearly with antialiasing, everything else per
    pixel by the nearest pixel, so that 255 and class ids stay what they are. At scale 1
    a batch is handed on untouched, and so is every batch of evaluation.

    How far the training is, is read from the runner's message hub, which holds the
    iteration: no hook is needed, data workers need not know, and a resumed run goes on
    where it was.

    Args:
        scales: (progress, scale) pairs, scales in (0, 1]; the default takes half the
            size for a quarter of the training and three quarters for another one.
        curve: 'steps' holds the last pair's scale, 'linear' goes from pair to pair:
            ``((0.5, 0.5), (0.8, 1.0))`` is the ramp of MosaicML Composer.
        divisor: sides of a scaled batch are rounded to a multiple of it; 32 for a
            network of stride 8 with a head on stride 32.
        mask_mode: 'nearest', or 'mode' for the most frequent label under a new pixel.
        mean: of MMSegmentation, as all below.
        std: see there.
        size: see there.
        size_divisor: see there.
        pad_val: see there.
        seg_pad_val: see there.
        bgr_to_rgb: see there.
        rgb_to_bgr: see there.
        test_cfg: see there.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        *,
        scales: Sequence[Sequence[float]] = ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0)),
        curve: str = 'steps',
        divisor: int = 8,
        mask_mode: str = 'nearest',
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: Sequence[int] | None = None,
        size_divisor: int | None = None,
        pad_val: float = 0,
        seg_pad_val: float = 255,
        bgr_to_rgb: bool = False,
        rgb_to_bgr: bool = False,
        test_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            mean=mean,
            std=std,
            size=None if size is None else tuple(size),
            size_divisor=size_divisor,
            pad_val=pad_val,
            seg_pad_val=seg_pad_val,
            bgr_to_rgb=bgr_to_rgb,
            rgb_to_bgr=rgb_to_bgr,
            test_cfg=test_cfg,
        )
        for name, value, known in (
            ('curve', curve, tuple(_CURVES)),
            ('mask_mode', mask_mode, MASK_MODES),
        ):
            if value not in known:
                raise ValueError(f'{name} must be one of {known}, got {value!r}')
        if divisor < 1:
            raise ValueError(f'divisor must be at least 1, got {divisor}')
        _CURVES[curve](0.0, scales)  # checks the pairs
        if not all(0 < scale <= 1 for _, scale in scales):
            raise ValueError(f'scales must lie in (0, 1], got {scales}')
        self.scales = [tuple(pair) for pair in scales]
        self.curve = curve
        self.divisor = divisor
        self.mask_mode = mask_mode

    def scale_at(self, progress: float) -> float:
        """The scale in (0, 1] at a progress in [0, 1]."""
        return _CURVES[self.curve](progress, self.scales)

    def forward(self, data: dict, training: bool = False) -> dict:
        """MMSegmentation's, then the scale of the iteration that is under way.

        Args:
            data: ``inputs`` and ``data_samples`` of a loader.
            training: nothing is scaled otherwise.
        """
        data = super().forward(data, training)
        if not training:
            return data
        before = tuple(data['inputs'].shape[-2:])
        after = self._target(before, self.scale_at(_progress_of_runner()))
        if after == before:
            return data
        data['inputs'] = F.interpolate(
            data['inputs'], after, mode='bilinear', align_corners=False, antialias=True
        )
        for sample in data['data_samples']:
            self._resize_sample(sample, before, after)
        return data

    def _target(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        if scale == 1:
            return size
        height, width = (self._side(side, scale) for side in size)
        return height, width

    def _side(self, side: int, scale: float) -> int:
        # Halves go up; Python's round would send 2.5 to 2 and 3.5 to 4.
        number = max(1, math.floor(side * scale / self.divisor + 0.5))
        return min(side, number * self.divisor)

    def _resize_sample(
        self, sample, before: tuple[int, int], after: tuple[int, int]
    ) -> None:
        """Scale all maps of a sample, and what it says about its size."""
        for name, field in list(sample.items()):
            if not isinstance(field, PixelData):
                continue
            maps = {k: self._resized(m, before, after) for k, m in field.items()}
            sample.set_field(PixelData(**maps), name, dtype=PixelData)
        shape = sample.metainfo.get('img_shape', before)[:2]
        height, width = (
            max(1, round(side * new / old))
            for side, old, new in zip(shape, before, after, strict=True)
        )
        sample.set_metainfo(
            {
                'img_shape': (height, width),
                'pad_shape': after,
                'padding_size': [0, after[1] - width, 0, after[0] - height],
            }
        )

    def _resized(
        self, maps: Tensor, before: tuple[int, int], after: tuple[int, int]
    ) -> Tensor:
        """A map (C, h, w), which may lack the padding, on the new grid."""
        height, width = maps.shape[-2:]
        # MMSegmentation pads labels alone; the others get zeros.
        maps = F.pad(maps, (0, before[1] - width, 0, before[0] - height))
        if self.mask_mode == 'mode' and not maps.is_floating_point():
            return most_frequent(maps, after)
        if maps.is_floating_point():
            # The value of the very pixel whose label is taken.
            return F.interpolate(maps[None], after, mode='nearest-exact')[0]
        return resize_label(maps, after).to(maps.dtype)


def _progress_of_runner() -> float:
    known = MessageHub.get_current_instance().runtime_info
    if not known.get('max_iters'):
        raise InputError(
            'ScaleScheduledDataPreProcessor reads from MMEngine how far the training '
            f'is, but no Runner is training; start it with {tool("train")}'
        )
    return known['iter'] / known['max_iters']
