import math

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from distributed_amn import BACKBONE, PADDED, SIZES, batch, network, run_rank, train

from mmwsss.errors import InputError
from mmwsss.functional.pseudo_label import resize_label
from mmwsss.models.cam_networks.amn import activation
from mmwsss.models.cam_networks.base import resized_photo, scaled_size

pytestmark = pytest.mark.mm


def lively(seed=0, **changes):
    """A network whose classes all win somewhere in a photo of noise."""
    model = network(**changes).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim > 1:
            parameter.data = noise * parameter[0].numel() ** -0.5
        else:
            parameter.data += 0.5 * noise
    for classifier in model.pyramid:
        classifier.weight.data *= 4
    return model


# ----------------------------------------------------------------------------- network
def test_logits_are_the_sum_of_the_pyramid_on_conditioned_features():
    model = lively()
    image = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    label = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    found = model.seg_logits(image, label)
    features = model.backbone(model.normalized(image))[-1]
    assert found.shape == (2, 3, *features.shape[-2:])
    weight, bias = model.label_embedding.weight, model.label_embedding.bias
    for n in range(2):
        factor = [
            bias[d] + sum(weight[d, k] * label[n, k] for k in range(2))
            for d in range(len(bias))
        ]
        own = features[n] * torch.stack(factor)[:, None, None]
        expected = sum(
            F.conv2d(own[None], c.weight, c.bias, padding=d, dilation=d)
            for c, d in zip(model.pyramid, (1, 2), strict=True)
        )
        assert torch.allclose(found[n], expected[0], atol=1e-10)


def test_the_image_label_is_seen():
    model = lively()
    image = torch.rand(1, 3, 32, 48, dtype=torch.float64)
    first, second = (
        model.seg_logits(image, torch.tensor([label], dtype=torch.float64))
        for label in ((1, 0), (0, 1))
    )
    assert (first - second).abs().max() > 0.1


# -------------------------------------------------------------------------- training
def test_loss_equals_a_loop():
    model = lively(label_smoothing=0.4).train()
    inputs, samples = batch()
    valid = torch.zeros(4, 1, *PADDED, dtype=torch.float64)
    for n, (height, width) in enumerate(SIZES):
        valid[n, :, :height, :width] = 1
    label = torch.stack([s.image_label for s in samples]).double()
    image = inputs * valid + model.mean * (1 - valid)
    logits = model.seg_logits(image, label)
    ir_label = torch.cat([s.gt_sem_seg.data for s in samples])
    ir_label = resize_label(ir_label, logits.shape[-2:])
    halves = {'background': [], 'foreground': []}
    for n in range(4):
        for y in range(logits.shape[2]):
            for x in range(logits.shape[3]):
                own = int(ir_label[n, y, x])
                if own == 255:
                    continue
                values = logits[n, :, y, x].tolist()
                whole = math.log(math.fsum(map(math.exp, values)))
                loss = -math.fsum(
                    (0.6 if c == own else 0.2) * (z - whole)
                    for c, z in enumerate(values)
                )
                halves['foreground' if own else 'background'].append(loss)
    assert all(halves.values())
    expected = sum(math.fsum(h) / len(h) for h in halves.values()) / 2
    found = model(inputs, samples, mode='loss')['loss_seg'].item()
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize('number', [0, 2])
def test_a_batch_with_half_the_labels_has_a_finite_loss(number):
    model = network().train()
    part = slice(number, number + 1)
    inputs, samples = batch(part)
    found = set(samples[0].gt_sem_seg.data.unique().tolist())
    assert found == ({1, 255} if number == 0 else {0, 255})
    loss = model(inputs, samples, mode='loss')['loss_seg']
    loss.backward()
    assert 0 < loss.item() < 10
    assert all(p.grad.isfinite().all() for p in model.parameters())
    samples[0].gt_sem_seg.data[:] = 255
    assert model(inputs, samples, mode='loss')['loss_seg'].item() == 0


def test_padding_is_not_looked_at():
    model = lively().train()
    inputs, samples = batch()
    before = model(inputs, samples, mode='loss')['loss_seg'].item()
    inputs[1, :, SIZES[1][0] :] = 7.0
    assert model(inputs, samples, mode='loss')['loss_seg'].item() == before


def test_every_parameter_learns_and_the_loss_falls():
    model = network().train()
    inputs, samples = batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(inputs, samples, mode='loss')['loss_seg']
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    still = [n for n, p in model.named_parameters() if not p.grad.abs().sum() > 0]
    assert still == []
    assert losses[-1] < losses[0]


def test_two_processes_train_as_one(tmp_path):
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'rank{r}.pt') for r in range(2))
    for a, b, c in zip(first, second, train(network(), slice(0, 4)), strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c, atol=1e-9)


def test_missing_ir_labels_are_a_sentence():
    inputs, samples = batch()
    del samples[1].gt_sem_seg
    with pytest.raises(InputError, match=r'mmwsss\.LoadPseudoLabels'):
        network()(inputs, samples, mode='loss')


