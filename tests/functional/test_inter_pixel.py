import numpy as np
import pytest
import reference
import torch

from mmwsss.functional import affinity_labels, ir_label, irn_loss, path_index
from mmwsss.functional.inter_pixel import irn_loss_from_sums, irn_loss_sums


def batch(n=2, h=7, w=8, seed=0, classes=(0, 1, 2, 255)):
    generator = torch.Generator().manual_seed(seed)
    boundary = torch.rand(n, 1, h, w, generator=generator, dtype=torch.float64)
    displacement = torch.randn(n, 2, h, w, generator=generator, dtype=torch.float64)
    values = torch.tensor(classes)
    label = values[torch.randint(0, len(classes), (n, h, w), generator=generator)]
    return boundary, displacement, label


def enumerated(label, radius, strict=False):
    """Kinds of all pairs, by looking at every two pixels."""
    offsets = [direction for direction, _ in path_index(radius)]
    n, h, w = label.shape
    kinds = torch.zeros(n, len(offsets), h, w, dtype=torch.uint8)
    for first, second in reference.pairs_within(radius, h, w):
        plane = offsets.index(tuple(np.subtract(second, first)))
        y, x = first
        if strict and not (y <= h - radius and radius - 1 <= x <= w - radius):
            continue
        for i in range(n):
            a, b = int(label[(i, *first)]), int(label[(i, *second)])
            if 255 in (a, b):
                continue
            kinds[(i, plane, *first)] = 3 if a != b else (1 if a == 0 else 2)
    return kinds


@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('radius', [2, 4])
def test_affinity_labels_equal_the_enumeration(radius, strict):
    # Classes beyond 20, which the released code drops, are classes like others.
    _, _, label = batch(n=2, h=9, w=10, classes=(0, 3, 80, 254, 255))
    found = affinity_labels(label, radius=radius, strict_reference=strict)
    assert found.dtype == torch.uint8
    assert torch.equal(found, enumerated(label, radius, strict))
    assert set(found.unique().tolist()) == {0, 1, 2, 3}


def test_affinity_labels_beyond_the_map_and_without_neighbours():
    _, _, label = batch(n=1, h=2, w=3)
    assert torch.equal(affinity_labels(label, radius=9), enumerated(label, 9))
    assert affinity_labels(label, radius=1).shape == (1, 0, 2, 3)
    assert (affinity_labels(label, radius=5, strict_reference=True) == 0).all()


@pytest.mark.parametrize('radius', [2, 5])
def test_losses_equal_the_sum_over_pairs(radius):
    boundary, displacement, label = batch(classes=(0, 1, 90, 255))
    found = irn_loss(boundary, displacement, label, radius=radius)
    expected = reference.irn_losses(
        boundary.numpy(), displacement.numpy(), label.numpy(), radius
    )
    assert [float(v) for v in found] == pytest.approx(expected, rel=1e-10)


def test_published_sources_are_a_part_of_all_pairs():
    boundary, displacement, label = batch(h=12, w=13)
    every = irn_loss_sums(boundary, displacement, label, radius=4)
    some = irn_loss_sums(boundary, displacement, label, radius=4, strict_reference=True)
    kinds = affinity_labels(label, radius=4, strict_reference=True)
    assert some[:3].tolist() == [int((kinds == k).sum()) for k in (1, 2, 3)]
    assert (some[:3] < every[:3]).all()


def test_gradients_are_those_of_the_losses():
    boundary, displacement, label = batch(n=1, h=4, w=5)
    boundary = boundary.requires_grad_()
    displacement = displacement.requires_grad_()
    torch.autograd.gradcheck(
        lambda b, d: irn_loss(b, d, label, radius=3), (boundary, displacement)
    )


