"""Kernels for GPUs, written in Triton, which PyTorch brings along for NVIDIA's.

Nothing here is needed: each kernel has a form in PyTorch, which is what it is checked
against and what runs where Triton is missing or does not work.
"""
