"""What a transformer's attention and its gradients say about where a class is.

Sources: transformer attribution (Chefer et al., CVPR 2021, with relevance propagation)
and generic attention explainability (Chefer et al., ICCV 2021, with the attention
itself); multi-class tokens (MCTformer, Xu et al., CVPR 2022). The released code takes
one class and one backward pass at a time and multiplies T x T matrices; here all
classes share a pass and only the row that is asked for is multiplied.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


# ------------------------------------------------------------ gradients and rollout
def class_gradients(
    class_scores: Tensor, tensors: Sequence[Tensor], classes: Tensor
) -> list[Tensor]:
    """Gradients of several classes' scores in one backward pass; the graph stays.

    Args:
        class_scores: (N, K), where image n depends on its own part of tensors alone.
        tensors: (N, ...) each, connected by autograd to class_scores.
        classes: (M,) indices of classes.

    Returns:
        (M, N, ...) per tensor: gradient of each image's score of the m-th class;
        zeros where the scores do not depend on a tensor.
    """
    if class_scores.ndim != 2:
        raise ValueError(
            f'class_scores must be (N, K), got {tuple(class_scores.shape)}'
        )
    num_classes = class_scores.shape[1]
    chosen = torch.nn.functional.one_hot(classes, num_classes).to(class_scores)
    if not len(classes):
        return [tensor.new_zeros(0, *tensor.shape) for tensor in tensors]
    targets = chosen[:, None].expand(-1, *class_scores.shape)
    gradients = torch.autograd.grad(
        class_scores,
        list(tensors),
        targets,
        is_grads_batched=True,
        retain_graph=True,
        allow_unused=True,
    )
    return [
        tensor.new_zeros(len(classes), *tensor.shape) if gradient is None else gradient
        for tensor, gradient in zip(tensors, gradients, strict=True)
    ]


def grad_cam_maps(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM: ReLU of the activations weighted with their mean gradients.

    Args:
        activations: (N, P, D) of P cells.
        gradients: (M, N, P, D) of M classes' scores.

    Returns:
        (M, N, P), non-negative, of any size of value.
    """
    return torch.einsum('mnd,npd->mnp', gradients.mean(2), activations).relu()


def gradient_attention(attention: Tensor, gradient: Tensor) -> Tensor:
    """Mean over the heads of max(0, gradient * attention).

    Args:
        attention: (..., heads, T, T); softmaxed attention (ICCV 2021), or its
            relevance from ``lrp_matmul`` (CVPR 2021, and ORANDNet's released code).
        gradient: the same shape or one that broadcasts with it.

    Returns:
        (..., T, T), non-negative.
    """
    return (gradient * attention).clamp(min=0).mean(-3)


def relevance_rollout(
    layers: Tensor, *, start: Tensor | None = None, normalize_rows: bool = False
) -> Tensor:
    """Row of the product (I + A_L) ... (I + A_1) that belongs to the classifier.

    Args:
        layers: (N, L, T, T), non-negative, the first block first.
        start: (T,), how much of the classifier's input comes from each token of the
            last block; None for the class token, which is token 0.
        normalize_rows: divide each I + A by its row sums; the released code does not.

    Returns:
        (N, T), relevance of the tokens of the first block; float32 or wider.
    """
    if layers.ndim != 4 or layers.shape[2] != layers.shape[3]:
        raise ValueError(f'layers must be (N, L, T, T), got {tuple(layers.shape)}')
    layers = layers.to(torch.promote_types(layers.dtype, torch.float32))
    num_tokens = layers.shape[-1]
    if start is None:
        start = layers.new_zeros(num_tokens)
        start[0] = 1
    if start.shape != (num_tokens,):
        raise ValueError(f'start must be ({num_tokens},), got {tuple(start.shape)}')
    row = start.to(layers).expand(len(layers), 1, -1)
    with torch.autocast(layers.device.type, enabled=False):
        for layer in reversed(layers.unbind(1)):
            if normalize_rows:
                row = row / (1 + layer.sum(2)[:, None])
            row = row + row @ layer
    return row[:, 0]


