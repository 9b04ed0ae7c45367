import numpy as np
import pytest
import reference
import torch

from mmwsss.functional import pair_affinity, path_index, random_walk


def maps(n=2, k=3, h=7, w=9, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    cams = torch.rand(n, k, h, w, generator=generator, dtype=torch.float64)
    boundary = torch.rand(n, 1, h, w, generator=generator, dtype=torch.float64)
    # A few strong boundaries and much open ground, as a trained network has.
    return cams.to(dtype), (boundary**8).to(dtype)


def dense(cams, boundary, **options):
    options = {'radius': 5, 'beta': 10, 'num_steps': 256} | options
    walked = [
        reference.dense_random_walk(c.numpy(), b[0].numpy(), **options)
        for c, b in zip(cams.double(), boundary.double(), strict=True)
    ]
    return torch.from_numpy(np.stack(walked))


# ---------------------------------------------------------------------------- paths
def test_published_numbers_of_directions_and_path_lengths():
    lengths = [len(path) for _, path in path_index(5)]
    counts = {n: lengths.count(n) for n in sorted(set(lengths))}
    assert counts == {2: 2, 3: 2, 4: 4, 5: 2, 6: 4, 7: 2, 8: 8, 10: 6, 11: 4}
    assert len(path_index(10)) == 152
    assert path_index(1) == ()


@pytest.mark.parametrize('radius', [2, 3, 5, 8])
def test_paths_equal_the_enumeration(radius):
    origin = (0, 0)
    for direction, path in path_index(radius):
        expected = reference.cells_between(origin, direction)
        assert sorted(path) == sorted(expected), direction
        assert {origin, direction} <= set(path)
    # Every neighbour occurs once, in itself or turned round.
    side = 2 * radius + 1
    middle = (radius, radius)
    expected = {
        tuple(np.subtract(second, first))
        for first, second in reference.pairs_within(radius, side, side)
        if middle in (first, second)
    }
    found = [direction for direction, _ in path_index(radius)]
    assert sorted(found) == sorted(expected)


def test_pair_affinity_equals_the_enumeration():
    _, boundary = maps(n=1, h=6, w=7)
    affinity = pair_affinity(boundary, radius=4)[0]
    offsets = {direction: i for i, (direction, _) in enumerate(path_index(4))}
    seen = torch.zeros_like(affinity, dtype=torch.bool)
    for first, second in reference.pairs_within(4, 6, 7):
        plane = offsets[tuple(np.subtract(second, first))]
        expected = reference.affinity_of_pair(boundary[0, 0].numpy(), first, second)
        assert float(affinity[(plane, *first)]) == pytest.approx(expected, abs=1e-12)
        seen[(plane, *first)] = True
    assert (affinity[~seen] == 0).all()


def test_pair_affinity_with_and_without_gradient_agree():
    _, boundary = maps()
    leaf = boundary.clone().requires_grad_()
    torch.testing.assert_close(
        pair_affinity(leaf, radius=6).detach(), pair_affinity(boundary, radius=6)
    )
    small = torch.rand(1, 1, 4, 5, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda b: pair_affinity(b, radius=4), small)


def test_gradient_goes_to_the_strongest_cell_alone():
    boundary = torch.tensor([[[[0.1, 0.7, 0.2, 0.3]]]]).requires_grad_()
    (direction,) = [i for i, (d, _) in enumerate(path_index(4)) if d == (0, 3)]
    pair_affinity(boundary, radius=4)[0, direction, 0, 0].backward()
    assert boundary.grad.flatten().tolist() == [0, -1, 0, 0]


# ----------------------------------------------------------------------------- walk
@pytest.mark.parametrize(
    'options',
    [
        {},
        {'radius': 3, 'beta': 4.5, 'num_steps': 17},
        {'radius': 2, 'beta': 1, 'num_steps': 1},
        {'radius': 5, 'num_steps': 2},
        {'radius': 12, 'num_steps': 64},  # reaches beyond the map
        {'radius': 1, 'num_steps': 5},  # no neighbour at all
        {'num_steps': 0},
    ],
)
def test_walk_equals_powers_of_the_dense_matrix(options):
    cams, boundary = maps()
    walked = random_walk(cams, boundary, **options)
    expected = dense(cams, boundary, **options)
    torch.testing.assert_close(walked, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_walk_in_other_types_is_as_good_as_the_type(dtype):
    cams, boundary = maps(dtype=dtype)
    walked = random_walk(cams, boundary)
    assert walked.dtype == dtype
    # float32 arithmetic throughout would be off by about 1e-4.
    rtol = 3e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(
        walked.double(), dense(cams, boundary), rtol=rtol, atol=0
    )


def test_walk_ignores_autocast():
    cams, boundary = maps(dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        walked = random_walk(cams, boundary)
    torch.testing.assert_close(walked, random_walk(cams, boundary), rtol=0, atol=0)


@pytest.mark.parametrize('size', [(1, 1), (1, 6), (5, 1), (2, 3)])
def test_walk_on_tiny_maps(size):
    cams, boundary = maps(n=1, k=1, h=size[0], w=size[1])
    torch.testing.assert_close(
        random_walk(cams, boundary), dense(cams, boundary), rtol=1e-9, atol=1e-12
    )


def test_a_wall_stops_the_walk_and_open_ground_levels_out():
    cams = torch.zeros(1, 2, 9, 12, dtype=torch.float64)
    cams[0, 0, 4, 2] = 1
    cams[0, 1] = 0.5
    boundary = torch.zeros(1, 1, 9, 12, dtype=torch.float64)
    boundary[..., 6] = 1
    walked = random_walk(cams, boundary, num_steps=5000)[0]
    assert (walked[0, :, 6:] == 0).all()
    left = walked[0, :, :6]
    # Far beyond the mixing time the value is the same everywhere on its side.
    torch.testing.assert_close(left, left[:1, :1].expand_as(left))
    # On the wall nothing starts and nothing arrives; elsewhere a constant stays.
    assert (walked[1, :, 6] == 0).all()
    assert walked[1, :, [0, 5, 7, 11]].numpy() == pytest.approx(0.5)


def test_values_stay_in_the_range_of_the_input():
    cams, boundary = maps(h=12, w=11)
    cams[0, 1] = 0
    walked = random_walk(cams, boundary)
    start = cams * (1 - boundary)
    assert (walked[0, 1] == 0).all()
    assert (walked >= 0).all()
    assert (walked <= start.amax((2, 3), keepdim=True) * (1 + 1e-12)).all()


def test_what_the_walk_hardly_reaches_is_not_negative():
    cams = torch.zeros(1, 1, 1, 300, dtype=torch.float64)
    cams[..., 0] = 1
    walked = random_walk(cams, torch.zeros_like(cams), radius=2)
    # A step is one cell at most; the series leaves rounding errors beyond.
    assert walked[..., 257:].abs().max() < 1e-12
    assert (walked >= 0).all()


def test_walk_is_linear_and_turns_with_the_map():
    cams, boundary = maps()
    walked = random_walk(cams, boundary)
    other, _ = maps(seed=1)
    torch.testing.assert_close(
        random_walk(cams + 2 * other, boundary),
        walked + 2 * random_walk(other, boundary),
    )
    for turn in (lambda m: m.flip(-1), lambda m: m.flip(-2), lambda m: m.mT):
        torch.testing.assert_close(
            random_walk(turn(cams), turn(boundary)), turn(walked)
        )


def test_images_of_a_batch_do_not_meet():
    cams, boundary = maps(n=3)
    walked = random_walk(cams, boundary)
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(walked[one], random_walk(cams[one], boundary[one]))
    # As on an accelerator: all images and channels at once.
    from mmwsss.functional.random_walk import _walk

    begin, affinity = cams * (1 - boundary), pair_affinity(boundary, radius=5) ** 10
    torch.testing.assert_close(_walk(begin, affinity, 5, 256), walked)


def test_walk_carries_no_gradient_and_changes_no_input():
    cams, boundary = maps()
    before = cams.clone(), boundary.clone()
    walked = random_walk(cams.requires_grad_(), boundary.requires_grad_())
    assert not walked.requires_grad
    assert torch.equal(cams, before[0])
    assert torch.equal(boundary, before[1])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(cams=torch.rand(2, 7, 9)),
            r'cams must be \(N, K, h, w\), got \(2, 7, 9\)',
        ),
        (dict(boundary=torch.rand(2, 1, 7, 8)), r'got \(2, 1, 7, 8\)'),
        (dict(boundary=torch.rand(2, 3, 7, 9)), r'boundary must be \(2, 1, 7, 9\)'),
        (dict(beta=0), 'beta must be positive, got 0'),
        (dict(num_steps=-1), 'num_steps must be 0 or more, got -1'),
        (dict(radius=0), 'radius must be 1 or more, got 0'),
    ],
)
def test_wrong_arguments_are_named(change, message):
    cams, boundary = maps()
    with pytest.raises(ValueError, match=message):
        random_walk(**({'cams': cams, 'boundary': boundary} | change))
