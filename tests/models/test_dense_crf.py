import copy
import itertools
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmengine')

from mmwsss.errors import InputError
from mmwsss.models.refiners import PAMR, DenseCRF

pytestmark = pytest.mark.mm
needs_package = pytest.mark.skipif(
    not pytest.importorskip('importlib.util').find_spec('pydensecrf'),
    reason='the extra crf is not installed',
)


def scene(size=(14, 18), seed=0):
    """A bright box on a dark ground and noisy scores of box, ring and nothing."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 + 0.05 * torch.rand(1, 3, *size, generator=generator)
    image[..., 4:11, 5:14] += 0.5
    scores = 0.5 * torch.rand(1, 4, *size, generator=generator)
    scores[:, 0] += 0.2
    scores[:, 1, 4:11, 5:14] += 0.5
    return image, scores, torch.tensor([[1.0, 0.0, 1.0]])


def mean_field(image, unary, crf):
    """Mean field with every pair of pixels, in float64 and without an approximation.

    As the package does it: each kernel is normalised by its row sums on both sides
    (D^-1/2 K D^-1/2), and a message is what the other labels' weight adds.
    """
    count, height, width = unary.shape
    pixels = list(itertools.product(range(height), range(width)))
    place = np.array(pixels, dtype=np.float64)
    colour = np.round(image.double().numpy() * 255).reshape(3, -1).T
    squared = ((place[:, None] - place[None]) ** 2).sum(-1)
    hue = ((colour[:, None] - colour[None]) ** 2).sum(-1)
    kernels = [
        (crf.gaussian_weight, np.exp(-squared / (2 * crf.gaussian_xy**2))),
        (
            crf.bilateral_weight,
            np.exp(
                -squared / (2 * crf.bilateral_xy**2) - hue / (2 * crf.bilateral_rgb**2)
            ),
        ),
    ]
    total = 0
    for weight, kernel in kernels:
        root = np.sqrt(kernel.sum(1))
        total = total + weight * kernel / root[:, None] / root[None]
    energy = unary.double().numpy().reshape(count, -1)
    posterior = np.exp(-energy) / np.exp(-energy).sum(0)
    for _ in range(crf.num_iters):
        logits = -energy + posterior @ total
        posterior = np.exp(logits - logits.max(0))
        posterior /= posterior.sum(0)
    return torch.from_numpy(posterior).view(count, height, width)


@needs_package
@pytest.mark.parametrize('gt_prob', [None, 0.7])
def test_it_equals_the_mean_field_over_all_pairs(gt_prob):
    # Weak terms and little contrast: each parameter is felt, nothing is saturated.
    crf = DenseCRF(
        num_iters=2,
        gaussian_xy=1.5,
        gaussian_weight=1.0,
        bilateral_xy=6,
        bilateral_rgb=20,
        bilateral_weight=2.0,
        gt_prob=gt_prob,
    )
    image, scores, image_label = scene()
    image = 0.3 + 0.2 * (image - 0.3)
    refined = crf(image, scores, image_label)
    own = scores[0, [0, 1, 3]]
    if gt_prob is None:
        unary = -(own / own.sum(0)).log()
    else:
        best = own.argmax(0)
        unary = torch.full_like(own, -math.log(0.3 / 2))
        for y, x in itertools.product(range(14), range(18)):
            unary[best[y, x], y, x] = -math.log(0.7)
    expected = mean_field(image[0], unary, crf)
    # The package filters on a lattice, which is not exact.
    error = (refined[0, [0, 1, 3]].double() - expected).abs()
    assert error.mean() < 0.01
    assert error.max() < 0.1


@needs_package
def test_only_background_and_the_photos_classes_take_part():
    image, scores, image_label = scene()
    scores[:, 2] = 5.0  # absent, and best everywhere
    refined = DenseCRF()(image, scores, image_label)
    assert (refined[:, 2] == 0).all()
    torch.testing.assert_close(refined.sum(1), torch.ones(1, 14, 18))
    changed = scores.clone()
    changed[:, 2] = 0
    torch.testing.assert_close(refined, DenseCRF()(image, changed, image_label))


@needs_package
@pytest.mark.parametrize('gt_prob', [None, 0.7])
def test_a_photo_without_objects_is_background(gt_prob):
    image, scores, image_label = scene()
    refined = DenseCRF(gt_prob=gt_prob)(image, scores, image_label * 0)
    assert (refined[:, 0] == 1).all()
    assert (refined[:, 1:] == 0).all()


@needs_package
def test_hard_labels_forget_how_sure_the_scores_were():
    image, scores, image_label = scene()
    crf = DenseCRF(gt_prob=0.7)
    sharper = crf(image, scores**3, image_label)
    torch.testing.assert_close(crf(image, scores, image_label), sharper)
    soft = DenseCRF()
    assert not torch.allclose(
        soft(image, scores, image_label), soft(image, scores**3, image_label)
    )


@needs_package
def test_it_cleans_noise_in_a_chain_and_takes_any_size():
    image, small, image_label = scene()
    image, scores = (F.interpolate(m, (28, 36), mode='nearest') for m in (image, small))
    truth = torch.zeros(28, 36, dtype=torch.long)
    truth[8:22, 10:28] = 1
    before = (scores[0, [0, 1, 3]].argmax(0) == truth).float().mean()
    assert before < 0.85
    for start in (scores, small):
        for chain in ([DenseCRF()], [PAMR(num_iters=2), DenseCRF(gt_prob=0.7)]):
            refined = start
            for refiner in chain:
                refined = refiner(image, refined, image_label)
            assert refined.shape == (1, 4, 28, 36)
            after = (refined[0].argmax(0) == truth).float().mean()
            assert after > 0.95


@needs_package
def test_it_can_be_copied():
    copied = copy.deepcopy(DenseCRF(num_iters=2))
    assert copied(*scene()).shape == (1, 4, 14, 18)


def test_probability_of_hard_labels_is_checked():
    for value in (0, 1, 7):
        with pytest.raises(ValueError, match=f'gt_prob must be in .*, got {value}'):
            DenseCRF(gt_prob=value)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydensecrf', None)
    with pytest.raises(InputError, match=r"pip install 'mmwsss\[crf\]'") as caught:
        DenseCRF()
    assert '\n' not in str(caught.value)
