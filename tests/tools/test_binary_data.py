"""One class from drawn photos to a segmentor of two classes, through the tools."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_run
from PIL import Image

from mmwsss.datasets.co_occurrence import CoOccurrence, generate

pytestmark = pytest.mark.mm

BACKBONE = dict(
    type='ResNet',
    depth=18,
    base_channels=8,
    stem_channels=8,
    num_stages=2,
    strides=(1, 1),
    dilations=(1, 1),
    out_indices=(1,),
)


def config(root, *, model, dataset, sampler, loader=None):
    content = tiny_run.config(root, batch_size=4)
    steps = content['train_dataloader']['dataset']['pipeline']
    steps = [steps[0], *(loader or []), dict(type='RandomFlip', prob=0.5)]
    content['train_dataloader'].update(sampler=dict(type=sampler))
    content['train_dataloader']['dataset'].update(
        ann_file='ImageSets/Segmentation/train.txt',
        pipeline=[*steps, dict(type=dataset)],
    )
    preprocessor = {**content['model']['data_preprocessor'], 'size': (48, 48)}
    content['model'] = {**model, 'data_preprocessor': preprocessor}
    content['train_cfg'].update(max_iters=4, val_interval=4)
    return content


def cam_config(root):
    content = config(
        root,
        model=dict(type='mmwsss.CAMClassifier', backbone=BACKBONE, num_classes=1),
        dataset='mmwsss.PackWSSSInputs',
        sampler='mmwsss.BalancedStreamSampler',
    )
    masks = str(root / 'DistractorMask')
    content['val_dataloader'] = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset={
            **content['train_dataloader']['dataset'],
            'ann_file': 'ImageSets/Segmentation/val.txt',
            'test_mode': True,
            'pipeline': [
                dict(type='mmwsss.LoadPhoto'),
                dict(type='mmwsss.LoadMask', num_classes=2),
                dict(type='mmwsss.LoadDistractorMask', mask_root=masks, num_classes=2),
                dict(type='mmwsss.AllClasses'),
                dict(type='mmwsss.PackWSSSInputs'),
            ],
        },
    )
    content['val_cfg'] = dict(type='ValLoop')
    content['val_evaluator'] = [
        dict(type='mmwsss.CoOccurrenceMetric', threshold=0.3, gate='none', prefix='co'),
        dict(type='mmwsss.CoOccurrenceMetric', threshold='oracle', prefix='co'),
    ]
    content['custom_imports']['imports'].append('mmwsss.evaluation')
    return content


def segmentor_config(root, labels):
    content = config(
        root,
        model=dict(
            type='EncoderDecoder',
            backbone={**BACKBONE, 'norm_cfg': dict(type='BN')},
            decode_head=dict(
                type='FCNHead',
                in_channels=16,
                channels=8,
                num_convs=1,
                num_classes=2,
                norm_cfg=dict(type='BN'),
            ),
            test_cfg=dict(mode='whole'),
        ),
        dataset='mmwsss.PackPseudoLabels',
        sampler='mmwsss.SeededStreamSampler',
        loader=[
            dict(type='mmwsss.LoadPseudoLabels', label_root=str(labels), num_classes=2)
        ],
    )
    content['train_cfg']['val_interval'] = 100
    return content


def run(tool, *words):
    command = [sys.executable, str(tiny_run.ROOT / 'tools' / tool), *map(str, words)]
    done = subprocess.run(
        command,
        env=tiny_run.environment(),
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tiny_run.ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_one_class_from_photos_to_a_segmentor(tmp_path):
    root, work = tmp_path / 'data', tmp_path / 'cam'
    settings = CoOccurrence(num_pos=4, num_neg=8, cells=(2, 2, 2, 1))
    generate(root, settings)
    file = tiny_run.write_config(tmp_path / 'cam.py', cam_config(root))
    trained = tiny_run.train(file, work)
    assert trained.returncode == 0, trained.stderr[-3000:]
    said = trained.stdout + trained.stderr
    for name in ('co/DAR', 'co/FPR_img_D', 'co/ctx_gap', 'co/oracle_img_fg_iou'):
        assert name in said
    assert "'obj_only': 2, 'obj_dis': 2}" in said

    store, out = tmp_path / 'store', tmp_path / 'labels'
    run('make_cams.py', file, work, '--out', store, '--device', 'cpu')
    words = ('--cams', store, '--out', out, '--background', 'otsu', '--device', 'cpu')
    assert 'background otsu' in run('make_pseudo_labels.py', file, *words)
    labels = json.loads((root / 'image_labels.json').read_text())['labels']
    train = (root / 'ImageSets/Segmentation/train.txt').read_text().split()
    for name in train:
        with Image.open(out / 'SegmentationClass' / f'{name}.png') as label:
            found = set(np.unique(np.asarray(label)).tolist())
        assert found == ({0, 1} if labels[name] else {0})
    ids = root / 'ImageSets/Segmentation/train.txt'
    score = tmp_path / 'score.json'
    words = (root / 'SegmentationClass', '--list', ids, '--num-classes', 2)
    run('eval_pseudo_labels.py', out / 'SegmentationClass', *words, '--json', score)
    assert [row['name'] for row in json.loads(score.read_text())['per_class']] == [
        'background',
        'class 1',
    ]

    content = segmentor_config(root, out / 'SegmentationClass')
    file = tiny_run.write_config(tmp_path / 'segmentor.py', content)
    trained = tiny_run.train(file, tmp_path / 'segmentor')
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert (tmp_path / 'segmentor' / 'iter_4.pth').is_file()
