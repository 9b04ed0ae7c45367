import functools
import json
import shutil
from pathlib import Path

import distributed_sipe
import numpy as np
import pytest
import reference
import tiny_run
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

import mmwsss.datasets
import mmwsss.models  # noqa: F401
from mmwsss.errors import InputError
from mmwsss.models.cam_networks import sipe
from mmwsss.models.cam_networks.base import resized_photo, scaled_size
from mmwsss.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / '../shared/data/weights/mobileone-s0_in1k_fp16.safetensors'
AE = ('pamr', 'prototypes', 'is_cam')
AE_SIPE = dict(
    enhancement=AE, enhancement_num_iters=2, train_seed_features='hierarchical'
)
DILATIONS = (1, 2, 4, 8, 12, 24)
SIZE = (32, 48)  # 8 x 12, 4 x 6, 2 x 3 and 2 x 3 cells

RESNET = dict(
    type='ResNet',
    depth=18,
    base_channels=4,
    stem_channels=4,
    strides=(1, 2, 2, 1),
    norm_eval=True,
    frozen_stages=2,
    style='pytorch',
)


def build(seed=0, backbone=RESNET, **changes):
    init_default_scope('mmseg')
    torch.manual_seed(seed)
    config = dict(
        type='mmwsss.SIPE',
        backbone=backbone,
        num_classes=3,
        side_channels=(3, 4, 5, 6),
        data_preprocessor=tiny_run.config('unused')['model']['data_preprocessor'],
    )
    model = MODELS.build({**config, **changes})
    model.init_weights()
    return model


def lively(seed, **changes):
    """A network in float64 whose classes all fire somewhere in a photo of noise."""
    model = build(**changes).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim > 1:
            parameter.data = noise * parameter[0].numel() ** -0.5
        else:
            parameter.data += 0.5 * noise
    return model


def batch(labels=((1, 0, 1), (0, 1, 0), (0, 0, 0)), shape=(20, 30)):
    samples = []
    for label in labels:
        sample = SegDataSample(
            metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=SIZE)
        )
        label = torch.tensor(label, dtype=torch.float32)
        sample.set_field(label, 'image_label', dtype=torch.Tensor)
        samples.append(sample)
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(len(labels), 3, *SIZE, generator=generator)
    image[..., shape[0] :, :] = 0
    image[..., shape[1] :] = 0
    return image, samples


def total(losses):
    return sum(v for n, v in losses.items() if 'loss' in n)


class GivenStages(nn.Module):
    """In place of a backbone: the same maps for any image."""

    def __init__(self, seed=0, n=3):
        super().__init__()
        self.seen = []
        generator = torch.Generator().manual_seed(seed)
        shapes = [(4, 8, 12), (8, 4, 6), (16, 2, 3), (32, 2, 3)]
        self.stages = tuple(
            torch.randn(n, *shape, generator=generator, dtype=torch.float64)
            .relu()
            .requires_grad_()
            for shape in shapes
        )

    def forward(self, image):
        self.seen.append(image)
        return tuple(stage[: len(image)] for stage in self.stages)


# ---------------------------------------------------------- the loss against loops
@functools.cache
def kept_kernel(pixels, shape, y, x, dilations):
    image = np.frombuffer(pixels).reshape(shape)
    return reference.pamr_kernel(image, y, x, dilations)


def loop_kernel(image, y, x, dilations):
    """Kernel of PAMR; one image is refined many times here."""
    return kept_kernel(image.tobytes(), image.shape, y, x, dilations)