def patch_maps(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay the last h * w of T values per map out: (N, T) -> (N, h, w)."""
    num_patches = grid[0] * grid[1]
    if tokens.ndim != 2 or tokens.shape[1] < num_patches:
        raise ValueError(
            f'tokens must be (N, {num_patches} or more) for the grid {grid}, got '
            f'{tuple(tokens.shape)}'
        )
    return tokens[:, tokens.shape[1] - num_patches :].unflatten(1, grid)


def rescale_maps(maps: Tensor, *, mode: str = 'minmax', eps: float = 1e-5) -> Tensor:
    """Bring maps of any size of value to [0, 1].

    Unlike ``normalize_cams`` eps is a share of the maximum, because gradients may be
    smaller than any fixed eps.

    Args:
        maps: (..., h, w), non-negative.
        mode: 'minmax' gives (x - min) / (max - min + eps * max), 'max' gives
            x / (max + eps * max), per map.
        eps: keeps constant maps at 0 in 'minmax', also where rounding made them uneven.

    Returns:
        The same shape, in [0, 1]; maps of zeros stay.
    """
    if mode not in ('minmax', 'max'):
        raise ValueError(f"mode must be 'minmax' or 'max', got {mode!r}")
    highest = maps.amax((-2, -1), keepdim=True)
    lowest = maps.amin((-2, -1), keepdim=True) if mode == 'minmax' else 0
    tiny = torch.finfo(maps.dtype).tiny
    return (maps - lowest) / (highest - lowest + eps * highest).clamp(min=tiny)


# ------------------------------------------------------------------- relevance rules
def lrp_linear(inputs: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Send relevance back through y = W x, along the positive products alone.

    R_i = sum_j (x_i w_ji)^+ R_j / sum_i (x_i w_ji)^+; the bias takes no part.

    Args:
        inputs: (..., D).
        weight: (E, D).
        relevance: (..., E), more leading dimensions allowed.

    Returns:
        (..., D) with the leading dimensions of relevance and, where some product is
        positive, the same sum.
    """
    positive, negative = inputs.clamp(min=0), inputs.clamp(max=0)
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    share = safe_divide(relevance, positive @ up.T + negative @ down.T)
    return positive * (share @ up) + negative * (share @ down)


def lrp_matmul(left: Tensor, right: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Send relevance back through left @ right, half of it to each.

    Args:
        left: (..., I, J).
        right: (..., J, D).
        relevance: (..., I, D), more leading dimensions allowed.

    Returns:
        Relevance of left (..., I, J) and of right (..., J, D).
    """
    share = safe_divide(relevance, left @ right)
    to_left = left * (share @ right.transpose(-2, -1))
    to_right = right * (left.transpose(-2, -1) @ share)
    return to_left / 2, to_right / 2


def lrp_add(first: Tensor, second: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Send relevance back through first + second (a residual connection).

    Each value gets its share of the sum; then the two parts are scaled so that the
    totals are as the sizes of their sums, and add up to the relevance.

    Args:
        first: (T, D) of one image.
        second: (T, D).
        relevance: (..., T, D).

    Returns:
        Relevance of first and of second, (..., T, D).
    """
    share = safe_divide(relevance, first + second)
    parts = [first * share, second * share]
    sums = [part.sum((-2, -1), keepdim=True) for part in parts]
    total = relevance.sum((-2, -1), keepdim=True)
    size = sums[0].abs() + sums[1].abs()
    scaled = [
        part * safe_divide(safe_divide(one.abs(), size) * total, one)
        for part, one in zip(parts, sums, strict=True)
    ]
    return scaled[0], scaled[1]


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient with 1e-9 added to the denominator; 0 where that is 0."""
    shifted = denominator + 1e-9
    shifted = torch.where(shifted == 0, 1e-9, shifted)
    return numerator / shifted * (denominator != 0)


# --------------------------------------------------------------- multi-class tokens
def class_attention_maps(
    attentions: Tensor, grid: tuple[int, int], *, num_layers: int = 3
) -> Tensor:
    """How much each class token attends to each patch, summed over the last layers.

    Args:
        attentions: (N, L, T, T), softmaxed, mean over the heads; T = K + h * w, the K
            class tokens first, rows are queries.
        grid: (h, w).
        num_layers: of the last layers; 3 as released for photos.

    Returns:
        (N, K, h, w) in [0, num_layers].
    """
    num_classes = _num_extra_tokens(attentions, grid)
    if not 1 <= num_layers <= attentions.shape[1]:
        raise ValueError(
            f'num_layers must be 1..{attentions.shape[1]}, got {num_layers}'
        )
    summed = attentions[:, -num_layers:].sum(1)
    return summed[:, :num_classes, num_classes:].unflatten(2, grid)


def fuse_class_attention(patch_cams: Tensor, attention_maps: Tensor) -> Tensor:
    """ReLU of the patches' class maps times the class tokens' attention.

    Args:
        patch_cams: (N, K, h, w), unbounded.
        attention_maps: (N, K, h, w) of ``class_attention_maps``.

    Returns:
        (N, K, h, w), non-negative.
    """
    if patch_cams.shape != attention_maps.shape:
        raise ValueError(
            'patch_cams and attention_maps must be alike, got '
            f'{tuple(patch_cams.shape)} and {tuple(attention_maps.shape)}'
        )
    return patch_cams.relu() * attention_maps


def refine_by_attention(cams: Tensor, attentions: Tensor) -> Tensor:
    """Spread CAMs along the patches' attention, summed over all layers.

    Args:
        cams: (N, K, h, w).
        attentions: (N, L, T, T), mean over the heads; the last h * w tokens are
            patches, rows are queries.

    Returns:
        (N, K, h, w): cell i gets sum_j A_ij cam_j.
    """
    grid = tuple(cams.shape[2:])
    num_extra = _num_extra_tokens(attentions, grid)
    affinity = attentions[:, :, num_extra:, num_extra:].sum(1)
    refined = torch.einsum('nij,nkj->nki', affinity, cams.flatten(2).to(affinity))
    return refined.unflatten(2, grid)


def _num_extra_tokens(attentions: Tensor, grid: Sequence[int]) -> int:
    if attentions.ndim != 4 or attentions.shape[2] != attentions.shape[3]:
        raise ValueError(
            f'attentions must be (N, L, T, T), got {tuple(attentions.shape)}'
        )
    num_extra = attentions.shape[-1] - grid[0] * grid[1]
    if num_extra < 0:
        raise ValueError(f'{attentions.shape[-1]} tokens cannot fill the grid {grid}')
    return num_extra
