"""From a CAM network to IRNet's labels, each stage a plain tool call, at toy size."""

import signal
import subprocess
import sys
import time

import fake_cams
import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.mm]


def irnet_config(folder):
    """As configs/irnet_*.py, on the drawn photos, with an untrained backbone."""
    dataset = tiny_run.config(folder / 'data')['train_dataloader']['dataset']
    first = dict(type='mmwsss.LoadPhoto')
    train_pipeline = [
        first,
        dict(
            type='mmwsss.LoadPseudoLabels',
            label_root=str(folder / 'ir_labels/SegmentationClass'),
            num_classes=3,
        ),
        dict(
            type='RandomResize', scale=(64, 64), ratio_range=(0.5, 1.5), keep_ratio=True
        ),
        dict(type='mmwsss.RandomCropWithBox', crop_size=(48, 48)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='mmwsss.PackPseudoLabels'),
    ]
    test_pipeline = [
        first,
        dict(type='mmwsss.LoadMask', num_classes=3),
        dict(type='mmwsss.LoadCAMs', cam_root=str(folder / 'cams')),
        dict(type='mmwsss.PackCAMs'),
    ]
    content = tiny_run.config(folder / 'data')
    content['model'] = dict(
        type='mmwsss.IRNet',
        data_preprocessor=content['model']['data_preprocessor'] | dict(size=(48, 48)),
        backbone=dict(
            type='mmwsss.FrozenBackbone',
            backbone=dict(
                type='mmpretrain.MobileOne',
                arch='s0',
                deploy=True,
                out_indices=(0, 1, 2),
            ),
        ),
        strides=(4, 8, 16),
        displacement_channels=(8, 8, 16),
        edge_channels=4,
        radius=3,
        pad_size=None,
    )
    content['model']['data_preprocessor']['seg_pad_val'] = 255
    content['train_dataloader']['dataset'] = dataset | dict(pipeline=train_pipeline)
    content['val_dataloader'] = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset | dict(pipeline=test_pipeline, test_mode=True),
    )
    content['val_cfg'] = dict(type='ValLoop')
    content['val_evaluator'] = dict(type='IoUMetric', iou_metrics=['mIoU'])
    content['train_cfg']['val_interval'] = 8
    content['optim_wrapper'] = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.1, weight_decay=1e-4),
        paramwise_cfg=dict(custom_keys=dict(displacement=dict(lr_mult=10.0))),
    )
    return tiny_run.write_config(folder / 'irnet.py', content)


def finished(done):
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope='module')
def stages(tmp_path_factory):
    """CAMs, IR labels and an IRNet of eight iterations."""
    folder = tmp_path_factory.mktemp('stages')
    network = fake_cams.write(folder)
    finished(fake_cams.run('make_cams.py', *network, '--out', folder / 'cams'))
    config = irnet_config(folder)
    labels = ('--cams', folder / 'cams', '--out', folder / 'ir_labels')
    finished(
        fake_cams.run('make_pseudo_labels.py', config, *labels, '--ir', '0.6', '0.2')
    )
    finished(tiny_run.train(config, folder / 'run'))
    return folder


def weights(path):
    # The file is our own; its logs hold numpy types that safe loading refuses.
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def test_training_moves_both_branches_and_the_mean(stages):
    before = weights(stages / 'run/iter_2.pth')
    after = weights(stages / 'run/iter_8.pth')
    assert before.keys() == after.keys()
    still = [n for n in after if torch.equal(before[n], after[n])]
    assert still == []
    assert int(after['num_updates']) == 8
    assert not [n for n in after if 'backbone' in n]


def test_killed_and_resumed_run_ends_bit_identical(stages, tmp_path):
    command = [sys.executable, str(tiny_run.ROOT / 'tools/train.py')]
    process = subprocess.Popen(
        [*command, str(stages / 'irnet.py'), '--work-dir', str(tmp_path)],
        env=tiny_run.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    marker = tmp_path / 'last_checkpoint'
    deadline = time.monotonic() + 240
    while not (marker.exists() and 'iter_4' in marker.read_text()):
        assert process.poll() is None, 'the run ended before it could be killed'
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'iter_8.pth').exists()
    finished(tiny_run.train(stages / 'irnet.py', tmp_path, '--resume'))
    expected = weights(stages / 'run/iter_8.pth')
    ours = weights(tmp_path / 'iter_8.pth')
    for name in expected:
        assert torch.equal(expected[name], ours[name]), name


def test_walked_labels_are_made_and_scored_alike(stages, tmp_path):
    step = (
        f'TrainedRefiner(config={str(stages / "irnet.py")!r}, '
        f'checkpoint={str(stages / "run")!r})'
    )
    source = (stages / 'irnet.py', '--cams', stages / 'cams', '--refine', step)
    done = finished(
        fake_cams.run('make_pseudo_labels.py', *source, '--out', tmp_path / 'labels')
    )
    assert 'refined by TrainedRefiner' in done.stdout
    # The validation at the end of the training scored the same labels.
    (log,) = (stages / 'run').glob('*/*.log')
    logged = float(log.read_text().rpartition('mIoU: ')[2].split()[0])
    labels = tmp_path / 'labels/SegmentationClass'
    done = finished(
        fake_cams.run(
            'eval_pseudo_labels.py',
            *(labels, stages / 'data/SegmentationClass', '--num-classes', '3'),
        )
    )
    scored = float(done.stdout.rpartition('\nmIoU ')[2].split()[0])
    assert scored == pytest.approx(logged, abs=0.011)
    drawn = {
        path.stem: set(np.unique(np.array(Image.open(path))).tolist())
        for path in labels.glob('*.png')
    }
    assert len(drawn) == 8
    assert drawn['photo_0'] == {0}
    assert {1, 2} <= drawn['photo_3'] <= {0, 1, 2}
    assert not drawn['photo_1'] - {0, 1}


def test_missing_ir_labels_are_a_sentence(stages, tmp_path):
    text = (stages / 'irnet.py').read_text()
    (tmp_path / 'irnet.py').write_text(text.replace('ir_labels', 'nothing_here'))
    done = tiny_run.train(tmp_path / 'irnet.py', tmp_path / 'run')
    message = fake_cams.sentence(done)
    assert 'nothing_here' in message
    assert 'does not exist' in message