# -------------------------------------------------------------------------- inference
def expected_softmax(model, photo, label, scales, flip):
    """Probabilities of all classes by the formula, view by view."""
    size, total = tuple(photo.shape[-2:]), 0
    for scale in scales:
        scaled = resized_photo(photo[None], scaled_size(size, scale, 2048))
        views = [model.seg_logits(scaled, label[None])]
        if flip:
            views.append(model.seg_logits(scaled.flip(-1), label[None]).flip(-1))
        for view in views:
            # The house adds up in single precision.
            view = F.interpolate(view.float(), size, mode='bilinear')
            total = total + view[0] / len(views) / len(scales)
    return total.softmax(0)


@pytest.mark.parametrize('flip', [True, False])
def test_softmax_is_that_of_the_mean_logits(flip):
    model = lively(test_scales=(1.0, 0.5), test_flip=flip)
    photo = torch.rand(3, 33, 46, dtype=torch.float64)
    label = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        expected = expected_softmax(model, photo, label, (1.0, 0.5), flip)
    found = model.cams(photo, label, kind='softmax')
    assert torch.allclose(found.scores[[0, 2]], expected[[0, 2]], atol=1e-5)
    assert (found.scores[1] == 0).all()
    assert torch.equal(found.cams, found.scores[1:])
    # Absent classes keep their share.
    assert found.scores.sum(0).max() < 1


def loop_activation(scores, background):
    expected = scores.clone()
    for c, own in enumerate(scores):
        low, high = own.min().item(), own.max().item()
        for y in range(own.shape[0]):
            for x in range(own.shape[1]):
                if not background[y, x]:
                    value = (own[y, x].item() - low) / (high - low + 1e-5)
                    expected[c, y, x] = value
    return expected


def test_activation_keeps_probabilities_on_background_alone():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 5, 6, generator=generator, dtype=torch.float64) * 0.4
    scores[2] = 0
    background = torch.rand(5, 6, generator=generator) < 0.5
    found = activation(scores, background)
    assert torch.allclose(found, loop_activation(scores, background), atol=1e-12)
    assert torch.equal(found[:, background], scores[:, background])
    # The highest is 1 only where it lies outside the background.
    assert found[0].max() <= 1
    assert (found[2] == 0).all()
    assert torch.equal(activation(scores, torch.ones(5, 6) > 0), scores)


def test_cams_follow_the_ir_label_where_there_is_one():
    model = lively(test_scales=(1.0,))
    photo = torch.rand(3, 32, 48, dtype=torch.float64)
    label = torch.tensor([1.0, 1.0], dtype=torch.float64)
    scores = model.cams(photo, label, kind='softmax').scores
    ir_label = torch.randint(0, 3, (32, 48))
    ir_label[5:9] = 255
    found = model.cams(photo, label, ir_label=ir_label)
    # 255 is not background.
    assert torch.allclose(found.cams, activation(scores, ir_label == 0)[1:])
    assert found.scores is None
    own = model.cams(photo, label)
    decided = scores.argmax(0) == 0
    assert 0 < decided.sum() < decided.numel()
    assert torch.allclose(own.cams, activation(scores, decided)[1:])
    assert not torch.allclose(own.cams, found.cams)
    with pytest.raises(InputError, match=r'IR label must be \(32, 48\)'):
        model.cams(photo, label, ir_label=ir_label[1:])


def test_the_mask_of_evaluation_is_never_looked_at():
    model = lively(test_scales=(1.0,))
    inputs, samples = batch()
    model(inputs, samples, mode='predict')
    before = [sample.cams.clone() for sample in samples]
    for sample in samples:
        sample.gt_sem_seg.data[:] = 0
    model(inputs, samples, mode='predict')
    for sample, cams in zip(samples, before, strict=True):
        assert torch.equal(sample.cams, cams)


def test_photos_without_classes_and_small_ones():
    model = lively()
    nothing = model.cams(torch.rand(3, 20, 30), torch.zeros(2))
    assert (nothing.cams == 0).all()
    own = model.cams(torch.rand(3, 20, 30), torch.zeros(2), kind='softmax')
    assert (own.scores[1:] == 0).all()
    assert (own.scores[0] > 0).all()
    tiny = model.cams(torch.rand(3, 1, 2), torch.ones(2))
    assert tiny.cams.shape == (2, 1, 2)
    assert tiny.cams.isfinite().all()


def test_dropout_is_off_where_cams_are_made():
    model = lively(dropout_ratio=0.5, test_scales=(1.0,))
    photo, label = torch.rand(3, 24, 24), torch.ones(2)
    first, second = (model.cams(photo, label).cams for _ in range(2))
    assert torch.equal(first, second)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='dilations must be at least 1'):
        network(dilations=(0, 6))
    with pytest.raises(ValueError, match='label_smoothing must lie'):
        network(label_smoothing=0.7)
    with pytest.raises(InputError, match='returns 1 feature maps, but 4 are needed'):
        network(backbone=BACKBONE | dict(out_indices=(3,)))
    with pytest.raises(InputError, match="it has no 'is_cam'"):
        network().cams(torch.rand(3, 9, 9), torch.ones(2), kind='is_cam')
