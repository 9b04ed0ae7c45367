"""Decode heads."""

from .dual_stream_head import DualStreamHead
from .streams import DecodedStreams

__all__ = ['DecodedStreams', 'DualStreamHead']
