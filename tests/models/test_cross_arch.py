import copy
import itertools

import numpy as np
import pytest
import reference
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from classifier_cases import MEAN, SIZE, STD, VIT, batch, photo_and_label, soft_margin
from distributed_cross_arch import (
    CHANGES,
    CNN_BRANCH,
    LABELS,
    RESNET,
    VIT_BRANCH,
    network,
    run_rank,
    train,
)
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict as mm_load_state_dict

from mmwsss.errors import InputError
from mmwsss.functional import fuse_layer_maps, pixel_correlation, rescale_maps
from mmwsss.functional.knowledge_transfer import METRICS, MODES
from mmwsss.models.batch import valid_mask
from mmwsss.models.cam_networks import PixelCorrelation
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

ALONE = dict(teacher=None, teacher_checkpoint=None)
CO = dict(paradigm='co_training')
COARSE_CNN = dict(CNN_BRANCH, backbone=dict(RESNET, strides=(2, 2, 1)), pcm=None)
PLAIN_CNN = dict(CNN_BRANCH, pcm=None)
PATCH_VIT = dict(VIT_BRANCH, head='patch')


def transfer(**changes):
    return dict(loss_kt=dict(type='mmwsss.KnowledgeTransferLoss', **changes))


def lively(seed=0, **changes):
    """A network in float64 whose numbers are all of similar size."""
    model = network(**changes).double().eval()
    generator = torch.Generator().manual_seed(seed)
    branches = [model.student]
    if model.teacher_branch is not None:
        branches.append(model.teacher_branch)
    if hasattr(model, 'projection'):
        branches.append(model.projection)
    for branch in branches:
        for parameter in branch.parameters():
            noise = torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
            if parameter.ndim > 1:
                parameter.data = 1.5 * noise * parameter[0].numel() ** -0.5
            else:
                parameter.data += 0.3 * noise
    return model


def losses_of(model, labels=((1, 0, 1), (0, 1, 0), (0, 0, 0))):
    inputs, samples = batch(labels)
    return model.loss(inputs.to(next(model.parameters())), samples)


def grads_of(parameters):
    return [None if p.grad is None else p.grad.clone() for p in parameters]


# ---------------------------------------------------------------------- student alone
@pytest.mark.parametrize(
    ('branch', 'plain'),
    [
        (PLAIN_CNN, dict(backbone=dict(RESNET, out_indices=(2,)))),
        (VIT_BRANCH, dict(backbone=VIT, pool='cls_token', kind='grad')),
        (PATCH_VIT, dict(backbone=VIT)),
    ],
)
def test_a_student_alone_is_a_plain_classifier(branch, plain):
    model = lively(student=branch, **ALONE)
    classifier = MODELS.build(
        dict(type='mmwsss.CAMClassifier', num_classes=3, **plain)
    ).double()
    classifier.load_state_dict(model.student.state_dict())
    found, expected = losses_of(model), losses_of(classifier)
    assert found.keys() == {'loss_cls_student'}
    torch.testing.assert_close(found['loss_cls_student'], expected['loss_cls'])
    classifier.eval()
    photo, label = photo_and_label((33, 47))
    for kind, same in (('direct', 'cam'), ('grad', 'grad')):
        own = model.cams(photo, label, kind=kind).cams
        other = classifier.cams(photo, label, kind=same).cams
        if kind == 'grad':
            # Layers are fused after min-max, here there is one of them.
            own, other = (
                (m - m.amin((1, 2), keepdim=True)) * label[:, None, None]
                for m in (own, other)
            )
            own, other = (
                m / m.amax((1, 2), keepdim=True).clamp(min=1e-9) for m in (own, other)
            )
        torch.testing.assert_close(own, other, atol=1e-3, rtol=0)
    # Without a teacher there are no names of its maps.
    assert set(model.kinds) == {'grad', 'layer', 'direct'}
    best = 'grad' if branch is VIT_BRANCH else 'direct'
    assert model.default_kind == best


def test_another_loss_takes_the_place_of_the_soft_margin():
    clips = dict(type='mmwsss.VideoMIL', mode='max')
    model = lively(**CO, teacher_checkpoint=None, loss_cls=clips)
    inputs, samples = batch(((1, 0, 1), (1, 0, 1), (0, 1, 0)))
    inputs = inputs.double()
    for clip, sample in zip('aab', samples, strict=True):
        sample.set_metainfo({'clip_id': clip})
    found = model.loss(inputs, samples)
    valid = valid_mask(samples, inputs.shape[-2:], inputs.device)
    label = torch.tensor([[1.0, 0, 1], [0, 1, 0]], dtype=torch.float64)
    for name, branch in (('student', model.student), ('teacher', model.teacher)):
        scores = branch(inputs, valid).scores
        pooled = torch.stack([scores[:2].amax(0), scores[2]])
        expected = F.binary_cross_entropy_with_logits(pooled, label)
        torch.testing.assert_close(found[f'loss_cls_{name}'], expected)


