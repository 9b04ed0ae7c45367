"""Refinement of CAMs by transformer attention (CLIP-ES, WeCLIP's RFM, RFM+)."""

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmwsss.functional import (
    box_limits,
    feature_affinity,
    filter_attentions,
    normalize_cams,
    propagate_cams,
    sinkhorn_affinity,
)
from mmwsss.registry import MODELS


@MODELS.register_module()
class AttentionRefiner(BaseModule):
    """CAMs propagated along the attentions of one frozen encoder.

    Mhat_k = (S(R) . B_k)(M_k . P_k) with R the mean of the chosen attentions, times
    the decoder's feature affinity where ``use_decoder_affinity``; B_k the box mask;
    P the decoder's prediction where ``use_predictions`` (RFM+).

    Args:
        source: name of the encoder whose attentions are used.
        layer_filter: 'none', 'cls_mass' or 'abs_l1', see ``filter_attentions``.
        use_decoder_affinity: multiply R by the affinity of the decoder features.
        use_predictions: multiply the CAMs by the decoder's class probabilities.
        box_threshold: of the box limits, relative to each CAM's maximum; None for
            no limits.
        num_squarings: of the Sinkhorn affinity.
        normalize_affinity: see ``feature_affinity``; False as published.
        decoder_start: progress from which the decoder takes part at all (WeCLIP:
            half of the training; WeCLIP+: 0).
    """

    def __init__(
        self,
        *,
        source: str,
        layer_filter: str = 'cls_mass',
        use_decoder_affinity: bool = True,
        use_predictions: bool = True,
        box_threshold: float | None = 0.4,
        num_squarings: int = 1,
        normalize_affinity: bool = True,
        decoder_start: float = 0.0,
    ) -> None:
        super().__init__()
        self.source = source
        self.layer_filter = layer_filter
        self.use_decoder_affinity = use_decoder_affinity
        self.use_predictions = use_predictions
        self.box_threshold = box_threshold
        self.num_squarings = num_squarings
        self.normalize_affinity = normalize_affinity
        self.decoder_start = decoder_start

    def forward(
        self,
        cams: Tensor,
        image_label: Tensor,
        encoded: dict,
        decoded,
        *,
        progress: float = 1.0,
    ) -> Tensor:
        """(N, K, h', w') -> (N, K, h, w) in [0, 1] on the encoder's grid."""
        tower = encoded[self.source]
        if tower.attentions is None:
            raise ValueError(
                f'encoder {self.source!r} keeps no attentions; set num_attentions'
            )
        grid = tower.features[-1].shape[-2:]
        cams = _resize(cams, grid)
        boxes = None
        if self.box_threshold is not None:
            boxes = box_limits(cams, threshold=self.box_threshold)
        with_decoder = progress >= self.decoder_start
        patches = tower.attentions[:, :, tower.num_extra_tokens :]
        attention = filter_attentions(
            patches[..., tower.num_extra_tokens :],
            self._decoder_affinity(decoded, grid) if with_decoder else None,
            # Without a decoder there is nothing to compare the layers with.
            mode=self.layer_filter if with_decoder else 'none',
        )
        affinity = sinkhorn_affinity(attention, num_squarings=self.num_squarings)
        if self.use_predictions and with_decoder:
            probabilities = _resize(decoded.seg_logits, grid).float().softmax(1)
            cams = cams * probabilities[:, 1:]
        refined = propagate_cams(cams, affinity, boxes)
        refined = normalize_cams(refined, mode='minmax', eps=1e-7)
        return refined * image_label[:, :, None, None]

    def _decoder_affinity(self, decoded, grid) -> Tensor | None:
        if not self.use_decoder_affinity or decoded.features is None:
            return None
        return feature_affinity(
            _resize(decoded.features, grid).float(), normalize=self.normalize_affinity
        )


def _resize(maps: Tensor, size) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode='bilinear', align_corners=False)
