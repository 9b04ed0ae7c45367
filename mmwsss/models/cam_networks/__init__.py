"""CAM sources: from image labels to class activation maps."""

from .amn import AMN
from .base import CAMNetwork, PhotoCAMs
from .cam_head import CAMHead
from .classifier import CAMClassifier
from .clip_grad_cam import CLIPGradCAM
from .mctformer import MCTformer
from .sipe import SIPE

__all__ = [
    'AMN',
    'SIPE',
    'CAMClassifier',
    'CAMHead',
    'CAMNetwork',
    'CLIPGradCAM',
    'MCTformer',
    'PhotoCAMs',
]
