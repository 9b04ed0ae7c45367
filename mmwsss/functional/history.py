"""Histories of predictions in image coordinates: warps, decayed histograms, packing.

A photo has one fixed G x G grid of cells, whatever crop, scale or flip it is seen in.
Each class has a soft count per cell, which forgets with every visit. A published
variant keeps the last predictions on the crops' own grids and compares them cell by
cell, wherever in the photo the crops lay; here every crop is warped back first.

``affine`` says where an input lies in its photo: (N, 2, 3) with axis 0 rows and axis
1 columns, each (scale, offset, extent). A position x in [0, extent], a fraction of the
padded input, shows the position scale * x + offset, a fraction of the photo. A flip
has a negative scale; beyond extent lies padding. Fractions keep the functions free of
pixel sizes: the decoder's grid and the input's pixels share one affine.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = 255


@torch.no_grad()
def read_history(maps: Tensor, affine: Tensor, size: tuple[int, int]) -> Tensor:
    """Read maps of whole photos at the cells of the inputs.

    Bilinear between the centres of the photo's cells (align_corners=False); within
    half a cell of the photo's edge the outermost cell is continued.

    Args:
        maps: (N, S, G, G) floating point, on the photos' grids.
        affine: (N, 2, 3), see the module.
        size: (h, w) of the grid laid over each padded input.

    Returns:
        (N, S, h, w) in the dtype of ``maps``: values at the cells' centres, 0 for
        centres in the padding or outside the photo. No gradient.

    Raises:
        ValueError: if the shapes do not belong together, the maps are not floating
            point, or the size is empty.
    """
    _check_affine(affine, len(maps))
    if maps.ndim != 4 or maps.shape[2] != maps.shape[3]:
        raise ValueError(f'maps must be (N, S, G, G), got {tuple(maps.shape)}')
    if not maps.is_floating_point():
        raise ValueError(f'maps must be floating point, got {maps.dtype}')
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f'size must be (h, w) of at least one cell, got {size}')
    places, inside = [], []
    for axis, cells in enumerate(size):
        centres = _centres(cells, affine)
        scale, offset, extent = affine[:, axis, :, None].unbind(1)  # (N, 1) each
        place = scale * centres + offset  # (N, cells)
        places.append(place)
        inside.append((place >= 0) & (place <= 1) & (centres < extent))
    rows, columns = places
    grid = torch.stack(
        torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1
    )
    sampled = F.grid_sample(
        # grid_sample needs both in one dtype, and half floats are too coarse here.
        maps.to(affine.dtype),
        grid * 2 - 1,
        mode='bilinear',
        padding_mode='border',
        align_corners=False,
    )
    within = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return (sampled * within).to(maps.dtype)


def label_on_image_grid(label: Tensor, affine: Tensor, grid_size: int) -> Tensor:
    """Lay the labels of inputs onto the grids of their photos.

    Each cell of a photo takes the label at its centre (nearest).

    Args:
        label: (N, h, w) integer, on a grid laid over the padded inputs; 255 unknown.
        affine: (N, 2, 3), see the module.
        grid_size: G, cells per side of a photo.

    Returns:
        (N, G, G) in the dtype of ``label``; 255 where the cell's centre is not in
        the input, or lies in its padding.

    Raises:
        ValueError: if the shapes do not belong together or the grid is empty.
    """
    _check_affine(affine, len(label))
    if label.ndim != 3 or label.is_floating_point():
        raise ValueError(
            f'label must be (N, h, w) integers, got {tuple(label.shape)} {label.dtype}'
        )
    if grid_size < 1:
        raise ValueError(f'grid_size must be at least 1, got {grid_size}')
    centres = _centres(grid_size, affine)
    indices, inside = [], []
    for axis, cells in enumerate(label.shape[1:]):
        scale, offset, extent = affine[:, axis, :, None].unbind(1)
        place = (centres - offset) / scale  # (N, G), fraction of the padded input
        inside.append((place >= 0) & (place < extent))
        indices.append((place * cells).floor().long().clamp(0, cells - 1))
    image = torch.arange(len(label), device=label.device)[:, None, None]
    on_grid = label[image, indices[0][:, :, None], indices[1][:, None, :]]
    within = inside[0][:, :, None] & inside[1][:, None, :]
    return on_grid.masked_fill(~within, IGNORE_INDEX)


def decay_histogram(
    counts: Tensor, label: Tensor, *, decay: float = 0.8, photo: Tensor | None = None
) -> Tensor:
    """Forget a little, then count what this visit saw.

    On cells that were seen: counts_c <- decay * counts_c + [label == c]. Cells with
    the label 255 were not seen and keep their counts. The counts of a cell add up to
    at most 1 / (1 - decay).

    Several visits to one photo (equal numbers in ``photo``) are applied in their
    order, each to the cells that it saw. Their counts must be equal before, and are
    equal after: each of the images gets the result of all visits.

    Args:
        counts: (N, C, G, G) floating point, >= 0.
        label: (N, G, G) integer, 255 not seen.
        decay: in [0, 1); 0 remembers the last visit only.
        photo: (N,) integer; None means N different photos.

    Returns:
        (N, C, G, G) in the dtype of ``counts``.

    Raises:
        ValueError: if the shapes do not belong together or the decay is out of range.
    """
    _check_decay(decay)
    if counts.ndim != 4 or label.shape != counts[:, 0].shape:
        raise ValueError(
            f'counts (N, C, G, G) and label (N, G, G) do not belong together: '
            f'{tuple(counts.shape)} and {tuple(label.shape)}'
        )
    classes = torch.arange(counts.shape[1], device=counts.device)
    hits = (label[:, None] == classes[:, None, None]).to(counts.dtype)
    seen = (label != IGNORE_INDEX).to(counts.dtype)  # (N, G, G)
    if photo is None:
        return counts * decay ** seen[:, None] + hits
    if photo.shape != counts.shape[:1]:
        raise ValueError(f'photo must be ({len(counts)},), got {tuple(photo.shape)}')
    same = (photo[:, None] == photo).to(counts.dtype)  # (N, N)
    # Sums instead of a loop over the visits, whose number the host does not know.
    with torch.autocast(counts.device.type, enabled=False):
        visits = _sum_images(same, seen)
        visits_after = _sum_images(same.triu(1), seen)
        fresh = _sum_images(same, hits * decay ** visits_after[:, None])
    return counts * decay ** visits[:, None] + fresh


def pack_counts(counts: Tensor, *, decay: float = 0.8) -> Tensor:
    """Soft counts as bytes: round(counts * 255 * (1 - decay)).

    The largest possible count, 1 / (1 - decay), is 255. Rounding after every visit
    moves a count by at most 0.5 / (255 * (1 - decay)^2): 0.05 visits at 0.8.

    Args:
        counts: any shape, in [0, 1 / (1 - decay)]; larger ones become 255.
        decay: of the histogram, in [0, 1).

    Returns:
        uint8, the same shape.

    Raises:
        ValueError: if the decay is out of range.
    """
    _check_decay(decay)
    scaled = counts * (255 * (1 - decay))
    return scaled.round().clamp(0, 255).to(torch.uint8)


def unpack_counts(packed: Tensor, *, decay: float = 0.8) -> Tensor:
    """The counts (float32) of bytes that ``pack_counts`` made.

    Args:
        packed: uint8, any shape.
        decay: the one they were packed with.

    Returns:
        float32 in [0, 1 / (1 - decay)], the same shape.

    Raises:
        ValueError: if the decay is out of range.
    """
    _check_decay(decay)
    return packed.float() / (255 * (1 - decay))


def _centres(cells: int, like: Tensor) -> Tensor:
    steps = torch.arange(cells, device=like.device, dtype=like.dtype)
    return (steps + 0.5) / cells


def _sum_images(chosen: Tensor, maps: Tensor) -> Tensor:
    """(N, N) 0/1 and (N, ...) -> (N, ...): the sum over the chosen images."""
    return (chosen @ maps.flatten(1)).view_as(maps)


def _check_affine(affine: Tensor, n: int) -> None:
    if tuple(affine.shape) != (n, 2, 3):
        raise ValueError(f'affine must be {(n, 2, 3)}, got {tuple(affine.shape)}')
    if affine.dtype not in (torch.float32, torch.float64):
        raise ValueError(f'affine must be float32 or float64, got {affine.dtype}')


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f'decay must be in [0, 1), got {decay}')
