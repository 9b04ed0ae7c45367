"""Several frozen encoders side by side, in the place of a segmentor's backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.registry import MODELS

from .base import Encoded, FrozenEncoder


@MODELS.register_module()
class FrozenEncoders(BaseModule):
    """Named frozen encoders that all look at the same images.

    Args:
        encoders: Name to config (or to a built encoder).
        order: All names, in the order of their feature maps; by default alphabetical.
            (MMEngine sorts dictionaries when it writes a config to a work directory,
            so the order of ``encoders`` itself would not survive.)
        compiled: Run the towers through ``torch.compile`` while training, where all
            crops have one size. Photos to predict have many, and each would be
            compiled anew.

    Raises:
        InputError: No encoder is given, one is not a frozen encoder, or ``order`` does
            not hold just their names.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[str, Mapping | FrozenEncoder],
        order: Sequence[str] | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.compiled = compiled
        if not encoders:
            raise InputError('encoders is empty: name at least one frozen encoder.')
        order = sorted(encoders) if order is None else list(order)
        if sorted(order) != sorted(encoders):
            raise InputError(
                f'order must hold each encoder once: {sorted(encoders)}, got {order}.'
            )
        self.encoders = nn.ModuleDict()
        for name in order:
            encoder = encoders[name]
            if not isinstance(encoder, nn.Module):
                encoder = MODELS.build(encoder)
            if not isinstance(encoder, FrozenEncoder):
                raise InputError(
                    f"The encoder '{name}' is a {type(encoder).__name__}: wrap it in "
                    'mmwsss.FrozenBackbone.'
                )
            self.encoders[name] = encoder

    def __getitem__(self, name: str) -> FrozenEncoder:
        return self.encoders[name]

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of all feature maps, in the order of :meth:`forward`."""
        return tuple(
            channels
            for encoder in self.encoders.values()
            for channels in encoder.feature_channels
        )

    def encode(self, image: Tensor) -> dict[str, Encoded]:
        """Encode (N, 3, H, W), RGB in [0, 1], with every encoder."""
        compiled = self.compiled and self.training
        return {
            name: encoder.encode(image, compiled=compiled)
            for name, encoder in self.encoders.items()
        }

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return all feature maps in order, as MMSeg expects of a backbone."""
        encoded = self.encode(image).values()
        return tuple(feature for each in encoded for feature in each.features)
