"""What the two processes of tests/models/test_orandnet.py run.

A spawned process imports this file by name, which it cannot do with a test file.
"""

import torch
from mmengine.registry import init_default_scope
from mmseg.structures import SegDataSample
from process_group import process_group
from torch.nn.parallel import DistributedDataParallel

import mmwsss.models  # noqa: F401
from mmwsss.registry import MODELS

LABELS = ((1, 0, 1), (0, 0, 0), (0, 1, 0), (1, 1, 1))
SIZES = ((32, 48), (20, 48), (32, 17), (29, 41))


def network(**changes):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    config = dict(
        type='mmwsss.ORANDNet',
        network=dict(type='mmwsss.LightUNet', widths=(4, 6, 8)),
        stride=4,
    )
    return MODELS.build(config | changes).double()


def batch(part=slice(None)):
    """Padded images of four sizes, the second without a class, and their CAMs."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for label, size in zip(LABELS, SIZES, strict=True):
        label = torch.tensor(label, dtype=torch.float32)
        grid = [-(-side // 4) for side in size]
        cams = torch.rand(2, 3, *grid, generator=generator, dtype=torch.float64)
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        sample.set_field(label, 'image_label', dtype=torch.Tensor)
        cams = cams * label[:, None, None]
        sample.set_field(cams, 'cam_sources', dtype=torch.Tensor)
        samples.append(sample)
    samples = samples[part]
    return torch.rand(len(samples), 3, 32, 48, dtype=torch.float64), samples


def train(model, part):
    """Three steps on the same photos; the parameters afterwards."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(model(*batch(part), mode='loss').values()).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def run_rank(rank, folder):
    torch.set_num_threads(1)
    with process_group(rank, folder):
        # The second rank sees no class at all.
        part = slice(2, 4) if rank == 0 else slice(1, 2)
        torch.save(
            train(DistributedDataParallel(network()), part), f'{folder}/rank{rank}.pt'
        )
