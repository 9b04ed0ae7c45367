import math

import pytest
import reference_losses as reference
import torch
from torch.autograd import gradcheck

from mmwsss.functional.losses import (
    affinity_from_sums,
    affinity_loss,
    affinity_sums,
    balanced_cross_entropy,
    balanced_cross_entropy_from_sums,
    balanced_cross_entropy_sums,
    class_counts,
    cross_view_from_sums,
    cross_view_loss,
    cross_view_sums,
    feature_affinity,
    frequency_weights,
    multi_view_from_sums,
    multi_view_loss,
    multi_view_sums,
    present_dice_from_sums,
    present_dice_loss,
    present_dice_sums,
)


def random_case(seed=0, n=2, c=4, h=5, w=6, ignored=0.2):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64) * 2
    label = torch.randint(0, c, (n, h, w), generator=generator)
    drop = torch.rand(n, h, w, generator=generator) < ignored
    weight = torch.rand(n, h, w, generator=generator, dtype=torch.float64)
    return logits, label.masked_fill(drop, 255), weight


def random_affinity(seed=0, n=2, h=4, w=5):
    generator = torch.Generator().manual_seed(seed)
    affinity = torch.rand(n, h * w, h * w, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (n, h, w), generator=generator)
    label[0, 0, :2] = 255
    return affinity, label


SEGMENTATION_LOSSES = [balanced_cross_entropy, present_dice_loss]


# ------------------------------------------------------------------------- values
@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.75])
@pytest.mark.parametrize('weighted', [False, True])
def test_balanced_cross_entropy_equals_loop(smoothing, weighted):
    logits, label, weight = random_case()
    weight = weight if weighted else None
    loss = balanced_cross_entropy(
        logits, label, label_smoothing=smoothing, weight=weight
    )
    expected = reference.balanced_cross_entropy(
        logits, label, smoothing=smoothing, weight=weight
    )
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_balanced_cross_entropy_of_equal_logits_is_log_num_classes():
    label = torch.tensor([[[0, 1], [2, 255]]])
    loss = balanced_cross_entropy(torch.zeros(1, 3, 2, 2), label)
    assert loss.item() == pytest.approx(math.log(3))


def test_balanced_cross_entropy_halves_count_equally():
    # One foreground pixel among many background ones carries half of the loss.
    label = torch.zeros(1, 10, 10, dtype=torch.long)
    label[0, 3, 3] = 1
    logits = torch.zeros(1, 2, 10, 10)
    logits[:, 0] = 50.0
    assert balanced_cross_entropy(logits, label).item() == pytest.approx(25.0)


def test_balanced_cross_entropy_empty_half_contributes_nothing():
    logits, _, _ = random_case()
    background = torch.zeros(2, 5, 6, dtype=torch.long)
    plain = torch.nn.functional.cross_entropy(logits, background)
    loss = balanced_cross_entropy(logits, background)
    torch.testing.assert_close(loss, 0.5 * plain)
    assert balanced_cross_entropy(logits, background, strict_reference=True).isnan()


def test_balanced_cross_entropy_strict_equals_default_when_both_halves_exist():
    logits, label, _ = random_case()
    torch.testing.assert_close(
        balanced_cross_entropy(logits, label, strict_reference=True),
        balanced_cross_entropy(logits, label),
    )


def test_balanced_cross_entropy_ignores_scale_of_weight():
    logits, label, weight = random_case()
    torch.testing.assert_close(
        balanced_cross_entropy(logits, label, weight=weight),
        balanced_cross_entropy(logits, label, weight=7 * weight),
    )


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('all_classes', [False, True])
def test_dice_equals_loop(weighted, all_classes):
    logits, label, weight = random_case(c=5)
    label = label.where(label != 3, 1)  # class 3 does not occur
    weight = weight if weighted else None
    loss = present_dice_loss(logits, label, weight=weight, strict_reference=all_classes)
    expected = reference.dice(logits, label, weight=weight, all_classes=all_classes)
    assert loss.item() == pytest.approx(expected, abs=1e-6 if all_classes else 1e-12)


