"""What the two processes of tests/models/test_cross_arch.py run.

A spawned process imports this file by name, which it cannot do with a test file.
"""

import torch
from classifier_cases import VIT, batch
from mmengine.registry import init_default_scope
from process_group import process_group
from torch.nn.parallel import DistributedDataParallel

import mmwsss.models  # noqa: F401
from mmwsss.registry import MODELS

LABELS = ((1, 0, 1), (0, 0, 0), (0, 1, 0), (0, 0, 0))
RESNET = dict(
    type='ResNet',
    depth=18,
    base_channels=4,
    stem_channels=4,
    num_stages=3,
    strides=(1, 2, 1),
    dilations=(1, 1, 1),
    norm_eval=True,
    out_indices=(1, 2),
)
CNN_BRANCH = dict(
    type='mmwsss.CNNBranch',
    backbone=RESNET,
    pcm=dict(type='mmwsss.PixelCorrelation', channels=4),
)
VIT_BRANCH = dict(type='mmwsss.ViTBranch', backbone=VIT)
CHANGES = dict(
    paradigm='co_training',
    loss_kt=dict(
        type='mmwsss.KnowledgeTransferLoss', mode='channel', present_only=True
    ),
    teacher_target='cam',
)


def network(seed=0, **changes):
    """A tiny network; an untrained CNN teaches a transformer unless told otherwise."""
    init_default_scope('mmseg')
    torch.manual_seed(seed)
    config = dict(
        type='mmwsss.CrossArch',
        num_classes=3,
        student=VIT_BRANCH,
        teacher=CNN_BRANCH,
        projection=dict(type='mmwsss.PointwiseProjection'),
        loss_kt=dict(type='mmwsss.KnowledgeTransferLoss'),
    )
    if changes.get('paradigm') != 'co_training':
        config['teacher_checkpoint'] = 'untrained'
    model = MODELS.build({**config, **changes})
    model.init_weights()
    return model


def train(model, part=slice(None), *, steps=3):
    """A few steps on the same photos; the parameters afterwards."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    inputs, samples = batch(LABELS)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = model(inputs[part].to(trained[0]), samples[part], mode='loss')
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def run_rank(rank, folder):
    torch.set_num_threads(1)
    with process_group(rank, folder):
        # The second rank sees fewer classes.
        part = slice(0, 2) if rank == 0 else slice(2, 4)
        torch.save(
            train(DistributedDataParallel(network(**CHANGES).double()), part),
            f'{folder}/rank{rank}.pt',
        )
