"""Scores of CAMs, pseudo labels and segmentors."""

from mmwsss.evaluation.co_occurrence import CoOccurrenceMeter, CoOccurrenceMetric
from mmwsss.evaluation.meters import LabelMeter, SweepMeter, score_table
from mmwsss.evaluation.metrics import CAMMetric, PseudoLabelMetric
from mmwsss.evaluation.reliability import ReliabilityMeter

__all__ = [
    'CAMMetric',
    'CoOccurrenceMeter',
    'CoOccurrenceMetric',
    'LabelMeter',
    'PseudoLabelMetric',
    'ReliabilityMeter',
    'SweepMeter',
    'score_table',
]
