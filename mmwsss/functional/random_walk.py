"""Random walk of CAMs between class boundaries (IRN, Ahn et al., CVPR 2019).

The affinity of two pixels is 1 - the strongest boundary on the path between them, and
a walker steps from pixel to pixel with probability affinity^beta. The released code
squares the dense (h*w, h*w) transition matrix eight times. Here the walk is applied to
the maps: one step is two multiply-adds per direction on shifted views, all classes at
once, and a polynomial of 120 steps stands for 256 of them (see ``random_walk``).
Released code: MIT; nothing of it is used.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Offset = tuple[int, int]
Views = tuple[Tensor, list[Tensor]]
# Of the series for T^n, relative to the norm of the maps.
TOLERANCE = 1e-12


@lru_cache
def path_index(radius: int) -> tuple[tuple[Offset, tuple[Offset, ...]], ...]:
    """Directions of one half plane and the cells on the way of each.

    Directions are (0, x) and (y, x) with y >= 1 and x^2 + y^2 < radius^2: each pair of
    neighbours occurs once. On the way are the cells of the bounding box whose distance
    from the straight line is below 1, both ends included.

    Args:
        radius: in cells, 1 or more; 5 gives 34 directions, 10 gives 152.

    Returns:
        ((dy, dx), ((y, x), ...)) of every direction, row by row.

    Raises:
        ValueError: if the radius is below 1.
    """
    if radius < 1:
        raise ValueError(f'radius must be 1 or more, got {radius}')
    reach = range(1 - radius, radius)
    directions = [
        (dy, dx)
        for dy in range(radius)
        for dx in reach
        if (dy, dx) > (0, 0) and dy * dy + dx * dx < radius * radius
    ]
    return tuple((direction, _path(*direction)) for direction in directions)


def _path(dy: int, dx: int) -> tuple[Offset, ...]:
    columns = range(min(dx, 0), max(dx, 0) + 1)
    squared_length = dy * dy + dx * dx
    return tuple(
        (y, x)
        for y in range(dy + 1)
        for x in columns
        if (dy * x - dx * y) ** 2 < squared_length
    )


def pair_views(maps: Tensor, offset: Offset) -> tuple[Tensor, Tensor]:
    """Views of a map (..., h, w) at both ends of all pairs of one direction.

    Args:
        maps: (..., h, w).
        offset: (dy, dx) from ``path_index``, dy >= 0.

    Returns:
        Two views (..., h - dy, w - abs(dx)); a pair stands at the same place in both.
        They are empty where the map is smaller than the offset.
    """
    return _view(maps, (0, 0), offset), _view(maps, offset, offset)


def _view(maps: Tensor, place: Offset, direction: Offset) -> Tensor:
    """The map at ``place`` from each start whose end in ``direction`` is inside."""
    dy, dx = direction
    height = max(maps.shape[-2] - dy, 0)
    width = max(maps.shape[-1] - abs(dx), 0)
    top, left = place[0], max(-dx, 0) + place[1]
    return maps[..., top : top + height, left : left + width]


def path_affinity(
    boundary: Tensor, direction: Offset, path: Sequence[Offset]
) -> Tensor:
    """1 - the strongest boundary on the way, for all pairs of one direction.

    Args:
        boundary: (N, 1, h, w) in [0, 1].
        direction: (dy, dx) of ``path_index``.
        path: its cells.

    Returns:
        (N, 1, h - dy, w - abs(dx)). The gradient goes to the strongest cell of each
        path, to the first of equal ones.
    """
    if not (torch.is_grad_enabled() and boundary.requires_grad):
        strongest = _view(boundary, path[0], direction)
        for place in path[1:]:
            strongest = torch.maximum(strongest, _view(boundary, place, direction))
        return 1 - strongest
    # Keeping every running maximum for the backward pass takes gigabytes at radius 10:
    # the place of the strongest cell is found first, then one value is gathered.
    values, width = boundary.detach(), boundary.shape[-1]
    strongest = _view(values, path[0], direction).clone()
    place_of = torch.full_like(strongest, _flat(path[0], width), dtype=torch.int32)
    stronger = torch.empty_like(strongest, dtype=torch.bool)
    for cell in path[1:]:
        value = _view(values, cell, direction)
        torch.gt(value, strongest, out=stronger)
        place_of.masked_fill_(stronger, _flat(cell, width))
        torch.maximum(value, strongest, out=strongest)
    cells = torch.arange(values[0, 0].numel(), device=values.device)
    start = _view(cells.view(values.shape[-2:]), (0, 0), direction)
    chosen = boundary.flatten(1).gather(1, (place_of + start).flatten(1))
    return 1 - chosen.view(strongest.shape)


def _flat(offset: Offset, width: int) -> int:
    return offset[0] * width + offset[1]


def pair_affinity(boundary: Tensor, *, radius: int = 5) -> Tensor:
    """Affinity of every pixel and its neighbours in one half plane.

    Args:
        boundary: (N, 1, h, w) in [0, 1].
        radius: see ``path_index``.

    Returns:
        (N, D, h, w) in [0, 1] for the D directions of ``path_index``: the affinity of
        the pixel and the one at that offset, 0 where that one is outside.

    Raises:
        ValueError: if the shape or the radius is wrong.
    """
    if boundary.ndim != 4 or boundary.shape[1] != 1:
        raise ValueError(f'boundary must be (N, 1, h, w), got {tuple(boundary.shape)}')
    planes = []
    for direction, path in path_index(radius):
        affinity = path_affinity(boundary, direction, path)
        dy, dx = direction
        # What a narrow map has not at all is as empty as what it lacks at the border.
        if not affinity.numel():
            planes.append(torch.zeros_like(boundary))
            continue
        planes.append(F.pad(affinity, (max(-dx, 0), max(dx, 0), 0, dy)))
    if not planes:
        return boundary.new_zeros(len(boundary), 0, *boundary.shape[2:])
    return torch.cat(planes, dim=1)


@torch.no_grad()
def random_walk(
    cams: Tensor,
    boundary: Tensor,
    *,
    radius: int = 5,
    beta: float = 10,
    num_steps: int = 256,
) -> Tensor:
    """Let CAMs walk until boundaries stop them.

    rw = T^num_steps (cams * (1 - boundary)), with T_ij = A_ij^beta / sum_j A_ij^beta,
    A_ij = 1 - the strongest boundary between i and j for neighbours within the radius,
    and A_ii = 1. Each step is an average, so values stay in the range of the input.

    T is similar to a symmetric matrix with eigenvalues in [-1, 1]. There x^n equals its
    Chebyshev series up to degree d but for 2 exp(-d^2 / 2n); with d for 1e-12 that is
    120 products with T instead of 256. They are made in float64 (float32 on devices
    without it): 256 steps in float32 are off by up to 0.1 percent.

    Args:
        cams: (N, K, h, w) >= 0; any channels, background included.
        boundary: (N, 1, h, w) in [0, 1].
        radius: of the neighbourhood, in cells; those at a distance below it belong.
        beta: exponent of the affinity, positive; a higher one respects weak boundaries.
        num_steps: n, 0 or more.

    Returns:
        (N, K, h, w) >= 0 in the dtype of ``cams``, not normalised. No gradient.

    Raises:
        ValueError: if shapes do not belong together or a number is out of its range.
    """
    _check_walk(cams, 'boundary', boundary, 1, beta, num_steps)
    with torch.autocast(cams.device.type, enabled=False):
        boundary = boundary.clamp(0, 1)
        affinity = pair_affinity(boundary, radius=radius)
        begin = cams.to(_walk_dtype(cams)) * (1 - boundary.to(_walk_dtype(cams)))
        walked = _walked(begin, affinity, radius, beta, num_steps)
    return walked.to(cams.dtype)


@torch.no_grad()
def affinity_walk(
    cams: Tensor,
    affinity: Tensor,
    *,
    radius: int = 5,
    beta: float = 8,
    num_steps: int = 256,
) -> Tensor:
    """Let CAMs walk by given affinities (PSA, Ahn and Kwak, CVPR 2018).

    rw = T^num_steps cams, T_ij = A_ij^beta / sum_j A_ij^beta, A_ii = 1; see
    ``random_walk`` for how.

    Args:
        cams: (N, K, h, w) >= 0; any channels, background included.
        affinity: (N, D, h, w) in [0, 1] for the D directions of ``path_index``: of the
            pixel and the one at that offset, 0 where that one is outside.
        radius: the one that made the affinity.
        beta: exponent of the affinity, positive; 8 as published.
        num_steps: 0 or more; 256 as published.

    Returns:
        (N, K, h, w) >= 0 in the dtype of ``cams``, not normalised. No gradient.

    Raises:
        ValueError: if shapes do not belong together or a number is out of its range.
    """
    planes = len(path_index(radius))
    _check_walk(cams, 'affinity', affinity, planes, beta, num_steps)
    with torch.autocast(cams.device.type, enabled=False):
        begin = cams.to(_walk_dtype(cams))
        walked = _walked(begin, affinity, radius, beta, num_steps)
    return walked.to(cams.dtype)


def _walk_dtype(cams: Tensor) -> torch.dtype:
    return torch.float32 if cams.device.type == 'mps' else torch.float64


def _walked(
    begin: Tensor, affinity: Tensor, radius: int, beta: float, num_steps: int
) -> Tensor:
    affinity = affinity.to(begin.dtype) ** beta
    if begin.device.type == 'cpu':
        return _walk_occupied(begin, affinity, radius, num_steps)
    return _walk(begin, affinity, radius, num_steps)


def _check_walk(
    cams: Tensor, name: str, maps: Tensor, planes: int, beta: float, num_steps: int
) -> None:
    if cams.ndim != 4:
        raise ValueError(f'cams must be (N, K, h, w), got {tuple(cams.shape)}')
    expected = (cams.shape[0], planes, *cams.shape[2:])
    if tuple(maps.shape) != expected:
        raise ValueError(
            f'{name} must be {expected} for cams of shape {tuple(cams.shape)}, got '
            f'{tuple(maps.shape)}'
        )
    if not beta > 0:
        raise ValueError(f'beta must be positive, got {beta}')
    if num_steps < 0:
        raise ValueError(f'num_steps must be 0 or more, got {num_steps}')


def _walk_occupied(
    begin: Tensor, affinity: Tensor, radius: int, num_steps: int
) -> Tensor:
    """Image by image, without the empty channels, which stay empty."""
    walked = torch.zeros_like(begin)
    for number in range(len(begin)):
        # Absent classes are most of them; to find them out costs nothing on a CPU.
        occupied = begin[number].flatten(1).any(1).nonzero().squeeze(1)
        if len(occupied):
            one = slice(number, number + 1)
            walked[number, occupied] = _walk(
                begin[one, occupied], affinity[one], radius, num_steps
            )[0]
    return walked


def _walk(begin: Tensor, affinity: Tensor, radius: int, num_steps: int) -> Tensor:
    """The walk in its symmetric form S = D^-1/2 W D^-1/2, T^n = D^-1/2 S^n D^1/2."""
    step = _Step(affinity, radius)
    root = step.degree.sqrt()
    previous = step.lay_out(begin) * root
    current = torch.zeros_like(previous)
    series = _power_series(num_steps)
    total = series[0] * previous
    if len(series) > 1:
        step.add_twice(previous, current)
        current *= 0.5
        total.add_(current, alpha=series[1])
    views = step.views(previous), step.views(current)
    for coefficient in series[2:]:
        # T_k+1 = 2 S T_k - T_k-1, written over T_k-1.
        previous.neg_()
        step.add_views(views[1], views[0])
        previous, current, views = current, previous, views[::-1]
        if coefficient:
            total.add_(current, alpha=coefficient)
    return step.take_out(total / root, begin.shape[-2:]).clamp(min=0)


class _Step:
    """Products with 2 S on maps that are laid out flat.

    Rows are followed by radius - 1 empty cells and the map by a margin, so that every
    offset (dy, dx) is one shift of a contiguous vector, forwards; pairs that leave the
    map have the weight 0.

    Args:
        affinity: (N, D, h, w), already to the power of beta.
        radius: the same that made it.
    """

    def __init__(self, affinity: Tensor, radius: int) -> None:
        self.pitch = affinity.shape[-1] + radius - 1
        self.length = affinity.shape[-2] * self.pitch
        self.margin = (radius - 1) * (self.pitch + 1)
        self.shifts = [_flat(offset, self.pitch) for offset, _ in path_index(radius)]
        weights = F.pad(affinity, (0, radius - 1)).flatten(2)[:, :, None].unbind(1)
        self.degree = self._degrees(affinity, weights)
        inverse = self.degree.rsqrt()
        # Twice, since the recurrence takes twice the product.
        self.diagonal = self._at(2 / self.degree, 0)
        self.weights = [
            2 * weight * self._at(inverse, 0) * self._at(inverse, shift)
            for weight, shift in zip(weights, self.shifts, strict=True)
        ]

    def _degrees(self, affinity: Tensor, weights: Sequence[Tensor]) -> Tensor:
        degree = affinity.new_ones(len(affinity), 1, self.length + self.margin)
        for weight, shift in zip(weights, self.shifts, strict=True):
            self._at(degree, 0).add_(weight)
            self._at(degree, shift).add_(weight)
        return degree

    def _at(self, flat: Tensor, shift: int) -> Tensor:
        return flat[..., shift : shift + self.length]

    def lay_out(self, maps: Tensor) -> Tensor:
        """(N, K, h, w) -> (N, K, length + margin)."""
        flat = F.pad(maps, (0, self.pitch - maps.shape[-1])).flatten(2)
        return F.pad(flat, (0, self.margin))

    def take_out(self, flat: Tensor, size: torch.Size) -> Tensor:
        """The reverse of ``lay_out``."""
        rows = self._at(flat, 0).unflatten(2, (size[0], self.pitch))
        return rows[..., : size[1]]

    def views(self, flat: Tensor) -> Views:
        """The maps in place and shifted; made once, since slicing costs as much."""
        return self._at(flat, 0), [self._at(flat, shift) for shift in self.shifts]

    def add_views(self, source: Views, target: Views) -> None:
        """Target += 2 S source, both as ``views``."""
        here, there = source
        here_too, there_too = target
        here_too.addcmul_(here, self.diagonal)
        for weight, far, far_too in zip(self.weights, there, there_too, strict=True):
            here_too.addcmul_(far, weight)
            far_too.addcmul_(here, weight)

    def add_twice(self, source: Tensor, target: Tensor) -> None:
        """Target += 2 S source, both as ``lay_out`` gives them."""
        self.add_views(self.views(source), self.views(target))


@lru_cache
def _power_series(power: int) -> tuple[float, ...]:
    """Coefficients c_k of x^power = sum_k c_k T_k(x) that matter on [-1, 1].

    c_k = 2^(1 - power) binomial(power, (power - k) / 2) for k of the parity of the
    power, half of that for k = 0. They are the probabilities of a coin-tossing walk, so
    Hoeffding bounds the rest. They are scaled to sum 1, which keeps constants constant.
    """
    bound = math.sqrt(2 * power * math.log(2 / TOLERANCE))
    degree = min(power, math.ceil(bound))
    series = [0.0] * (degree + 1)
    for k in range(power % 2, degree + 1, 2):
        ways = math.comb(power, (power - k) // 2) * (1 if k == 0 else 2)
        series[k] = ways / 2**power
    whole = sum(series)
    return tuple(value / whole for value in series)
