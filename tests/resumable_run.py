"""A training of a second: dropout, averaged weights, schedules, noisy samples."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from process_group import process_group
from torch import nn
from torch.utils.data import Dataset

from mmwsss.apis.train import build_training


@DATASETS.register_module()
class NoisyNumbers(Dataset):
    """Adds noise of all three kinds and writes down which sample was asked for."""

    def __init__(self, *, size, calls):
        self.size, self.calls = size, calls
        self.metainfo = dict(classes=('background', 'disc'))

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        # Several workers append to one file; short lines stay whole.
        with open(self.calls, 'a') as stream:
            stream.write(f'{int(index)}\n')
        noise = random.random() + np.random.rand() + torch.rand(4)
        x = torch.arange(4.0) * (int(index) + 1) / self.size + noise
        return dict(inputs=x, data_samples=float(int(index) % 2))


@MODELS.register_module()
class DroppingNet(BaseModel):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.4)
        self.head = nn.Linear(4, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.head(self.drop(self.norm(torch.stack(list(inputs)))))[:, 0]
        if mode == 'loss':
            # A model that draws from the other two as well.
            x = x + random.random() * np.random.rand()
            return dict(loss=F.mse_loss(x, torch.stack(list(data_samples)).float()))
        return list(x)


@METRICS.register_module()
class RisingScore(BaseMetric):
    """Each validation is better than the one before."""

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        before = MessageHub.get_current_instance().log_scalars.get('val/score')
        number = len(before.data[0]) if before else 0
        return dict(score=np.float64(number + torch.rand(()).item() / 10))


def config(work_dir, *, num_workers=0, batch_size=2, seed=None, **hook):
    """As of someone who never heard of resuming: MMEngine's parts alone."""
    work_dir = Path(work_dir)
    loader = dict(
        batch_size=batch_size,
        num_workers=num_workers,
        dataset=dict(type='NoisyNumbers', size=9, calls=str(work_dir / 'calls.txt')),
        sampler=dict(type='InfiniteSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
    )
    work_dir.mkdir(exist_ok=True)
    return Config(
        dict(
            model=dict(type='DroppingNet'),
            train_dataloader=loader,
            val_dataloader=dict(
                batch_size=3,
                num_workers=0,
                dataset=dict(
                    type='NoisyNumbers', size=3, calls=str(work_dir / 'val.txt')
                ),
                sampler=dict(type='DefaultSampler', shuffle=False),
                collate_fn=dict(type='default_collate'),
            ),
            val_evaluator=dict(type='RisingScore'),
            val_cfg=dict(),
            train_cfg=dict(by_epoch=False, max_iters=10, val_interval=2),
            optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.05)),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.1, end=5, by_epoch=False),
                dict(type='CosineAnnealingLR', T_max=10, by_epoch=False),
            ],
            default_hooks=dict(
                checkpoint={
                    **dict(type='CheckpointHook', by_epoch=False, interval=4),
                    **dict(max_keep_ckpts=3),
                    **hook,
                },
                logger=dict(type='LoggerHook', interval=1),
            ),
            custom_hooks=[dict(type='EMAHook', momentum=0.3)],
            randomness=dict(seed=seed),
            log_processor=dict(by_epoch=False),
            log_level='ERROR',
            work_dir=str(work_dir),
            experiment_name=f'{work_dir.name}_{random.getrandbits(64)}',
        )
    )


def train(work_dir, *, resume=False, launcher='none', change=None, **options):
    """Train to the end; the runner."""
    # A new process begins with other numbers.
    random.seed()
    np.random.seed()
    torch.seed()
    cfg = config(work_dir, **options)
    cfg.merge_from_dict(change or {})
    runner = build_training(cfg, resume=resume, launcher=launcher)
    runner.train()
    return runner


def calls(work_dir):
    """The samples that training asked for, in order."""
    return list(map(int, Path(work_dir, 'calls.txt').read_text().split()))


def stopped_at(whole, iteration, folder):
    """What a run has left on the disk that was killed after a checkpoint."""
    folder = Path(folder)
    folder.mkdir()
    for path in Path(whole).glob('iter_*.pth*'):
        if int(path.name.split('.')[0].removeprefix('iter_')) <= iteration:
            # With the times, which say what was written last.
            shutil.copy2(path, folder)
    last = folder / f'iter_{iteration}.pth'
    (folder / 'last_checkpoint').write_text(str(last))
    return folder


def run_rank(rank, world_size, folder):
    """One of several processes: a whole run, and one that goes on in the middle."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR='localhost',
    )
    with process_group(rank, folder, world_size=world_size):
        # Otherwise MMEngine lets all processes draw the same.
        given = dict(launcher='pytorch', change={'randomness.diff_rank_seed': True})
        train(f'{folder}/whole', **given)
        if rank == 0:
            stopped_at(f'{folder}/whole', 4, f'{folder}/resumed')
        dist.barrier()
        train(f'{folder}/resumed', **given, resume=True)
