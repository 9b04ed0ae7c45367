"""What the two processes of tests/models/test_irnet.py run.

A spawned process imports this file by name, which it cannot do with a test file.
"""

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from process_group import process_group
from torch.nn.parallel import DistributedDataParallel

from mmwsss.models.refiners import IRNet


def build(**options):
    """An untrained MobileOne with the smallest branches."""
    torch.manual_seed(0)
    backbone = dict(
        type='mmpretrain.MobileOne', arch='s0', deploy=True, out_indices=(0, 1, 2)
    )
    content = dict(
        backbone=dict(type='mmwsss.FrozenBackbone', backbone=backbone),
        strides=(4, 8, 16),
        displacement_channels=(8, 8, 16),
        edge_channels=4,
        radius=3,
        pad_size=None,
    )
    return IRNet(**(content | options))


def batch():
    """Four padded images whose halves differ a lot: a mean of losses would be wrong."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(4, 3, 64, 80, generator=generator)
    samples = []
    for number, shape in enumerate([(64, 80), (40, 80), (64, 33), (64, 80)]):
        label = torch.randint(0, 3, (8, 10), generator=generator)
        label = label.repeat_interleave(8, 0).repeat_interleave(8, 1)
        if number == 1:
            label[:] = 0
        # What the data preprocessor adds.
        label[shape[0] :] = 255
        label[:, shape[1] :] = 255
        sample = SegDataSample(metainfo={'img_shape': shape, 'ori_shape': shape})
        sample.gt_sem_seg = PixelData(data=label[None])
        samples.append(sample)
    return inputs, samples


def step(network, part=slice(None)):
    """Losses, gradients and the mean displacement after two steps."""
    inputs, samples = batch()
    for _ in range(2):
        network.zero_grad()
        losses = network(inputs[part], samples[part], mode='loss')
        # Unequal factors, so that an error in one gradient cannot hide in another.
        (losses['loss_boundary'] + 3 * losses['loss_displacement']).backward()
    inner = getattr(network, 'module', network)
    losses = {name: value.detach() for name, value in losses.items()}
    gradients = {n: p.grad for n, p in inner.named_parameters()}
    return losses, gradients, inner.mean_displacement.clone()


def run_rank(rank, folder):
    torch.set_num_threads(1)
    with process_group(rank, folder):
        # Three images here and one there: the shares are uneven as well.
        part = slice(0, 3) if rank == 0 else slice(3, 4)
        torch.save(
            step(
                DistributedDataParallel(build().train(), broadcast_buffers=False), part
            ),
            f'{folder}/rank{rank}.pt',
        )
