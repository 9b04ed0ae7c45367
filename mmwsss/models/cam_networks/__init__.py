"""CAM sources: from image labels to class activation maps."""

from .amn import AMN
from .base import CAMNetwork, PhotoCAMs
from .branches import CNNBranch, PixelCorrelation, ViTBranch
from .cam_head import CAMHead
from .classifier import CAMClassifier
from .clip_grad_cam import CLIPGradCAM
from .cropped_cams import CroppedCAMs
from .cross_arch import CrossArch
from .mctformer import MCTformer
from .projections import PointwiseProjection
from .sipe import SIPE

__all__ = [
    'AMN',
    'SIPE',
    'CAMClassifier',
    'CAMHead',
    'CAMNetwork',
    'CLIPGradCAM',
    'CNNBranch',
    'CroppedCAMs',
    'CrossArch',
    'MCTformer',
    'PhotoCAMs',
    'PixelCorrelation',
    'PointwiseProjection',
    'ViTBranch',
]
