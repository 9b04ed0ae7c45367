import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

pytest.importorskip('mmengine')

from distributed_losses import (
    TinyNetwork,
    joint_batch,
    losses_and_gradients,
    run_rank,
)

from mmwsss.functional.boundary import boundary_band, boundary_loss, pairwise_energy
from mmwsss.functional.losses import (
    affinity_loss,
    balanced_cross_entropy,
    class_counts,
    cross_view_loss,
    feature_affinity,
    frequency_weights,
    multi_view_loss,
    present_dice_loss,
)
from mmwsss.functional.pseudo_label import resize_label
from mmwsss.models.losses import (
    AffinityLoss,
    BalancedCrossEntropyLoss,
    BoundaryLoss,
    CrossViewLoss,
    PairwiseEnergyLoss,
    PresentDiceLoss,
)
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm


def test_two_processes_equal_the_joint_batch(tmp_path):
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    expected = losses_and_gradients(TinyNetwork(), joint_batch())
    for rank in range(2):
        found = torch.load(tmp_path / f'rank{rank}.pt', weights_only=True)
        torch.testing.assert_close(found, expected)


def test_a_group_of_one_changes_nothing(tmp_path):
    batch = joint_batch()
    expected = losses_and_gradients(TinyNetwork(), batch)
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    try:
        found = losses_and_gradients(TinyNetwork(), batch)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize('strict', [False, True])
def test_modules_equal_functions(strict):
    batch = joint_batch()
    logits, other = batch['features'][:, :4], batch['features'].flip(0)[:, 1:]
    label, weight = batch['label'], batch['weight']
    image_label, valid = batch['image_label'], batch['valid']
    pairs = [
        (
            BalancedCrossEntropyLoss(
                label_smoothing=0.2, strict_reference=strict, loss_weight=2.0
            )(logits, label, weight=weight),
            balanced_cross_entropy(
                logits,
                label,
                label_smoothing=0.2,
                weight=weight,
                strict_reference=strict,
            ),
        ),
        (
            PresentDiceLoss(strict_reference=strict, loss_weight=2.0)(
                logits, label, weight
            ),
            present_dice_loss(logits, label, weight=weight, strict_reference=strict),
        ),
        (
            AffinityLoss(radius=3, strict_reference=strict, loss_weight=2.0)(
                logits, label
            ),
            affinity_loss(
                feature_affinity(logits, normalize=not strict), label, radius=3
            ),
        ),
        (
            CrossViewLoss(threshold=0.4, strict_reference=strict, loss_weight=2.0)(
                logits, other, image_label, valid
            ),
            cross_view_loss(
                logits,
                other,
                image_label,
                valid=valid,
                threshold=0.4,
                restrict=not strict,
                strict_reference=strict,
            ),
        ),
    ]
    for module_value, function_value in pairs:
        torch.testing.assert_close(module_value, 2 * function_value)


def test_cross_view_loss_may_teach_all_classes_and_stay_finite():
    background = torch.zeros(1, 4, 3, 3)
    background[:, 0] = 5.0
    absent = torch.zeros(1, 4, 3, 3)
    absent[:, 2] = 5.0
    image_label = torch.tensor([[1.0, 0, 0]])

    def loss(**options):
        return CrossViewLoss(**options)(background, absent, image_label)

    # Each stream decides for one class everywhere, so the other half is empty.
    wrong = -background[:, :, 0, 0].log_softmax(1)[0, 2]
    torch.testing.assert_close(loss(restrict_to_image_classes=False), wrong)
    assert loss(strict_reference=True).isnan()
    assert loss().isfinite()
    assert loss() != loss(restrict_to_image_classes=False)


@pytest.mark.parametrize('strict', [False, True])
def test_affinity_loss_takes_labels_of_image_size(strict):
    batch = joint_batch()
    large = torch.randint(0, 3, (4, 60, 90))
    label = resize_label(large, (6, 8), strict_reference=strict)
    loss = AffinityLoss(strict_reference=strict)
    assert loss(batch['features'], large) == loss(batch['features'], label)


def test_affinity_loss_drops_pairs_with_an_unreliable_end():
    batch = joint_batch()
    features, label, weight = (batch[k] for k in ('features', 'label', 'weight'))
    reliability = weight.flip(0)
    loss = AffinityLoss(radius=2, min_reliability=0.6)
    kept = label.masked_fill(reliability < 0.6, 255)
    assert loss(features, label, None, reliability) == loss(features, kept)
    weight = weight.masked_fill(weight < 0.5, 0.0)
    kept = kept.masked_fill(weight == 0, 255)
    assert loss(features, label, weight, reliability) == loss(features, kept)
    # Without a limit only the weights count, and without maps nothing changes.
    loss = AffinityLoss(radius=2)
    assert loss(features, label, None, reliability) == loss(features, label)
    # Maps of image size belong to labels of image size.
    large = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    large_map = reliability.repeat_interleave(4, 1).repeat_interleave(4, 2)
    loss = AffinityLoss(radius=2, min_reliability=0.6)
    assert loss(features, large, None, large_map) == loss(
        features, label, None, reliability
    )


def test_class_balance_is_an_option():
    batch = joint_batch()
    logits, label, weight = batch['features'][:, :4], batch['label'], batch['weight']
    loss = BalancedCrossEntropyLoss(
        class_balance='batch', class_weight_range=(0.9, 1.1)
    )
    counts = class_counts(label, num_classes=4, weight=weight)
    expected = balanced_cross_entropy(
        logits,
        label,
        weight=weight,
        class_weight=frequency_weights(counts, low=0.9, high=1.1),
    )
    torch.testing.assert_close(loss(logits, label, weight), expected)
    assert expected != BalancedCrossEntropyLoss()(logits, label, weight)
    with pytest.raises(ValueError, match="'none' or 'batch', got 'image'"):
        BalancedCrossEntropyLoss(class_balance='image')


