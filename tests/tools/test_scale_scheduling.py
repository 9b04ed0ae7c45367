"""Scale scheduling in a plain MMSegmentation training, and over a resume."""

import json
import os

import numpy as np
import pytest
import tiny_run
import torch
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.mm]

# A head of MMSegmentation that notes the size of what it is trained on.
SPY = """
import json, os
import torch
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import MODELS


@MODELS.register_module()
class SpyHead(FCNHead):
    def loss(self, inputs, batch_data_samples, train_cfg):
        sizes = [list(s.gt_sem_seg.shape) for s in batch_data_samples]
        values = torch.cat([s.gt_sem_seg.data for s in batch_data_samples]).unique()
        with open(os.environ['SPY_FILE'], 'a') as stream:
            stream.write(json.dumps([sizes, values.tolist()]) + chr(10))
        return super().loss(inputs, batch_data_samples, train_cfg)
"""


def write_config(folder):
    content = tiny_run.config(folder / 'data')
    norm = dict(type='BN')
    content['model'] = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='mmwsss.ScaleScheduledDataPreProcessor',
            scales=((0.0, 0.5), (0.25, 0.75), (0.5, 1.0)),
            mean=[0, 0, 0],
            std=[255, 255, 255],
            bgr_to_rgb=True,
            size=(32, 40),
            seg_pad_val=255,
        ),
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            base_channels=4,
            stem_channels=4,
            num_stages=4,
            out_indices=(3,),
            dilations=(1, 1, 2, 4),
            strides=(1, 2, 1, 1),
            norm_cfg=norm,
            style='pytorch',
            contract_dilation=True,
        ),
        decode_head=dict(
            type='SpyHead',
            in_channels=32,
            in_index=0,
            channels=32,
            num_convs=0,
            concat_input=False,
            num_classes=3,
            norm_cfg=norm,
            loss_decode=dict(
                type='mmwsss.BalancedCrossEntropyLoss', label_smoothing=0.2
            ),
        ),
        test_cfg=dict(mode='whole'),
    )
    dataset = content['train_dataloader']['dataset']
    dataset['pipeline'] = [
        dict(type='mmwsss.LoadPhoto'),
        dict(
            type='mmwsss.LoadPseudoLabels',
            label_root=str(folder / 'labels'),
            num_classes=3,
        ),
        dict(type='mmwsss.RandomCropWithBox', crop_size=(32, 40)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='mmwsss.PackPseudoLabels'),
    ]
    # Other processes load the data, which know nothing of the iteration.
    content['train_dataloader']['num_workers'] = 1
    content['train_dataloader']['persistent_workers'] = True
    content['custom_imports']['imports'].append('spy_head')
    # No hook of ours: the schedule needs none.
    content['custom_hooks'] = [dict(type='mmwsss.IterationSeedHook')]
    (folder / 'spy_head.py').write_text(SPY)
    return tiny_run.write_config(folder / 'scale.py', content)


def spied_train(config, folder, *options):
    """Train; what the head saw at every iteration, as (sizes, label values)."""
    spied = config.parent / f'{folder.name}.txt'
    environment = tiny_run.environment()
    environment['PYTHONPATH'] += f'{os.pathsep}{config.parent}'
    environment['SPY_FILE'] = str(spied)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_run, 'environment', lambda: environment)
        done = tiny_run.train(config, folder, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'loss_balanced_ce' in done.stdout + done.stderr
    return [json.loads(line) for line in spied.read_text().splitlines()]


def test_a_plain_segmentor_is_scheduled_and_resumes_where_it_was(tmp_path):
    tiny_run.draw(tmp_path / 'data')
    (tmp_path / 'labels').mkdir()
    for path in (tmp_path / 'data/SegmentationClass').glob('*.png'):
        mask = np.array(Image.open(path))
        mask[20:24] = 255
        Image.fromarray(mask).save(tmp_path / 'labels' / path.name)
    config = write_config(tmp_path)
    whole = spied_train(config, tmp_path / 'whole')
    # Of eight iterations a quarter at half the size and one at three quarters.
    expected = [[16, 24]] * 2 + [[24, 32]] * 2 + [[32, 40]] * 4
    assert [sizes for sizes, _ in whole] == [[size] * 2 for size in expected]
    assert {v for _, values in whole for v in values} == {0, 1, 2, 255}
    # As if it had been stopped in iteration 3.
    cut = tmp_path / 'cut'
    cut.mkdir()
    (cut / 'iter_2.pth').write_bytes((tmp_path / 'whole/iter_2.pth').read_bytes())
    (cut / 'last_checkpoint').write_text(str(cut / 'iter_2.pth'))
    assert spied_train(config, cut, '--resume') == whole[2:]
    ended, resumed = (
        # The files are our own; their logs hold types that safe loading refuses.
        torch.load(folder / 'iter_8.pth', map_location='cpu', weights_only=False)
        for folder in (tmp_path / 'whole', cut)
    )
    for name, values in ended['state_dict'].items():
        assert torch.equal(values, resumed['state_dict'][name]), name
