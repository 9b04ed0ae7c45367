import math
from itertools import product

import numpy as np
import pytest
import reference_reliability as reference
import torch
from scipy.stats import rankdata
from torch.utils._python_dispatch import TorchDispatchMode

from mmwsss.functional.reliability import (
    blend_reliability,
    class_gates,
    gate_labels,
    reliability_bins,
    reliability_weight,
    sample_class_maps,
    stream_confidence,
    structural_consistency,
    temporal_agreement,
    update_class_means,
    update_class_means_from_sums,
    update_class_means_sums,
)

MODES = ['weighted', 'geometric', 'rank']
LOW_PRECISION = [torch.float16, torch.bfloat16]


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def random_image_label(seed=0, n=3, k=4):
    image_label = (torch.rand(n, k, generator=generator_of(seed)) < 0.5).long()
    image_label[0] = 0  # a photo with no object
    image_label[1] = 1
    image_label[2, 0] = 0
    return image_label


def random_maps(seed=0, n=3, c=5, h=4, w=6):
    return torch.rand(n, c, h, w, generator=generator_of(seed), dtype=torch.float64)


def random_logits(seed=0, streams=2, shape=(3, 5, 4, 6)):
    generator = generator_of(seed)
    return tuple(
        3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        for _ in range(streams)
    )


def random_structure(seed=0, n=2, d=3, h=4, w=5, c=3):
    generator = generator_of(seed)
    features = torch.randn(n, d, h, w, generator=generator, dtype=torch.float64)
    label = torch.randint(0, c, (n, h, w), generator=generator)
    label[0, :2, 1] = 255
    return features, label


def random_labels(seed=0, shape=(2, 7, 9), c=4, ignored=0.2):
    generator = generator_of(seed)
    label = torch.randint(0, c, shape, generator=generator)
    return label.masked_fill(torch.rand(shape, generator=generator) < ignored, 255)


def absent_mask(image_label):
    background = torch.zeros(len(image_label), 1, dtype=torch.bool)
    return torch.cat([background, image_label <= 0], dim=1)[:, :, None, None]


def every_signal(image_label, seed=0):
    """The three signals of random input, from the functions themselves."""
    features, label = random_structure(seed, n=3, d=4, h=4, w=6, c=5)
    return (
        temporal_agreement(3 * random_maps(seed), image_label),
        stream_confidence(random_logits(seed), image_label),
        structural_consistency(features, label, 5),
    )


# --------------------------------------------------------------- temporal agreement
@pytest.mark.parametrize('prior', [0.5, 2.0])
def test_temporal_agreement_equals_loop(prior):
    histogram, image_label = 5 * random_maps(), random_image_label()
    share = temporal_agreement(histogram, image_label, prior=prior)
    torch.testing.assert_close(
        share, reference.temporal(histogram, image_label, prior), rtol=0, atol=1e-12
    )


def test_temporal_agreement_by_hand():
    # Four visits: three times class 1, once background; class 2 was never seen.
    histogram = torch.tensor([1.0, 3.0, 0.0]).view(1, 3, 1, 1)
    share = temporal_agreement(histogram, torch.ones(1, 2)).flatten()
    torch.testing.assert_close(share, torch.tensor([1.5, 3.5, 0.5]) / 5)


def test_empty_history_is_neutral():
    image_label = random_image_label()
    share = temporal_agreement(torch.zeros(3, 5, 2, 2), image_label)
    absent = absent_mask(image_label).expand_as(share)
    assert (share[absent] == 0).all()
    assert (share[~absent] == 0.5).all()


def test_temporal_agreement_does_not_read_counts_of_absent_classes():
    histogram, image_label = random_maps(), random_image_label()
    share = temporal_agreement(histogram, image_label)
    strange = histogram.masked_fill(absent_mask(image_label), float('nan'))
    assert torch.equal(temporal_agreement(strange, image_label), share)


def test_temporal_agreement_grows_with_its_own_count_only():
    histogram, image_label = random_maps(), torch.ones(3, 4)
    share = temporal_agreement(histogram, image_label)
    more = histogram.clone()
    more[:, 2] += 1
    grown = temporal_agreement(more, image_label) - share
    assert (grown[:, 2] > 0).all()
    assert (grown[:, [0, 1, 3, 4]] < 0).all()


# ---------------------------------------------------------------- stream confidence
@pytest.mark.parametrize('streams', [1, 2, 3])
def test_stream_confidence_equals_loop(streams):
    logits, image_label = random_logits(streams=streams), random_image_label()
    torch.testing.assert_close(
        stream_confidence(logits, image_label),
        reference.confidence(logits, image_label),
        rtol=0,
        atol=1e-12,
    )


