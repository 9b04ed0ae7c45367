import numpy as np
import pytest
import torch

from mmwsss.functional.pseudo_label import (
    confident_labels,
    ignore_padding,
    resize_label,
    restrict_to_image_classes,
    scores_to_label,
    top_class,
)


def random_scores(seed=0, n=3, c=5, h=4, w=6):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, c, h, w, generator=generator, dtype=torch.float64)
    image_label = (torch.rand(n, c - 1, generator=generator) < 0.5).float()
    image_label[0] = 0  # a photo with no object
    return scores, image_label


def label_loop(scores, image_label, low=None, high=None):
    n, c, h, w = scores.shape
    label = np.zeros((n, h, w), dtype=np.int64)
    for i, y, x in np.ndindex(n, h, w):
        present = [k for k in range(1, c) if image_label[i, k - 1] > 0]
        if low is None:
            best = max([0, *present], key=lambda k: float(scores[i, k, y, x]))
            label[i, y, x] = best
            continue
        if not present:
            continue
        best = max(present, key=lambda k: float(scores[i, k, y, x]))
        value = float(scores[i, best, y, x])
        label[i, y, x] = best if value >= high else 0 if value <= low else 255
    return torch.from_numpy(label)


@pytest.mark.parametrize(('low', 'high'), [(None, None), (0.4, 0.8), (0.5, 0.5)])
def test_scores_to_label_equals_loop(low, high):
    scores, image_label = random_scores()
    label = scores_to_label(scores, image_label, low=low, high=high)
    assert label.dtype == torch.int64
    assert torch.equal(label, label_loop(scores, image_label, low, high))


def test_scores_to_label_at_exactly_the_thresholds():
    scores = torch.tensor([0.25, 0.26, 0.5, 0.49]).view(1, 1, 1, 4)
    scores = torch.cat([torch.full_like(scores, 0.9), scores], dim=1)
    label = scores_to_label(scores, torch.ones(1, 1), low=0.25, high=0.5)
    assert label.tolist() == [[[0, 255, 1, 255]]]
    # Equal thresholds leave no band, and the class wins at the common value.
    label = scores_to_label(scores, torch.ones(1, 1), low=0.5, high=0.5)
    assert label.tolist() == [[[0, 0, 1, 0]]]


def test_scores_to_label_ties_go_to_background_then_the_lower_class():
    scores = torch.full((1, 4, 1, 1), 0.5)
    assert scores_to_label(scores, torch.ones(1, 3)).item() == 0
    scores[:, 0] = 0.1
    image_label = torch.tensor([[0.0, 1, 1]])
    assert scores_to_label(scores, image_label).item() == 2


@pytest.mark.parametrize('limits', [{}, {'low': 0.3, 'high': 0.6}])
def test_scores_to_label_never_shows_an_absent_class(limits):
    scores, image_label = random_scores(seed=3, n=8, c=7)
    label = scores_to_label(scores, image_label, **limits)
    for one, present in zip(label, image_label, strict=True):
        allowed = {0, 255, *(present.nonzero().flatten() + 1).tolist()}
        assert set(one.unique().tolist()) <= allowed
    assert (label[0] == 0).all()


@pytest.mark.parametrize('limits', [{}, {'low': 0.3, 'high': 0.6}])
def test_scores_to_label_is_hflip_equivariant_and_follows_class_order(limits):
    scores, image_label = random_scores()
    label = scores_to_label(scores, image_label, **limits)
    flipped = scores_to_label(scores.flip(-1), image_label, **limits)
    assert torch.equal(flipped, label.flip(-1))
    order = torch.tensor([2, 0, 3, 1])
    moved = scores_to_label(
        torch.cat([scores[:, :1], scores[:, 1:][:, order]], 1),
        image_label[:, order],
        **limits,
    )
    names = torch.full((256,), 255)
    names[0] = 0
    names[1:5] = order + 1
    assert torch.equal(names[moved], label)


@pytest.mark.parametrize('limits', [{}, {'low': 0.3, 'high': 0.6}])
def test_scores_to_label_without_classes_is_background(limits):
    label = scores_to_label(torch.rand(2, 1, 3, 3), torch.zeros(2, 0), **limits)
    assert label.dtype == torch.int64
    assert label.eq(0).all()


def test_restrict_fills_absent_classes_only_and_passes_gradients():
    scores, image_label = random_scores()
    scores.requires_grad_()
    kept = restrict_to_image_classes(scores, image_label, fill=0.0)
    mask = torch.cat([torch.ones(3, 1), image_label], 1)[:, :, None, None].double()
    torch.testing.assert_close(kept, scores * mask)
    kept.sum().backward()
    torch.testing.assert_close(scores.grad, mask.expand_as(scores))
    assert restrict_to_image_classes(scores, image_label).max() <= 1
    assert restrict_to_image_classes(scores, image_label).min() == -float('inf')


