"""A backbone for MMSegmentation's networks with strides and weights as they are to be.

MMSegmentation takes a backbone's config as it is; that of a deployed MobileOne knows
neither stride 16 nor half precision in a safetensors file.
"""

from collections.abc import Mapping, Sequence

from mmengine.model import BaseModule
from torch import Tensor

from mmwsss.registry import MODELS

from ..cam_networks.trained_backbone import build_backbone, load_backbone


@MODELS.register_module()
class PretrainedBackbone(BaseModule):
    """Any backbone of mmpretrain or MMSegmentation, trained from given weights.

    Args:
        backbone: its config; without a scope in the type, MMSegmentation's.
        weights: local file or URL, loaded by ``init_weights``, which the runner calls
            before training; None leaves it to the backbone's ``init_cfg``.
        prefix: start of the backbone's names in ``weights``; '' if there is none.
        unstride: submodules of the backbone that get stride 1.

    Raises:
        InputError: if the backbone cannot be built; ``init_weights`` if the weights
            are missing or do not fit.
    """

    def __init__(
        self,
        *,
        backbone: Mapping,
        weights: str | None = None,
        prefix: str = 'backbone.',
        unstride: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.weights = weights
        self.prefix = prefix
        self.body = build_backbone(backbone, unstride=unstride)

    def init_weights(self) -> None:
        """MMEngine's initialisation, then the pretrained weights."""
        super().init_weights()
        if self.weights is not None:
            load_backbone(self.body, self.weights, prefix=self.prefix)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Normalised image (N, 3, H, W) -> the backbone's feature maps."""
        return tuple(self.body(image))
