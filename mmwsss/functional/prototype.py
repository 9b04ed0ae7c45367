"""Image-specific prototypes: structure seeds, prototype CAMs, affinity enhancement.

Sources: SIPE, Chen et al., CVPR 2022 (seeds, prototypes, IS-CAM, GSC loss); AE-SIPE
(the enhancement by PAMR). Formulas as in the released MIT code (spec sipe, sections 2
and 4), written anew: matrix products take the place of its (N, C, D, h, w) products, a
cell without any feature gives no NaN, and the enhancement is a list of steps.

Convention: scores have the background in channel 0. Everything is computed in float32
(float64 stays), also under autocast.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .cam import add_background, normalize_cams
from .local_affinity import DILATIONS, pamr

ENHANCEMENT_STEPS = ('pamr', 'prototypes', 'is_cam')

# Entries of the cell-to-cell relation that are held at once (64 MB of float32).
_RELATION_ENTRIES = 2**24


def hierarchical_features(
    features: Sequence[Tensor], size: tuple[int, int], *, eps: float = 1e-5
) -> Tensor:
    """Put feature maps of several depths on one grid and side by side.

    Each map is divided by its cells' norm + eps at its own resolution, then resized
    (bilinear, align_corners=False); the result is not normalised again.

    Args:
        features: maps (N, D_l, h_l, w_l).
        size: (h, w) of the grid.
        eps: keeps cells without features at 0.

    Returns:
        (N, sum of D_l, h, w); the norm of a cell is at most sqrt(len(features)).

    Raises:
        ValueError: if there is no map, or one that has not four dimensions.
    """
    if not features:
        raise ValueError(f'features must hold at least one map, got {features!r}')
    for maps in features:
        _check_features(maps)
    return torch.cat(
        [
            F.interpolate(
                _directions(full_precision(maps), eps),
                size,
                mode='bilinear',
                align_corners=False,
            )
            for maps in features
        ],
        dim=1,
    )


def general_scores(class_maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores of a classifier: each map over its maximum, and what all maps leave.

    The background is 1 - max over all K classes, absent ones included; whoever wants
    the image's classes alone multiplies afterwards.

    Args:
        class_maps: (N, K, h, w), any range.
        size: (h', w') of the result (bilinear, align_corners=True).

    Returns:
        (N, C, h', w') in [0, 1]; differentiable, through the maxima too.
    """
    scores = add_background(normalize_cams(full_precision(class_maps)))
    if tuple(scores.shape[-2:]) == tuple(size):
        return scores
    return F.interpolate(scores, size, mode='bilinear', align_corners=True)


@torch.no_grad()
def structure_seeds(
    features: Tensor,
    cams: Tensor,
    valid: Tensor | None = None,
    *,
    bg_factor: float = 0.5,
) -> Tensor:
    """Give each cell to the class whose map agrees best with the cell's structure.

    R_pq = relu(cos(f_p, f_q)) says which cells q are like p. The class of p has the
    largest soft IoU of R_p and its map M: sum_q R_pq M_q / (sum_q R_pq + sum_q M_q -
    sum_q R_pq M_q). A cell without features belongs to the background.

    Args:
        features: (N, D, h, w).
        cams: (N, C, h, w) in [0, 1], background in channel 0.
        valid: 0/1, broadcastable to (N, C, h, w): real cells of the image's classes,
            or (N, C, 1, 1) for the image's classes alone. Where a class wins that is
            not valid there is no seed, not one of the runner-up. None keeps all.
        bg_factor: on the background's IoU.

    Returns:
        One-hot times valid (N, C, h, w) in the dtype of cams. No gradient.

    Raises:
        ValueError: if the grids differ or bg_factor is negative.
    """
    _check_features(features)
    _check_maps('cams', cams, features)
    _check_factor(bg_factor)
    with torch.autocast(features.device.type, enabled=False):
        directions = _directions(full_precision(features), 1e-5).flatten(2)
        maps = cams.to(directions.dtype).flatten(2)
        agreement = _soft_iou(directions, maps).unflatten(2, cams.shape[-2:])
    return largest_seeds(agreement, valid, bg_factor=bg_factor).to(cams.dtype)


