"""Consistency with the averaged teacher."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmwsss.functional.consistency import (
    teacher_consistency_from_sums,
    teacher_consistency_sums,
)
from mmwsss.registry import MODELS

from .reduce import all_reduce_sums


@MODELS.register_module()
class TeacherLoss(nn.Module):
    """The student follows its averaged teacher where the teacher is confident.

    See :func:`mmwsss.functional.teacher_consistency`. Counts the batch of all
    processes together.

    Args:
        threshold: the teacher's largest probability must be at least this.
        loss_weight: factor on the loss.
    """

    def __init__(self, *, threshold: float = 0.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.threshold = threshold
        self.loss_weight = loss_weight

    def forward(
        self,
        seg_logits: Tensor,
        teacher_logits: Tensor,
        image_label: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """Logits (N, C, h, w), image_label (N, K), valid (N, 1, H, W) -> scalar."""
        sums = teacher_consistency_sums(
            seg_logits,
            teacher_logits,
            image_label,
            valid=F.interpolate(valid, seg_logits.shape[-2:], mode='nearest'),
            threshold=self.threshold,
        )
        return self.loss_weight * teacher_consistency_from_sums(all_reduce_sums(sums))
