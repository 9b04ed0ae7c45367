import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
import reference_relevance
import tiny_run
import torch
import torch.nn.functional as F
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
from mmwsss.functional import normalize_cams, rescale_maps
from mmwsss.models.cam_networks import classifier
from mmwsss.models.cam_networks.base import resized_photo
from mmwsss.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / '../shared/data/weights'

RESNET = dict(
    type='ResNet',
    depth=18,
    base_channels=4,
    stem_channels=4,
    strides=(1, 2, 2, 1),
    norm_eval=True,
    out_indices=(3,),
)
CLASS_TOKEN = dict(backbone=VIT, pool='cls_token', kind='relevance')


def build(seed=0, **changes):
    init_default_scope('mmseg')
    torch.manual_seed(seed)
    config = dict(
        type='mmwsss.CAMClassifier',
        backbone=RESNET,
        num_classes=3,
        data_preprocessor=tiny_run.config('unused')['model']['data_preprocessor'],
    )
    model = MODELS.build({**config, **changes})
    model.init_weights()
    return model


def lively(seed, **changes):
    """A network in float64 whose numbers are all of similar size."""
    model = build(**changes).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for module in (model.tower, model.classifier):
        for parameter in module.parameters():
            shape = parameter.shape
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            if parameter.ndim > 1:
                parameter.data = 1.5 * noise * parameter[0].numel() ** -0.5
            else:
                parameter.data += 0.3 * noise
    return model


def plain_vit(model):
    """The same transformer in the reference implementation."""
    state = {n: p.detach() for n, p in model.tower.state_dict().items()}
    return reference_relevance.PlainViT(state, num_heads=2, num_layers=3, patch=8)


# -------------------------------------------------------------------------- training
@pytest.mark.parametrize('pool', ['average', 'cls_token'])
@pytest.mark.parametrize('frozen', [False, True])
def test_loss_of_a_transformer_equals_loops(pool, frozen):
    model = lively(0, backbone=VIT, pool=pool, frozen=frozen).train()
    inputs, samples = batch()
    found = model.loss(inputs.double(), samples)
    weight = model.classifier.weight.detach()[:, :, 0, 0]
    scores = []
    for image in inputs.double():
        image = image.clone()
        image[:, 20:] = MEAN
        image[:, :, 30:] = MEAN
        tokens = plain_vit(model).run((image - MEAN) / STD)
        pooled = tokens[0] if pool == 'cls_token' else tokens[1:].mean(0)
        scores.append((weight @ pooled).detach().numpy())
    expected = soft_margin(scores, [s.image_label.numpy() for s in samples])
    assert found.keys() == {'loss_cls'}
    assert found['loss_cls'].item() == pytest.approx(expected, abs=1e-6)


def test_loss_of_a_cnn_is_that_of_its_averaged_class_maps():
    model = lively(0)
    inputs, samples = batch()
    filled = inputs.double().clone()
    filled[..., 20:, :] = MEAN
    filled[..., 30:] = MEAN
    features = model.backbone((filled - MEAN) / STD)[-1].detach().numpy()
    weight = model.classifier.weight.detach().numpy()[:, :, 0, 0]
    scores = [[(w @ f.mean((1, 2))).item() for w in weight] for f in features]
    expected = soft_margin(scores, [s.image_label.numpy() for s in samples])
    found = model.loss(inputs.double(), samples)['loss_cls'].item()
    assert found == pytest.approx(expected, abs=1e-6)


CONVNEXT = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[1, 1, 1, 1], channels=[4, 8, 12, 16]),
    out_indices=(0, 1, 2, 3),
    gap_before_final_norm=False,
)
MOBILEONE = dict(
    type='mmpretrain.MobileOne',
    arch='s0',
    deploy=True,
    out_indices=(3,),
    frozen_stages=2,
)


