"""Hooks and the training loop."""

from .checkpoint_hook import CheckpointHook
from .finite_hook import FiniteLossHook
from .hooks import (
    IterationSeedHook,
    ProgressHook,
    ReliabilityGatedPseudoLabelHook,
    TeacherHook,
    check_hooks,
)
from .monitor_hooks import PseudoLabelProbeHook, PseudoLabelVisualizationHook
from .train_loop import ResumableTrainLoop

__all__ = [
    'CheckpointHook',
    'FiniteLossHook',
    'IterationSeedHook',
    'ProgressHook',
    'PseudoLabelProbeHook',
    'PseudoLabelVisualizationHook',
    'ReliabilityGatedPseudoLabelHook',
    'ResumableTrainLoop',
    'TeacherHook',
    'check_hooks',
]