def test_loss_equals_loops_with_each_branchs_own_normalisation():
    own_mean = dict(mean=(10.0, 20.0, 30.0), std=(50.0, 60.0, 70.0))
    model = lively(student=dict(VIT_BRANCH, **own_mean), **CO)
    inputs, samples = batch()
    found = losses_of(model)
    expected = {}
    for name, branch in (('student', model.student), ('teacher', model.teacher)):
        mean, std = (
            (torch.tensor(own_mean[n]).view(3, 1, 1).double() / 255 for n in own_mean)
            if name == 'student'
            else (MEAN, STD)
        )
        scores = []
        for image in inputs.double():
            image = image.clone()
            image[:, 20:] = mean
            image[:, :, 30:] = mean
            seen = branch.backbone(((image - mean) / std)[None])
            weight = branch.classifier.weight.detach()[:, :, 0, 0]
            if name == 'student':
                scores.append((weight @ seen[-1][0, 0]).detach().numpy())
                continue
            maps = torch.einsum('kd,dhw->khw', weight, seen[-1][0])
            spread = branch.pcm(maps[None], seen, ((image - mean) / std)[None])
            scores.append(spread[0].mean((1, 2)).detach().numpy())
        labels = [s.image_label.numpy() for s in samples]
        expected[f'loss_cls_{name}'] = soft_margin(scores, labels)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, abs=1e-6)


# ------------------------------------------------------------------ the frozen teacher
def norm_statistics(module):
    return {n: b.clone() for n, b in module.named_buffers() if 'running' in n}


@pytest.mark.parametrize('save', [False, True])
def test_a_frozen_teacher_is_the_same_after_a_training(save):
    teacher = dict(CNN_BRANCH, backbone=dict(RESNET, norm_eval=False))
    model = network(teacher=teacher, save_teacher=save)
    branch = model.teacher_branch
    before = copy.deepcopy(branch.state_dict())
    assert norm_statistics(branch)
    parameters = {id(p) for p in model.parameters()}
    assert not any(id(p) in parameters for p in branch.parameters())
    own = train(model)
    assert not any(module.training for module in branch.modules())
    assert all(module.training for module in model.student.modules())
    for name, value in branch.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert len(own) == len(list(model.parameters()))
    saved = {n for n in model.state_dict() if n.startswith('teacher.')}
    assert saved == ({f'teacher.{n}' for n in before} if save else set())
    # It moves with the rest.
    model.double()
    assert branch.classifier.weight.dtype == torch.float64
    assert model(*batch(LABELS), mode='loss').keys() == {
        'loss_cls_student',
        'loss_kt',
        'cka',
    }


def teacher_run(tmp_path, **changes):
    """A training of the teacher alone with its checkpoint, as tools/train.py leaves."""
    model = network(seed=7, student=CNN_BRANCH, **ALONE, **changes)
    train(model)
    path = tmp_path / 'iter_3.pth'
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, path)
    (tmp_path / 'last_checkpoint').write_text(str(path))
    return model, path


@pytest.mark.parametrize('folder', [False, True])
def test_the_teacher_comes_from_its_own_training(tmp_path, folder):
    trained, path = teacher_run(tmp_path)
    where = str(tmp_path if folder else path)
    model = network(teacher_checkpoint=where)
    for name, value in trained.student.state_dict().items():
        assert torch.equal(model.teacher_branch.state_dict()[name], value), name
    photo, label = photo_and_label((33, 47))
    found = model.eval().cams(photo, label, kind='teacher').cams
    expected = trained.eval().cams(photo, label, kind='direct').cams
    torch.testing.assert_close(found, expected)
    # The student's checkpoint needs nothing of it for its own maps.
    bare = network(seed=3, teacher_checkpoint=where)
    bare.load_state_dict(model.state_dict())
    path.unlink()
    init_default_scope('mmseg')
    lazy = MODELS.build(
        dict(
            type='mmwsss.CrossArch',
            num_classes=3,
            student=VIT_BRANCH,
            teacher=CNN_BRANCH,
            teacher_checkpoint=where,
            projection=dict(type='mmwsss.PointwiseProjection'),
            loss_kt=dict(type='mmwsss.KnowledgeTransferLoss'),
        )
    ).eval()
    lazy.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        lazy.cams(photo, label).cams, model.cams(photo, label).cams
    )
    with pytest.raises(InputError, match='does not exist'):
        lazy.cams(photo, label, kind='teacher')
    with pytest.raises(InputError, match='does not exist'):
        lazy.init_weights()