def test_dice_of_perfect_prediction_is_zero_and_published_form_is_not():
    label = torch.tensor([[[0, 5], [5, 255]]])
    logits = torch.full((1, 21, 2, 2), -50.0).scatter(
        1, label.clamp(max=20)[:, None], 50.0
    )
    assert present_dice_loss(logits, label).item() == pytest.approx(0.0, abs=1e-6)
    strict = present_dice_loss(logits, label, strict_reference=True)
    assert strict.item() == pytest.approx(1 - 2 / 21, abs=1e-6)


@pytest.mark.parametrize('radius', [0, 1, 2, 8])
def test_affinity_loss_equals_loop(radius):
    affinity, label = random_affinity()
    loss = affinity_loss(affinity, label, radius=radius)
    expected = reference.affinity(affinity, label, radius=radius)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_affinity_loss_limits():
    label = torch.tensor([[[0, 1], [1, 1]]])
    same = (label.view(1, -1, 1) == label.view(1, 1, -1)).double()
    n_pos, n_neg = same.sum().item(), 16 - same.sum().item()
    assert affinity_loss(same, label).item() == 0.0
    worst = affinity_loss(1 - same, label).item()
    assert worst == pytest.approx(0.5 * n_pos / (n_pos + 1) + 0.5 * n_neg / (n_neg + 1))


def test_normalized_feature_affinity_equals_loop():
    torch.manual_seed(0)
    features = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    features[0, :, 1, 1] = 0
    expected = torch.tensor(reference.cosine_affinity(features), dtype=torch.float64)
    torch.testing.assert_close(feature_affinity(features), expected)


def test_unnormalized_feature_affinity_is_sigmoid_of_products():
    features = torch.tensor([1.0, -2.0, 0.0]).view(1, 1, 1, 3)
    expected = torch.tensor([[1.0, -2, 0], [-2, 4, 0], [0, 0, 0]]).sigmoid()
    torch.testing.assert_close(feature_affinity(features, normalize=False)[0], expected)


@pytest.mark.parametrize('threshold', [0.0, 0.6])
@pytest.mark.parametrize('padded', [False, True])
def test_cross_view_loss_equals_loop(threshold, padded):
    a, _, _ = random_case(seed=1)
    b, _, _ = random_case(seed=2)
    image_label = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    valid = None
    if padded:
        valid = torch.ones(2, 1, 5, 6)
        valid[:, :, 3:] = 0
    loss = cross_view_loss(a, b, image_label, valid=valid, threshold=threshold)
    expected = reference.cross_view(a, b, image_label, valid=valid, threshold=threshold)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('num_streams', [2, 3])
def test_multi_view_loss_with_gates_and_weights_equals_loop(num_streams, padded):
    streams = [random_case(seed=seed)[0] for seed in range(num_streams)]
    weight = random_case(seed=9)[2]
    image_label = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    gates = [0.9, 0.5, 0.1, 0.7]
    valid = None
    if padded:
        valid = torch.ones(2, 1, 5, 6)
        valid[..., 4:] = 0
    loss = multi_view_loss(
        streams,
        image_label,
        valid=valid,
        threshold=torch.tensor(gates, dtype=torch.float64),
        weight=weight,
    )
    expected = reference.multi_view(
        streams, image_label, valid=valid, threshold=gates, weight=weight
    )
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert expected > 0


def test_multi_view_loss_of_two_streams_is_the_cross_view_loss():
    a, b = random_case(seed=1)[0], random_case(seed=2)[0]
    image_label = torch.ones(2, 3)
    for options in (dict(), dict(threshold=0.6), dict(restrict=False)):
        assert multi_view_loss((a, b), image_label, **options) == cross_view_loss(
            a, b, image_label, **options
        )


def test_a_copied_stream_keeps_the_scale_of_each_learner():
    # Learner a hears b twice; the two copies of b hear a and themselves.
    a, b = random_case(seed=1)[0], random_case(seed=2)[0]
    image_label = torch.ones(2, 3)
    sums = multi_view_sums((a, b, b), image_label)
    assert sums.shape == (3, 2, 4)
    torch.testing.assert_close(sums[0, 0], sums[0, 1])
    alone = multi_view_sums((a, b), image_label)
    torch.testing.assert_close(sums[0, 0], alone[0, 0])
    torch.testing.assert_close(
        multi_view_from_sums(sums[:1, :]) * 2,
        2 * balanced_cross_entropy_from_sums(alone[0, 0]),
    )