def loop_loss(model, inputs, samples, detached):
    """The whole training step from the formulas, image by image, in float64.

    ``detached``: the stages as the side branches see them; no gradient flows there.
    """
    mean = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    head = model.classifier.weight.detach().numpy()[:, :, 0, 0]
    sides = [c.weight.detach().numpy()[:, :, 0, 0] for c in model.side_convs]
    stages = [s.detach().numpy() for s in model.backbone.stages]
    classification, distance, count = 0.0, 0.0, 0
    for i, sample in enumerate(samples):
        label = sample.image_label.numpy()
        height, width = sample.img_shape
        image = inputs[i].double().numpy().copy()
        image[:, height:] = mean
        image[:, :, width:] = mean
        class_maps = np.tensordot(head, stages[3][i], 1)
        for score, there in zip(class_maps.mean((1, 2)), label, strict=True):
            probability = 1 / (1 + np.exp(-score))
            right = probability if there else 1 - probability
            classification -= np.log(right) / label.size / len(samples)
        size = class_maps.shape[1:]
        allowed = np.zeros((label.size + 1, *size))
        for c in range(label.size + 1):
            for y, x in reference.cells(*size):
                inside = 16 * y < height and 16 * x < width
                allowed[c, y, x] = inside * (label[c - 1] if c else 1)
        general = reference.general_scores(class_maps) * allowed
        features = reference.hierarchical_features(
            [np.tensordot(w, s[i], 1) for w, s in zip(sides, detached, strict=True)],
            size,
        )
        deepest = model.train_seed_features == 'deepest'
        seeds = reference.structure_seeds(
            detached[3][i] if deepest else features, general, allowed
        )
        maps = reference.prototype_cams(
            features, reference.class_prototypes(features, seeds)
        )
        if model.enhancement:
            quarter = reference.resize(image, (8, 12), align_corners=True)
            maps = reference.enhance(
                quarter,
                features,
                maps,
                model.enhancement,
                DILATIONS,
                2,
                bg_factor=model.enhancement_bg_factor,
                kernel=loop_kernel,
                allowed=1.0 if model.learn_from_padding else allowed,
            )
        target = reference.normalized(maps, model.norm)
        counted = allowed[:1] if not model.learn_from_padding else 0 * allowed[:1] + 1
        distance += (np.abs(general - target) * counted).sum()
        count += counted.sum() * len(target)
    return classification, distance / count


@pytest.mark.parametrize(
    ('seed', 'changes'),
    [
        (0, dict()),
        (1, dict()),
        (0, dict(train_seed_features='hierarchical')),
        (0, AE_SIPE),
        (1, dict(AE_SIPE, norm='minmax')),
        (2, dict(AE_SIPE, learn_from_padding=False, enhancement_bg_factor=0.8)),
        (0, dict(AE_SIPE, enhancement=('prototypes', 'is_cam', *AE))),
    ],
)
def test_loss_and_gradients_of_a_step_equal_loops(seed, changes):
    model = build(seed, **changes).double().train()
    model.backbone = GivenStages(seed)
    inputs, samples = batch()
    losses = model.loss(inputs.double(), samples)
    stages = model.backbone.stages
    detached = [stage.detach().numpy().copy() for stage in stages]
    classification, distance = loop_loss(model, inputs, samples, detached)
    kind = model.default_kind
    assert losses['loss_cls'].item() == pytest.approx(classification, abs=1e-6)
    assert losses[f'loss_gsc_{kind}'].item() == pytest.approx(distance, abs=1e-6)
    assert distance > 0.01

    total(losses).backward()
    assert [stage.grad for stage in stages[:3]] == [None] * 3
    leaves = [model.classifier.weight, stages[3]]
    leaves += [conv.weight for conv in model.side_convs]
    generator = torch.Generator().manual_seed(seed)
    for leaf in leaves:
        gradient, values = leaf.grad.flatten(), leaf.data.view(-1)
        # The largest ones, and some at random.
        chosen = gradient.abs().topk(2).indices.tolist()
        chosen += torch.randint(len(values), (1,), generator=generator).tolist()
        for number in chosen:
            step = 1e-5
            before = values[number].item()
            if leaf is stages[3] and before == 0:
                continue  # at the kink of its ReLU
            values[number] = before + step
            above = sum(loop_loss(model, inputs, samples, detached))
            values[number] = before - step
            below = sum(loop_loss(model, inputs, samples, detached))
            values[number] = before
            expected = (above - below) / (2 * step)
            assert gradient[number].item() == pytest.approx(expected, abs=1e-6)


def test_pamr_gets_a_quarter_of_the_image(monkeypatch):
    # Seeds are an argmax, which hides small differences of the image from the loops.
    seen = []

    def record(image, features, cams, *others, **options):
        seen.append(image)
        return cams

    monkeypatch.setattr(sipe, 'enhance_cams', record)
    inputs, samples = batch()
    build(**AE_SIPE).double().train().loss(inputs.double(), samples)
    filled = inputs.double().numpy().copy()
    mean = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    filled[..., 20:, :] = mean
    filled[..., 30:] = mean
    expected = reference.resize(filled, (8, 12), align_corners=True)
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=1e-6)
    photo, label = photo_and_label((33, 47))
    build(**AE_SIPE, test_scales=(1.0,)).double().eval().cams(photo, label)
    expected = reference.resize(photo.numpy() / 255, (8, 11), align_corners=True)
    np.testing.assert_allclose(seen[1][0].numpy(), expected, atol=1e-6)


