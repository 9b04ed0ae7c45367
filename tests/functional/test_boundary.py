import pytest
import reference
import reference_losses
import torch
from torch.autograd import gradcheck

from mmwsss.functional.boundary import (
    boundary_band,
    boundary_from_sums,
    boundary_loss,
    boundary_sums,
    pairwise_energy,
    pairwise_energy_from_sums,
    pairwise_energy_sums,
    symmetric_kl,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random_label(seed=0, n=2, h=9, w=11, ignored=0.15):
    """Blocks of labels, so that not everything is an edge."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (n, 2, 2), generator=generator)
    label = label.repeat_interleave(5, 1).repeat_interleave(6, 2)[:, :h, :w]
    drop = torch.rand(n, h, w, generator=generator) < ignored
    return label.masked_fill(drop, 255)


def random_streams(num_streams=2, n=2, c=4, h=9, w=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(n, c, h, w, generator=generator, dtype=dtype)
        for _ in range(num_streams)
    ]


def half_padded(n=2, h=9, w=11):
    valid = torch.ones(n, 1, h, w)
    valid[:, :, 7:] = 0
    valid[0, :, :, 8:] = 0
    return valid


# ---------------------------------------------------------------------------- band
@pytest.mark.parametrize('width', [0, 1, 2, 3])
@pytest.mark.parametrize('padded', [False, True])
def test_band_equals_loop(width, padded):
    valid = half_padded() if padded else None
    label = random_label()
    band = boundary_band(label, valid, width=width)
    expected = reference_losses.boundary_band(label, valid, width=width)
    assert band.dtype == torch.float32
    assert band.int().tolist() == expected
    assert 0 < band.mean() < 1


def test_band_of_a_straight_border():
    label = torch.zeros(1, 3, 10, dtype=torch.long)
    label[..., 5:] = 7
    expected = torch.zeros(1, 3, 10)
    expected[..., 2:8] = 1
    assert torch.equal(boundary_band(label, width=2), expected)


def test_ignored_neighbours_make_no_edge_but_may_lie_in_the_band():
    label = torch.tensor([[[0, 0, 255, 1, 1, 1, 2, 255, 255]]])
    band = boundary_band(label, width=1)
    assert band.tolist() == [[[0, 0, 0, 0, 1, 1, 1, 1, 0]]]
    # With a bridge the labels meet in the ignored strip.
    assert boundary_band(label, width=0, bridge=1).tolist() == [
        [[0, 1, 1, 0, 0, 1, 1, 0, 0]]
    ]


def test_bridge_reaches_over_twice_its_length():
    label = torch.full((1, 1, 10), 255)
    label[..., :3], label[..., 7:] = 0, 1
    assert not boundary_band(label, bridge=1).any()
    band = boundary_band(label, width=0, bridge=2)
    assert band.tolist() == [[[0, 0, 0, 0, 1, 1, 0, 0, 0, 0]]]


def test_padding_makes_no_edge():
    label = torch.zeros(1, 6, 6, dtype=torch.long)
    label[:, 4:] = 1
    valid = torch.ones(1, 1, 6, 6)
    valid[:, :, 4:] = 0
    assert not boundary_band(label, valid).any()
    assert boundary_band(label).any()


@pytest.mark.parametrize('dim', [1, 2])
def test_band_is_flip_equivariant(dim):
    label, valid = random_label(), half_padded()
    for bridge in (0, 1):
        flipped = boundary_band(label.flip(dim), valid.flip(dim + 1), bridge=bridge)
        band = boundary_band(label, valid, bridge=bridge)
        assert torch.equal(flipped.flip(dim), band)


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 1, 5), (1, 5, 1)])
def test_band_of_tiny_or_constant_labels(shape):
    assert not boundary_band(torch.full(shape, 3)).any()
    assert not boundary_band(torch.full(shape, 255), bridge=2).any()
    assert not boundary_band(torch.full(shape, 3).to(torch.uint8)).any()


# ------------------------------------------------------------------- boundary loss
@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_symmetric_kl_equals_loop_and_distributions(temperature):
    a, b = random_streams(h=2, w=3)
    found = symmetric_kl(a, b, temperature=temperature)
    for n, y, x, value in reference_losses.pixels(found.tolist()):
        expected = reference_losses.symmetric_kl(
            a[n, :, y, x].tolist(), b[n, :, y, x].tolist(), temperature
        )
        assert value == pytest.approx(expected, abs=1e-12)
    p, q = (
        torch.distributions.Categorical(logits=v.movedim(1, -1) / temperature)
        for v in (a, b)
    )
    divergence = torch.distributions.kl_divergence
    expected = temperature**2 * (divergence(p, q) + divergence(q, p)) / 2
    torch.testing.assert_close(found, expected)


def test_symmetric_kl_is_symmetric_and_zero_for_equal_predictions():
    a, b = random_streams()
    torch.testing.assert_close(symmetric_kl(a, b), symmetric_kl(b, a))
    assert symmetric_kl(a, b).min() > 0
    torch.testing.assert_close(
        symmetric_kl(a, a + 7), torch.zeros(2, 9, 11, dtype=torch.float64)
    )


@pytest.mark.parametrize('num_streams', [1, 2, 3])
@pytest.mark.parametrize('weighted', [False, True])
def test_boundary_loss_equals_loop(num_streams, weighted):
    streams, label = random_streams(num_streams), random_label()
    weight = None
    if weighted:
        generator = torch.Generator().manual_seed(5)
        weight = torch.rand(2, 9, 11, generator=generator, dtype=torch.float64)
    band = boundary_band(label, half_padded(), width=1)
    loss = boundary_loss(
        streams,
        label,
        band,
        weight=weight,
        temperature=1.5,
        consistency_weight=0.7,
        label_weight=0.3,
    )
    expected = reference_losses.boundary(
        streams, label, band, temperature=1.5, kl=0.7, ce=0.3, weight=weight
    )
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ('consistency_weight', 'label_weight'), [(1.0, 0.0), (0.0, 1.0), (0.5, 1.0)]
)
def test_boundary_loss_reaches_every_stream(consistency_weight, label_weight):
    # A published variant computes these terms without gradient.
    label = random_label(ignored=0.0)
    band = boundary_band(label)
    streams = [stream.requires_grad_() for stream in random_streams(3)]
    boundary_loss(
        streams,
        label,
        band,
        consistency_weight=consistency_weight,
        label_weight=label_weight,
    ).backward()
    for stream in streams:
        inside = stream.grad.abs().sum(1)
        assert (inside[band > 0] > 0).all()
        assert not inside[band == 0].any()


def test_the_gradient_of_the_consistency_draws_the_streams_together():
    label = random_label(ignored=0.0)
    band = boundary_band(label)
    streams = [stream.requires_grad_() for stream in random_streams()]

    def distance(streams):
        return boundary_loss(streams, label, band, label_weight=0.0)

    before = distance(streams)
    before.backward()
    moved = [stream.detach() - stream.grad for stream in streams]
    assert distance(moved) < before


@pytest.mark.parametrize(
    'name', ['constant', 'all ignored', 'all padding', 'one pixel', 'checkerboard']
)
@pytest.mark.parametrize('scale', [1.0, 1e4])
def test_boundary_loss_is_finite_and_silent_without_a_band(name, scale):
    shape = (1, 1, 1) if name == 'one pixel' else (1, 6, 6)
    label = torch.full(shape, 255 if name == 'all ignored' else 1)
    valid = torch.ones(1, 1, *shape[1:])
    if name == 'all padding':
        label[..., :3] = 2
        valid.zero_()
    if name == 'checkerboard':
        label = torch.arange(36).view(1, 6, 6) % 2
    band = boundary_band(label, valid)
    streams = random_streams(n=1, h=shape[1], w=shape[2], dtype=torch.float32)
    streams = [(scale * stream).requires_grad_() for stream in streams]
    loss = boundary_loss(streams, label, band)
    loss.backward()
    assert loss.isfinite()
    for stream in streams:
        assert stream.grad.isfinite().all()
        if name != 'checkerboard':
            assert not stream.grad.any()
    assert (loss > 0) == (name == 'checkerboard')


def test_a_weight_of_zero_is_an_ignored_label_and_its_scale_does_not_count():
    streams, label = random_streams(), random_label()
    band = boundary_band(label)
    drop = torch.arange(11).expand(2, 9, 11) % 3 == 0
    weight = (~drop).double()
    expected = boundary_loss(streams, label.masked_fill(drop, 255), band)
    torch.testing.assert_close(
        boundary_loss(streams, label, band, weight=weight), expected
    )
    torch.testing.assert_close(
        boundary_loss(streams, label, band, weight=9 * weight), expected
    )
    nowhere = torch.full_like(weight, float('nan')).where(
        (band == 0) | (label == 255), weight
    )
    torch.testing.assert_close(
        boundary_loss(streams, label, band, weight=nowhere), expected
    )


def test_sums_add_up_over_processes():
    streams, label = random_streams(n=3), random_label(n=3)
    image = torch.rand(3, 3, 9, 11)
    band = boundary_band(label)
    parts = [slice(0, 1), slice(1, 3)]
    sums = sum(boundary_sums([s[p] for s in streams], label[p], band[p]) for p in parts)
    torch.testing.assert_close(
        boundary_from_sums(sums), boundary_loss(streams, label, band)
    )
    sums = sum(
        pairwise_energy_sums(streams[0][p], image[p], gate=band[p]) for p in parts
    )
    torch.testing.assert_close(
        pairwise_energy_from_sums(sums),
        pairwise_energy(streams[0], image, gate=band),
    )


def test_boundary_loss_gradcheck():
    label = torch.tensor([[[0, 0, 1], [255, 2, 1]]])
    band = boundary_band(label, width=1)
    weight = torch.tensor([[[0.3, 1.0, 0.2], [1.0, 0.0, 0.7]]])
    streams = [s.requires_grad_() for s in random_streams(n=1, h=2, w=3)]
    assert gradcheck(
        lambda a, b: boundary_loss((a, b), label, band, weight=weight), streams
    )


# ------------------------------------------------------------------ pairwise energy
@pytest.mark.parametrize('dilations', [(1,), (2,), (1, 2, 4)])
@pytest.mark.parametrize('gated', [False, True])
def test_pairwise_energy_equals_loop(dilations, gated):
    logits = random_streams(1, h=4, w=5)[0]
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    gate = None
    if gated:
        gate = torch.rand(2, 4, 5, generator=generator, dtype=torch.float64)
        gate[0, :2] = 0
    expected = reference_losses.energy(
        logits,
        image,
        lambda *at: reference.par_kernel(*at, dilations, w1=0.5, w2=0.0),
        reference.neighbours(dilations),
        gate=gate,
    )
    found = pairwise_energy(logits, image, gate=gate, dilations=dilations, w1=0.5)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def sure(label, num_classes=2):
    return 60.0 * torch.nn.functional.one_hot(label, num_classes).movedim(-1, 1)


def test_pairwise_energy_prefers_borders_on_colour_edges():
    label = torch.zeros(1, 12, 12, dtype=torch.long)
    label[..., 6:] = 1
    image = label[:, None].expand(1, 3, 12, 12) * 0.8 + 0.02 * torch.rand(1, 3, 12, 12)
    aligned = pairwise_energy(sure(label), image)
    shifted = pairwise_energy(sure(label.roll(3, -1)), image)
    noise = pairwise_energy(sure(torch.arange(144).view(1, 12, 12) % 2), image)
    assert 0 <= aligned < 0.5 * shifted < shifted < noise <= 1


def test_pairwise_energy_of_one_sure_class_is_zero_and_of_halves_is_half():
    image = torch.rand(1, 3, 7, 8)
    constant = torch.zeros(1, 7, 8, dtype=torch.long)
    assert pairwise_energy(sure(constant), image).item() == pytest.approx(0, abs=1e-6)
    # 1 - p.p = 1/2 for two equal classes; on a flat image each neighbour weighs 1/8,
    # and those outside the image do not count.
    flat = torch.full_like(image, 0.3)
    unsure = pairwise_energy(torch.zeros(1, 2, 7, 8), flat, dilations=(1,))
    pairs = 2 * 7 * 7 + 2 * 6 * 8 + 4 * 6 * 7
    assert unsure.item() == pytest.approx(0.5 * pairs / 8 / (7 * 8))


def test_pixels_outside_the_gate_have_no_say_and_no_gradient():
    gate = half_padded()[:, 0]
    logits, image = random_streams(1)[0], torch.rand(2, 3, 9, 11)
    changed = torch.where(gate[:, None] > 0, logits, -5 * logits.flip(1))
    changed.requires_grad_()
    loss = pairwise_energy(changed, image, gate=gate)
    torch.testing.assert_close(loss, pairwise_energy(logits, image, gate=gate))
    loss.backward()
    inside = changed.grad.abs().sum(1)
    assert (inside[gate > 0] > 0).all()
    assert not inside[gate == 0].any()


def test_pairwise_energy_is_hflip_invariant():
    logits, image = random_streams(1)[0], torch.rand(2, 3, 9, 11, dtype=torch.float64)
    gate = half_padded()[:, 0]
    torch.testing.assert_close(
        pairwise_energy(logits.flip(-1), image.flip(-1), gate=gate.flip(-1)),
        pairwise_energy(logits, image, gate=gate),
    )


@pytest.mark.parametrize('shape', [(1, 1), (1, 6), (20, 3)])
@pytest.mark.parametrize('flat', [False, True])
@pytest.mark.parametrize('open_gate', [0.0, 1.0])
def test_pairwise_energy_is_finite(shape, flat, open_gate):
    image = torch.full((1, 3, *shape), 0.5) if flat else torch.rand(1, 3, *shape)
    logits = (1e4 * torch.randn(1, 5, *shape)).requires_grad_()
    gate = torch.full((1, *shape), open_gate)
    loss = pairwise_energy(logits, image, gate=gate, dilations=(1, 2, 24))
    loss.backward()
    assert 0 <= loss <= 1
    assert logits.grad.isfinite().all()
    if open_gate == 0:
        assert loss == 0


def test_pairwise_energy_gradcheck():
    logits = random_streams(1, n=1, c=3, h=2, w=3)[0].requires_grad_()
    image = torch.rand(1, 3, 2, 3, dtype=torch.float64)
    assert gradcheck(lambda x: pairwise_energy(x, image, dilations=(1, 2)), logits)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_inputs_and_autocast_are_summed_in_float32(dtype):
    label = random_label()
    band = boundary_band(label)
    streams = [s.to(dtype) for s in random_streams(dtype=torch.float32)]
    image = torch.rand(2, 3, 9, 11)
    exact = [s.float() for s in streams]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = [
            boundary_loss(streams, label, band),
            pairwise_energy(streams[0], image.to(dtype).float()),
        ]
    expected = [
        boundary_loss(exact, label, band),
        pairwise_energy(exact[0], image.to(dtype).float()),
    ]
    assert all(value.dtype == torch.float32 for value in found)
    torch.testing.assert_close(found, expected)
    assert pairwise_energy(exact[0], image.to(dtype)).dtype == torch.float32


# -------------------------------------------------------------------------- errors
def test_errors_name_what_was_given():
    (a, b), label = random_streams(), random_label()
    band = boundary_band(label)
    with pytest.raises(ValueError, match=r'pseudo_label must .* got \(9, 11\)'):
        boundary_band(label[0])
    with pytest.raises(ValueError, match=r'valid must .* got \(2, 9, 11\)'):
        boundary_band(label, torch.ones(2, 9, 11))
    with pytest.raises(ValueError, match='width=-1'):
        boundary_band(label, width=-1)
    with pytest.raises(ValueError, match=r'one shape, got .* \(1, 4, 9, 11\)'):
        symmetric_kl(a, b[:1])
    with pytest.raises(ValueError, match='temperature must be positive, got 0'):
        symmetric_kl(a, b, temperature=0)
    with pytest.raises(ValueError, match='one stream or more, got 0'):
        boundary_loss((), label, band)
    with pytest.raises(ValueError, match=r'band must .* got \(2, 9, 10\)'):
        boundary_loss((a, b), label, band[..., 1:])
    with pytest.raises(ValueError, match=r'weight must .* got \(1, 9, 11\)'):
        boundary_loss((a, b), label, band, weight=band[:1])
    image = torch.rand(2, 3, 9, 11)
    with pytest.raises(ValueError, match=r'seg_logits must .* got \(4, 9, 11\)'):
        pairwise_energy(a[0], image)
    with pytest.raises(ValueError, match=r'image must .* got \(2, 3, 9, 10\)'):
        pairwise_energy(a, image[..., 1:])
    with pytest.raises(ValueError, match=r'gate must .* got \(2, 1, 9, 11\)'):
        pairwise_energy(a, image, gate=band[:, None])
    for dilations in ((), (0, 1), (2, 2)):
        with pytest.raises(ValueError, match='dilations must be positive and distinct'):
            pairwise_energy(a, image, dilations=dilations)
    with pytest.raises(ValueError, match='w1 must be positive, got 0'):
        pairwise_energy(a, image, w1=0)
