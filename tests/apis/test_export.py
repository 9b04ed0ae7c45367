"""Segmentors as ONNX against MMSegmentation's own prediction of the same photo."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from click.testing import CliRunner
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS as SEG_MODELS
from PIL import Image
from torch import nn

from mmwsss.apis import export as export_module
from mmwsss.apis.evaluate import load_model
from mmwsss.apis.export import AXES, export_onnx
from mmwsss.apis.photos import Photo, photo_batch, photo_pipeline
from mmwsss.command import group
from mmwsss.errors import InputError
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm
onnxruntime = pytest.importorskip(
    'onnxruntime', reason="exports are checked with it: pip install 'mmwsss[export]'"
)
pytest.importorskip('onnxscript', reason="of the same extra as onnxruntime, 'export'")
MSRC = Path(__file__).resolve().parents[3] / 'shared/data/msrc/JPEGImages'
CLASSES = ['background', 'disc', 'bar']
PALETTE = [[1, 2, 3], [200, 0, 0], [0, 0, 200]]


@MODELS.register_module()
class PlainBackbone(nn.Module):
    """Two convolutions. ``fixed`` pools by a number read off the first photos."""

    def __init__(self, *, fixed: bool = False) -> None:
        super().__init__()
        self.fixed = fixed
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def init_weights(self) -> None:
        pass

    def forward(self, image):
        found = self.second(self.first(image).relu()).relu()
        if self.fixed:
            rows = torch.arange(int(np.prod(found.shape[-2:])))
            found = found + rows.view(*map(int, found.shape[-2:])) / len(rows)
        return (found,)


def mobileone(*, deploy):
    """A narrow MobileOne with its branches apart, or joined."""
    arch = dict(
        num_blocks=[1, 1, 1, 1],
        width_factor=[0.25] * 4,
        num_conv_branches=[2] * 4,
        num_se_blocks=[0] * 4,
    )
    backbone = dict(
        type='mmpretrain.MobileOne', arch=arch, deploy=deploy, out_indices=(3,)
    )
    return dict(type='mmwsss.PretrainedBackbone', backbone=backbone)


def content(root, backbone, channels, *, num_classes=3, rgb=True, head=None):
    head = dict(
        type='FCNHead',
        in_channels=channels,
        in_index=0,
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes=num_classes,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        **(head or {}),
    )
    run = tiny_run.config(root)
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[120.0, 110.0, 100.0],
            std=[50.0, 60.0, 70.0],
            bgr_to_rgb=rgb,
            pad_val=0,
            seg_pad_val=255,
            size=(32, 40),
        ),
        backbone=backbone,
        decode_head=head,
        test_cfg=dict(mode='whole'),
    )
    return dict(
        default_scope='mmseg',
        model=model,
        train_dataloader=run['train_dataloader'],
        val_dataloader=tiny_run.eval_loader(run),
    )


def make_run(folder, backbone, channels, *, meta=True, **options):
    """A config and a checkpoint with lively batch norms; the photos lie beside."""
    root = tiny_run.draw(folder / 'photos')
    config = Config(content(root, backbone, channels, **options))
    init_default_scope('mmseg')
    torch.manual_seed(1)
    model = SEG_MODELS.build(config.model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    # Untrained, one class would win everywhere.
    nn.init.normal_(model.decode_head.conv_seg.weight, std=3.0)
    named = {'dataset_meta': {'classes': CLASSES, 'palette': PALETTE}} if meta else {}
    path = folder / 'iter_7.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {'iter': 7, **named}}, path)
    return config, path


def predicted(config, checkpoint, photo):
    """seg_logits (C, H, W) of MMSegmentation, from the file to the photo's size."""
    model, _ = load_model(config, checkpoint, 'cpu')
    asked = Photo(id='x', path=str(photo), classes=())
    with torch.no_grad():
        (sample,) = model.test_step(photo_batch(photo_pipeline(config), asked, 2))
    return sample.seg_logits.data.numpy()


def through_onnx(path, photos):
    """seg_logits of photos that are read with Pillow, as a stranger would."""
    session = onnxruntime.InferenceSession(str(path))
    batch = np.stack([np.asarray(Image.open(p).convert('RGB')) for p in photos])
    given = batch.transpose(0, 3, 1, 2).astype(np.float32)
    return session.run(['seg_logits'], {'image': given})[0], session


