"""Registered losses; each counts the batch of all processes together."""

from .affinity import AffinityLoss
from .cross_view import CrossViewLoss
from .reduce import all_reduce_sums
from .segmentation import BalancedCrossEntropyLoss, PresentDiceLoss

__all__ = [
    'AffinityLoss',
    'BalancedCrossEntropyLoss',
    'CrossViewLoss',
    'PresentDiceLoss',
    'all_reduce_sums',
]
