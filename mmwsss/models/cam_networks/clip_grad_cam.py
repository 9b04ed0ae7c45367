"""Softmax Grad-CAM of a frozen CLIP (CLIP-ES, Lin et al., CVPR 2023)."""

from mmengine.model import BaseModule
from torch import Tensor

from mmwsss.functional import normalize_cams
from mmwsss.registry import MODELS


@MODELS.register_module()
class CLIPGradCAM(BaseModule):
    """Asks the named ``FrozenCLIP`` for the Grad-CAMs of all classes at once.

    Args:
        source: name of the ``FrozenCLIP`` among the segmentor's encoders.
    """

    def __init__(self, *, source: str = 'clip') -> None:
        super().__init__()
        self.source = source

    def cams(
        self,
        encoded: dict,
        image_label: Tensor,
        valid: Tensor,
        *,
        encoders,
        max_classes: int | None = None,
    ) -> Tensor:
        """CAMs (N, K, h, w) in [0, 1], min-max normalised per image and class.

        Args:
            encoded: encoder name -> ``Encoded``.
            image_label: (N, K).
            valid: (N, 1, H, W).
            encoders: the segmentor's ``FrozenEncoders``; CLIP's last block is run
                again with gradients.
            max_classes: most classes of any image, if the host knows.
        """
        raw = encoders[self.source].grad_cams(
            encoded[self.source], image_label, max_classes=max_classes
        )
        # The published code normalises twice; the amplitudes are about 1e-4, so a
        # single pass with this eps would differ by 6e-4 (spec clipdino 1.3).
        cams = normalize_cams(raw, mode='minmax', eps=1e-7)
        cams = normalize_cams(cams, mode='minmax', eps=1e-7)
        return cams * image_label[:, :, None, None]

    def losses(self, encoded: dict, image_label: Tensor, valid: Tensor) -> dict:
        """None: CLIP stays as it is."""
        return {}
