import numpy as np
import pytest
import reference_relevance
import torch

from mmwsss.functional import (
    class_attention_maps,
    class_gradients,
    fuse_class_attention,
    grad_cam_maps,
    gradient_attention,
    lrp_add,
    lrp_linear,
    lrp_matmul,
    patch_maps,
    refine_by_attention,
    relevance_rollout,
    rescale_maps,
)


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------------- gradients
def test_gradients_of_several_classes_equal_those_of_one_by_one():
    first = noise(2, 4, 3).requires_grad_()
    second = noise(2, 5, seed=1).requires_grad_()
    unused = noise(2, 2, seed=2).requires_grad_()
    scores = (first.sum(1) ** 2).cumsum(1) + second[:, :3].sin()
    classes = torch.tensor([2, 0])
    found = class_gradients(scores, [first, second, unused], classes)
    for number, k in enumerate(classes.tolist()):
        for gradients, tensor in zip(found, (first, second), strict=False):
            total = scores[:, k].sum()
            (expected,) = torch.autograd.grad(total, tensor, retain_graph=True)
            torch.testing.assert_close(gradients[number], expected)
    assert found[2].shape == (2, 2, 2)
    assert not found[2].any()
    none = class_gradients(scores, [first], classes[:0])
    assert none[0].shape == (0, 2, 4, 3)
    with pytest.raises(ValueError, match=r'class_scores must be \(N, K\), got \(2,\)'):
        class_gradients(scores[:, 0], [first], classes)


def test_grad_cam_equals_a_loop():
    activations, gradients = noise(2, 6, 3), noise(4, 2, 6, 3, seed=1)
    found = grad_cam_maps(activations, gradients)
    for m, n, p in np.ndindex(4, 2, 6):
        value = 0.0
        for d in range(3):
            weight = sum(gradients[m, n, q, d].item() for q in range(6)) / 6
            value += weight * activations[n, p, d].item()
        assert found[m, n, p].item() == pytest.approx(max(value, 0), abs=1e-12)
    assert found.any()


def test_gradient_attention_equals_a_loop():
    attention, gradient = noise(2, 3, 5, 5).softmax(-1), noise(2, 3, 5, 5, seed=1)
    found = gradient_attention(attention, gradient)
    for ours, a, g in zip(found, attention, gradient, strict=True):
        expected = reference_relevance.weighted_attention(a.numpy(), g.numpy())
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)


# --------------------------------------------------------------------------- rollout
@pytest.mark.parametrize('normalize_rows', [False, True])
@pytest.mark.parametrize('uniform', [False, True])
def test_rollout_equals_the_matrix_product(normalize_rows, uniform):
    layers = noise(3, 4, 7, 7).abs()
    start = torch.zeros(7, dtype=torch.float64)
    start[0] = 1
    if uniform:
        start = torch.arange(7, dtype=torch.float64) / 21
    found = relevance_rollout(
        layers, start=start if uniform else None, normalize_rows=normalize_rows
    )
    for ours, matrices in zip(found, layers, strict=True):
        expected = reference_relevance.rollout(
            matrices.numpy(), start.numpy(), normalize_rows
        )
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)
    if normalize_rows:
        torch.testing.assert_close(found.sum(1), torch.ones(3, dtype=torch.float64))


