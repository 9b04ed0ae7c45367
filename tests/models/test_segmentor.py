import pytest
import tiny_run
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import mmwsss.datasets
import mmwsss.models  # noqa: F401
from mmwsss.errors import InputError
from mmwsss.registry import MODELS


def build(**changes):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = {**tiny_run.config('unused')['model'], **changes}
    return MODELS.build(model)


def batch(labels=((1, 0), (1, 1)), shape=(24, 40), size=(32, 40)):
    samples = []
    for label in labels:
        sample = SegDataSample(
            metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=size)
        )
        label = torch.tensor(label, dtype=torch.float32)
        sample.set_field(label, 'image_label', dtype=torch.Tensor)
        samples.append(sample)
    image = torch.rand(
        len(labels), 3, *size, generator=torch.Generator().manual_seed(1)
    )
    image[..., shape[0] :, :] = 0
    return image, samples


def total(losses):
    return sum(v for n, v in losses.items() if 'loss' in n)


@pytest.mark.parametrize(
    'labels', [((1, 0), (1, 1)), ((0, 0), (0, 0)), ((1, 1), (0, 0))]
)
def test_losses_and_gradients_are_finite_for_any_image_label(labels):
    model = build().train()
    image, samples = batch(labels)
    losses = model.loss(image, samples)
    total(losses).backward()
    assert torch.isfinite(total(losses))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    assert all(g.isfinite().all() for g in gradients)


def test_labels_hold_only_classes_of_the_image_and_no_padding():
    model = build().eval()
    image, samples = batch(((1, 0), (0, 0)))
    model.progress = 1.0  # self-labels too
    explained = model.explain(image, samples)
    assert explained.cams.shape == (2, 2, 32, 40)
    assert explained.refined.shape == explained.seg_logits.shape == (2, 3, 32, 40)
    assert set(explained.pseudo_label[0].unique().tolist()) <= {0, 1, 255}
    assert set(explained.pseudo_label[1, :24].unique().tolist()) <= {0, 255}
    assert (explained.pseudo_label[:, 24:] == 255).all()
    assert not explained.cams[0, 1].any()
    assert not explained.cams[1].any()
    assert 0 <= explained.cams.min() <= explained.cams.max() <= 1


@pytest.mark.parametrize(
    'head',
    [
        dict(type='FCNHead', in_channels=24, in_index=1, num_convs=1),
        dict(
            type='FCNHead',
            in_channels=[16, 24],
            in_index=[0, 1],
            input_transform='resize_concat',
        ),
        dict(type='ASPPHead', in_channels=16, in_index=0, dilations=(1, 2)),
    ],
)
def test_any_mmseg_head_takes_the_place_of_ours(head):
    head = dict(
        channels=8,
        num_classes=3,
        norm_cfg=dict(type='BN'),
        loss_decode=[
            dict(type='CrossEntropyLoss', loss_name='loss_ce'),
            dict(type='mmwsss.PresentDiceLoss'),
        ],
        **head,
    )
    model = build(decode_head=head, loss_schedules={'decode.loss_ce': [[0, 0.5]]})
    losses = model.train().loss(*batch())
    assert {'decode.loss_ce', 'decode.loss_present_dice'} <= losses.keys()
    total(losses).backward()
    image, samples = batch()
    prediction = model.eval().predict(image, samples)[0].pred_sem_seg
    assert isinstance(prediction, PixelData)


def test_schedule_scales_the_named_loss_by_progress():
    model = build(loss_schedules={'cam.loss_cls_a': [[0.0, 0.0], [1.0, 2.0]]})
    image, samples = batch()
    model.eval()
    plain = build().eval().loss(*batch())['cam.loss_cls_a']
    for progress in (0.0, 0.25, 1.0):
        model.progress = progress
        scaled = model.loss(image, samples)['cam.loss_cls_a']
        torch.testing.assert_close(scaled, plain * 2 * progress)
    wrong = build(loss_schedules={'decode.loss_typo': [[0.0, 1.0]]})
    with pytest.raises(ValueError, match=r"names 'decode\.loss_typo'"):
        wrong.loss(image, samples)


