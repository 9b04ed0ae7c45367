"""What a decode head hands to refinement and losses."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class DecodedStreams:
    """Output of a decode head before any loss.

    Attributes:
        seg_logits: (N, C, h, w), the prediction.
        stream_logits: one (N, C, h, w) per stream; a plain head has one stream.
        features: (N, D, h, w) for the decoder affinity, or None.
    """

    seg_logits: Tensor
    stream_logits: tuple[Tensor, ...]
    features: Tensor | None

    def detach(self) -> 'DecodedStreams':
        """The same without gradient."""
        return DecodedStreams(
            self.seg_logits.detach(),
            tuple(logits.detach() for logits in self.stream_logits),
            None if self.features is None else self.features.detach(),
        )
