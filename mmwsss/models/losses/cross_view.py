"""Consistency of two decoder streams (WeCLIP+, Zhang et al., TPAMI 2025)."""

from torch import Tensor, nn

from mmwsss.functional.losses import cross_view_from_sums, cross_view_sums
from mmwsss.registry import MODELS

from .reduce import all_reduce_sums


@MODELS.register_module()
class CrossViewLoss(nn.Module):
    """Each of two streams learns the other's hard decisions.

    See :func:`mmwsss.functional.cross_view_loss`. Counts the batch of all processes
    together.

    Args:
        threshold: a stream teaches where its largest probability is at least this.
        strict_reference: decisions among all classes instead of background and the
            image's, and NaN for an empty half, as published.
        loss_weight: factor on the loss.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.0,
        strict_reference: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.strict_reference = strict_reference
        self.loss_weight = loss_weight

    def forward(
        self,
        logits_a: Tensor,
        logits_b: Tensor,
        image_label: Tensor,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Logits (N, C, h, w), image_label (N, K), valid (N, 1, h, w) -> scalar."""
        sums = cross_view_sums(
            logits_a,
            logits_b,
            image_label,
            valid=valid,
            restrict=not self.strict_reference,
            threshold=self.threshold,
        )
        return self.loss_weight * cross_view_from_sums(
            all_reduce_sums(sums), strict_reference=self.strict_reference
        )