def test_network_sees_the_mean_colour_in_the_padding():
    model = build().train()
    model.backbone = GivenStages()
    model.double()
    inputs, samples = batch()
    model.loss(inputs.double(), samples)
    (seen,) = model.backbone.seen
    assert not seen[..., 30:].any()
    expected = (inputs[0, :, 5, 7] - torch.tensor([0.485, 0.456, 0.406])) / (
        torch.tensor([0.229, 0.224, 0.225])
    )
    torch.testing.assert_close(seen[0, :, 5, 7].float(), expected)


# ------------------------------------------------------ maps of photos against loops
def loop_maps(model, image, label, kinds):
    """One photo (3, H, W) at one scale with its mirror image, from the formulas."""
    views = torch.stack([image, image.flip(-1)])
    stages = [s.detach().numpy() for s in model.backbone(model.normalized(views))]
    head = model.classifier.weight.detach().numpy()[:, :, 0, 0]
    sides = [c.weight.detach().numpy()[:, :, 0, 0] for c in model.side_convs]
    size = stages[2].shape[2:]
    class_maps, features = 0, 0
    for view in range(2):
        turn = slice(None, None, -1) if view else slice(None)
        class_maps = class_maps + np.tensordot(head, stages[3][view], 1)[..., turn]
        projected = [
            np.tensordot(w, s[view], 1) for w, s in zip(sides, stages, strict=True)
        ]
        found = reference.hierarchical_features(projected, size)
        features = features + found[..., turn]
    present = np.concatenate([[1], label]).reshape(-1, 1, 1)
    deepest = stages[3][0] + stages[3][1][..., ::-1]
    seeds = reference.structure_seeds(
        deepest if model.test_seed_features == 'deepest' else features,
        reference.general_scores(class_maps),
        present,
    )
    maps = {'cam': np.maximum(class_maps, 0)}
    maps['is_cam'] = reference.prototype_cams(
        features, reference.class_prototypes(features, seeds)
    )
    if 'enhanced' in kinds:
        quarter = [side // 4 for side in image.shape[1:]]
        small = reference.resize(image.numpy(), quarter, align_corners=True)
        enhanced = reference.enhance(
            small, features, maps['is_cam'], model.enhancement, DILATIONS, 2
        )
        maps['enhanced'] = reference.normalized(enhanced, model.norm)
    return maps


def photo_and_label(size=(33, 44), label=(1, 0, 1)):
    generator = torch.Generator().manual_seed(2)
    photo = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return photo, torch.tensor(label, dtype=torch.float32)


@pytest.mark.parametrize(('seed', 'label'), [(102, (1, 0, 1)), (77, (1, 0, 0))])
@pytest.mark.parametrize('seed_features', ['hierarchical', 'deepest'])
def test_maps_of_several_scales_and_flips_equal_loops(seed, label, seed_features):
    scales = (1.0, 0.5, 1.5)
    model = lively(
        seed,
        **AE_SIPE,
        test_scales=scales,
        bg_rescale=0.8,
        test_seed_features=seed_features,
    )
    photo, label = photo_and_label(label=label)
    found = model.all_cams(photo, label)
    assert tuple(found) == ('cam', 'is_cam', 'enhanced')
    sums = {}
    for scale in scales:
        size = [round(scale * side) for side in photo.shape[1:]]
        scaled = resized_photo(photo[None].double() / 255, size)[0]
        for kind, maps in loop_maps(model, scaled, label.numpy(), found).items():
            maps = reference.resize(maps, photo.shape[1:], align_corners=False)
            sums[kind] = sums.get(kind, 0) + maps
    present = np.concatenate([[1], label.numpy()]).reshape(-1, 1, 1)
    for kind, maps in sums.items():
        if kind == 'cam':
            expected = reference.normalized(maps) * present[1:]
            assert found[kind].scores is None
        else:
            scores = reference.normalized(maps) * present
            scores[0] *= 0.8
            ours = found[kind].scores.numpy()
            np.testing.assert_allclose(ours, scores, atol=1e-6)
            expected = scores[1:]
        np.testing.assert_allclose(found[kind].cams.numpy(), expected, atol=1e-6)
        assert not found[kind].cams[1].any()
        assert found[kind].cams[0].any(), kind
    # What the masks and the background factor are tested with.
    assert found['enhanced'].scores[0].any()
    everything = model.cams(photo, torch.ones(3))
    assert everything.cams[1].any()


def test_one_kind_is_the_same_as_that_of_all_kinds():
    model = lively(102, **AE_SIPE, test_scales=(1.0, 0.7))
    photo, label = photo_and_label()
    everything = model.all_cams(photo, label)
    for kind in model.kinds:
        alone = model.cams(photo, label, kind=kind)
        assert torch.equal(alone.cams, everything[kind].cams)
    assert torch.equal(model.cams(photo, label).cams, everything['enhanced'].cams)
    assert build().default_kind == 'is_cam'


def test_mirrored_photo_gives_mirrored_maps():
    model = lively(102, test_scales=(1.0,))
    photo, label = photo_and_label()
    ours = model.cams(photo, label).scores
    mirrored = model.cams(photo.flip(-1), label).scores
    torch.testing.assert_close(mirrored.flip(-1), ours, atol=1e-9, rtol=0)


def test_bytes_and_floats_are_the_same_photo():
    model = build().eval()
    photo, label = photo_and_label()
    torch.testing.assert_close(
        model.cams(photo, label).cams, model.cams(photo / 255.0, label).cams
    )


@pytest.mark.parametrize('size', [(17, 22), (50, 66), (66, 50)])
def test_photos_are_resized_as_by_pillow(size):
    rows = np.linspace(0, 3, 33)[:, None, None] + np.arange(3)
    columns = np.linspace(0, 5, 44)[None, :, None]
    pixels = (127 + 120 * np.sin(rows) * np.cos(columns * columns)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.BICUBIC))
    photo = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255.0
    ours = (resized_photo(photo, size)[0] * 255).permute(1, 2, 0).numpy()
    # Pillow rounds once more, between columns and rows.
    assert np.abs(ours - expected).max() < 1.01
    assert np.abs(ours - expected).mean() < 0.3


