"""Finds out on a CPU where a GPU's host would have to wait."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoWaiting(TorchDispatchMode):
    """Refuse operations whose result the host has to wait for on a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        masked = name.startswith('aten::index') and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        waiting = ('_local_scalar_dense', 'nonzero', 'masked_select', 'bincount')
        if masked or any(word in name for word in waiting):
            raise AssertionError(f'{name} waits for the device')
        return function(*args, **(kwargs or {}))
