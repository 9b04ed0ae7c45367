"""Dense CRF (Kraehenbuehl and Koltun, 2011) through the package pydensecrf2."""

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmwsss.errors import InputError
from mmwsss.registry import MODELS


@MODELS.register_module()
class DenseCRF(BaseModule):
    """Scores after mean-field inference; runs on the CPU, for labels and testing.

    Defaults are WeCLIP's for VOC: Gaussian (xy 3, weight 3) and bilateral (xy 64,
    rgb 5, weight 4), 10 iterations.

    Args:
        num_iters: mean-field iterations.
        gaussian_xy: pixels.
        gaussian_weight: compatibility of the smoothness term.
        bilateral_xy: pixels.
        bilateral_rgb: grey levels of 255.
        bilateral_weight: compatibility of the appearance term.
    """

    def __init__(
        self,
        *,
        num_iters: int = 10,
        gaussian_xy: float = 3.0,
        gaussian_weight: float = 3.0,
        bilateral_xy: float = 64.0,
        bilateral_rgb: float = 5.0,
        bilateral_weight: float = 4.0,
    ) -> None:
        super().__init__()
        try:
            from pydensecrf import densecrf
        except ImportError:
            raise InputError(
                'DenseCRF needs the package pydensecrf2, which is not installed; '
                "run: pip install 'mmwsss[crf]'"
            ) from None
        self._densecrf = densecrf
        self.num_iters = num_iters
        self.gaussian_xy = gaussian_xy
        self.gaussian_weight = gaussian_weight
        self.bilateral_xy = bilateral_xy
        self.bilateral_rgb = bilateral_rgb
        self.bilateral_weight = bilateral_weight

    @torch.no_grad()
    def forward(self, image: Tensor, scores: Tensor, image_label: Tensor) -> Tensor:
        """(N, 3, H, W), (N, C, h, w) -> (N, C, H, W), sums to 1 over the classes."""
        scores = F.interpolate(
            scores.float(), image.shape[-2:], mode='bilinear', align_corners=False
        )
        refined = [self._infer(i, s) for i, s in zip(image, scores, strict=True)]
        return torch.stack(refined).to(scores.device)

    def _infer(self, image: Tensor, scores: Tensor) -> Tensor:
        num_classes, height, width = scores.shape
        pixels = (image * 255).round().clamp(0, 255).byte()
        pixels = np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
        probabilities = scores.clamp(min=1e-5)
        probabilities = probabilities / probabilities.sum(0)
        unary = -probabilities.log().flatten(1).cpu().numpy()
        crf = self._densecrf.DenseCRF2D(width, height, num_classes)
        crf.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
        crf.addPairwiseGaussian(sxy=self.gaussian_xy, compat=self.gaussian_weight)
        crf.addPairwiseBilateral(
            sxy=self.bilateral_xy,
            srgb=self.bilateral_rgb,
            rgbim=pixels,
            compat=self.bilateral_weight,
        )
        posterior = np.array(crf.inference(self.num_iters), dtype=np.float32)
        return torch.from_numpy(posterior).view(num_classes, height, width)