def test_huge_photos_are_cut_to_the_longest_side():
    assert scaled_size((3000, 4000), 2.0, 2048) == (1536, 2048)
    assert scaled_size((375, 500), 2.0, 2048) == (750, 1000)
    assert scaled_size((1, 1), 0.3, 2048) == (1, 1)
    model = build(max_side=40, test_scales=(2.0,)).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    photo, label = photo_and_label()
    assert model.cams(photo, label).cams.shape == (3, 33, 44)
    assert tuple(seen[0].shape) == (2, 3, 30, 40)


# ---------------------------------------------------------------------- degenerate
@pytest.mark.parametrize('size', [(1, 1), (5, 7), (3, 90)])
@pytest.mark.parametrize('label', [(1, 1, 1), (0, 0, 0)])
def test_any_photo_and_label_give_finite_maps_in_range(size, label):
    model = build(**AE_SIPE).eval()
    photo, label = photo_and_label(size, label)
    for flat in (photo, torch.full_like(photo, 128)):
        for found in model.all_cams(flat, label).values():
            assert found.cams.shape == (3, *size)
            assert found.cams.isfinite().all()
            assert 0 <= found.cams.min() <= found.cams.max() <= 1
            assert not found.cams[label == 0].any()
            if found.scores is not None and not label.any():
                assert not found.scores.argmax(0).any()


@pytest.mark.parametrize(
    'labels', [((0, 0, 0), (0, 0, 0)), ((1, 1, 1), (1, 0, 0)), ((0, 1, 0),)]
)
@pytest.mark.parametrize('changes', [dict(), AE_SIPE])
def test_losses_and_gradients_are_finite_for_any_image_label(labels, changes):
    model = build(**changes).train()
    losses = model.loss(*batch(labels))
    total(losses).backward()
    assert total(losses).isfinite()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in trained)


def test_a_single_class_is_enough():
    model = build(num_classes=1, **AE_SIPE)
    assert total(model.train().loss(*batch(((1,), (0,))))).isfinite()
    photo, _ = photo_and_label()
    found = model.eval().cams(photo, torch.ones(1))
    assert found.scores.shape == (2, 33, 44)


