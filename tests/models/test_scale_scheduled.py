import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample

import mmwsss.models  # noqa: F401
from mmwsss.errors import InputError
from mmwsss.functional.pseudo_label import most_frequent
from mmwsss.models.batch import valid_mask
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

COMMON = dict(mean=[10, 20, 30], std=[2, 3, 4], bgr_to_rgb=True, size=(32, 48))
SHAPES = ((32, 48), (20, 48), (31, 17))


def build(**changes):
    init_default_scope('mmseg')
    config = dict(type='mmwsss.ScaleScheduledDataPreProcessor', divisor=1)
    return MODELS.build(config | COMMON | changes)


@pytest.fixture
def at(monkeypatch):
    """Pretend that a runner is at a place of its training."""
    hub = MessageHub('scale_scheduled')
    monkeypatch.setattr(MessageHub, 'get_current_instance', lambda: hub)

    def place(iteration, whole=100):
        hub.update_info('iter', iteration)
        hub.update_info('max_iters', whole)

    return place


def batch(reliability=False):
    generator = torch.Generator().manual_seed(0)
    inputs, samples = [], []
    for shape in SHAPES:
        image = torch.randint(0, 256, (3, *shape), generator=generator)
        inputs.append(image.to(torch.uint8))
        label = torch.tensor([0, 3, 20, 255])
        label = label[torch.randint(4, shape, generator=generator)]
        sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
        sample.gt_sem_seg = PixelData(data=label[None])
        if reliability:
            values = torch.rand(1, *shape, generator=generator)
            sample.pseudo_reliability = PixelData(data=values)
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def plain(**content):
    return SegDataPreProcessor(**COMMON)(batch(**content), True)


# ------------------------------------------------------------------------ the schedule
def test_the_scale_grows_in_steps_or_along_a_ramp():
    model = build()
    found = [model.scale_at(t / 20) for t in range(21)]
    assert found == [0.5] * 5 + [0.75] * 5 + [1.0] * 11
    # Composer's: half the size at first, then a ramp, the last fifth at full size.
    model = build(scales=((0.5, 0.5), (0.8, 1.0)), curve='linear')
    for t in range(101):
        progress = t / 100
        expected = 0.5 + 0.5 * min(max((progress - 0.5) / 0.3, 0), 1)
        assert model.scale_at(progress) == pytest.approx(expected)


def test_the_iteration_decides(at):
    model = build(scales=((0.0, 0.5), (0.4, 1.0)))
    sizes = []
    # In any order: nothing is remembered from call to call.
    for iteration in (0, 39, 40, 99, 12):
        at(iteration)
        sizes.append(tuple(model(batch(), True)['inputs'].shape[-2:]))
    assert sizes == [(16, 24), (16, 24), (32, 48), (32, 48), (16, 24)]


def test_without_a_runner_it_says_so(monkeypatch):
    hub = MessageHub('nobody_trains')
    monkeypatch.setattr(MessageHub, 'get_current_instance', lambda: hub)
    with pytest.raises(InputError, match=r'no Runner is training; .*tools/train\.py'):
        build()(batch(), True)


# ------------------------------------------------------------------------- no scaling
@pytest.mark.parametrize('late', [True, False])
def test_at_scale_one_nothing_is_touched(at, late):
    scales = ((0.0, 0.5), (0.5, 1.0)) if late else ((0.0, 1.0),)
    model = build(scales=scales, divisor=32)
    at(99)
    found, expected = model(batch(reliability=True), True), plain(reliability=True)
    assert torch.equal(found['inputs'], expected['inputs'])
    for ours, theirs in zip(
        found['data_samples'], expected['data_samples'], strict=True
    ):
        assert torch.equal(ours.gt_sem_seg.data, theirs.gt_sem_seg.data)
        assert torch.equal(ours.pseudo_reliability.data, theirs.pseudo_reliability.data)
        assert ours.metainfo == theirs.metainfo


def test_evaluation_is_never_scaled(monkeypatch):
    # Not even asked how far a training is.
    monkeypatch.setattr(MessageHub, 'get_current_instance', None)
    data = batch()
    data = {name: values[:1] for name, values in data.items()}
    found = build()(data, False)
    assert found['inputs'].shape == (1, 3, 32, 48)
    assert found['data_samples'][0].gt_sem_seg.shape == (32, 48)


# ---------------------------------------------------------------------------- scaling
def test_half_size_equals_a_loop(at):
    at(0)
    found, whole = build()(batch(), True), plain()
    inputs = whole['inputs'].double()

    # Antialiased bilinear at one half: a triangle over four pixels, (1, 3, 3, 1) / 8,
    # whose weights outside the image go to the others.
    def taps(position, side):
        places = {2 * position + d: (1, 3, 3, 1)[d + 1] for d in (-1, 0, 1, 2)}
        inside = {p: w for p, w in places.items() if 0 <= p < side}
        total = sum(inside.values())
        return {p: w / total for p, w in inside.items()}

    assert found['inputs'].shape == (3, 3, 16, 24)
    for y in (0, 1, 7, 15):
        for x in (0, 5, 23):
            expected = sum(
                v * w * inputs[..., i, j]
                for i, v in taps(y, 32).items()
                for j, w in taps(x, 48).items()
            )
            assert torch.allclose(
                found['inputs'][..., y, x].double(), expected, atol=1e-4
            )


