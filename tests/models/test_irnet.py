import pytest
import reference
import torch
import torch.multiprocessing as mp

pytest.importorskip('mmengine')

from distributed_irnet import batch, build, run_rank, step
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.structures import SegDataSample

from mmwsss.errors import InputError
from mmwsss.functional import irn_loss
from mmwsss.functional.pseudo_label import resize_label
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

RESNET = dict(
    backbone=dict(
        type='mmwsss.FrozenBackbone',
        backbone=dict(
            type='mmpretrain.ResNet',
            depth=50,
            strides=(1, 2, 2, 1),
            out_indices=(0, 1, 2, 3),
        ),
    ),
    strides=(4, 4, 8, 16, 16),
    displacement_channels=(64, 128, 256, 256, 256),
    edge_channels=32,
    stem='maxpool',
)


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmseg')


# --------------------------------------------------------------------------- network
def test_branches_on_resnet50_have_the_published_size():
    model = build(**RESNET)
    assert sum(p.numel() for p in model.edge.parameters()) == 125_409
    assert sum(p.numel() for p in model.displacement.parameters()) == 1_269_120
    logits, displacement = model(torch.rand(1, 3, 64, 96))
    assert logits.shape == (1, 1, 16, 24)
    assert displacement.shape == (1, 2, 16, 24)
    stem, *stages = model.features(torch.rand(1, 3, 64, 96))
    assert stem.shape == (1, 64, 16, 24)
    assert [s.shape[1] for s in stages] == [256, 512, 1024, 2048]


def test_the_backbone_is_frozen_and_not_in_the_checkpoint():
    model = build().train()
    assert not [name for name in model.state_dict() if 'backbone' in name]
    assert not [name for name, _ in model.named_parameters() if 'backbone' in name]
    assert not model.backbone.tower.training
    losses = model(*batch(), mode='loss')
    (losses['loss_boundary'] + losses['loss_displacement']).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(strides=(4, 8)), r'maps of strides \[4, 8, 16\], but strides=\(4, 8\)'),
        (dict(strides=(8, 4, 16)), 'finest first, got'),
        (dict(strides=(4, 8, 32)), 'strides must be 4, 8 and 16'),
        (dict(strides=(4, 4, 4)), 'must have a coarser one'),
        (dict(displacement_channels=(8, 8)), 'displacement_channels must have 3'),
        (dict(pad_size=500), 'pad_size must be a multiple of 16, got 500'),
        (dict(momentum=1.0), r'momentum must be in \[0, 1\), got 1\.0'),
        (dict(cam_power=0), 'cam_power must be positive, got 0'),
        (dict(stem='maxpool'), "stem names 'maxpool', which the backbone has not"),
        (dict(backbone=dict(type='ResNet', depth=18)), 'wrap it in mmwsss.Frozen'),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**options)
    assert '\n' not in str(caught.value)


# -------------------------------------------------------------------------- training
def test_losses_are_those_of_the_labels_on_the_grid():
    model = build().train()
    inputs, samples = batch()
    losses = model(inputs, samples, mode='loss')
    label = torch.cat([s.gt_sem_seg.data for s in samples])
    image = inputs.clone()
    for i, sample in enumerate(samples):
        height, width = sample.img_shape
        # Padding has the mean colour, whatever the loader put there.
        image[i, :, height:] = model.backbone.mean[0]
        image[i, :, :, width:] = model.backbone.mean[0]
    logits, displacement = model.outputs(image)
    expected = irn_loss(
        logits.sigmoid(), displacement, resize_label(label, (16, 20)), radius=3
    )
    torch.testing.assert_close(losses['loss_boundary'], expected[0])
    torch.testing.assert_close(losses['loss_displacement'], expected[1])
    shares = [v for name, v in losses.items() if name.startswith('pairs.')]
    assert float(sum(shares)) == pytest.approx(1)


def test_two_processes_equal_the_joint_batch(tmp_path):
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    losses, gradients, mean = step(build().train())
    assert mean.abs().max() > 1e-3
    for rank in range(2):
        found = torch.load(tmp_path / f'rank{rank}.pt', weights_only=True)
        torch.testing.assert_close(found[0], losses)
        torch.testing.assert_close(found[1], gradients, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[2], mean, rtol=1e-5, atol=1e-7)