def test_wrong_questions_get_a_sentence():
    model = build().eval()
    photo, label = photo_and_label()
    with pytest.raises(InputError, match=r'a photo must be \(3, H, W\)'):
        model.cams(photo[:1], label)
    with pytest.raises(InputError, match=r'a photo must be uint8 or floating point'):
        model.cams(photo.long(), label)
    with pytest.raises(InputError, match='must hold 3 numbers'):
        model.cams(photo, label[:2])
    with pytest.raises(InputError, match="has no 'enhanced'"):
        model.cams(photo, label, kind='enhanced')
    for wrong, sentence in (
        (dict(norm='mean'), 'norm must be one of'),
        (dict(train_seed_features='all'), 'train_seed_features must be one of'),
        (dict(enhancement=('is_cam',)), 'each'),
        (dict(gsc_weights='{}'), 'gsc_weights must be a dict'),
        (dict(gsc_weights=dict(enhanced=1.0)), 'gsc_weights may name'),
        (dict(bg_rescale=1.2), r'bg_rescale must be in \[0, 1\], got 1.2'),
        (dict(test_scales=()), 'test_scales must be positive'),
        (dict(num_classes=0), 'num_classes must be at least 1, got 0'),
        (dict(backbone=dict(RESNET, out_indices=(2, 3))), 'returns 2 feature maps'),
        (dict(backbone=dict(type='Nonsense')), "'Nonsense' is not known"),
        (dict(backbone=dict(depth=18)), 'needs a type'),
        (dict(weights='nowhere.pth'), 'There is no weights file'),
    ):
        with pytest.raises(ValueError, match=sentence):
            build(**wrong)


# ------------------------------------------------------------------- what is trained
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
    out_indices=(0, 1, 2, 3),
    frozen_stages=2,
)


@pytest.mark.parametrize('backbone', [RESNET, CONVNEXT, MOBILEONE])
@pytest.mark.parametrize(
    'changes',
    [
        dict(),
        AE_SIPE,
        dict(gsc_weights={}),
        dict(AE_SIPE, enhancement=(*AE, 'pamr')),
        dict(AE_SIPE, gsc_weights=dict(is_cam=0.5, enhanced=1.0)),
    ],
)
def test_every_parameter_that_is_not_frozen_gets_a_gradient(backbone, changes):
    # Otherwise DistributedDataParallel would need find_unused_parameters.
    model = build(backbone=backbone, **changes)
    total(model.train().loss(*batch())).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    trained = {n.split('.')[1] for n, p in model.named_parameters() if p.requires_grad}
    if backbone is RESNET:
        assert {'layer3', 'layer4'} <= trained
        assert not {'conv1', 'bn1', 'layer1', 'layer2'} & trained
    if backbone is MOBILEONE:
        assert {'stage3', 'stage4'} <= trained
        assert not {'stage0', 'stage1', 'stage2'} & trained


