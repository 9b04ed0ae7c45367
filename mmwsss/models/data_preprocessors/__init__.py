"""Data preprocessors: what happens to a batch before the network sees it."""

from .scale_scheduled import ScaleScheduledDataPreProcessor

__all__ = ['ScaleScheduledDataPreProcessor']