def test_cross_view_reads_gates_and_weights_only_when_told():
    batch = joint_batch()
    a, b = batch['features'][:, :4], batch['features'][:, 1:]
    image_label, valid, weight = (batch[k] for k in ('image_label', 'valid', 'weight'))
    gates = torch.tensor([0.3, 0.8, 0.4, 0.5])
    plain = CrossViewLoss(threshold=0.4)
    assert plain(a, b, image_label, valid, gates, weight) == plain(
        a, b, image_label, valid
    )
    both = CrossViewLoss(threshold=0.4, use_gates=True, use_weight=True)
    expected = cross_view_loss(
        a, b, image_label, valid=valid, threshold=gates, weight=weight
    )
    torch.testing.assert_close(both(a, b, image_label, valid, gates, weight), expected)
    assert both(a, b, image_label, valid) == plain(a, b, image_label, valid)
    streams = (a, b, a + b)
    torch.testing.assert_close(
        both.between(streams, image_label, valid, gates, weight),
        multi_view_loss(
            streams, image_label, valid=valid, threshold=gates, weight=weight
        ),
    )


def upscaled(maps, factor=2):
    return maps.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def test_boundary_loss_equals_function_on_the_scaled_grid():
    batch = joint_batch()
    streams = (batch['features'][:, :4], batch['features'][:, 1:])
    label, weight, valid = batch['label'], batch['weight'], batch['valid']
    trusted = weight.masked_fill(weight < 0.5, 0.0)
    expected = 2 * boundary_loss(
        streams,
        label,
        boundary_band(label, valid, width=1, bridge=1),
        weight=trusted,
        temperature=3.0,
        consistency_weight=0.3,
        label_weight=0.6,
    )
    options = dict(
        width=1,
        bridge=1,
        temperature=3.0,
        consistency_weight=0.3,
        label_weight=0.6,
        min_weight=0.5,
        loss_weight=2.0,
    )
    found = BoundaryLoss(scale=1.0, **options)(streams, label, valid, weight)
    torch.testing.assert_close(found, expected)
    halved = BoundaryLoss(**options)(
        streams, upscaled(label), upscaled(valid), upscaled(weight)
    )
    torch.testing.assert_close(halved, expected)


@pytest.mark.parametrize('band_width', [None, 1])
def test_pairwise_energy_loss_equals_function_on_the_scaled_grid(band_width):
    batch = joint_batch()
    logits, image, label = batch['features'][:, :4], batch['image'], batch['label']
    valid = batch['valid']
    gate = valid[:, 0]
    if band_width is not None:
        gate = boundary_band(label, valid, width=band_width)
    expected = 2 * pairwise_energy(logits, image, gate=gate, dilations=(1, 3), w1=0.5)
    loss = PairwiseEnergyLoss(
        dilations=(1, 3), w1=0.5, band_width=band_width, loss_weight=2.0
    )
    found = loss(logits, upscaled(image), upscaled(label), upscaled(valid))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r'scale must lie .* got 0'):
        PairwiseEnergyLoss(scale=0)


def test_loss_weight_may_change_during_training():
    batch = joint_batch()
    loss = CrossViewLoss(loss_weight=0.0)
    arguments = (batch['features'], batch['features'].flip(1), torch.ones(4, 4))
    assert loss(*arguments) == 0
    loss.loss_weight = 0.1
    assert loss(*arguments) > 0


def test_losses_train_any_mmseg_head():
    heads = pytest.importorskip('mmseg.models.decode_heads')
    from mmengine.registry import init_default_scope
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    init_default_scope('mmseg')
    head = heads.FCNHead(
        in_channels=5,
        channels=4,
        num_classes=4,
        norm_cfg=dict(type='BN'),
        loss_decode=[
            dict(type='mmwsss.BalancedCrossEntropyLoss', label_smoothing=0.1),
            dict(type='mmwsss.PresentDiceLoss', loss_weight=0.5),
        ],
    )
    batch = joint_batch()
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=label[None]))
        for label in batch['label']
    ]
    losses = head.loss((batch['features'],), samples, train_cfg={})
    assert set(losses) == {'loss_balanced_ce', 'loss_present_dice', 'acc_seg'}
    (losses['loss_balanced_ce'] + losses['loss_present_dice']).backward()
    assert head.conv_seg.weight.grad.isfinite().all()
    assert head.conv_seg.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    'name',
    [
        'BalancedCrossEntropyLoss',
        'PresentDiceLoss',
        'AffinityLoss',
        'CrossViewLoss',
        'BoundaryLoss',
        'PairwiseEnergyLoss',
    ],
)
def test_losses_build_by_name_and_refuse_unknown_keys(name):
    loss = MODELS.build(dict(type=f'mmwsss.{name}', loss_weight=0.3))
    assert loss.loss_weight == 0.3
    assert loss.state_dict() == {}
    with pytest.raises(TypeError, match='loss_wieght'):
        MODELS.build(dict(type=f'mmwsss.{name}', loss_wieght=0.3))


def test_a_name_that_would_not_be_optimised_is_refused():
    assert PresentDiceLoss(loss_name='loss_dice').loss_name == 'loss_dice'
    with pytest.raises(ValueError, match="start with 'loss_', got 'dice'"):
        PresentDiceLoss(loss_name='dice')
    with pytest.raises(ValueError, match="start with 'loss_', got 'ce'"):
        BalancedCrossEntropyLoss(loss_name='ce')
