"""Hooks."""

from .hooks import IterationSeedHook, ProgressHook

__all__ = ['IterationSeedHook', 'ProgressHook']