def test_stream_confidence_at_its_limits():
    image_label = torch.ones(1, 2)
    flat = torch.zeros(1, 3, 1, 1)
    sure = torch.tensor([0.0, 200.0, 0.0]).view(1, 3, 1, 1)
    other = sure.flip(1).roll(1, 1)
    # A flat stream knows nothing; with two equal ones half of u is left.
    assert stream_confidence((flat,), image_label).abs().max() < 1e-6
    both_flat = stream_confidence((flat, flat), image_label)
    torch.testing.assert_close(both_flat, torch.full_like(both_flat, 0.5))
    # Two sure streams that agree are certain, two that differ keep half.
    agreed = stream_confidence((sure, sure), image_label)
    assert agreed.flatten().tolist() == [0, 1, 0]
    differ = stream_confidence((sure, other), image_label)
    assert sorted(differ.flatten().tolist()) == [0, 0.5, 0.5]


def test_stream_confidence_stays_in_the_classes_of_the_image():
    logits, image_label = random_logits(), random_image_label()
    confidence = stream_confidence(logits, image_label)
    assert (confidence[absent_mask(image_label).expand_as(confidence)] == 0).all()
    assert (confidence[0, 0] == 1).all()  # no object: background is certain
    # What the network thinks of absent classes does not matter.
    moved = [one + 50 * absent_mask(image_label) for one in logits]
    torch.testing.assert_close(stream_confidence(moved, image_label), confidence)


def test_stream_confidence_of_the_most_probable_class_is_the_largest():
    logits, image_label = random_logits(), random_image_label()
    mean = sum(
        one.masked_fill(absent_mask(image_label), -math.inf).softmax(1)
        for one in logits
    )
    confidence = stream_confidence(logits, image_label)
    assert torch.equal(confidence.argmax(1), mean.argmax(1))
    assert (confidence.amax(1) > 0).all()


def test_stream_confidence_does_not_depend_on_the_order_of_streams():
    logits, image_label = random_logits(streams=3), random_image_label()
    torch.testing.assert_close(
        stream_confidence(logits[::-1], image_label),
        stream_confidence(logits, image_label),
    )


def test_stream_confidence_grows_with_the_margin():
    image_label = torch.ones(1, 2)
    margins = torch.linspace(0, 8, 30)
    logits = torch.zeros(1, 3, 1, 30)
    logits[:, 1, 0] = margins
    value = stream_confidence((logits, logits), image_label)[0, 1, 0]
    assert (value.diff() > 0).all()


# ----------------------------------------------------------- structural consistency
@pytest.mark.parametrize('radius', [1, 2, 9])
@pytest.mark.parametrize('power', [1, 4])
@pytest.mark.parametrize('padded', [False, True])
def test_structural_consistency_equals_loop(radius, power, padded):
    features, label = random_structure()
    valid = None
    if padded:
        valid = torch.ones(2, 1, 4, 5)
        valid[0, :, :, 3:] = 0
        valid[1, :, 2:] = 0
    consistency = structural_consistency(
        features, label, 3, radius=radius, power=power, valid=valid
    )
    expected = reference.structure(
        features, label, 3, radius=radius, power=power, valid=valid
    )
    torch.testing.assert_close(consistency, expected, rtol=0, atol=1e-12)


def test_structural_consistency_by_hand():
    # Equal features everywhere: the share of each label among the neighbours.
    label = torch.tensor([[[0, 1, 1], [0, 9, 1], [0, 255, 2]]])
    consistency = structural_consistency(torch.ones(1, 2, 3, 3), label, 3, radius=1)
    torch.testing.assert_close(
        consistency[0, :, 1, 1], torch.tensor([3 / 7, 3 / 7, 1 / 7])
    )
    # Unlike and opposite neighbours do not vote: only the right one remains.
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]]).T.view(1, 2, 1, 3)
    consistency = structural_consistency(
        features, torch.tensor([[[1, 0, 2]]]), 3, radius=1
    )
    assert consistency[0, :, 0, 1].tolist() == [0, 0, 1]
    assert consistency[0, :, 0, 0].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    'case', ['one cell', 'all ignored', 'all padding', 'zero features', 'opposite']
)
def test_structural_consistency_without_a_like_neighbour_is_neutral(case):
    features, label = random_structure()
    valid = None
    if case == 'one cell':
        features, label = features[..., :1, :1], label[:, :1, :1]
    if case == 'all ignored':
        label = torch.full_like(label, 255)
    if case == 'all padding':
        valid = torch.zeros(2, 1, 4, 5)
    if case == 'zero features':
        features = torch.zeros_like(features)
    if case == 'opposite':
        # Opposite neighbours have a negative cosine, which counts as none.
        features = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2)
        label = torch.tensor([[[0, 1]]])
    consistency = structural_consistency(features, label, 3, valid=valid)
    assert consistency.shape == (*label.shape[:1], 3, *label.shape[1:])
    assert (consistency == 0.5).all()


