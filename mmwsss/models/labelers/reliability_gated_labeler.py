"""ScoreLabeler whose labels pass a reliability gate."""

from torch import Tensor

from mmwsss.registry import MODELS

from ..decode_heads.streams import DecodedStreams
from .labels import Labels
from .score_labeler import ScoreLabeler


@MODELS.register_module()
class ReliabilityGatedLabeler(ScoreLabeler):
    """Scores to labels by two thresholds, then repair and weighting by reliability.

    Args:
        gate: ``mmwsss.ReliabilityGate`` config; its phases are set by
            ``mmwsss.ReliabilityGatedPseudoLabelHook``.
        low: see ``ScoreLabeler``.
        high: see ``ScoreLabeler``.
    """

    def __init__(
        self, *, gate: dict, low: float | None = 0.25, high: float | None = 0.55
    ) -> None:
        super().__init__(low=low, high=high)
        self.gate = MODELS.build(gate)

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
        """Scores (N, C, H, W) to gated labels; ``update`` records this visit."""
        base = self.base_label(
            scores,
            image_label,
            valid=valid,
            seg_logits=decoded.seg_logits,
            progress=progress,
        )
        return self.gate(
            base,
            image_label,
            valid=valid,
            decoded=decoded,
            features=self._structure_features(encoded),
            data_samples=data_samples,
            update=update,
        )

    def _structure_features(self, encoded: dict) -> Tensor | None:
        source = self.gate.structure_source
        if source is None:
            return None
        if source not in encoded:
            raise ValueError(
                f'structure_source {source!r} is none of the encoders {sorted(encoded)}'
            )
        return encoded[source].features[-1]
