import itertools
import math

import pytest
import torch

from mmwsss.functional import (
    calibrate,
    cam_and,
    cam_or,
    fuse_cams,
    soft_target_loss,
)

ATOL = 1e-12


def pair(seed=0, shape=(3, 5, 7)):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )


def test_or_and_and_are_those_of_independent_events():
    # Counted over all outcomes of two coins, not from the formulas.
    for a, b in itertools.product((0.0, 0.2, 0.55, 1.0), repeat=2):
        either = both = 0.0
        for first, second in itertools.product((True, False), repeat=2):
            chance = (a if first else 1 - a) * (b if second else 1 - b)
            either += chance * (first or second)
            both += chance * (first and second)
        a, b = (torch.tensor([x], dtype=torch.float64) for x in (a, b))
        assert cam_or(a, b).item() == pytest.approx(either, abs=ATOL)
        assert cam_and(a, b).item() == pytest.approx(both, abs=ATOL)


def test_invariants():
    a, b = pair()
    either, both = cam_or(a, b), cam_and(a, b)
    lower, upper = torch.minimum(a, b), torch.maximum(a, b)
    # Neither is the minimum or the maximum.
    assert (both < lower).all()
    assert (upper < either).all()
    assert (both >= 0).all()
    assert (either <= 1).all()
    assert torch.allclose(either, cam_or(b, a), atol=ATOL)
    assert torch.equal(both, cam_and(b, a))
    assert torch.allclose(either, 1 - cam_and(1 - a, 1 - b), atol=ATOL)
    assert torch.allclose(either + both, a + b, atol=ATOL)
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    assert torch.equal(cam_or(a, zero), a)
    assert torch.equal(cam_and(a, one), a)
    assert torch.allclose(cam_or(a, one), one, atol=ATOL)
    assert torch.equal(cam_and(a, zero), zero)


def test_gradients_of_or_and_and():
    a, b = (x.requires_grad_() for x in pair(shape=(2, 2, 2)))
    assert torch.autograd.gradcheck(cam_or, (a, b))
    assert torch.autograd.gradcheck(cam_and, (a, b))


def test_calibrated_cams_stay_probabilities():
    a, b = pair(1)
    a[0, 0, 0] = b[0, 0, 0] = 1
    lifted = calibrate(b, 0.15)
    expected = [min(max(x + 0.15, 0.0), 1.0) for x in b.flatten().tolist()]
    assert lifted.flatten().tolist() == pytest.approx(expected, abs=ATOL)
    assert calibrate(b, -0.3).min() == 0
    assert calibrate(b, 0.0) is b
    assert (cam_and(a, lifted) <= torch.minimum(a, lifted)).all()
    assert (cam_or(a, lifted) <= 1 + ATOL).all()
    assert (cam_or(a, lifted) >= torch.maximum(a, lifted) - ATOL).all()


def test_as_released_and_exceeds_or():
    """Why the clip is the default: 0.15 on a CAM without it is no probability."""
    a, b = torch.tensor([1.0, 0.9]), torch.tensor([1.0, 0.2])
    lifted = calibrate(b, 0.15, clip=False)
    assert lifted[0] == pytest.approx(1.15)
    assert cam_and(a, lifted)[0] == pytest.approx(1.15)
    assert cam_or(a, lifted)[0] == pytest.approx(1.0)
    assert cam_and(a, lifted)[0] > cam_or(a, lifted)[0]
    # OR beyond 1: 0.16 + 1.15 - 0.16 * 1.15
    assert cam_or(torch.tensor([0.16]), lifted[:1]).item() == pytest.approx(1.126)


@pytest.mark.parametrize('clip', [True, False])
@pytest.mark.parametrize('mode', ['or', 'and', 'mean', 'max'])
def test_fusions_of_three_equal_a_loop(mode, clip):
    maps = [*pair(2), pair(3)[0]]
    offsets = (0.0, 0.15, -0.4)
    found = fuse_cams(maps, mode=mode, offsets=offsets, clip=clip)
    for index in itertools.product(*map(range, maps[0].shape)):
        values = [m[index].item() + o for m, o in zip(maps, offsets, strict=True)]
        if clip:
            values = [min(max(v, 0.0), 1.0) for v in values]
        expected = {
            'or': 1 - math.prod(1 - v for v in values),
            'and': math.prod(values),
            'mean': math.fsum(values) / 3,
            'max': max(values),
        }[mode]
        assert found[index].item() == pytest.approx(expected, abs=ATOL)


