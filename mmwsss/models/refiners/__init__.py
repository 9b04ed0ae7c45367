"""Refiners: (image, scores, image_label) -> scores."""

from .attention_refiner import AttentionRefiner
from .dense_crf import DenseCRF
from .local_affinity import PAMR, PAR

__all__ = ['PAMR', 'PAR', 'AttentionRefiner', 'DenseCRF']