@pytest.mark.parametrize(
    'changes',
    [
        dict(),
        dict(backbone=dict(RESNET, frozen_stages=2)),
        dict(backbone=CONVNEXT),
        dict(backbone=MOBILEONE),
        dict(backbone=VIT),
        dict(backbone=dict(VIT, frozen_stages=1), pool='cls_token'),
        dict(backbone=dict(VIT, with_cls_token=False)),
        dict(backbone=VIT, frozen=True),
    ],
)
@pytest.mark.parametrize('labels', [((0, 0, 0),), ((1, 1, 1), (0, 1, 0))])
def test_every_parameter_that_is_not_frozen_gets_a_finite_gradient(changes, labels):
    # Otherwise DistributedDataParallel would need find_unused_parameters.
    model = build(**changes).train()
    inputs, samples = batch(labels)
    # ConvNeXt's stride is 32.
    loss = model.loss(F.pad(inputs, (0, 24, 0, 40)), samples)['loss_cls']
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
    frozen = {
        n.removeprefix('backbone.').split('.')[0]
        for n, p in model.named_parameters()
        if not p.requires_grad
    }
    stages = changes.get('backbone', {}).get('frozen_stages', -1)
    if changes.get('backbone') is MOBILEONE:
        assert frozen == {'stage0', 'stage1', 'stage2'}
    elif changes.get('backbone', {}).get('type') == 'ResNet' and stages == 2:
        assert frozen == {'conv1', 'bn1', 'layer1', 'layer2'}


def test_a_frozen_backbone_stays_out_of_the_checkpoint_and_in_eval_mode():
    backbone = dict(VIT, drop_path_rate=0.5, drop_rate=0.5)
    model = build(backbone=backbone, frozen=True, pool='cls_token').train()
    assert model.state_dict().keys() == {'classifier.weight'}
    assert not any(module.training for module in model.tower.modules())
    losses = [model.loss(*batch())['loss_cls'].item() for _ in range(2)]
    assert losses[0] == losses[1]
    # Random weights of a dry run are the same in every process.
    other = build(seed=5, backbone=backbone, frozen=True, pool='cls_token')
    for name, value in model.tower.state_dict().items():
        assert torch.equal(value, other.tower.state_dict()[name]), name
    other.double()
    assert other.tower.layers[0].attn.qkv.weight.dtype == torch.float64


@pytest.mark.parametrize('frozen', [False, True])
def test_a_state_dict_brings_the_maps_back(frozen):
    model = build(frozen=frozen, **CLASS_TOKEN)
    other = build(seed=1, frozen=frozen, **CLASS_TOKEN)
    photo, label = photo_and_label()
    before = model.eval().cams(photo, label).cams
    assert not torch.equal(other.eval().cams(photo, label).cams, before)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(other.cams(photo, label).cams, before)


def test_schedule_scales_the_loss_by_progress():
    model = build(loss_schedules={'loss_cls': [[0.0, 0.0], [0.5, 1.0]]})
    plain = build().loss(*batch())['loss_cls']
    model.progress = 0.25
    torch.testing.assert_close(model.loss(*batch())['loss_cls'], plain / 2)


# ------------------------------------------------------------------- maps of the head
@pytest.mark.parametrize('backbone', [RESNET, VIT])
def test_cams_of_several_scales_and_flips_are_summed(backbone):
    scales = (1.0, 0.5, 1.5)
    model = lively(3, backbone=backbone, test_scales=scales, test_flip=True)
    photo, label = photo_and_label((33, 47))
    weight = model.classifier.weight.detach().numpy()[:, :, 0, 0]
    total = 0
    for scale in scales:
        size = [round(scale * side) for side in (33, 47)]
        scaled = resized_photo(photo[None].double() / 255, size)
        if backbone is VIT:
            size = [max(8, 8 * round(side / 8)) for side in size]
            scaled = resized_photo(scaled, size)
        for turn in (slice(None), slice(None, None, -1)):
            view = (scaled - MEAN) / STD
            view = view if turn.step is None else view.flip(-1)
            output = model.tower(view)[-1].detach()[0].numpy()
            if backbone is VIT:
                output = output[1:].T.reshape(12, size[0] // 8, size[1] // 8)
            # Each view's negative values are cut before they are added.
            maps = np.maximum(np.tensordot(weight, output, 1)[..., turn], 0)
            total = total + reference.resize(maps, (33, 47), align_corners=False)
    expected = reference.normalized(total) * label.numpy()[:, None, None]
    found = model.cams(photo, label).cams.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0].any()
    assert not found[1].any()
    assert model.cams(photo, torch.ones(3)).cams[1].any()


@pytest.mark.parametrize('size', [(24, 40), (40, 24), (33, 47), (9, 70), (5, 3)])
def test_any_rectangle_becomes_whole_patches(size):
    model = build(backbone=VIT).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    photo, label = photo_and_label(size)
    assert model.cams(photo, label).cams.shape == (3, *size)
    expected = tuple(max(8, 8 * round(side / 8)) for side in size)
    assert tuple(seen[0].shape[2:]) == expected


