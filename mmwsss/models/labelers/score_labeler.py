"""Scores to pseudo-labels with an ignore band and confident self-labels."""

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmwsss.functional import confident_labels, ignore_padding, scores_to_label
from mmwsss.registry import MODELS

from ..decode_heads.streams import DecodedStreams
from .labels import Labels


@MODELS.register_module()
class ScoreLabeler(BaseModule):
    """Label of the best class, 255 where no class is clear enough.

    Args:
        low: best foreground score up to which a pixel is background.
        high: best foreground score from which a pixel takes its class; between the
            two it is ignored. None for both takes the argmax and ignores nothing,
            as published.
        self_label_start: progress from which confident predictions of the decoder
            replace labels (0.6 for VOC and 0.5 for COCO as published); None never.
        self_label_threshold: probability above which a prediction is confident.
        strict_reference: the published rules: padding is labelled too, self-labels
            may be of any class, and the affinity loss learns the labels without them.
    """

    def __init__(
        self,
        *,
        low: float | None = 0.25,
        high: float | None = 0.55,
        self_label_start: float | None = None,
        self_label_threshold: float = 0.75,
        strict_reference: bool = False,
    ) -> None:
        super().__init__()
        self.low = low
        self.high = high
        self.self_label_start = self_label_start
        self.self_label_threshold = self_label_threshold
        self.strict_reference = strict_reference

    def forward(
        self,
        scores: Tensor,
        image_label: Tensor,
        *,
        valid: Tensor,
        decoded: DecodedStreams,
        encoded: dict,
        data_samples: list,
        progress: float,
        update: bool = False,
    ) -> Labels:
        """Scores (N, C, H, W) to labels; keeps no state, so ``update`` is nothing."""
        label = self.base_label(
            scores,
            image_label,
            valid=valid,
            seg_logits=decoded.seg_logits,
            progress=progress,
        )
        if not self.strict_reference:
            return Labels(label)
        return Labels(label, affinity_label=self._score_label(scores, image_label))

    def base_label(
        self,
        scores: Tensor,
        image_label: Tensor,
        *,
        valid: Tensor,
        seg_logits: Tensor,
        progress: float,
    ) -> Tensor:
        """(N, C, H, W) -> pseudo_label (N, H, W)."""
        label = self._score_label(scores, image_label)
        if self.self_label_start is not None and progress >= self.self_label_start:
            seg_logits = F.interpolate(
                seg_logits.float(),
                label.shape[-2:],
                mode='bilinear',
                align_corners=False,
            )
            label = confident_labels(
                seg_logits,
                image_label,
                label,
                threshold=self.self_label_threshold,
                restrict=not self.strict_reference,
            )
        if self.strict_reference:
            return label
        return ignore_padding(label, valid)

    def _score_label(self, scores: Tensor, image_label: Tensor) -> Tensor:
        return scores_to_label(scores, image_label, low=self.low, high=self.high)