def test_a_centre_that_all_point_at_has_no_displacement_loss():
    label = torch.zeros(1, 9, 9, dtype=torch.long)
    label[0, 2:7, 2:7] = 4
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing='ij')
    # Objects point at their centre, D(i) + i is the same everywhere.
    displacement = torch.stack([4 - y, 4 - x])[None] * (label == 4)[:, None]
    boundary = torch.zeros(1, 1, 9, 9)
    assert float(irn_loss(boundary, displacement, label, radius=4)[1]) == 0
    turned = displacement.flip(1)
    assert float(irn_loss(boundary, turned, label, radius=4)[1]) > 0.1


def test_a_boundary_around_the_object_is_better_than_none():
    label = torch.zeros(1, 10, 10, dtype=torch.long)
    label[0, :, 5:] = 1
    still = torch.zeros(1, 2, 10, 10)
    losses = []
    for height in (0.0, 0.5, 0.99):
        boundary = torch.zeros(1, 1, 10, 10)
        boundary[..., 5] = height
        losses.append(float(irn_loss(boundary, still, label, radius=2)[0]))
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize('value', [0, 7, 255])
def test_one_kind_of_pairs_or_none_is_finite(value):
    boundary, displacement, label = batch()
    boundary = boundary.round().requires_grad_()  # log at its very ends
    losses = irn_loss(boundary, displacement, torch.full_like(label, value))
    sum(losses).backward()
    assert all(torch.isfinite(loss) for loss in losses)
    assert torch.isfinite(boundary.grad).all()
    if value == 255:
        assert [float(loss.detach()) for loss in losses] == [0, 0]


def test_sums_of_parts_are_those_of_the_whole():
    boundary, displacement, label = batch(n=3)
    label[0] = 255
    parts = sum(
        irn_loss_sums(boundary[i], displacement[i], label[i])
        for i in (slice(0, 1), slice(1, 3))
    )
    whole = irn_loss(boundary, displacement, label)
    torch.testing.assert_close(irn_loss_from_sums(parts), whole)


def test_half_precision_is_computed_in_float32():
    boundary, displacement, label = batch()
    halves = boundary.bfloat16(), displacement.bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = irn_loss(*halves, label)
    assert losses[0].dtype == torch.float32
    expected = irn_loss(*(h.double() for h in halves), label)
    torch.testing.assert_close(losses[0].double(), expected[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ('shapes', 'message'),
    [
        (((2, 1, 7, 8), (2, 2, 7, 8), (7, 8)), r'pseudo_label must be \(N, h, w\)'),
        (
            ((2, 1, 7, 9), (2, 2, 7, 8), (2, 7, 8)),
            r'boundary must be .* \(2, 1, 7, 9\)',
        ),
        (((2, 1, 7, 8), (2, 1, 7, 8), (2, 7, 8)), r'displacement must be \(2, 2, 7, 8'),
    ],
)
def test_wrong_shapes_are_named(shapes, message):
    boundary, displacement, label = (torch.zeros(s) for s in shapes)
    with pytest.raises(ValueError, match=message):
        irn_loss(boundary, displacement, label)


# -------------------------------------------------------------------------- IR labels
def test_ir_label_equals_the_rule():
    foreground, background = np.meshgrid([0, 1, 90, 255], [0, 1, 90, 255])
    expected = [
        [f if f > 0 else (0 if b == 0 else 255) for f, b in zip(fs, bs, strict=True)]
        for fs, bs in zip(foreground, background, strict=True)
    ]
    label = ir_label(
        torch.from_numpy(foreground)[None], torch.from_numpy(background)[None]
    )
    assert label.dtype == torch.int64
    assert label[0].tolist() == expected


def test_ir_label_takes_bytes_and_refuses_other_sizes():
    byte = torch.tensor([[[0, 1, 0]]], dtype=torch.uint8)
    weak = torch.tensor([[[0, 1, 1]]], dtype=torch.uint8)
    assert ir_label(byte, weak).tolist() == [[[0, 1, 255]]]
    with pytest.raises(ValueError, match=r'got \(1, 1, 3\) and \(1, 3\)'):
        ir_label(byte, weak[0])
