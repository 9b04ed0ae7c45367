import pytest
import torch
from no_waiting import NoWaiting

from mmwsss.functional import (
    add_background,
    class_maps,
    normalize_cams,
    present_softmax,
    softmax_grad_cam,
)
from mmwsss.functional import cam as cam_module


def test_class_maps_equal_the_sum_over_channels():
    features, weight, bias = torch.rand(2, 5, 3, 4), torch.randn(6, 5), torch.randn(6)
    expected = (features[:, None] * weight[None, :, :, None, None]).sum(2)
    expected = expected + bias[:, None, None]
    torch.testing.assert_close(class_maps(features, weight, bias), expected)
    with pytest.raises(ValueError, match='features must be'):
        class_maps(features, torch.randn(6, 4))


def test_present_softmax_is_a_softmax_over_the_members():
    logits = torch.randn(2, 6)
    label = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    ours = present_softmax(logits, label)
    members = [0, 2, 4, 5]
    torch.testing.assert_close(ours[0, members], logits[0, members].softmax(0))
    assert ours[0, 1] == 0
    assert ours[0, 3] == 0
    torch.testing.assert_close(ours[1, 4:], logits[1, 4:].softmax(0))


def test_present_softmax_without_members_is_zero_with_finite_gradient():
    logits = torch.randn(1, 3, requires_grad=True)
    ours = present_softmax(logits, torch.zeros(1, 3))
    ours.sum().backward()
    assert not ours.any()
    assert logits.grad.isfinite().all()


def class_scores(activations, weights):
    """A nonlinear map from tokens to K scores, image by image."""
    return ((activations @ weights).tanh().mean(1) * 3).softmax(-1)


def sequential_grad_cam(activations, weights, label, grid):
    """One backward pass per image and class."""
    n, k = label.shape
    cams = torch.zeros(n, k, *grid, dtype=activations.dtype)
    for i in range(n):
        for c in range(k):
            if not label[i, c]:
                continue
            leaf = activations[i : i + 1].detach().requires_grad_()
            class_scores(leaf, weights)[0, c].backward()
            patches = slice(leaf.shape[1] - grid[0] * grid[1], None)
            weight = leaf.grad[0, patches].mean(0)
            cam = (leaf[0, patches].detach() * weight).sum(-1).clamp(min=0)
            cams[i, c] = cam.view(grid)
    return cams


@pytest.mark.parametrize('max_classes', [None, 3])
def test_grad_cam_in_one_pass_equals_one_pass_per_class(max_classes):
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(4, 1 + 6, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    label = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1], [0, 1, 0, 0]])
    leaf = activations.clone().requires_grad_()
    ours = softmax_grad_cam(
        leaf, class_scores(leaf, weights), label, grid=(2, 3), max_classes=max_classes
    )
    expected = sequential_grad_cam(activations, weights, label, (2, 3))
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
    assert expected.any()
    assert not ours.requires_grad
    assert leaf.grad is None


def test_grad_cam_without_any_class_is_zero():
    leaf = torch.randn(2, 4, 5, requires_grad=True)
    scores = class_scores(leaf, torch.randn(5, 3))
    assert not softmax_grad_cam(leaf, scores, torch.zeros(2, 3), grid=(2, 2)).any()


@pytest.mark.parametrize('mode', ['max', 'minmax'])
def test_normalize_cams_by_hand(mode):
    cams = torch.tensor([[[[-1.0, 2.0], [3.0, 1.0]], [[0.0, 0.0], [0.0, -5.0]]]])
    ours = normalize_cams(cams, mode=mode, eps=0.5)
    expected = torch.tensor([[0.0, 2.0], [3.0, 1.0]]) / 3.5
    torch.testing.assert_close(ours[0, 0], expected)
    assert not ours[0, 1].any()
    shifted = normalize_cams(cams.relu() + 1, mode=mode, eps=0.0)[0, 0].min()
    assert shifted == (0.25 if mode == 'max' else 0.0)
    with pytest.raises(ValueError, match="got 'sum'"):
        normalize_cams(cams, mode='sum')


