import itertools

import numpy as np
import pytest
import reference
import torch

from mmwsss.functional import knowledge_transfer_loss, linear_cka
from mmwsss.functional.knowledge_transfer import (
    METRICS,
    MODES,
    knowledge_transfer_from_sums,
    knowledge_transfer_sums,
)

PAIRS = [
    *(
        (mode, metric)
        for mode in ('global', 'channel', 'spatial', 'spatial_map', 'gram')
        for metric in ('cosine', 'l1', 'l2')
    ),
    ('channel', 'kl'),
    ('logits', 'kl'),
    ('logits', 'l1'),
    ('logits', 'l2'),
]
COSINES = [mode for mode, metric in PAIRS if metric == 'cosine']


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs(mode, *, channels=3, seed=0):
    shape = (4, channels) if mode == 'logits' else (4, channels, 3, 5)
    return noise(*shape, seed=seed), noise(*shape, seed=seed + 1)


# ------------------------------------------------------------------ written as loops
def cosine_of(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def apart(a, b, metric):
    if metric == 'cosine':
        return 1 - cosine_of(a, b)
    gaps = [abs(x - y) for x, y in zip(a, b, strict=True)]
    return sum(g if metric == 'l1' else g * g for g in gaps) / len(gaps)


def softmax(values, temperature):
    powers = np.exp(np.asarray(values) / temperature)
    return powers / powers.sum()


def gram_rows(maps):
    count = len(maps[0])
    rows = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in maps] for a in maps]
    return [np.array(r) / count / np.linalg.norm(np.array(r) / count) for r in rows]


def loop_loss(student, teacher, mode, metric, temperature=1.0, present=None):
    """One number from one image and one channel at a time."""
    student, teacher = student.numpy(), teacher.numpy()
    if present is None:
        present = np.ones(student.shape[:2])
    terms = []
    for own, other, there in zip(student, teacher, present, strict=True):
        there = [c for c in range(len(there)) if there[c]]
        if not there:
            continue
        own, other = own[there], other[there]
        if mode == 'logits':
            if metric != 'kl':
                terms += [
                    apart([s], [t], metric) for s, t in zip(own, other, strict=True)
                ]
                continue
            total = 0
            for s, t in zip(own, other, strict=True):
                p, q = (1 / (1 + np.exp(-x / temperature)) for x in (t, s))
                total += p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
            terms.append(total * temperature**2)
            continue
        own, other = (maps.reshape(len(there), -1) for maps in (own, other))
        if mode == 'global' and metric == 'cosine':
            terms.append(apart(own.ravel(), other.ravel(), metric))
        elif metric == 'kl':
            for s, t in zip(own, other, strict=True):
                p, q = softmax(t, temperature), softmax(s, temperature)
                terms.append(temperature**2 * sum(p * np.log(p / q)))
        elif mode == 'spatial_map':
            terms.append(apart(own.mean(0), other.mean(0), metric))
        elif mode == 'gram':
            if metric != 'cosine' or len(there) > 1:
                rows = zip(gram_rows(own), gram_rows(other), strict=True)
                terms += [apart(a, b, metric) for a, b in rows]
        elif mode == 'spatial' and metric == 'cosine':
            if len(there) > 1:
                pairs = zip(own.T, other.T, strict=True)
                terms += [apart(a, b, metric) for a, b in pairs]
        else:
            terms += [apart(a, b, metric) for a, b in zip(own, other, strict=True)]
    return sum(terms) / len(terms)


@pytest.mark.parametrize(('mode', 'metric'), PAIRS)
def test_equals_a_loop(mode, metric):
    student, teacher = inputs(mode)
    found = knowledge_transfer_loss(student, teacher, mode=mode, metric=metric)
    assert found.item() == pytest.approx(loop_loss(student, teacher, mode, metric))
    assert found > 0.01


@pytest.mark.parametrize(('mode', 'metric'), PAIRS)
def test_absent_channels_take_no_part(mode, metric):
    student, teacher = inputs(mode)
    present = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    options = dict(mode=mode, metric=metric)
    found = knowledge_transfer_loss(student, teacher, present=present, **options)
    expected = loop_loss(student, teacher, mode, metric, present=present.numpy())
    assert found.item() == pytest.approx(expected)
    # What is absent can be anything and gets no gradient.
    student.requires_grad_()
    knowledge_transfer_loss(student, teacher, present=present, **options).backward()
    assert not student.grad[present == 0].any()
    assert student.grad[present[:, 0] + present[:, 1] == 2].any()


@pytest.mark.parametrize(('mode', 'metric'), PAIRS)
def test_nothing_present_is_a_zero_with_a_gradient(mode, metric):
    student, teacher = inputs(mode)
    student.requires_grad_()
    present = torch.zeros(4, 3)
    found = knowledge_transfer_loss(
        student, teacher, mode=mode, metric=metric, present=present
    )
    found.backward()
    assert found == 0
    assert not student.grad.any()


