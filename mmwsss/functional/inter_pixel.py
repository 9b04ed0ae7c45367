"""What IRNet and AffinityNet learn: pairs of pixels of one class or of two.

IRNet: Ahn et al., CVPR 2019. AffinityNet (PSA): Ahn and Kwak, CVPR 2018.

Pairs come from ``path_index``. A pair counts where both pixels have a label; the label
may be any class but the ignore value, so any number of classes will do (the released
code knows 21). Other differences: pairs at the image border take part, and an empty
kind of pairs adds nothing. ``strict_reference`` gives the published choice of pairs.
Released code: MIT; nothing of it is used.

Convention: displacements are (y, x) in cells; label 0 is background.
"""

import torch
from torch import Tensor

from .pseudo_label import IGNORE_INDEX
from .random_walk import Offset, pair_views, path_affinity, path_index

# Kinds of pairs in ``affinity_labels``.
NO_PAIR, BACKGROUND_PAIR, FOREGROUND_PAIR, DIFFERENT_PAIR = range(4)
_KINDS = (BACKGROUND_PAIR, FOREGROUND_PAIR, DIFFERENT_PAIR)
_EPS = 1e-5


def affinity_labels(
    pseudo_label: Tensor,
    *,
    radius: int = 10,
    ignore_index: int = IGNORE_INDEX,
    strict_reference: bool = False,
) -> Tensor:
    """Kind of every pair of neighbouring pixels.

    Args:
        pseudo_label: (N, h, w), any classes or ``ignore_index``.
        radius: see ``path_index``.
        ignore_index: pairs with such a pixel have no kind.
        strict_reference: as published, pairs start in rows 0 to h - radius and columns
            radius - 1 to w - radius alone, where all neighbours are inside.

    Returns:
        (N, D, h, w) uint8 for the D directions of ``path_index``, the pair standing at
        its first pixel: 0 no pair, 1 both background, 2 both the same class, 3
        different labels.

    Raises:
        ValueError: if the shape or the radius is wrong.
    """
    _check_label(pseudo_label)
    planes = [torch.zeros_like(pseudo_label[:0], dtype=torch.uint8)]
    for offset, _ in path_index(radius):
        kind = _kinds(pseudo_label, offset, radius, ignore_index, strict_reference)
        plane = torch.zeros_like(pseudo_label, dtype=torch.uint8)
        pair_views(plane, offset)[0].copy_(kind)
        planes.append(plane)
    n, h, w = pseudo_label.shape
    return torch.cat(planes).view(-1, n, h, w).transpose(0, 1)