def test_ignore_padding_marks_padding_only():
    label = torch.arange(6).view(1, 2, 3)
    valid = torch.tensor([[1.0, 1, 0], [1, 0, 0]]).view(1, 1, 2, 3)
    before = label.clone()
    assert ignore_padding(label, valid).tolist() == [[[0, 1, 255], [3, 255, 255]]]
    assert torch.equal(label, before)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_top_class_equals_softmax(dtype):
    scores, image_label = random_scores()
    logits = (8 * scores).to(dtype)
    label, probability = top_class(logits)
    expected, expected_label = logits.double().softmax(1).max(1)
    assert torch.equal(label, expected_label)
    torch.testing.assert_close(probability.double(), expected, rtol=1e-5, atol=1e-6)
    # Restricted: the softmax of the allowed logits alone.
    _, probability = top_class(logits, image_label)
    present = [0, *(image_label[1].nonzero().flatten() + 1).tolist()]
    expected = logits[1, present].double().softmax(0).amax(0)
    torch.testing.assert_close(probability[1].double(), expected, rtol=1e-5, atol=1e-6)


def test_confident_labels_replace_confident_pixels_only():
    probability = torch.tensor([[0.8, 0.1, 0.1], [0.05, 0.9, 0.05], [0.1, 0.45, 0.45]])
    logits = probability.log().T.view(1, 3, 1, 3)
    before = torch.tensor([[[255, 2, 2]]])
    both = torch.ones(1, 2)
    label = confident_labels(logits, both, before, threshold=0.75)
    assert label.tolist() == [[[0, 1, 2]]]
    assert before.tolist() == [[[255, 2, 2]]]
    # Only class 2 is in the image: the second pixel is a draw between 0 and 2.
    only_second = torch.tensor([[0.0, 1.0]])
    label = confident_labels(logits, only_second, before, threshold=0.75)
    assert label.tolist() == [[[0, 2, 2]]]
    published = confident_labels(
        logits, only_second, before, threshold=0.75, restrict=False
    )
    assert published.tolist() == [[[0, 1, 2]]]


def test_confident_labels_keep_a_pixel_at_exactly_the_threshold():
    before = torch.tensor([[[1]]])
    arguments = (torch.zeros(1, 2, 1, 1), torch.ones(1, 1), before)
    assert confident_labels(*arguments, threshold=0.5).item() == 1
    assert confident_labels(*arguments, threshold=0.499).item() == 0


def test_resize_label_takes_centre_or_corner():
    label = torch.arange(16).view(1, 4, 4)
    assert resize_label(label, (2, 2)).tolist() == [[[5, 7], [13, 15]]]
    corner = resize_label(label, (2, 2), strict_reference=True)
    assert corner.tolist() == [[[0, 2], [8, 10]]]
    ignored = resize_label(torch.full((1, 7, 5), 255), (3, 2))
    assert ignored.dtype == torch.int64
    assert ignored.eq(255).all()
    assert torch.equal(resize_label(label.to(torch.uint8), (4, 4)), label)


def test_errors_show_what_was_received():
    scores, image_label = random_scores()
    with pytest.raises(ValueError, match=r'image_label must be \(3, 4\).*\(3, 3\)'):
        scores_to_label(scores, image_label[:, 1:])
    with pytest.raises(ValueError, match=r'scores must be .* got \(5, 4, 6\)'):
        scores_to_label(scores[0], image_label)
    with pytest.raises(ValueError, match=r'low and high .* low=0\.2, high=None'):
        scores_to_label(scores, image_label, low=0.2)
    with pytest.raises(ValueError, match=r'low=0\.6, high=0\.2'):
        scores_to_label(scores, image_label, low=0.6, high=0.2)
    with pytest.raises(ValueError, match='at most 255 classes, got 256'):
        scores_to_label(torch.zeros(1, 256, 1, 1), torch.zeros(1, 255))
    label = torch.zeros(3, 4, 6)
    with pytest.raises(ValueError, match=r'valid must be .* got \(3, 4, 6\)'):
        ignore_padding(label, torch.ones(3, 4, 6))
    with pytest.raises(ValueError, match=r'pseudo_label must be .* got \(3, 4, 5\)'):
        confident_labels(scores, image_label, label[..., 1:], threshold=0.5)
