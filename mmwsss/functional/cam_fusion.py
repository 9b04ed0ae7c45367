"""Several CAMs of one classifier made into one: of layers, and of windows of a photo.

LayerCAM (Jiang et al., IEEE TIP 2021) for the layers; written from formulas. Maps of
different classifiers are fused in ``fusion.py``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .relevance import rescale_maps

LAYER_NORMS = ('minmax', 'max', 'tanh')
LAYER_REDUCTIONS = ('mean', 'max', 'weighted')


def layer_cam_maps(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM: each activation weighted with its own positive gradient.

    ReLU(sum_d ReLU(g_pd) a_pd), where Grad-CAM takes the mean of g over the cells.

    Args:
        activations: (N, P, D) of P cells.
        gradients: (M, N, P, D) of M classes' scores.

    Returns:
        (M, N, P), non-negative, of any size of value.
    """
    return torch.einsum('mnpd,npd->mnp', gradients.relu(), activations).relu()


def fuse_layer_maps(
    layers: Sequence[Tensor],
    size: tuple[int, int],
    *,
    per_layer: str = 'minmax',
    reduce: str = 'mean',
    weights: Sequence[float] | None = None,
    gamma: float = 2.0,
) -> Tensor:
    """Fuse the maps of several layers: normalise each, resize, reduce.

    Args:
        layers: (N, K, h, w) each, any grid; negative values are cut to 0.
        size: (h, w) of the result.
        per_layer: 'max' and 'minmax' bring each map to [0, 1], 'tanh' to
            tanh(gamma * x / max), which lifts what is weak (LayerCAM's shallow
            layers).
        reduce: 'mean', 'max', or 'weighted' for a mean with ``weights``.
        weights: one number >= 0 per layer, for 'weighted' alone.
        gamma: of 'tanh', positive.

    Returns:
        (N, K, h, w) in [0, 1]; empty maps stay empty.

    Raises:
        ValueError: for an argument outside its range.
    """
    check_layer_fusion(
        len(layers), per_layer=per_layer, reduce=reduce, weights=weights, gamma=gamma
    )
    maps = []
    for layer in layers:
        if layer.ndim != 4 or layer.shape[:2] != layers[0].shape[:2]:
            raise ValueError(
                'layers must be (N, K, h, w) of the same images and classes, got '
                f'{[tuple(other.shape) for other in layers]}'
            )
        scaled = rescale_maps(
            layer.relu(), mode='minmax' if per_layer == 'minmax' else 'max'
        )
        if per_layer == 'tanh':
            scaled = torch.tanh(gamma * scaled)
        if tuple(scaled.shape[2:]) != tuple(size):
            scaled = F.interpolate(scaled, size, mode='bilinear', align_corners=False)
        maps.append(scaled)
    stacked = torch.stack(maps)
    if reduce == 'max':
        return stacked.amax(0)
    if weights is None:
        return stacked.mean(0)
    shares = stacked.new_tensor(list(weights))
    return torch.einsum('l,lnkhw->nkhw', shares / shares.sum(), stacked)


def check_layer_fusion(
    num_layers: int,
    *,
    per_layer: str = 'minmax',
    reduce: str = 'mean',
    weights: Sequence[float] | None = None,
    gamma: float = 2.0,
) -> None:
    """Raise ValueError for what ``fuse_layer_maps`` cannot do."""
    if num_layers < 1:
        raise ValueError(f'need one layer or more, got {num_layers}')
    for name, value, known in (
        ('per_layer', per_layer, LAYER_NORMS),
        ('reduce', reduce, LAYER_REDUCTIONS),
    ):
        if value not in known:
            raise ValueError(f'{name} must be one of {known}, got {value!r}')
    if not gamma > 0:
        raise ValueError(f'gamma must be positive, got {gamma}')
    if (reduce == 'weighted') != (weights is not None):
        raise ValueError(
            f"weights go with reduce='weighted' and with nothing else, got "
            f'reduce={reduce!r} and weights={weights}'
        )
    if weights is not None and (
        len(weights) != num_layers or min(weights) < 0 or sum(weights) <= 0
    ):
        raise ValueError(
            f'weights must be {num_layers} numbers >= 0, one per layer and not all 0, '
            f'got {tuple(weights)}'
        )


def window_boxes(
    size: tuple[int, int], *, window: int, stride: int
) -> list[tuple[int, int, int, int]]:
    """Boxes (top, left, bottom, right) of windows that cover an image.

    A window is as large as the image where that is smaller; the last one of a row or
    column ends at the border.

    Args:
        size: (H, W) of the image.
        window: side in pixels.
        stride: pixels between two windows, at most the window.

    Raises:
        ValueError: unless 1 <= stride <= window.
    """
    if not 1 <= stride <= window:
        raise ValueError(
            f'stride must be 1..{window} for a window of {window}, got {stride}'
        )
    spans = []
    for side in size:
        width = min(window, side)
        starts = [*range(0, side - width, stride), side - width]
        spans.append([(start, start + width) for start in starts])
    return [
        (top, left, bottom, right)
        for top, bottom in spans[0]
        for left, right in spans[1]
    ]


def fuse_window_maps(
    maps: Tensor,
    boxes: Sequence[tuple[int, int, int, int]],
    probs: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Lay the maps of windows over each other, each times its class probability.

    Every window's map has a peak of its own, also where the window shows nothing; its
    probability says what that is worth. Averaged by how many windows see a pixel.

    Args:
        maps: (W, K, h, w), non-negative, of W windows.
        boxes: W boxes (top, left, bottom, right), see ``window_boxes``.
        probs: (W, K) in [0, 1], what the classifier says about each window.
        size: (H, W) of the image.

    Returns:
        (1, K, H, W), at most the largest value of maps; 0 where no window is.

    Raises:
        ValueError: if maps, boxes and probs are not equally many.
    """
    if maps.ndim != 4 or len(boxes) != len(maps) or probs.shape != maps.shape[:2]:
        raise ValueError(
            'maps, boxes and probs must be (W, K, h, w), W and (W, K), got '
            f'{tuple(maps.shape)}, {len(boxes)} and {tuple(probs.shape)}'
        )
    total = maps.new_zeros(1, maps.shape[1], *size)
    seen = maps.new_zeros(1, 1, *size)
    for own, box, prob in zip(maps, boxes, probs, strict=True):
        top, left, bottom, right = box
        placed = F.interpolate(
            own[None],
            (bottom - top, right - left),
            mode='bilinear',
            align_corners=False,
        )
        total[..., top:bottom, left:right] += placed * prob[None, :, None, None]
        seen[..., top:bottom, left:right] += 1
    return total / seen.clamp(min=1)
