"""The configs of ORANDNet's stages: what they build, and the loss of the last one."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import mmwsss.models  # noqa: F401
from mmwsss.models.refiners import LightUNet
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

ROOT = Path(__file__).resolve().parents[1]


def load(name):
    config = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    init_default_scope(config.default_scope)
    return config


def test_orandnet_of_msrc_builds_small():
    model = MODELS.build(load('orandnet_msrc').model)
    assert isinstance(model.network, LightUNet)
    assert model.loss_mode == 'bce'
    assert model.fused(torch.rand(2, 3, 20, 30), (80, 118)).shape == (3, 20, 30)


def test_orandnet_of_voc_is_the_published_network():
    config = load('orandnet_voc')
    assert config.model.network.type == 'mmwsss.VGGFCN8s'
    assert config.model.stride == 1
    # One element for a real build: the network's own test counts its parameters.
    config.model.network.widths = (1, 1, 1, 1, 1)
    config.model.network.fc_channels = 1
    model = MODELS.build(config.model)
    assert model.offsets == (0.0, 0.15)
    assert model.fused(torch.rand(2, 1, 5, 6), (20, 23)).shape == (1, 20, 23)
    # The momentum of the released code is 0, since weight decay took its place.
    assert config.optim_wrapper.optimizer.momentum == 0


def test_amn_of_msrc_builds_and_learns_where_it_should():
    model = MODELS.build(load('amn_mobileone_msrc').model)
    assert len(model.pyramid) == 4
    assert model.pyramid[0].out_channels == 17
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(n.startswith('backbone.') for n in frozen)
    config = load('amn_r50_voc')
    fast = config.optim_wrapper.paramwise_cfg.custom_keys
    names = [n for n, _ in model.named_parameters() if not n.startswith('backbone.')]
    assert all(any(key in n for key in fast) for n in names)


def test_the_scheduled_segmentor_is_one_convolution_on_its_backbone():
    config = load('deeplabv1_r101_voc_scale')
    config.merge_from_dict({'model.backbone.norm_cfg': dict(type='BN')})
    head = MODELS.build(config.model.decode_head)
    convs = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convs] == [
        (2048, 21, (1, 1))
    ]
    scheduled = MODELS.build(config.model.data_preprocessor)
    assert [scheduled.scale_at(t) for t in (0, 0.3, 0.5)] == [0.5, 0.75, 1.0]
    # As the config's comment says it.
    values = DictAction._parse_iterable('[(0.0, 1.0)]')
    config.merge_from_dict({'model.data_preprocessor.scales': values})
    assert MODELS.build(config.model.data_preprocessor).scale_at(0) == 1


def test_label_smoothed_balanced_loss_in_a_plain_head_equals_a_loop():
    """Not a loss more: BalancedCrossEntropyLoss smooths labels as AMN does."""
    config = load('deeplabv1_r101_voc_scale').model.decode_head
    config.update(in_channels=4, channels=4, num_classes=3, norm_cfg=dict(type='BN'))
    head = MODELS.build(config).double()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    choices = torch.tensor([0, 1, 2, 255])
    labels = choices[torch.randint(4, (2, 4, 5), generator=generator)]
    samples = []
    for label in labels:
        sample = SegDataSample(metainfo=dict(img_shape=(4, 5)))
        sample.gt_sem_seg = PixelData(data=label[None])
        samples.append(sample)
    found = head.loss_by_feat(logits, samples)['loss_balanced_ce'].item()
    halves = {True: [], False: []}
    for n in range(2):
        for y in range(4):
            for x in range(5):
                own = int(labels[n, y, x])
                if own == 255:
                    continue
                values = logits[n, :, y, x].tolist()
                whole = math.log(math.fsum(map(math.exp, values)))
                # eps of 0.4: 0.6 on the label, 0.2 on each of the two others.
                loss = sum(
                    (0.6 if c == own else 0.2) * (whole - z)
                    for c, z in enumerate(values)
                )
                halves[own == 0].append(loss)
    expected = sum(sum(h) / len(h) for h in halves.values()) / 2
    assert found == pytest.approx(expected, rel=1e-9)
    # A batch without foreground is finite; the released code gives NaN.
    for sample in samples:
        sample.gt_sem_seg.data[:] = 0
    assert math.isfinite(head.loss_by_feat(logits, samples)['loss_balanced_ce'].item())
