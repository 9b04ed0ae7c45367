import sys

import naive_forms
import numpy as np
import pytest
import reference
import torch
from no_waiting import NoWaiting

from mmwsss.functional import local_affinity, pamr, par

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


# ------------------------------------------------------------------- forms of the step
@pytest.fixture(params=['in cache', 'bit by bit', 'at once', 'fused'])
def form(request, monkeypatch):
    """The form for a CPU, the same with the smallest chunks, and the two for a GPU."""
    if request.param == 'bit by bit':
        monkeypatch.setattr(local_affinity, 'CHUNK_PIXELS', 1)
        monkeypatch.setattr(local_affinity, 'GROUP_PIXELS', 1)
    if request.param in ('at once', 'fused'):
        at_once = local_affinity._refine_at_once
        monkeypatch.setattr(local_affinity, '_refine_in_cache', at_once)
    if request.param == 'fused':
        monkeypatch.setattr(local_affinity, '_propagate', interpreted_kernel())
    return request.param


def interpreted_kernel():
    pytest.importorskip('triton', reason='the kernel for GPUs needs Triton')
    from triton.runtime.interpreter import InterpretedFunction

    from mmwsss.functional.kernels import local_affinity as kernels

    def propagate(*arguments):
        compiled = kernels._step
        kernels._step = InterpretedFunction(compiled.fn)
        try:
            return kernels.propagate(*arguments)
        finally:
            kernels._step = compiled

    return propagate


PHOTOS = {
    # More pixels than a program of the fused form has.
    'odd': torch.rand(4, 3, 17, 19, generator=torch.Generator().manual_seed(3)),
    'smaller than the dilation': torch.rand(
        4, 3, 3, 2, generator=torch.Generator().manual_seed(4)
    ),
    'flat': torch.full((4, 3, 7, 5), 0.4),
    'half precision': torch.rand(
        4, 3, 8, 7, generator=torch.Generator().manual_seed(5)
    ).half(),
}


@pytest.mark.parametrize('photo', PHOTOS)
@pytest.mark.parametrize(
    ('function', 'oracle'),
    [(pamr, naive_forms.stacked_pamr), (par, naive_forms.stacked_par)],
)
def test_every_form_equals_the_oracle(function, oracle, photo, form):
    image = PHOTOS[photo]
    scores = torch.rand(
        4, 5, *image.shape[-2:], generator=torch.Generator().manual_seed(6)
    )
    # Two, five, no and two channels; two images share a number, not the channels.
    for number, absent in enumerate([[0, 2, 4], [], [0, 1, 2, 3, 4], [1, 2, 3]]):
        scores[number, absent] = 0
    options = dict(num_iters=2, dilations=(1, 8))
    refined = function(image, scores, **options)
    expected = oracle(image.double(), scores.double(), **options)
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize('function', [pamr, par])
def test_small_scores_are_resized_in_every_form(function, form):
    image = photo(9, 11).expand(2, -1, -1, -1)
    small = torch.rand(2, 3, 4, 3, generator=torch.Generator().manual_seed(7))
    small[0, 1] = 0
    large = torch.nn.functional.interpolate(
        small, (9, 11), mode='bilinear', align_corners=True
    )
    for num_iters in (0, 1):
        refined = function(image, small, num_iters=num_iters, dilations=(1, 2))
        expected = function(image, large, num_iters=num_iters, dilations=(1, 2))
        torch.testing.assert_close(refined, expected, atol=1e-6, rtol=0)
    assert torch.equal(function(image, small, num_iters=0), large)


@pytest.mark.parametrize('function', [pamr, par])
def test_inputs_are_left_as_they_are(function, form):
    image, scores = photo(6, 7), torch.rand(1, 2, 6, 7)
    before = image.clone(), scores.clone()
    for num_iters in (0, 1, 2):
        refined = function(image, scores, num_iters=num_iters, dilations=(1, 2))
        assert torch.equal(image, before[0])
        assert torch.equal(scores, before[1])
        assert refined.shape == scores.shape
    strided = function(
        image.to(memory_format=torch.channels_last),
        scores.to(memory_format=torch.channels_last),
        num_iters=2,
        dilations=(1, 2),
    )
    assert torch.equal(strided, refined)


def test_no_images_are_refined_to_none():
    assert pamr(torch.rand(0, 3, 4, 4), torch.rand(0, 2, 2, 2)).shape == (0, 2, 4, 4)


@pytest.mark.parametrize('function', [pamr, par])
def test_the_form_for_a_gpu_waits_for_nothing(function, monkeypatch):
    image, scores = photo(6, 7), torch.rand(1, 2, 3, 3)
    with pytest.raises(AssertionError, match='waits'), NoWaiting():
        function(image, scores)
    at_once = local_affinity._refine_at_once
    monkeypatch.setattr(local_affinity, '_refine_in_cache', at_once)
    with NoWaiting():
        function(image, scores)


def test_without_triton_the_form_of_torch_runs(monkeypatch):
    local_affinity._fused.cache_clear()
    monkeypatch.setitem(sys.modules, 'mmwsss.functional.kernels.local_affinity', None)
    with pytest.warns(UserWarning, match=r'slower form .* ModuleNotFoundError|Import'):
        assert local_affinity._fused() is None
    local_affinity._fused.cache_clear()
