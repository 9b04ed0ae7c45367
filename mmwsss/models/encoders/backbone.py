"""Any mmpretrain backbone as a frozen encoder."""

from collections.abc import Mapping, Sequence

from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.registry import MODELS

from .base import Encoded, FrozenEncoder, load_into, load_weight_file
from .vit import encode_vit

HOW_TO_GET = "give the path of an mmpretrain checkpoint in the config's weights="


@MODELS.register_module()
class FrozenBackbone(FrozenEncoder):
    """A classifier's backbone; CAMs come from a ``CAMHead`` trained on top.

    Args:
        backbone: mmpretrain config, for example ``dict(type='MobileOne', ...)``.
        weights: file with the classifier's or the backbone's state dict, or None.
        prefix: of the backbone's keys in the file.
        mean: RGB, 0 to 255 as in mmpretrain's configs.
        std: RGB, 0 to 255.
        unstride: names of convolutions of the backbone whose stride becomes 1, which
            doubles the resolution from there on.
        patch_size: of a ViT; 1 for a CNN.
        vit_layers: layers of a ViT whose outputs are the features; None for a CNN,
            whose ``out_indices`` say it.
        num_attentions: of a ViT: attentions of the last so many layers are kept.
    """

    def __init__(
        self,
        *,
        backbone: Mapping,
        weights: str | None = None,
        prefix: str = 'backbone.',
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        unstride: Sequence[str] = (),
        patch_size: int = 1,
        vit_layers: Sequence[int] | None = None,
        num_attentions: int = 0,
    ) -> None:
        tower = MMPRETRAIN_MODELS.build(dict(backbone))
        if weights is not None:
            state = load_weight_file(weights, HOW_TO_GET)
            if any(key.startswith(prefix) for key in state):
                state = {
                    key[len(prefix) :]: value
                    for key, value in state.items()
                    if key.startswith(prefix)
                }
            load_into(tower, {k: v.float() for k, v in state.items()}, weights)
        for name in unstride:
            _set_stride_one(tower, name)
        super().__init__(
            tower=tower,
            mean=[value / 255 for value in mean],
            std=[value / 255 for value in std],
            patch_size=patch_size,
        )
        self.vit_layers = None
        if vit_layers is not None:
            self.vit_layers = tuple(i % len(tower.layers) for i in vit_layers)
        self.num_attentions = num_attentions
        self._channels = None

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each feature map, found by encoding one small image."""
        if self._channels is None:
            image = self.mean.new_zeros(1, 3, 64, 64)
            features = self.encode(image).features
            self._channels = tuple(f.shape[1] for f in features)
        return self._channels

    def _encode(self, image: Tensor) -> Encoded:
        if self.vit_layers is None:
            return Encoded(features=tuple(self.tower(image)))
        return encode_vit(
            self.tower,
            image,
            out_indices=self.vit_layers,
            num_attentions=self.num_attentions,
        )


def _set_stride_one(tower: nn.Module, name: str) -> None:
    try:
        module = tower.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Conv2d):
        raise InputError(
            f'unstride names {name!r}, which is no convolution of '
            f'{type(tower).__name__}'
        )
    module.stride = (1, 1)
