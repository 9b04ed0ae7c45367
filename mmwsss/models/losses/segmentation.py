"""Losses with MMSegmentation's interface, for ``loss_decode`` of any decode head."""

from torch import Tensor, nn

from mmwsss.functional.losses import (
    balanced_cross_entropy_from_sums,
    balanced_cross_entropy_sums,
    class_counts,
    frequency_weights,
    present_dice_from_sums,
    present_dice_sums,
)
from mmwsss.registry import MODELS

from .reduce import all_reduce_sums


@MODELS.register_module()
class BalancedCrossEntropyLoss(nn.Module):
    """Mean of the cross-entropy on background and on foreground pixels.

    See :func:`mmwsss.functional.balanced_cross_entropy`. Counts the batch of all
    processes together. MMSegmentation's ``weight`` is a weight per pixel; each half
    is divided by the sum of its weights, not by its number of pixels.

    Args:
        label_smoothing: probability spread over the other classes.
        class_balance: 'none', or 'batch' to weigh the foreground classes against
            their frequency in the pseudo-labels of the batch
            (:func:`mmwsss.functional.losses.frequency_weights`).
        class_weight_range: smallest and largest of these weights.
        strict_reference: NaN for an empty half, as published.
        loss_weight: factor on the loss.
        loss_name: key in the log; only names that start with ``loss`` are optimised.
    """

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        class_balance: str = 'none',
        class_weight_range: tuple[float, float] = (0.5, 3.0),
        strict_reference: bool = False,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_balanced_ce',
    ) -> None:
        super().__init__()
        if class_balance not in ('none', 'batch'):
            raise ValueError(
                f"class_balance must be 'none' or 'batch', got {class_balance!r}"
            )
        self.label_smoothing = label_smoothing
        self.class_balance = class_balance
        self.class_weight_range = tuple(class_weight_range)
        self.strict_reference = strict_reference
        self.loss_weight = loss_weight
        self._loss_name = check_loss_name(loss_name)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = 255,
    ) -> Tensor:
        """Logits (N, C, H, W), labels and weights (N, H, W) -> scalar."""
        sums = balanced_cross_entropy_sums(
            cls_score,
            label,
            label_smoothing=self.label_smoothing,
            ignore_index=ignore_index,
            weight=weight,
            class_weight=self._class_weight(cls_score, label, weight, ignore_index),
        )
        return self.loss_weight * balanced_cross_entropy_from_sums(
            all_reduce_sums(sums), strict_reference=self.strict_reference
        )

    def _class_weight(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None,
        ignore_index: int,
    ) -> Tensor | None:
        if self.class_balance == 'none':
            return None
        counts = class_counts(
            label,
            num_classes=cls_score.shape[1],
            weight=weight,
            ignore_index=ignore_index,
        )
        low, high = self.class_weight_range
        return frequency_weights(all_reduce_sums(counts), low=low, high=high)

    @property
    def loss_name(self) -> str:
        """Key of the loss in MMSegmentation's dict of losses."""
        return self._loss_name


@MODELS.register_module()
class PresentDiceLoss(nn.Module):
    """Soft dice, averaged over the classes that occur in the labels of the batch.

    See :func:`mmwsss.functional.present_dice_loss`. Counts the batch of all processes
    together.

    Args:
        strict_reference: average over all classes, as published.
        loss_weight: factor on the loss.
        loss_name: key in the log; only names that start with ``loss`` are optimised.
    """

    def __init__(
        self,
        *,
        strict_reference: bool = False,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_present_dice',
    ) -> None:
        super().__init__()
        self.strict_reference = strict_reference
        self.loss_weight = loss_weight
        self._loss_name = check_loss_name(loss_name)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = 255,
    ) -> Tensor:
        """Logits (N, C, H, W), labels and weights (N, H, W) -> scalar."""
        sums = present_dice_sums(
            cls_score, label, ignore_index=ignore_index, weight=weight
        )
        return self.loss_weight * present_dice_from_sums(
            all_reduce_sums(sums), strict_reference=self.strict_reference
        )

    @property
    def loss_name(self) -> str:
        """Key of the loss in MMSegmentation's dict of losses."""
        return self._loss_name


def check_loss_name(loss_name: str) -> str:
    """Refuse a name that MMEngine would log but not optimise."""
    if not loss_name.startswith('loss_'):
        raise ValueError(f"loss_name must start with 'loss_', got {loss_name!r}")
    return loss_name
