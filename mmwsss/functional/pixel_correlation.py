"""Maps that borrow from cells with like features (SEAM, Wang et al., CVPR 2020).

Written from the formula. Unlike the released code the relation of all cells to all is
never held at once where that would be much: it is made and used a block of cells at a
time, in the backward pass again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .prototype import full_precision

_EPS = 1e-5


def pixel_correlation(features: Tensor) -> Tensor:
    """How much each cell (column) takes from each cell (row).

    ReLU of the cosines between cells; each column is divided by its sum + 1e-5.

    Args:
        features: (N, D, h, w).

    Returns:
        (N, P, P) in [0, 1], P = h * w cells; float32 or wider. A cell without features
        takes nothing.

    Raises:
        ValueError: if features are no maps.
    """
    directions = _directions(features)
    with torch.autocast(features.device.type, enabled=False):
        return _columns(directions, directions)


def correlate_maps(
    maps: Tensor, features: Tensor, *, max_numbers: int = 2**25
) -> Tensor:
    """Each cell's mean of the maps over the cells whose features point its way.

    ``maps @ pixel_correlation(features)`` with memory for ``max_numbers`` of its
    numbers; beyond that gradients cost a second computation.

    Args:
        maps: (N, C, h, w), feature maps or CAMs.
        features: (N, D, h, w) of the same grid.
        max_numbers: of the matrix at once; 2**25 are 128 MiB in float32.

    Returns:
        (N, C, h, w), float32 or wider.

    Raises:
        ValueError: if the shapes do not go together or max_numbers is not positive.
    """
    if maps.ndim != 4 or maps.shape[0] != features.shape[0]:
        raise ValueError(
            'maps and features must be (N, C, h, w) and (N, D, h, w), got '
            f'{tuple(maps.shape)} and {tuple(features.shape)}'
        )
    if maps.shape[2:] != features.shape[2:]:
        raise ValueError(
            'maps and features must have one grid, got '
            f'{tuple(maps.shape[2:])} and {tuple(features.shape[2:])}'
        )
    if max_numbers < 1:
        raise ValueError(f'max_numbers must be at least 1, got {max_numbers}')
    directions = _directions(features)
    values = full_precision(maps).flatten(2)
    n, num_cells = len(maps), directions.shape[2]
    width = max(1, max_numbers // max(1, n * num_cells))
    with torch.autocast(maps.device.type, enabled=False):
        if width >= num_cells:
            found = values @ _columns(directions, directions)
        else:
            blocks = [
                checkpoint(_block, values, directions, block, use_reentrant=False)
                for block in directions.split(width, 2)
            ]
            found = torch.cat(blocks, 2)
    return found.unflatten(2, tuple(maps.shape[2:]))


def _directions(features: Tensor) -> Tensor:
    """(N, D, P), each cell of length 1."""
    if features.ndim != 4:
        raise ValueError(f'features must be (N, D, h, w), got {tuple(features.shape)}')
    return F.normalize(full_precision(features).flatten(2), dim=1, eps=_EPS)


def _columns(directions: Tensor, block: Tensor) -> Tensor:
    """(N, P, B), what the B cells of a block take."""
    shares = (directions.transpose(1, 2) @ block).relu()
    return shares / (shares.sum(1, keepdim=True) + _EPS)


def _block(values: Tensor, directions: Tensor, block: Tensor) -> Tensor:
    return values @ _columns(directions, block)
