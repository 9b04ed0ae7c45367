"""Several frozen encoders as one backbone."""

from collections.abc import Iterator, Mapping

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmwsss.registry import MODELS

from .base import Encoded


@MODELS.register_module()
class FrozenEncoders(BaseModule):
    """All encoders see the same image; their feature maps follow one another.

    Args:
        encoders: name -> config of a frozen encoder, in order.
    """

    def __init__(self, *, encoders: Mapping[str, Mapping]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: MODELS.build(dict(cfg)) for name, cfg in encoders.items()}
        )

    def __getitem__(self, name: str) -> nn.Module:
        """The encoder of this name."""
        if name not in self.encoders:
            raise ValueError(f'no encoder {name!r}; there are {list(self.encoders)}')
        return self.encoders[name]

    def __iter__(self) -> Iterator[str]:
        """Names in order."""
        return iter(self.encoders)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of all feature maps in order."""
        return tuple(c for e in self.encoders.values() for c in e.feature_channels)

    def encode(self, image: Tensor) -> dict[str, Encoded]:
        """(N, 3, H, W) RGB in [0, 1] -> name -> what that encoder saw."""
        return {name: encoder.encode(image) for name, encoder in self.encoders.items()}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """All feature maps in order, as an MMSegmentation backbone."""
        return tuple(f for e in self.encode(image).values() for f in e.features)
