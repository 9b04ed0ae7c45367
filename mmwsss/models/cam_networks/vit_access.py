"""Looking into an mmpretrain vision transformer while it runs.

Its fused attention kernel gives no attention away. For the length of a ``with`` the
blocks use a plain one that does; the rest of the forward pass stays mmpretrain's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..encoders.vit import attention_weights
from .base import resized_photo


def attention_modules(backbone: nn.Module) -> list[nn.Module]:
    """Attention modules of all blocks, [] if they are not mmpretrain's plain ones."""
    blocks = getattr(backbone, 'layers', [])
    modules = [getattr(block, 'attn', None) for block in blocks]
    plain = [hasattr(m, 'scaled_dot_product_attention') for m in modules]
    return modules if all(plain) else []


def patch_side(backbone: nn.Module) -> tuple[int, int]:
    """Height and width of a patch in pixels."""
    height, width = backbone.patch_embed.projection.stride
    return height, width


def in_whole_patches(image: Tensor, patch: tuple[int, int]) -> Tensor:
    """Resize (N, 3, H, W) in [0, 1] to the nearest multiples of the patch.

    The backbone would pad instead, and its grid would be larger than the photo.
    """
    sides = zip(image.shape[-2:], patch, strict=True)
    height, width = (max(1, round(side / unit)) * unit for side, unit in sides)
    return resized_photo(image, (height, width))


@contextmanager
def recorded_grids(backbone: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """Collect the grid (h, w) of patches of each forward pass."""
    grids = []

    def record(module: nn.Module, inputs: tuple, output: tuple) -> None:
        grids.append(tuple(output[1]))

    handle = backbone.patch_embed.register_forward_hook(record)
    try:
        yield grids
    finally:
        handle.remove()


@contextmanager
def recorded_attentions(
    backbone: nn.Module, *, mean_over_heads: bool
) -> Iterator[list[Tensor]]:
    """Collect the softmaxed attention of every block, the first one first.

    Args:
        backbone: with ``attention_modules``.
        mean_over_heads: (N, T, T) each for looking at; otherwise (N, heads, T, T) as
            it takes part in the forward pass, with a gradient where these are enabled,
            also in a frozen backbone.
    """
    modules = attention_modules(backbone)
    recorded = []

    def attend(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
        if dropout_p > 0:
            raise RuntimeError('attention is recorded in eval mode, without dropout')
        weights = attention_weights(query, key)
        if torch.is_grad_enabled() and not weights.requires_grad:
            weights.requires_grad_()
        recorded.append(weights.mean(1) if mean_over_heads else weights)
        return weights.to(value) @ value

    kernels = [module.scaled_dot_product_attention for module in modules]
    for module in modules:
        module.scaled_dot_product_attention = attend
    try:
        yield recorded
    finally:
        for module, kernel in zip(modules, kernels, strict=True):
            module.scaled_dot_product_attention = kernel