def assert_same(found, wanted):
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert (found.argmax(0) == wanted.argmax(0)).mean() > 0.999


def test_branches_are_joined_and_sizes_free(tmp_path):
    config, checkpoint = make_run(tmp_path, mobileone(deploy=False), 128)
    out = tmp_path / 'model.onnx'
    done = export_onnx(config, checkpoint, out)
    assert done.shape == ('batch', 3, 'height', 'width')
    assert [c.shape for c in done.checks] == [(1, 3, 48, 64), (2, 3, 37, 49)]
    assert all(c.difference < 1e-4 * c.scale for c in done.checks)
    assert done.notes == []

    photos = [tmp_path / f'photos/JPEGImages/photo_{i}.jpg' for i in (1, 2, 3)]
    found, session = through_onnx(out, photos)
    wanted = [predicted(config, checkpoint, photo) for photo in photos]
    assert len(set(np.unique(wanted[0].argmax(0)))) > 1
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)

    facts = session.get_modelmeta().custom_metadata_map
    facts = {name: json.loads(text) for name, text in facts.items()}
    assert facts['classes'] == CLASSES
    assert facts['palette'] == PALETTE
    assert facts['input'] == {
        'name': 'image',
        'layout': 'NCHW',
        'color': 'RGB',
        'range': [0, 255],
        'resize': None,
    }
    assert facts['source']['iteration'] == 7
    # The branches are one: a convolution for each of the ten in the deployed network.
    import onnx

    kinds = [node.op_type for node in onnx.load(out).graph.node]
    assert 'BatchNormalization' not in kinds
    deployed = SEG_MODELS.build(content(tmp_path, mobileone(deploy=True), 128)['model'])
    convolutions = sum(isinstance(m, nn.Conv2d) for m in deployed.modules())
    # And the one that normalises.
    assert kinds.count('Conv') == convolutions + 1


@pytest.mark.skipif(not MSRC.is_dir(), reason=f'{MSRC} is not there')
def test_a_real_photo_of_a_network_that_wants_bgr(tmp_path):
    config, checkpoint = make_run(
        tmp_path, dict(type='mmwsss.PlainBackbone'), 8, rgb=False
    )
    config.val_dataloader.dataset.pipeline.insert(
        1, dict(type='Resize', scale=(100, 80), keep_ratio=True)
    )
    photo = min(MSRC.glob('*.jpg'))
    out = tmp_path / 'model.onnx'
    done = export_onnx(config, checkpoint, out, photo=photo)
    assert max(done.checks[0].shape[-2:]) <= 100
    facts = onnxruntime.InferenceSession(str(out)).get_modelmeta().custom_metadata_map
    assert json.loads(facts['input'])['resize'] == {
        'scale': [100, 80],
        'keep_ratio': True,
    }
    config.val_dataloader.dataset.pipeline.pop(1)
    found, _ = through_onnx(out, [photo])
    assert_same(found[0], predicted(config, checkpoint, photo))


def test_a_network_of_one_size_says_so(tmp_path):
    config, checkpoint = make_run(
        tmp_path, dict(type='mmwsss.PlainBackbone', fixed=True), 8, meta=False
    )
    out = tmp_path / 'model.onnx'
    done = export_onnx(config, checkpoint, out)
    assert done.shape[1:] == (3, 64, 64)
    assert 'photos of 64 x 64 pixels alone' in done.notes[0]
    assert done.classes == CLASSES

    photo = tmp_path / 'photos/JPEGImages/photo_1.jpg'
    done = export_onnx(config, checkpoint, out, size=(48, 64))
    assert done.shape[1:] == (3, 48, 64)
    assert done.notes == []
    assert_same(through_onnx(out, [photo])[0][0], predicted(config, checkpoint, photo))


