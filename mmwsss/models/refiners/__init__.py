"""Refiners: (image, scores, image_label) -> scores."""

from .affinity_net import AffinityNet
from .attention_refiner import AttentionRefiner
from .clip_filter import CLIPFilter
from .dense_crf import DenseCRF
from .irnet import IRNet
from .local_affinity import PAMR, PAR
from .map_networks import LightUNet, VGGFCN8s
from .orandnet import ORANDNet
from .sam_merge import SAMMerge
from .trained import TrainedRefiner

__all__ = [
    'PAMR',
    'PAR',
    'AffinityNet',
    'AttentionRefiner',
    'CLIPFilter',
    'DenseCRF',
    'IRNet',
    'LightUNet',
    'ORANDNet',
    'SAMMerge',
    'TrainedRefiner',
    'VGGFCN8s',
]
