"""Labelers: scores to pseudo-labels."""

from .score_labeler import ScoreLabeler

__all__ = ['ScoreLabeler']