def irn_loss(
    boundary: Tensor,
    displacement: Tensor,
    pseudo_label: Tensor,
    *,
    radius: int = 10,
    ignore_index: int = IGNORE_INDEX,
    strict_reference: bool = False,
) -> tuple[Tensor, Tensor]:
    """Losses of class boundaries and of displacements to the objects' centres.

    With a the affinity of a pair (``path_affinity``), means over the pairs of a kind:
    boundary = 0.5 * (0.5 * (mean_bg + mean_fg of -log(a + 1e-5))
    + mean_different of -log(1 + 1e-5 - a)).
    With d = D(i) - D(j), t = j - i in cells and |.| averaged over y and x:
    displacement = 0.5 * (mean_fg |d - t| + mean_bg |d|).

    Args:
        boundary: (N, 1, h, w) in [0, 1].
        displacement: (N, 2, h, w), y then x, in cells.
        pseudo_label: (N, h, w).
        radius: see ``path_index``.
        ignore_index: label without supervision.
        strict_reference: see ``affinity_labels``.

    Returns:
        Two scalars >= 0; 0 without any pair.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    return irn_loss_from_sums(
        irn_loss_sums(
            boundary,
            displacement,
            pseudo_label,
            radius=radius,
            ignore_index=ignore_index,
            strict_reference=strict_reference,
        )
    )


def irn_loss_sums(
    boundary: Tensor,
    displacement: Tensor,
    pseudo_label: Tensor,
    *,
    radius: int = 10,
    ignore_index: int = IGNORE_INDEX,
    strict_reference: bool = False,
) -> Tensor:
    """Local sums (8,) of ``irn_loss``; those of several processes add up.

    Returns:
        Number of background, foreground and different pairs; their boundary losses;
        the displacement losses of foreground and background pairs.
    """
    _check_maps(boundary, displacement, pseudo_label)
    with torch.autocast(boundary.device.type, enabled=False):
        boundary, displacement = _full(boundary), _full(displacement)
        sums = boundary.new_zeros(8)
        for offset, path in path_index(radius):
            kind = _kinds(pseudo_label, offset, radius, ignore_index, strict_reference)
            if not kind.numel():
                continue
            masks = torch.stack([kind == k for k in _KINDS]).to(sums.dtype)
            affinity = path_affinity(boundary, offset, path)[:, 0]
            sums = sums + torch.cat(
                [
                    masks.sum((1, 2, 3)),
                    _boundary_sums(affinity, masks),
                    _displacement_sums(displacement, masks, offset),
                ]
            )
    return sums


def irn_loss_from_sums(sums: Tensor) -> tuple[Tensor, Tensor]:
    """The two losses from the sums (8,) of all processes."""
    count = sums[:3].detach().clamp(min=1)
    boundary = pair_loss_from_sums(sums[:6])
    toward_centre, still = sums[6] / (2 * count[1]), sums[7] / (2 * count[0])
    return boundary, 0.5 * (toward_centre + still)


def pair_loss_from_sums(sums: Tensor) -> Tensor:
    """0.5 * (0.5 * (mean_bg + mean_fg) + mean_different) of numbers and sums (6,)."""
    # An empty kind has the sum 0 as well; one pair less or more in a mean of thousands
    # would not matter, but a mean is a mean.
    count = sums[:3].detach().clamp(min=1)
    background, foreground, different = (sums[3:] / count).unbind()
    return 0.5 * (0.5 * (background + foreground) + different)


# ------------------------------------------------------------- affinity from features
def feature_pair_affinity(features: Tensor, *, radius: int = 5) -> Tensor:
    """Affinity exp(-mean_c |f_i - f_j|) of all neighbouring cells (PSA).

    Args:
        features: (N, D, h, w).
        radius: see ``path_index``; 5 gives 34 directions.

    Returns:
        (N, directions, h, w) in (0, 1] as ``affinity_walk`` takes it; 0 where the
        neighbour is outside.

    Raises:
        ValueError: if the shape or the radius is wrong.
    """
    _check_features(features)
    n, _, h, w = features.shape
    offsets = [offset for offset, _ in path_index(radius)]
    planes = features.new_zeros(len(offsets), n, h, w)
    for plane, offset in zip(planes, offsets, strict=True):
        pair_views(plane, offset)[0].copy_(_alikeness(features, offset))
    return planes.transpose(0, 1)


def psa_loss(
    features: Tensor,
    pseudo_label: Tensor,
    *,
    radius: int = 5,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Loss of affinities: alike for pairs of one label, not for pairs of two (PSA).

    With a the affinity of a pair (``feature_pair_affinity``), means over the pairs of a
    kind: 0.25 * mean_bg(-log(a + 1e-5)) + 0.25 * mean_fg(-log(a + 1e-5)) +
    0.5 * mean_different(-log(1 + 1e-5 - a)).

    Args:
        features: (N, D, h, w).
        pseudo_label: (N, h, w), any classes or ``ignore_index``; a photo without any
            object is background everywhere and teaches that all of it is alike.
        radius: see ``path_index``.
        ignore_index: label without supervision.

    Returns:
        Scalar >= 0; 0 without any pair.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    sums = psa_loss_sums(
        features, pseudo_label, radius=radius, ignore_index=ignore_index
    )
    return pair_loss_from_sums(sums)


def psa_loss_sums(
    features: Tensor,
    pseudo_label: Tensor,
    *,
    radius: int = 5,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Local sums (6,) of ``psa_loss``; those of several processes add up.

    Returns:
        Number of background, foreground and different pairs, and their losses.
    """
    _check_features(features)
    _check_label(pseudo_label)
    if features[:, 0].shape != pseudo_label.shape:
        raise ValueError(
            'features must be (N, D, h, w) and pseudo_label (N, h, w), got '
            f'{tuple(features.shape)} and {tuple(pseudo_label.shape)}'
        )
    with torch.autocast(features.device.type, enabled=False):
        features = _full(features)
        sums = features.new_zeros(6)
        for offset, _ in path_index(radius):
            kind = _kinds(pseudo_label, offset, radius, ignore_index, strict=False)
            if not kind.numel():
                continue
            masks = torch.stack([kind == k for k in _KINDS]).to(sums.dtype)
            losses = _boundary_sums(_alikeness(features, offset), masks)
            sums = sums + torch.cat([masks.sum((1, 2, 3)), losses])
    return sums