def test_a_plain_classifier_can_be_the_teacher(tmp_path):
    init_default_scope('mmseg')
    plain = dict(RESNET, out_indices=(2,))
    classifier = MODELS.build(
        dict(type='mmwsss.CAMClassifier', num_classes=3, backbone=plain)
    )
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': classifier.state_dict()}, path)
    teacher = dict(type='mmwsss.CNNBranch', backbone=plain)
    model = network(teacher=teacher, teacher_checkpoint=str(path))
    weight = model.teacher_branch.classifier.weight
    assert torch.equal(weight, classifier.classifier.weight)


def test_a_saved_teacher_comes_back_by_both_loaders(tmp_path):
    _, path = teacher_run(tmp_path)
    options = dict(teacher_checkpoint=str(path), save_teacher=True)
    model = network(**options)
    state = copy.deepcopy(model.state_dict())
    photo, label = photo_and_label()
    expected = model.eval().all_cams(photo, label)
    for number, load in enumerate(
        (lambda m: m.load_state_dict(state), lambda m: mm_load_state_dict(m, state))
    ):
        other = network(seed=number + 1, **options)
        other.teacher_branch.classifier.weight.data.zero_()
        load(other)
        for kind, found in other.eval().all_cams(photo, label).items():
            assert torch.equal(found.cams, expected[kind].cams), kind
    short = {n: v for n, v in state.items() if not n.startswith('teacher.')}
    with pytest.raises(RuntimeError, match='teacher'):
        network(**options).load_state_dict(short)


def test_an_untrained_teacher_is_the_same_in_every_run():
    first, second = network(seed=1), network(seed=2)
    for name, value in first.teacher_branch.state_dict().items():
        assert torch.equal(value, second.teacher_branch.state_dict()[name]), name
    student = [m.student.classifier.weight for m in (first, second)]
    assert not torch.equal(*student)
    # The control draws what the experiment draws.
    alone = network(seed=1, **ALONE)
    assert torch.equal(alone.student.classifier.weight, student[0])


def test_a_teacher_that_does_not_fit_gets_a_sentence(tmp_path):
    _, path = teacher_run(tmp_path)
    with pytest.raises(InputError, match='does not fit the teacher'):
        network(teacher=PLAIN_CNN, teacher_checkpoint=str(path))
    broken = tmp_path / 'broken.pth'
    broken.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r'broken\.pth cannot be read'):
        network(teacher_checkpoint=str(broken))


# ------------------------------------------------------------------------ the transfer
@pytest.mark.parametrize(('mode', 'metric'), itertools.product(MODES, METRICS))
def test_a_student_trains_with_each_mode_and_metric(mode, metric):
    changes = transfer(mode=mode, metric=metric)
    if mode == 'logits':
        changes['projection'] = None
    undefined = metric == ('cosine' if mode == 'logits' else 'kl')
    if undefined and mode != 'channel':
        with pytest.raises(ValueError, match=f"metric '{metric}'"):
            network(**changes)
        return
    model = network(**changes).train()
    losses = losses_of(model)
    losses['loss_kt'].backward()
    assert losses['loss_kt'].isfinite()
    assert losses['loss_kt'] > 0
    learning = model.student.classifier if mode == 'logits' else model.projection
    for parameter in learning.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
    assert model.student.backbone.layers[0].attn.qkv.weight.grad.any()
    assert set(model.kinds) >= {'grad', 'layer', 'direct', 'teacher'}
    assert ('proj' in model.kinds) == (mode != 'logits')


@pytest.mark.parametrize('target', ['cam', 'cam+bg', 'feature'])
def test_the_transfer_is_that_of_the_projected_student(target):
    model = lively(teacher_target=target, feature_channels=5)
    inputs, samples = batch()
    valid = torch.zeros(3, 1, *SIZE)
    valid[:, :, :20, :30] = 1
    student = model.student(inputs.double(), valid)
    teacher = model.teacher_branch(inputs.double(), valid)
    (conv,) = model.projection.layers
    weight, bias = conv.weight[:, :, 0, 0], conv.bias
    own = torch.einsum('ed,ndhw->nehw', weight, student.features) + bias[:, None, None]
    maps = teacher.class_maps
    if target == 'cam+bg':
        maps = torch.cat([-maps.max(1, keepdim=True).values, maps], 1)
        # The background is never an untrained channel.
        assert model.teacher_branch.classifier.out_channels == 3
    elif target == 'feature':
        basis = model.teacher_basis[:, :, 0, 0]
        torch.testing.assert_close(
            basis @ basis.T, torch.eye(5).double(), atol=1e-5, rtol=0
        )
        maps = torch.einsum('ed,ndhw->nehw', basis, teacher.features)
    terms = []
    for a, b in zip(own.detach().numpy(), maps.detach().numpy(), strict=True):
        b = reference.resize(b, a.shape[1:], align_corners=False).ravel()
        a = a.ravel()
        terms.append(1 - a @ b / np.sqrt((a @ a) * (b @ b)))
    found = model.loss(inputs.double(), samples)
    assert found['loss_kt'].item() == pytest.approx(sum(terms) / 3, abs=1e-6)
    assert own.shape[1] == {'cam': 3, 'cam+bg': 4, 'feature': 5}[target]