def test_fusing_nothing_gives_nothing():
    for mode in ('or', 'and', 'mean', 'max'):
        assert fuse_cams([torch.zeros(0, 3, 4)] * 2, mode=mode).shape == (0, 3, 4)


def test_fusion_refuses_what_is_not_a_pair():
    a, b = pair()
    with pytest.raises(ValueError, match='one shape'):
        cam_or(a, b[:1])
    with pytest.raises(ValueError, match='one shape'):
        cam_and(a, b[:1])
    with pytest.raises(ValueError, match='one shape'):
        fuse_cams([a, b[:1]], mode='mean')
    with pytest.raises(ValueError, match='two classifiers or more, got 1'):
        fuse_cams([a], mode='or')
    with pytest.raises(ValueError, match="got 'xor'"):
        fuse_cams([a, b], mode='xor')
    with pytest.raises(ValueError, match='offsets must hold 2'):
        fuse_cams([a, b], mode='or', offsets=(0.1,))


# ------------------------------------------------------------------------ the loss
def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_bce_equals_a_loop():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) * 3
    target = pair(5, (2, 3, 4))[0]
    target[0, 0, 0] = 1.15  # as released; 'bce' cuts it
    total = 0.0
    for z, t in zip(
        logits.flatten().tolist(), target.clamp(0, 1).flatten().tolist(), strict=True
    ):
        total -= t * math.log(sigmoid(z)) + (1 - t) * math.log(1 - sigmoid(z))
    found = soft_target_loss(logits, target, mode='bce').item()
    assert found == pytest.approx(total / 24, rel=1e-12)


def test_soft_cross_entropy_equals_a_loop():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    target = pair(7, (3, 2, 5))[0] + 0.15
    total = 0.0
    for y, x in itertools.product(range(2), range(5)):
        whole = math.fsum(math.exp(z) for z in logits[:, y, x].tolist())
        for c in range(3):
            share = math.exp(logits[c, y, x].item()) / whole
            total -= target[c, y, x].item() * math.log(share)
    found = soft_target_loss(logits, target, mode='soft_ce').item()
    assert found == pytest.approx(total / 10, rel=1e-12)


def gradient(logits, target, mode):
    logits = logits.clone().requires_grad_()
    loss = soft_target_loss(logits, target, mode=mode)
    loss.backward()
    return loss.item(), logits.grad


def test_as_released_photos_of_one_class_teach_nothing():
    """Why 'bce' is the default: 59 % of VOC's train_aug photos have one class."""
    logits, target = pair(8, (1, 4, 4))
    loss, slope = gradient(logits, target, 'soft_ce')
    assert loss == 0
    assert (slope == 0).all()
    loss, slope = gradient(logits, target, 'bce')
    assert loss > 0
    assert (slope != 0).all()


def test_as_released_the_level_of_the_maps_is_not_taught():
    logits, target = pair(9)
    same = gradient(logits, target, 'soft_ce')[0]
    assert gradient(logits + 5, target, 'soft_ce')[0] == pytest.approx(same)
    assert gradient(logits + 5, target, 'bce')[0] > same + 1


@pytest.mark.parametrize('mode', ['bce', 'soft_ce'])
def test_a_photo_without_classes_contributes_nothing(mode):
    loss, slope = gradient(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4), mode)
    assert loss == 0
    assert slope.shape == (0, 3, 4)


def test_the_target_gets_no_gradient_and_half_precision_no_overflow():
    logits, target = pair(10)
    target.requires_grad_()
    soft_target_loss(logits.requires_grad_(), target).backward()
    assert target.grad is None
    loss = soft_target_loss(logits.detach().half() * 1e4, target.detach().half())
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    with pytest.raises(ValueError, match="got 'mse'"):
        soft_target_loss(logits, target, mode='mse')
