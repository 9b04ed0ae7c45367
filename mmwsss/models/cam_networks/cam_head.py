"""CAMs from classifiers trained on frozen features with image labels (Zhou 2016)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmwsss.functional import class_maps, normalize_cams
from mmwsss.registry import MODELS


@MODELS.register_module()
class CAMHead(BaseModule):
    """A linear multi-label classifier per encoder; its class maps are the CAMs.

    The score of a class is the mean of its map over the real cells, so that the map
    itself is the explanation. CAMs of several encoders are averaged.

    Args:
        in_channels: encoder name -> channels of its last feature map.
        num_classes: K, foreground classes.
        dropout_ratio: of feature channels before the classifier.
        normalize_features: standardise each cell's features (LayerNorm without
            parameters), for encoders whose channels differ much in scale.
        loss_weight: weight of the multi-label soft margin loss.
        init_cfg: MMEngine initialisation.
    """

    def __init__(
        self,
        *,
        in_channels: Mapping[str, int],
        num_classes: int,
        dropout_ratio: float = 0.0,
        normalize_features: bool = True,
        loss_weight: float = 1.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not in_channels:
            raise ValueError('in_channels names no encoder, got an empty dict')
        self.classifiers = nn.ModuleDict(
            {
                name: nn.Conv2d(channels, num_classes, 1)
                for name, channels in in_channels.items()
            }
        )
        self.dropout = nn.Dropout2d(dropout_ratio)
        self.normalize_features = normalize_features
        self.loss_weight = loss_weight

    def class_maps(self, encoded: dict) -> dict[str, Tensor]:
        """Raw class maps (N, K, h, w) per encoder."""
        maps = {}
        for name, classifier in self.classifiers.items():
            features = encoded[name].features[-1]
            if self.normalize_features:
                features = F.layer_norm(
                    features.movedim(1, -1), features.shape[1:2]
                ).movedim(-1, 1)
            features = self.dropout(features)
            weight = classifier.weight.flatten(1)
            maps[name] = class_maps(features, weight, classifier.bias)
        return maps

    def cams(
        self,
        encoded: dict,
        image_label: Tensor,
        valid: Tensor,
        *,
        encoders=None,
        max_classes: int | None = None,
    ) -> Tensor:
        """CAMs (N, K, h, w) in [0, 1] on the finest encoder grid.

        ``encoders`` and ``max_classes`` are there for sources that run an encoder
        again; not used here.
        """
        maps = list(self.class_maps(encoded).values())
        size = max((m.shape[-2:] for m in maps), key=lambda s: s[0] * s[1])
        total = 0
        for raw in maps:
            inside = raw * F.interpolate(valid, raw.shape[-2:], mode='nearest')
            total = total + F.interpolate(
                normalize_cams(inside), size, mode='bilinear', align_corners=False
            )
        return normalize_cams(total) * image_label[:, :, None, None]

    def losses(self, encoded: dict, image_label: Tensor, valid: Tensor) -> dict:
        """Multi-label soft margin loss of every encoder's classifier."""
        losses = {}
        for name, raw in self.class_maps(encoded).items():
            inside = F.interpolate(valid, raw.shape[-2:], mode='nearest')
            count = inside.sum((2, 3)).clamp(min=1)
            scores = (raw * inside).sum((2, 3)) / count  # (N, K)
            loss = F.multilabel_soft_margin_loss(scores.float(), image_label)
            losses[f'loss_cls_{name}'] = self.loss_weight * loss
        return losses

    @torch.no_grad()
    def scores(self, encoded: dict) -> Tensor:
        """Image-level class probabilities (N, K), averaged over the encoders."""
        maps = self.class_maps(encoded).values()
        return torch.stack([m.mean((2, 3)).sigmoid() for m in maps]).mean(0)