@pytest.mark.parametrize('target', ['cam', 'cam+bg', 'feature'])
def test_the_projection_is_a_trained_part(target):
    model = network(teacher_target=target)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {'projection.layers.0.weight', 'projection.layers.0.bias'} <= names
    assert names <= set(model.state_dict())
    # What compares is the same at every call, and changes by learning alone.
    losses = [losses_of(model)['loss_kt'].item() for _ in range(2)]
    assert losses[0] == losses[1]
    before = copy.deepcopy(model.projection.state_dict())
    basis = None if target != 'feature' else model.teacher_basis.clone()
    train(model)
    for name, value in model.projection.state_dict().items():
        assert not torch.equal(value, before[name]), name
    if basis is not None:
        assert torch.equal(model.teacher_basis, basis)
        assert 'teacher_basis' in model.state_dict()


def test_a_projection_with_layers_between():
    deep = dict(type='mmwsss.PointwiseProjection', hidden_channels=(7, 6))
    model = lively(projection=deep)
    features = torch.rand(2, 12, 3, 4).double()
    first, second, third = model.projection.layers[::2]
    cell = features[1, :, 2, 3]
    for layer in (first, second):
        cell = F.gelu(layer.weight[:, :, 0, 0] @ cell + layer.bias)
    cell = third.weight[:, :, 0, 0] @ cell + third.bias
    torch.testing.assert_close(model.projection(features)[1, :, 2, 3], cell)


def test_absent_classes_transfer_nothing_where_asked():
    labels = ((0, 0, 0), (0, 0, 0))
    for target, mode in (('cam', 'global'), ('cam', 'channel'), ('cam+bg', 'spatial')):
        model = network(teacher_target=target, **transfer(mode=mode, present_only=True))
        losses = losses_of(model, labels)
        losses['loss_kt'].backward()
        assert losses['loss_kt'] == 0
        assert not model.projection.layers[0].weight.grad.any()
        assert losses_of(network(teacher_target=target), labels)['loss_kt'] > 0
    # The background is there in every photo.
    model = network(teacher_target='cam+bg', **transfer(present_only=True))
    assert losses_of(model, labels)['loss_kt'] > 0


def test_one_class_and_photos_without_it():
    model = network(num_classes=1)
    losses = losses_of(model, ((1,), (0,), (0,)))
    assert all(value.isfinite() for value in losses.values())
    assert losses['loss_kt'] > 0
    with pytest.raises(ValueError, match='two channels or more'):
        losses_of(
            network(num_classes=1, teacher_target='cam', **transfer(mode='spatial')),
            ((1,), (0,)),
        )


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [
        (VIT_BRANCH, CNN_BRANCH),
        (VIT_BRANCH, COARSE_CNN),
        (CNN_BRANCH, VIT_BRANCH),
        (COARSE_CNN, PATCH_VIT),
        (CNN_BRANCH, COARSE_CNN),
        (VIT_BRANCH, PATCH_VIT),
    ],
)
@pytest.mark.parametrize('paradigm', ['teacher_student', 'co_training'])
@pytest.mark.parametrize('labels', [((0, 0, 0),), ((1, 1, 1), (0, 1, 0))])
def test_any_pair_of_architectures(student, teacher, paradigm, labels):
    model = network(student=student, teacher=teacher, paradigm=paradigm).train()
    losses = losses_of(model, labels)
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    # Otherwise DistributedDataParallel would need find_unused_parameters.
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
    photo, label = photo_and_label((40, 24))
    for kind, found in model.eval().all_cams(photo, label).items():
        assert found.cams.shape == (3, 40, 24), kind
        assert not found.cams[1].any()


def test_cka_is_watched_and_not_learned():
    model = network()
    losses = losses_of(model)
    assert not losses['cka'].requires_grad
    assert 0 < losses['cka'] <= 1
    assert 'loss' not in 'cka'
    total, logged = model.parse_losses(losses)
    expected = losses['loss_cls_student'] + losses['loss_kt']
    torch.testing.assert_close(total, expected)
    assert 'cka' in logged


def test_lambda_and_its_schedule():
    one = losses_of(network())['loss_kt']
    half = losses_of(network(**transfer(loss_weight=0.5)))['loss_kt']
    torch.testing.assert_close(half, one / 2)
    model = network(loss_schedules={'loss_kt': [[0.0, 0.0], [0.5, 1.0]]})
    model.progress = 0.25
    torch.testing.assert_close(losses_of(model)['loss_kt'], one / 2)