@pytest.mark.parametrize('weighted', [False, True])
def test_class_weights_and_their_cross_entropy_equal_loop(weighted):
    logits, label, weight = random_case(c=6, h=9, w=11)
    label = torch.where(label == 4, 0, label)  # class 4 does not occur
    label[0, :7] = 2  # and class 2 is frequent
    weight = weight if weighted else None
    counts = class_counts(label, num_classes=6, weight=weight)
    found = frequency_weights(counts, low=0.6, high=2.0)
    expected = reference.class_weights(label, 6, weight=weight, low=0.6, high=2.0)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert found[2] == pytest.approx(0.6)
    assert found[4] == found[0] == 1
    loss = balanced_cross_entropy(logits, label, weight=weight, class_weight=found)
    loop = reference.balanced_cross_entropy(
        logits, label, weight=weight, class_weight=expected
    )
    assert loss.item() == pytest.approx(loop, abs=1e-6)


# --------------------------------------------------------------------- properties
@pytest.mark.parametrize('loss', SEGMENTATION_LOSSES)
def test_segmentation_loss_ignores_what_stands_in_ignored_pixels(loss):
    logits, label, weight = random_case()
    changed = logits.where((label != 255)[:, None], 9 * logits.flip(1) - 3)
    no_number = weight.masked_fill(label == 255, float('nan'))
    torch.testing.assert_close(
        loss(logits, label, weight=weight), loss(changed, label, weight=no_number)
    )


@pytest.mark.parametrize('loss', SEGMENTATION_LOSSES)
def test_segmentation_loss_is_hflip_invariant(loss):
    logits, label, _ = random_case()
    torch.testing.assert_close(
        loss(logits, label), loss(logits.flip(-1), label.flip(-1))
    )


@pytest.mark.parametrize('loss', SEGMENTATION_LOSSES)
def test_segmentation_loss_zero_weight_is_ignore(loss):
    logits, label, _ = random_case(ignored=0.3)
    full = label.where(label != 255, 1)
    weight = (label != 255).float()
    torch.testing.assert_close(loss(logits, full, weight=weight), loss(logits, label))


@pytest.mark.parametrize('loss', SEGMENTATION_LOSSES)
def test_segmentation_loss_accepts_another_ignore_index_and_uint8(loss):
    logits, label, _ = random_case()
    other = label.where(label != 255, 200)
    torch.testing.assert_close(
        loss(logits, other, ignore_index=200), loss(logits, label)
    )
    torch.testing.assert_close(loss(logits, label.to(torch.uint8)), loss(logits, label))


def test_weight_carries_no_gradient():
    logits, label, weight = random_case()
    logits.requires_grad_()
    weight.requires_grad_()
    total = sum(loss(logits, label, weight=weight) for loss in SEGMENTATION_LOSSES)
    total.backward()
    assert weight.grad is None
    assert logits.grad.abs().sum() > 0


def test_losses_from_added_sums_equal_the_joint_batch():
    logits, label, _ = random_case(n=3)
    affinity, cells = random_affinity(n=3)
    other = logits.flip(0)
    image_label = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    # The parts have very different sizes, so a mean of losses would be wrong.
    parts = [slice(0, 1), slice(1, 3)]
    label[0, 2:] = 255

    def joint(sums, from_sums, *tensors):
        return from_sums(sum(sums(*(t[part] for t in tensors)) for part in parts))

    cases = [
        (
            balanced_cross_entropy_sums,
            balanced_cross_entropy_from_sums,
            balanced_cross_entropy,
            (logits, label),
        ),
        (
            present_dice_sums,
            present_dice_from_sums,
            present_dice_loss,
            (logits, label),
        ),
        (affinity_sums, affinity_from_sums, affinity_loss, (affinity, cells)),
        (
            cross_view_sums,
            cross_view_from_sums,
            cross_view_loss,
            (logits, other, image_label),
        ),
        (
            lambda a, b, image: multi_view_sums((a, b, a + b), image),
            multi_view_from_sums,
            lambda a, b, image: multi_view_loss((a, b, a + b), image),
            (logits, other, image_label),
        ),
    ]
    for sums, from_sums, loss, tensors in cases:
        torch.testing.assert_close(joint(sums, from_sums, *tensors), loss(*tensors))