@pytest.mark.parametrize('scale', [0.5, 0.75, 0.31])
def test_masks_keep_their_values_and_stay_in_place(at, scale):
    at(0)
    found = build(scales=((0.0, scale),))(batch(), True)
    whole = plain()
    height, width = int(32 * scale + 0.5), int(48 * scale + 0.5)
    for ours, theirs in zip(found['data_samples'], whole['data_samples'], strict=True):
        label, before = ours.gt_sem_seg.data, theirs.gt_sem_seg.data
        assert label.dtype == before.dtype
        assert label.shape == (1, height, width)
        for y in range(height):
            for x in range(width):
                # The pixel at the centre of the new one.
                row = math.floor((y + 0.5) * 32 / height)
                column = math.floor((x + 0.5) * 48 / width)
                assert label[0, y, x] == before[0, row, column]
    assert found['inputs'].shape[-2:] == (height, width)


def test_padding_and_reliability_stay_with_their_pixels(at):
    at(0)
    found = build()(batch(reliability=True), True)
    whole = plain(reliability=True)
    samples = found['data_samples']
    valid = valid_mask(samples, (16, 24), torch.device('cpu'))
    for number, (ours, shape) in enumerate(zip(samples, SHAPES, strict=True)):
        assert ours.img_shape == (round(shape[0] / 2), round(shape[1] / 2))
        assert ours.ori_shape == shape
        assert ours.pad_shape == (16, 24)
        label = ours.gt_sem_seg.data[0]
        outside = valid[number, 0] == 0
        # A half pixel of the photo may lie beyond the rounded side.
        assert (label[outside] == 255).float().mean() >= 0.9 or not outside.any()
        reliability = ours.pseudo_reliability.data
        assert reliability.shape == (1, 16, 24)
        before = whole['data_samples'][number].pseudo_reliability.data
        missing = (0, 48 - before.shape[-1], 0, 32 - before.shape[-2])
        before = F.pad(before, missing)
        assert torch.equal(reliability, before[:, 1::2, 1::2])
        full = whole['data_samples'][number].gt_sem_seg.data[0]
        assert torch.equal(label, full[1::2, 1::2])


def test_sides_are_multiples_of_the_divisor(at):
    at(0)
    for scale, divisor, expected in (
        (0.5, 8, (16, 24)),
        (0.7, 8, (24, 32)),
        (0.7, 16, (16, 32)),
        (0.01, 8, (8, 8)),
        (0.99, 32, (32, 32)),
        (0.9, 64, (32, 48)),  # never larger than the batch
    ):
        model = build(scales=((0.0, scale),), divisor=divisor)
        found = model(batch(), True)
        assert tuple(found['inputs'].shape[-2:]) == expected
        assert found['data_samples'][0].gt_sem_seg.shape == expected


def test_one_pixel_batches(at):
    at(0)
    model = build(size=(1, 1))
    sample = SegDataSample(metainfo=dict(img_shape=(1, 1)))
    sample.gt_sem_seg = PixelData(data=torch.full((1, 1, 1), 255))
    data = dict(inputs=[torch.zeros(3, 1, 1)], data_samples=[sample])
    found = model(data, True)
    assert found['inputs'].shape == (1, 3, 1, 1)
    assert found['data_samples'][0].gt_sem_seg.data.tolist() == [[[255]]]


# ---------------------------------------------------------------------- most frequent
@pytest.mark.parametrize('ratio', [(2, 2), (3, 2), (1, 4)])
def test_most_frequent_label_equals_counting(ratio):
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([0, 7, 255])
    labels = values[torch.randint(3, (2, 6, 8), generator=generator)]
    size = 6 // ratio[0], 8 // ratio[1]
    found = most_frequent(labels, size)
    assert found.dtype == labels.dtype
    for n in range(2):
        for y in range(size[0]):
            for x in range(size[1]):
                rows = slice(y * ratio[0], (y + 1) * ratio[0])
                columns = slice(x * ratio[1], (x + 1) * ratio[1])
                below = labels[n, rows, columns].flatten().tolist()
                most = max(below.count(v) for v in below)
                assert found[n, y, x] == min(v for v in below if below.count(v) == most)


def test_most_frequent_removes_specks_that_nearest_keeps(at):
    label = torch.zeros(1, 8, 8, dtype=torch.int64)
    label[:, 1, 1] = label[:, 5, 3] = 4
    at(0)
    found = {}
    for mode in ('nearest', 'mode'):
        sample = SegDataSample(metainfo=dict(img_shape=(8, 8)))
        sample.gt_sem_seg = PixelData(data=label.clone())
        data = dict(inputs=[torch.zeros(3, 8, 8)], data_samples=[sample])
        model = build(size=(8, 8), mask_mode=mode)
        (sample,) = model(data, True)['data_samples']
        found[mode] = int((sample.gt_sem_seg.data == 4).sum())
        assert sample.gt_sem_seg.shape == (4, 4)
    assert found == {'nearest': 2, 'mode': 0}


def test_bad_arguments_are_named():
    for changes, expected in (
        (dict(curve='cosine'), "curve must be one of .* got 'cosine'"),
        (dict(mask_mode='area'), "mask_mode must be one of .* got 'area'"),
        (dict(divisor=0), 'divisor must be at least 1'),
        (dict(scales=((0.0, 1.5),)), r'must lie in \(0, 1\]'),
        (dict(scales=((0.0, 0.0),)), r'must lie in \(0, 1\]'),
        (dict(scales=((0.5, 0.5), (0.1, 1.0))), 'sorted'),
        (dict(scales=()), 'at least one'),
    ):
        with pytest.raises(ValueError, match=expected):
            build(**changes)
