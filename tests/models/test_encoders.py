import copy
from pathlib import Path

import pytest
import torch
from encoder_cases import ROOT, TINY_CLIP, TINY_VIT, WORDS, images, shake
from mmengine.model import BaseModule
from mmpretrain.models import MobileOne, VisionTransformer
from safetensors.torch import load_file
from torch import nn

import mmwsss.models  # noqa: F401
from mmwsss.errors import InputError
from mmwsss.models.encoders import (
    Encoded,
    FrozenBackbone,
    FrozenCLIP,
    FrozenDINOv2,
    FrozenEncoder,
    FrozenEncoders,
)
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

CLIP = {'type': 'FrozenCLIP', 'model': TINY_CLIP, 'num_attentions': 2, **WORDS}
DINO = {
    'type': 'FrozenDINOv2',
    'arch': TINY_VIT,
    'image_size': 56,
    'num_attentions': 1,
}
VIT = {
    'type': 'mmpretrain.VisionTransformer',
    'arch': TINY_VIT,
    'img_size': 32,
    'patch_size': 8,
    'out_type': 'featmap',
    'out_indices': (0, -1),
}
CNN = {'type': 'mmpretrain.ResNet', 'depth': 18, 'base_channels': 8, 'stem_channels': 8}
RESNET = {'type': 'FrozenBackbone', 'backbone': CNN}
REAL = ROOT.parent / 'shared' / 'data' / 'weights'
MOBILEONE = REAL / 'mobileone-s0_in1k_fp16.safetensors'
VIT_TINY = REAL / 'vit-tiny-p16_in1k_fp16.safetensors'


class Doubler(FrozenEncoder):
    """Smallest encoder: one 1 x 1 convolution and a batch norm."""

    def __init__(self):
        tower = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        super().__init__(
            tower, mean=(0, 0, 0), std=(255, 255, 255), feature_channels=[2]
        )

    def _encode(self, image):
        return Encoded(features=(self.tower(image),))


@pytest.fixture(params=[CLIP, DINO, RESNET], ids=lambda config: config['type'])
def encoder(request):
    return MODELS.build(copy.deepcopy(request.param))


class Model(BaseModule):
    """Stands for a segmentor: one trained part beside the encoders."""

    def __init__(self, encoder):
        super().__init__()
        self.backbone = encoder
        self.head = nn.Linear(2, 2)


