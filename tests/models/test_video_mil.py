import math

import fake_clips
import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.structures import SegDataSample

from mmwsss.errors import InputError
from mmwsss.models.losses import VideoMIL
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm


def samples(clip_ids):
    return [SegDataSample(metainfo=dict(clip_id=name)) for name in clip_ids]


@pytest.mark.parametrize('mode', ['max', 'lse', 'mean'])
def test_loss_is_that_of_each_clip_by_hand(mode):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    clips = ['b', 'a', 'b', 'b', 'c', 'a']
    label_of = {'a': [1.0, 0.0], 'b': [0.0, 0.0], 'c': [1.0, 1.0]}
    labels = torch.tensor([label_of[c] for c in clips])
    found = VideoMIL(mode=mode, sharpness=3.0)(scores, labels, samples(clips))
    total = 0.0
    for name in 'abc':
        for k in range(2):
            frames = [scores[n, k].item() for n in range(6) if clips[n] == name]
            pooled = {
                'max': max(frames),
                'mean': sum(frames) / len(frames),
                'lse': math.log(sum(math.exp(3 * s) for s in frames) / len(frames)) / 3,
            }[mode]
            sign = 1 if label_of[name][k] else -1
            total += math.log1p(math.exp(-sign * pooled)) / (3 * 2)
    assert found.item() == pytest.approx(total, rel=1e-6)


def test_frames_that_fill_up_have_no_part():
    scores = torch.tensor([[9.0], [-9.0], [-9.0]], requires_grad=True)
    labels = torch.tensor([[0.0], [1.0], [1.0]])
    VideoMIL(mode='topk', k=2)(scores, labels, samples('abb')).backward()
    # Clip a is one frame; taken twice, its gradient would be the same, but its share
    # of the pooled score would count the padding.
    assert scores.grad[0].item() == pytest.approx(0.5, abs=1e-3)
    assert scores.grad[1:].flatten().tolist() == pytest.approx([-0.25] * 2, abs=1e-3)


def test_it_says_what_is_missing():
    with pytest.raises(InputError, match='a sample has no clip_id'):
        VideoMIL()(torch.zeros(1, 1), torch.zeros(1, 1), [SegDataSample()])
    with pytest.raises(ValueError, match=r"mode must be .* 'sum'"):
        VideoMIL(mode='sum')
    with pytest.raises(ValueError, match=r'got 4\.0 and 0'):
        VideoMIL(k=0)


def config(root, folder, mode):
    dataset = dict(
        type='mmwsss.VideoClipDataset',
        clips='clips.json',
        data_root=str(root),
        data_prefix=dict(img_path='JPEGImages'),
        img_suffix='.png',
        frames='random',
        num_frames=3,
        pipeline=[dict(type='mmwsss.LoadPhoto'), dict(type='mmwsss.PackWSSSInputs')],
    )
    return Config(
        dict(
            default_scope='mmseg',
            custom_imports=dict(imports=['mmwsss.models', 'mmwsss.datasets']),
            work_dir=str(folder),
            log_level='ERROR',
            randomness=dict(seed=0),
            model=dict(
                type='mmwsss.CAMClassifier',
                num_classes=1,
                backbone=dict(
                    type='mmpretrain.ResNet',
                    depth=18,
                    num_stages=2,
                    strides=(1, 2),
                    dilations=(1, 1),
                    out_indices=(1,),
                    stem_channels=8,
                    base_channels=8,
                ),
                loss_cls=dict(type='mmwsss.VideoMIL', mode=mode),
                data_preprocessor=dict(
                    type='SegDataPreProcessor',
                    mean=[0, 0, 0],
                    std=[255, 255, 255],
                    bgr_to_rgb=True,
                    size=(24, 32),
                ),
            ),
            train_dataloader=dict(
                batch_size=12,
                num_workers=0,
                sampler=dict(type='mmwsss.ClipStreamSampler'),
                dataset=dataset,
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=24),
            optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-2)),
            default_hooks=dict(checkpoint=None, logger=None),
        )
    )


def test_a_network_trains_on_clips_through_the_runner(tmp_path):
    root = fake_clips.draw(tmp_path / 'data')
    init_default_scope('mmseg')
    runner = Runner.from_cfg(config(root, tmp_path / 'run', 'lse'))
    losses = []
    step = runner.model.train_step

    def watched(*args, **kwargs):
        found = step(*args, **kwargs)
        losses.append(found['loss'].item())
        return found

    runner.model.train_step = watched
    runner.train()
    assert len(losses) == 24
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    # The checkpoint is that of any CAMClassifier.
    plain = config(root, tmp_path, 'lse').model
    plain.pop('loss_cls')
    MODELS.build(plain).load_state_dict(runner.model.state_dict())