def test_encoders_stay_frozen_and_out_of_checkpoints():
    model = build().train()
    towers = [encoder.tower for encoder in model.backbone.encoders.values()]
    assert not any(m.training for tower in towers for m in tower.modules())
    assert not any(p.requires_grad for tower in towers for p in tower.parameters())
    assert not [name for name in model.state_dict() if name.startswith('backbone')]
    other = build()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(model.state_dict(), strict=True)
    image, samples = batch()
    for a, b in zip(
        model.eval().explain(image, samples).__dict__.values(),
        other.eval().explain(image, samples).__dict__.values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_sliding_window_covers_the_image():
    model = build(test_cfg=dict(mode='slide', crop_size=(24, 24), stride=(16, 16)))
    image, samples = batch(shape=(32, 40))
    results = model.eval().predict(image, samples)
    assert results[0].seg_logits.data.shape == (3, 32, 40)


def test_parts_can_be_left_out():
    model = build(cam_refiner=None, refiners=[])
    image, samples = batch()
    explained = model.eval().explain(image, samples)
    expected = 1 - explained.cams.amax(1)
    # Without refiners the background is what the CAMs leave, but for resizing.
    assert (explained.refined[:, 0] - expected)[:, 4:20, 4:36].abs().mean() < 0.1


def test_dense_crf_is_a_refiner_and_a_post_processing():
    pytest.importorskip('pydensecrf', reason='the extra crf is not installed')
    model = build(test_cfg=dict(mode='whole', crf=dict(type='mmwsss.DenseCRF')))
    image, samples = batch(shape=(32, 40))
    prediction = model.eval().predict(image, samples)[0].pred_sem_seg.data
    assert prediction.shape == (1, 32, 40)
    crf = MODELS.build(dict(type='mmwsss.DenseCRF', num_iters=3))
    scores = crf(image, torch.rand(2, 3, 8, 10).softmax(1), torch.ones(2, 2))
    torch.testing.assert_close(scores.sum(1), torch.ones(2, 32, 40))


@pytest.mark.parametrize(
    ('counts', 'expected'), [((1, 2), 2), ((0, 0), 0), ((1, None), None)]
)
def test_cam_source_learns_from_the_host_how_many_classes_there_are(counts, expected):
    model = build().train()
    image, samples = batch(((1, 0), (1, 1)))
    for sample, count in zip(samples, counts, strict=True):
        if count is not None:
            sample.set_metainfo({'num_present': count})
    seen, plain = [], model.cam_source.cams

    def cams(*args, max_classes, **options):
        seen.append(max_classes)
        return plain(*args, **options)

    model.cam_source.cams = cams
    model.loss(image, samples)
    model.explain(image, samples)
    assert seen == [expected, expected]


def with_whole_photo_cams(samples, grid=8):
    """The first class rises from the left edge of the photo, the other from its top."""
    ramp = ((torch.arange(grid) + 0.5) / grid).expand(grid, grid)
    for sample in samples:
        maps = torch.stack([ramp, ramp.T]) * sample.image_label[:, None, None]
        sample.set_field(maps, 'cams', dtype=torch.Tensor)


def test_cams_of_the_whole_photo_are_cut_to_the_crop():
    model = build(cam_source=dict(type='mmwsss.CroppedCAMs', source='a')).train()
    image, samples = batch(((1, 0), (1, 1)))
    with_whole_photo_cams(samples)
    # 24 x 40 pixels from row 24, column 30 of 80 x 100; the second is flipped.
    for sample, flip in zip(samples, (False, True), strict=True):
        sample.set_metainfo(
            dict(crop_box=(30, 24, 70, 48), crop_from=(80, 100), flip=flip)
        )
    encoded = model.backbone.encode(image)
    label, valid = model._targets(image, samples)
    cams = model.make_cams(encoded, label, valid, data_samples=samples)
    rows, columns = encoded['a'].grid
    assert cams.shape == (2, 2, rows, columns)
    inside = torch.arange(rows) < rows * 24 // 32
    column = 0.3 + 0.4 * (torch.arange(columns) + 0.5) / columns
    row = 0.3 + 0.4 * (torch.arange(rows) + 0.5) / rows
    expected = column.expand(rows, columns) * inside[:, None]
    torch.testing.assert_close(cams[0, 0], expected)
    torch.testing.assert_close(cams[1, 0], expected.flip(1))
    torch.testing.assert_close(
        cams[1, 1], row[:, None].expand(rows, columns) * inside[:, None]
    )
    assert not cams[0, 1].any()
    losses = model.loss(image, samples)
    assert torch.isfinite(total(losses))
    assert model.explain(image, samples).cams.shape == (2, 2, 32, 40)


@pytest.mark.parametrize('broken', ['none', 'one without', 'other grid', 'not square'])
def test_cams_that_do_not_fit_are_one_sentence(broken):
    model = build(cam_source=dict(type='mmwsss.CroppedCAMs', source='a')).train()
    image, samples = batch(((1, 0), (1, 1)))
    if broken != 'none':
        with_whole_photo_cams(samples)
    if broken == 'one without':
        del samples[1].cams
    if broken == 'other grid':
        with_whole_photo_cams(samples[:1], grid=4)
    if broken == 'not square':
        for sample in samples:
            sample.set_field(torch.rand(2, 4, 8), 'cams', dtype=torch.Tensor)
    with pytest.raises(InputError, match=r'LoadCAMs\(cam_root=..., grid_size=64\)'):
        model.loss(image, samples)
