import numpy as np
import pytest
import reference
import torch

from mmwsss.functional import pamr, par

DILATIONS = (1, 2, 4)


def photo(height, width, seed=0):
    return torch.rand(
        1, 3, height, width, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize('size', [(7, 9), (3, 2), (1, 1), (1, 6)])
@pytest.mark.parametrize(
    ('function', 'kernel'),
    [(pamr, reference.pamr_kernel), (par, reference.par_kernel)],
)
def test_refinement_equals_the_loop(function, kernel, size):
    image = photo(*size)
    scores = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = reference.propagate(
        image[0].double().numpy(), scores[0].double().numpy(), DILATIONS, 3, kernel
    )
    ours = function(image, scores, num_iters=3, dilations=DILATIONS)
    np.testing.assert_allclose(ours[0].numpy(), expected, atol=1e-6)


def test_pamr_keeps_range_and_sum():
    scores = torch.rand(2, 4, 20, 30).softmax(1)
    image = torch.rand(2, 3, 20, 30)
    refined = pamr(image, scores)
    assert refined.min() >= 0
    torch.testing.assert_close(refined.sum(1), torch.ones(2, 20, 30))


def test_par_of_a_constant_grows_as_published_unless_normalized():
    image, ones = photo(12, 12), torch.ones(1, 1, 12, 12)
    grown = par(image, ones, num_iters=10)
    torch.testing.assert_close(grown, torch.full_like(ones, 1.01**10))
    torch.testing.assert_close(par(image, ones, normalize=True), ones)


@pytest.mark.parametrize('function', [pamr, par])
def test_refinement_commutes_with_a_flip(function):
    image, scores = photo(15, 22), torch.rand(1, 2, 15, 22)
    flipped = function(image.flip(-1), scores.flip(-1))
    torch.testing.assert_close(flipped.flip(-1), function(image, scores))


@pytest.mark.parametrize('function', [pamr, par])
def test_scores_are_resized_with_aligned_corners(function):
    image, small = photo(16, 20), torch.rand(1, 2, 4, 5)
    large = torch.nn.functional.interpolate(
        small, (16, 20), mode='bilinear', align_corners=True
    )
    torch.testing.assert_close(function(image, small), function(image, large))


def test_empty_channels_stay_empty_and_change_nothing():
    image = photo(16, 16)
    scores = torch.rand(1, 6, 16, 16)
    scores[:, [1, 4]] = 0
    refined = pamr(image, scores)
    assert not refined[:, [1, 4]].any()
    torch.testing.assert_close(refined[:, [0]], pamr(image, scores[:, [0]]))


@pytest.mark.parametrize('function', [pamr, par])
def test_flat_image_gives_a_finite_mean(function):
    scores = torch.rand(1, 2, 9, 9)
    refined = function(torch.full((1, 3, 9, 9), 0.5), scores)
    assert refined.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    image, scores = photo(16, 16).to(dtype), torch.rand(1, 2, 16, 16).to(dtype)
    refined = pamr(image, scores)
    assert refined.dtype == dtype
    exact = pamr(image.float(), scores.float())
    torch.testing.assert_close(refined, exact.to(dtype))


def test_channels_last_and_autocast_change_nothing():
    image, scores = photo(16, 16), torch.rand(1, 8, 16, 16)
    expected = pamr(image, scores)
    last = torch.channels_last
    ours = pamr(image.to(memory_format=last), scores.to(memory_format=last))
    torch.testing.assert_close(ours, expected)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(pamr(image, scores), expected)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r'image must be .*\(1, 1, 4, 4\)'):
        pamr(torch.rand(1, 1, 4, 4), torch.rand(1, 2, 4, 4))
    with pytest.raises(ValueError, match='scores must be'):
        par(torch.rand(2, 3, 4, 4), torch.rand(1, 2, 4, 4))
    with pytest.raises(ValueError, match='dilations'):
        par(torch.rand(1, 3, 4, 4), torch.rand(1, 2, 4, 4), dilations=())


@pytest.mark.parametrize('noise', [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize(
    ('function', 'kernel'),
    [(pamr, reference.pamr_kernel), (par, reference.par_kernel)],
)
def test_single_pixel_in_an_almost_flat_image(function, kernel, noise):
    image = 0.6 + noise * photo(9, 9, seed=1)
    image[:, :, 4, 4] = 0
    scores = torch.rand(1, 2, 9, 9, generator=torch.Generator().manual_seed(2))
    expected = reference.propagate(
        image[0].double().numpy(), scores[0].double().numpy(), DILATIONS, 3, kernel
    )
    ours = function(image, scores, num_iters=3, dilations=DILATIONS)
    # Float32 rounding of the image is part of both; the square enlarges it.
    np.testing.assert_allclose(ours[0].numpy(), expected, atol=1e-4)


def test_wrong_options_are_named():
    image, scores = photo(4, 4), torch.rand(1, 2, 4, 4)
    with pytest.raises(ValueError, match='num_iters must be 0 or more, got -1'):
        pamr(image, scores, num_iters=-1)
    with pytest.raises(ValueError, match='w1 must be positive, got 0'):
        par(image, scores, w1=0)


@pytest.mark.parametrize(
    ('size', 'dilations'),
    [
        ((23, 31), (1, 2, 4, 8, 12, 24)),
        ((5, 7), (1, 3)),
        ((1, 6), (2,)),
        ((1, 1), (1,)),
    ],
)
@pytest.mark.parametrize('num_iters', [0, 1, 4])
def test_pamr_equals_stacked_shifts_in_double_precision(size, dilations, num_iters):
    generator = torch.Generator().manual_seed(0)
    options = dict(generator=generator, dtype=torch.float64)
    image, scores = (
        torch.rand(2, 3, *size, **options),
        torch.rand(2, 4, *size, **options),
    )
    ours = pamr(image, scores, num_iters=num_iters, dilations=dilations)
    stacked = reference.stacked_pamr(
        image, scores, num_iters=num_iters, dilations=dilations
    )
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, stacked, atol=1e-12, rtol=0)


@pytest.mark.parametrize('flat', [0.0, 0.5])
def test_stacked_shifts_of_a_flat_image_are_the_mean_of_the_neighbours(flat):
    scores = torch.rand(1, 2, 9, 8, dtype=torch.float64)
    image = torch.full((1, 3, 9, 8), flat, dtype=torch.float64)
    ours = pamr(image, scores, num_iters=1, dilations=(1, 2))
    expected = reference.stacked_neighbours(scores, (1, 2)).mean(2)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ('function', 'kernel'),
    [(pamr, reference.pamr_kernel), (par, reference.par_kernel)],
)
def test_double_precision_is_kept(function, kernel):
    image, scores = photo(6, 7).double(), torch.rand(1, 2, 6, 7).double()
    expected = reference.propagate(
        image[0].numpy(), scores[0].numpy(), DILATIONS, 3, kernel
    )
    ours = function(image, scores, num_iters=3, dilations=DILATIONS)
    np.testing.assert_allclose(ours[0].numpy(), expected, atol=1e-12)
    # One of the two is enough; the result has the type of the scores.
    mixed = function(image, scores.float(), num_iters=3, dilations=DILATIONS)
    assert mixed.dtype == torch.float32
