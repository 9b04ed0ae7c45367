"""Segmentors."""

from .pseudo_label_segmentor import PseudoLabelSegmentor
from .wsss_segmentor import Explanation, WSSSSegmentor

__all__ = ['Explanation', 'PseudoLabelSegmentor', 'WSSSSegmentor']