@torch.no_grad()
def largest_seeds(
    scores: Tensor, valid: Tensor | None = None, *, bg_factor: float = 1.0
) -> Tensor:
    """Give each cell to the class with the largest score, the first one of equals.

    Args:
        scores: (N, C, h, w), background in channel 0.
        valid: see ``structure_seeds``.
        bg_factor: on the background's score.

    Returns:
        One-hot times valid (N, C, h, w) in the dtype of scores. No gradient.

    Raises:
        ValueError: if scores has not four dimensions, valid does not fit them, or
            bg_factor is negative.
    """
    _check_maps('scores', scores)
    _check_factor(bg_factor)
    factor = torch.ones_like(scores[:1, :, :1, :1])
    factor[:, 0] = bg_factor
    winner = (scores * factor).argmax(1, keepdim=True)
    seeds = torch.zeros_like(scores).scatter_(1, winner, 1)
    if valid is None:
        return seeds
    try:
        valid = valid.expand_as(seeds)
    except RuntimeError:
        raise ValueError(
            f'valid must be broadcastable to {tuple(seeds.shape)}, got '
            f'{tuple(valid.shape)}'
        ) from None
    return seeds * valid.to(seeds.dtype)


def class_prototypes(features: Tensor, seeds: Tensor) -> Tensor:
    """Add up the features of each class's seeds, as a share of all cells.

    Divided by h*w and not by the number of seeds: only directions matter afterwards.

    Args:
        features: (N, D, h, w).
        seeds: (N, C, h', w'), another size is resized to the features (nearest).

    Returns:
        (N, C, D); a class without seeds has 0.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    _check_features(features)
    _check_maps('seeds', seeds)
    if seeds.shape[0] != features.shape[0]:
        raise ValueError(
            f'seeds must be of {features.shape[0]} images, got {tuple(seeds.shape)}'
        )
    with torch.autocast(features.device.type, enabled=False):
        features = full_precision(features)
        if seeds.shape[-2:] != features.shape[-2:]:
            seeds = F.interpolate(seeds, features.shape[-2:], mode='nearest')
        cells = features.flatten(2).transpose(1, 2)  # (N, h*w, D)
        return seeds.to(cells.dtype).flatten(2) @ cells / cells.shape[1]


def prototype_cams(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine, if positive, between each cell and each prototype (IS-CAM).

    Args:
        features: (N, D, h, w).
        prototypes: (N, C, D).

    Returns:
        (N, C, h, w) in [0, 1] up to rounding. A prototype or a cell of length 0 gives
        exactly 0 and no gradient.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    _check_features(features)
    n, d = features.shape[:2]
    if prototypes.ndim != 3 or (prototypes.shape[0], prototypes.shape[2]) != (n, d):
        raise ValueError(
            f'prototypes must be ({n}, C, {d}), got {tuple(prototypes.shape)}'
        )
    with torch.autocast(features.device.type, enabled=False):
        cells = _unit_or_zero(full_precision(features).flatten(2), dim=1)
        centres = _unit_or_zero(prototypes.to(cells.dtype), dim=2)
        return (centres @ cells).relu().unflatten(2, features.shape[-2:])


def enhance_cams(
    image: Tensor,
    features: Tensor,
    cams: Tensor,
    valid: Tensor | None = None,
    *,
    steps: Sequence[str] = ENHANCEMENT_STEPS,
    bg_factor: float = 1.0,
    num_iters: int = 10,
    dilations: Sequence[int] = DILATIONS,
) -> Tensor:
    """Affinity enhancement of prototype CAMs (AE-SIPE), any order of its steps.

    'pamr' refines the maps on the image and brings them back to the grid (bilinear,
    align_corners=True). 'prototypes' makes prototypes of the maps' largest class in
    each cell. 'is_cam', directly after it, makes new maps of the prototypes.

    Args:
        image: (N, 3, H, W) RGB in [0, 1]; as published a quarter of the photo's size.
        features: (N, D, h, w).
        cams: (N, C, h, w) of ``prototype_cams``, not normalised.
        valid: of the seeds, see ``structure_seeds``; None, as published, also makes
            seeds of padding.
        steps: of 'pamr', 'prototypes' and 'is_cam', possibly repeated; none returns
            cams.
        bg_factor: on the background where seeds are taken; 1 as published.
        num_iters: of PAMR.
        dilations: of PAMR.

    Returns:
        (N, C, h, w), not normalised. Differentiable in the features if the last step
        is 'is_cam', through the cosines and the prototypes; seeds and PAMR carry no
        gradient.

    Raises:
        ValueError: for an unknown step or an 'is_cam' that does not directly follow a
            'prototypes', or if the shapes do not belong together.
    """
    check_enhancement(steps)
    _check_features(features)
    _check_maps('cams', cams, features)
    maps, prototypes = cams, None
    for step in steps:
        if step == 'pamr':
            fine = pamr(image, maps, num_iters=num_iters, dilations=dilations)
            maps = F.interpolate(
                fine, cams.shape[-2:], mode='bilinear', align_corners=True
            )
        elif step == 'prototypes':
            seeds = largest_seeds(maps, valid, bg_factor=bg_factor)
            prototypes = class_prototypes(features, seeds)
        elif prototypes is not None:
            maps = prototype_cams(features, prototypes)
    return maps


def check_enhancement(steps: Sequence[str]) -> None:
    """Raise ValueError unless the steps can be taken in this order."""
    if isinstance(steps, str) or not set(steps) <= set(ENHANCEMENT_STEPS):
        raise ValueError(f'steps must be a list of {ENHANCEMENT_STEPS}, got {steps!r}')
    before = ['', *steps]
    after = [*steps, '']
    for first, second in zip(before, after, strict=True):
        if (first == 'prototypes') != (second == 'is_cam'):
            raise ValueError(
                "each 'prototypes' must be directly followed by an 'is_cam' and each "
                f"'is_cam' stand behind a 'prototypes', got {list(steps)}"
            )


def gsc_loss(cams: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """General-specific consistency: mean |cams - target| (L_GSC of SIPE).

    Args:
        cams: (N, C, h, w) in [0, 1], the classifier's, background in channel 0.
        target: (N, C, h, w) in [0, 1], the prototypes'; gradients flow into both.
        valid: (N, 1, h, w) 0/1, cells that count; None counts all, as published.

    Returns:
        Scalar in [0, 1].

    Raises:
        ValueError: if the shapes differ.
    """
    return gsc_from_sums(gsc_sums(cams, target, valid=valid))


def gsc_sums(cams: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Local sums (2,): distance, number of entries. Those of processes add up."""
    _check_maps('cams', cams)
    if target.shape != cams.shape:
        raise ValueError(
            f'target must be {tuple(cams.shape)} as the cams, got {tuple(target.shape)}'
        )
    distance = (full_precision(cams) - full_precision(target)).abs()
    if valid is None:
        return torch.stack([distance.sum(), distance.new_full((), distance.numel())])
    cells = (cams.shape[0], 1, *cams.shape[2:])
    if tuple(valid.shape) != cells:
        raise ValueError(f'valid must be {cells}, got {tuple(valid.shape)}')
    valid = valid.to(distance.dtype)
    return torch.stack([(distance * valid).sum(), valid.sum() * cams.shape[1]])