# ------------------------------------------------------------------------ co-training
def test_co_training_moves_both():
    model = network(**CO)
    before = copy.deepcopy(model.state_dict())
    assert losses_of(model).keys() == {
        'loss_cls_student',
        'loss_cls_teacher',
        'loss_kt',
        'cka',
    }
    train(model)
    for part in ('student', 'teacher', 'projection'):
        name = {'projection': 'layers.0'}.get(part, 'classifier')
        key = f'{part}.{name}.weight'
        assert not torch.equal(model.state_dict()[key], before[key])


def transfer_gradients(**changes):
    model = lively(**CO, **changes)
    losses_of(model)['loss_kt'].backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_what_detach_lets_through():
    plain = transfer_gradients()
    assert any(n.startswith('teacher.') for n in plain)
    assert any(n.startswith('student.') for n in plain)
    # A symmetric metric on one grid: two terms, one stopped each, are the whole.
    same_grid = dict(teacher=PATCH_VIT)
    none = transfer_gradients(**same_grid)
    mutual = transfer_gradients(detach='mutual', **same_grid)
    assert none.keys() == mutual.keys()
    for name, value in none.items():
        torch.testing.assert_close(mutual[name], value, msg=name)
    # The direction of KL turns round.
    kl = transfer(mode='channel', metric='kl')
    none = transfer_gradients(**same_grid, **kl)
    mutual = transfer_gradients(detach='mutual', **same_grid, **kl)
    key = 'teacher.classifier.weight'
    assert not torch.allclose(none[key], mutual[key])


def test_two_processes_train_as_one(tmp_path):
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'rank{r}.pt') for r in range(2))
    expected = train(network(**CHANGES).double())
    for a, b, c in zip(first, second, expected, strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c, atol=1e-9)


