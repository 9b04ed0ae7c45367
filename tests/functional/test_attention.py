import numpy as np
import pytest
import reference
import torch
from scipy import ndimage

from mmwsss.functional import (
    box_limits,
    filter_attentions,
    propagate_cams,
    sinkhorn_affinity,
)


@pytest.mark.parametrize('num_squarings', [0, 1, 2])
def test_sinkhorn_equals_the_loop(num_squarings):
    attention = torch.rand(2, 6, 6, dtype=torch.float64).softmax(-1)
    ours = sinkhorn_affinity(attention, num_iters=3, num_squarings=num_squarings)
    for matrix, result in zip(attention, ours, strict=True):
        expected = reference.sinkhorn(matrix.numpy(), 3, num_squarings)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-10)


def test_sinkhorn_is_symmetric_with_rows_near_one():
    affinity = sinkhorn_affinity(
        torch.rand(1, 20, 20).softmax(-1), num_iters=20, num_squarings=0
    )
    torch.testing.assert_close(affinity, affinity.transpose(1, 2))
    torch.testing.assert_close(affinity.sum(-1), torch.ones(1, 20), atol=1e-4, rtol=0)


def test_sinkhorn_of_an_empty_column_is_finite():
    attention = torch.rand(1, 4, 4)
    attention[:, :, 2] = 0
    assert sinkhorn_affinity(attention).isfinite().all()
    with pytest.raises(ValueError, match='attention must be'):
        sinkhorn_affinity(torch.rand(3, 4))


def test_class_mass_chooses_what_the_released_sum_chooses():
    # Rows of the patch part sum to less than 1: the rest goes to the class token.
    full = torch.rand(3, 5, 10, 10, dtype=torch.float64).softmax(-1)
    patches = full[:, :, 1:, 1:]
    affinity = torch.rand(3, 9, 9, dtype=torch.float64)
    released = (affinity[:, None] - patches).sum((2, 3))
    keeps = released <= released.mean(1, keepdim=True)
    expected = torch.stack(
        [p[k].sum(0) / (k.sum() + 1e-5) for p, k in zip(patches, keeps, strict=True)]
    )
    ours = filter_attentions(patches, affinity, mode='cls_mass')
    chosen = {tuple(k.tolist()) for k in keeps}
    # The text of the released code keeps the layers with much class mass.
    mass = full[:, :, 1:, 0].sum(2)
    assert torch.equal(keeps, mass <= mass.mean(1, keepdim=True))
    torch.testing.assert_close(ours, expected * affinity)
    assert len(chosen) >= 1


def test_abs_filter_and_plain_mean():
    patches = torch.rand(2, 4, 6, 6).softmax(-1)
    affinity = torch.rand(2, 6, 6)
    distance = (affinity[:, None] - patches).abs().sum((2, 3))
    keeps = (distance <= distance.mean(1, keepdim=True)).float()
    expected = (patches * keeps[:, :, None, None]).sum(1)
    expected = expected / (keeps.sum(1)[:, None, None] + 1e-5) * affinity
    torch.testing.assert_close(
        filter_attentions(patches, affinity, mode='abs_l1'), expected
    )
    mean = filter_attentions(patches, mode='none')
    torch.testing.assert_close(mean, patches.mean(1), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="got 'l2'"):
        filter_attentions(patches, mode='l2')


def boxes_by_scipy(cam, threshold):
    boxes = np.zeros(cam.shape)
    labels, _ = ndimage.label(cam > threshold * cam.max(), np.ones((3, 3)))
    for place in ndimage.find_objects(labels):
        boxes[place] = 1
    return boxes


@pytest.mark.parametrize('size', [(20, 20), (7, 31), (1, 9), (1, 1), (33, 21)])
def test_boxes_equal_scipy(size):
    generator = np.random.default_rng(0)
    cams = generator.random((40, 5, *size)) ** 3
    for threshold in (0.0, 0.3, 0.6):
        ours = box_limits(torch.from_numpy(cams), threshold=threshold).numpy()
        for cam, box in zip(
            cams.reshape(-1, *size), ours.reshape(-1, *size), strict=True
        ):
            np.testing.assert_array_equal(box, boxes_by_scipy(cam, threshold))


