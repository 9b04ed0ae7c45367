"""A data set of eight drawn photos and a config that trains on it in seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ['disc', 'bar']


def draw(root: Path, *, num_photos: int = 8) -> Path:
    """Photos with a disc, a bar, both or nothing, in VOC layout, masks included."""
    generator = np.random.default_rng(0)
    for folder in ('JPEGImages', 'SegmentationClass'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    labels = {}
    y, x = np.mgrid[:48, :64]
    for number in range(num_photos):
        image = generator.integers(60, 120, (48, 64, 3))
        mask = np.zeros((48, 64), np.uint8)
        names = [n for bit, n in enumerate(CLASSES) if (number % 4) >> bit & 1]
        if 'disc' in names:
            mask[(y - 16) ** 2 + (x - 18) ** 2 < 120] = 1
        if 'bar' in names:
            mask[30:40, 20:60] = 2
        image[mask == 1] = (220, 40, 40)
        image[mask == 2] = (40, 60, 230)
        name = f'photo_{number}'
        labels[name] = names
        Image.fromarray(image.astype(np.uint8)).save(root / f'JPEGImages/{name}.jpg')
        Image.fromarray(mask).save(root / f'SegmentationClass/{name}.png')
    (root / 'image_labels.json').write_text(
        json.dumps({'classes': CLASSES, 'labels': labels})
    )
    (root / 'train.txt').write_text('\n'.join(labels) + '\n')
    return root


def vit(width: int) -> dict:
    return dict(
        type='mmwsss.FrozenBackbone',
        backbone=dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=width,
                num_layers=2,
                num_heads=2,
                feedforward_channels=2 * width,
            ),
            img_size=32,
            patch_size=8,
            out_type='featmap',
            out_indices=[-1],
        ),
        weights=None,
        num_attentions=2,
    )


def config(data_root: Path, *, batch_size: int = 2, num_workers: int = 0) -> dict:
    """Everything the real configs have, at toy size, with dropout."""
    pipeline = [
        dict(type='mmwsss.LoadPhoto'),
        dict(
            type='RandomResize', scale=(64, 64), ratio_range=(0.5, 1.5), keep_ratio=True
        ),
        dict(type='mmwsss.RandomCropWithBox', crop_size=(32, 40)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='mmwsss.PackWSSSInputs'),
    ]
    return dict(
        model=dict(
            type='mmwsss.WSSSSegmentor',
            data_preprocessor=dict(
                type='SegDataPreProcessor',
                mean=[0, 0, 0],
                std=[255, 255, 255],
                bgr_to_rgb=True,
                size=(32, 40),
            ),
            backbone=dict(
                type='mmwsss.FrozenEncoders', encoders=dict(a=vit(16), b=vit(24))
            ),
            cam_source=dict(
                type='mmwsss.CAMHead', in_channels=dict(a=16, b=24), num_classes=2
            ),
            cam_refiner=dict(type='mmwsss.AttentionRefiner', source='a'),
            refiners=[dict(type='mmwsss.PAR', num_iters=2)],
            labeler=dict(
                type='mmwsss.ScoreLabeler', low=0.3, high=0.5, self_label_start=0.5
            ),
            decode_head=dict(
                type='mmwsss.DualStreamHead',
                in_channels=[16, 24],
                channels=16,
                num_classes=3,
                num_layers=1,
                num_heads=2,
                dropout_ratio=0.1,
                loss_decode=[
                    dict(type='mmwsss.BalancedCrossEntropyLoss'),
                    dict(type='mmwsss.PresentDiceLoss'),
                ],
                loss_affinity=dict(type='mmwsss.AffinityLoss', loss_weight=0.1),
                loss_cross=dict(type='mmwsss.CrossViewLoss', loss_weight=0.1),
            ),
            loss_schedules={'decode.loss_cross': [[0.0, 0.0], [0.3, 1.0]]},
            test_cfg=dict(mode='whole'),
        ),
        train_dataloader=dict(
            batch_size=batch_size,
            num_workers=num_workers,
            sampler=dict(type='mmwsss.SeededStreamSampler', shuffle=True),
            dataset=dict(
                type='mmwsss.ImageLabelDataset',
                data_root=str(data_root),
                image_labels='image_labels.json',
                ann_file='train.txt',
                data_prefix=dict(
                    img_path='JPEGImages', seg_map_path='SegmentationClass'
                ),
                pipeline=pipeline,
            ),
        ),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3),
            clip_grad=dict(max_norm=1.0),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=8, val_interval=100),
        default_hooks=dict(
            checkpoint=dict(type='mmwsss.CheckpointHook', by_epoch=False, interval=2),
            logger=dict(type='LoggerHook', interval=1),
        ),
        default_scope='mmseg',
        custom_imports=dict(
            imports=['mmwsss.models', 'mmwsss.datasets', 'mmwsss.engine'],
            allow_failed_imports=False,
        ),
        custom_hooks=[
            dict(type='mmwsss.ProgressHook'),
            dict(type='mmwsss.IterationSeedHook'),
        ],
        randomness=dict(seed=3),
        log_processor=dict(by_epoch=False),
    )


def write_config(path: Path, content: dict) -> Path:
    path.write_text(''.join(f'{key} = {value!r}\n' for key, value in content.items()))
    return path


def environment() -> dict:
    """One thread, and the checkout on the path."""
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}


def train(config_file: Path, work_dir: Path, *options: str):
    """Run tools/train.py to the end."""
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config_file)]
    return subprocess.run(
        [*command, '--work-dir', str(work_dir), *options],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        check=False,
    )


def gated_config(data_root: Path, **options) -> dict:
    """The same with reliability gate, history, boundary term and teacher."""
    content = config(data_root, **options)
    model = content['model']
    model['labeler'] = dict(
        type='mmwsss.ReliabilityGatedLabeler',
        low=0.3,
        high=0.5,
        gate=dict(
            type='mmwsss.ReliabilityGate',
            num_classes=3,
            structure_source='b',
            history=dict(type='mmwsss.PredictionHistory', grid_size=8),
            repair_below=None,
            ignore_below=0.35,
            weight_power=2.0,
        ),
    )
    model['decode_head']['loss_boundary'] = dict(type='mmwsss.BoundaryLoss')
    model['decode_head']['loss_energy'] = dict(type='mmwsss.PairwiseEnergyLoss')
    model['loss_teacher'] = dict(type='mmwsss.TeacherLoss', loss_weight=0.1)
    content['custom_hooks'] += [
        dict(
            type='mmwsss.ReliabilityGatedPseudoLabelHook',
            repair_start=0.25,
            consolidate_start=0.6,
            gate_start=0.3,
            gate_end=0.5,
            log_interval=2,
        ),
        dict(type='mmwsss.TeacherHook', momentum=0.9),
    ]
    return content


def eval_loader(content: dict) -> dict:
    """Loads the training photos of a config whole, one by one, with masks."""
    dataset = {
        **content['train_dataloader']['dataset'],
        'pipeline': [
            dict(type='mmwsss.LoadPhoto'),
            dict(type='mmwsss.LoadMask', num_classes=len(CLASSES) + 1),
            dict(type='mmwsss.PackWSSSInputs'),
        ],
        'test_mode': True,
    }
    return dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset,
    )


def tested_config(data: Path) -> dict:
    """A training of two iterations, with val and test photos and their masks."""
    content = config(data)
    loader = eval_loader(content)
    for name in ('train_eval', 'val', 'test'):
        content[f'{name}_dataloader'] = loader
    for name in ('val', 'test'):
        content[f'{name}_cfg'] = dict(type=f'{name.title()}Loop')
        content[f'{name}_evaluator'] = dict(type='IoUMetric', iou_metrics=['mIoU'])
    content['train_cfg'] = dict(
        type='IterBasedTrainLoop', max_iters=2, val_interval=1000
    )
    content['default_hooks'] = dict(
        checkpoint=dict(type='mmwsss.CheckpointHook', by_epoch=False, interval=2)
    )
    return content


def add_monitors(content: dict, *, interval: int = 3) -> dict:
    """The same watched by the probe and the picture hook."""
    content['train_eval_dataloader'] = eval_loader(content)
    content['custom_hooks'] += [
        dict(type='mmwsss.PseudoLabelProbeHook', num_images=5, interval=interval),
        dict(type='mmwsss.PseudoLabelVisualizationHook', interval=interval),
    ]
    return content