def test_structural_consistency_does_not_ask_the_cell_itself():
    features, label = random_structure()
    label[1] = 0
    label[1, 2, 2] = 1
    assert structural_consistency(features, label, 3)[1, 1, 2, 2] == 0


def test_structural_consistency_grows_with_a_neighbour_of_the_class():
    features, label = random_structure()
    features = features.abs()
    label[0, 1, 2] = 1
    before = structural_consistency(features, label, 3)
    label[0, 1, 2] = 2
    after = structural_consistency(features, label, 3)
    near = after[0, :, 0:4, 0:5] - before[0, :, 0:4, 0:5]
    away = torch.ones(4, 5, dtype=torch.bool)
    away[1, 2] = False
    assert (near[2][away] > 0).all()
    assert (near[1][away] < 0).all()
    assert (near[:, 1, 2] == 0).all()


# ---------------------------------------------------------------------------- blend
@pytest.mark.parametrize('mode', ['weighted', 'geometric'])
@pytest.mark.parametrize('with_history', [True, False])
def test_blend_equals_loop(mode, with_history):
    image_label = random_image_label()
    signals = [random_maps(seed) for seed in range(3)]
    signals[1][:, :, 0, 0] = 0
    weights = (0.2, 0.5, 0.9)
    blended = blend_reliability(
        signals[0] if with_history else None,
        *signals[1:],
        image_label,
        weights=weights,
        mode=mode,
    )
    first = 0 if with_history else 1
    expected = reference.blend(signals[first:], weights[first:], image_label, mode)
    torch.testing.assert_close(blended, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('with_history', [True, False])
def test_rank_blend_equals_scipy(with_history):
    image_label = random_image_label()
    # Few levels, so that most values are tied.
    signals = [(random_maps(seed) * 6).round() / 6 for seed in range(3)]
    valid = (random_maps(7)[:, :1] < 0.7).double()
    weights = (0.3, 0.35, 0.35)
    counted = ~absent_mask(image_label).expand(3, 5, 4, 6) & (valid > 0)
    ranks = []
    for signal in signals:
        rank = torch.zeros_like(signal)
        mean_rank = rankdata(signal[counted].numpy(), method='average')
        rank[counted] = torch.from_numpy((mean_rank - 0.5) / len(mean_rank))
        ranks.append(rank)
    first = 0 if with_history else 1
    expected = reference.blend(ranks[first:], weights[first:], image_label, 'weighted')
    blended = blend_reliability(
        signals[0] if with_history else None,
        *signals[1:],
        image_label,
        weights=weights,
        mode='rank',
        valid=valid,
    )
    torch.testing.assert_close(blended[counted], expected[counted], rtol=0, atol=1e-12)


def test_rank_blend_does_not_care_for_the_scale_of_a_signal():
    image_label = random_image_label()
    signals = [random_maps(seed) for seed in range(3)]
    squeezed = [signals[0] ** 3, 0.9 + 0.1 * signals[1], signals[2].sqrt()]
    torch.testing.assert_close(
        blend_reliability(*squeezed, image_label, mode='rank'),
        blend_reliability(*signals, image_label, mode='rank'),
    )


def test_rank_blend_of_constant_signals_or_without_valid_cells_is_neutral():
    image_label = torch.ones(3, 4)
    flat = torch.full((3, 5, 4, 6), 0.9)
    assert (blend_reliability(flat, flat, flat, image_label, mode='rank') == 0.5).all()
    blended = blend_reliability(
        *[random_maps(seed) for seed in range(3)],
        image_label,
        mode='rank',
        valid=torch.zeros(3, 1, 4, 6),
    )
    torch.testing.assert_close(blended, torch.full_like(blended, 0.5))


def test_rank_blend_is_not_moved_by_padding():
    image_label = random_image_label()
    signals = [random_maps(seed) for seed in range(3)]
    valid = torch.ones(3, 1, 4, 6)
    valid[..., 4:] = 0
    first = blend_reliability(*signals, image_label, mode='rank', valid=valid)
    for signal in signals:
        signal[..., 4:] = 0.99
    second = blend_reliability(*signals, image_label, mode='rank', valid=valid)
    assert torch.equal(first[..., :4], second[..., :4])


@pytest.mark.parametrize('mode', MODES)
def test_blend_is_in_range_restricted_and_monotone(mode):
    image_label = random_image_label()
    signals = every_signal(image_label)
    blended = blend_reliability(*signals, image_label, mode=mode)
    assert blended.min() >= 0
    assert blended.max() <= 1
    assert (blended[absent_mask(image_label).expand_as(blended)] == 0).all()
    cell = (1, 3, 2, 4)
    for position in range(3):
        raised = [signal.clone() for signal in signals]
        raised[position][cell] = 1.0
        higher = blend_reliability(*raised, image_label, mode=mode)
        assert higher[cell] > blended[cell]


def test_blend_does_not_exceed_one_by_rounding():
    one = torch.ones(1, 5, 2, 2)
    weights = torch.rand(200, 3, generator=generator_of(0)).tolist()
    for mode, three in product(MODES[:2], weights):
        blended = blend_reliability(
            one, one, one, torch.ones(1, 4), weights=three, mode=mode
        )
        assert blended.max() <= 1
        assert blended.min() > 0.9999


def test_geometric_blend_lets_any_used_signal_veto():
    image_label = torch.ones(1, 1)
    one, zero = torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    for signals in ((zero, one, one), (one, zero, one), (one, one, zero)):
        assert blend_reliability(*signals, image_label, mode='geometric').max() == 0
    unused = blend_reliability(
        zero, one, one, image_label, weights=(0, 1, 1), mode='geometric'
    )
    assert (unused == 1).all()


def test_blend_with_an_empty_history_orders_like_the_other_two():
    image_label = torch.ones(3, 4)
    _, confidence, structure = every_signal(image_label)
    empty = temporal_agreement(torch.zeros(3, 5, 4, 6), image_label)
    blended = blend_reliability(empty, confidence, structure, image_label)
    without = blend_reliability(None, confidence, structure, image_label)
    torch.testing.assert_close(blended, 0.7 * without.to(blended) + 0.3 * 0.5)


# ---------------------------------------------------------------- from map to pixel
@pytest.mark.parametrize('size', [(7, 9), (4, 6), (33, 20), (3, 2), (1, 1)])
@pytest.mark.parametrize('grid', [(4, 6), (1, 1), (5, 1)])
def test_sample_class_maps_equals_interpolation(size, grid):
    maps = random_maps(n=2, c=4, h=grid[0], w=grid[1])
    label = random_labels(shape=(2, *size))
    torch.testing.assert_close(
        sample_class_maps(maps, label),
        reference.own_values(maps, label),
        rtol=0,
        atol=1e-12,
    )


def test_sample_class_maps_in_single_precision_and_uint8_labels():
    maps = random_maps(n=2, c=4, h=20, w=20)
    label = random_labels(shape=(2, 320, 320))
    values = sample_class_maps(maps.float(), label.to(torch.uint8))
    assert values.dtype == torch.float32
    torch.testing.assert_close(
        values.double(), sample_class_maps(maps, label), rtol=0, atol=1e-5
    )


def test_sample_class_maps_never_leaves_the_range_of_the_maps():
    label = random_labels(shape=(2, 61, 53), ignored=0)
    assert (sample_class_maps(torch.ones(2, 4, 5, 7), label) == 1).all()
    label[0, 0, :3] = torch.tensor([255, -1, 4])
    assert sample_class_maps(torch.ones(2, 4, 5, 7), label)[0, 0, :4].tolist() == [
        0,
        0,
        0,
        1,
    ]


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor made inside."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_sample_class_maps_makes_no_enlarged_maps():
    maps, label = random_maps(n=2, c=21, h=5, w=5), torch.zeros(2, 50, 50).long()
    with LargestTensor() as seen:
        sample_class_maps(maps, label)
    assert 0 < seen.elements <= label.numel()


# ---------------------------------------------------------------------------- gates
def test_class_means_equal_loop():
    means = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    label = random_labels()  # class 4 does not occur
    values = random_maps(n=1, c=2, h=7, w=9)[0]
    updated = update_class_means(means, values, label, momentum=0.9)
    expected = reference.class_means(means, values, label, 0.9)
    torch.testing.assert_close(updated, expected, rtol=0, atol=1e-12)
    assert updated[4] == 0.5
    assert means[0] == 0.1  # the argument is left alone


def test_class_means_without_any_label_stay_and_ignore_the_values():
    means = torch.rand(4)
    label = torch.full((2, 3, 3), 255)
    values = torch.full((2, 3, 3), float('nan'))
    assert torch.equal(update_class_means(means, values, label, momentum=0), means)
    label[0, 0, 0], values[0, 0, 0] = 2, 0.75
    updated = update_class_means(means, values, label, momentum=0)
    assert updated[2] == 0.75
    zero_ignored = update_class_means(
        means, values, label * 0, momentum=0, ignore_index=0
    )
    assert torch.equal(zero_ignored, means)


def test_class_means_of_parts_add_up_to_those_of_the_whole():
    means, label = torch.rand(4), random_labels()
    values = random_maps(n=1, c=2, h=7, w=9)[0].float()
    sums = sum(
        update_class_means_sums(values[part], label[part], num_classes=4)
        for part in (slice(0, 1), slice(1, 2))
    )
    assert sums.shape == (8,)
    torch.testing.assert_close(
        update_class_means_from_sums(means, sums, momentum=0.99),
        update_class_means(means, values, label, momentum=0.99),
    )


def test_class_means_keep_small_values_of_a_large_batch():
    # A float32 running sum of this many 0.1 would be off by more than 1e-4.
    label = torch.zeros(1, 2000, 2000, dtype=torch.long)
    values = torch.full(label.shape, 0.1)
    updated = update_class_means(torch.zeros(1), values, label, momentum=0)
    assert updated.item() == pytest.approx(0.1, abs=1e-7)


def test_class_gates_by_hand():
    means = torch.tensor([0.8, 0.4, 0.0, 0.2])
    gates = class_gates(means, base=0.8, low=0.45, high=0.7)
    torch.testing.assert_close(gates, torch.tensor([0.7, 0.6, 0.45, 0.5]))
    torch.testing.assert_close(
        class_gates(means, base=0.9), torch.tensor([0.9, 0.675, 0.45, 0.5625])
    )
    # No class has been seen: all are treated alike.
    torch.testing.assert_close(
        class_gates(torch.zeros(3), base=0.6), torch.full((3,), 0.6)
    )


def test_class_gates_follow_base_and_means_and_stay_in_their_band():
    means = torch.rand(20, generator=generator_of(0))
    last = torch.zeros(20)
    for base in (0.0, 0.55, 0.7, 0.825, 2.0):
        gates = class_gates(means, base=base)
        assert (gates >= last).all()
        assert (gates[means.argsort()].diff() >= 0).all()
        assert gates.min() >= torch.tensor(0.4)
        assert gates.max() <= torch.tensor(0.95)
        last = gates


@pytest.mark.parametrize('repair_below', [None, 0.5])
@pytest.mark.parametrize('ignore_below', [None, 0.35])
@pytest.mark.parametrize('drop_agreed_below', [None, 0.5])
def test_gate_labels_equals_table(repair_below, ignore_below, drop_agreed_below):
    labels, levels = [0, 1, 2, 255], [0.0, 0.3, 0.35, 0.5, 0.6, 0.7, 1.0]
    cases = list(product(labels, labels, levels, levels))
    base, network, base_r, network_r = (
        torch.tensor(column).view(1, 1, -1) for column in zip(*cases, strict=True)
    )
    gates = [0.6, 0.5, 0.7]
    limits = (repair_below, ignore_below, drop_agreed_below)
    expected = [reference.gated(*case, gates, *limits) for case in cases]
    label = gate_labels(
        base,
        network,
        base_r,
        network_r,
        torch.tensor(gates),
        repair_below=repair_below,
        ignore_below=ignore_below,
        drop_agreed_below=drop_agreed_below,
    )
    assert label.dtype == torch.int64
    assert label.flatten().tolist() == expected


def test_gate_labels_one_pixel_of_each_kind():
    base = torch.tensor([[[1, 1, 1, 1, 255, 255, 2, 255]]])
    network = torch.tensor([[[1, 1, 2, 2, 2, 2, 255, 255]]])
    base_r = torch.tensor([[[0.9, 0.1, 0.2, 0.2, 0.0, 0.0, 0.1, 0.1]]])
    network_r = torch.tensor([[[0.9, 0.1, 0.7, 0.6, 0.7, 0.6, 0.0, 0.0]]])
    label = gate_labels(
        base,
        network,
        base_r,
        network_r,
        torch.tensor([0.5, 0.5, 0.65]),
        ignore_below=0.35,
        drop_agreed_below=0.5,
    )
    assert label.tolist() == [[[1, 255, 2, 255, 2, 255, 2, 255]]]


def test_gate_labels_brings_in_no_third_label_and_leaves_its_input_alone():
    base, network = random_labels(1), random_labels(2)
    before = base.clone()
    trust = random_maps(n=2, c=2, h=7, w=9)
    label = gate_labels(
        base, network, trust[:, 0], trust[:, 1], torch.rand(4), ignore_below=0.5
    )
    assert ((label == base) | (label == network) | (label == 255)).all()
    assert torch.equal(base, before)


def test_gate_labels_takes_more_where_gates_are_lower():
    base, network = random_labels(1), random_labels(2)
    trust = random_maps(n=2, c=2, h=7, w=9)
    last = -1
    for gate in (1.1, 0.9, 0.5, 0.1, 0.0):
        label = gate_labels(
            base, network, trust[:, 0], trust[:, 1], torch.full((4,), gate)
        )
        taken = ((label != base) & (label == network)).sum()
        assert taken > last
        last = taken
    assert torch.equal(label, torch.where(network == 255, base, network))


@pytest.mark.parametrize('power', [1, 2])
def test_reliability_weight_equals_loop(power):
    label, reliability = random_labels(), random_maps(n=1, c=2, h=7, w=9)[0]
    gates = [0.4, 0.6, 0.8, 0.95]
    weight = reliability_weight(
        reliability, label, torch.tensor(gates, dtype=torch.float64), power=power
    )
    expected = [
        reference.weight(r, c, gates, power)
        for r, c in zip(
            reliability.flatten().tolist(), label.flatten().tolist(), strict=True
        )
    ]
    np.testing.assert_allclose(weight.flatten(), expected, rtol=0, atol=1e-12)


def test_reliability_weight_at_its_limits():
    gates = torch.tensor([0.0, 0.5])
    reliability = torch.tensor([[[0.0, 0.7, 0.0, 0.25, 0.5, 0.9, math.nan]]])
    label = torch.tensor([[[0, 0, 1, 1, 1, 1, 255]]])
    weight = reliability_weight(reliability, label, gates)
    assert weight.tolist() == [[[1, 1, 0, 0.25, 1, 1, 0]]]


# ------------------------------------------------------------------- reliability bins
@pytest.mark.parametrize('num_bins', [1, 4, 10])
def test_reliability_bins_equal_loop(num_bins):
    reliability = random_maps(n=1, c=2, h=7, w=9)[0]
    reliability[0, 0, :4] = torch.tensor([0.0, 0.25, 0.5, 1.0])
    pseudo_label, target = random_labels(1), random_labels(2, ignored=0.1)
    target = torch.where(torch.rand(target.shape) < 0.5, pseudo_label, target)
    counts = reliability_bins(reliability, pseudo_label, target, num_bins=num_bins)
    assert counts.dtype == torch.int64
    assert counts.shape == (num_bins, 2)
    expected = reference.bins(reliability, pseudo_label, target, num_bins)
    assert counts.tolist() == expected
    scored = (pseudo_label != 255) & (target != 255)
    assert counts[:, 0].sum() == scored.sum()


def test_reliability_bins_without_any_counted_pixel_are_empty():
    nothing = torch.full((1, 2, 2), 255)
    unread = torch.full((1, 2, 2), float('nan'))
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    for guess, truth in ((nothing, label), (label, nothing)):
        assert reliability_bins(unread, guess, truth, num_bins=3).eq(0).all()


# ------------------------------------------------------------------- all of the parts
def test_reliability_is_hflip_equivariant():
    image_label = random_image_label()
    histogram, logits = 3 * random_maps(), random_logits()
    features, label = random_structure(n=3, d=4, h=4, w=6, c=5)
    pixel_label = random_labels(shape=(3, 16, 24), c=5)

    def run(flip):
        def turn(tensor):
            return tensor.flip(-1) if flip else tensor

        signals = (
            temporal_agreement(turn(histogram), image_label),
            stream_confidence([turn(one) for one in logits], image_label),
            structural_consistency(turn(features), turn(label), 5),
        )
        blends = [
            blend_reliability(*signals, image_label, mode=mode) for mode in MODES[:2]
        ]
        return [
            turn(one)
            for one in (
                *signals,
                *blends,
                *(sample_class_maps(maps, turn(pixel_label)) for maps in blends),
            )
        ]

    for flipped, plain in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(flipped, plain, rtol=0, atol=1e-12)


def test_everything_works_for_one_cell_and_no_class():
    image_label = torch.zeros(2, 0)
    logits = torch.randn(2, 1, 1, 1)
    temporal = temporal_agreement(torch.zeros(2, 1, 1, 1), image_label)
    confidence = stream_confidence((logits, -logits), image_label)
    label = torch.zeros(2, 1, 1, dtype=torch.long)
    structure = structural_consistency(logits, label, 1)
    assert temporal.flatten().tolist() == [0.5, 0.5]
    assert confidence.flatten().tolist() == [1, 1]
    assert structure.flatten().tolist() == [0.5, 0.5]
    for mode in MODES:
        maps = blend_reliability(
            temporal, confidence, structure, image_label, mode=mode
        )
        pixels = sample_class_maps(maps, torch.zeros(2, 3, 3, dtype=torch.long))
        assert (pixels == maps[0].item()).all()
        assert 0.4 < maps.min() <= maps.max() < 0.8


@pytest.mark.parametrize('dtype', LOW_PRECISION)
def test_half_precision_input_gives_single_precision_close_to_double(dtype):
    image_label = random_image_label()
    histogram, logits = 3 * random_maps(), random_logits()
    features, label = random_structure(n=3, d=4, h=4, w=6, c=5)
    pixel_label = random_labels(shape=(3, 16, 24), c=5)

    def run(cast):
        signals = (
            temporal_agreement(cast(histogram), image_label),
            stream_confidence([cast(one) for one in logits], image_label),
            structural_consistency(cast(features), label, 5),
        )
        maps = blend_reliability(*map(cast, signals), image_label)
        pixels = sample_class_maps(cast(maps), pixel_label)
        gates = class_gates(cast(torch.tensor([0.2, 0.4, 0.6, 0.7, 0.9])), base=0.8)
        weight = reliability_weight(cast(pixels), pixel_label, gates)
        return [*signals, maps, pixels, gates, weight]

    exact = [one.to(dtype).double() for one in (histogram, *logits, features)]
    histogram, logits, features = exact[0], exact[1:3], exact[3]
    for low, high in zip(
        run(lambda one: one.to(dtype)), run(torch.Tensor.double), strict=True
    ):
        assert low.dtype == torch.float32
        torch.testing.assert_close(low.double(), high, rtol=0, atol=0.05)


def test_large_half_precision_features_and_logits_stay_finite():
    features = torch.full((1, 64, 2, 2), 6e4, dtype=torch.float16)
    label = torch.tensor([[[0, 1], [1, 1]]])
    structure = structural_consistency(features, label, 2)
    torch.testing.assert_close(structure[0, 1, 0, 0], torch.tensor(1.0))
    logits = torch.full((1, 2, 2, 2), -6e4, dtype=torch.float16)
    logits[:, 1] = 6e4
    confidence = stream_confidence((logits, logits.flip(1)), torch.ones(1, 1))
    torch.testing.assert_close(confidence, torch.full_like(confidence, 0.5))


def test_nothing_carries_a_gradient():
    image_label = random_image_label()
    maps, values = random_maps().requires_grad_(), torch.rand(3, 8, 8).requires_grad_()
    features, label = random_structure(n=3, d=4, h=4, w=6, c=5)
    pixel_label = torch.zeros(3, 8, 8, dtype=torch.long)
    means = torch.rand(5).requires_grad_()
    results = (
        temporal_agreement(maps, image_label),
        stream_confidence((maps, 2 * maps), image_label),
        structural_consistency(features.requires_grad_(), label, 5),
        *(blend_reliability(maps, maps, maps, image_label, mode=m) for m in MODES),
        sample_class_maps(maps, pixel_label),
        update_class_means(means, values, pixel_label, momentum=0.5),
        class_gates(means, base=0.5),
        reliability_weight(values, pixel_label, means),
    )
    assert not any(one.requires_grad for one in results)


class DataDependent(TorchDispatchMode):
    """Fails at operators that make a GPU tell its result to the host."""

    forbidden = ('nonzero', '_local_scalar_dense', 'masked_select', 'bincount')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().removeprefix('aten::').split('.')[0]
        assert name not in self.forbidden, name
        if name == 'index':
            masks = [one for one in args[1] if one is not None]
            assert all(one.dtype != torch.bool for one in masks), 'boolean mask'
        return func(*args, **kwargs)


def test_no_part_of_a_training_step_waits_for_the_device():
    image_label = random_image_label()
    features, label = random_structure(n=3, d=4, h=4, w=6, c=5)
    valid = torch.ones(3, 1, 4, 6)
    pixel_label, network = (random_labels(s, shape=(3, 8, 12), c=5) for s in (0, 1))
    histogram, logits, means = random_maps(), random_logits(), torch.rand(5)
    with DataDependent():
        signals = (
            temporal_agreement(histogram, image_label),
            stream_confidence(logits, image_label),
            structural_consistency(features, label, 5, valid=valid),
        )
        for mode in MODES:
            maps = blend_reliability(*signals, image_label, mode=mode, valid=valid)
        pixels = sample_class_maps(maps, pixel_label)
        means = update_class_means(means, pixels, pixel_label, momentum=0.99)
        gates = class_gates(means, base=0.8)
        gate_labels(
            pixel_label,
            network,
            pixels,
            pixels,
            gates,
            ignore_below=0.3,
            drop_agreed_below=0.5,
        )
        reliability_weight(pixels, pixel_label, gates)
    with pytest.raises(AssertionError, match='boolean'), DataDependent():
        means[means > 0]


# ----------------------------------------------------------------------- wrong input
MAPS, LABEL = torch.rand(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
SHOWN, PIXELS = torch.ones(2, 2), torch.rand(2, 4, 4)
WRONG = {
    'prior': (lambda: temporal_agreement(MAPS, SHOWN, prior=0), 'got 0'),
    'prior nan': (lambda: temporal_agreement(MAPS, SHOWN, prior=math.nan), 'nan'),
    'histogram': (lambda: temporal_agreement(MAPS, torch.ones(2, 3)), r'\(2, 3\)'),
    'no stream': (lambda: stream_confidence((), SHOWN), r'got \[\]'),
    'streams': (
        lambda: stream_confidence((MAPS, MAPS[:, :, :2]), SHOWN),
        r'\(2, 3, 2, 4\)',
    ),
    'one tensor': (lambda: stream_confidence(MAPS, SHOWN), r'\(3, 4, 4\)'),
    'features': (lambda: structural_consistency(MAPS[0], LABEL, 3), r'\(3, 4, 4\)'),
    'grid': (
        lambda: structural_consistency(MAPS, LABEL[:, :2], 3),
        r'got \(2, 2, 4\)',
    ),
    'valid': (
        lambda: structural_consistency(MAPS, LABEL, 3, valid=PIXELS),
        r'valid .* got \(2, 4, 4\)',
    ),
    'num_classes': (lambda: structural_consistency(MAPS, LABEL, 0), 'got 0'),
    'radius': (lambda: structural_consistency(MAPS, LABEL, 3, radius=0), 'got 0'),
    'power': (lambda: structural_consistency(MAPS, LABEL, 3, power=-1), 'got -1'),
    'mode': (
        lambda: blend_reliability(MAPS, MAPS, MAPS, SHOWN, mode='mean'),
        "got 'mean'",
    ),
    'two weights': (
        lambda: blend_reliability(MAPS, MAPS, MAPS, SHOWN, weights=(1, 1)),
        r'got \(1, 1\)',
    ),
    'negative weight': (
        lambda: blend_reliability(MAPS, MAPS, MAPS, SHOWN, weights=(1, -1, 1)),
        r'got \(1, -1, 1\)',
    ),
    'no weight': (
        lambda: blend_reliability(None, MAPS, MAPS, SHOWN, weights=(1, 0, 0)),
        r'got weights \(1, 0, 0\)',
    ),
    'signal': (
        lambda: blend_reliability(MAPS[:1], MAPS, MAPS, SHOWN),
        r'temporal .* got \(1, 3, 4, 4\)',
    ),
    'image_label': (
        lambda: blend_reliability(MAPS, MAPS, MAPS, torch.ones(2, 3)),
        r'got \(2, 3\)',
    ),
    'blend valid': (
        lambda: blend_reliability(MAPS, MAPS, MAPS, SHOWN, valid=PIXELS),
        r'valid .* got \(2, 4, 4\)',
    ),
    'maps': (lambda: sample_class_maps(PIXELS, LABEL), r'got \(2, 4, 4\)'),
    'batch': (lambda: sample_class_maps(MAPS, LABEL[:1]), r'got \(1, 4, 4\)'),
    'values': (
        lambda: update_class_means(torch.rand(3), PIXELS[:1], LABEL, momentum=0.9),
        r'\(1, 4, 4\)',
    ),
    'momentum': (
        lambda: update_class_means(torch.rand(3), PIXELS, LABEL, momentum=1.5),
        'got 1.5',
    ),
    'sums': (
        lambda: update_class_means_from_sums(
            torch.rand(3), torch.rand(4), momentum=0.9
        ),
        r'got \(4,\)',
    ),
    'means': (lambda: class_gates(MAPS, base=0.5), r'got \(2, 3, 4, 4\)'),
    'base': (lambda: class_gates(torch.rand(3), base=math.nan), 'base=nan'),
    'low': (
        lambda: class_gates(torch.rand(3), base=0.5, low=0.9, high=0.8),
        'low=0.9',
    ),
    'gate shapes': (
        lambda: gate_labels(LABEL, LABEL, PIXELS, PIXELS[:1], torch.rand(3)),
        r'\(1, 4, 4\)',
    ),
    'gates': (
        lambda: gate_labels(LABEL, LABEL, PIXELS, PIXELS, torch.rand(3, 1)),
        r'got \(3, 1\)',
    ),
    'weight shapes': (
        lambda: reliability_weight(PIXELS[:1], LABEL, torch.rand(3)),
        r'\(1, 4, 4\)',
    ),
    'weight power': (
        lambda: reliability_weight(PIXELS, LABEL, torch.rand(3), power=0),
        'got 0',
    ),
    'bin shapes': (lambda: reliability_bins(PIXELS, LABEL, LABEL[:1]), r'\(1, 4, 4\)'),
    'num_bins': (
        lambda: reliability_bins(PIXELS, LABEL, LABEL, num_bins=0),
        'got 0',
    ),
    'range': (lambda: reliability_bins(PIXELS + 2, LABEL, LABEL), r'got 2\.'),
    'nan': (lambda: reliability_bins(PIXELS * math.nan, LABEL, LABEL), 'got nan'),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_input_is_named(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()