def test_mean_displacement_is_that_of_the_photos_cells():
    model = build(momentum=0.5).train()
    inputs, samples = batch()
    means = []
    for number in range(4):
        shift = torch.zeros(4, 2, 16, 20)
        shift[:, 0] = number + 1
        shift[:, 1, :, :10] = 2 * number
        # Image 1 is 40 of 64 high, image 2 33 of 80 wide; the rest does not count.
        shift[1, :, 10:] = 1e6
        shift[2, :, :, 9:] = 1e6
        valid = torch.zeros(4, 1, 64, 80)
        for i, sample in enumerate(samples):
            valid[i, :, : sample.img_shape[0], : sample.img_shape[1]] = 1
        model._update_mean(shift, valid)
        # The middle of the ninth cell (pixels 32 to 35) is beyond 33 pixels.
        columns = 2 * 16 * 10 + 10 * 10 + 16 * 8
        cells = 2 * 16 * 20 + 10 * 20 + 16 * 8
        means.append((number + 1.0, 2 * number * columns / cells))
    # The plain mean of the first two, then half of each new one.
    for axis in range(2):
        value = (means[0][axis] + means[1][axis]) / 2
        for new in means[2:]:
            value = (value + new[axis]) / 2
        assert float(model.mean_displacement[axis]) == pytest.approx(value)
    model.eval()
    centred = model.outputs(inputs)[1]
    torch.testing.assert_close(
        model.train().outputs(inputs)[1] - centred,
        model.mean_displacement.float().view(1, 2, 1, 1).expand_as(centred),
    )


def test_a_batch_without_any_label_is_finite():
    model = build().train()
    inputs, samples = batch()
    for sample in samples:
        sample.gt_sem_seg.data[:] = 255
    losses = model(inputs, samples, mode='loss')
    total = losses['loss_boundary'] + losses['loss_displacement']
    total.backward()
    assert float(total.detach()) == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_it_learns_where_the_boundary_is():
    """Left and right half in two colours: the boundary rises between them alone."""
    model = build(radius=4).train()
    inputs, samples = batch()
    for i, sample in enumerate(samples):
        sample.set_metainfo({'img_shape': (64, 80)})
        sample.gt_sem_seg.data[:] = 0
        edge = 24 + 8 * i
        sample.gt_sem_seg.data[..., edge:] = 1
        inputs[i] = 0.2
        inputs[i, :, :, edge:] = 0.8
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        # Mirrored every other time, since both views make the boundary afterwards.
        inputs = inputs.flip(-1)
        for sample in samples:
            sample.gt_sem_seg.data = sample.gt_sem_seg.data.flip(-1)
        optimizer.zero_grad()
        losses = model(inputs, samples, mode='loss')
        (losses['loss_boundary'] + losses['loss_displacement']).backward()
        optimizer.step()
    boundary = model.eval().boundary(inputs)
    for i in range(4):
        column = (24 + 8 * i) // 4
        near = boundary[i, 0, :, column - 1 : column + 1].amax(1).mean()
        far = boundary[i, 0, :, [0, 1, 18, 19]].mean()
        assert near > 0.8
        assert far < 0.2


# ------------------------------------------------------------------------- inference
def scene(n=1, k=3, size=(50, 62), seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 3, *size, generator=generator)
    scores = torch.rand(n, k + 1, 13, 16, generator=generator)
    image_label = torch.tensor([[1.0, 0, 1]]).repeat(n, 1)
    return image, scores, image_label


