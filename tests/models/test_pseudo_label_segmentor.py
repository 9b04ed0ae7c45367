from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import mmwsss.datasets
import mmwsss.models  # noqa: F401
from mmwsss.models.labelers import Labels
from mmwsss.models.segmentors.pseudo_label_segmentor import (
    PixelWeights,
    mean_one_weights,
    present_classes,
)
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

ROOT = Path(__file__).resolve().parents[2]
CONV = dict(norm_cfg=dict(type='BN'), channels=8, num_classes=4, dropout_ratio=0.0)


def head(**changes):
    loss = dict(type='CrossEntropyLoss', avg_non_ignore=True)
    content = dict(
        type='FCNHead', in_channels=16, in_index=1, num_convs=1, loss_decode=loss
    )
    return {**content, **CONV, **changes}


def build(**changes):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    content = dict(
        type='mmwsss.PseudoLabelSegmentor',
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            base_channels=8,
            stem_channels=8,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(0, 1),
            norm_cfg=dict(type='BN'),
        ),
        decode_head=head(),
        auxiliary_head=head(in_channels=8, in_index=0, concat_input=False),
        gate=dict(type='mmwsss.ReliabilityGate', num_classes=4),
        data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 40)),
    )
    return MODELS.build({**content, **changes})


def batch(*, shape=(28, 40), size=(32, 40), reliability=False, image_label=True):
    generator = torch.Generator().manual_seed(1)
    samples = []
    for i in range(2):
        sample = SegDataSample(
            metainfo=dict(img_id=f'p{i}', img_shape=shape, ori_shape=shape)
        )
        label = torch.randint(0, 3, (1, 4, 5), generator=generator)
        label = label.repeat_interleave(8, 1).repeat_interleave(8, 2)
        label[:, shape[0] :] = 255
        label[:, :3] = 255
        sample.gt_sem_seg = PixelData(data=label)
        if image_label:
            value = torch.tensor([1.0, 1.0, 0.0])
            sample.set_field(value, 'image_label', dtype=torch.Tensor)
        if reliability:
            trust = torch.rand(1, *shape, generator=generator)
            sample.pseudo_reliability = PixelData(data=trust)
        samples.append(sample)
    return torch.rand(2, 3, *size, generator=generator), samples


class FixedGate(torch.nn.Module):
    """Hands out labels that are known beforehand."""

    def __init__(self, labels):
        super().__init__()
        self.labels, self.seen = labels, {}

    def forward(self, base_label, image_label, **rest):
        self.seen = {'base': base_label, 'image_label': image_label, **rest}
        return self.labels


def test_losses_are_weighted_means_over_the_gated_labels():
    model = build().eval()
    image, samples = batch()
    gated = torch.randint(0, 4, (2, 32, 40), generator=torch.Generator().manual_seed(2))
    gated[:, 28:] = 255
    weight = torch.rand(2, 32, 40, generator=torch.Generator().manual_seed(3))
    weight[0] *= 0.01
    model.gate = FixedGate(Labels(gated, weight=weight, logs={'x': torch.tensor(1.0)}))
    losses = model.loss(image, samples)
    features = model.extract_feat(image)
    for name, part in (('decode', model.decode_head), ('aux', model.auxiliary_head)):
        logits = F.interpolate(part(features), (32, 40), mode='bilinear')
        total, count = 0.0, 0.0
        log_p = logits.double().log_softmax(1)
        for n in range(2):
            for y in range(28):
                for x in range(40):
                    w = float(weight[n, y, x])
                    total -= w * float(log_p[n, gated[n, y, x], y, x])
                    count += w
        assert float(losses[f'{name}.loss_ce']) == pytest.approx(
            total / count, rel=1e-4
        )
    assert losses['label.x'] == 1
    # Nothing of the batch stays behind.
    assert model.decode_head.sampler.weight is None
    assert model.auxiliary_head.sampler.weight is None


