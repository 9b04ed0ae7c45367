"""The published baseline as a config: its values, and that it trains."""

import json
import math

import pytest
import tiny_run
import torch
from encoder_cases import TINY_CLIP, TINY_VIT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner

import mmwsss.models  # noqa: F401
from mmwsss.registry import MODELS

STRICT = tiny_run.ROOT / 'configs/clipdino_refine_voc_strict.py'
BLOCKS = 7


def tiny_strict_config(root=None):
    """The strict config with tiny towers and, if given, the drawn photos."""
    cfg = Config.fromfile(STRICT)
    model = json.loads(json.dumps(TINY_CLIP))
    model['vision_cfg']['layers'] = BLOCKS
    encoders = cfg.model.backbone.encoders
    encoders.clip.update(model=model, weights=None, class_names=tiny_run.CLASSES)
    encoders.dino.update(arch=TINY_VIT, weights=None)
    cfg.model.data_preprocessor.size = (32, 40)
    cfg.model.decode_head.update(in_channels=[32, 24], channels=16, num_classes=3)
    steps = {step.type: step for step in cfg.train_pipeline}
    steps['RandomResize'].scale = (64, 64)
    steps['mmwsss.RandomCropWithBox'].crop_size = (32, 40)
    loader = cfg.train_dataloader
    loader.dataset.pipeline = cfg.train_pipeline
    loader.update(num_workers=0, persistent_workers=False)
    if root is not None:
        loader.dataset.update(data_root=str(root), ann_file='train.txt')
    return cfg


def test_values_are_those_of_the_released_code():
    cfg = Config.fromfile(STRICT)
    model, head = cfg.model, cfg.model.decode_head
    clip = model.backbone.encoders.clip
    assert (clip.cam_input_layer, clip.num_attentions) == (-2, 6)
    assert clip.templates == ['a clean origami {}.']
    assert (len(clip.class_names), len(clip.background_words)) == (20, 25)
    assert clip.mean == [123.675, 116.28, 103.53]
    assert clip.std == [58.395, 57.12, 57.375]
    refiner = model.cam_refiner
    assert (refiner.box_threshold, refiner.normalize_affinity) == (None, False)
    assert (refiner.layer_filter, refiner.decoder_start) == ('cls_mass', 0.0)
    assert refiner.use_predictions
    assert refiner.use_decoder_affinity
    (par,) = model.refiners
    assert (par.type, par.num_iters, par.scale, par.normalize) == (
        'mmwsss.PAR',
        20,
        1.0,
        False,
    )
    labeler = model.labeler
    assert (labeler.type, labeler.low, labeler.high) == (
        'mmwsss.ScoreLabeler',
        None,
        None,
    )
    assert (labeler.self_label_start, labeler.self_label_threshold) == (0.6, 0.75)
    assert labeler.strict_reference
    entropy, dice = head.loss_decode
    assert entropy == dict(type='mmwsss.BalancedCrossEntropyLoss')
    assert dice == dict(type='mmwsss.PresentDiceLoss', strict_reference=True)
    affinity, cross = head.loss_affinity, head.loss_cross
    assert (affinity.radius, affinity.loss_weight) == (8, 0.1)
    assert affinity.strict_reference
    assert (cross.restrict_to_image_classes, cross.at_label_size) == (False, True)
    assert cross.loss_weight == 0.1
    assert cross.get('threshold', 0) == 0
    assert model.loss_schedules == {'decode.loss_cross': [[0.0, 1.0]]}
    assert head.get('loss_boundary') is None
    assert head.get('loss_energy') is None
    assert model.get('loss_teacher') is None
    assert not model.test_cfg.get('use_teacher')
    assert not cross.use_gates
    hooks = {hook.type for hook in cfg.custom_hooks}
    assert hooks == {'mmwsss.ProgressHook', 'mmwsss.IterationSeedHook'}
    assert (head.num_layers, head.num_heads, head.channels) == (3, 8, 256)
    assert head.dropout_ratio == 0.1
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == 30000
    assert cfg.optim_wrapper.clip_grad is None
    crop = cfg.train_dataloader.dataset.pipeline[2]
    assert (crop.crop_size, crop.pad_to_crop) == ((320, 320), True)
    resize = cfg.train_dataloader.dataset.pipeline[1]
    assert (resize.ratio_range, resize.backend) == ((0.5, 2.0), 'pillow')


def test_learning_rate_is_the_published_one():
    cfg = tiny_strict_config()
    init_default_scope('mmseg')
    wrapper = build_optim_wrapper(MODELS.build(cfg.model), cfg.optim_wrapper)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(s, optimizer=wrapper)) for s in cfg.param_scheduler
    ]
    rates = []
    for _ in range(15001):
        (rate,) = {group['lr'] for group in wrapper.optimizer.param_groups}
        rates.append(rate)
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(2e-10)
    for iteration, factor in ((50, 1 - 50 / 30000), (15000, 0.5)):
        assert rates[iteration] == pytest.approx(2e-4 * factor, rel=1e-4)


def test_strict_model_trains_and_labels_everything(tmp_path):
    root = tiny_run.draw(tmp_path / 'data')
    cfg = tiny_strict_config(root)
    cfg.merge_from_dict(
        {
            'train_cfg.max_iters': 2,
            'default_hooks.logger.interval': 1,
            'launcher': 'none',
        }
    )
    for name in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg[name] = None
    for name in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        cfg[name] = None
    cfg.work_dir = str(tmp_path / 'run')
    runner = Runner.from_cfg(cfg)
    labels = []
    plain = runner.model.label

    def keep(*args, **options):
        labels.append(plain(*args, **options))
        return labels[-1]

    runner.model.label = keep
    runner.train()
    (log,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row['step'] for row in rows] == [1, 2]
    for row in rows:
        losses = {n: v for n, v in row.items() if 'loss' in n}
        assert {
            'decode.loss_balanced_ce',
            'decode.loss_present_dice',
            'decode.loss_affinity',
            'decode.loss_cross',
        } < losses.keys()
        assert all(math.isfinite(v) for v in losses.values()), losses
        assert 'grad_norm' not in row
        assert losses['decode.loss_cross'] > 0
    for found in labels:
        assert not (found.pseudo_label == 255).any()
        assert found.affinity_label is not None


def test_upscaled_cams_give_the_background_of_the_image_grid():
    cfg = tiny_strict_config()
    init_default_scope('mmseg')
    cfg.model.update(cam_refiner=None, refiners=[])
    cams = torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    image, label = torch.rand(1, 3, 32, 40), torch.ones(1, 2)
    scores = MODELS.build(cfg.model).refine(image, cams, label, {}, None)
    large = torch.nn.functional.interpolate(
        cams, (32, 40), mode='bilinear', align_corners=False
    )
    torch.testing.assert_close(scores[:, 1:], large)
    torch.testing.assert_close(scores[:, 0], 1 - large.amax(1))
    cfg.model.upscale_cams = False
    coarse = MODELS.build(cfg.model).refine(image, cams, label, {}, None)
    assert not torch.allclose(coarse[:, 0], scores[:, 0], atol=1e-3)