@pytest.mark.parametrize('temperature', [0.5, 4.0])
@pytest.mark.parametrize('mode', ['channel', 'logits'])
def test_temperature_of_kl(mode, temperature):
    student, teacher = inputs(mode)
    options = dict(mode=mode, metric='kl', temperature=temperature)
    found = knowledge_transfer_loss(student, teacher, **options)
    expected = loop_loss(student, teacher, mode, 'kl', temperature)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize('mode', COSINES)
def test_cosines_have_their_bounds(mode):
    student, _ = inputs(mode)
    loss = lambda a, b: knowledge_transfer_loss(a, b, mode=mode).item()  # noqa: E731
    assert loss(student, student) == pytest.approx(0, abs=1e-12)
    assert loss(student, 7 * student) == pytest.approx(0, abs=1e-12)
    if mode != 'gram':  # x and -x have the same one
        assert loss(student, -0.1 * student) == pytest.approx(2, abs=1e-12)
    for seed in range(5):
        assert 0 <= loss(*inputs(mode, seed=seed)) <= 2
    # Rounding in single precision stays within.
    assert loss(student.float(), 3 * student.float()) >= 0


@pytest.mark.parametrize(('mode', 'metric'), PAIRS)
def test_zero_for_equality_and_finite_gradients_at_zeros(mode, metric):
    student, _ = inputs(mode)
    found = knowledge_transfer_loss(student, student, mode=mode, metric=metric)
    assert found.item() == pytest.approx(0, abs=1e-12)
    for zero in (0, 1):
        pair = [student.clone(), student.clone()]
        pair[zero] = torch.zeros_like(student)
        pair[0].requires_grad_()
        loss = knowledge_transfer_loss(*pair, mode=mode, metric=metric)
        loss.backward()
        assert loss.isfinite()
        assert pair[0].grad.isfinite().all()


@pytest.mark.parametrize(('mode', 'metric'), PAIRS)
def test_gradients_are_those_of_finite_differences(mode, metric):
    student, teacher = inputs(mode)
    student.requires_grad_()
    teacher.requires_grad_()
    # |s - t| has a kink at 0, where these numbers are not.
    assert torch.autograd.gradcheck(
        lambda s, t: knowledge_transfer_loss(s, t, mode=mode, metric=metric),
        (student, teacher),
    )
    detached = teacher.detach()
    knowledge_transfer_loss(student, detached, mode=mode, metric=metric).backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_l1_and_l2_do_not_grow_with_the_map():
    student, teacher = inputs('global')
    doubled = [maps.repeat(1, 1, 2, 3) for maps in (student, teacher)]
    for metric in ('l1', 'l2'):
        small = knowledge_transfer_loss(student, teacher, metric=metric)
        large = knowledge_transfer_loss(*doubled, metric=metric)
        torch.testing.assert_close(small, large)
        for mode in ('channel', 'spatial'):
            same = knowledge_transfer_loss(student, teacher, mode=mode, metric=metric)
            torch.testing.assert_close(same, small)


@pytest.mark.parametrize('size', [(6, 10), (2, 3), (7, 4)])
def test_the_teacher_comes_to_the_students_grid(size):
    student, teacher = noise(2, 3, 5, 6), noise(2, 3, *size, seed=1)
    resized = np.stack(
        [reference.resize(t.numpy(), (5, 6), align_corners=False) for t in teacher]
    )
    for mode in COSINES:
        found = knowledge_transfer_loss(student, teacher, mode=mode)
        expected = loop_loss(student, torch.from_numpy(resized), mode, 'cosine')
        assert found.item() == pytest.approx(expected)


def test_std_takes_off_what_dominates_a_cosine():
    student, teacher = inputs('global')
    lifted = student + 100
    assert knowledge_transfer_loss(lifted, teacher + 100).item() < 0.01
    plain = knowledge_transfer_loss(student, teacher, mode='channel', normalize='std')
    found = knowledge_transfer_loss(lifted, teacher, mode='channel', normalize='std')
    assert found.item() == pytest.approx(plain.item(), abs=1e-6)
    centred = [m - m.mean((2, 3), keepdim=True) for m in (student, teacher)]
    expected = loop_loss(*centred, 'channel', 'cosine')
    assert plain.item() == pytest.approx(expected, abs=1e-6)
    flat = torch.ones_like(student, requires_grad=True)
    knowledge_transfer_loss(flat, teacher, normalize='std').backward()
    assert flat.grad.isfinite().all()