def test_pixels_of_weight_zero_have_no_gradient():
    model = build(auxiliary_head=None).eval()
    image, samples = batch()
    label = torch.ones(2, 32, 40, dtype=torch.long)
    weight = torch.zeros(2, 32, 40)
    weight[:, :, :8] = 0.3
    model.gate = FixedGate(Labels(label, weight=weight))
    logits = []

    def keep(module, inputs, output):
        output.retain_grad()
        logits.append(output)

    model.decode_head.register_forward_hook(keep)
    model.loss(image, samples)['decode.loss_ce'].backward()
    gradient = logits[0].grad.abs().sum(1)
    assert gradient.shape[-1] == 5  # cells of 8 pixels
    assert gradient[..., :2].min() > 0
    assert gradient[..., 2:].max() == 0


def test_all_weights_zero_give_a_finite_loss():
    model = build().eval()
    image, samples = batch()
    label = torch.full((2, 32, 40), 255)
    model.gate = FixedGate(Labels(label, weight=torch.zeros(2, 32, 40)))
    losses = model.loss(image, samples)
    assert all(torch.isfinite(v).all() for v in losses.values())
    assert float(losses['decode.loss_ce']) == 0


@pytest.mark.parametrize('phase', ['explore', 'repair', 'consolidate'])
@pytest.mark.parametrize('image_label', [True, False])
def test_real_gate_repairs_only_towards_the_classes_of_the_image(phase, image_label):
    model = build().train()
    model.gate.set_phase(phase, 0.45)
    with torch.no_grad():  # the network is sure of class 3, which no image shows
        model.decode_head.conv_seg.bias.copy_(torch.tensor([0.0, 4.0, 0.0, 9.0]))
    image, samples = batch(image_label=image_label)
    losses = model.loss(image, samples)
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert all(p.grad is not None for p in model.parameters())
    labels = torch.cat([s.gt_sem_seg.data for s in samples])
    assert 3 not in labels
    assert (labels[:, 28:] == 255).all()
    stored = torch.cat([s.gt_sem_seg.data for s in batch()[1]])
    repaired = (labels != stored) & (labels != 255)
    assert bool(repaired.any()) == (phase != 'explore')
    assert (labels[repaired] == 1).all()


def test_gate_sees_the_image_labels_or_those_of_the_stored_label():
    model = build().eval()
    label = torch.zeros(2, 32, 40, dtype=torch.long)
    model.gate = gate = FixedGate(Labels(label))
    model.loss(*batch())
    assert gate.seen['image_label'].tolist() == [[1, 1, 0]] * 2
    assert gate.seen['update'] is True
    assert not gate.seen['features'].requires_grad
    assert not gate.seen['decoded'].seg_logits.requires_grad
    image, samples = batch(image_label=False)
    samples[0].gt_sem_seg.data[samples[0].gt_sem_seg.data == 2] = 0
    model.loss(image, samples)
    assert gate.seen['image_label'].tolist() == [[1, 0, 0], [1, 1, 0]]
    mixed = [batch()[1][0], batch(image_label=False)[1][1]]
    with pytest.raises(ValueError, match='in all samples of a batch or in none'):
        model.loss(image, mixed)


def test_stored_reliability_weighs_kept_pixels_only():
    model = build().eval()
    image, samples = batch(reliability=True)
    stored = torch.cat([s.gt_sem_seg.data for s in samples])
    trust = torch.zeros(2, 32, 40)
    for n, sample in enumerate(samples):
        trust[n, :28] = sample.pseudo_reliability.data
    label = stored.clone()
    label[:, 5:9] = 3  # repaired
    own = torch.full((2, 32, 40), 0.5)
    model.gate = FixedGate(Labels(label, weight=own))
    explained = model.explain(image, samples)
    kept = (label == stored) & (stored != 255)
    torch.testing.assert_close(explained.weight[kept], 0.5 * trust[kept])
    assert (explained.weight[:, 5:9] == 0.5).all()
    assert not explained.weight[(stored == 255) & (label == 255)].any()
    model.gate = None
    explained = model.explain(image, samples)
    torch.testing.assert_close(explained.weight, trust * (stored != 255))
    assert torch.equal(explained.pseudo_label, stored)
    with pytest.raises(ValueError, match='pseudo_reliability'):
        model.loss(image, [samples[0], batch()[1][1]])


def test_without_gate_and_reliability_it_is_plain_mmsegmentation():
    ours = build(gate=None).eval()
    content = dict(ours.decode_head.__dict__)
    assert content['sampler'].sample(None, None) is None
    plain = build(gate=None)
    plain.load_state_dict(ours.state_dict())
    image, samples = batch()
    losses = ours.loss(image, samples)
    reference = super(type(plain), plain.eval()).loss(*batch())
    for name, value in reference.items():
        torch.testing.assert_close(losses[name], value)


