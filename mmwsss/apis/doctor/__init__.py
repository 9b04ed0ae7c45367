"""Checks a data set before training, and the installation."""

from .findings import Finding, Report
from .run import run_doctor

__all__ = ['Finding', 'Report', 'run_doctor']
