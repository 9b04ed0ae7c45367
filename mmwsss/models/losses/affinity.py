"""Affinity loss on a decoder's features (AFA, Ru et al., CVPR 2022; WeCLIP)."""

from torch import Tensor, nn

from mmwsss.functional.losses import (
    affinity_from_sums,
    affinity_sums,
    feature_affinity,
)
from mmwsss.functional.pseudo_label import resize_label
from mmwsss.registry import MODELS

from .reduce import all_reduce_sums


@MODELS.register_module()
class AffinityLoss(nn.Module):
    """Cells with one label shall have like features, near cells with two unlike ones.

    See :func:`mmwsss.functional.feature_affinity` and
    :func:`mmwsss.functional.affinity_loss`. Counts the batch of all processes
    together. A pair with an end whose pseudo-label has weight 0 or too little
    reliability does not count, as if that label were ignored.

    Args:
        radius: Chebyshev distance in cells up to which pairs count.
        min_reliability: of both ends of a pair, in [0, 1].
        ignore_index: label of pixels that take no part.
        strict_reference: unnormalised affinity and the label of each cell's corner
            instead of its centre, as published.
        loss_weight: factor on the loss.
    """

    def __init__(
        self,
        *,
        radius: int = 8,
        min_reliability: float = 0.0,
        ignore_index: int = 255,
        strict_reference: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.radius = radius
        self.min_reliability = min_reliability
        self.ignore_index = ignore_index
        self.strict_reference = strict_reference
        self.loss_weight = loss_weight

    def forward(
        self,
        features: Tensor,
        pseudo_label: Tensor,
        weight: Tensor | None = None,
        reliability: Tensor | None = None,
    ) -> Tensor:
        """Features (N, D, h, w); labels and maps (N, H, W) of any size -> scalar."""
        label = pseudo_label
        if weight is not None:
            label = label.masked_fill(weight <= 0, self.ignore_index)
        if reliability is not None:
            label = label.masked_fill(
                reliability < self.min_reliability, self.ignore_index
            )
        label = resize_label(
            label,
            tuple(features.shape[-2:]),
            strict_reference=self.strict_reference,
        )
        sums = affinity_sums(
            feature_affinity(features, normalize=not self.strict_reference),
            label,
            radius=self.radius,
            ignore_index=self.ignore_index,
        )
        return self.loss_weight * affinity_from_sums(all_reduce_sums(sums))