# --------------------------------------------------------------------------- inference
def loop_maps(model, image, class_index, layer, kind):
    """One class and one layer by a backward pass of its own, not normalised."""
    kept = []

    def keep(module, inputs, output):
        last = output[-1] if isinstance(output, (tuple, list)) else output
        kept.append(last.clone())
        kept[0].requires_grad_()
        kept[0].retain_grad()
        after = kept[0].clone()
        return (*output[:-1], after) if isinstance(output, (tuple, list)) else after

    branch = model.student
    handle = branch.backbone.get_submodule(layer).register_forward_hook(keep)
    branch(image[None]).scores[0, class_index].backward()
    handle.remove()
    values, slope = kept[0].detach()[0].numpy(), kept[0].grad[0].numpy()
    if values.ndim == 2:
        grid = (image.shape[1] // 8, image.shape[2] // 8)
        values, slope = (
            v[len(v) - grid[0] * grid[1] :].T.reshape(-1, *grid)
            for v in (values, slope)
        )
    total = 0
    for v, s in zip(values, slope, strict=True):
        total = total + (np.maximum(s, 0) if kind == 'layer' else s.mean()) * v
    return np.maximum(total, 0)


@pytest.mark.parametrize('kind', ['grad', 'layer'])
@pytest.mark.parametrize(
    ('branch', 'layers'),
    [
        (VIT_BRANCH, ('layers.0.ln1', 'layers.2.ln1', 'layers.1')),
        (PATCH_VIT, ('layers.2', 'ln1')),
        (CNN_BRANCH, ('layer1', 'layer2.0.bn2', '')),
    ],
)
def test_maps_of_layers_equal_those_of_one_by_one(branch, layers, kind):
    model = lively(
        student=dict(branch, grad_layers=layers),
        kind=kind,
        layer_fusion=dict(per_layer='max', reduce='max'),
    )
    photo, label = photo_and_label(label=(1, 0, 1))
    found = model.cams(photo, label).cams.numpy()
    for k in (0, 2):
        maps = [loop_maps(model, photo.double() / 255, k, n, kind) for n in layers]
        finest = max((m.shape for m in maps), key=lambda shape: shape[0])
        fused = np.zeros(finest)
        for own in maps:
            own = own / max(own.max(), 1e-12)
            own = reference.resize(own[None], finest, align_corners=False)[0]
            fused = np.maximum(fused, own)
        assert fused.max() > 0
        expected = reference.resize(fused[None], SIZE, align_corners=False)[0]
        np.testing.assert_allclose(found[k], expected / expected.max(), atol=1e-4)
    assert not found[1].any()


def test_several_layers_are_fused_as_the_function_does():
    layers = ('layers.0.ln1', 'layers.2.ln1')
    fusion = dict(per_layer='tanh', reduce='weighted', weights=[1.0, 3.0], gamma=1.0)
    model = lively(
        student=dict(VIT_BRANCH, grad_layers=layers), layer_fusion=fusion, kind='grad'
    )
    photo, label = photo_and_label(label=(1, 1, 1))
    _, maps = model.student.explained(
        photo[None].double() / 255, torch.arange(3), ['grad']
    )
    expected = fuse_layer_maps(maps['grad'], (3, 5), **fusion)
    expected = F.interpolate(expected, SIZE, mode='bilinear', align_corners=False)[0]
    found = model.cams(photo, label).cams
    expected = rescale_maps(expected, mode='max')
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_projected_direct_and_teachers_maps_are_the_channels():
    model = lively(teacher_target='cam+bg')
    photo, label = photo_and_label(label=(1, 0, 1))
    assert model.default_kind == 'proj'
    found = model.all_cams(photo, label)
    image = photo[None].double() / 255
    seen = model.student(image)
    raw = dict(
        proj=model.projection(seen.features)[:, 1:],
        direct=seen.class_maps,
        teacher=model.teacher_branch(image).class_maps,
    )
    for kind, maps in raw.items():
        maps = maps[0].detach().numpy()
        for k in (0, 2):
            own = np.maximum(maps[k], 0) / maps[k].max()
            own = reference.resize(own[None], SIZE, align_corners=False)[0]
            np.testing.assert_allclose(
                found[kind].cams[k], own / own.max(), atol=1e-4, err_msg=kind
            )
        assert not found[kind].cams[1].any()
    torch.testing.assert_close(found['proj'].probs, seen.scores[0].sigmoid())


def test_scales_and_flips_are_added_up():
    scales = (1.0, 0.5, 2.0)
    model = lively(test_scales=scales, test_flip=True)
    single = lively()
    photo, label = photo_and_label((24, 40), (1, 1, 1))
    total = 0
    for scale in scales:
        size = [round(scale * side) for side in (24, 40)]
        for turned in (False, True):
            from mmwsss.models.cam_networks.base import resized_photo

            image = resized_photo(photo[None].double() / 255, size)
            image = image.flip(-1) if turned else image
            maps = single.scale_maps(image, label[None], ('proj',))['proj']
            maps = maps.flip(-1) if turned else maps
            total = total + F.interpolate(
                maps, SIZE, mode='bilinear', align_corners=False
            )
    expected = rescale_maps(total, mode='max')[0]
    found = model.cams(photo, label)
    torch.testing.assert_close(found.cams, expected, atol=1e-4, rtol=0)
    probs = [
        model.student(v).scores.sigmoid()[0]
        for v in (photo[None].double() / 255, photo[None].flip(-1).double() / 255)
    ]
    torch.testing.assert_close(found.probs, (probs[0] + probs[1]) / 2)


@pytest.mark.parametrize('size', [(24, 40), (40, 24), (33, 47), (9, 70), (5, 3)])
def test_rectangles_become_whole_patches_of_their_shape(size):
    model = lively()
    grids = []
    model.student.backbone.patch_embed.register_forward_hook(
        lambda m, i, o: grids.append(tuple(o[1]))
    )
    photo, label = photo_and_label(size)
    for found in model.all_cams(photo, label).values():
        assert found.cams.shape == (3, *size)
    assert set(grids) == {tuple(max(1, round(side / 8)) for side in size)}


def test_the_position_embedding_follows_a_rectangular_grid():
    model = lively(student=dict(VIT_BRANCH, backbone=dict(VIT, img_size=(24, 24))))
    backbone = model.student.backbone
    # Positions say the column; the patches say nothing.
    for parameter in backbone.patch_embed.parameters():
        parameter.data.zero_()
    columns = torch.arange(9).double() % 3
    backbone.pos_embed.data[:] = 0
    backbone.pos_embed.data[0, 1:, 0] = columns
    tokens = []
    backbone.layers[0].register_forward_pre_hook(lambda m, i: tokens.append(i[0]))
    model.student(torch.rand(1, 3, 16, 48).double())
    seen = tokens[0][0, 1:, 0].reshape(2, 6)
    torch.testing.assert_close(seen[0], seen[1])
    assert (seen[0].diff() > 0).all()


# -------------------------------------------------------------------------- negatives
def confident(model, logits):
    """Let the student's scores be these, whatever it sees."""
    see = model.student._see

    def seeing(image):
        seen = see(image)
        seen.scores = seen.scores * 1e-3 + torch.tensor(logits).to(seen.scores)
        return seen

    model.student._see = seeing
    return model


@pytest.mark.parametrize('kind', ['grad', 'layer', 'direct', 'proj', 'teacher'])
def test_gates_on_a_photo_without_the_object(kind):
    photo, empty = photo_and_label(label=(0, 0, 0))
    full = torch.ones(3)
    logits = [3.0, -3.0, -0.5]
    maps = {}
    for gate in ('label', 'pred', 'prob', None):
        model = confident(lively(gate=gate, kind=kind), logits)
        maps[gate] = model.cams(photo, empty)
        expected = torch.tensor(logits).double().sigmoid()
        torch.testing.assert_close(maps[gate].probs, expected, atol=0.01, rtol=0)
        if gate == 'label':
            assert not maps[gate].cams.any()
            assert (model.cams(photo, full).cams.amax((1, 2)) > 0.99).all()
        else:
            # The image label has no say.
            torch.testing.assert_close(model.cams(photo, full).cams, maps[gate].cams)
    peaks = {gate: found.cams.amax((1, 2)) for gate, found in maps.items()}
    # Without a gate there is a peak where nothing is.
    assert (peaks[None] > 0.99).all()
    torch.testing.assert_close(maps['pred'].cams[0], maps[None].cams[0])
    assert not maps['pred'].cams[1:].any()
    probs = maps['prob'].probs[:, None, None]
    torch.testing.assert_close(maps['prob'].cams, maps[None].cams * probs)


def test_a_photo_predicted_empty_has_empty_maps():
    model = confident(lively(gate='pred', num_classes=1), [-2.0])
    photo, _ = photo_and_label()
    for label in (torch.zeros(1), torch.ones(1)):
        for kind, found in model.all_cams(photo, label).items():
            assert not found.cams.any(), kind
            assert found.probs < 0.5


def test_predict_says_maps_and_probabilities():
    model = lively()
    inputs, samples = batch()
    found = model.predict(inputs.double(), samples)
    for image, sample in zip(inputs, found, strict=True):
        assert sample.cams.shape == (3, 20, 30)
        expected = model.class_probs(image[:, :20, :30].double())
        torch.testing.assert_close(sample.class_probs, expected)
        assert 0 <= sample.class_probs.min() <= sample.class_probs.max() <= 1
    assert not found[2].cams.any()


# ------------------------------------------------------------------------------ windows
def test_windows_count_by_what_they_show():
    # The network says "class 0" of a window by its brightness.
    model = lively(window_share=0.5, min_window=8, gate=None)
    see = model.student._see

    def seeing(image):
        seen = see(image)
        bright = image.mean((1, 2, 3))[:, None]
        seen.scores = seen.scores * 1e-6 + 20 * bright
        return seen

    model.student._see = seeing
    photo = torch.zeros(3, 32, 48, dtype=torch.uint8)
    photo[:, :, 32:] = torch.randint(200, 255, (3, 32, 16), dtype=torch.uint8)
    for kind in model.kinds:
        found = model.cams(photo, torch.ones(3), kind=kind).cams
        assert found[:, :, 34:].amax() > 0.99, kind
        assert found[:, :, :16].amax() < 0.01, kind
    whole = lively(gate=None)
    assert whole.cams(photo, torch.ones(3)).cams[:, :, :16].amax() > 0.01


def test_one_window_is_the_whole_photo():
    photo, label = photo_and_label()
    whole = lively(test_flip=True).all_cams(photo, label)
    model = lively(test_flip=True, window_share=1.0, min_window=64)
    for kind, found in model.all_cams(photo, label).items():
        # A window's probability is the same for all of it.
        assert found.cams.shape == whole[kind].cams.shape
    single = lively(window_share=1.0, min_window=64).all_cams(photo, label)
    for kind, found in lively().all_cams(photo, label).items():
        torch.testing.assert_close(single[kind].cams, found.cams, atol=2e-4, rtol=0)


# ----------------------------------------------------------------- pixel correlation
def test_correlating_features_or_maps_is_the_same():
    model = lively(student=CNN_BRANCH, teacher=VIT_BRANCH)
    branch = model.student
    image = torch.rand(2, 3, *SIZE).double()
    stages = branch.backbone((image - MEAN) / STD)
    small = F.interpolate(
        (image - MEAN) / STD, stages[-1].shape[2:], mode='bilinear', align_corners=False
    )
    sides = [
        F.interpolate(
            conv(stage).relu(), small.shape[2:], mode='bilinear', align_corners=False
        )
        for conv, stage in zip(branch.pcm.sides, stages, strict=True)
    ]
    affinity = pixel_correlation(branch.pcm.mix(torch.cat([small, *sides], 1)))
    features = stages[-1]
    spread = (features.flatten(2) @ affinity).unflatten(2, features.shape[2:])
    expected = branch.classifier(features) + branch.classifier(spread)
    found = branch(image).class_maps
    torch.testing.assert_close(found, expected)
    branch.pcm.residual = False
    torch.testing.assert_close(branch(image).class_maps, branch.classifier(spread))
    # What is alike is learned beside the backbone, not by it.
    pcm = PixelCorrelation(in_channels=(8, 16), channels=4).double()
    stages = [stage.detach().requires_grad_() for stage in stages]
    pcm(torch.rand(2, 3, *features.shape[2:]).double(), stages, small).sum().backward()
    assert pcm.mix.weight.grad.any()
    assert all(stage.grad is None for stage in stages)


# -------------------------------------------------------------------------- sentences
def test_cells_behind_the_last_attention_get_a_sentence():
    for layer in ('layers.2', 'layers.2.ln2', 'ln1'):
        branch = dict(VIT_BRANCH, grad_layers=('layers.1.ln1', layer))
        model = network(student=branch, kind='layer').eval()
        with pytest.raises(InputError, match=f"layer '{layer}' are all 0") as caught:
            model.cams(*photo_and_label())
        assert str(caught.value).endswith("in grad_layers, such as 'layers.2.ln1'")
        # Nothing to explain, nothing to fail.
        photo, _ = photo_and_label()
        assert not model.cams(photo, torch.zeros(3)).cams.any()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(teacher_checkpoint=None), 'a frozen teacher needs teacher_checkpoint'),
        (dict(loss_kt=None), 'a teacher needs loss_kt'),
        (dict(projection=None), 'a teacher needs projection'),
        (transfer(mode='logits', metric='kl'), 'take projection out of the config'),
        (dict(CO, teacher_checkpoint='a.pth'), 'co_training trains the teacher'),
        (dict(CO, save_teacher=True), 'co_training trains the teacher'),
        (dict(kind='attention'), "kind must be one of .* got 'attention'"),
        (dict(ALONE, kind='proj'), "kind must be one of .* got 'proj'"),
        (dict(teacher_target='feature', kind='proj'), "got 'proj'"),
        (
            dict(student=dict(type='mmwsss.PAMR')),
            'unexpected keyword|must be mmwsss.CNNBranch',
        ),
        (dict(student=dict(VIT_BRANCH, grad_layers=('head',))), "names 'head'"),
        (dict(student=dict(VIT_BRANCH, backbone=RESNET)), 'needs a vision transformer'),
        (dict(student=dict(PLAIN_CNN, backbone=VIT)), 'take mmwsss.ViTBranch'),
        (
            dict(student=dict(CNN_BRANCH, backbone=dict(RESNET, out_indices=(2,)))),
            'two deepest feature maps',
        ),
    ],
)
def test_what_does_not_go_together_gets_a_sentence(changes, message):
    with pytest.raises((InputError, TypeError), match=message):
        network(**changes)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(paradigm='distill'), "paradigm must be one of .* got 'distill'"),
        (dict(CO, detach='both'), "detach must be one of .* got 'both'"),
        (dict(teacher_target='attention'), 'teacher_target must be one of'),
        (dict(gate='always'), "gate must be one of .* got 'always'"),
        (dict(window_share=0.0), r'window_share must be in \(0, 1\], got 0\.0'),
        (dict(min_window=1), 'min_window must be at least 2, got 1'),
        (dict(layer_fusion=dict(reduce='sum')), "reduce must be one of .* got 'sum'"),
        (dict(student=dict(VIT_BRANCH, head='token')), 'head must be one of'),
        (dict(student=dict(VIT_BRANCH, grad_layers=())), 'one layer or more'),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        network(**changes)


