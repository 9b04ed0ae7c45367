"""What one network's maps have to learn from another's of a different architecture.

After Zhang & Hsu, "Cross-architecture Consistency Regularization" (arXiv 2507.21959),
from its formulas. Further forms: channel-wise distillation (Shu et al., ICCV 2021),
inter-channel correlation (Liu et al., ICCV 2021), CKA (Kornblith et al., ICML 2019).
Different from the released code: L1 and L2 are means, so that they do not grow with the
map; channels are compared with their own counterpart alone; a pair of mode and metric
without a gradient is refused (softmax over one logit, cosine of one channel).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .prototype import full_precision

MODES = ('global', 'channel', 'spatial', 'spatial_map', 'gram', 'logits')
METRICS = ('cosine', 'l1', 'l2', 'kl')
NORMALIZATIONS = (None, 'std', 'minmax')
_NEEDS_CHANNELS = ('spatial', 'gram')
_KL_MODES = ('channel', 'logits')
_EPS = 1e-8


def knowledge_transfer_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    mode: str = 'global',
    metric: str = 'cosine',
    temperature: float = 1.0,
    normalize: str | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """How far the student's maps are from the teacher's.

    Modes, with P = h * w cells: 'global' compares an image's maps as one vector of
    C * P numbers, 'channel' each channel over the cells, 'spatial' each cell over the
    channels, 'spatial_map' the mean over the channels, 'gram' the rows of X X^t / P,
    each of length 1 (which channels go together, not where), 'logits' class scores.

    Metrics: 'cosine' is 1 - cos, in [0, 2], 0 for equality up to a positive factor
    (not for 'logits'). 'l1' and 'l2' are means of |s - t| and (s - t)^2, the same
    number for 'global', 'channel' and 'spatial'. 'kl' is KL(teacher || student) times
    temperature^2: for 'channel' of the softmax over the cells, for 'logits' of the
    sigmoids, added up over the classes.

    The teacher gets a gradient too where it asks for one; detach it to leave it alone.

    Args:
        student: (N, C, h, w), or (N, K) for 'logits'.
        teacher: (N, C, h', w'), resized to the student's grid (bilinear), or (N, K).
        mode: see above.
        metric: see above.
        temperature: positive, for 'kl'.
        normalize: of each map before it is compared: 'std' takes off its mean, which
            otherwise dominates a cosine, and divides by its standard deviation;
            'minmax' brings it to [0, 1].
        present: (N, C) or (N, K) 0/1; other channels take no part, an image without
            any (for 'spatial' and 'gram' cosines, without two) neither.

    Returns:
        Scalar >= 0, mean over what is compared; 0 where nothing is.

    Raises:
        ValueError: if mode and metric do not go together, the shapes do not, or
            'spatial' or 'gram' has one channel, where all cosines are 1 or -1.
    """
    sums = knowledge_transfer_sums(
        student,
        teacher,
        mode=mode,
        metric=metric,
        temperature=temperature,
        normalize=normalize,
        present=present,
    )
    return knowledge_transfer_from_sums(sums)


def knowledge_transfer_sums(
    student: Tensor,
    teacher: Tensor,
    *,
    mode: str = 'global',
    metric: str = 'cosine',
    temperature: float = 1.0,
    normalize: str | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Local sums (2,): of what is compared, and how many that are."""
    check_transfer(mode, metric, temperature=temperature, normalize=normalize)
    _check_shapes(student, teacher, mode, present)
    student, teacher = full_precision(student), full_precision(teacher)
    if present is None:
        present = student.new_ones(student.shape[:2])
    present = (present > 0).to(student.dtype)
    with torch.autocast(student.device.type, enabled=False):
        if mode == 'logits':
            terms, weights = _logit_terms(
                student, teacher, metric, temperature, present
            )
        else:
            student, teacher = (
                _normalized(maps, normalize).flatten(2)
                for maps in (student, _resized(teacher, student.shape[2:]))
            )
            terms, weights = _map_terms(
                student, teacher, mode, metric, temperature, present
            )
    return torch.stack([(terms * weights).sum(), weights.sum()])


def knowledge_transfer_from_sums(sums: Tensor) -> Tensor:
    """Loss from the sums (2,) of all processes."""
    total, count = sums.unbind()
    return total / count.clamp(min=1)


def check_transfer(
    mode: str,
    metric: str,
    *,
    temperature: float = 1.0,
    normalize: str | None = None,
) -> None:
    """Raise ValueError unless mode and metric go together and the rest is in range."""
    for name, value, known in (
        ('mode', mode, MODES),
        ('metric', metric, METRICS),
        ('normalize', normalize, NORMALIZATIONS),
    ):
        if value not in known:
            raise ValueError(f'{name} must be one of {known}, got {value!r}')
    if metric == 'kl' and mode not in _KL_MODES:
        raise ValueError(
            f"metric 'kl' is defined for the modes {_KL_MODES}, got {mode!r}"
        )
    if mode == 'logits' and metric == 'cosine':
        raise ValueError(
            "metric 'cosine' is not defined for mode 'logits', whose one class has a "
            "cosine of 1 or -1: take 'kl', 'l1' or 'l2'"
        )
    if mode == 'logits' and normalize is not None:
        raise ValueError(f"mode 'logits' has no maps to normalize, got {normalize!r}")
    if not temperature > 0:
        raise ValueError(f'temperature must be positive, got {temperature}')


