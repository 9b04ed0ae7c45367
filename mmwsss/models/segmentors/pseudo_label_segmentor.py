"""Any MMSegmentation network, trained from stored pseudo-labels behind a gate."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures.sampler import BasePixelSampler
from torch import Tensor, nn

from mmwsss.functional.pseudo_label import ignore_padding
from mmwsss.registry import MODELS

from ..batch import stack_image_labels, valid_mask
from ..decode_heads.streams import DecodedStreams
from ..labelers.labels import Labels
from ..losses.reduce import all_reduce_sums
from .wsss_segmentor import attach_labels, label_shares


@MODELS.register_module()
class PseudoLabelSegmentor(EncoderDecoder):
    """EncoderDecoder whose labels are pseudo-labels: gated and weighted per pixel.

    The stored label is the base; the network's own prediction may repair it where the
    gate finds it more reliable. The pixel weights reach MMSegmentation's heads through
    their ``sampler``, auxiliary heads included, scaled to a mean of one over the
    labelled pixels of all processes: doubtful labels count less among each other and
    do not shrink the step. With the default of MMSegmentation's losses, ignored pixels
    shrink it still; ``avg_non_ignore=True`` leaves them out.

    Data samples hold the stored label in ``gt_sem_seg`` and may hold
    ``pseudo_reliability`` (``mmwsss.LoadPseudoLabels``). Without ``image_label`` the
    image's classes are those of its stored label, in the crop at hand.

    Args:
        backbone: of MMSegmentation.
        decode_head: of MMSegmentation, with one map of logits, or
            ``mmwsss.DualStreamHead``.
        neck: of MMSegmentation.
        auxiliary_head: one or several of MMSegmentation, fed with the gated labels.
        gate: ``mmwsss.ReliabilityGate`` config; its phases are set by
            ``mmwsss.ReliabilityGatedPseudoLabelHook``. None takes the stored labels
            as they are.
        structure_index: which of the backbone's feature maps (after the neck) rates
            neighbouring cells in the gate; None leaves that signal out.
        data_preprocessor: of MMSegmentation.
        train_cfg: kept for MMSegmentation.
        test_cfg: MMSegmentation's.
        init_cfg: MMEngine initialisation.
    """

    def __init__(
        self,
        *,
        backbone: dict,
        decode_head: dict,
        neck: dict | None = None,
        auxiliary_head: dict | Sequence[dict] | None = None,
        gate: dict | None = None,
        structure_index: int | None = -1,
        data_preprocessor: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            decode_head=decode_head,
            neck=neck,
            auxiliary_head=auxiliary_head,
            train_cfg=train_cfg,
            # MMSegmentation reads it by attribute.
            test_cfg=ConfigDict(test_cfg or dict(mode='whole')),
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        self.gate = MODELS.build(gate) if gate else None
        self.structure_index = structure_index
        # Set by ProgressHook before every iteration.
        self.progress = 0.0
        self._weights = [PixelWeights.into(head) for head in self._heads()]

    def _heads(self) -> list[nn.Module]:
        if not self.with_auxiliary_head:
            return [self.decode_head]
        auxiliary = self.auxiliary_head
        several = isinstance(auxiliary, nn.ModuleList)
        return [self.decode_head, *(auxiliary if several else [auxiliary])]

    # ------------------------------------------------------------------- training
    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Losses of one batch against its gated labels."""
        features = self.extract_feat(inputs)
        output, decoded = self._decode(features)
        labels = self.label(inputs, data_samples, features, decoded, update=True)
        attach_labels(data_samples, labels)
        self._hand_out(labels)
        try:
            losses = self._head_losses(output, data_samples, inputs, labels)
            if self.with_auxiliary_head:
                auxiliary = self._auxiliary_head_forward_train(features, data_samples)
                losses.update(auxiliary)
        finally:
            for weights in self._weights:
                weights.weight = None
        valid = valid_mask(data_samples, inputs.shape[-2:], inputs.device)
        losses.update(label_shares(labels.pseudo_label, valid))
        losses.update({f'label.{k}': v for k, v in labels.logs.items()})
        return losses

    def _decode(self, features: Sequence[Tensor]) -> tuple:
        """What the head's losses take, and the same as streams."""
        if hasattr(self.decode_head, 'decode'):
            decoded = self.decode_head.decode(features)
            return decoded, decoded
        output = self.decode_head(features)
        # Some heads return more beside their logits.
        seg_logits = output[0] if isinstance(output, tuple | list) else output
        return output, DecodedStreams(seg_logits, (seg_logits,), None)

    def _head_losses(
        self, output, data_samples: list, inputs: Tensor, labels: Labels
    ) -> dict:
        head = self.decode_head
        if hasattr(head, 'decode'):
            image = inputs if head.needs_image else None
            losses = head.loss_by_feat(
                output, data_samples, image=image, gates=labels.gates
            )
        else:
            losses = head.loss_by_feat(output, data_samples)
        return {f'decode.{name}': value for name, value in losses.items()}

    @torch.no_grad()
    def label(
        self,
        inputs: Tensor,
        data_samples: list,
        features: Sequence[Tensor],
        decoded: DecodedStreams,
        *,
        update: bool = False,
    ) -> Labels:
        """Stored labels (N, H, W) through the gate; ``update`` records this visit."""
        size, device = inputs.shape[-2:], inputs.device
        valid = valid_mask(data_samples, size, device)
        stored = torch.cat([sample.gt_sem_seg.data for sample in data_samples])
        stored = ignore_padding(stored.to(device).long(), valid)
        trust = self._stored_reliability(data_samples, size, device)
        if self.gate is None:
            weight = None if trust is None else trust * (stored != 255)
            return Labels(stored, trust, weight)
        labels = self.gate(
            stored,
            self._image_labels(data_samples, stored),
            valid=valid,
            decoded=decoded.detach(),
            features=self._structure_features(features),
            data_samples=data_samples,
            update=update,
        )
        if trust is None:
            return labels
        # The stored reliability says nothing about repaired pixels.
        factor = torch.where(labels.pseudo_label == stored, trust, 1.0)
        factor = factor * (labels.pseudo_label != 255)
        weight = factor if labels.weight is None else labels.weight * factor
        return replace(labels, weight=weight)

    def _structure_features(self, features: Sequence[Tensor]) -> Tensor | None:
        if self.structure_index is None:
            return None
        return features[self.structure_index].detach()

    def _image_labels(self, data_samples: list, stored: Tensor) -> Tensor:
        given = ['image_label' in sample for sample in data_samples]
        if all(given):
            return stack_image_labels(data_samples, stored.device)
        if any(given):
            raise ValueError(
                'image_label must be in all samples of a batch or in none, got '
                f'{sum(given)} of {len(given)}'
            )
        return present_classes(stored, self.num_classes)

    def _stored_reliability(
        self, data_samples: list, size: torch.Size, device: torch.device
    ) -> Tensor | None:
        """(N, H, W), 0 in the padding; None where no sample has one."""
        having = [s for s in data_samples if 'pseudo_reliability' in s]
        if not having:
            return None
        if len(having) < len(data_samples):
            raise ValueError(
                'pseudo_reliability must be in all samples of a batch or in none, got '
                f'{len(having)} of {len(data_samples)}'
            )
        maps = []
        for sample in data_samples:
            values = sample.pseudo_reliability.data.to(device)
            # The data preprocessor pads labels only.
            missing = (0, size[1] - values.shape[-1], 0, size[0] - values.shape[-2])
            maps.append(F.pad(values, missing))
        return torch.cat(maps)

    def _hand_out(self, labels: Labels) -> None:
        if labels.weight is None:
            return
        weight = mean_one_weights(labels.weight, labels.pseudo_label)
        for weights in self._weights:
            weights.weight = weight

    # ---------------------------------------------------------------- for pictures
    @torch.no_grad()
    def explain(self, inputs: Tensor, data_samples: list) -> Labels:
        """The gated labels of a training batch; nothing is recorded.

        Args:
            inputs: (N, 3, H, W) as the data preprocessor gives it.
            data_samples: with the stored label in ``gt_sem_seg``.
        """
        features = self.extract_feat(inputs)
        return self.label(inputs, data_samples, features, self._decode(features)[1])