def test_a_layer_without_cells_gets_a_sentence():
    for layer in ('layers.0.attn.qkv', 'drop_after_pos', 'patch_embed.projection'):
        branch = dict(VIT_BRANCH, grad_layers=(layer,))
        lively(student=branch, kind='grad').cams(*photo_and_label())
    branch = dict(VIT_BRANCH, grad_layers=('cls_norm',))
    with pytest.raises(InputError, match="names 'cls_norm'"):
        network(student=branch)


# ---------------------------------------------------------------------------- learning
def test_the_transfer_is_learned():
    """A bright square somewhere; loss_kt falls by 30 % and more in a few steps."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.rand(16, 3, *SIZE, generator=generator)
    for number, image in enumerate(images):
        if number % 2:
            top, left = number % 3 * 5, number % 5 * 6
            image[:, top : top + 9, left : left + 9] += 0.6
    _, samples = batch([(number % 2,) for number in range(16)], shape=SIZE)
    model = network(num_classes=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    seen = []
    for _ in range(60):
        optimizer.zero_grad()
        losses = model.loss(images, samples)
        (losses['loss_cls_student'] + losses['loss_kt']).backward()
        optimizer.step()
        seen.append(losses['loss_kt'].item())
    assert np.mean(seen[-5:]) < 0.7 * np.mean(seen[:5])
