import copy
from pathlib import Path

import numpy as np
import pytest
import reference
import reference_relevance
import tiny_run
import torch
from classifier_cases import (
    MEAN,
    SIZE,
    STD,
    VIT,
    batch,
    photo_and_label,
    soft_margin,
)
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmwsss.datasets
import mmwsss.models  # noqa: F401
from mmwsss.errors import InputError
from mmwsss.models.cam_networks.base import resized_photo
from mmwsss.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / '../shared/data/weights/vit-tiny-p16_in1k_fp16.safetensors'
BACKBONE = dict(VIT, final_norm=False)


def build(seed=0, **changes):
    init_default_scope('mmseg')
    torch.manual_seed(seed)
    config = dict(
        type='mmwsss.MCTformer',
        backbone=BACKBONE,
        num_classes=3,
        num_attention_layers=2,
        data_preprocessor=tiny_run.config('unused')['model']['data_preprocessor'],
    )
    model = MODELS.build({**config, **changes})
    model.init_weights()
    return model


def lively(seed, **changes):
    model = build(**changes).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        shape = parameter.shape
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if parameter.ndim > 1:
            parameter.data = 1.5 * noise * parameter[0].numel() ** -0.5
        else:
            parameter.data += 0.3 * noise
    return model


def look(model, image):
    """Tokens (T, D), class maps (K, h, w) and attention (L, T, T) by other code."""
    state = {n: p.detach() for n, p in model.backbone.state_dict().items()}
    plain = reference_relevance.PlainViT(
        state, num_heads=2, num_layers=3, patch=8, final_norm=False
    )
    with torch.no_grad():
        plain_tokens = run_without_gradient(plain, (image - MEAN) / STD)
    tokens = plain_tokens.numpy()
    grid = (image.shape[1] // 8, image.shape[2] // 8)
    weight = model.head.weight.detach().numpy()
    k = len(weight)
    features = tokens[k:].T.reshape(-1, *grid)
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1)))
    maps = np.zeros((k, *grid))
    for c, y, x in np.ndindex(k, *grid):
        window = padded[:, y : y + 3, x : x + 3]
        maps[c, y, x] = (weight[c] * window).sum() + model.head.bias[c].item()
    attention = np.stack(
        [kept['attention'].detach().numpy().mean(0) for kept in plain.blocks]
    )
    return tokens, maps, attention


def run_without_gradient(plain, image):
    with torch.enable_grad():
        return plain.run(image).detach()


@pytest.mark.parametrize('k', [1, 3])
def test_losses_equal_loops(k):
    labels = ((1, 0, 1), (0, 1, 0), (0, 0, 0)) if k == 3 else ((1,), (0,))
    model = lively(0, num_classes=k).train()
    inputs, samples = batch(labels)
    found = model.loss(inputs.double(), samples)
    class_scores, patch_scores = [], []
    for image in inputs.double():
        image = image.clone()
        image[:, 20:] = MEAN
        image[:, :, 30:] = MEAN
        tokens, maps, _ = look(model, image)
        class_scores.append(tokens[:k].mean(1))
        patch_scores.append(maps.mean((1, 2)))
    assert found.keys() == {'loss_cls', 'loss_patch'}
    for name, scores in (('cls', class_scores), ('patch', patch_scores)):
        expected = soft_margin(scores, labels)
        assert found[f'loss_{name}'].item() == pytest.approx(expected, abs=1e-6)