def snake(height, width):
    mask = np.zeros((height, width))
    mask[::2] = 1
    for number, row in enumerate(range(1, height, 2)):
        mask[row, -1 if number % 2 == 0 else 0] = 1
    return mask


def spiral(side):
    mask = np.zeros((side, side))
    y = x = turns = 0
    dy, dx = 0, 1
    mask[0, 0] = 1

    def free(a, b):
        return not (0 <= a < side and 0 <= b < side) or not mask[a, b]

    while turns < 3:
        inside = 0 <= y + dy < side and 0 <= x + dx < side
        if inside and free(y + dy, x + dx) and free(y + 2 * dy, x + 2 * dx):
            y, x, turns = y + dy, x + dx, 0
            mask[y, x] = 1
        else:
            dy, dx, turns = dx, -dy, turns + 1
    return mask


@pytest.mark.parametrize(
    'mask',
    [snake(21, 20), snake(64, 64), spiral(20), spiral(33), np.eye(64)],
    ids=['snake', 'long snake', 'spiral', 'large spiral', 'diagonal'],
)
def test_long_thin_components_stay_whole(mask):
    # A second component in a corner of its own shows where the first one ends.
    for turn in range(4):
        cam = np.rot90(mask, turn).copy()
        ours = box_limits(torch.from_numpy(cam)[None, None], threshold=0.5)
        np.testing.assert_array_equal(ours[0, 0].numpy(), boxes_by_scipy(cam, 0.5))


def test_empty_cam_has_no_box_and_threshold_is_checked():
    assert not box_limits(torch.zeros(1, 2, 4, 4), threshold=0.4).any()
    with pytest.raises(ValueError, match=r'got 1\.5'):
        box_limits(torch.rand(1, 1, 4, 4), threshold=1.5)


def test_propagation_zeroes_the_columns_outside_the_boxes():
    cams, affinity = torch.rand(2, 3, 2, 3), torch.rand(2, 6, 6)
    boxes = (torch.rand(2, 3, 2, 3) > 0.5).float()
    ours = propagate_cams(cams, affinity, boxes)
    for i in range(2):
        for c in range(3):
            limited = affinity[i] * boxes[i, c].flatten()[None, :]
            expected = limited @ cams[i, c].flatten()
            torch.testing.assert_close(ours[i, c].flatten(), expected)
    torch.testing.assert_close(
        propagate_cams(cams, affinity), propagate_cams(cams, affinity, torch.ones(1))
    )


@pytest.mark.parametrize('mode', ['cls_mass', 'abs_l1'])
@pytest.mark.parametrize('num_layers', [1, 3, 6, 7, 10])
def test_equal_layers_are_all_kept(mode, num_layers):
    # The rounded mean of equal numbers may lie below them.
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(50, 1, 10, 10, generator=generator).softmax(-1)[:, :, 1:, 1:]
    affinity = torch.rand(50, 9, 9, generator=generator)
    ours = filter_attentions(
        patches.expand(-1, num_layers, -1, -1), affinity, mode=mode
    )
    expected = patches[:, 0] * affinity
    torch.testing.assert_close(ours, expected, rtol=2e-5, atol=0)


def test_autocast_leaves_the_propagation_in_float32():
    attentions = torch.rand(1, 3, 49, 49).mul(8).softmax(-1)
    cams = torch.rand(1, 2, 7, 7)

    def refine():
        affinity = sinkhorn_affinity(filter_attentions(attentions))
        return propagate_cams(cams, affinity)

    expected = refine()
    with torch.autocast('cpu', torch.bfloat16):
        ours = refine()
    assert ours.dtype == torch.float32
    assert torch.equal(ours, expected)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r'\(1, 9, 9\)'):
        propagate_cams(torch.rand(1, 2, 2, 2), torch.rand(1, 9, 9))
    with pytest.raises(ValueError, match=r'attentions must be .*\(2, 4, 4\)'):
        filter_attentions(torch.rand(2, 4, 4))
    with pytest.raises(ValueError, match=r'cams must be .*\(3, 4\)'):
        box_limits(torch.rand(3, 4), threshold=0.4)
