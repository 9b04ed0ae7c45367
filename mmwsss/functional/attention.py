"""Affinity from transformer attention and propagation of CAMs along it.

Sources: CLIP-ES (Lin et al., CVPR 2023), WeCLIP (Zhang et al., CVPR 2024) and WeCLIP+
(TPAMI 2025). Differences from the released code: box limits include their last row
and column; what the layer filter measures is said below.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sinkhorn_affinity(
    attention: Tensor, *, num_iters: int = 3, num_squarings: int = 1
) -> Tensor:
    """Make an attention matrix nearly doubly stochastic and symmetric.

    Args:
        attention: (N, T, T), non-negative.
        num_iters: rounds; each divides columns by their sums, then rows.
        num_squarings: after (A + A^t) / 2; 1 gives A^2, 2 gives A^4.

    Returns:
        (N, T, T), non-negative; float32 or wider, also under autocast, because CAMs
        spread along it differ by less than bfloat16 can tell apart.
    """
    if attention.ndim != 3 or attention.shape[1] != attention.shape[2]:
        raise ValueError(f'attention must be (N, T, T), got {tuple(attention.shape)}')
    affinity = _widened(attention)
    tiny = torch.finfo(affinity.dtype).tiny
    for _ in range(num_iters):
        affinity = affinity / affinity.sum(1, keepdim=True).clamp(min=tiny)
        affinity = affinity / affinity.sum(2, keepdim=True).clamp(min=tiny)
    affinity = (affinity + affinity.transpose(1, 2)) / 2
    with torch.autocast(affinity.device.type, enabled=False):
        for _ in range(num_squarings):
            affinity = affinity @ affinity
    return affinity


def _widened(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def filter_attentions(
    attentions: Tensor,
    feature_affinity: Tensor | None = None,
    *,
    mode: str = 'cls_mass',
) -> Tensor:
    """Mean of the chosen layers' attentions, times the decoder's affinity.

    Args:
        attentions: (N, L, T, T), patch to patch part of softmaxed attentions.
        feature_affinity: (N, T, T) in [0, 1], or None.
        mode: which layers are kept.
            'none': all.
            'abs_l1': those whose sum |A_f - A_l| is at most the layers' mean, the
            formula of the WeCLIP paper (all layers where there is no A_f).
            'cls_mass': those whose patches give at most the mean share of their
            attention to the class token. The released code's sum(A_f - A_l) chooses
            exactly these: sum(A_f) is the same for all layers, so the decoder has no
            part in the choice.

    Returns:
        (N, T, T), detached.
    """
    if attentions.ndim != 4 or attentions.shape[2] != attentions.shape[3]:
        raise ValueError(
            f'attentions must be (N, L, T, T), got {tuple(attentions.shape)}'
        )
    attentions = _widened(attentions.detach())
    if mode == 'cls_mass':
        class_mass = -attentions.sum((2, 3))  # up to the constant T
        kept = _at_most_mean(class_mass)
    elif mode == 'abs_l1' and feature_affinity is not None:
        difference = feature_affinity.detach()[:, None] - attentions
        distance = difference.abs().sum((2, 3))
        kept = _at_most_mean(distance)
    elif mode in ('none', 'abs_l1'):
        kept = attentions.new_ones(attentions.shape[:2])
    else:
        raise ValueError(f"mode must be 'none', 'cls_mass' or 'abs_l1', got {mode!r}")
    kept = kept.to(attentions)
    with torch.autocast(attentions.device.type, enabled=False):
        mean = torch.einsum('nl,nlij->nij', kept, attentions)
    mean = mean / (kept.sum(1)[:, None, None] + 1e-5)
    return mean if feature_affinity is None else mean * feature_affinity.detach()


def _at_most_mean(values: Tensor) -> Tensor:
    """(N, L) -> bool, True where a value is at most the mean of its row.

    Of equal values the rounded mean may lie below all of them; the lowest counts
    always, as it does in exact arithmetic.
    """
    lowest = values.amin(1, keepdim=True)
    return (values <= values.mean(1, keepdim=True)) | (values == lowest)


def box_limits(cams: Tensor, *, threshold: float) -> Tensor:
    """Union of the bounding boxes of each CAM's bright components.

    Components of cam > threshold * max are 8-connected. The published code rounds to
    0..255 first and loses the last row and column of a box at the border; this one
    does neither.

    Args:
        cams: (N, K, h, w), non-negative.
        threshold: share of each map's maximum, in [0, 1).

    Returns:
        (N, K, h, w), 0/1 in the dtype of cams; empty maps have no box.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f'threshold must be in [0, 1), got {threshold}')
    if cams.ndim != 4:
        raise ValueError(f'cams must be (N, K, h, w), got {tuple(cams.shape)}')
    n, k, height, width = cams.shape
    bright = cams > threshold * cams.amax((-2, -1), keepdim=True)
    labels = _component_labels(bright.flatten(0, 1))  # (N*K, h, w)
    num_cells = height * width
    flat = labels.flatten(1)
    rows = torch.arange(height, device=cams.device).repeat_interleave(width)
    columns = torch.arange(width, device=cams.device).repeat(height)
    corners = []
    for position, reduce in (
        (rows, 'amin'),
        (columns, 'amin'),
        (rows, 'amax'),
        (columns, 'amax'),
    ):
        empty = num_cells if reduce == 'amin' else -1
        store = torch.full((flat.shape[0], num_cells + 1), empty, device=cams.device)
        store.scatter_reduce_(1, flat, position.expand_as(flat), reduce)
        corners.append(store[:, :num_cells])
    top, left, bottom, right = corners
    # Paint all boxes at once: a difference array, summed along both axes.
    used = (bottom >= 0).to(torch.int32)
    canvas = torch.zeros(
        flat.shape[0], (height + 1) * (width + 1), dtype=torch.int32, device=cams.device
    )
    for row, column, sign in (
        (top, left, 1),
        (bottom + 1, left, -1),
        (top, right + 1, -1),
        (bottom + 1, right + 1, 1),
    ):
        index = (row * (width + 1) + column).clamp(0, canvas.shape[1] - 1)
        canvas.scatter_add_(1, index, sign * used)
    canvas = canvas.view(-1, height + 1, width + 1).cumsum(1).cumsum(2)
    boxes = canvas[:, :height, :width] > 0
    return boxes.view(n, k, height, width).to(cams.dtype)