@pytest.mark.parametrize(('threshold', 'power'), [(0.25, 1.0), (0.4, 1.5), (None, 1.5)])
def test_refined_scores_equal_the_dense_walk(threshold, power):
    options = dict(walk_radius=3, walk_num_steps=16, walk_beta=4.0)
    model = build(background_threshold=threshold, cam_power=power, **options).eval()
    image, scores, image_label = scene()
    refined = model.refine(image, scores, image_label)
    boundary = model.boundary(image)
    assert boundary.shape == (1, 1, 13, 16)
    maps = scores[0].double().clone()
    maps[2] = 0  # the absent class
    first = 0 if threshold is None else 1
    walked = reference.dense_random_walk(
        maps[first:].numpy() ** power, boundary[0, 0].double().numpy(), 3, 4.0, 16
    )
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(walked)[None], scale_factor=4, mode='bilinear'
    )[0, :, :50, :62]
    expected /= expected.max()
    if threshold is not None:
        background = torch.full((1, 50, 62), threshold, dtype=torch.float64)
        expected = torch.cat([background, expected])
    torch.testing.assert_close(refined[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_mirrored_photo_has_mirrored_boundaries():
    model = build().eval()
    image, _, _ = scene(size=(48, 64))
    straight, mirrored = model.boundary(image), model.boundary(image.flip(-1))
    torch.testing.assert_close(mirrored, straight.flip(-1))


def test_large_photos_are_not_cut_and_padding_changes_nothing_else():
    image, scores, image_label = scene(size=(70, 90))
    padded = build(pad_size=64).eval()
    # Larger than the padding: as without one.
    torch.testing.assert_close(padded.boundary(image), build().eval().boundary(image))
    assert padded.refine(image, scores, image_label).shape == (1, 4, 70, 90)
    small = image[..., :17, :5]
    assert padded.boundary(small).shape == (1, 1, 5, 2)
    # The group norms see the padding.
    assert not torch.allclose(padded.boundary(small), build().eval().boundary(small))


def test_photos_without_objects_and_batches():
    model = build().eval()
    image, scores, image_label = scene(n=2)
    image_label[0] = 0
    refined = model.refine(image, scores, image_label)
    assert (refined[0, 1:] == 0).all()
    assert (refined[0, 0] == 0.25).all()
    assert (refined[1, 2] == 0).all()
    assert refined[1, 1:].amax() == pytest.approx(1)
    torch.testing.assert_close(
        refined[1:], model.refine(image[1:], scores[1:], image_label[1:])
    )


def test_predict_labels_photos_from_their_stored_cams():
    model = build().eval()
    image, scores, image_label = scene()
    # Padded to 64 x 64; the label comes at the size of the photo.
    inputs = torch.nn.functional.pad(image, (0, 2, 0, 14))
    meta = {'img_shape': (50, 62), 'ori_shape': (100, 124), 'img_id': 'a'}
    sample = SegDataSample(metainfo=meta)
    sample.set_field(image_label[0], 'image_label', dtype=torch.Tensor)
    with pytest.raises(InputError, match=r'put mmwsss\.LoadCAMs into the pipeline'):
        model.predict(inputs, [sample])
    sample.set_field(scores[0, 1:], 'cams', dtype=torch.Tensor)
    (result,) = model(inputs, [sample], mode='predict')
    expected = torch.nn.functional.interpolate(
        model.refine(image, scores, image_label), (100, 124), mode='bilinear'
    ).argmax(1)
    assert torch.equal(result.pred_sem_seg.data, expected)
    own = build(background_threshold=None).eval()
    with pytest.raises(InputError, match='of a have no background of their own'):
        own.predict(inputs, [sample])
    sample.set_field(scores[0, :1], 'cam_background', dtype=torch.Tensor)
    expected = torch.nn.functional.interpolate(
        own.refine(image, scores, image_label), (100, 124), mode='bilinear'
    ).argmax(1)
    assert torch.equal(own.predict(inputs, [sample])[0].pred_sem_seg.data, expected)


# ------------------------------------------------------------------- trained refiner
CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(imports=['mmwsss.models'], allow_failed_imports=False)
model = dict(
    type='mmwsss.IRNet',
    backbone=dict(
        type='mmwsss.FrozenBackbone',
        backbone=dict(
            type='mmpretrain.MobileOne', arch='s0', deploy=True,
            out_indices=(0, 1, 2))),
    strides=(4, 8, 16),
    displacement_channels=(8, 8, 16),
    edge_channels=4,
    radius=3,
    pad_size=None,
)
"""


def test_a_trained_network_refines_in_a_chain(tmp_path):
    model = build()
    model.mean_displacement += 3
    (tmp_path / 'irnet.py').write_text(CONFIG)
    checkpoint = tmp_path / 'iter_7.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, checkpoint)
    (tmp_path / 'last_checkpoint').write_text('/somewhere/else/iter_7.pth')
    content = dict(
        type='mmwsss.TrainedRefiner',
        config=str(tmp_path / 'irnet.py'),
        checkpoint=str(tmp_path),
    )
    refiner = MODELS.build(content)
    assert list(refiner.parameters()) == []
    assert refiner.state_dict() == {}
    refiner.train()
    assert not refiner.model.training
    example = scene()
    torch.testing.assert_close(
        refiner(*example), model.eval().refine(*example), rtol=0, atol=0
    )
    assert refiner.double().model.edge.join.weight.dtype == torch.float64
    other = MODELS.build(
        {**content, 'cfg_options': {'model.background_threshold': 0.5}}
    )
    assert (other(*example)[:, 0] == 0.5).all()
    for change, message in [
        ({'config': 'none.py'}, r'none\.py of TrainedRefiner does not exist'),
        ({'checkpoint': 'none.pth'}, r'none\.pth does not exist'),
        ({'cfg_options': {'model.edge_channels': 8}}, 'does not fit the model'),
        (
            {'cfg_options': {'model': dict(type='mmwsss.PAMR', _delete_=True)}},
            'needs a model that refines',
        ),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            MODELS.build({**content, **change})
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'num_steps'), [('irnet_msrc', 16), ('irnet_r50_voc', 256)]
)
def test_configs_build_their_network(name, num_steps):
    path = f'{__file__.rsplit("/tests/", 1)[0]}/configs/{name}.py'
    content = Config.fromfile(path).model
    content.backbone.weights = None
    model = MODELS.build(content)
    assert model.radius == 10
    assert model.walk_num_steps == num_steps