def test_encoder_stays_frozen_whatever_happens_to_the_model(encoder):
    model = Model(encoder)
    model.init_weights()
    model.train()
    model.requires_grad_(True)
    tower = encoder.tower
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert {name for name, _ in model.named_parameters()} == {
        'head.weight',
        'head.bias',
    }
    assert set(model.state_dict()) == {'head.weight', 'head.bias'}
    before = [parameter.clone() for parameter in tower.parameters()]
    features = model.backbone(images(2, 3, 64, 64))
    assert not any(feature.requires_grad for feature in features)
    for parameter, old in zip(tower.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_model_with_encoder_loads_its_own_checkpoint_strictly(encoder):
    model = Model(encoder)
    result = model.load_state_dict(model.state_dict(), strict=True)
    assert not result.missing_keys


def test_tower_moves_with_the_model(encoder):
    image = images(1, 3, 56, 56)
    wanted = encoder.encode(image)
    model = Model(encoder).to(torch.float64)
    assert {p.dtype for p in encoder.tower.parameters()} == {torch.float64}
    assert encoder.mean.dtype == torch.float64
    got = model.backbone.encode(image)
    for ours, before in zip(got.features, wanted.features, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours.float(), before, atol=1e-4, rtol=1e-4)


def test_tower_moves_to_another_device():
    model = Model(Doubler()).to('meta')
    assert {p.device.type for p in model.backbone.tower.parameters()} == {'meta'}


def test_deep_copies_share_the_tower(encoder):
    model = Model(encoder)
    other = copy.deepcopy(model)
    assert other.backbone is not model.backbone
    assert other.backbone.tower is model.backbone.tower
    assert other.head.weight is not model.head.weight
    image = images(1, 3, 64, 64)
    torch.testing.assert_close(other.backbone(image), model.backbone(image))


def test_images_are_normalised_with_the_own_mean_and_std():
    tower = nn.Identity()
    encoder = FrozenEncoder(
        tower, mean=(51, 102, 0), std=(255, 127.5, 51), feature_channels=[3]
    )
    seen = []
    encoder._encode = lambda image: seen.append(image) or Encoded(features=(image,))
    encoder.encode(torch.full((1, 3, 2, 2), 0.6))
    wanted = torch.tensor([0.4, 0.4, 3.0])
    torch.testing.assert_close(seen[0][0, :, 0, 0], wanted)


@pytest.mark.parametrize('shape', [(3, 8, 8), (1, 1, 8, 8), (1, 8, 8, 3)])
def test_wrong_image_shape_raises(shape):
    with pytest.raises(ValueError, match=r'must be \(N, 3, H, W\), got shape'):
        Doubler().encode(torch.zeros(shape))


def test_encoders_return_all_maps_in_order():
    encoders = MODELS.build(
        {
            'type': 'FrozenEncoders',
            'encoders': {'cnn': RESNET, 'clip': CLIP, 'dino': DINO},
            'order': ['dino', 'clip', 'cnn'],
        }
    )
    assert isinstance(encoders, FrozenEncoders)
    assert isinstance(encoders['clip'], FrozenCLIP)
    assert isinstance(encoders['dino'], FrozenDINOv2)
    image = images(2, 3, 56, 56)
    encoded = encoders.encode(image)
    assert list(encoded) == ['dino', 'clip', 'cnn']
    features = encoders(image)
    assert [f.shape[1] for f in features] == [24, 32, 64]
    assert encoders.feature_channels == (24, 32, 64)
    assert torch.equal(features[1], encoded['clip'].features[0])
    assert not list(encoders.parameters())
    assert not encoders.state_dict()


def test_compiled_towers_say_the_same_while_training(monkeypatch):
    # Traced as ever; only that no C++ compiler is asked for.
    compiled, trace = [], torch.compile

    def traced(function):
        compiled.append(function.__self__)
        return trace(function, backend='eager', fullgraph=True)

    monkeypatch.setattr(torch, 'compile', traced)
    given = {'clip': CLIP, 'dino': DINO, 'cnn': RESNET}
    plain, fast = (FrozenEncoders(encoders=given, compiled=c) for c in (False, True))
    for name in given:
        fast[name].tower.load_state_dict(plain[name].tower.state_dict())
    image = images(2, 3, 56, 56)
    expected = plain.train().encode(image)
    copied = copy.deepcopy(fast.train())
    for encoders in (fast, fast, copied):
        found = encoders.encode(image)
        for name, encoded in expected.items():
            for one, other in zip(found[name].features, encoded.features, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
            if encoded.attentions is not None:
                torch.testing.assert_close(found[name].attentions, encoded.attentions)
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    cams = [
        e['clip'].grad_cams(f['clip'], labels)
        for e, f in ((plain, expected), (fast, found))
    ]
    torch.testing.assert_close(*cams, rtol=1e-5, atol=1e-6)
    # Photos of other sizes, to predict, run as they are.
    before = len(compiled)
    assert before == 6  # of ``fast`` and of its copy
    fast.eval().encode(images(1, 3, 40, 64))
    assert len(compiled) == before


def test_order_of_encoders_does_not_depend_on_that_of_the_dictionary():
    # A config that MMEngine wrote has its keys sorted; it must build the same model.
    forwards = FrozenEncoders(encoders={'dino': DINO, 'clip': CLIP})
    backwards = FrozenEncoders(encoders={'clip': CLIP, 'dino': DINO})
    assert list(forwards.encoders) == list(backwards.encoders) == ['clip', 'dino']


@pytest.mark.parametrize('order', [['dino'], ['dino', 'clip', 'clip'], ['dino', 'vit']])
def test_order_must_hold_each_encoder_once(order):
    with pytest.raises(InputError, match='order must hold each encoder once'):
        FrozenEncoders(encoders={'clip': CLIP, 'dino': DINO}, order=order)


def test_encoders_are_found_from_a_config_of_mmseg():
    from mmengine.registry import MODELS as ROOT_MODELS
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmseg'):
        encoder = ROOT_MODELS.build({**RESNET, 'type': 'mmwsss.FrozenBackbone'})
    assert isinstance(encoder, FrozenBackbone)


def test_encoders_refuse_what_is_not_frozen():
    with pytest.raises(InputError, match=r"'cnn' is a Conv2d.*FrozenBackbone"):
        FrozenEncoders(encoders={'cnn': nn.Conv2d(3, 3, 1)})
    with pytest.raises(InputError, match='encoders is empty'):
        FrozenEncoders(encoders={})


def test_backbone_of_a_vit_equals_the_library(tmp_path):
    torch.manual_seed(0)
    config = {k: v for k, v in VIT.items() if k != 'type'}
    library = shake(VisionTransformer(**{**config, 'out_indices': [0, 2]}))
    path = tmp_path / 'vit.pth'
    torch.save({f'backbone.{k}': v for k, v in library.state_dict().items()}, path)
    encoder = FrozenBackbone(
        backbone=VIT, weights=str(path), mean=[127.5] * 3, std=[127.5] * 3
    )
    image = images(2, 3, 48, 37)
    encoded = encoder.encode(image)
    torch.testing.assert_close(encoded.features, library(image * 2 - 1))
    assert encoded.grid == (6, 5)
    assert encoded.num_extra_tokens == 1
    assert encoder.feature_channels == (24, 24)


def test_backbone_attentions_equal_the_real_forward():
    """One head, so that attention times values must be the module's own output."""
    arch = {**TINY_VIT, 'num_heads': 1}
    encoder = FrozenBackbone(backbone={**VIT, 'arch': arch}, num_attentions=2)
    shake(encoder.tower)
    seen = []
    for layer in encoder.tower.layers[-2:]:
        layer.attn.register_forward_hook(
            lambda module, inputs, output: seen.append((module, inputs[0], output))
        )
    attentions = encoder.encode(images(2, 3, 32, 40)).attentions
    assert attentions.shape == (2, 2, 21, 21)
    torch.testing.assert_close(attentions.sum(-1), torch.ones(2, 2, 21))
    for index, (module, tokens, output) in enumerate(seen):
        again = module.proj(attentions[:, index] @ module.qkv(tokens)[..., 48:])
        torch.testing.assert_close(again, output, atol=2e-6, rtol=1e-5)


def test_backbone_leaves_no_hooks_behind():
    encoder = FrozenBackbone(backbone=VIT, num_attentions=3)
    encoder.encode(images(1, 3, 32, 32))
    assert not any(m._forward_pre_hooks for m in encoder.tower.modules())


def test_unstride_doubles_the_resolution_and_keeps_the_weights():
    image = images(1, 3, 64, 96)
    plain = FrozenBackbone(backbone=CNN)
    fine = FrozenBackbone(backbone=CNN, unstride=('layer4.0',))
    assert plain.encode(image).grid == (2, 3)
    assert fine.encode(image).grid == (4, 6)
    # With stride 1 the first layer4 convolution sees the same windows, twice as dense.
    convolution = 'layer4.0.downsample.0'
    outputs = []
    for encoder in (plain, fine):
        kept = []
        encoder.tower.get_submodule(convolution).register_forward_hook(
            lambda module, inputs, output, kept=kept: kept.append(output)
        )
        encoder.encode(image)
        outputs.append(kept[0])
    torch.testing.assert_close(outputs[1][..., ::2, ::2], outputs[0])


def test_backbone_takes_files_without_a_prefix_and_half_precision(tmp_path):
    wanted = FrozenBackbone(backbone=CNN)
    path = tmp_path / 'plain.pth'
    state = {
        k: v.half() if v.is_floating_point() else v
        for k, v in shake(wanted.tower).state_dict().items()
    }
    state.pop('bn1.num_batches_tracked')
    torch.save(state, path)
    got = FrozenBackbone(backbone=CNN, weights=str(path), prefix='')
    assert got.tower.conv1.weight.dtype == torch.float32
    image = images(1, 3, 64, 64)
    torch.testing.assert_close(got(image), wanted(image), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'backbone': {'depth': 18}}, 'config needs a type'),
        ({'backbone': {'type': 'mmpretrain.ResNett'}}, "'mmpretrain.ResNett' is not k"),
        ({'backbone': {**VIT, 'out_type': 'raw'}}, "give a .*out_type='featmap'"),
        ({'weights': 'nowhere.pth'}, "no weights file at '.*nowhere.pth'"),
        ({'weights': 'ours'}, r"starting with prefix='backbone.' \(the first is 'a'\)"),
        ({'weights': 'ours', 'prefix': ''}, r'does not fit.*missing: bn1.bias'),
        ({'unstride': ('layer5',)}, r"'layer5', which the backbone has not.*'layer4'"),
        ({'unstride': ('layer1',)}, "'layer1', which has no convolution with a str"),
        ({'num_attentions': 1}, 'ResNet has no attention to show'),
        ({'backbone': VIT, 'num_attentions': 4}, 'must be 0..3, got 4'),
        ({'mean': (1.0,)}, 'mean and std need three values'),
    ],
)
def test_unusable_backbones_raise_one_sentence(tmp_path, change, message):
    arguments = {'backbone': CNN, **change}
    if arguments.get('weights') == 'ours':
        arguments['weights'] = str(tmp_path / 'ours.pth')
        torch.save({'a': torch.zeros(1)}, arguments['weights'])
    with pytest.raises(InputError, match=message) as caught:
        FrozenBackbone(**arguments)
    assert '\n' not in str(caught.value)