def _component_labels(bright: Tensor) -> Tensor:
    """Label (M, h, w): smallest cell index of the component; h*w outside.

    Every round takes the smallest label among the 3x3 neighbours and hands it to the
    root of the cell (hooking), then follows the labels twice (pointer jumping). The
    number of rounds is fixed, so that a GPU never waits; 2 log2(h*w) + 4 rounds were
    exact on all shapes of the tests, spirals included.
    """
    num_maps, height, width = bright.shape
    num_cells = height * width
    index = torch.arange(num_cells, device=bright.device).expand(num_maps, -1)
    inside = bright.flatten(1)
    outside_value = torch.full_like(index, num_cells)
    # One more entry, so that outside cells may be looked up like any other.
    parent = torch.where(inside, index, outside_value)
    last = parent.new_full((num_maps, 1), num_cells)
    for _ in range(2 * math.ceil(math.log2(max(num_cells, 2))) + 4):
        grid = parent.view(num_maps, 1, height, width)
        lowest = -F.max_pool2d(
            F.pad(-grid.double(), (1, 1, 1, 1), value=-float(num_cells)), 3, 1
        )
        lowest = torch.where(inside, lowest.flatten(1).long(), outside_value)
        table = torch.cat([parent, last], dim=1)
        table.scatter_reduce_(1, parent, lowest, 'amin')
        table.scatter_reduce_(1, index, lowest, 'amin')
        table[:, -1] = num_cells
        for _ in range(2):
            table = table.gather(1, table)
        parent = torch.where(inside, table[:, :-1], outside_value)
    return parent.view(num_maps, height, width)


def propagate_cams(
    cams: Tensor, affinity: Tensor, boxes: Tensor | None = None
) -> Tensor:
    """Spread CAMs along an affinity: cam_k <- (S . B_k) cam_k.

    Args:
        cams: (N, K, h, w).
        affinity: (N, h*w, h*w).
        boxes: (N, K, h, w) 0/1; cells outside a class's boxes give nothing (columns
            of S, as published). None limits nothing.

    Returns:
        (N, K, h, w), not normalised; float32 or wider, also under autocast.
    """
    if cams.ndim != 4 or affinity.shape[1:] != (cams[0, 0].numel(),) * 2:
        raise ValueError(
            'cams must be (N, K, h, w) and affinity (N, h*w, h*w), got '
            f'{tuple(cams.shape)} and {tuple(affinity.shape)}'
        )
    limited = _widened(cams if boxes is None else cams * boxes)
    with torch.autocast(cams.device.type, enabled=False):
        spread = limited.flatten(2) @ affinity.to(limited.dtype).transpose(1, 2)
    return spread.unflatten(2, cams.shape[-2:])