def test_normalized_affinity_ignores_feature_scale_and_unnormalized_saturates():
    torch.manual_seed(0)
    features = torch.randn(1, 64, 4, 4)
    torch.testing.assert_close(
        feature_affinity(features), feature_affinity(30 * features)
    )
    published = feature_affinity(30 * features, normalize=False)
    assert published[0].diagonal().min() == 1.0
    for affinity in (feature_affinity(features), published):
        assert affinity.min() >= 0
        assert affinity.max() <= 1
        torch.testing.assert_close(affinity, affinity.transpose(1, 2))


def test_cross_view_restriction_keeps_absent_classes_out():
    # Stream b is sure of class 2, which the image does not show.
    a = torch.zeros(1, 3, 2, 2)
    b = torch.tensor([1.0, 0.0, 9.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    image_label = torch.tensor([[1.0, 0.0]])
    learner = a.clone().requires_grad_()
    cross_view_loss(learner, b, image_label).backward()
    assert (learner.grad[:, 0] < 0).all()
    assert (learner.grad[:, 2] > 0).all()
    learner = a.clone().requires_grad_()
    cross_view_loss(learner, b, image_label, restrict=False).backward()
    assert (learner.grad[:, 2] < 0).all()


def test_cross_view_threshold_silences_unsure_teachers():
    image_label = torch.ones(1, 2)
    unsure = torch.tensor([0.1, 0.0, 0.0]).view(1, 3, 1, 1)
    sure = torch.tensor([9.0, 0.0, 0.0]).view(1, 3, 1, 1)
    learner = unsure.clone().requires_grad_()
    teacher = sure.clone().requires_grad_()
    cross_view_loss(learner, teacher, image_label, threshold=0.9).backward()
    assert learner.grad.abs().sum() > 0
    assert teacher.grad.abs().sum() == 0


def test_equally_frequent_classes_all_weigh_one():
    counts = torch.tensor([900.0, 5, 5, 0, 5])
    assert frequency_weights(counts).tolist() == [1, 1, 1, 1, 1]
    assert frequency_weights(torch.zeros(3)).tolist() == [1, 1, 1]
    assert frequency_weights(torch.tensor([7.0])).tolist() == [1]
    # Three and one, mean two: the rare class gains what the frequent one loses.
    torch.testing.assert_close(
        frequency_weights(torch.tensor([0.0, 3, 1])), torch.tensor([1, 2 / 3, 2])
    )


def test_class_weight_cancels_in_a_half_of_one_class():
    logits, label, _ = random_case(c=2)
    plain = balanced_cross_entropy(logits, label)
    weighted = balanced_cross_entropy(
        logits, label, class_weight=torch.tensor([5.0, 0.1], dtype=torch.float64)
    )
    torch.testing.assert_close(weighted, plain)


def test_class_weight_raises_the_rare_class():
    label = torch.ones(1, 4, 4, dtype=torch.long)
    label[0, 0, 0] = 2
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 1] = 3.0  # the rare pixel is wrong
    weight = frequency_weights(class_counts(label, num_classes=3))
    assert weight[2] == 3
    plain = balanced_cross_entropy(logits, label)
    assert balanced_cross_entropy(logits, label, class_weight=weight) > 2 * plain


def test_cross_view_gate_of_one_class_silences_that_class_alone():
    # The teacher says class 1 on the left and class 2 on the right, equally sure.
    teacher = torch.full((1, 3, 1, 2), 0.0)
    teacher[0, 1, 0, 0] = teacher[0, 2, 0, 1] = 2.0  # probability 0.787
    learner = torch.zeros(1, 3, 1, 2, requires_grad=True)
    gates = torch.tensor([0.5, 0.7, 0.8])
    cross_view_loss(learner, teacher, torch.ones(1, 2), threshold=gates).backward()
    assert learner.grad[..., 0].abs().sum() > 0
    assert learner.grad[..., 1].abs().sum() == 0


# ---------------------------------------------------------------------- gradients
@pytest.mark.parametrize('loss', SEGMENTATION_LOSSES)
@pytest.mark.parametrize('strict', [False, True])
def test_segmentation_loss_gradcheck(loss, strict):
    logits, label, weight = random_case(h=2, w=3)
    logits.requires_grad_()
    assert gradcheck(
        lambda x: loss(x, label, weight=weight, strict_reference=strict), logits
    )


@pytest.mark.parametrize('normalize', [False, True])
def test_affinity_gradcheck(normalize):
    torch.manual_seed(0)
    features = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([[[0, 1, 255], [1, 1, 0]]])
    assert gradcheck(
        lambda x: affinity_loss(
            feature_affinity(x, normalize=normalize), label, radius=1
        ),
        features,
    )


def test_cross_view_gradcheck():
    a, _, _ = random_case(seed=1, n=1, h=2, w=2)
    b, _, _ = random_case(seed=2, n=1, h=2, w=2)
    image_label = torch.tensor([[1, 0, 1]])
    assert gradcheck(
        lambda x, y: cross_view_loss(x, y, image_label, threshold=0.5),
        (a.requires_grad_(), b.requires_grad_()),
    )


# ---------------------------------------------------------------------- degenerate
def degenerate_labels():
    mixed = torch.tensor([[[0, 1], [1, 255]]])
    return {
        'no foreground': torch.zeros_like(mixed),
        'no background': torch.full_like(mixed, 2),
        'all ignored': torch.full_like(mixed, 255),
        '1x1': mixed[:, :1, :1],
        'mixed': mixed,
    }


@pytest.mark.parametrize('name', degenerate_labels())
@pytest.mark.parametrize('num_classes', [1, 3])
@pytest.mark.parametrize('scale', [1.0, 1e4])
def test_losses_and_gradients_are_finite(name, num_classes, scale):
    label = degenerate_labels()[name]
    if num_classes == 1:
        label = label.where(label == 255, 0)
    torch.manual_seed(0)
    shape = (1, num_classes, *label.shape[1:])
    logits = (scale * torch.randn(shape)).requires_grad_()
    other = (scale * torch.randn(shape)).requires_grad_()
    dead = torch.zeros(1, 4, *label.shape[1:], requires_grad=True)
    losses = [
        balanced_cross_entropy(logits, label),
        present_dice_loss(logits, label),
        affinity_loss(feature_affinity(logits), label),
        affinity_loss(feature_affinity(logits, normalize=False), label),
        affinity_loss(feature_affinity(dead), label),
        cross_view_loss(logits, other, torch.zeros(1, num_classes - 1)),
        cross_view_loss(
            logits,
            other,
            torch.ones(1, num_classes - 1),
            valid=torch.zeros(1, 1, *label.shape[1:]),
        ),
        multi_view_loss(
            (logits, other, logits + other),
            torch.ones(1, num_classes - 1),
            threshold=torch.full((num_classes,), 2.0),
        ),
        balanced_cross_entropy(logits, label, weight=torch.zeros(label.shape)),
        balanced_cross_entropy(
            logits,
            label,
            class_weight=frequency_weights(
                class_counts(label, num_classes=num_classes)
            ),
        ),
    ]
    total = torch.stack(losses).sum()
    assert total.isfinite()
    assert min(losses) >= 0
    total.backward()
    for tensor in (logits, other, dead):
        assert tensor.grad.isfinite().all()
    assert dead.grad.abs().sum() == 0


def test_all_ignored_gives_zero():
    label = torch.full((1, 2, 2), 255)
    logits = torch.randn(1, 3, 2, 2)
    assert balanced_cross_entropy(logits, label) == 0
    assert present_dice_loss(logits, label) == 0
    assert affinity_loss(torch.rand(1, 4, 4), label) == 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_inputs_are_summed_in_float32(dtype):
    # 70,000 exceeds the largest half, and counts above 256 are lost in bfloat16.
    label = torch.zeros(1, 350, 200, dtype=torch.long)
    label[:, 0] = 1
    logits = torch.zeros(1, 2, 350, 200, dtype=dtype)
    assert balanced_cross_entropy(logits, label).item() == pytest.approx(math.log(2))
    assert present_dice_loss(logits, label).dtype == torch.float32
    # A product of 256 * 64 * 64 overflows half precision.
    features = torch.full((1, 256, 1, 2), 64.0, dtype=dtype)
    assert feature_affinity(features, normalize=False).eq(1).all()


def test_autocast_does_not_change_the_losses():
    logits, label, _ = random_case()
    logits = logits.float()
    features = torch.randn(1, 64, 3, 3)
    plain = [loss(logits, label) for loss in SEGMENTATION_LOSSES]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        lowered = [loss(logits, label) for loss in SEGMENTATION_LOSSES]
        affinity = feature_affinity(features)
    assert torch.equal(torch.stack(plain), torch.stack(lowered))
    assert torch.equal(affinity, feature_affinity(features))


# -------------------------------------------------------------------------- errors
@pytest.mark.parametrize('loss', SEGMENTATION_LOSSES)
def test_segmentation_loss_names_the_wrong_shape(loss):
    logits, label, weight = random_case()
    with pytest.raises(ValueError, match=r'pseudo_label .* got \(2, 5, 5\)'):
        loss(logits, label[..., 1:])
    with pytest.raises(ValueError, match=r'weight .* got \(1, 5, 6\)'):
        loss(logits, label, weight=weight[:1])
    with pytest.raises(ValueError, match=r'seg_logits .* got \(2, 5, 6\)'):
        loss(logits[:, 0], label)


@pytest.mark.parametrize('smoothing', [-0.1, 0.9])
def test_balanced_cross_entropy_refuses_impossible_smoothing(smoothing):
    logits, label, _ = random_case()
    with pytest.raises(ValueError, match=f'got {smoothing}'):
        balanced_cross_entropy(logits, label, label_smoothing=smoothing)


def test_affinity_loss_names_the_wrong_argument():
    affinity, label = random_affinity()
    with pytest.raises(ValueError, match=r'affinity must be .* got \(2, 20, 19\)'):
        affinity_loss(affinity[..., 1:], label)
    with pytest.raises(ValueError, match=r'pseudo_label .* got \(4, 5\)'):
        affinity_loss(affinity, label[0])
    with pytest.raises(ValueError, match=r'radius .* got -1'):
        affinity_loss(affinity, label, radius=-1)
    with pytest.raises(ValueError, match=r'features .* got \(3, 2, 2\)'):
        feature_affinity(torch.zeros(3, 2, 2))


def test_cross_view_loss_names_the_wrong_shape():
    a, _, _ = random_case()
    image_label = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r'one shape'):
        cross_view_loss(a, a[..., 1:], image_label)
    with pytest.raises(ValueError, match=r'image_label .* got \(2, 4\)'):
        cross_view_loss(a, a, torch.ones(2, 4))
    with pytest.raises(ValueError, match=r'valid .* got \(2, 5, 6\)'):
        cross_view_loss(a, a, image_label, valid=torch.ones(2, 5, 6))


def test_class_balance_and_streams_name_what_is_wrong():
    logits, label, weight = random_case()
    with pytest.raises(ValueError, match=r'class_weight must be \(4,\) .* got \(3,\)'):
        balanced_cross_entropy(logits, label, class_weight=torch.ones(3))
    with pytest.raises(ValueError, match=r'weight .* got \(1, 5, 6\)'):
        class_counts(label, num_classes=4, weight=weight[:1])
    with pytest.raises(ValueError, match=r'counts .* got \(2, 2\)'):
        frequency_weights(torch.ones(2, 2))
    with pytest.raises(ValueError, match='low=2'):
        frequency_weights(torch.ones(2), low=2)
    image_label = torch.ones(2, 3)
    with pytest.raises(ValueError, match='two streams or more, got 1'):
        multi_view_loss((logits,), image_label)
    with pytest.raises(ValueError, match=r'one shape, got .* \(2, 4, 5, 5\)'):
        multi_view_loss((logits, logits, logits[..., 1:]), image_label)
    with pytest.raises(ValueError, match=r'threshold must be \(4,\) .* got \(1,\)'):
        cross_view_loss(logits, logits, image_label, threshold=torch.ones(1))
