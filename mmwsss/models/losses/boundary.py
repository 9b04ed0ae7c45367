"""Losses near the borders of the pseudo-labels."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmwsss.functional.boundary import (
    ENERGY_DILATIONS,
    boundary_band,
    boundary_from_sums,
    boundary_sums,
    pairwise_energy_from_sums,
    pairwise_energy_sums,
)
from mmwsss.functional.pseudo_label import resize_label
from mmwsss.registry import MODELS

from .reduce import all_reduce_sums


@MODELS.register_module()
class BoundaryLoss(nn.Module):
    """Near label borders the streams agree and learn the labels that can be trusted.

    See :func:`mmwsss.functional.boundary.boundary_loss`. Counts the batch of all
    processes together. With the defaults it is 0.1 times the symmetric KL and 0.2
    times the cross-entropy.

    Args:
        width: of the band on each side of an edge, in pixels of the scaled grid.
        bridge: ignored strips of up to twice this many pixels between two labels
            count as their border.
        temperature: of the symmetric KL.
        consistency_weight: factor on the KL between the streams.
        label_weight: factor on the cross-entropy.
        min_weight: a label is learned only where its weight is at least this; 1 asks
            for labels whose reliability reaches the gate of their class. Above it the
            cross-entropy is weighed by the weight.
        scale: the loss is taken on a grid of this times the labels' size.
        ignore_index: label of pixels without supervision.
        loss_weight: factor on the loss.
    """

    def __init__(
        self,
        *,
        width: int = 2,
        bridge: int = 0,
        temperature: float = 2.0,
        consistency_weight: float = 0.5,
        label_weight: float = 1.0,
        min_weight: float = 0.0,
        scale: float = 0.5,
        ignore_index: int = 255,
        loss_weight: float = 0.2,
    ) -> None:
        super().__init__()
        self.width = width
        self.bridge = bridge
        self.temperature = temperature
        self.consistency_weight = consistency_weight
        self.label_weight = label_weight
        self.min_weight = min_weight
        self.scale = _checked_scale(scale)
        self.ignore_index = ignore_index
        self.loss_weight = loss_weight

    def forward(
        self,
        stream_logits: Sequence[Tensor],
        pseudo_label: Tensor,
        valid: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            stream_logits: S >= 1 tensors (N, C, h, w).
            pseudo_label: (N, H, W).
            valid: (N, 1, H, W) 0/1.
            weight: (N, H, W) in [0, 1].
        """
        size = _scaled_size(pseudo_label, self.scale)
        label = resize_label(pseudo_label, size)
        valid = None if valid is None else _nearest(valid, size)
        if weight is not None:
            weight = _nearest(weight[:, None], size)[:, 0]
            weight = weight.masked_fill(weight < self.min_weight, 0.0)
        band = boundary_band(
            label,
            valid,
            width=self.width,
            bridge=self.bridge,
            ignore_index=self.ignore_index,
        )
        sums = boundary_sums(
            [_bilinear(logits, size) for logits in stream_logits],
            label,
            band,
            weight=weight,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
        )
        return self.loss_weight * boundary_from_sums(
            all_reduce_sums(sums),
            consistency_weight=self.consistency_weight,
            label_weight=self.label_weight,
        )


@MODELS.register_module()
class PairwiseEnergyLoss(nn.Module):
    """Neighbours of like colour shall be of one class.

    See :func:`mmwsss.functional.boundary.pairwise_energy`. Counts the batch of all
    processes together.

    Args:
        dilations: of the 3x3 neighbourhoods, in pixels of the scaled grid.
        w1: width of the colour kernel.
        band_width: None lets all real pixels take part, a number only those of the
            boundary band of this width in pixels of the scaled grid.
        scale: the energy is taken on a grid of this times the image's size.
        ignore_index: label of pixels without supervision; they take part.
        loss_weight: factor on the loss.
    """

    def __init__(
        self,
        *,
        dilations: Sequence[int] = ENERGY_DILATIONS,
        w1: float = 0.3,
        band_width: int | None = None,
        scale: float = 0.5,
        ignore_index: int = 255,
        loss_weight: float = 0.05,
    ) -> None:
        super().__init__()
        self.dilations = tuple(dilations)
        self.w1 = w1
        self.band_width = band_width
        self.scale = _checked_scale(scale)
        self.ignore_index = ignore_index
        self.loss_weight = loss_weight

    def forward(
        self,
        seg_logits: Tensor,
        image: Tensor,
        pseudo_label: Tensor,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch.

        Args:
            seg_logits: (N, C, h, w).
            image: (N, 3, H, W), RGB in [0, 1].
            pseudo_label: (N, H, W), read for the band.
            valid: (N, 1, H, W) 0/1.
        """
        size = _scaled_size(image, self.scale)
        sums = pairwise_energy_sums(
            _bilinear(seg_logits, size),
            _bilinear(image, size),
            gate=self._gate(pseudo_label, valid, size),
            dilations=self.dilations,
            w1=self.w1,
        )
        return self.loss_weight * pairwise_energy_from_sums(all_reduce_sums(sums))

    def _gate(
        self, pseudo_label: Tensor, valid: Tensor | None, size: tuple[int, int]
    ) -> Tensor | None:
        valid = None if valid is None else _nearest(valid, size)
        if self.band_width is None:
            return None if valid is None else valid[:, 0]
        return boundary_band(
            resize_label(pseudo_label, size),
            valid,
            width=self.band_width,
            ignore_index=self.ignore_index,
        )


def _checked_scale(scale: float) -> float:
    if not 0 < scale <= 1:
        raise ValueError(f'scale must lie in (0, 1], got {scale}')
    return scale


def _scaled_size(maps: Tensor, scale: float) -> tuple[int, int]:
    height, width = maps.shape[-2:]
    return max(1, round(height * scale)), max(1, round(width * scale))


def _nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> (N, C, h, w), the pixels that ``resize_label`` takes."""
    return F.interpolate(maps, size, mode='nearest-exact')


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps.float(), size, mode='bilinear', align_corners=False)
