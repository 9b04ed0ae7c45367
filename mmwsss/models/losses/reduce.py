"""Adding up sums over the processes of a distributed training, with gradients."""

import torch
import torch.distributed as dist
from torch import Tensor


class _AllReduceSum(torch.autograd.Function):
    # torch.distributed.nn.functional.all_reduce does the same; newer torch marks it
    # as deprecated, and its replacement is missing in torch 2.0.
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        total = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


def all_reduce_sums(sums: Tensor) -> Tensor:
    """Sum a tensor over all processes; the tensor itself where there is only one.

    The backward pass sums the processes' gradients as well. A loss made from the
    result has, after DistributedDataParallel's mean over the processes, the gradient
    of that loss on the joint batch. Every process must call this equally often.

    Args:
        sums: local sums, any shape, the same on all processes.

    Returns:
        Sums over all processes, the same shape.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return sums
    if dist.get_world_size() == 1:
        return sums
    return _AllReduceSum.apply(sums)
