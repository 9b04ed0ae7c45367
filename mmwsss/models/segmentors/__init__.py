"""Segmentors."""

from .wsss_segmentor import Explanation, WSSSSegmentor

__all__ = ['Explanation', 'WSSSSegmentor']
