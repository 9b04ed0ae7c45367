"""Scores of CAMs, pseudo labels and segmentors."""

from mmwsss.evaluation.meters import LabelMeter, SweepMeter, score_table
from mmwsss.evaluation.metrics import CAMMetric, PseudoLabelMetric
from mmwsss.evaluation.reliability import ReliabilityMeter

__all__ = [
    'CAMMetric',
    'LabelMeter',
    'PseudoLabelMetric',
    'ReliabilityMeter',
    'SweepMeter',
    'score_table',
]
