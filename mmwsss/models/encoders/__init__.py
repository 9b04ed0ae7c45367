"""Frozen encoders: CLIP, DINOv2, any registered backbone, and several of them."""

from .backbone import FrozenBackbone
from .base import Encoded, FrozenEncoder
from .clip import FrozenCLIP
from .dinov2 import FrozenDINOv2
from .frozen_encoders import FrozenEncoders

__all__ = [
    'Encoded',
    'FrozenBackbone',
    'FrozenCLIP',
    'FrozenDINOv2',
    'FrozenEncoder',
    'FrozenEncoders',
]
