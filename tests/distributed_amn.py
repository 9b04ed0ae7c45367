"""What the two processes of tests/models/test_amn.py run.

A spawned process imports this file by name, which it cannot do with a test file.
"""

import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from process_group import process_group
from torch.nn.parallel import DistributedDataParallel

import mmwsss.models  # noqa: F401
from mmwsss.registry import MODELS

LABELS = ((1, 0), (1, 1), (0, 0), (0, 1))
SIZES = ((32, 48), (20, 48), (32, 17), (32, 48))
PADDED = (32, 48)
BACKBONE = dict(
    type='ResNet',
    depth=18,
    base_channels=4,
    stem_channels=4,
    strides=(1, 2, 2, 1),
    norm_eval=True,
    style='pytorch',
)


def network(seed=0, **changes):
    init_default_scope('mmseg')
    torch.manual_seed(seed)
    config = dict(
        type='mmwsss.AMN',
        backbone=BACKBONE,
        num_classes=2,
        dilations=(1, 2),
        dropout_ratio=0.0,
    )
    # Rounding would grow over the steps.
    return MODELS.build(config | changes).double()


def batch(part=slice(None)):
    """Padded images with IR labels; the first has no background, the third only it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, *PADDED, generator=generator, dtype=torch.float64)
    samples = []
    for number, (label, size) in enumerate(zip(LABELS, SIZES, strict=True)):
        present = [k + 1 for k, there in enumerate(label) if there]
        choices = torch.tensor([255, *present, *([0] if number else [])])
        ir_label = choices[torch.randint(len(choices), PADDED, generator=generator)]
        ir_label[size[0] :] = 255
        ir_label[:, size[1] :] = 255
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        label = torch.tensor(label, dtype=torch.float32)
        sample.set_field(label, 'image_label', dtype=torch.Tensor)
        sample.gt_sem_seg = PixelData(data=ir_label[None])
        samples.append(sample)
    return images[part], samples[part]


def train(model, part):
    """Three steps on the same images; the parameters afterwards."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(*batch(part), mode='loss')['loss_seg'].backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def run_rank(rank, folder):
    torch.set_num_threads(1)
    with process_group(rank, folder):
        # Three images here and one there: the halves of the loss are uneven as well.
        part = slice(0, 3) if rank == 0 else slice(3, 4)
        torch.save(
            train(DistributedDataParallel(network()), part), f'{folder}/rank{rank}.pt'
        )
