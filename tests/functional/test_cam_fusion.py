import numpy as np
import pytest
import reference
import torch

from mmwsss.functional import (
    fuse_layer_maps,
    fuse_window_maps,
    grad_cam_maps,
    layer_cam_maps,
    window_boxes,
)


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ----------------------------------------------------------------------------- layers
def test_layer_cam_equals_a_loop():
    activations, gradients = noise(2, 6, 3), noise(4, 2, 6, 3, seed=1)
    found = layer_cam_maps(activations, gradients)
    for m, n, p in np.ndindex(4, 2, 6):
        value = sum(
            max(gradients[m, n, p, d].item(), 0) * activations[n, p, d].item()
            for d in range(3)
        )
        assert found[m, n, p].item() == pytest.approx(max(value, 0), abs=1e-12)
    assert found.any()
    assert not torch.allclose(found, grad_cam_maps(activations, gradients))


def scaled(maps, per_layer, gamma):
    maps = np.maximum(maps, 0)
    if maps.max() <= 0:
        return maps
    if per_layer == 'minmax':
        if maps.max() == maps.min():
            return np.zeros_like(maps)
        return (maps - maps.min()) / (maps.max() - maps.min())
    maps = maps / maps.max()
    return np.tanh(gamma * maps) if per_layer == 'tanh' else maps


@pytest.mark.parametrize('per_layer', ['minmax', 'max', 'tanh'])
@pytest.mark.parametrize('reduce', ['mean', 'max', 'weighted'])
def test_fused_layers_equal_a_loop(per_layer, reduce):
    layers = [noise(2, 2, 4, 6), 100 * noise(2, 2, 2, 3, seed=1), noise(2, 2, 4, 6) + 5]
    layers[0][1, 0] = -1  # an empty map
    layers[2][0, 1] = 3  # a constant one
    weights = (1.0, 0.0, 3.0) if reduce == 'weighted' else None
    found = fuse_layer_maps(
        layers, (4, 6), per_layer=per_layer, reduce=reduce, weights=weights, gamma=1.5
    )
    for n, k in np.ndindex(2, 2):
        own = [scaled(layer[n, k].numpy(), per_layer, 1.5) for layer in layers]
        own = [reference.resize(o[None], (4, 6), align_corners=False)[0] for o in own]
        expected = {
            'mean': sum(own) / 3,
            'max': np.maximum(np.maximum(own[0], own[1]), own[2]),
            'weighted': (own[0] + 3 * own[2]) / 4,
        }[reduce]
        np.testing.assert_allclose(found[n, k], expected, atol=1e-4)
    assert found.min() >= 0
    assert found.max() <= 1


def test_empty_layers_stay_empty():
    layers = [torch.zeros(1, 2, 3, 3), -torch.ones(1, 2, 5, 5)]
    for per_layer in ('minmax', 'max', 'tanh'):
        assert not fuse_layer_maps(layers, (5, 5), per_layer=per_layer).any()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(layers=[]), 'one layer or more, got 0'),
        (dict(per_layer='std'), "per_layer must be one of .* got 'std'"),
        (dict(reduce='sum'), "reduce must be one of .* got 'sum'"),
        (dict(gamma=0.0), r'gamma must be positive, got 0\.0'),
        (dict(weights=[1.0]), "weights go with reduce='weighted'"),
        (dict(reduce='weighted'), "weights go with reduce='weighted'"),
        (dict(reduce='weighted', weights=[1.0, 2.0]), '1 numbers >= 0'),
        (dict(reduce='weighted', weights=[0.0]), '1 numbers >= 0'),
        (
            dict(layers=[torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2, 2)]),
            r'same images and classes, got \[\(1, 1, 2, 2\)',
        ),
    ],
)
def test_bad_layers_are_refused(changes, message):
    options = {'layers': [torch.ones(1, 1, 2, 2)], 'size': (2, 2), **changes}
    with pytest.raises(ValueError, match=message):
        fuse_layer_maps(**options)


# ---------------------------------------------------------------------------- windows
@pytest.mark.parametrize(
    ('size', 'window', 'stride'),
    [((48, 48), 16, 8), ((50, 33), 16, 8), ((7, 40), 16, 16), ((5, 5), 16, 3)],
)
def test_windows_cover_the_image_and_stay_in_it(size, window, stride):
    boxes = window_boxes(size, window=window, stride=stride)
    seen = np.zeros(size)
    for top, left, bottom, right in boxes:
        assert 0 <= top < bottom <= size[0]
        assert 0 <= left < right <= size[1]
        assert (bottom - top, right - left) == tuple(min(window, s) for s in size)
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    assert len(boxes) == len(set(boxes))
    if max(size) <= window:
        assert boxes == [(0, 0, *size)]


def test_windows_wider_apart_than_they_are_would_leave_gaps():
    with pytest.raises(ValueError, match=r'stride must be 1\.\.8 for a window of 8'):
        window_boxes((20, 20), window=8, stride=9)


def test_windows_are_weighed_by_what_they_show():
    # Every map has a peak of 1, whatever its window shows.
    maps = torch.ones(2, 1, 2, 2)
    boxes = [(0, 0, 4, 6), (0, 2, 4, 8)]
    probs = torch.tensor([[0.9], [0.01]])
    found = fuse_window_maps(maps, boxes, probs, (4, 9))[0, 0]
    torch.testing.assert_close(found[:, :2], torch.full((4, 2), 0.9))
    torch.testing.assert_close(found[:, 2:6], torch.full((4, 4), 0.455))
    torch.testing.assert_close(found[:, 6:8], torch.full((4, 2), 0.01))
    assert not found[:, 8].any()


def test_window_maps_equal_a_loop():
    maps, probs = noise(4, 2, 3, 3).abs(), noise(4, 2, seed=1).sigmoid()
    boxes = window_boxes((7, 9), window=6, stride=5)
    assert len(boxes) == 4
    found = fuse_window_maps(maps, boxes, probs, (7, 9))[0]
    total, seen = np.zeros((2, 7, 9)), np.zeros((7, 9))
    for number, (top, left, bottom, right) in enumerate(boxes):
        own = reference.resize(maps[number].numpy(), (6, 6), align_corners=False)
        for k in range(2):
            own[k] *= probs[number, k].item()
        total[:, top:bottom, left:right] += own
        seen[top:bottom, left:right] += 1
    np.testing.assert_allclose(found, total / seen)


def test_unequal_counts_are_refused():
    with pytest.raises(ValueError, match=r'got \(2, 1, 2, 2\), 1 and \(2, 1\)'):
        fuse_window_maps(
            torch.ones(2, 1, 2, 2), [(0, 0, 2, 2)], torch.ones(2, 1), (2, 2)
        )