def test_background_is_what_the_strongest_class_leaves():
    cams = torch.tensor([[[[0.2, 1.0]], [[0.6, 0.0]]]])
    scores = add_background(cams, power=2)
    torch.testing.assert_close(scores[0, 0], torch.tensor([[0.16, 0.0]]))
    torch.testing.assert_close(scores[:, 1:], cams)
    with pytest.raises(ValueError, match='cams must be'):
        add_background(torch.rand(2, 3))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_present_softmax_in_any_dtype(dtype):
    label = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    ours = present_softmax(torch.randn(2, 3).to(dtype), label)
    assert ours.dtype == dtype
    assert ours[0, 1] == 0
    assert not ours[1].any()


def test_present_softmax_gradient():
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    assert torch.autograd.gradcheck(lambda x: present_softmax(x, label), logits)


def test_grad_cam_names_a_small_bound_and_a_missing_graph():
    leaf = torch.randn(2, 4, 5, requires_grad=True)
    scores = class_scores(leaf, torch.randn(5, 3))
    label = torch.ones(2, 3)
    with pytest.raises(ValueError, match='max_classes is 2, but an image has 3'):
        softmax_grad_cam(leaf, scores, label, grid=(2, 2), max_classes=2)
    with pytest.raises(ValueError, match='graph'):
        softmax_grad_cam(leaf, scores.detach(), label, grid=(2, 2))


@pytest.fixture
def like_cuda(monkeypatch):
    """Bounds are checked as on a device that the host does not wait for."""
    monkeypatch.setattr(cam_module, '_runs_ahead', lambda tensor: True)


@pytest.mark.parametrize('max_classes', [3, 4, 9])
def test_known_bound_needs_no_look_at_the_device(like_cuda, max_classes):
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(3, 1 + 6, 5, generator=generator, dtype=torch.float64)
    weights = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    label = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]])
    expected = sequential_grad_cam(activations, weights, label, (2, 3))
    leaf = activations.clone().requires_grad_()
    scores = class_scores(leaf, weights)
    with NoWaiting():
        ours = softmax_grad_cam(
            leaf, scores, label, grid=(2, 3), max_classes=max_classes
        )
        with pytest.raises(AssertionError, match='waits for the device'):
            softmax_grad_cam(leaf, scores, label, grid=(2, 3))
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize('max_classes', [0, 1, 2])
def test_bound_that_is_too_small_never_drops_a_class(like_cuda, max_classes):
    leaf = torch.randn(2, 4, 5, requires_grad=True)
    scores = class_scores(leaf, torch.randn(5, 3))
    label = torch.tensor([[0.0, 1, 0], [1, 1, 1]])
    message = f'max_classes is {max_classes}, but an image has more classes'
    with pytest.raises(RuntimeError, match=message):
        softmax_grad_cam(leaf, scores, label, grid=(2, 2), max_classes=max_classes)


def test_bound_of_an_empty_batch(like_cuda):
    leaf = torch.randn(0, 4, 5, requires_grad=True)
    scores = class_scores(leaf, torch.randn(5, 3))
    cams = softmax_grad_cam(leaf, scores, torch.zeros(0, 3), grid=(2, 2), max_classes=0)
    assert cams.shape == (0, 3, 2, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_step_on_a_gpu_does_not_wait():
    leaf = torch.randn(2, 4, 5, device='cuda', requires_grad=True)
    scores = class_scores(leaf, torch.randn(5, 3, device='cuda'))
    label = torch.ones(2, 3, device='cuda')
    torch.cuda.set_sync_debug_mode('error')
    try:
        cams = softmax_grad_cam(leaf, scores, label, grid=(2, 2), max_classes=3)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert cams.shape == (2, 3, 2, 2)
    assert torch.isfinite(cams).all()