def loop_maps(model, image):
    """Maps (K, h, w) of one view by kind, from the formulas."""
    _, maps, attention = look(model, image)
    k, height, width = maps.shape
    found = dict(patch=np.maximum(maps, 0))
    found['attention'] = np.zeros_like(maps)
    for c, y, x in np.ndindex(maps.shape):
        for layer in attention[-model.num_attention_layers :]:
            found['attention'][c, y, x] += layer[c, k + y * width + x]
    found['fused'] = found['patch'] * found['attention']
    found['refined'] = np.zeros_like(maps)
    for c, i, j in np.ndindex(k, height * width, height * width):
        affinity = sum(layer[k + i, k + j] for layer in attention)
        value = affinity * found['fused'][c].flat[j]
        found['refined'][c, i // width, i % width] += value
    return found


@pytest.mark.parametrize('seed', [1, 2])
@pytest.mark.parametrize('flip', [False, True])
def test_maps_equal_loops(seed, flip):
    model = lively(seed, test_flip=flip)
    photo, label = photo_and_label()
    found = model.all_cams(photo, label)
    image = photo.double() / 255
    total = loop_maps(model, image)
    if flip:
        mirrored = loop_maps(model, image.flip(-1))
        total = {kind: maps + mirrored[kind][..., ::-1] for kind, maps in total.items()}
    assert tuple(found) == ('patch', 'attention', 'fused', 'refined')
    for kind, maps in total.items():
        maps = reference.resize(maps, SIZE, align_corners=False)
        lowest = maps.min((1, 2), keepdims=True)
        highest = maps.max((1, 2), keepdims=True)
        expected = (maps - lowest) / (highest - lowest + 1e-8)
        expected = expected * label.numpy()[:, None, None]
        np.testing.assert_allclose(found[kind].cams.numpy(), expected, atol=1e-6)
        assert found[kind].scores is None
        assert found[kind].cams[0].max() > 0.99
        alone = model.cams(photo, label, kind=kind)
        assert torch.equal(alone.cams, found[kind].cams)
    assert torch.equal(model.cams(photo, label).cams, found['refined'].cams)


def test_several_scales_are_summed():
    model = lively(1, test_scales=(1.0, 1.7), test_flip=False)
    photo, label = photo_and_label((33, 47))
    total = 0
    for scale in (1.0, 1.7):
        size = [round(scale * side) for side in (33, 47)]
        scaled = resized_photo(photo[None].double() / 255, size)
        maps = model.scale_maps(scaled, label[None], ['refined'])['refined']
        assert tuple(maps.shape[2:]) == tuple(round(side / 8) for side in size)
        maps = maps[0].detach().numpy()
        total = total + reference.resize(maps, (33, 47), align_corners=False)
    expected = reference.normalized(total, 'minmax') * label.numpy()[:, None, None]
    found = model.cams(photo, label).cams.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize('size', [(1, 1), (5, 7), (3, 90), (33, 47)])
@pytest.mark.parametrize('label', [(1, 1, 1), (0, 1, 0), (0, 0, 0)])
def test_any_photo_and_label_give_finite_maps_in_range(size, label):
    model = build().eval()
    photo, label = photo_and_label(size, label)
    for given in (photo, torch.full_like(photo, 128)):
        for found in model.all_cams(given, label).values():
            assert found.cams.shape == (3, *size)
            assert found.cams.isfinite().all()
            assert 0 <= found.cams.min() <= found.cams.max() <= 1
            assert not found.cams[label == 0].any()


@pytest.mark.parametrize('labels', [((0, 0, 0),), ((1, 1, 1), (0, 1, 0))])
def test_every_parameter_gets_a_finite_gradient(labels):
    model = build().train()
    sum(model.loss(*batch(labels)).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def save_pretrained(path, **changes):
    """Weights of a transformer with one class token, as mmpretrain saves them."""
    torch.manual_seed(3)
    pretrained = MODELS.build({**VIT, **changes})
    state = {
        f'backbone.{n}': torch.randn_like(p) for n, p in pretrained.state_dict().items()
    }
    torch.save(dict(state_dict=state), path)
    return {n.removeprefix('backbone.'): p for n, p in state.items()}


def test_all_class_tokens_start_from_the_pretrained_one(tmp_path):
    given = save_pretrained(tmp_path / 'vit.pth')
    model = build(weights=str(tmp_path / 'vit.pth'))
    ours = model.backbone.state_dict()
    assert ours.keys() == {n for n in given if not n.startswith('ln1.')}
    for name, value in ours.items():
        if name == 'cls_token':
            assert value.shape == (1, 3, 12)
            for k in range(3):
                assert torch.equal(value[0, k], given[name][0, 0])
        elif name == 'pos_embed':
            assert value.shape == (1, 3 + 15, 12)
            for k in range(3):
                assert torch.equal(value[0, k], given[name][0, 0])
            assert torch.equal(value[0, 3:], given[name][0, 1:])
        else:
            assert torch.equal(value, given[name]), name
    # Alike at first, told apart by their labels.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sum(model.train().loss(*batch(((1, 0, 0),))).values()).backward()
    optimizer.step()
    token = model.backbone.cls_token[0]
    assert not torch.equal(token[0], token[1])
    torch.testing.assert_close(token[1], token[2])


def test_a_state_dict_brings_the_maps_back():
    model, other = build().eval(), build(seed=1).eval()
    photo, label = photo_and_label()
    before = model.cams(photo, label).cams
    assert not torch.equal(other.cams(photo, label).cams, before)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(other.cams(photo, label).cams, before)


def test_unfit_backbones_get_a_sentence(tmp_path):
    wide = dict(VIT['arch'], feedforward_channels=20)
    save_pretrained(tmp_path / 'other.pth', arch=wide)
    pretrained = dict(type='Pretrained', checkpoint='x.pth')
    distilled = dict(BACKBONE, type='mmpretrain.DistilledVisionTransformer')
    for wrong, sentence in (
        (dict(backbone=dict(type='ResNet', depth=18)), 'the backbone is ResNet'),
        (dict(backbone=VIT), 'final_norm=False, but the backbone is Vision'),
        (dict(backbone=dict(BACKBONE, out_type='featmap')), "out_type='raw'"),
        (dict(backbone=dict(BACKBONE, with_cls_token=False)), 'with a class token'),
        (dict(backbone=distilled), 'is DistilledVisionTransformer'),
        (dict(backbone=dict(BACKBONE, init_cfg=pretrained)), "the model's weights="),
        (dict(num_attention_layers=4), r'num_attention_layers must be 1\.\.3, got 4'),
        (dict(weights='nowhere.pth'), 'There is no weights file'),
        (dict(weights=str(tmp_path / 'other.pth')), 'does not fit the MCTformer'),
    ):
        with pytest.raises(ValueError, match=sentence):
            build(**wrong)
    with pytest.raises(InputError, match="has no 'cam'"):
        build().eval().cams(*photo_and_label(), kind='cam')


@pytest.mark.parametrize('name', ['mctformer_msrc', 'mctformer_deit_s_voc'])
def test_model_builds_from_its_config(name):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert model.num_classes == cfg.num_classes - 1
    assert model.default_kind == 'refined'
    assert model.num_attention_layers == 3
    assert model.test_scales == (1.0,)
    assert model.test_flip
    width = dict(mctformer_msrc=192, mctformer_deit_s_voc=384)[name]
    assert model.backbone.cls_token.shape == (1, cfg.num_classes - 1, width)
    assert model.head.weight.shape == (cfg.num_classes - 1, width, 3, 3)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason='needs ../shared/data/weights')
def test_real_weights_fit():
    cfg = Config.fromfile(ROOT / 'configs/mctformer_msrc.py')
    cfg.model.weights = str(WEIGHTS)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    photo, label = photo_and_label((48, 64), (1, *[0] * 15))
    assert model.eval().cams(photo, label).cams[0].max() > 0.99