def _check_shapes(
    student: Tensor, teacher: Tensor, mode: str, present: Tensor | None
) -> None:
    axes = 2 if mode == 'logits' else 4
    shapes = tuple(student.shape), tuple(teacher.shape)
    if student.ndim != axes or teacher.ndim != axes:
        wanted = '(N, K)' if axes == 2 else '(N, C, h, w)'
        raise ValueError(
            f'mode {mode!r} needs student and teacher {wanted}, got {shapes[0]} and '
            f'{shapes[1]}'
        )
    if shapes[0][:2] != shapes[1][:2]:
        raise ValueError(
            'student and teacher must have the same images and channels, got '
            f'{shapes[0]} and {shapes[1]}: project one of them'
        )
    if 0 in shapes[0] or 0 in shapes[1]:
        raise ValueError(
            f'student and teacher must not be empty, got {shapes[0]} and {shapes[1]}'
        )
    if mode in _NEEDS_CHANNELS and shapes[0][1] < 2:
        raise ValueError(
            f'mode {mode!r} needs two channels or more, since the cosine of single '
            f'numbers is 1 or -1, got {shapes[0]}'
        )
    if present is not None and tuple(present.shape) != shapes[0][:2]:
        raise ValueError(f'present must be {shapes[0][:2]}, got {tuple(present.shape)}')


def _resized(maps: Tensor, size: torch.Size) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, tuple(size), mode='bilinear', align_corners=False)


def _normalized(maps: Tensor, mode: str | None) -> Tensor:
    if mode == 'std':
        centred = maps - maps.mean((2, 3), keepdim=True)
        # The square root's slope at 0 is infinite: a flat map keeps its zeros.
        return centred * (centred.square().mean((2, 3), keepdim=True) + _EPS).rsqrt()
    if mode == 'minmax':
        low = maps.amin((2, 3), keepdim=True)
        return (maps - low) / (maps.amax((2, 3), keepdim=True) - low + _EPS)
    return maps


def _logit_terms(
    student: Tensor, teacher: Tensor, metric: str, temperature: float, present: Tensor
) -> tuple[Tensor, Tensor]:
    if metric != 'kl':
        return _distance(student - teacher, metric), present
    student, teacher = student / temperature, teacher / temperature
    divergence = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    divergence = divergence + (-teacher).sigmoid() * (
        F.logsigmoid(-teacher) - F.logsigmoid(-student)
    )
    return (divergence * present).sum(1) * temperature**2, present.amax(1)


def _map_terms(
    student: Tensor,
    teacher: Tensor,
    mode: str,
    metric: str,
    temperature: float,
    present: Tensor,
) -> tuple[Tensor, Tensor]:
    """Terms and their weights from maps (N, C, P)."""
    if metric == 'kl':
        return _cell_divergence(student, teacher, temperature), present
    shown = present[:, :, None]
    count = present.sum(1)
    if mode == 'spatial_map':
        student, teacher = (
            (maps * shown).sum(1) / count.clamp(min=1)[:, None]
            for maps in (student, teacher)
        )
        return _compared(student, teacher, metric), (count > 0).to(student)
    if mode == 'gram':
        student, teacher = (_gram_rows(maps * shown) for maps in (student, teacher))
        if metric == 'cosine':
            several = (count >= 2).to(student)
            return _compared(student, teacher, metric), present * several[:, None]
        shares = _distance(student - teacher, metric) * present[:, None]
        return shares.sum(2) / count.clamp(min=1)[:, None], present
    if metric != 'cosine' or mode == 'channel':
        return _compared(student, teacher, metric), present
    student, teacher = student * shown, teacher * shown
    if mode == 'global':
        terms = _compared(student.flatten(1), teacher.flatten(1), metric)
        return terms, (count > 0).to(student)
    terms = _compared(student.transpose(1, 2), teacher.transpose(1, 2), metric)
    return terms, (count >= 2).to(student)[:, None].expand_as(terms)


def _compared(student: Tensor, teacher: Tensor, metric: str) -> Tensor:
    """Over the last axis: 1 - cos, or the mean distance."""
    if metric == 'cosine':
        cosine = F.cosine_similarity(student, teacher, dim=-1, eps=_EPS)
        return 1 - cosine.clamp(-1, 1)  # rounding may leave the range
    return _distance(student - teacher, metric).mean(-1)


def _distance(difference: Tensor, metric: str) -> Tensor:
    return difference.abs() if metric == 'l1' else difference.square()


def _gram_rows(maps: Tensor) -> Tensor:
    """Rows of length 1 of X X^t / P, (N, C, C)."""
    gram = maps @ maps.transpose(1, 2) / maps.shape[2]
    return F.normalize(gram, dim=2, eps=_EPS)


def _cell_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL (N, C) of the softmax over the cells."""
    student = (student / temperature).log_softmax(2)
    teacher = (teacher / temperature).log_softmax(2)
    return (teacher.exp() * (teacher - student)).sum(2) * temperature**2


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of two descriptions of the same M things.

    ||Y^t X||^2 / (||X^t X|| ||Y^t Y||), Frobenius norms of centred matrices: 1 if one
    is a rotated and scaled copy of the other. Nothing but similarity; no loss.

    Args:
        x: (M, D).
        y: (M, E).

    Returns:
        Scalar in [0, 1]; 0 where one of them is constant.

    Raises:
        ValueError: if they are no matrices of the same M.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f'x and y must be (M, D) and (M, E), got {tuple(x.shape)} and '
            f'{tuple(y.shape)}'
        )
    x, y = full_precision(x), full_precision(y)
    with torch.autocast(x.device.type, enabled=False):
        x, y = _centred(x), _centred(y)
        shared = torch.linalg.matrix_norm(y.T @ x).square()
        own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return torch.where(own > 0, shared / own.clamp(min=1e-30), 0)


def _centred(values: Tensor) -> Tensor:
    """Columns without their mean, brought to a size that no square can underflow."""
    values = values - values.mean(0)
    return values / values.abs().amax().clamp(min=1e-30)
