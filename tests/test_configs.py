"""Every config builds, with random weights where the real ones are a download."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmwsss.models  # noqa: F401
from mmwsss.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_says_what_a_run_needs(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    for name in ('train_dataloader', 'val_dataloader', 'train_eval_dataloader'):
        assert cfg[name].dataset.type == 'mmwsss.ImageLabelDataset'
    steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert 'mmwsss.LoadMask' not in steps
    assert 'LoadAnnotations' not in steps
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters


# Those with real-size towers take long to fill at random; one of them is enough.
@pytest.mark.parametrize('name', ['clipdino_refine_voc', 'dual_frozen_msrc'])
def test_model_builds_from_its_config(name):
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    init_default_scope(cfg.default_scope)
    for encoder in cfg.model.backbone.encoders.values():
        encoder.weights = None
    model = MODELS.build(cfg.model)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names
    assert all(n.startswith(('decode_head', 'cam_source')) for n in names)
    channels = model.backbone.feature_channels
    head = cfg.model.decode_head
    assert [channels[i] for i in head.in_index] == list(head.in_channels)
    if name == 'clipdino_refine_voc':
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        # The decoder of WeCLIP+ has 2.93 million trained parameters.
        assert trained == pytest.approx(2.93e6, rel=0.01)
