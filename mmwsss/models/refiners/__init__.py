"""Refiners: (image, scores, image_label) -> scores."""

from .attention_refiner import AttentionRefiner
from .dense_crf import DenseCRF
from .irnet import IRNet
from .local_affinity import PAMR, PAR
from .map_networks import LightUNet, VGGFCN8s
from .orandnet import ORANDNet
from .trained import TrainedRefiner

__all__ = [
    'PAMR',
    'PAR',
    'AttentionRefiner',
    'DenseCRF',
    'IRNet',
    'LightUNet',
    'ORANDNet',
    'TrainedRefiner',
    'VGGFCN8s',
]
