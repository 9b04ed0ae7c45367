"""From a student's features to the channels that its teacher is compared in."""

from collections.abc import Sequence
from itertools import pairwise

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmwsss.registry import MODELS


@MODELS.register_module()
class PointwiseProjection(BaseModule):
    """1 x 1 convolutions, the same linear map or MLP for each cell.

    Args:
        in_channels: of the features.
        out_channels: of the result.
        hidden_channels: of layers between, each followed by GELU; none as published.
        init_cfg: MMEngine initialisation.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        hidden_channels: Sequence[int] = (),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        widths = (in_channels, *hidden_channels, out_channels)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 1), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, E, h, w)."""
        return self.layers(features)
