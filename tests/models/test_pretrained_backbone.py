"""The backbone of MMSegmentation's networks, and the DeepLabV3 configs around it."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from safetensors.torch import save_file
from tiny_run import ROOT

import mmwsss.models  # noqa: F401
from mmwsss.errors import InputError
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

MOBILEONE = dict(
    type='mmpretrain.MobileOne', arch='s0', deploy=True, out_indices=(0, 1, 2, 3)
)


def build(**changes):
    config = dict(type='mmwsss.PretrainedBackbone', backbone=MOBILEONE, **changes)
    init_default_scope('mmseg')
    return MODELS.build(config)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Half precision under other names, as published weights are."""
    torch.manual_seed(0)
    init_default_scope('mmseg')
    body = MODELS.build(dict(MOBILEONE))
    path = tmp_path_factory.mktemp('weights') / 'w.safetensors'
    tensors = {f'net.{n}': t.half().contiguous() for n, t in body.state_dict().items()}
    save_file(tensors, path)
    return path, tensors


def test_weights_are_loaded_by_init_weights_and_stay_trainable(weights):
    path, tensors = weights
    model = build(weights=str(path), prefix='net.')
    # As the runner calls it, from above.
    segmentor = torch.nn.ModuleDict({'backbone': model})
    segmentor['backbone'].init_weights()
    for name, value in model.body.state_dict().items():
        assert torch.equal(value, tensors[f'net.{name}'].float()), name
    assert all(p.requires_grad for p in model.parameters())


def test_stride_and_maps(weights):
    image = torch.randn(1, 3, 64, 96)
    strides = [
        [96 // m.shape[-1] for m in build(unstride=unstride).eval()(image)]
        for unstride in ((), ('stage4.0.branch_reparam',))
    ]
    assert strides == [[4, 8, 16, 32], [4, 8, 16, 16]]


def test_weights_that_do_not_fit_are_a_sentence(weights):
    path, _ = weights
    with pytest.raises(InputError, match=r'w\.safetensors'):
        build(weights=str(path)).init_weights()
    with pytest.raises(InputError, match='absent'):
        build(weights='absent.pth').init_weights()


@pytest.mark.parametrize(
    'name', ['deeplabv3_mobileone_msrc', 'deeplabv3_mobileone_synth']
)
def test_deeplab_learns_from_decided_pixels_alone(name):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.weights = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    for head in (model.decode_head, model.auxiliary_head):
        head.dropout = torch.nn.Identity()
    inputs = torch.randn(2, 3, 64, 64)

    def losses(undecided):
        label = torch.zeros(2, 1, 64, 64, dtype=torch.long)
        label[:, :, 40:] = cfg.num_classes - 1
        label[:, :, :16] = undecided
        samples = [SegDataSample(gt_sem_seg=PixelData(data=one)) for one in label]
        return model.loss(inputs, samples)

    found = losses(255)
    assert set(found) >= {'decode.loss_ce', 'aux.loss_ce'}
    with torch.no_grad():
        logits = model.encode_decode(inputs, [dict(img_shape=(64, 64))] * 2)
    assert logits.shape == (2, cfg.num_classes, 64, 64)
    label = torch.zeros(2, 48, 64, dtype=torch.long)
    label[:, 24:] = cfg.num_classes - 1
    expected = torch.nn.functional.cross_entropy(logits[:, :, 16:], label)
    torch.testing.assert_close(found['decode.loss_ce'], expected)
    sum(v for n, v in found.items() if 'loss' in n).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize('name', ['aesipe_synth', 'irnet_synth'])
def test_synthetic_configs_have_the_synthetic_data_everywhere(name):
    cfg = Config.fromfile(ROOT / f'configs/{name}.py')
    for loader in ('train', 'train_eval', 'val', 'test'):
        dataset = cfg[f'{loader}_dataloader'].dataset
        assert dataset.data_root == 'data/synthetic'
        for step in dataset.pipeline:
            assert step.get('num_classes', 9) == 9
    if name == 'aesipe_synth':
        assert cfg.model.num_classes == 8
    size = cfg.train_dataloader.dataset.pipeline[-3].crop_size
    assert cfg.model.data_preprocessor.size == size
