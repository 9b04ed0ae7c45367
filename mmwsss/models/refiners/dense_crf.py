"""Dense CRF (Kraehenbuehl and Koltun, 2011) through the package pydensecrf2."""

import math
from types import ModuleType

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

    Only the background and the image's classes take part. Published parameters, always
    with the Gaussian (xy 3, weight 3) and 10 iterations:

    ================================ ======= ============ ============= ================
    for                              gt_prob bilateral_xy bilateral_rgb bilateral_weight
    ================================ ======= ============ ============= ================
    predictions, WeCLIP (default)    None    64           5             4
    CAM and IR labels, IRN and SIPE  0.7     50           5             10
    CAMs, PSA and AFA                None    80           13            10
    ================================ ======= ============ ============= ================

    Args:
        num_iters: mean-field iterations.
        gaussian_xy: pixels.
        gaussian_weight: compatibility of the smoothness term.
        bilateral_xy: pixels.
        bilateral_rgb: grey levels of 255.
        bilateral_weight: compatibility of the appearance term.
        gt_prob: None takes the scores as probabilities. A number in (0, 1) takes the
            best class of each pixel as its label, right with this probability.

    Raises:
        InputError: if the package is not installed.
        ValueError: if ``gt_prob`` is outside its range.
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
        gt_prob: float | None = None,
    ) -> None:
        super().__init__()
        if gt_prob is not None and not 0 < gt_prob < 1:
            raise ValueError(f'gt_prob must be in (0, 1), got {gt_prob}')
        _densecrf()  # fails early
        self.num_iters = num_iters
        self.gaussian_xy = gaussian_xy
        self.gaussian_weight = gaussian_weight
        self.bilateral_xy = bilateral_xy
        self.bilateral_rgb = bilateral_rgb
        self.bilateral_weight = bilateral_weight
        self.gt_prob = gt_prob

    @torch.no_grad()
    def forward(self, image: Tensor, scores: Tensor, image_label: Tensor) -> Tensor:
        """Refine on the host.

        Args:
            image: (N, 3, H, W) RGB in [0, 1].
            scores: (N, C, h, w) >= 0.
            image_label: (N, K) 0/1.

        Returns:
            (N, C, H, W) in [0, 1], sums to 1 over the classes, absent ones 0.
        """
        scores = F.interpolate(
            scores.float(), image.shape[-2:], mode='bilinear', align_corners=False
        )
        pixels = (image * 255).round().clamp(0, 255).byte().movedim(1, -1).cpu()
        allowed = F.pad(image_label > 0, (1, 0), value=True).cpu()
        refined = torch.zeros(scores.shape)
        for out, rgb, own, present in zip(
            refined, pixels, scores.cpu(), allowed, strict=True
        ):
            out[present] = self._infer(rgb, own[present])
        return refined.to(scores.device)

    def _infer(self, pixels: Tensor, scores: Tensor) -> Tensor:
        num_classes, height, width = scores.shape
        if num_classes == 1:
            # Nothing to choose from; the hard unary would divide by zero.
            return torch.ones_like(scores)
        crf = _densecrf().DenseCRF2D(width, height, num_classes)
        crf.setUnaryEnergy(np.ascontiguousarray(self._unary(scores).numpy()))
        crf.addPairwiseGaussian(sxy=self.gaussian_xy, compat=self.gaussian_weight)
        crf.addPairwiseBilateral(
            sxy=self.bilateral_xy,
            srgb=self.bilateral_rgb,
            rgbim=np.ascontiguousarray(pixels.numpy()),
            compat=self.bilateral_weight,
        )
        posterior = np.array(crf.inference(self.num_iters), dtype=np.float32)
        return torch.from_numpy(posterior).view(num_classes, height, width)

    def _unary(self, scores: Tensor) -> Tensor:
        """Energies (C, H*W) of scores (C, H, W)."""
        scores = scores.flatten(1)
        if self.gt_prob is None:
            probabilities = scores.clamp(min=1e-5)
            return -(probabilities / probabilities.sum(0)).log()
        others = (1 - self.gt_prob) / (len(scores) - 1)
        unary = torch.full_like(scores, -math.log(others))
        return unary.scatter_(0, scores.argmax(0)[None], -math.log(self.gt_prob))


def _densecrf() -> ModuleType:
    try:
        from pydensecrf import densecrf
    except ImportError:
        raise InputError(
            'DenseCRF needs the package pydensecrf2, which is not installed; '
            "run: pip install 'mmwsss[crf]' (it can be built for Python up to 3.12)"
        ) from None
    return densecrf