def real(path: Path) -> dict:
    if not path.is_file():
        pytest.skip(f'{path.name} is not in ../shared/data/weights')
    return {
        name.removeprefix('backbone.'): tensor.float()
        for name, tensor in load_file(path).items()
        if name.startswith('backbone.')
    }


def test_real_mobileone_equals_the_library_and_gets_stride_16():
    state = real(MOBILEONE)
    library = MobileOne(arch='s0', deploy=True, out_indices=(0, 1, 2, 3))
    library.load_state_dict(state)
    library.eval()
    config = {
        'type': 'mmpretrain.MobileOne',
        'arch': 's0',
        'deploy': True,
        'out_indices': (0, 1, 2, 3),
    }
    encoder = FrozenBackbone(backbone=config, weights=str(MOBILEONE))
    assert encoder.feature_channels == (48, 128, 256, 1024)
    image = images(1, 3, 64, 96)
    wanted = library((image - encoder.mean) / encoder.std)
    torch.testing.assert_close(encoder(image), wanted)
    fine = FrozenBackbone(
        backbone=config,
        weights=str(MOBILEONE),
        unstride=('stage4.0.branch_reparam',),
    )
    assert fine.encode(image).grid == (4, 6)


def test_real_vit_shows_its_attention():
    real(VIT_TINY)
    encoder = FrozenBackbone(
        backbone={
            'type': 'mmpretrain.VisionTransformer',
            'arch': 'deit-tiny',
            'img_size': 224,
            'patch_size': 16,
            'out_type': 'featmap',
            'out_indices': (8, 11),
        },
        weights=str(VIT_TINY),
        mean=[127.5] * 3,
        std=[127.5] * 3,
        num_attentions=6,
    )
    encoded = encoder.encode(images(1, 3, 96, 64))
    assert encoded.attentions.shape == (1, 6, 25, 25)
    torch.testing.assert_close(encoded.attentions.sum(-1), torch.ones(1, 6, 25))
