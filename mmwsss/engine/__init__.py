"""Hooks."""

from .checkpoint_hook import CheckpointHook
from .hooks import (
    IterationSeedHook,
    ProgressHook,
    ReliabilityGatedPseudoLabelHook,
    TeacherHook,
    check_hooks,
)
from .monitor_hooks import PseudoLabelProbeHook, PseudoLabelVisualizationHook

__all__ = [
    'CheckpointHook',
    'IterationSeedHook',
    'ProgressHook',
    'PseudoLabelProbeHook',
    'PseudoLabelVisualizationHook',
    'ReliabilityGatedPseudoLabelHook',
    'TeacherHook',
    'check_hooks',
]
