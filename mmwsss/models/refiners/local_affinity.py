"""PAMR and PAR as refiners: shells over mmwsss.functional.local_affinity."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmwsss.functional import pamr, par
from mmwsss.registry import MODELS

DILATIONS = (1, 2, 4, 8, 12, 24)


@MODELS.register_module()
class PAMR(BaseModule):
    """Pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020).

    Args:
        num_iters: propagation steps.
        dilations: of the 3x3 neighbourhoods, in pixels of the scaled image.
        scale: the image is resized by this factor first.
        eps: added to the local deviation.
    """

    def __init__(
        self,
        *,
        num_iters: int = 10,
        dilations: Sequence[int] = DILATIONS,
        scale: float = 1.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self.num_iters = num_iters
        self.dilations = tuple(dilations)
        self.scale = scale
        self.eps = eps

    def forward(self, image: Tensor, scores: Tensor, image_label: Tensor) -> Tensor:
        """(N, 3, H, W), (N, C, h, w) -> (N, C, H * scale, W * scale)."""
        return pamr(
            _scaled(image, self.scale),
            scores,
            num_iters=self.num_iters,
            dilations=self.dilations,
            eps=self.eps,
        )


@MODELS.register_module()
class PAR(BaseModule):
    """Pixel-adaptive refinement (AFA, Ru et al., CVPR 2022).

    Args:
        num_iters: propagation steps.
        dilations: of the 3x3 neighbourhoods, in pixels of the scaled image.
        scale: the image is resized by this factor first; 0.5 as in ToCo.
        w1: width of colour and position terms.
        w2: weight of the position term.
        normalize: divide the kernel by 1 + w2, so that scores stay in [0, 1] and
            fixed thresholds mean what they say; False as published.
    """

    def __init__(
        self,
        *,
        num_iters: int = 10,
        dilations: Sequence[int] = DILATIONS,
        scale: float = 0.5,
        w1: float = 0.3,
        w2: float = 0.01,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.num_iters = num_iters
        self.dilations = tuple(dilations)
        self.scale = scale
        self.w1 = w1
        self.w2 = w2
        self.normalize = normalize

    def forward(self, image: Tensor, scores: Tensor, image_label: Tensor) -> Tensor:
        """(N, 3, H, W), (N, C, h, w) -> (N, C, H * scale, W * scale)."""
        return par(
            _scaled(image, self.scale),
            scores,
            num_iters=self.num_iters,
            dilations=self.dilations,
            w1=self.w1,
            w2=self.w2,
            normalize=self.normalize,
        )


def _scaled(image: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return image
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    return F.interpolate(image, size, mode='bilinear', align_corners=False)
