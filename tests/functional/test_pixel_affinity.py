"""Affinities from features, their loss and their walk (PSA)."""

import math

import numpy as np
import pytest
import reference
import torch

from mmwsss.functional import (
    affinity_walk,
    feature_pair_affinity,
    ir_label,
    pair_affinity,
    path_index,
    psa_loss,
    random_walk,
    scores_to_label,
)
from mmwsss.functional.inter_pixel import pair_loss_from_sums, psa_loss_sums


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def alike(features, first, second):
    """Of two cells (y, x) of features (D, h, w)."""
    difference = features[:, first[0], first[1]] - features[:, second[0], second[1]]
    return math.exp(-difference.abs().mean().item())


def test_affinity_equals_the_enumeration():
    features = random(2, 4, 6, 7)
    affinity = feature_pair_affinity(features, radius=4)
    offsets = {direction: i for i, (direction, _) in enumerate(path_index(4))}
    seen = torch.zeros_like(affinity, dtype=torch.bool)
    for first, second in reference.pairs_within(4, 6, 7):
        plane = offsets[tuple(np.subtract(second, first))]
        for n in range(2):
            expected = alike(features[n], first, second)
            assert affinity[n, plane, first[0], first[1]].item() == pytest.approx(
                expected, abs=1e-12
            )
        seen[:, plane, first[0], first[1]] = True
    assert (affinity[~seen] == 0).all()
    assert feature_pair_affinity(features).shape == (2, 34, 6, 7)
    # Narrower than the neighbourhood.
    assert feature_pair_affinity(random(1, 2, 1, 3)).shape == (1, 34, 1, 3)


def test_loss_equals_the_loop_over_pairs():
    features = random(2, 3, 5, 6)
    generator = torch.Generator().manual_seed(1)
    label = torch.tensor([0, 1, 2, 255])[
        torch.randint(4, (2, 5, 6), generator=generator)
    ]
    kinds = {'background': [], 'foreground': [], 'different': []}
    for first, second in reference.pairs_within(3, 5, 6):
        for n in range(2):
            a, b = label[n][first].item(), label[n][second].item()
            if 255 in (a, b):
                continue
            affinity = alike(features[n], first, second)
            if a != b:
                kinds['different'].append(-math.log(1 + 1e-5 - affinity))
            else:
                kind = 'foreground' if a else 'background'
                kinds[kind].append(-math.log(affinity + 1e-5))
    mean = {kind: sum(v) / len(v) for kind, v in kinds.items()}
    expected = mean['background'] / 4 + mean['foreground'] / 4 + mean['different'] / 2
    found = psa_loss(features, label, radius=3)
    assert found.item() == pytest.approx(expected, abs=1e-10)
    # The sums of two processes are those of one.
    parts = [
        psa_loss_sums(features[n : n + 1], label[n : n + 1], radius=3) for n in (0, 1)
    ]
    assert pair_loss_from_sums(sum(parts)).item() == pytest.approx(expected, abs=1e-10)


def test_photos_without_objects_teach_that_all_of_them_is_alike():
    # What makes labels of what is sure gives background everywhere, whatever a CAM
    # says, since no class is allowed.
    scores = random(1, 3, 4, 6)
    none = torch.zeros(1, 2)
    strong, weak = (scores_to_label(s, none) for s in (scores, scores * 0.1))
    label = ir_label(strong, weak)
    assert (label == 0).all()
    assert (scores_to_label(scores, none, low=0.2, high=0.8) == 0).all()
    features = random(1, 3, 4, 6).requires_grad_()
    sums = psa_loss_sums(features, label, radius=3)
    pairs = len(reference.pairs_within(3, 4, 6))
    assert sums[:3].tolist() == [pairs, 0, 0]
    loss = psa_loss(features, label, radius=3)
    (gradient,) = torch.autograd.grad(loss, features)
    assert loss > 0
    assert gradient.isfinite().all()
    # A step down brings the cells nearer to each other.
    nearer = features - 0.5 * gradient
    assert psa_loss(nearer, label, radius=3) < loss
    # Beside another photo its pairs count as background pairs of both.
    other = torch.full_like(label, 255)
    other[:, :, :3], other[:, :, 4:] = 1, 0
    both = psa_loss_sums(
        features.repeat(2, 1, 1, 1), torch.cat([label, other]), radius=3
    )
    alone = psa_loss_sums(features, other, radius=3)
    assert torch.allclose(both, alone + sums)


def test_nothing_decided_costs_nothing():
    features = random(1, 3, 4, 4).requires_grad_()
    loss = psa_loss(features, torch.full((1, 4, 4), 255))
    assert loss == 0
    loss.backward()
    assert (features.grad == 0).all()


def dense_walk(cams, affinity, *, radius, beta, num_steps):
    """T^n with the dense matrix, maps (K, h, w) and affinity (D, h, w)."""
    h, w = cams.shape[1:]
    matrix = np.eye(h * w)
    for plane, ((dy, dx), _) in enumerate(path_index(radius)):
        for y in range(h - dy):
            for x in range(max(-dx, 0), w - max(dx, 0)):
                a, b = y * w + x, (y + dy) * w + x + dx
                matrix[a, b] = matrix[b, a] = affinity[plane, y, x] ** beta
    transition = matrix / matrix.sum(1, keepdims=True)
    walked = np.linalg.matrix_power(transition, num_steps) @ cams.reshape(-1, h * w).T
    return walked.T.reshape(cams.shape)


@pytest.mark.parametrize('num_steps', [0, 1, 16, 256])
def test_walk_equals_the_dense_matrix(num_steps):
    cams = random(2, 3, 5, 7)
    affinity = feature_pair_affinity(3 * random(2, 4, 5, 7, seed=1), radius=4)
    options = dict(radius=4, beta=8, num_steps=num_steps)
    found = affinity_walk(cams, affinity, **options)
    for n in range(2):
        expected = dense_walk(cams[n].numpy(), affinity[n].numpy(), **options)
        np.testing.assert_allclose(found[n].numpy(), expected, atol=1e-9)


def test_the_walk_between_boundaries_is_a_walk_by_affinity():
    cams, boundary = random(1, 2, 6, 7), random(1, 1, 6, 7, seed=1) ** 4
    expected = random_walk(cams, boundary, radius=3, beta=10)
    found = affinity_walk(
        cams * (1 - boundary), pair_affinity(boundary, radius=3), radius=3, beta=10
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda c: feature_pair_affinity(c[0]), r'features must be .* got \(2, 4, 5\)'),
        (lambda c: psa_loss(c, c[:, 0, 1:]), 'features must be .* and pseudo_label'),
        (lambda c: psa_loss(c, c), r'pseudo_label must be \(N, h, w\)'),
        (lambda c: affinity_walk(c, c), r'affinity must be \(3, 34, 4, 5\)'),
        (lambda c: affinity_walk(c, c.new_ones(3, 34, 4, 5), beta=0), 'beta must be'),
    ],
)
def test_wrong_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 2, 4, 5))
