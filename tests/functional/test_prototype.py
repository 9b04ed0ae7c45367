import numpy as np
import pytest
import reference
import torch
from torch.autograd import gradcheck

from mmwsss.functional import (
    class_prototypes,
    enhance_cams,
    gsc_loss,
    hierarchical_features,
    largest_seeds,
    prototype_cams,
    structure_seeds,
)
from mmwsss.functional import prototype as prototype_module
from mmwsss.functional.prototype import gsc_from_sums, gsc_sums

# Table 3 of AE-SIPE, as what follows the plain IS-CAM, and PAMR alone at the end.
ORDERS = [
    (),
    ('prototypes', 'is_cam'),
    ('pamr', 'prototypes', 'is_cam'),
    ('prototypes', 'is_cam', 'pamr', 'prototypes', 'is_cam'),
    ('pamr', 'prototypes', 'is_cam', 'prototypes', 'is_cam'),
    ('pamr',),
]


def case(seed=0, n=2, c=4, d=6, h=4, w=5):
    """Features like those behind a ReLU, scores, and which of them are valid."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, h, w, generator=generator, dtype=torch.float64).relu()
    cams = torch.rand(n, c, h, w, generator=generator, dtype=torch.float64)
    valid = torch.ones(n, c, h, w, dtype=torch.float64)
    valid[0, :, -1] = 0  # padding
    valid[0, 2] = 0  # absent classes
    valid[1:, 1:] = 0
    return features, cams, valid


def loop(function, *batched, **options):
    """A loop over single images, as a tensor."""
    images = zip(*(t.detach().numpy() for t in batched), strict=True)
    return torch.from_numpy(np.stack([function(*i, **options) for i in images]))


# -------------------------------------------------------------------------- values
@pytest.mark.parametrize('bg_factor', [0.5, 1.0, 0.0])
@pytest.mark.parametrize('seed', range(4))
def test_structure_seeds_equal_loop_exactly(seed, bg_factor):
    features, cams, valid = case(seed)
    if seed % 2:
        features = features - 0.5  # so that cells may be opposed
    cams = cams * valid
    ours = structure_seeds(features, cams, valid, bg_factor=bg_factor)
    expected = loop(
        reference.structure_seeds, features, cams, valid, bg_factor=bg_factor
    )
    assert torch.equal(ours, expected)
    assert expected[:, 1:].any()


def test_structure_seeds_do_not_depend_on_the_size_of_their_blocks(monkeypatch):
    features, cams, valid = case()
    whole = structure_seeds(features, cams, valid)
    monkeypatch.setattr(prototype_module, '_RELATION_ENTRIES', 2 * 20 * 7)
    assert torch.equal(structure_seeds(features, cams, valid), whole)


def test_prototypes_and_their_cams_equal_loops():
    features, cams, valid = case()
    seeds = largest_seeds(cams, valid)
    assert torch.equal(seeds, loop(reference.largest_seeds, cams) * valid)
    prototypes = class_prototypes(features, seeds)
    expected = loop(reference.class_prototypes, features, seeds)
    torch.testing.assert_close(prototypes, expected, atol=1e-12, rtol=0)
    expected = loop(reference.prototype_cams, features, expected)
    ours = prototype_cams(features, prototypes)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
    # Class 2 of image 0 is absent: nothing, and not almost nothing.
    assert not ours[0, 2].any()
    assert ours[0, 1].any()


@pytest.mark.parametrize('size', [(4, 5), (3, 2), (7, 6)])
def test_hierarchical_features_equal_loop(size):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 8, 10), (2, 2, 4, 5), (2, 5, 3, 3), (2, 1, 1, 1)]
    stages = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    ours = hierarchical_features(stages, size)
    expected = np.stack(
        [
            reference.hierarchical_features([s[i].numpy() for s in stages], size)
            for i in range(2)
        ]
    )
    torch.testing.assert_close(ours, torch.from_numpy(expected), atol=1e-12, rtol=0)
    assert ours.shape == (2, 11, *size)


@pytest.mark.parametrize(('bg_factor', 'masked'), [(1.0, False), (0.8, True)])
@pytest.mark.parametrize('steps', ORDERS)
def test_every_order_of_the_enhancement_equals_loops(steps, bg_factor, masked):
    features, cams, valid = case(n=1)
    cams = cams * torch.tensor([1.0, 0.9, 0.0, 0.7], dtype=torch.float64)[:, None, None]
    image = torch.rand(
        1, 3, 9, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    ours = enhance_cams(
        image,
        features,
        cams,
        valid if masked else None,
        steps=steps,
        bg_factor=bg_factor,
        num_iters=2,
        dilations=(1, 3),
    )
    expected = loop(
        reference.enhance,
        image,
        features,
        cams,
        steps=steps,
        dilations=(1, 3),
        num_iters=2,
        bg_factor=bg_factor,
        allowed=valid[0].numpy() if masked else 1.0,
    )
    # PAMR itself works in float32.
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert not ours[0, 2].any()


def test_gsc_loss_is_the_mean_distance_of_all_or_of_the_valid_cells():
    _, cams, _ = case()
    target = cams.flip(0)
    expected = sum(
        abs(a - b)
        for a, b in zip(cams.flatten().tolist(), target.flatten().tolist(), strict=True)
    )
    loss = gsc_loss(cams, target)
    assert loss.item() == pytest.approx(expected / cams.numel(), abs=1e-12)
    valid = torch.ones(2, 1, 4, 5)
    valid[0, :, 2:] = 0
    inside = gsc_loss(cams, target, valid=valid)
    kept = torch.cat(
        [(cams - target)[0, :, :2].flatten(), (cams - target)[1].flatten()]
    )
    torch.testing.assert_close(inside, kept.abs().mean())
    assert gsc_loss(cams, target, valid=0 * valid) == 0
    # The sums of two processes give the loss of the joint batch.
    parts = [gsc_sums(cams[i : i + 1], target[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(gsc_from_sums(parts[0] + parts[1]), loss)


# ---------------------------------------------------------------------- properties
def test_no_seed_where_an_absent_class_wins():
    features = torch.ones(1, 2, 1, 3)
    cams = torch.tensor([0.1, 0.2, 0.9]).view(1, 3, 1, 1).expand(1, 3, 1, 3)
    label = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1)
    assert not structure_seeds(features, cams, label).any()
    # Not so once its map is masked as well, as in training.
    assert structure_seeds(features, cams * label, label)[0, 1].all()


def test_background_factor_decides_close_cells():
    features = torch.ones(1, 2, 2, 2)
    cams = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    assert structure_seeds(features, cams, bg_factor=1.0)[0, 0].all()
    assert structure_seeds(features, cams, bg_factor=0.5)[0, 1].all()
    assert structure_seeds(features, cams)[0, 1].all()
    assert largest_seeds(cams)[0, 0].all()
    assert largest_seeds(cams, bg_factor=0.5)[0, 1].all()


def test_overlap_counts_once_in_the_union():
    # One cell: the IoU is the map itself. With the overlap counted twice it would be
    # M / (1 + M), and half of 0.4 less than 0.24.
    cams = torch.tensor([2 / 3, 0.316]).view(1, 2, 1, 1)
    assert structure_seeds(torch.ones(1, 2, 1, 1), cams).flatten().tolist() == [1, 0]


def test_seeds_follow_the_features_and_not_the_cams_alone():
    # Two regions; the class fires in one cell of its region only.
    features = torch.zeros(1, 2, 1, 6)
    features[0, 0, 0, :3] = 1
    features[0, 1, 0, 3:] = 1
    cam = torch.tensor([0.9, 0, 0, 0, 0, 0]).view(1, 1, 1, 6)
    cams = torch.cat([1 - cam, cam], 1)
    seeds = structure_seeds(features, cams)
    assert seeds[0, 1, 0].tolist() == [1, 1, 1, 0, 0, 0]


def test_cams_do_not_depend_on_the_length_of_features_or_prototypes():
    features, cams, _ = case()
    prototypes = class_prototypes(features, largest_seeds(cams))
    scale = torch.rand(2, 1, 4, 5, dtype=torch.float64) + 0.1
    torch.testing.assert_close(
        prototype_cams(features, prototypes),
        prototype_cams(features * scale, 1e-3 * prototypes),
    )


def test_seeds_of_another_size_are_resized_nearest():
    features, _, _ = case(h=2, w=2)
    seeds = torch.zeros(2, 4, 4, 4)
    seeds[:, 1, 0, 0] = 1
    seeds[:, 2, 1, 1] = 1  # not hit by the sampling at 0 and 2
    ours = class_prototypes(features, seeds)
    torch.testing.assert_close(ours[:, 1], features[:, :, 0, 0] / 4)
    assert not ours[:, 2].any()


def test_float32_and_half_precision_agree_with_float64():
    features, cams, valid = case()
    expected = prototype_cams(
        features, class_prototypes(features, structure_seeds(features, cams, valid))
    )
    with torch.autocast('cpu', dtype=torch.bfloat16):
        seeds = structure_seeds(features.float(), cams.float(), valid)
        prototypes = class_prototypes(features.float(), seeds)
        ours = prototype_cams(features.float(), prototypes)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=0)


# ----------------------------------------------------------------------- gradients
def test_gradients_reach_features_as_query_and_through_the_prototype():
    features, cams, _ = case(n=1, d=3, h=2, w=3)
    features = features + 0.1
    seeds = largest_seeds(cams)

    def maps(features, frozen=None):
        used = features if frozen is None else frozen
        return prototype_cams(features, class_prototypes(used, seeds))

    leaf = features.clone().requires_grad_()
    assert gradcheck(maps, leaf, atol=1e-6)
    full = torch.autograd.grad(maps(leaf).sum(), leaf)[0]
    query = torch.autograd.grad(maps(leaf, leaf.detach()).sum(), leaf)[0]
    assert (full - query).abs().max() > 1e-3


def test_gradient_of_hierarchical_features():
    stages = [
        torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True),
    ]
    assert gradcheck(lambda *s: hierarchical_features(s, (3, 3)), stages, atol=1e-6)


def test_seeds_and_pamr_carry_no_gradient():
    features, cams, valid = case()
    features.requires_grad_()
    cams.requires_grad_()
    image = torch.rand(2, 3, 8, 10)
    assert not structure_seeds(features, cams, valid).requires_grad
    assert not largest_seeds(cams).requires_grad
    steps = ('pamr', 'prototypes', 'is_cam')
    enhanced = enhance_cams(image, features, cams, steps=steps)
    gradient = torch.autograd.grad(enhanced.sum(), [features, cams], allow_unused=True)
    assert gradient[0].any()
    assert gradient[1] is None
    last = enhance_cams(image, features, cams, steps=(*steps, 'pamr'))
    assert not last.requires_grad


def test_gsc_gradient_flows_into_both():
    cams = torch.rand(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.rand(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(gsc_loss, (cams, target), atol=1e-6)


# ---------------------------------------------------------------------- degenerate
def test_cells_without_features_make_no_nan_and_belong_to_the_background():
    features, cams, valid = case()
    features[:, :, 1:3] = 0
    cams[:, 3] = 0  # 0 / 0 in the published form
    seeds = structure_seeds(features, cams, valid)
    expected = loop(reference.structure_seeds, features, cams, valid)
    assert torch.equal(seeds, expected)
    assert seeds[1, 0, 1:3].all()


@pytest.mark.parametrize('dead', ['features', 'seeds', 'both'])
def test_nothing_in_gives_exactly_nothing_and_finite_gradients(dead):
    features, cams, _ = case()
    seeds = largest_seeds(cams)
    if dead != 'seeds':
        features[:, :, 0] = 0
        features[1] = 0
    if dead != 'features':
        seeds[:, 1:] = 0
    features.requires_grad_()
    maps = prototype_cams(features, class_prototypes(features, seeds))
    (gradient,) = torch.autograd.grad(maps.sum(), features)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 100
    if dead != 'seeds':
        assert not maps[1].any()
        assert not gradient[1].any()
    if dead != 'features':
        assert not maps[:, 1:].any()


def test_one_class_and_one_cell():
    features = torch.rand(1, 4, 1, 1)
    for cams in (torch.ones(1, 1, 1, 1), torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)):
        seeds = structure_seeds(features, cams)
        maps = prototype_cams(features, class_prototypes(features, seeds))
        torch.testing.assert_close(maps, cams)
        enhanced = enhance_cams(torch.rand(1, 3, 1, 1), features, maps)
        torch.testing.assert_close(enhanced, cams)


def test_enhancement_of_nothing_is_background_alone():
    # All channels are 0 where no class got a seed: the first one takes the cells.
    features, cams, _ = case()
    image = torch.rand(2, 3, 8, 10)
    maps = enhance_cams(image, features, 0 * cams)
    assert maps[:, 0].any()
    assert not maps[:, 1:].any()
    assert not enhance_cams(image, features, 0 * cams, steps=['pamr']).any()


def test_empty_batch_goes_through():
    features, cams = torch.zeros(0, 4, 3, 3), torch.zeros(0, 2, 3, 3)
    seeds = structure_seeds(features, cams)
    maps = prototype_cams(features, class_prototypes(features, seeds))
    assert maps.shape == (0, 2, 3, 3)


# -------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    'steps',
    [
        ('is_cam',),
        ('prototypes',),
        ('prototypes', 'pamr', 'is_cam'),
        ('prototypes', 'is_cam', 'is_cam'),
        ('pamr', 'prototypes'),
    ],
)
def test_prototypes_and_is_cam_belong_together(steps):
    features, cams, _ = case()
    with pytest.raises(ValueError, match="each 'prototypes' must be directly followed"):
        enhance_cams(torch.rand(2, 3, 8, 8), features, cams, steps=steps)


@pytest.mark.parametrize('steps', [('crf',), 'pamr'])
def test_unknown_steps_are_named(steps):
    features, cams, _ = case()
    with pytest.raises(ValueError, match='steps must be a list of'):
        enhance_cams(torch.rand(2, 3, 8, 8), features, cams, steps=steps)


def test_shapes_that_do_not_fit_are_named():
    features, cams, valid = case()
    with pytest.raises(ValueError, match=r'cams must be \(2, C, 4, 5\)'):
        structure_seeds(features, cams[..., 1:])
    with pytest.raises(ValueError, match=r'valid must be broadcastable to'):
        structure_seeds(features, cams, valid[:, :3])
    with pytest.raises(ValueError, match=r'features must be \(N, D, h, w\), got'):
        structure_seeds(features[0], cams)
    with pytest.raises(ValueError, match='bg_factor must not be negative, got -1'):
        structure_seeds(features, cams, bg_factor=-1)
    with pytest.raises(ValueError, match=r'prototypes must be \(2, C, 6\)'):
        prototype_cams(features, torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match='seeds must be of 2 images'):
        class_prototypes(features, cams[:1])
    with pytest.raises(ValueError, match='target must be'):
        gsc_loss(cams, cams[:, :3])
    with pytest.raises(ValueError, match=r'valid must be \(2, 1, 4, 5\)'):
        gsc_loss(cams, cams, valid=valid)
    with pytest.raises(ValueError, match='at least one map'):
        hierarchical_features([], (2, 2))