def _alikeness(features: Tensor, offset: Offset) -> Tensor:
    """Affinity (N, h - dy, w - abs(dx)) of the pairs of one direction."""
    first, second = pair_views(features, offset)
    return (-(first - second).abs().mean(1)).exp()


def _check_features(features: Tensor) -> None:
    if features.ndim != 4 or not features.shape[1]:
        raise ValueError(f'features must be (N, D, h, w), got {tuple(features.shape)}')


def _kinds(
    label: Tensor, offset: Offset, radius: int, ignore_index: int, strict: bool
) -> Tensor:
    """Kind of the pairs of one direction, (N, h - dy, w - abs(dx)) uint8."""
    first, second = pair_views(label, offset)
    equal = torch.where(first == 0, BACKGROUND_PAIR, FOREGROUND_PAIR)
    kind = torch.where(first == second, equal, DIFFERENT_PAIR)
    kind = kind.masked_fill((first == ignore_index) | (second == ignore_index), NO_PAIR)
    if strict:
        height, width = label.shape[-2:]
        inside = torch.zeros_like(label[0], dtype=torch.bool)
        margin = radius - 1
        inside[: max(height - margin, 0), margin : max(width - margin, 0)] = True
        kind = kind.masked_fill(~pair_views(inside, offset)[0], NO_PAIR)
    return kind.to(torch.uint8)


def _boundary_sums(affinity: Tensor, masks: Tensor) -> Tensor:
    # One logarithm a pair: it is either alike or different.
    argument = torch.where(masks[2] > 0, 1 + _EPS - affinity, affinity + _EPS)
    return (-argument.log() * masks).sum((1, 2, 3))


def _displacement_sums(displacement: Tensor, masks: Tensor, offset: Offset) -> Tensor:
    first, second = pair_views(displacement, offset)
    difference = first - second  # (N, 2, h - dy, w - abs(dx))
    dy, dx = offset
    off_y, off_x = difference[:, 0] - dy, difference[:, 1] - dx
    toward_centre = (off_y.abs() + off_x.abs()) * masks[1]
    still = difference.abs().sum(1) * masks[0]
    return torch.stack([toward_centre.sum(), still.sum()])


def _full(maps: Tensor) -> Tensor:
    return maps if maps.dtype == torch.float64 else maps.float()


def _check_label(pseudo_label: Tensor) -> None:
    if pseudo_label.ndim != 3:
        raise ValueError(
            f'pseudo_label must be (N, h, w), got {tuple(pseudo_label.shape)}'
        )


def _check_maps(boundary: Tensor, displacement: Tensor, pseudo_label: Tensor) -> None:
    _check_label(pseudo_label)
    n, h, w = pseudo_label.shape
    for name, maps, channels in (
        ('boundary', boundary, 1),
        ('displacement', displacement, 2),
    ):
        if tuple(maps.shape) != (n, channels, h, w):
            raise ValueError(
                f'{name} must be {(n, channels, h, w)} for labels of shape '
                f'{tuple(pseudo_label.shape)}, got {tuple(maps.shape)}'
            )
