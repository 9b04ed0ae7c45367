import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample
from no_waiting import NoWaiting

import mmwsss.models  # noqa: F401
from mmwsss.models.decode_heads.dual_stream_head import pixel_accuracy, stack_pixel_maps
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

SIZE = (32, 48)
EVERYTHING = dict(
    loss_affinity=dict(type='mmwsss.AffinityLoss', min_reliability=0.3),
    loss_cross=dict(type='mmwsss.CrossViewLoss', use_gates=True, use_weight=True),
    loss_boundary=dict(type='mmwsss.BoundaryLoss'),
    loss_energy=dict(type='mmwsss.PairwiseEnergyLoss'),
)


def build(num_streams=2, **losses):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    head = MODELS.build(
        dict(
            type='mmwsss.DualStreamHead',
            in_channels=[6, 5, 4][:num_streams],
            in_index=list(range(num_streams)),
            channels=8,
            num_classes=4,
            num_layers=1,
            num_heads=2,
            dropout_ratio=0.0,
            loss_decode=[
                dict(type='mmwsss.BalancedCrossEntropyLoss'),
                dict(type='mmwsss.PresentDiceLoss'),
            ],
            **losses,
        )
    )
    # MMSegmentation starts the classifier near zero; the losses shall see something.
    torch.nn.init.normal_(head.conv_seg.weight)
    return head


def random_batch(num_streams=2, maps=('pseudo_weight', 'pseudo_reliability'), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    sizes = [(4, 6), (5, 7), (2, 3)][:num_streams]
    inputs = [rand(2, c, *s) for c, s in zip((6, 5, 4), sizes, strict=False)]
    label = (rand(2, 4, 6) * 4).long()
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2)
    label[rand(2, *SIZE) < 0.1] = 255
    samples = []
    for plane in label:
        sample = SegDataSample(metainfo=dict(img_shape=(28, 48)))
        plane[28:] = 255
        sample.gt_sem_seg = PixelData(data=plane[None])
        sample.set_field(torch.ones(3), 'image_label', dtype=torch.Tensor)
        for name in maps:
            sample.set_field(PixelData(data=rand(1, *SIZE)), name, dtype=PixelData)
        samples.append(sample)
    return inputs, samples, rand(2, 3, *SIZE)


def total(losses):
    return sum(value for name, value in losses.items() if name.startswith('loss'))


def test_segmentation_losses_equal_those_of_mmsegmentation():
    head = build()
    inputs, samples, _ = random_batch(maps=())
    decoded = head.decode(inputs)
    found = head.loss_by_feat(decoded, samples)
    expected = BaseDecodeHead.loss_by_feat(head, decoded.seg_logits, samples)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].squeeze())


def test_losses_of_one_name_are_added_and_one_loss_needs_no_list():
    loss = dict(type='CrossEntropyLoss', loss_name='loss_ce')
    inputs, samples, _ = random_batch(maps=())
    single, double = build(), build()
    init_default_scope('mmseg')
    single.loss_decode = MODELS.build(loss)
    double.loss_decode = torch.nn.ModuleList([MODELS.build(loss), MODELS.build(loss)])
    one = single.loss(inputs, samples, {})
    two = double.loss(inputs, samples, {})
    assert one.keys() == two.keys() == {'loss_ce', 'acc_seg'}
    torch.testing.assert_close(two['loss_ce'], 2 * one['loss_ce'])


def test_weights_of_the_samples_reach_the_segmentation_losses():
    head = build()
    inputs, samples, _ = random_batch()
    decoded = head.decode(inputs)
    weighted = head.loss_by_feat(decoded, samples)
    for sample in samples:
        sample.pseudo_weight.data = (sample.pseudo_weight.data > 0.5).float()
    gated = head.loss_by_feat(decoded, samples)
    for sample in samples:
        dropped = sample.pseudo_weight.data == 0
        sample.gt_sem_seg.data = sample.gt_sem_seg.data.masked_fill(dropped, 255)
        del sample.pseudo_weight
    ignored = head.loss_by_feat(decoded, samples)
    for name in ('loss_balanced_ce', 'loss_present_dice'):
        torch.testing.assert_close(gated[name], ignored[name])
        assert gated[name] != weighted[name]


@pytest.mark.parametrize('num_streams', [2, 3])
def test_every_loss_trains_every_stream(num_streams):
    head = build(num_streams, **EVERYTHING)
    assert head.needs_image
    inputs, samples, image = random_batch(num_streams)
    gates = torch.full((4,), 0.3)
    losses = head.loss_by_feat(head.decode(inputs), samples, image, gates)
    assert {'loss_affinity', 'loss_cross', 'loss_boundary', 'loss_energy'} < set(losses)
    for name, value in losses.items():
        assert value.ndim == 0
        if not name.startswith('loss'):
            continue
        assert value > 0
        gradients = torch.autograd.grad(
            value, [p.mlp[0].weight for p in head.projections], retain_graph=True
        )
        for gradient in gradients:
            assert gradient.isfinite().all()
            assert gradient.abs().sum() > 0, name


def test_gates_and_reliability_change_what_they_belong_to():
    head = build(**EVERYTHING)
    inputs, samples, image = random_batch()
    decoded = head.decode(inputs)
    plain = head.loss_by_feat(decoded, samples, image)
    gated = head.loss_by_feat(decoded, samples, image, torch.full((4,), 0.7))
    changed = {name for name in plain if plain[name] != gated[name]}
    assert changed == {'loss_cross'}
    for sample in samples:
        sample.pseudo_reliability.data = torch.ones(1, *SIZE)
    sure = head.loss_by_feat(decoded, samples, image)
    assert {name for name in plain if plain[name] != sure[name]} == {'loss_affinity'}