def test_heads_learn_ten_times_as_fast():
    from mmengine.optim import build_optim_wrapper

    cfg = Config.fromfile(ROOT / 'configs/sipe_msrc.py')
    init_default_scope('mmseg')
    model = build()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {
        id(p): group['lr']
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = 1 if name.startswith('backbone') else 10
        assert rates[id(parameter)] == pytest.approx(factor * cfg.base_lr), name


def test_schedule_scales_the_named_loss_by_progress():
    points = [[0.0, 0.0], [0.5, 1.0]]
    model = build(loss_schedules={'loss_gsc_is_cam': points})
    plain = build().loss(*batch())
    for progress, factor in ((0.0, 0.0), (0.25, 0.5), (1.0, 1.0)):
        model.progress = progress
        losses = model.loss(*batch())
        expected = factor * plain['loss_gsc_is_cam']
        torch.testing.assert_close(losses['loss_gsc_is_cam'], expected)
        torch.testing.assert_close(losses['loss_cls'], plain['loss_cls'])
    wrong = build(loss_schedules={'loss_gsc_enhanced': points})
    with pytest.raises(ValueError, match="names 'loss_gsc_enhanced', but the losses"):
        wrong.loss(*batch())


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    # Unused parameters would stop DistributedDataParallel in the second step.
    mp.spawn(distributed_sipe.run_rank, (str(tmp_path),), nprocs=2)
    expected = distributed_sipe.train(distributed_sipe.network(), slice(0, 4))
    for rank in range(2):
        ours = torch.load(tmp_path / f'rank{rank}.pt')
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            assert (ours[name] - value).abs().max() < 1e-9, name


# ------------------------------------------------------------------ configs and runs
@pytest.mark.parametrize(
    'name', ['sipe_msrc', 'aesipe_msrc', 'sipe_r50_voc', 'aesipe_r50_voc']
)
def test_model_builds_from_its_config(name):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert model.num_classes == cfg.num_classes - 1
    assert model.default_kind == ('enhanced' if 'ae' in name else 'is_cam')
    assert model.gsc_weights == {model.default_kind: 1.0}
    channels = [conv.in_channels for conv in model.side_convs]
    r50 = [256, 512, 1024, 2048]
    assert channels == (r50 if 'r50' in name else [48, 128, 256, 1024])
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(n.startswith('backbone') for n in frozen)
    model.train().backbone.eval()
    stages = model.backbone(torch.zeros(1, 3, 64, 96))
    sizes = [tuple(stage.shape[-2:]) for stage in stages]
    assert sizes == [(16, 24), (8, 12), (4, 6), (4, 6)]


@pytest.mark.skipif(not WEIGHTS.is_file(), reason='needs ../shared/data/weights')
def test_real_weights_reach_the_backbone_and_training_moves_only_open_stages():
    model = build(
        backbone=MOBILEONE,
        weights=str(WEIGHTS),
        unstride=['stage4.0.branch_reparam'],
    )
    encoder = MODELS.build(
        dict(
            type='mmwsss.FrozenBackbone',
            backbone=MOBILEONE,
            weights=str(WEIGHTS),
            unstride=['stage4.0.branch_reparam'],
        )
    )
    image, samples = batch()
    for ours, expected in zip(
        model.backbone(model.normalized(image)), encoder(image), strict=True
    ):
        torch.testing.assert_close(ours, expected)
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    total(model.train().loss(image, samples)).backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    stages = {n.split('.')[1] for n in moved if n.startswith('backbone')}
    assert stages == {'stage3', 'stage4'}


def run_config(data_root):
    content = tiny_run.config(data_root)
    evaluation = [
        dict(type='mmwsss.LoadPhoto'),
        dict(type='mmwsss.LoadMask', num_classes=3),
        dict(type='mmwsss.PackWSSSInputs'),
    ]
    dataset = dict(content['train_dataloader']['dataset'], pipeline=evaluation)
    content['model'] = dict(
        type='mmwsss.SIPE',
        data_preprocessor=content['model']['data_preprocessor'],
        backbone=RESNET,
        num_classes=2,
        side_channels=(3, 4, 5, 6),
        **AE_SIPE,
    )
    content['train_cfg'] = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
    content['val_dataloader'] = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(dataset, test_mode=True),
    )
    content['val_cfg'] = dict(type='ValLoop')
    content['val_evaluator'] = [
        dict(type='mmwsss.PseudoLabelMetric', prefix='label'),
        dict(type='mmwsss.CAMMetric', prefix='cam'),
    ]
    return content


@pytest.mark.slow
def test_training_from_image_labels_validates_and_goes_on_where_it_stopped(tmp_path):
    root = tiny_run.draw(tmp_path / 'data')
    path = tiny_run.write_config(tmp_path / 'sipe.py', run_config(root))
    done = tiny_run.train(path, tmp_path / 'whole')
    assert done.returncode == 0, done.stderr[-3000:]
    (log,) = (tmp_path / 'whole').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line['loss_gsc_enhanced'] for line in lines if 'loss' in line]
    assert len(losses) == 4
    assert {'label/mIoU', 'cam/mIoU', 'cam/mIoU@0.25'} <= lines[-1].keys()
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
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_predictions_have_the_size_of_the_photo():
    model = build(test_scales=(1.0,)).eval()
    inputs, samples = batch(((1, 0, 1),), shape=(20, 30))
    samples[0].set_metainfo(dict(ori_shape=(40, 60)))
    (result,) = model(inputs, samples, mode='predict')
    assert result.cams.shape == (3, 40, 60)
    assert result.pred_sem_seg.data.shape == (1, 40, 60)
    alone = model.cams(inputs[0, :, :20, :30], samples[0].image_label)
    assert set(result.pred_sem_seg.data.unique().tolist()) <= {0, 1, 3}
    assert (alone.scores.amax((1, 2)) > 0).tolist() == (
        [bool((result.pred_sem_seg.data == 0).any()), *(result.cams.amax((1, 2)) > 0)]
    )
