"""A student's maps follow those of a network of another architecture."""

from torch import Tensor, nn

from mmwsss.functional.knowledge_transfer import (
    check_transfer,
    knowledge_transfer_from_sums,
    knowledge_transfer_sums,
)
from mmwsss.registry import MODELS

from .reduce import all_reduce_sums


@MODELS.register_module()
class KnowledgeTransferLoss(nn.Module):
    """Agreement of a student's maps, or class scores, with a teacher's.

    See :func:`mmwsss.functional.knowledge_transfer_loss`. Counts the batch of all
    processes together. A ramp over training comes from ``loss_schedules``. Has no
    parameters: what brings student and teacher to equal channels belongs to the model,
    where it is trained.

    Args:
        mode: 'global' as published, 'channel', 'spatial', 'spatial_map', 'gram' or
            'logits'.
        metric: 'cosine' as published, 'l1', 'l2' or 'kl'.
        temperature: of 'kl', positive.
        normalize: of each map, None as published, 'std' or 'minmax'.
        present_only: leave the channels of absent classes out, so that images without
            any object transfer nothing of these; False as published.
        loss_weight: factor on the loss, lambda of the paper.

    Raises:
        ValueError: if mode and metric do not go together, or a value is out of range.
    """

    def __init__(
        self,
        *,
        mode: str = 'global',
        metric: str = 'cosine',
        temperature: float = 1.0,
        normalize: str | None = None,
        present_only: bool = False,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_transfer(mode, metric, temperature=temperature, normalize=normalize)
        self.mode = mode
        self.metric = metric
        self.temperature = temperature
        self.normalize = normalize
        self.present_only = present_only
        self.loss_weight = loss_weight

    def forward(
        self, student: Tensor, teacher: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """Maps (N, C, h, w) or scores (N, K), present (N, C) 0/1 -> scalar."""
        sums = knowledge_transfer_sums(
            student,
            teacher,
            mode=self.mode,
            metric=self.metric,
            temperature=self.temperature,
            normalize=self.normalize,
            present=present if self.present_only else None,
        )
        return self.loss_weight * knowledge_transfer_from_sums(all_reduce_sums(sums))