def test_rollout_of_nothing_stays_where_it_starts():
    found = relevance_rollout(torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    assert found.tolist() == [[1, 0, 0, 0]] * 2
    # Of one layer, relevance is the class token's row.
    layer = noise(1, 1, 4, 4).abs()
    torch.testing.assert_close(relevance_rollout(layer)[0, 1:], layer[0, 0, 0, 1:])
    # The last layer's row is where the class token looks; not its column.
    layers = torch.zeros(1, 2, 3, 3)
    layers[0, 1, 0, 1] = 1
    layers[0, 0, 1, 2] = 1
    assert relevance_rollout(layers).tolist() == [[1, 1, 1]]
    assert relevance_rollout(layers.flip(1)).tolist() == [[1, 1, 0]]


def test_patches_are_the_last_tokens_row_by_row():
    tokens = torch.arange(16.0).view(2, 8)
    assert patch_maps(tokens, (2, 3))[1].tolist() == [[10, 11, 12], [13, 14, 15]]


def test_rescaled_maps_do_not_depend_on_their_size():
    maps = noise(2, 3, 4, 5).abs()
    for mode, expected in (
        ('max', maps / maps.amax((2, 3), keepdim=True)),
        (
            'minmax',
            (maps - maps.amin((2, 3), keepdim=True))
            / (maps.amax((2, 3), keepdim=True) - maps.amin((2, 3), keepdim=True)),
        ),
    ):
        for factor in (1.0, 1e-12, 1e9):
            ours = rescale_maps(maps * factor, mode=mode)
            assert ours.max() <= 1
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert not rescale_maps(torch.zeros(1, 1, 2, 2)).any()
    assert not rescale_maps(torch.full((1, 1, 2, 2), 3e-7)).any()
    # Rounding does not make a picture of a constant map.
    uneven = torch.full((1, 1, 2, 2), 0.25)
    uneven[..., 0, 0] += 3e-8
    assert rescale_maps(uneven).max() < 0.02
    assert not rescale_maps(torch.zeros(1, 1, 2, 2), mode='max').any()


# ------------------------------------------------------------------- relevance rules
def test_relevance_of_a_linear_layer_equals_a_loop():
    inputs, weight = noise(4, 12), noise(3, 12, seed=1)
    relevance = noise(2, 4, 3, seed=2)
    found = lrp_linear(inputs, weight, relevance)
    for m, t in np.ndindex(2, 4):
        expected = reference_relevance.lrp_linear(
            inputs[t].numpy(), weight.numpy(), relevance[m, t].numpy()
        )
        np.testing.assert_allclose(found[m, t].numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(found.sum(2), relevance.sum(2), rtol=1e-6, atol=1e-6)
    assert not lrp_linear(torch.zeros(12), weight.float(), torch.ones(3)).any()


def test_relevance_of_a_product_is_halved():
    left, right = noise(2, 4, 3).softmax(-1), noise(2, 3, 5, seed=1)
    relevance = noise(6, 2, 4, 5, seed=2)
    to_left, to_right = lrp_matmul(left, right, relevance)
    for m, h in np.ndindex(6, 2):
        expected = reference_relevance.lrp_matmul(
            left[h].numpy(), right[h].numpy(), relevance[m, h].numpy()
        )
        np.testing.assert_allclose(to_left[m, h].numpy(), expected[0], rtol=1e-5)
        np.testing.assert_allclose(to_right[m, h].numpy(), expected[1], rtol=1e-5)
    half = relevance.sum((2, 3)) / 2
    torch.testing.assert_close(to_left.sum((2, 3)), half, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(to_right.sum((2, 3)), half, rtol=1e-5, atol=1e-5)


def test_relevance_of_a_sum_equals_a_loop_for_each_class():
    first, second = noise(4, 3), noise(4, 3, seed=1)
    relevance = noise(5, 4, 3, seed=2)
    found = lrp_add(first, second, relevance)
    for m in range(5):
        expected = reference_relevance.lrp_add(
            first.numpy(), second.numpy(), relevance[m].numpy()
        )
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours[m].numpy(), theirs, rtol=1e-5)
    total = relevance.sum((1, 2))
    both = (found[0] + found[1]).sum((1, 2))
    torch.testing.assert_close(both, total, rtol=1e-6, atol=1e-6)
    for part in lrp_add(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 2)):
        assert part.isfinite().all()


# ----------------------------------------------------------------- multi-class tokens
def attentions(n=2, layers=5, k=3, cells=6):
    return noise(n, layers, k + cells, k + cells).softmax(-1)


@pytest.mark.parametrize('num_layers', [1, 3, 5])
@pytest.mark.parametrize('k', [1, 3])
def test_attention_of_class_tokens_equals_a_loop(num_layers, k):
    given = attentions(k=k)
    found = class_attention_maps(given, (2, 3), num_layers=num_layers)
    assert found.shape == (2, k, 2, 3)
    for n, c, y, x in np.ndindex(2, k, 2, 3):
        value = sum(given[n, 4 - i, c, k + 3 * y + x].item() for i in range(num_layers))
        assert found[n, c, y, x].item() == pytest.approx(value, rel=1e-12)
    fused = fuse_class_attention(noise(*found.shape, seed=1), found)
    for place in np.ndindex(found.shape):
        patch = noise(*found.shape, seed=1)[place].item()
        value = max(patch, 0) * found[place].item()
        assert fused[place].item() == pytest.approx(value, abs=1e-12)


def test_refinement_sums_what_each_patch_attends_to():
    given, cams = attentions(), noise(2, 3, 2, 3, seed=1)
    found = refine_by_attention(cams, given)
    for n, c, i in np.ndindex(2, 3, 6):
        value = 0.0
        for layer, j in np.ndindex(5, 6):
            weight = given[n, layer, 3 + i, 3 + j].item()
            value += weight * cams[n, c, j // 3, j % 3].item()
        assert found[n, c, i // 3, i % 3].item() == pytest.approx(value, abs=1e-12)


def test_wrong_shapes_get_a_sentence():
    given, ones = attentions(), torch.ones
    for call, sentence in (
        (lambda: relevance_rollout(given[0]), r'layers must be \(N, L, T, T\)'),
        (
            lambda: relevance_rollout(given, start=ones(3)),
            r'start must be \(9,\)',
        ),
        (lambda: patch_maps(ones(2, 5), (2, 3)), r'tokens must be \(N, 6 or'),
        (lambda: rescale_maps(ones(1, 2, 2), mode='sum'), "got 'sum'"),
        (lambda: class_attention_maps(given, (4, 5)), 'cannot fill the grid'),
        (
            lambda: class_attention_maps(given, (2, 3), num_layers=6),
            r'num_layers must be 1\.\.5, got 6',
        ),
        (lambda: refine_by_attention(ones(2, 3, 2, 3), given[0]), 'attentions'),
        (
            lambda: fuse_class_attention(
                torch.ones(1, 2, 2, 3), torch.ones(1, 2, 3, 2)
            ),
            'must be alike',
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
