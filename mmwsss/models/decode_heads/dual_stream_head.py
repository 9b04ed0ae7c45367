"""Decoder of WeCLIP+ (Zhang et al., TPAMI 2025) for any number of frozen streams.

Each encoder's feature map goes through an MLP and a 1x1 convolution of its own; a
decoder of pre-norm transformer blocks shared by all streams follows; the streams'
logits are averaged. Unlike the released code the decoder runs in whatever precision
autocast chooses, and its losses are finite (``strict_reference`` in each loss gives
the published forms).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from mmwsss.registry import MODELS

from ..batch import stack_image_labels, valid_mask
from .streams import DecodedStreams


class DecoderBlock(nn.Module):
    """Pre-norm transformer block: attention, then an MLP of four times the width."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm_mlp = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, 4 * channels)
        self.contract = nn.Linear(4 * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D)."""
        n, t, d = tokens.shape
        qkv = self.qkv(self.norm_attention(tokens))
        query, key, value = (
            qkv.view(n, t, 3, self.num_heads, d // self.num_heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )  # each (N, heads, T, d)
        mixed = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(mixed.transpose(1, 2).reshape(n, t, d))
        hidden = self.expand(self.norm_mlp(tokens))
        # QuickGELU, as in CLIP.
        return tokens + self.contract(hidden * torch.sigmoid(1.702 * hidden))


class StreamProjection(nn.Module):
    """Two-layer MLP on every cell, resized to the common grid, then a 1x1 conv."""

    def __init__(self, in_channels: int, channels: int, dropout_ratio: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )
        self.fuse = nn.Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout2d(dropout_ratio)

    def forward(self, features: Tensor, size: torch.Size) -> Tensor:
        """(N, D, h', w') -> (N, channels, h, w)."""
        projected = self.mlp(features)
        if projected.shape[-2:] != size:
            projected = F.interpolate(
                projected, size, mode='bilinear', align_corners=False
            )
        return self.dropout(self.fuse(projected))


@MODELS.register_module()
class DualStreamHead(BaseDecodeHead):
    """One projection per encoder, a shared transformer decoder, averaged logits.

    Args:
        in_channels: channels of each stream's feature map.
        channels: decoder width.
        num_classes: C, background included.
        in_index: which of the backbone's feature maps are the streams; the first
            one's grid is the decoder's.
        num_layers: shared transformer blocks (3; 5 for ViT-L in the paper).
        num_heads: attention heads of each block.
        dropout_ratio: of the streams' features (Dropout2d).
        loss_decode: segmentation losses on the averaged logits.
        loss_affinity: ``mmwsss.AffinityLoss`` on the decoder features, or None.
        loss_cross: ``mmwsss.CrossViewLoss`` between the streams, or None.
        loss_boundary: ``mmwsss.BoundaryLoss`` on the streams, or None.
        loss_energy: ``mmwsss.PairwiseEnergyLoss`` on the averaged logits, or None; it
            needs the image (``needs_image``).
        ignore_index: label without supervision.
        init_cfg: MMEngine initialisation.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        *,
        num_classes: int,
        in_index: Sequence[int] = (0, 1),
        num_layers: int = 3,
        num_heads: int = 8,
        dropout_ratio: float = 0.1,
        loss_decode: dict | list,
        loss_affinity: dict | None = None,
        loss_cross: dict | None = None,
        loss_boundary: dict | None = None,
        loss_energy: dict | None = None,
        ignore_index: int = 255,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            in_channels=tuple(in_channels),
            channels=channels,
            num_classes=num_classes,
            # An explicit value keeps MMSegmentation's hint about two classes quiet.
            out_channels=num_classes,
            dropout_ratio=0.0,
            in_index=tuple(in_index),
            input_transform='multiple_select',
            loss_decode=loss_decode,
            ignore_index=ignore_index,
            align_corners=False,
            init_cfg=init_cfg,
        )
        self.projections = nn.ModuleList(
            StreamProjection(c, channels, dropout_ratio) for c in in_channels
        )
        self.blocks = nn.ModuleList(
            DecoderBlock(channels, num_heads) for _ in range(num_layers)
        )
        self.loss_affinity = MODELS.build(loss_affinity) if loss_affinity else None
        self.loss_cross = MODELS.build(loss_cross) if loss_cross else None
        self.loss_boundary = MODELS.build(loss_boundary) if loss_boundary else None
        self.loss_energy = MODELS.build(loss_energy) if loss_energy else None
        if loss_cross and len(self.in_index) < 2:
            raise ValueError(
                f'loss_cross needs two streams or more, got in_index={self.in_index}'
            )

    @property
    def needs_image(self) -> bool:
        """Whether ``loss_by_feat`` wants the image."""
        return self.loss_energy is not None

    def decode(self, inputs: Sequence[Tensor]) -> DecodedStreams:
        """All feature maps of the backbone -> logits and features of the streams."""
        streams = self._transform_inputs(inputs)
        size = streams[0].shape[-2:]
        features = [
            projection(stream, size)
            for projection, stream in zip(self.projections, streams, strict=True)
        ]
        # The decoder is shared, so the streams go through it as one batch.
        tokens = torch.cat(features).flatten(2).transpose(1, 2)  # (S*N, h*w, D)
        for block in self.blocks:
            tokens = block(tokens)
        maps = tokens.transpose(1, 2).unflatten(2, size)
        stream_logits = self.conv_seg(maps).chunk(len(streams))
        seg_logits = torch.stack(stream_logits).mean(0)
        return DecodedStreams(seg_logits, stream_logits, torch.cat(features, dim=1))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Averaged logits (N, C, h, w)."""
        return self.decode(inputs).seg_logits

    def loss_by_feat(
        self,
        decoded: DecodedStreams,
        batch_data_samples: list,
        image: Tensor | None = None,
        gates: Tensor | None = None,
    ) -> dict:
        """Losses of a batch against the samples' ``gt_sem_seg``.

        Args:
            decoded: what ``decode`` returned.
            batch_data_samples: ``pseudo_weight``, ``pseudo_reliability`` and
                ``affinity_label``, each (1, H, W), are read where the samples have
                them.
            image: (N, 3, H, W), RGB in [0, 1], if ``needs_image``.
            gates: (C,) gate of each class, for a ``loss_cross`` that uses it.
        """
        if self.needs_image and image is None:
            raise ValueError('loss_energy needs the image, got image=None')
        pseudo_label = self._stack_batch_gt(batch_data_samples).squeeze(1)
        size, device = pseudo_label.shape[-2:], pseudo_label.device
        weight = stack_pixel_maps(batch_data_samples, 'pseudo_weight')
        losses = self._segmentation_losses(decoded.seg_logits, pseudo_label, weight)
        if self.loss_affinity is not None:
            affinity_label = stack_pixel_maps(batch_data_samples, 'affinity_label')
            losses['loss_affinity'] = self.loss_affinity(
                decoded.features,
                pseudo_label if affinity_label is None else affinity_label,
                weight,
                stack_pixel_maps(batch_data_samples, 'pseudo_reliability'),
            )
        if not (self.loss_cross or self.loss_boundary or self.loss_energy):
            return losses
        valid = valid_mask(batch_data_samples, size, device)
        if self.loss_cross is not None:
            image_label = stack_image_labels(batch_data_samples, device)
            losses['loss_cross'] = self._cross_view(
                decoded.stream_logits, image_label, valid, gates, weight
            )
        if self.loss_boundary is not None:
            losses['loss_boundary'] = self.loss_boundary(
                decoded.stream_logits, pseudo_label, valid, weight
            )
        if self.loss_energy is not None:
            losses['loss_energy'] = self.loss_energy(
                decoded.seg_logits, image, pseudo_label, valid
            )
        return losses

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: dict):
        """MMSegmentation's entry for a head used outside WSSSSegmentor."""
        return self.loss_by_feat(self.decode(inputs), batch_data_samples)

    def _segmentation_losses(
        self, seg_logits: Tensor, pseudo_label: Tensor, weight: Tensor | None
    ) -> dict:
        """Losses of ``loss_decode`` on the labels' grid, and the accuracy."""
        # BaseDecodeHead does the same, but takes weights from a sampler only and waits
        # for the device to count the labelled pixels.
        seg_logits = F.interpolate(
            seg_logits,
            pseudo_label.shape[-2:],
            mode='bilinear',
            align_corners=self.align_corners,
        )
        several = isinstance(self.loss_decode, nn.ModuleList)
        losses = {}
        for loss in self.loss_decode if several else [self.loss_decode]:
            value = loss(
                seg_logits, pseudo_label, weight=weight, ignore_index=self.ignore_index
            )
            name = loss.loss_name
            losses[name] = losses[name] + value if name in losses else value
        losses['acc_seg'] = pixel_accuracy(
            seg_logits, pseudo_label, ignore_index=self.ignore_index
        )
        return losses

    def _cross_view(
        self,
        stream_logits: tuple,
        image_label: Tensor,
        valid: Tensor,
        gates: Tensor | None,
        weight: Tensor | None,
    ) -> Tensor:
        size = stream_logits[0].shape[-2:]
        if self.loss_cross.at_label_size:
            size = valid.shape[-2:]
            stream_logits = [
                F.interpolate(logits, size, mode='bilinear', align_corners=False)
                for logits in stream_logits
            ]
        if weight is not None:
            weight = F.interpolate(weight[:, None], size, mode='nearest-exact')[:, 0]
        return self.loss_cross.between(
            stream_logits,
            image_label,
            valid=F.interpolate(valid, size, mode='nearest'),
            gates=gates,
            weight=weight,
        )


def stack_pixel_maps(data_samples: list, name: str) -> Tensor | None:
    """(N, H, W) of a field with (1, H, W) each; None where no sample has it."""
    having = [name in sample for sample in data_samples]
    if not any(having):
        return None
    if not all(having):
        raise ValueError(
            f'{name} must be in all samples of a batch or in none, got '
            f'{sum(having)} of {len(having)}'
        )
    return torch.cat([sample.get(name).data for sample in data_samples])


@torch.no_grad()
def pixel_accuracy(
    seg_logits: Tensor, pseudo_label: Tensor, *, ignore_index: int = 255
) -> Tensor:
    """Percentage of the labelled pixels that have their label, 0 without any."""
    kept = pseudo_label != ignore_index
    correct = (seg_logits.argmax(dim=1) == pseudo_label) & kept
    return 100.0 * correct.sum() / kept.sum().clamp(min=1)
