"""Segmentors."""

from .pretrained_backbone import PretrainedBackbone
from .pseudo_label_segmentor import PseudoLabelSegmentor
from .wsss_segmentor import Explanation, WSSSSegmentor

__all__ = [
    'Explanation',
    'PretrainedBackbone',
    'PseudoLabelSegmentor',
    'WSSSSegmentor',
]
