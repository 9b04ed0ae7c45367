"""Consistency of a network with its averaged teacher (Tarvainen, Valpola, 2017)."""

import torch
from torch import Tensor

from .pseudo_label import restrict_to_image_classes


def teacher_consistency(
    seg_logits: Tensor,
    teacher_logits: Tensor,
    image_label: Tensor,
    *,
    valid: Tensor | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """Mean KL(teacher | student) over the cells where the teacher is confident.

    Both distributions are over the background and the image's classes, which the
    teacher knows from the image labels; absent classes get no gradient from here.

    Args:
        seg_logits: (N, C, h, w) of the student.
        teacher_logits: the same of the teacher; no gradient flows into it.
        image_label: (N, K) 0/1 with K = C - 1.
        valid: (N, 1, h, w) 0/1; padding does not count.
        threshold: cells count where the teacher's largest probability is at least
            this, in [0, 1].

    Returns:
        Scalar >= 0; 0 with its gradients where no cell counts.

    Raises:
        ValueError: if the shapes differ or the threshold is out of range.
    """
    return teacher_consistency_from_sums(
        teacher_consistency_sums(
            seg_logits, teacher_logits, image_label, valid=valid, threshold=threshold
        )
    )


def teacher_consistency_sums(
    seg_logits: Tensor,
    teacher_logits: Tensor,
    image_label: Tensor,
    *,
    valid: Tensor | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """Local sums (2,): divergence of the cells that count, and their number."""
    if seg_logits.shape != teacher_logits.shape:
        raise ValueError(
            f'student and teacher must have one shape, got {tuple(seg_logits.shape)} '
            f'and {tuple(teacher_logits.shape)}'
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f'threshold must lie in [0, 1], got {threshold}')
    student = _log_softmax(seg_logits, image_label)
    teacher = _log_softmax(teacher_logits.detach(), image_label)
    probability = restrict_to_image_classes(teacher.exp(), image_label, fill=0.0)
    divergence = (probability * (teacher - student)).sum(1, keepdim=True)
    counted = (probability.amax(1, keepdim=True) >= threshold).to(divergence.dtype)
    if valid is not None:
        counted = counted * (valid > 0)
    return torch.stack([(divergence * counted).sum(), counted.sum()])


def teacher_consistency_from_sums(sums: Tensor) -> Tensor:
    """The loss from the sums (2,) of all processes."""
    divergence, count = sums
    return divergence / count.clamp(min=1)


def _log_softmax(logits: Tensor, image_label: Tensor) -> Tensor:
    """Over the allowed classes, float32 at least; 0 in the channels of the others."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    allowed = restrict_to_image_classes(logits, image_label)
    return restrict_to_image_classes(allowed.log_softmax(1), image_label, fill=0.0)
