"""Consistency of a decoder's streams (WeCLIP+, Zhang et al., TPAMI 2025)."""

from collections.abc import Sequence

from torch import Tensor, nn

from mmwsss.functional.losses import multi_view_from_sums, multi_view_sums
from mmwsss.registry import MODELS

from .reduce import all_reduce_sums


@MODELS.register_module()
class CrossViewLoss(nn.Module):
    """Each stream learns the hard decisions of the others.

    See :func:`mmwsss.functional.losses.cross_view_loss` for two streams and
    :func:`mmwsss.functional.losses.multi_view_loss` for more. Counts the batch of all
    processes together. A ramp over training comes from ``loss_schedules``.

    Args:
        threshold: a stream teaches where its largest probability is at least this.
        use_gates: take the labeler's gate of each class as its threshold where gates
            are given.
        use_weight: weigh each cell by the weight of its pseudo-label where there is
            one.
        restrict_to_image_classes: decisions among background and the image's classes;
            False takes all classes, as published.
        at_label_size: take logits and decisions on the grid of the labels, as
            published, instead of the streams' own; the decode head sees to it.
        strict_reference: decisions among all classes and NaN for an empty half, as
            published.
        loss_weight: factor on the loss.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.0,
        use_gates: bool = False,
        use_weight: bool = False,
        restrict_to_image_classes: bool = True,
        at_label_size: bool = False,
        strict_reference: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.use_gates = use_gates
        self.use_weight = use_weight
        self.restrict_to_image_classes = restrict_to_image_classes
        self.at_label_size = at_label_size
        self.strict_reference = strict_reference
        self.loss_weight = loss_weight

    def forward(
        self,
        logits_a: Tensor,
        logits_b: Tensor,
        image_label: Tensor,
        valid: Tensor | None = None,
        gates: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Two streams; see ``between``."""
        return self.between((logits_a, logits_b), image_label, valid, gates, weight)

    def between(
        self,
        stream_logits: Sequence[Tensor],
        image_label: Tensor,
        valid: Tensor | None = None,
        gates: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Loss between all ordered pairs of streams.

        Args:
            stream_logits: S >= 2 tensors (N, C, h, w).
            image_label: (N, K) 0/1.
            valid: (N, 1, h, w) 0/1.
            gates: (C,), read with ``use_gates``.
            weight: (N, h, w), read with ``use_weight``.
        """
        gated = self.use_gates and gates is not None
        sums = multi_view_sums(
            stream_logits,
            image_label,
            valid=valid,
            restrict=self.restrict_to_image_classes and not self.strict_reference,
            threshold=gates if gated else self.threshold,
            weight=weight if self.use_weight else None,
        )
        return self.loss_weight * multi_view_from_sums(
            all_reduce_sums(sums), strict_reference=self.strict_reference
        )