def test_one_logit_is_compared_and_described(tmp_path):
    config, checkpoint = make_run(
        tmp_path,
        dict(type='mmwsss.PlainBackbone'),
        8,
        num_classes=2,
        meta=False,
        head=dict(out_channels=1, threshold=0.3),
    )
    with pytest.raises(InputError, match='tells 2 classes apart'):
        export_onnx(config, checkpoint, tmp_path / 'model.onnx')
    labels = tmp_path / 'photos/image_labels.json'
    both = json.loads(labels.read_text())
    kept = {k: [n for n in names if n == 'disc'] for k, names in both['labels'].items()}
    labels.write_text(json.dumps({'classes': ['disc'], 'labels': kept}))
    export_onnx(config, checkpoint, tmp_path / 'model.onnx', size=(48, 64))
    session = onnxruntime.InferenceSession(str(tmp_path / 'model.onnx'))
    facts = json.loads(session.get_modelmeta().custom_metadata_map['output'])
    assert facts['threshold'] == 0.3
    assert session.get_outputs()[0].shape == ['batch', 1, 48, 64]


@pytest.fixture
def plain(tmp_path):
    return make_run(tmp_path, dict(type='mmwsss.PlainBackbone'), 8)


def test_a_difference_is_found_and_nothing_written(plain, tmp_path, monkeypatch):
    def spoil(network):
        with torch.no_grad():
            network.model.decode_head.conv_seg.bias += 0.1

    monkeypatch.setattr(export_module, '_to_inference_form', spoil)
    out = tmp_path / 'model.onnx'
    out.write_text('before')
    with pytest.raises(InputError, match='onnxruntime and torch differ'):
        export_onnx(*plain, out, size=(48, 64))
    assert out.read_text() == 'before'


def test_mistakes_are_sentences(plain, tmp_path, monkeypatch):
    config, checkpoint = plain
    out = tmp_path / 'model.onnx'
    with pytest.raises(InputError, match=r'called \*\.onnx'):
        export_onnx(config, checkpoint, tmp_path / 'model.pt')
    with pytest.raises(InputError, match='above 0, got'):
        export_onnx(config, checkpoint, out, size=(0, 5))
    with pytest.raises(InputError, match=r'photo .* does not exist'):
        export_onnx(config, checkpoint, out, photo=tmp_path / 'none.jpg')
    (tmp_path / 'photos/JPEGImages').rename(tmp_path / 'moved')
    with pytest.raises(InputError, match='give one with --photo'):
        export_onnx(config, checkpoint, out)
    monkeypatch.setattr(export_module, 'MIN_TORCH', '99.0')
    with pytest.raises(InputError, match=r'needs torch 99\.0'):
        export_onnx(config, checkpoint, out)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(InputError, match=r"pip install 'mmwsss\[export\]'"):
        export_onnx(config, checkpoint, out)
    assert not out.exists()


def test_a_network_that_cannot_be_traced_is_a_sentence(plain, tmp_path, monkeypatch):
    def forward(self, image):
        return (self.second(self.first(image)) * float(image.numpy().mean()),)

    monkeypatch.setattr(PlainBackbone, 'forward', forward)
    with pytest.raises(InputError, match='cannot be exported'):
        export_onnx(*plain, tmp_path / 'model.onnx')


def test_the_verb(plain, tmp_path):
    config, checkpoint = plain
    path = tmp_path / 'config.py'
    config.dump(path)
    out = tmp_path / 'exported/model.onnx'
    given = ['export', str(path), str(checkpoint), '--out', str(out)]
    given += ['--size', '48', '64']
    planned = CliRunner().invoke(group, [*given, '--dry-run'])
    assert f'would write  ONNX: {out}' in planned.stdout
    assert not out.parent.exists()
    lines = CliRunner().invoke(group, given).stdout.splitlines()
    assert lines[-1] == '1 ok, 0 skipped, 0 failed'
    shape = f'{AXES[0]} x 3 x 48 x 64'
    assert f'written: {out}, image {shape}, 3 classes' in lines
    assert any(line.startswith('onnxruntime against torch, 1 x 48') for line in lines)
    log = (out.parent / 'log.jsonl').read_text().splitlines()
    checks = [json.loads(line) for line in log if '"check"' in line]
    assert [c['shape'] for c in checks] == [[1, 3, 48, 64], [2, 3, 48, 64]]
    again = CliRunner().invoke(group, given)
    assert isinstance(again.exception, InputError)
