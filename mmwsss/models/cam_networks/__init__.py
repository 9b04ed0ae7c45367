"""CAM sources: from image labels to class activation maps."""

from .base import CAMNetwork, PhotoCAMs
from .cam_head import CAMHead
from .clip_grad_cam import CLIPGradCAM
from .sipe import SIPE

__all__ = ['SIPE', 'CAMHead', 'CAMNetwork', 'CLIPGradCAM', 'PhotoCAMs']
