"""Registered losses; each counts the batch of all processes together."""

from .affinity import AffinityLoss
from .boundary import BoundaryLoss, PairwiseEnergyLoss
from .cross_view import CrossViewLoss
from .reduce import all_reduce_sums
from .segmentation import BalancedCrossEntropyLoss, PresentDiceLoss
from .teacher import TeacherLoss

__all__ = [
    'AffinityLoss',
    'BalancedCrossEntropyLoss',
    'BoundaryLoss',
    'CrossViewLoss',
    'PairwiseEnergyLoss',
    'PresentDiceLoss',
    'TeacherLoss',
    'all_reduce_sums',
]