def test_minmax_brings_each_map_to_its_range():
    student, teacher = inputs('global')
    low = lambda m: m.amin((2, 3), keepdim=True)  # noqa: E731
    high = lambda m: m.amax((2, 3), keepdim=True)  # noqa: E731
    scaled = [(m - low(m)) / (high(m) - low(m)) for m in (student, teacher)]
    for metric in ('cosine', 'l1'):
        found = knowledge_transfer_loss(
            student, teacher, metric=metric, normalize='minmax'
        )
        expected = loop_loss(*scaled, 'global', metric)
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_sums_of_parts_give_the_loss_of_the_whole():
    student, teacher = inputs('channel')
    present = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    parts = [
        knowledge_transfer_sums(
            student[part], teacher[part], mode='channel', present=present[part]
        )
        for part in (slice(0, 1), slice(1, 4))
    ]
    whole = knowledge_transfer_loss(student, teacher, mode='channel', present=present)
    torch.testing.assert_close(knowledge_transfer_from_sums(sum(parts)), whole)


def test_half_precision_is_widened():
    student, teacher = (maps.float() for maps in inputs('gram'))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = knowledge_transfer_loss(student, teacher, mode='gram')
    assert found.dtype == torch.float32
    expected = knowledge_transfer_loss(student, teacher, mode='gram')
    torch.testing.assert_close(found, expected)
    halved = knowledge_transfer_loss(student.half(), teacher.half())
    assert halved.dtype == torch.float32


# --------------------------------------------------------------------------- refusals
def test_undefined_pairs_are_refused():
    for mode, metric in itertools.product(MODES, METRICS):
        if (mode, metric) in PAIRS:
            continue
        with pytest.raises(ValueError, match=f"metric '{metric}' is .*got|'logits'"):
            knowledge_transfer_loss(*inputs(mode), mode=mode, metric=metric)


@pytest.mark.parametrize('mode', ['spatial', 'gram'])
def test_one_channel_has_no_direction(mode):
    with pytest.raises(ValueError, match=r'two channels or more.*got \(4, 1, 3, 5\)'):
        knowledge_transfer_loss(*inputs(mode, channels=1), mode=mode)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(mode='local'), "mode must be one of .* got 'local'"),
        (dict(metric='js'), "metric must be one of .* got 'js'"),
        (dict(normalize='max'), "normalize must be one of .* got 'max'"),
        (dict(temperature=0.0), r'temperature must be positive, got 0\.0'),
        (dict(mode='logits', metric='kl', normalize='std'), "got 'std'"),
        (dict(mode='logits', metric='kl'), r'needs student and teacher \(N, K\)'),
        (dict(teacher=noise(4, 2, 3, 5)), r'same images and channels.*\(4, 2, 3, 5\)'),
        (dict(teacher=noise(3, 3, 3, 5)), r'same images and channels.*\(3, 3, 3, 5\)'),
        (dict(teacher=noise(4, 3)), r'needs student and teacher \(N, C, h, w\)'),
        (dict(teacher=noise(4, 3, 0, 5)), 'must not be empty'),
        (dict(present=torch.ones(4, 2)), r'present must be \(4, 3\), got \(4, 2\)'),
    ],
)
def test_bad_input_is_refused(changes, message):
    student, teacher = inputs('global')
    with pytest.raises(ValueError, match=message):
        knowledge_transfer_loss(**{'student': student, 'teacher': teacher, **changes})


# -------------------------------------------------------------------------------- CKA
def loop_cka(x, y):
    """HSIC of linear kernels, the M x M way."""
    count = len(x)
    centre = np.eye(count) - 1 / count
    kernels = [centre @ (v @ v.T) @ centre for v in (x.numpy(), y.numpy())]
    hsic = lambda a, b: np.trace(a @ b)  # noqa: E731
    return hsic(*kernels) / np.sqrt(
        hsic(kernels[0], kernels[0]) * hsic(kernels[1], kernels[1])
    )


@pytest.mark.parametrize(('d', 'e'), [(3, 5), (1, 1), (20, 2)])
def test_cka_equals_its_kernel_form(d, e):
    x, y = noise(12, d), noise(12, e, seed=1)
    assert linear_cka(x, y).item() == pytest.approx(loop_cka(x, y))
    assert 0 < linear_cka(x, y) < 1


def test_cka_sees_through_rotation_scale_and_shift():
    x = noise(30, 4)
    rotation = torch.linalg.qr(noise(4, 4, seed=2))[0]
    assert linear_cka(x, 1e-4 * x @ rotation + 5).item() == pytest.approx(1)
    # Not what a scalar product of the features says.
    skewed = x * torch.tensor([10.0, 1, 1, 1])
    assert linear_cka(x, skewed) < 0.9
    assert linear_cka(x.float() * 1e-15, x.float()).item() == pytest.approx(1)


def test_cka_of_something_constant_is_zero():
    x = noise(6, 3)
    assert linear_cka(x, torch.ones(6, 2).double()) == 0
    assert linear_cka(torch.zeros(6, 2), torch.zeros(6, 2)) == 0
    with pytest.raises(ValueError, match=r'got \(6, 3\) and \(5, 2\)'):
        linear_cka(x, torch.ones(5, 2).double())
