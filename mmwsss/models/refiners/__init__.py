"""Refiners: (image, scores, image_label) -> scores."""

from .attention_refiner import AttentionRefiner
from .dense_crf import DenseCRF
from .irnet import IRNet
from .local_affinity import PAMR, PAR
from .trained import TrainedRefiner

__all__ = ['PAMR', 'PAR', 'AttentionRefiner', 'DenseCRF', 'IRNet', 'TrainedRefiner']
