"""What the two processes of tests/models/test_sipe.py run.

A spawned process imports this file by name, which it cannot do with a test file.
"""

import torch
from mmengine.registry import init_default_scope
from mmseg.structures import SegDataSample
from process_group import process_group
from torch.nn.parallel import DistributedDataParallel

import mmwsss.models  # noqa: F401
from mmwsss.registry import MODELS

LABELS = ((1, 0), (1, 1), (0, 0), (0, 1))
SIZES = ((32, 48), (20, 48), (32, 17), (32, 48))


def network():
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='mmwsss.SIPE',
            backbone=dict(
                type='ResNet',
                depth=18,
                base_channels=4,
                stem_channels=4,
                strides=(1, 2, 2, 1),
                norm_eval=True,
                frozen_stages=2,
            ),
            num_classes=2,
            side_channels=(3, 4, 5, 6),
            enhancement=('pamr', 'prototypes', 'is_cam'),
            enhancement_num_iters=2,
        )
    )
    # Rounding would grow over the steps.
    return model.double()


def batch(part):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 32, 48, generator=generator, dtype=torch.float64)
    samples = []
    for label, size in list(zip(LABELS, SIZES, strict=True))[part]:
        sample = SegDataSample(metainfo=dict(img_shape=size))
        label = torch.tensor(label, dtype=torch.float32)
        sample.set_field(label, 'image_label', dtype=torch.Tensor)
        samples.append(sample)
    return images[part], samples


def train(model, part):
    """Three steps on the same images; the parameters afterwards."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        losses = model(*batch(part), mode='loss')
        sum(v for n, v in losses.items() if 'loss' in n).backward()
        optimizer.step()
    return {n.removeprefix('module.'): p.detach() for n, p in model.named_parameters()}


def run_rank(rank, folder):
    torch.set_num_threads(1)
    with process_group(rank, folder):
        part = slice(0, 2) if rank == 0 else slice(2, 4)
        torch.save(
            train(DistributedDataParallel(network()), part), f'{folder}/rank{rank}.pt'
        )