# --------------------------------------------------------------------------- Grad-CAM
def test_grad_cam_at_the_output_of_a_cnn_is_its_cam():
    model = lively(4, kind='grad')
    model.classifier.weight.data.abs_()
    photo, label = photo_and_label((33, 47), (1, 1, 0))
    found = model.all_cams(photo, label)
    assert model.default_kind == 'grad'
    assert found['cam'].cams[:2].amax((1, 2)).min() > 0.5
    torch.testing.assert_close(found['grad'].cams, found['cam'].cams, atol=1e-4, rtol=0)


def loop_grad_cam(model, image, class_index):
    """Grad-CAM of one class by a backward pass of its own, not normalised."""
    kept = []

    def keep(module, inputs, output):
        kept.append(output.clone())
        kept[0].requires_grad_()
        kept[0].retain_grad()
        return kept[0].clone()

    layer = model.tower.get_submodule(model.grad_layer)
    handle = layer.register_forward_hook(keep)
    output = model.tower((image[None] - MEAN) / STD)[-1]
    handle.remove()
    weight = model.classifier.weight[class_index, :, 0, 0]
    if output.ndim == 4:
        score = weight @ output.mean((2, 3))[0]
    elif model.pool == 'cls_token':
        score = weight @ output[0, 0]
    else:
        score = weight @ output[0, 1:].mean(0)
    score.backward()
    values, gradient = kept[0].detach()[0].numpy(), kept[0].grad[0].numpy()
    if output.ndim == 3:
        grid = (image.shape[1] // 8, image.shape[2] // 8)
        values = values[1:].T.reshape(-1, *grid)
        gradient = gradient[1:].T.reshape(-1, *grid)
    total = 0
    for channel, slope in zip(values, gradient, strict=True):
        total = total + slope.mean() * channel
    return np.maximum(total, 0)


@pytest.mark.parametrize(
    'changes',
    [
        dict(grad_layer='layer3'),
        dict(grad_layer='layer2.0.bn2'),  # what follows writes into it
        dict(backbone=VIT),
        dict(backbone=VIT, pool='cls_token'),
        dict(backbone=VIT, pool='cls_token', grad_layer='layers.1'),
        dict(backbone=VIT, pool='cls_token', frozen=True),
    ],
)
def test_grad_cams_of_all_classes_equal_those_of_one_by_one(changes):
    model = lively(5, kind='grad', **changes)
    photo, label = photo_and_label(label=(1, 0, 1))
    found = model.cams(photo, label).cams.numpy()
    for k in (0, 2):
        maps = loop_grad_cam(model, photo.double() / 255, k)
        maps = reference.resize(maps[None], SIZE, align_corners=False)[0]
        assert maps.max() > 0
        np.testing.assert_allclose(found[k], maps / maps.max(), atol=1e-4)
    assert not found[1].any()


def test_cells_behind_the_last_attention_get_a_sentence():
    # A class token alone is pooled: at the last block's output no patch has a gradient.
    for layer in ('layers.2', 'layers.2.ln2', 'ln1'):
        model = build(backbone=VIT, pool='cls_token', kind='grad', grad_layer=layer)
        with pytest.raises(InputError, match=f"layer '{layer}' are all 0") as caught:
            model.eval().cams(*photo_and_label())
        assert str(caught.value).endswith("grad_layer, such as 'layers.2.ln1'")
        # Nothing to explain, nothing to fail.
        photo, _ = photo_and_label()
        assert not model.cams(photo, torch.zeros(3)).cams.any()
        build(backbone=VIT, kind='grad', grad_layer=layer).eval().cams(
            *photo_and_label()
        )


def test_killed_gradients_of_attention_get_a_sentence():
    model = build(**CLASS_TOKEN).eval()
    model.classifier.weight.data.zero_()
    with pytest.raises(InputError, match='gradients of the attention are all 0'):
        model.cams(*photo_and_label())


# -------------------------------------------------------------------------- relevance
def loop_relevance(model, image, class_index):
    """One class by a backward pass of its own: (h, w) before min-max."""
    plain = plain_vit(model)
    tokens = plain.run((image - MEAN) / STD)
    weight = model.classifier.weight.detach()[:, :, 0, 0]
    start = np.zeros(len(tokens))
    if model.pool == 'cls_token':
        start[0] = 1
        score = weight[class_index] @ tokens[0]
    else:
        start[1:] = 1 / (len(tokens) - 1)
        score = weight[class_index] @ tokens[1:].mean(0)
    score.backward()
    attentions = [kept['attention'].detach().numpy() for kept in plain.blocks]
    gradients = [kept['attention'].grad.numpy() for kept in plain.blocks]
    if model.relevance == 'lrp':
        one_hot = np.eye(model.num_classes)[class_index]
        attentions = plain.attention_relevances(
            weight.numpy(), tokens[0].detach().numpy(), one_hot
        )
    layers = [
        reference_relevance.weighted_attention(a, g)
        for a, g in zip(attentions, gradients, strict=True)
    ]
    row = reference_relevance.rollout(layers, start, model.normalize_rows)
    return row[1:].reshape(image.shape[1] // 8, image.shape[2] // 8)


@pytest.mark.parametrize(
    'changes',
    [
        CLASS_TOKEN,
        dict(CLASS_TOKEN, relevance='lrp'),
        dict(CLASS_TOKEN, relevance='lrp', normalize_rows=True),
        dict(CLASS_TOKEN, normalize_rows=True),
        dict(CLASS_TOKEN, pool='average'),
        dict(CLASS_TOKEN, frozen=True),
        dict(CLASS_TOKEN, frozen=True, relevance='lrp'),
    ],
)
@pytest.mark.parametrize('seed', [6, 7])
def test_relevance_of_all_classes_equals_that_of_one_by_one(changes, seed):
    model = lively(seed, **changes)
    photo, label = photo_and_label(label=(1, 0, 1))
    found = model.cams(photo, label).cams.numpy()
    for k in (0, 2):
        maps = loop_relevance(model, photo.double() / 255, k)
        maps = (maps - maps.min()) / (maps.max() - maps.min())
        maps = reference.resize(maps[None], SIZE, align_corners=False)
        expected = reference.normalized(maps, 'minmax')[0]
        np.testing.assert_allclose(found[k], expected, atol=2e-4)
    assert not found[1].any()
    assert np.abs(found[0] - found[2]).max() > 0.1


def test_both_kinds_of_relevance_differ():
    photo, label = photo_and_label()
    plain = lively(6, **CLASS_TOKEN).cams(photo, label).cams
    lrp = lively(6, relevance='lrp', **CLASS_TOKEN).cams(photo, label).cams
    assert (plain - lrp).abs().max() > 0.1


def test_classes_in_parts_give_the_same_relevance(monkeypatch):
    photo, label = photo_and_label(label=(1, 1, 1))
    for relevance in ('attention', 'lrp'):
        model = lively(6, relevance=relevance, **CLASS_TOKEN)
        at_once = model.cams(photo, label).cams
        monkeypatch.setattr(classifier, '_MOST_GRADIENTS', 1)
        torch.testing.assert_close(model.cams(photo, label).cams, at_once)
        monkeypatch.undo()


@pytest.mark.parametrize('relevance', ['attention', 'lrp'])
def test_mirrored_photo_gives_mirrored_relevance(relevance):
    model = lively(6, relevance=relevance, test_flip=True, **CLASS_TOKEN)
    photo, label = photo_and_label((33, 47))
    ours = model.cams(photo, label).cams
    mirrored = model.cams(photo.flip(-1), label).cams
    torch.testing.assert_close(mirrored.flip(-1), ours, atol=1e-6, rtol=0)
    # Each view has a say of its own size.
    once = lively(6, relevance=relevance, **CLASS_TOKEN)
    views = [
        once.scale_maps(view[None].double() / 255, label[None], ['relevance'])
        for view in (photo, photo.flip(-1))
    ]
    total = views[0]['relevance'] + views[1]['relevance'].flip(-1)
    total = F.interpolate(total, (33, 47), mode='bilinear')
    expected = normalize_cams(total, mode='minmax')[0] * label[:, None, None]
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_looking_leaves_the_network_as_it_was():
    model = lively(6, relevance='lrp', **CLASS_TOKEN)
    photo, label = photo_and_label()
    before = {n: p.clone() for n, p in model.named_parameters()}
    kernels = [block.attn.scaled_dot_product_attention for block in model.tower.layers]
    model.all_cams(photo, label)
    model.grad_layer = 'ln1'
    with pytest.raises(InputError):
        model.cams(photo, label, kind='grad')
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
    for block, kernel in zip(model.tower.layers, kernels, strict=True):
        assert block.attn.scaled_dot_product_attention is kernel
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


# ------------------------------------------------------------------------- degenerate
@pytest.mark.parametrize('size', [(1, 1), (5, 7), (3, 90), (33, 47)])
@pytest.mark.parametrize('label', [(1, 1, 1), (0, 1, 0), (0, 0, 0)])
@pytest.mark.parametrize(
    'changes',
    [dict(), CLASS_TOKEN, dict(CLASS_TOKEN, relevance='lrp', test_flip=True)],
)
def test_any_photo_and_label_give_finite_maps_in_range(size, label, changes):
    model = build(**changes).eval()
    photo, label = photo_and_label(size, label)
    for given in (photo, torch.full_like(photo, 128), torch.zeros_like(photo)):
        found = model.all_cams(given, label)
        assert found.keys() == set(model.kinds)
        for maps in found.values():
            assert maps.scores is None
            assert maps.cams.shape == (3, *size)
            assert maps.cams.isfinite().all()
            assert 0 <= maps.cams.min() <= maps.cams.max() <= 1
            assert not maps.cams[label == 0].any()


@pytest.mark.parametrize('changes', [dict(), CLASS_TOKEN])
def test_a_single_class_is_enough(changes):
    model = build(num_classes=1, **changes)
    loss = model.train().loss(*batch(((1,), (0,))))['loss_cls']
    assert loss.isfinite()
    photo, _ = photo_and_label()
    for found in model.eval().all_cams(photo, torch.ones(1)).values():
        assert found.cams.shape == (1, *SIZE)


def test_a_constant_relevance_is_no_map():
    # The released code divides 0 by 0 there.
    assert not rescale_maps(torch.full((1, 1, 3, 5), 0.2)).any()
    model = lively(6, **CLASS_TOKEN)
    photo, label = photo_and_label((4, 4))  # a single patch
    assert not model.cams(photo, label).cams.any()


def test_what_a_backbone_cannot_give_gets_a_sentence():
    photo, label = photo_and_label()
    with pytest.raises(InputError, match="has no 'relevance'"):
        build().eval().cams(photo, label, kind='relevance')
    featmap = dict(VIT, out_type='featmap')
    no_token = dict(VIT, with_cls_token=False)
    for wrong, sentence in (
        (dict(kind='relevance'), 'relevance needs the attention of a vision'),
        (dict(backbone=featmap, kind='relevance'), "with out_type='raw', but the"),
        (dict(pool='cls_token'), "pool='cls_token' needs a vision transformer"),
        (dict(backbone=no_token, pool='cls_token'), 'with a class token'),
        (dict(backbone=VIT, relevance='lrp'), "relevance='lrp' needs pool='cls_token'"),
        (dict(relevance='lrp'), "but the backbone is ResNet, pool='average'"),
        (dict(kind='all'), r"kind must be one of \('cam', 'grad'\), got 'all'"),
        (dict(pool='max'), 'pool must be one of'),
        (dict(relevance='both'), 'relevance must be one of'),
        (dict(grad_layer='layer9'), "grad_layer names 'layer9', which ResNet has not"),
        (dict(backbone=dict(VIT, out_type='cls_token')), 'give a vision transformer'),
        (dict(backbone=dict(type='Nonsense')), "'Nonsense' is not known"),
        (dict(weights='nowhere.pth'), 'There is no weights file'),
        (dict(weights='nowhere.pth', frozen=True), 'There is no weights file'),
        (dict(unstride=['layer9']), "unstride names 'layer9'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            build(**wrong)
    for layer in ('patch_embed', 'layers.0.ffn.layers.0.2'):
        model = build(backbone=VIT, kind='grad', grad_layer=layer).eval()
        if layer == 'patch_embed':
            with pytest.raises(InputError, match='gives no map'):
                model.cams(photo, label)
        else:
            model.cams(photo, label)


def test_a_transformer_that_gives_maps_has_the_first_two_kinds():
    model = build(backbone=dict(VIT, out_type='featmap'), kind='grad').eval()
    assert model.kinds == ('cam', 'grad')
    beit = dict(VIT, type='mmpretrain.BEiTViT', use_abs_pos_emb=True)
    model = build(backbone=dict(beit, use_rel_pos_bias=False), kind='grad').eval()
    assert model.kinds == ('cam', 'grad')
    assert model.cams(*photo_and_label()).cams[0].any()
    with pytest.raises(InputError, match='BEiTViT cannot see an image of 64 x 64'):
        build(backbone=beit)


def test_predictions_have_the_size_of_the_photo():
    model = build(**CLASS_TOKEN).eval()
    inputs, samples = batch(((1, 0, 1),))
    samples[0].set_metainfo(dict(ori_shape=(40, 60)))
    (result,) = model(inputs, samples, mode='predict')
    assert result.cams.shape == (3, 40, 60)
    assert 'pred_sem_seg' not in result


# ------------------------------------------------------------------ configs and runs
CONFIGS = {
    'cam_mobileone_msrc': ('cam', 1024),
    'cam_vit_msrc': ('relevance', 192),
    'cam_r50_voc': ('cam', 2048),
    'cam_deit_b_voc': ('relevance', 768),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_model_builds_from_its_config(name):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    init_default_scope(cfg.default_scope)
    if cfg.model.get('frozen'):
        cfg.model.weights = None
    model = MODELS.build(cfg.model)
    kind, channels = CONFIGS[name]
    assert model.num_classes == cfg.num_classes - 1
    assert model.default_kind == kind
    assert model.classifier.in_channels == channels
    assert model.classifier.bias is None
    if name != 'cam_vit_msrc':
        # The released optimiser takes weight decay for momentum.
        momentum = dict(cam_deit_b_voc=0.9).get(name, 0.0)
        assert cfg.optim_wrapper.optimizer.momentum == momentum
    if name == 'cam_deit_b_voc':
        # The released cosine never moves the rate; the relevance is the released one.
        assert cfg.param_scheduler[-1].type == 'ConstantLR'
        assert model.relevance == 'lrp'
    if name == 'cam_r50_voc':
        frozen = {
            n.split('.')[1] for n, p in model.named_parameters() if not p.requires_grad
        }
        assert frozen == {'conv1', 'bn1', 'layer1', 'layer2'}
        features = model.eval().tower(torch.zeros(1, 3, 64, 96))[-1]
        assert features.shape == (1, 2048, 4, 6)
        assert model.test_scales == (1.0, 0.5, 1.5, 2.0)
        assert model.test_flip


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason='needs ../shared/data/weights')
def test_real_weights_reach_the_backbone():
    cfg = Config.fromfile(ROOT / 'configs/cam_vit_msrc.py')
    cfg.model.weights = str(WEIGHTS / 'vit-tiny-p16_in1k_fp16.safetensors')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    encoder = MODELS.build(
        dict(
            type='mmwsss.FrozenBackbone',
            backbone=dict(cfg.model.backbone, out_type='featmap', out_indices=[-1]),
            weights=cfg.model.weights,
            mean=cfg.model.mean,
            std=cfg.model.std,
        )
    )
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features = model.eval()._see(image).features
    torch.testing.assert_close(features, encoder(image)[-1])


def run_config(data_root, **model):
    """Trains a frozen transformer's head on drawn photos and scores its relevance."""
    content = tiny_run.config(data_root)
    content['model'] = dict(
        type='mmwsss.CAMClassifier',
        data_preprocessor=content['model']['data_preprocessor'],
        num_classes=2,
        **model,
    )
    content['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
    content['val_dataloader'] = tiny_run.eval_loader(content)
    content['val_cfg'] = dict(type='ValLoop')
    content['val_evaluator'] = [dict(type='mmwsss.CAMMetric', prefix='cam')]
    return content


@pytest.mark.slow
@pytest.mark.parametrize('frozen', [False, True])
def test_training_validates_and_goes_on_where_it_stopped(tmp_path, frozen):
    root = tiny_run.draw(tmp_path / 'data')
    content = run_config(root, frozen=frozen, **CLASS_TOKEN)
    path = tiny_run.write_config(tmp_path / 'config.py', content)
    done = tiny_run.train(path, tmp_path / 'whole')
    assert done.returncode == 0, done.stderr[-3000:]
    (log,) = (tmp_path / 'whole').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len([line for line in lines if 'loss_cls' in line]) == 4
    assert {'cam/mIoU', 'cam/mIoU@0.25'} <= lines[-1].keys()
    # Half of the run, taken up again.
    half = tmp_path / 'half'
    half.mkdir()
    shutil.copy(tmp_path / 'whole/iter_2.pth', half)
    (half / 'last_checkpoint').write_text(str(half / 'iter_2.pth'))
    done = tiny_run.train(path, half, '--resume')
    assert done.returncode == 0, done.stderr[-3000:]
    states = [
        torch.load(folder / 'iter_4.pth', weights_only=False)['state_dict']
        for folder in (tmp_path / 'whole', half)
    ]
    assert states[0].keys() == states[1].keys()
    assert (set(states[0]) == {'classifier.weight'}) == frozen
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
