"""Repair of pseudo-labels where the network is more reliable than they are."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmwsss.functional.pseudo_label import ignore_padding, top_class
from mmwsss.functional.reliability import (
    BLEND_MODES,
    blend_reliability,
    class_gates,
    gate_labels,
    reliability_weight,
    sample_class_maps,
    stream_confidence,
    structural_consistency,
    temporal_agreement,
    update_class_means_from_sums,
    update_class_means_sums,
)
from mmwsss.registry import MODELS

from ..batch import crop_geometry
from ..decode_heads.streams import DecodedStreams
from ..losses.reduce import all_reduce_sums
from .labels import Labels

PHASES = ('explore', 'repair', 'consolidate')


@MODELS.register_module()
class ReliabilityGate(BaseModule):
    """Decides pixel by pixel between a base label, the network's label and ignore.

    Three signals rate every class in every cell: the share of earlier predictions of
    the same photo that agree (temporal), confidence and agreement of the decoder's
    streams (confidence), and the share of similar cells nearby with the same label
    (structure). Their blend is the reliability. What is done with it depends on the
    phase, which ``ReliabilityGatedPseudoLabelHook`` sets from the progress:

    * explore: base labels stay as they are, the signals are only recorded;
    * repair: where network and base label differ, the network's label is taken if
      its reliability reaches the gate of its class and that of the base label is below
      ``repair_below``; failing that, base labels below ``ignore_below`` become 255;
    * consolidate: the same with the higher gate, and agreed labels below
      ``drop_agreed_below`` become 255, too.

    Labels never leave the image's classes. Phase, class means and history are in the
    checkpoint.

    Args:
        num_classes: C, background included.
        structure_source: encoder whose frozen features give the structure signal.
        weights: of temporal, confidence and structure.
        mode: 'weighted', 'geometric' or 'rank', see ``blend_reliability``.
        history: a ``mmwsss.PredictionHistory`` config; None leaves that signal out.
        repair_below: reliability below which a base label may be repaired; None sets
            no limit. Undecided pixels may always be filled in.
        ignore_below: reliability below which a disputed base label is ignored; None
            keeps it.
        drop_agreed_below: the same for agreed labels when consolidating.
        momentum: of the running mean confidence per class (FreeMatch, ICLR 2023).
        gate_limits: smallest and largest gate of a class.
        weight_power: exponent of the pixel weights min(reliability / gate, 1)^power;
            None weighs all pixels alike.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        structure_source: str | None = None,
        weights: Sequence[float] = (0.30, 0.35, 0.35),
        mode: str = 'weighted',
        history: dict | None = None,
        repair_below: float | None = 0.1,
        ignore_below: float | None = None,
        drop_agreed_below: float | None = 0.5,
        momentum: float = 0.99,
        gate_limits: tuple[float, float] = (0.40, 0.95),
        weight_power: float | None = None,
    ) -> None:
        super().__init__()
        if mode not in BLEND_MODES:
            raise ValueError(f'mode must be one of {BLEND_MODES}, got {mode!r}')
        self.num_classes = num_classes
        self.structure_source = structure_source
        self.weights = tuple(weights)
        self.mode = mode
        self.history = MODELS.build(history) if history else None
        self.repair_below = repair_below
        self.ignore_below = ignore_below
        self.drop_agreed_below = drop_agreed_below
        self.momentum = momentum
        self.gate_limits = tuple(gate_limits)
        self.weight_power = weight_power
        self.phase, self.base_gate = PHASES[0], 1.0
        self.register_buffer('class_means', torch.full((num_classes,), 1 / num_classes))
        # Number of the phase and the base gate: what evaluation finds in a checkpoint.
        self.register_buffer('schedule', torch.tensor([0.0, 1.0]))

    def set_phase(self, phase: str, base_gate: float) -> None:
        """Called by the hook before every iteration."""
        if phase not in PHASES:
            raise ValueError(f'phase must be one of {PHASES}, got {phase!r}')
        self.phase, self.base_gate = phase, base_gate
        # Filling from host numbers waits for nothing, unlike reading them back.
        self.schedule[0].fill_(PHASES.index(phase))
        self.schedule[1].fill_(base_gate)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + 'schedule' in state_dict:
            number, self.base_gate = self.schedule.tolist()
            self.phase = PHASES[int(number)]

    @property
    def gates(self) -> Tensor:
        """(C,) the reliability that each class's label must reach now."""
        low, high = self.gate_limits
        return class_gates(self.class_means, base=self.base_gate, low=low, high=high)

    @torch.no_grad()
    def forward(
        self,
        base_label: Tensor,
        image_label: Tensor,
        *,
        valid: Tensor,
        decoded: DecodedStreams,
        features: Tensor | None,
        data_samples: list,
        update: bool = False,
    ) -> Labels:
        """Gate the labels of one batch.

        Args:
            base_label: (N, H, W) int64, padding 255.
            image_label: (N, K) 0/1.
            valid: (N, 1, H, W) 0/1.
            decoded: the network's logits (N, C, h, w).
            features: (N, D, h', w') frozen features for the structure signal; None
                leaves it out.
            data_samples: of the batch, for the history.
            update: record these predictions; in training only.
        """
        logits = _resize(decoded.seg_logits, base_label.shape[-2:])
        network_label, probability = top_class(logits, image_label)
        network_label = ignore_padding(network_label, valid)
        cell_label = ignore_padding(
            top_class(decoded.seg_logits, image_label)[0],
            F.interpolate(valid, decoded.seg_logits.shape[-2:], mode='nearest'),
        )
        signals = self._signals(
            cell_label, image_label, valid, decoded, features, data_samples
        )
        maps = self._blend(signals, image_label, valid)
        labels = self._decide(base_label, network_label, maps)
        labels.logs.update(_signal_logs(signals, cell_label))
        if update:
            self._record(network_label, probability, cell_label, data_samples)
        return labels

    def _signals(
        self, cell_label, image_label, valid, decoded, features, data_samples
    ) -> dict[str, Tensor | None]:
        size = tuple(cell_label.shape[-2:])
        inside = F.interpolate(valid, size, mode='nearest')
        confidence = stream_confidence(decoded.stream_logits, image_label)
        temporal = structure = None
        if self.history is not None:
            affine = crop_geometry(
                data_samples, tuple(valid.shape[-2:]), cell_label.device
            )
            histogram = self.history.read(data_samples, image_label, size, affine)
            temporal = temporal_agreement(histogram, image_label)
        if features is not None:
            structure = structural_consistency(
                _resize(features, size), cell_label, self.num_classes, valid=inside
            )
        return dict(temporal=temporal, confidence=confidence, structure=structure)

    def _blend(self, signals: dict, image_label: Tensor, valid: Tensor) -> Tensor:
        """(N, C, h, w) reliability of labelling a cell with each class."""
        confidence, structure = signals['confidence'], signals['structure']
        weights = list(self.weights)
        if structure is None:
            structure, weights[2] = torch.zeros_like(confidence), 0.0
        return blend_reliability(
            signals['temporal'],
            confidence,
            structure,
            image_label,
            weights=weights,
            mode=self.mode,
            valid=F.interpolate(valid, confidence.shape[-2:], mode='nearest'),
        )

    def _decide(
        self, base_label: Tensor, network_label: Tensor, maps: Tensor
    ) -> Labels:
        gates = self.gates
        label = base_label
        if self.phase != 'explore':
            consolidating = self.phase == 'consolidate'
            label = gate_labels(
                base_label,
                network_label,
                sample_class_maps(maps, base_label),
                sample_class_maps(maps, network_label),
                gates,
                repair_below=self.repair_below,
                ignore_below=self.ignore_below,
                drop_agreed_below=self.drop_agreed_below if consolidating else None,
            )
        reliability = sample_class_maps(maps, label)
        weight = None
        if self.phase != 'explore' and self.weight_power is not None:
            weight = reliability_weight(
                reliability, label, gates, power=self.weight_power
            )
        logs = _label_logs(base_label, network_label, label, reliability)
        logs['gate_mean'] = gates.mean()
        return Labels(label, reliability, weight, gates, logs)

    def _record(self, network_label, probability, cell_label, data_samples) -> None:
        sums = update_class_means_sums(
            probability, network_label, num_classes=self.num_classes
        )
        self.class_means.copy_(
            update_class_means_from_sums(
                self.class_means, all_reduce_sums(sums), momentum=self.momentum
            )
        )
        if self.history is not None:
            size = tuple(network_label.shape[-2:])
            affine = crop_geometry(data_samples, size, cell_label.device)
            self.history.update(data_samples, cell_label, affine)


def _label_logs(base, network, label, reliability) -> dict[str, Tensor]:
    """Shares of the real pixels: kept, repaired and ignored by the gate."""
    real = network != 255
    count = real.sum().clamp(min=1)
    decided = real & (label != 255)
    changed = decided & (label != base)
    dropped = real & (label == 255) & (base != 255)
    total = (reliability * decided).sum()
    return {
        'kept_share': (decided & (label == base)).sum() / count,
        'repaired_share': changed.sum() / count,
        'dropped_share': dropped.sum() / count,
        'disputed_share': (real & (base != 255) & (network != base)).sum() / count,
        'reliability_mean': total / decided.sum().clamp(min=1),
    }


def _signal_logs(signals: dict, cell_label: Tensor) -> dict[str, Tensor]:
    """Mean of each signal for the network's own labels."""
    count = (cell_label != 255).sum().clamp(min=1)
    return {
        f'{name}_mean': sample_class_maps(maps, cell_label).sum() / count
        for name, maps in signals.items()
        if maps is not None
    }


def _resize(maps: Tensor, size) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps.float(), size, mode='bilinear', align_corners=False)
