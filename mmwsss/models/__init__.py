"""Registered models; importing this package registers all of them."""

from mmwsss.compat import check_mm_packages

check_mm_packages()

# MMSegmentation's own parts are registered when these are imported; an unprefixed
# type in a config needs that even when mmseg is not the entry point.
import mmseg.models  # noqa: E402,F401

from . import (  # noqa: E402
    cam_networks,
    data_preprocessors,
    decode_heads,
    encoders,
    labelers,
    losses,
    refiners,
    segmentors,
)

__all__ = [
    'cam_networks',
    'data_preprocessors',
    'decode_heads',
    'encoders',
    'labelers',
    'losses',
    'refiners',
    'segmentors',
]