def test_explain_records_nothing_and_predict_is_mmsegs():
    model = build(
        gate=dict(
            type='mmwsss.ReliabilityGate',
            num_classes=4,
            history=dict(type='mmwsss.PredictionHistory', grid_size=4),
        )
    )
    model.gate.history.prepare(['p0', 'p1'], torch.tensor([[1, 1, 0]] * 2))
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    labels = model.explain(*batch())
    assert labels.reliability.shape == labels.pseudo_label.shape == (2, 32, 40)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.loss(*batch())
    assert model.gate.history.bank.any()
    assert model.predict(*batch())[0].pred_sem_seg.data.shape == (1, 28, 40)


def test_own_sampler_of_the_head_is_kept():
    sampler = dict(type='OHEMPixelSampler', thresh=0.7, min_kept=10)
    model = build(decode_head=head(sampler=sampler), auxiliary_head=None).eval()
    own = model.decode_head.sampler.inner
    logits = torch.randn(2, 4, 8, 8)
    label = torch.randint(0, 4, (2, 1, 8, 8))
    chosen = own.sample(logits, label)
    assert 0 < chosen.sum() < chosen.numel()
    model.decode_head.sampler.weight = torch.full((2, 8, 8), 0.5)
    combined = model.decode_head.sampler.sample(logits, label)
    torch.testing.assert_close(combined, 0.5 * chosen)


def test_several_auxiliary_heads_and_dual_stream_head():
    model = build(auxiliary_head=[head(in_index=0, in_channels=8), head()])
    losses = model.train().loss(*batch())
    assert {'aux_0.loss_ce', 'aux_1.loss_ce'} <= losses.keys()
    dual = dict(
        type='mmwsss.DualStreamHead',
        in_channels=[8, 16],
        channels=8,
        num_classes=4,
        num_layers=1,
        num_heads=2,
        loss_decode=dict(type='mmwsss.BalancedCrossEntropyLoss'),
        loss_energy=dict(type='mmwsss.PairwiseEnergyLoss'),
    )
    model = build(decode_head=dual, auxiliary_head=None)
    model.gate.set_phase('repair', 0.5)
    losses = model.train().loss(*batch(reliability=True))
    assert {'decode.loss_balanced_ce', 'decode.loss_energy'} <= losses.keys()
    assert all(torch.isfinite(v).all() for v in losses.values())


def test_mean_one_weights_by_hand():
    weight = torch.tensor([[[0.5, 0.25, 0.75, 1.0]]])
    label = torch.tensor([[[0, 1, 255, 2]]])
    scaled = mean_one_weights(weight, label)
    expected = torch.tensor([[[0.5, 0.25, 0.0, 1.0]]]) * 3 / 1.75
    torch.testing.assert_close(scaled, expected)
    assert not mean_one_weights(weight * 0, label).any()
    assert not mean_one_weights(weight, torch.full_like(label, 255)).any()


def test_present_classes_by_hand():
    label = torch.tensor([[[0, 2, 255]], [[255, 255, 255]], [[0, 0, 0]]])
    assert present_classes(label, 4).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert present_classes(label, 1).shape == (3, 0)


def test_pixel_weights_hand_out_nothing_by_default():
    assert PixelWeights().sample(None, None) is None


def test_voc_config_trains_a_step():
    cfg = Config.fromfile(ROOT / 'configs/deeplabv3_r50_reliability_voc.py')
    init_default_scope(cfg.default_scope)
    # Random weights instead of the download, and a normalisation for a CPU.
    cfg.model.backbone.init_cfg = None
    for part in ('backbone', 'decode_head', 'auxiliary_head'):
        cfg.model[part].norm_cfg = dict(type='BN')
    model = MODELS.build(cfg.model).train()
    model.gate.set_phase('repair', 0.5)
    model.gate.history.prepare(['p0', 'p1'], torch.eye(2, 20))
    image, samples = batch(shape=(32, 40), image_label=False)
    losses = model.loss(image, samples)
    names = {'decode.loss_ce', 'aux.loss_ce', 'label.repaired_share'}
    assert names <= losses.keys()
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
