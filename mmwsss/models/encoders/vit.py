"""Vision-transformer pieces that the CLIP and the mmpretrain towers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """Softmax attention softmax(q k^T / sqrt(d)), in float32 at least.

    Args:
        query: (N, heads, T, d).
        key: (N, heads, T, d).

    Returns:
        (N, heads, T, T); rows sum to 1.
    """
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a joint projection (N, T, 3D) into q, k, v of (N, heads, T, D / heads)."""
    batch, num_tokens, _ = qkv.shape
    parts = qkv.reshape(batch, num_tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]


def mean_attention(attention: nn.Module, tokens: Tensor) -> Tensor:
    """Head-averaged attention of an mmpretrain ``MultiheadAttention``.

    Args:
        attention: The module, with ``qkv`` and ``num_heads``.
        tokens: Its input (N, T, D), the norm already applied.

    Returns:
        (N, T, T).
    """
    query, key, _ = split_heads(attention.qkv(tokens), attention.num_heads)
    return attention_weights(query, key).mean(1)


def resize_position_embedding(
    embedding: Tensor,
    source: tuple[int, int],
    target: tuple[int, int],
    *,
    antialias: bool,
) -> Tensor:
    """Resize a learned position embedding to another grid, bicubic.

    Args:
        embedding: (E + h * w, D), E extra tokens first; these stay as they are.
        source: Grid (h, w) of the embedding.
        target: Wanted grid.
        antialias: Which of torch's two bicubic kernels to use. They differ also when
            the grid grows, so each tower takes the one of its own library.

    Returns:
        (E + target cells, D), type of the embedding.
    """
    if source == target:
        return embedding
    num_extra = len(embedding) - source[0] * source[1]
    extra, patches = embedding[:num_extra], embedding[num_extra:]
    # Contiguous, because torch's antialiased kernel (seen with 2.15) mixes the channels
    # of a channels-last input when the target is one column wide.
    patches = patches.T.reshape(1, -1, *source).contiguous()
    resized = F.interpolate(
        patches.to(torch.promote_types(patches.dtype, torch.float32)),
        size=target,
        mode='bicubic',
        align_corners=False,
        antialias=antialias,
    )
    return torch.cat([extra, resized.flatten(2)[0].T.to(extra.dtype)])


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay the last h * w of the tokens (N, T, D) out as a map (N, D, h, w)."""
    patches = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]
    return patches.transpose(1, 2).unflatten(2, grid)
