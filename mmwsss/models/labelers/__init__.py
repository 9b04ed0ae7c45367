"""Labelers: scores to pseudo-labels."""

from .history import PredictionHistory
from .labels import Labels
from .reliability_gate import PHASES, ReliabilityGate
from .reliability_gated_labeler import ReliabilityGatedLabeler
from .score_labeler import ScoreLabeler

__all__ = [
    'PHASES',
    'Labels',
    'PredictionHistory',
    'ReliabilityGate',
    'ReliabilityGatedLabeler',
    'ScoreLabeler',
]
