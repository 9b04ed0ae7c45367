from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmwsss.errors import InputError
from mmwsss.functional import psa_loss
from mmwsss.functional.pseudo_label import resize_label
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

ROOT = Path(__file__).resolve().parents[2]
BACKBONE = dict(
    type='mmwsss.FrozenBackbone',
    backbone=dict(
        type='mmpretrain.ResNet',
        depth=18,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(0, 1),
        stem_channels=8,
        base_channels=8,
    ),
)


def build(**options):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    options = dict(backbone=BACKBONE, channels=(4, 6), stride=8, radius=3) | options
    return MODELS.build(dict(type='mmwsss.AffinityNet', **options))


def batch():
    """A photo with two halves, one without objects; the second is padded."""
    generator = torch.Generator().manual_seed(0)
    images = 0.1 * torch.rand(2, 3, 64, 64, generator=generator)
    images[0, 0, :, 32:] += 0.8
    label = torch.zeros(2, 1, 64, 64, dtype=torch.int64)
    label[0, :, :, 32:] = 1
    label[1, :, 48:] = 255
    samples = []
    for number in range(2):
        meta = dict(img_shape=(64 - 16 * number, 64), ori_shape=(64, 64))
        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = PixelData(data=label[number])
        samples.append(sample)
    return images, samples


def test_loss_is_that_of_the_labels_on_its_grid():
    model = build()
    images, samples = batch()
    losses = model(images, samples, mode='loss')
    filled = images.clone()
    filled[1, :, 48:] = model.backbone.mean[0]
    label = torch.cat([sample.gt_sem_seg.data for sample in samples])
    expected = psa_loss(model(filled), resize_label(label, (8, 8)), radius=3)
    assert torch.allclose(losses['loss_affinity'], expected)
    shares = [
        losses[f'pairs.{k}_share'] for k in ('background', 'foreground', 'different')
    ]
    assert sum(shares) == pytest.approx(1)
    losses['loss_affinity'].backward()
    named = dict(model.named_parameters())
    assert set(named) == {'parts.0.weight', 'parts.1.weight', 'join.weight'}
    assert all(p.grad.abs().sum() > 0 for p in named.values())
    assert set(model.state_dict()) == set(named)


def test_it_learns_and_the_walk_stays_on_its_side():
    model = build(beta=8)
    images, samples = batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(80):
        loss = model(images, samples, mode='loss')['loss_affinity']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    # A CAM in one corner of the bright half fills it and hardly leaves it.
    scores = torch.zeros(1, 3, 16, 16)
    scores[0, 1, :4, 12:] = 1
    refined = model.eval().refine(images[:1], scores, torch.tensor([[1.0, 0.0]]))
    assert refined.shape == (1, 3, 64, 64)
    assert (refined[:, 0] == 0.25).all()
    assert refined[0, 1].max() == 1
    assert refined[0, 1, :, 40:].min() > 0.5
    assert refined[0, 1, :, :24].max() < 0.25
    assert (refined[0, 2] == 0).all()


@pytest.mark.parametrize('size', [(1, 1), (37, 50)])
def test_any_photo_and_a_background_of_its_own(size):
    model = build(background_threshold=None).eval()
    scores = torch.rand(2, 3, 5, 6)
    label = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    refined = model.refine(torch.rand(2, 3, *size), scores, label)
    assert refined.shape == (2, 3, *size)
    assert (refined[0, 2] == 0).all()
    assert (refined[1, 1:] == 0).all()
    assert refined[:, 0].max() <= scores[:, 0].max()
    threshold = build().eval().refine(torch.rand(2, 3, *size), scores, label)
    assert (threshold[1, 1:] == 0).all()
    assert threshold.isfinite().all()


def test_it_labels_samples_with_stored_cams():
    model = build().eval()
    image = torch.rand(1, 3, 32, 40)
    meta = dict(img_shape=(30, 40), ori_shape=(60, 80), img_id='a')
    sample = SegDataSample(metainfo=meta)
    sample.set_field(torch.tensor([1.0, 0.0]), 'image_label', dtype=torch.Tensor)
    with pytest.raises(InputError, match='AffinityNet refines CAMs, but'):
        model(image, [sample], mode='predict')
    sample.set_field(torch.rand(2, 8, 10), 'cams', dtype=torch.Tensor)
    (found,) = model(image, [sample], mode='predict')
    scores = torch.cat([torch.zeros(1, 8, 10), sample.cams])[None]
    refined = model.refine(image[..., :30, :], scores, sample.image_label[None])
    refined = torch.nn.functional.interpolate(refined, (60, 80), mode='bilinear')
    assert torch.equal(found.pred_sem_seg.data, refined.argmax(1))
    model.background_threshold = None
    with pytest.raises(InputError, match='background_threshold of AffinityNet is None'):
        model(image, [sample], mode='predict')


def test_the_config_gives_such_a_network():
    cfg = Config.fromfile(str(ROOT / 'configs/psa_msrc.py'))
    init_default_scope('mmseg')
    cfg.model.backbone.weights = None
    model = MODELS.build(cfg.model).eval()
    assert model.affinity(torch.rand(1, 3, 50, 70)).shape == (1, 34, 7, 9)


def test_wrong_parts_are_one_sentence():
    with pytest.raises(InputError, match=r'gives 2 maps, but channels=\(4,\)'):
        build(channels=(4,))
    with pytest.raises(InputError, match=r'wrap it in mmwsss\.FrozenBackbone'):
        build(backbone=BACKBONE['backbone'])
    with pytest.raises(ValueError, match='got 8 and 1'):
        build(radius=1)
    with pytest.raises(ValueError, match='cam_power must be positive, got 0'):
        build(cam_power=0)
    with pytest.raises(ValueError, match="got 'train'"):
        build()(torch.zeros(1, 3, 8, 8), [], mode='train')
