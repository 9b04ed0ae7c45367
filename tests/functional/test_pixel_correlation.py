import numpy as np
import pytest
import torch

from mmwsss.functional import correlate_maps, pixel_correlation


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def loop_correlation(features):
    """(P, P) of one image (D, h, w), cell by cell."""
    cells = features.numpy().reshape(len(features), -1).T
    count = len(cells)
    matrix = np.zeros((count, count))
    for i, j in np.ndindex(count, count):
        norms = np.linalg.norm(cells[i]) * np.linalg.norm(cells[j])
        matrix[i, j] = max(0, cells[i] @ cells[j] / norms) if norms else 0
    for j in range(count):
        matrix[:, j] /= matrix[:, j].sum() + 1e-5
    return matrix


def test_correlation_equals_a_loop():
    features = noise(2, 3, 2, 4)
    features[1, :, 0, 0] = 0
    found = pixel_correlation(features)
    assert found.shape == (2, 8, 8)
    for n in range(2):
        np.testing.assert_allclose(
            found[n], loop_correlation(features[n]), atol=1e-9, rtol=1e-4
        )
    # A cell without features takes nothing and is taken by none.
    assert not found[1, 0].any()
    assert not found[1, :, 0].any()
    columns = found.sum(1)
    assert (columns[0] > 0.9999).all()
    assert (columns <= 1).all()


@pytest.mark.parametrize('max_numbers', [1, 2 * 15 * 4, 2**25])
def test_maps_are_spread_along_it_in_any_blocks(max_numbers):
    maps, features = noise(2, 4, 3, 5), noise(2, 3, 3, 5, seed=1)
    found = correlate_maps(maps, features, max_numbers=max_numbers)
    assert found.shape == maps.shape
    for n in range(2):
        matrix = loop_correlation(features[n])
        expected = maps[n].numpy().reshape(4, -1) @ matrix
        np.testing.assert_allclose(found[n].flatten(1), expected, rtol=1e-4, atol=1e-9)


def test_blocks_have_the_same_gradients():
    gradients = []
    for max_numbers in (2**25, 50):
        maps, features = noise(2, 4, 3, 5), noise(2, 3, 3, 5, seed=1)
        maps.requires_grad_()
        features.requires_grad_()
        found = correlate_maps(maps, features, max_numbers=max_numbers)
        (found**3).sum().backward()
        gradients.append((maps.grad, features.grad))
        assert features.grad.any()
    for whole, blocks in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, blocks)


def test_two_regions_do_not_mix():
    features = torch.zeros(1, 2, 4, 4)
    features[:, 0, :, :2] = 3
    features[:, 1, :, 2:] = 0.2
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 0, 0] = 8.0
    found = correlate_maps(maps, features)[0, 0]
    torch.testing.assert_close(found[:, :2], torch.ones(4, 2), atol=1e-4, rtol=0)
    assert not found[:, 2:].any()


def test_memory_stays_within_its_bound():
    # 3,600 cells: the whole matrix would be 52 MB.
    maps, features = torch.rand(1, 1, 60, 60), torch.rand(1, 2, 60, 60)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with torch.no_grad(), Watch():
        correlate_maps(maps, features, max_numbers=100_000)
    assert 50_000 < max(sizes) <= 100_000


def test_autocast_leaves_it_alone():
    maps, features = torch.rand(1, 2, 4, 4), torch.rand(1, 3, 4, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = correlate_maps(maps, features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, correlate_maps(maps, features))


def test_bad_input_is_refused():
    maps = torch.rand(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r'features must be \(N, D, h, w\), got \(2,'):
        pixel_correlation(torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match=r'one grid, got \(4, 4\) and \(4, 5\)'):
        correlate_maps(maps, torch.rand(2, 3, 4, 5))
    with pytest.raises(ValueError, match='maps and features must be'):
        correlate_maps(maps, torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match='max_numbers must be at least 1, got 0'):
        correlate_maps(maps, maps, max_numbers=0)
