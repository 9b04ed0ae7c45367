"""Labels that follow the segments of Segment Anything, or of any other generator."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmwsss.errors import InputError, tool
from mmwsss.functional import restrict_to_image_classes, scores_to_label
from mmwsss.functional.segment_merge import (
    COMBINATIONS,
    follow_label,
    merge_segments_iou,
    merge_segments_sepl,
    winning_label,
)
from mmwsss.registry import MODELS

RULES = ('iou', 'sepl')


@MODELS.register_module()
class SAMMerge(BaseModule):
    """Scores whose best class follows stored segments.

    P_k is where class k has the best score, so a threshold is that of the background
    (``make_pseudo_labels.py --background 0.3``); put it behind other refiners.

    Args:
        segments: folder of a ``datasets.SegmentStore``, one file a photo, which
            ``make_pseudo_labels.py`` reads.
        rule: 'iou' or 'sepl', see ``functional.merge_segments_iou`` and
            ``functional.merge_segments_sepl``.
        min_iou: of 'iou', in [0, 1].
        max_area: of 'iou', in [0, 1].
        combine: of 'iou': 'or', 'and' or 'replace'.
        min_inside: of 'sepl', in [0, 1].
        min_share: of 'sepl', in [0, 1].

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        *,
        segments: str,
        rule: str = 'iou',
        min_iou: float = 0.3,
        max_area: float = 0.5,
        combine: str = 'replace',
        min_inside: float = 0.5,
        min_share: float = 0.85,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ('rule', rule, RULES),
            ('combine', combine, COMBINATIONS),
        ):
            if value not in known:
                raise ValueError(f'{name} must be one of {known}, got {value!r}')
        iou = dict(min_iou=min_iou, max_area=max_area)
        sepl = dict(min_inside=min_inside, min_share=min_share)
        for name, value in (iou | sepl).items():
            if not 0 <= value <= 1:
                raise ValueError(f'{name} must be in [0, 1], got {value}')
        self.photo_inputs = {'segments': segments}
        self.rule = rule
        self.iou = dict(**iou, combine=combine)
        self.sepl = sepl

    @torch.no_grad()
    def forward(
        self,
        image: Tensor,
        scores: Tensor,
        image_label: Tensor,
        segments: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Let the scores follow the merged masks.

        Args:
            image: (N, 3, H, W); its size alone is used.
            scores: (N, C, h, w) >= 0, channel 0 background.
            image_label: (N, K) 0/1.
            segments: (M, H, W) bool of each photo.

        Returns:
            (N, C, H, W), absent classes 0; where the label is another one, two scores
            have changed places.
        """
        if segments is None:
            raise InputError(
                'SAMMerge needs the segments of each photo, which only '
                f'{tool("make_pseudo_labels")} reads; use it there, in --refine'
            )
        size = tuple(image.shape[-2:])
        scores = F.interpolate(scores.float(), size, mode='bilinear')
        scores = restrict_to_image_classes(scores, image_label, fill=0.0)
        label = scores_to_label(scores, image_label)
        merged = [
            self._merged(own.to(label.device), *of_photo)
            for own, *of_photo in zip(segments, label, scores, image_label, strict=True)
        ]
        return follow_label(scores, torch.stack(merged))

    def _merged(
        self, segments: Tensor, label: Tensor, scores: Tensor, image_label: Tensor
    ) -> Tensor:
        """Label (H, W) of one photo after its segments (M, H, W)."""
        classes = image_label.nonzero().flatten() + 1
        masks = label == classes[:, None, None]
        if self.rule == 'iou':
            masks = merge_segments_iou(masks, segments, **self.iou)
        else:
            masks = merge_segments_sepl(masks, segments, **self.sepl)
        number = winning_label(masks, scores[classes])
        return F.pad(classes, (1, 0))[number]
