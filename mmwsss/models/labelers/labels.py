"""What a labeler returns."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Labels:
    """Pseudo-labels of a batch and how far to trust them.

    Attributes:
        pseudo_label: (N, H, W) int64, 0 background, 255 ignore.
        reliability: (N, H, W) in [0, 1], or None if the labeler does not estimate it.
        weight: (N, H, W) in [0, 1], factor of each pixel in the losses, or None.
        gates: (C,) reliability that each class's label had to reach, or None.
        logs: name -> scalar for the log; no gradients.
        affinity_label: (N, H, W) int64, what the affinity loss learns instead of
            ``pseudo_label``, or None.
    """

    pseudo_label: Tensor
    reliability: Tensor | None = None
    weight: Tensor | None = None
    gates: Tensor | None = None
    logs: dict[str, Tensor] = field(default_factory=dict)
    affinity_label: Tensor | None = None
