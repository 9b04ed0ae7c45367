"""CAM sources: from image labels to class activation maps."""

from .cam_head import CAMHead
from .clip_grad_cam import CLIPGradCAM

__all__ = ['CAMHead', 'CLIPGradCAM']