class PixelWeights(BasePixelSampler):
    """Stands where a head looks for a sampler and hands out the batch's weights.

    Args:
        inner: The head's own sampler; both weights are multiplied.
    """

    def __init__(self, *, inner: BasePixelSampler | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.weight: Tensor | None = None

    @classmethod
    def into(cls, head: nn.Module) -> 'PixelWeights':
        """Put one into a head."""
        head.sampler = cls(inner=getattr(head, 'sampler', None))
        return head.sampler

    def sample(self, seg_logit: Tensor, seg_label: Tensor) -> Tensor | None:
        """Weights (N, H, W) for labels (N, 1, H, W); None weighs all alike."""
        if self.inner is None:
            return self.weight
        chosen = self.inner.sample(seg_logit, seg_label)
        return chosen if self.weight is None else chosen * self.weight


@torch.no_grad()
def mean_one_weights(weight: Tensor, label: Tensor) -> Tensor:
    """Weights (N, H, W) scaled to mean 1 over the labelled pixels of all processes.

    Ignored pixels (255) get 0, as do all where no labelled pixel has a weight.
    """
    decided = label != 255
    weight = weight.float() * decided
    # float64: a batch has more pixels than float32 can count one by one.
    sums = torch.stack(
        [decided.sum(dtype=torch.float64), weight.sum(dtype=torch.float64)]
    )
    pixels, total = all_reduce_sums(sums)
    return weight * (pixels / total.clamp(min=1e-6)).float()


@torch.no_grad()
def present_classes(label: Tensor, num_classes: int) -> Tensor:
    """image_label (N, K) float32 of the classes in labels (N, H, W); 255 is none."""
    there = torch.zeros(len(label), 256, device=label.device)
    return there.scatter_(1, label.flatten(1), 1.0)[:, 1:num_classes]