@pytest.mark.parametrize('fill', [0, 255])
def test_constant_labels_have_no_boundary_loss_and_everything_is_finite(fill):
    head = build(**EVERYTHING)
    inputs, samples, image = random_batch()
    for sample in samples:
        sample.gt_sem_seg.data = torch.full((1, *SIZE), fill)
        sample.pseudo_weight.data = torch.zeros(1, *SIZE)
    losses = head.loss_by_feat(head.decode(inputs), samples, image)
    assert losses['loss_boundary'] == 0
    total(losses).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_padding_takes_no_part():
    head = build(**EVERYTHING)
    inputs, samples, image = random_batch()
    decoded = head.decode(inputs)
    expected = head.loss_by_feat(decoded, samples, image)
    for sample in samples:
        sample.pseudo_weight.data[:, 28:] = 0.123
        sample.pseudo_reliability.data[:, 28:] = 0.9
    found = head.loss_by_feat(decoded, samples, image)
    # The cells of the last row are half padding; no other loss reads these maps.
    for name in (
        'loss_balanced_ce',
        'loss_present_dice',
        'loss_boundary',
        'loss_energy',
    ):
        torch.testing.assert_close(found[name], expected[name])


def test_cross_view_may_be_taken_at_the_size_of_the_labels():
    inputs, samples, _ = random_batch(maps=('pseudo_weight',))
    cross = dict(type='mmwsss.CrossViewLoss', use_weight=True)
    head = build(loss_cross=dict(cross, at_label_size=True))
    decoded = head.decode(inputs)
    found = head.loss_by_feat(decoded, samples)['loss_cross']
    large = [
        torch.nn.functional.interpolate(logits, SIZE, mode='bilinear')
        for logits in decoded.stream_logits
    ]
    valid = torch.zeros(2, 1, *SIZE)
    valid[:, :, :28] = 1
    expected = build(loss_cross=cross).loss_cross.between(
        large,
        torch.ones(2, 3),
        valid=valid,
        weight=torch.cat([sample.pseudo_weight.data for sample in samples]),
    )
    torch.testing.assert_close(found, expected)
    coarse = build(loss_cross=cross).loss_by_feat(decoded, samples)['loss_cross']
    assert coarse != found


def test_affinity_loss_takes_labels_of_its_own_where_there_are_any():
    head = build(loss_affinity=dict(type='mmwsss.AffinityLoss'))
    inputs, samples, _ = random_batch(maps=())
    decoded = head.decode(inputs)
    plain = head.loss_by_feat(decoded, samples)
    own = [torch.zeros(1, *SIZE, dtype=torch.int64) for _ in samples]
    for sample, label in zip(samples, own, strict=True):
        sample.affinity_label = PixelData(data=label)
    found = head.loss_by_feat(decoded, samples)
    assert {n for n in plain if plain[n] != found[n]} == {'loss_affinity'}
    expected = head.loss_affinity(decoded.features, torch.cat(own))
    torch.testing.assert_close(found['loss_affinity'], expected)


def test_the_image_is_asked_for_only_when_needed():
    inputs, samples, image = random_batch()
    plain = build()
    assert not plain.needs_image
    plain.loss_by_feat(plain.decode(inputs), samples)
    head = build(loss_energy=dict(type='mmwsss.PairwiseEnergyLoss'))
    with pytest.raises(ValueError, match='needs the image, got image=None'):
        head.loss_by_feat(head.decode(inputs), samples)
    head.loss_by_feat(head.decode(inputs), samples, image)


def test_one_stream_has_no_cross_view():
    with pytest.raises(ValueError, match=r'two streams or more, got in_index=\(0,\)'):
        build(1, loss_cross=dict(type='mmwsss.CrossViewLoss'))
    head = build(1, loss_boundary=dict(type='mmwsss.BoundaryLoss'))
    inputs, samples, _ = random_batch(1)
    assert head.loss_by_feat(head.decode(inputs), samples)['loss_boundary'] > 0


def test_stacked_maps_are_for_all_samples_or_none():
    _, samples, _ = random_batch()
    assert stack_pixel_maps(samples, 'pseudo_weight').shape == (2, *SIZE)
    assert stack_pixel_maps(samples, 'nothing') is None
    del samples[0].pseudo_weight
    with pytest.raises(ValueError, match='in none, got 1 of 2'):
        stack_pixel_maps(samples, 'pseudo_weight')


def test_pixel_accuracy_counts_labelled_pixels():
    logits = torch.tensor([[[1.0, 0, 0, 2]], [[0, 1.0, 1, 0]]])[None]  # 0 1 1 0
    label = torch.tensor([[[0, 1, 0, 255]]])
    assert pixel_accuracy(logits, label).item() == pytest.approx(200 / 3)
    assert pixel_accuracy(logits, torch.full_like(label, 255)) == 0


def test_no_step_of_the_losses_waits_for_the_device():
    head = build(3, **EVERYTHING)
    init_default_scope('mmseg')
    head.loss_decode.append(
        MODELS.build(
            dict(type='mmwsss.BalancedCrossEntropyLoss', class_balance='batch')
        )
    )
    head.loss_boundary.bridge = 1
    head.loss_energy.band_width = 2
    inputs, samples, image = random_batch(3)
    decoded = head.decode(inputs)
    with NoWaiting():
        losses = head.loss_by_feat(decoded, samples, image, torch.full((4,), 0.3))
        total(losses).backward()
        for wait in (
            lambda: image.sum().item(),
            lambda: image[image > 0.5],
            lambda: bool(image.sum() > 0),
            lambda: image.nonzero(),
        ):
            with pytest.raises(AssertionError, match='waits for the device'):
                wait()
    assert len(losses) == 7
