"""CAMs of several classifiers made into one: OR, AND, mean, max, and what learns.

After ORANDNet (AAAI-24 workshop), from its poster and from how the released code
behaves. CAMs are taken as probabilities of classifiers that err independently, so OR is
the probabilistic sum and AND the product; neither is the maximum or the minimum.
Different from the released code: a calibrated CAM stays in [0, 1], and the loss has a
gradient on photos with one class.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ('bce', 'soft_ce')


def cam_or(a: Tensor, b: Tensor) -> Tensor:
    """Probabilistic sum a + b - ab: what either classifier sees.

    Args:
        a: CAMs in [0, 1], any shape.
        b: the same shape.

    Returns:
        The same shape, in [max(a, b), 1].

    Raises:
        ValueError: if the shapes differ.
    """
    _check_pair(a, b)
    return a + b - a * b


def cam_and(a: Tensor, b: Tensor) -> Tensor:
    """Product ab: what both classifiers see.

    Args:
        a: CAMs in [0, 1], any shape.
        b: the same shape.

    Returns:
        The same shape, in [0, min(a, b)].

    Raises:
        ValueError: if the shapes differ.
    """
    _check_pair(a, b)
    return a * b


def calibrate(cams: Tensor, offset: float, *, clip: bool = True) -> Tensor:
    """Add an offset, so that CAMs with different best thresholds meet at one.

    The offset is the other classifier's best background threshold minus one's own.
    Give CAMs of present classes alone: the offset lifts an empty map as well.

    Args:
        cams: in [0, 1], any shape.
        offset: 0.15 as published for a ViT beside a ResNet-50.
        clip: cut the result to [0, 1]. False is as released: values beyond 1, with
            which OR exceeds 1 and AND may exceed OR, so neither is a probability.

    Returns:
        The same shape; the tensor itself for an offset of 0.
    """
    if offset == 0:
        return cams
    lifted = cams + offset
    return lifted.clamp(0, 1) if clip else lifted


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0]) / len(parts)


_RULES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    'or': lambda parts: reduce(cam_or, parts),
    'and': lambda parts: reduce(cam_and, parts),
    'mean': _mean,
    'max': lambda parts: reduce(torch.maximum, parts),
}
FUSION_MODES = tuple(_RULES)


def fuse_cams(
    cams: Sequence[Tensor],
    *,
    mode: str,
    offsets: Sequence[float] | None = None,
    clip: bool = True,
) -> Tensor:
    """Fuse the CAMs of two or more classifiers.

    Args:
        cams: one tensor per classifier in [0, 1], one shape; present classes alone
            where there are offsets.
        mode: 'or', 'and', 'mean' or 'max'. Nothing is normalised afterwards.
        offsets: for ``calibrate``, one per classifier; None for none.
        clip: for ``calibrate``.

    Returns:
        The same shape; in [0, 1] with ``clip``.

    Raises:
        ValueError: if there is one classifier, or shapes, mode or offsets are wrong.
    """
    if mode not in _RULES:
        raise ValueError(f'mode must be one of {FUSION_MODES}, got {mode!r}')
    if len(cams) < 2:
        raise ValueError(f'need the CAMs of two classifiers or more, got {len(cams)}')
    for other in cams[1:]:
        _check_pair(cams[0], other)
    if offsets is None:
        offsets = (0.0,) * len(cams)
    if len(offsets) != len(cams):
        raise ValueError(
            f'offsets must hold {len(cams)} numbers, one per classifier, got '
            f'{tuple(offsets)}'
        )
    parts = [
        calibrate(own, offset, clip=clip)
        for own, offset in zip(cams, offsets, strict=True)
    ]
    return _RULES[mode](parts)


def soft_target_loss(logits: Tensor, target: Tensor, *, mode: str = 'bce') -> Tensor:
    """How far one photo's predicted maps are from its soft targets (the AND maps).

    'bce' asks of every class by itself whether a pixel belongs to it; its sigmoid is
    the prediction. 'soft_ce' is as released, -mean_p sum_c target log softmax_c: the
    classes of a photo compete and there is no background, so a photo with one class
    has loss 0 and no gradient, and a constant added to all maps changes nothing
    although the prediction cuts them at 0.

    Args:
        logits: (P, H, W), the P classes that the photo shows.
        target: (P, H, W), brought to [0, 1] for 'bce'.
        mode: 'bce' or 'soft_ce'.

    Returns:
        Scalar >= 0, mean over pixels, for 'bce' also over classes; 0 for no class.

    Raises:
        ValueError: if the shapes differ or the mode is unknown.
    """
    if mode not in LOSSES:
        raise ValueError(f'mode must be one of {LOSSES}, got {mode!r}')
    _check_pair(logits, target)
    if not logits.numel():
        return logits.sum()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    target = target.detach().to(logits.dtype)
    if mode == 'bce':
        return F.binary_cross_entropy_with_logits(logits, target.clamp(0, 1))
    return -(target * logits.log_softmax(0)).sum(0).mean()


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f'both must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}'
        )
