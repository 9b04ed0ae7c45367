import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from mmwsss.functional import (
    mil_pool,
    motion_gate,
    motion_map,
    still_image,
    temporal_pool,
    warp,
)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------------- clips
def pooled_by_hand(frames, mode, sharpness, k):
    if mode == 'max':
        return max(frames)
    if mode == 'mean':
        return sum(frames) / len(frames)
    if mode == 'topk':
        best = sorted(frames, reverse=True)[:k]
        return sum(best) / len(best)
    return math.log(sum(math.exp(sharpness * s) for s in frames) / len(frames)) / (
        sharpness
    )


@pytest.mark.parametrize('mode', ['max', 'lse', 'topk', 'mean'])
def test_pooled_scores_equal_the_loop(mode):
    scores = random(4, 5, 3) * 8 - 4
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 1, 0, 1, 1], [1] * 5])
    found = mil_pool(scores, valid > 0, mode=mode, sharpness=2.5, k=3)
    for b in range(4):
        for c in range(3):
            frames = [scores[b, t, c].item() for t in range(5) if valid[b, t]]
            expected = pooled_by_hand(frames, mode, 2.5, 3)
            assert found[b, c].item() == pytest.approx(expected, abs=1e-12)
    whole = mil_pool(scores, mode=mode, sharpness=2.5, k=3)
    assert torch.equal(whole[0], found[0])


def test_pooling_does_not_hide_a_frame_from_the_gradient():
    scores = random(1, 4, 1).requires_grad_()
    valid = torch.tensor([[True, True, True, False]])
    shares = {}
    for mode in ('max', 'lse', 'topk', 'mean'):
        (gradient,) = torch.autograd.grad(mil_pool(scores, valid, mode=mode), scores)
        assert gradient.sum().item() == pytest.approx(1)
        assert gradient[0, 3] == 0
        shares[mode] = (gradient > 0).sum().item()
    assert shares == {'max': 1, 'lse': 3, 'topk': 2, 'mean': 3}


def test_large_scores_stay_finite():
    scores = torch.tensor([[[1e4], [-1e4]]])
    assert mil_pool(scores, mode='lse').item() == pytest.approx(1e4, rel=1e-4)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(mode='sum'), "mode must be .* 'sum'"),
        (dict(sharpness=0), 'sharpness must be positive, got 0'),
        (dict(k=0), 'k must be 1 or more, got 0'),
        (dict(valid=torch.ones(2, 4).bool()), r'valid must be \(2, 3\), got \(2, 4\)'),
        (dict(scores=torch.zeros(2, 0, 1)), r'T >= 1, got \(2, 0, 1\)'),
    ],
)
def test_wrong_pooling_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        mil_pool(**(dict(scores=torch.zeros(2, 3, 1)) | arguments))


# ------------------------------------------------------------------------ CAMs in time
@pytest.mark.parametrize('reduce', ['max', 'mean'])
@pytest.mark.parametrize('window', [1, 3, 5, 99])
def test_pooled_cams_equal_the_loop(reduce, window):
    cams = random(6, 2, 3, 4)
    found = temporal_pool(cams, window=window, reduce=reduce)
    for t in range(6):
        near = [cams[s].numpy() for s in range(6) if abs(s - t) <= window // 2]
        expected = getattr(np, reduce)(np.stack(near), axis=0)
        np.testing.assert_allclose(found[t].numpy(), expected, atol=1e-15)
    assert torch.equal(temporal_pool(cams[:1], window=window, reduce=reduce), cams[:1])


def test_warping_equals_interpolation_at_the_place_it_points_to():
    maps, flow = random(2, 3, 5, 6), (random(2, 2, 5, 6, seed=1) - 0.5) * 6
    found = warp(maps, flow)
    rows, columns = np.mgrid[:5, :6]
    for n in range(2):
        places = [rows + flow[n, 0].numpy(), columns + flow[n, 1].numpy()]
        for k in range(3):
            expected = ndimage.map_coordinates(
                np.pad(maps[n, k].numpy(), 1), [p + 1 for p in places], order=1
            )
            np.testing.assert_allclose(found[n, k].numpy(), expected, atol=1e-12)
    assert torch.allclose(warp(maps, torch.zeros_like(flow)), maps)


# ------------------------------------------------------------------------------ motion
def test_what_stands_still_is_the_median():
    for number in (1, 4, 5):
        frames = random(number, 3, 4, 5)
        expected = np.median(frames.numpy(), axis=0)
        np.testing.assert_allclose(still_image(frames).numpy(), expected, atol=1e-15)


def test_motion_equals_its_definition():
    frames = random(5, 3, 9, 11)
    still = still_image(frames)
    found = motion_map(frames, still, kappa=0.8, blur=1.5)
    difference = np.abs(frames.numpy() - still.numpy()).sum(1)
    for t in range(5):
        sharp = np.clip(difference[t] / 0.8, 0, 1)
        reach = 5 / 1.5
        over = [
            ndimage.gaussian_filter(m, 1.5, mode='constant', truncate=reach)
            for m in (sharp, np.ones_like(sharp))
        ]
        np.testing.assert_allclose(found[t, 0].numpy(), over[0] / over[1], atol=1e-12)
    plain = motion_map(frames, still, kappa=0.8, blur=0)
    np.testing.assert_allclose(plain[:, 0].numpy(), np.clip(difference / 0.8, 0, 1))
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_gate_leaves_what_moves_and_lowers_the_rest():
    frames = torch.full((6, 3, 8, 16), 0.4, dtype=torch.float64)
    frames[:, 0, :, :4] = 0.9  # a chimney
    for t in range(6):
        frames[t, :, 2:6, 6 + t : 8 + t] = 0.7  # a puff that drifts
    cams = torch.ones(6, 1, 8, 16, dtype=torch.float64)
    motion = motion_map(frames, still_image(frames), kappa=0.3, blur=0)
    gated = motion_gate(cams, motion, strength=0.5)
    assert (gated[:, :, :, :4] == 0.5).all()
    assert (gated[3, 0, 2:6, 9:11] == 1).all()
    assert torch.equal(motion_gate(cams, motion, strength=0), cams)
    assert motion_gate(cams, motion, strength=1)[..., :4].sum() == 0
    # A clip of one frame shows no motion at all.
    assert motion_map(frames[:1], still_image(frames[:1])).sum() == 0


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (
            lambda c: temporal_pool(c, window=2),
            'window must be odd and positive, got 2',
        ),
        (lambda c: temporal_pool(c, reduce='sum'), "reduce must be .* 'sum'"),
        (lambda c: temporal_pool(c[0]), r'cams must be .* got \(2, 4, 5\)'),
        (lambda c: warp(c, c[:, :1]), 'maps must be .* and flow'),
        (lambda c: still_image(c[:0]), 'frames must be .* T >= 1'),
        (lambda c: motion_map(c, c[0], kappa=0), 'kappa must be positive, got 0'),
        (lambda c: motion_map(c, c[0], blur=-1), 'blur must be 0 or more, got -1'),
        (lambda c: motion_map(c, c[0, :1]), 'frames must be .* and still'),
        (lambda c: motion_gate(c, c), 'cams must be .* and motion'),
        (lambda c: motion_gate(c, c[:, :1], strength=2), 'strength must be .* got 2'),
    ],
)
def test_wrong_clips_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 2, 4, 5))
