"""Scores of CAMs, pseudo labels and segmentors."""

from mmwsss.evaluation.meters import LabelMeter, SweepMeter, score_table
from mmwsss.evaluation.metrics import CAMMetric, PseudoLabelMetric

__all__ = ['CAMMetric', 'LabelMeter', 'PseudoLabelMetric', 'SweepMeter', 'score_table']