def gsc_from_sums(sums: Tensor) -> Tensor:
    """Loss from the sums (2,) of all processes; 0 where no cell counts."""
    distance, count = sums.unbind()
    return distance / count.clamp(min=1)


def _soft_iou(directions: Tensor, maps: Tensor) -> Tensor:
    """(N, D, cells), (N, C, cells) -> (N, C, cells), a block of cells at a time."""
    n, _, cells = directions.shape
    mass = maps.sum(2, keepdim=True)
    step = max(1, _RELATION_ENTRIES // max(1, n * cells))
    blocks = []
    for block in directions.split(step, dim=2):
        relation = (directions.transpose(1, 2) @ block).relu_()  # (N, cells, block)
        overlap = maps @ relation
        union = relation.sum(1, keepdim=True) + mass - overlap
        # 0 / 0 at a cell without features, for a class without a map.
        blocks.append(overlap / union.clamp(min=1e-12))
    return torch.cat(blocks, dim=2)


def _directions(features: Tensor, eps: float) -> Tensor:
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + eps)


def _unit_or_zero(vectors: Tensor, *, dim: int, eps: float = 1e-8) -> Tensor:
    """Unit vectors; a shorter one than eps becomes 0, without gradient."""
    # Dividing by a clamped norm would send gradients of 1 / eps into empty classes.
    square = vectors.square().sum(dim, keepdim=True)
    alive = square > eps**2
    return vectors * (torch.where(alive, square, 1).rsqrt() * alive)


def full_precision(tensor: Tensor) -> Tensor:
    """Float32 of anything but float64, which stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_features(features: Tensor) -> None:
    if features.ndim != 4:
        raise ValueError(f'features must be (N, D, h, w), got {tuple(features.shape)}')


def _check_maps(name: str, maps: Tensor, features: Tensor | None = None) -> None:
    if maps.ndim != 4 or maps.shape[1] < 1:
        raise ValueError(f'{name} must be (N, C, h, w), got {tuple(maps.shape)}')
    if features is None:
        return
    n, h, w = features.shape[0], *features.shape[2:]
    if (maps.shape[0], *maps.shape[2:]) != (n, h, w):
        raise ValueError(
            f'{name} must be ({n}, C, {h}, {w}) as the features, got '
            f'{tuple(maps.shape)}'
        )


def _check_factor(bg_factor: float) -> None:
    if not bg_factor >= 0:
        raise ValueError(f'bg_factor must not be negative, got {bg_factor}')
