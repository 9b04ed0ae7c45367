"""What the two processes of tests/models/test_losses.py run.

A spawned process imports this file by name, which it cannot do with a test file.
"""

import torch
from process_group import process_group
from torch.nn.parallel import DistributedDataParallel

from mmwsss.models.losses import (
    AffinityLoss,
    BalancedCrossEntropyLoss,
    BoundaryLoss,
    CrossViewLoss,
    PairwiseEnergyLoss,
    PresentDiceLoss,
)


def joint_batch():
    """Four images whose halves differ a lot: a mean of losses would be wrong."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (4, 6, 8), generator=generator)
    label[0, 1:] = 0
    label[1] = 255
    return {
        'image': torch.rand(4, 3, 6, 8, generator=generator),
        'features': torch.randn(4, 5, 6, 8, generator=generator),
        'label': label,
        'weight': torch.rand(4, 6, 8, generator=generator),
        'image_label': torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1.0]]),
        'valid': (torch.rand(4, 1, 6, 8, generator=generator) < 0.7).float(),
    }


class TinyNetwork(torch.nn.Module):
    """A linear layer per stream and all losses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first = torch.nn.Conv2d(5, 4, 1)
        self.second = torch.nn.Conv2d(5, 4, 1)
        self.ce = BalancedCrossEntropyLoss(label_smoothing=0.1, loss_weight=0.7)
        self.dice = PresentDiceLoss()
        self.affinity = AffinityLoss(radius=2)
        self.cross = CrossViewLoss(threshold=0.3)
        self.balanced = BalancedCrossEntropyLoss(class_balance='batch')
        self.boundary = BoundaryLoss(width=1, scale=1.0)
        self.energy = PairwiseEnergyLoss(scale=1.0, dilations=(1, 2))

    def forward(self, batch):
        first, second = self.first(batch['features']), self.second(batch['features'])
        streams = (first, second, 0.5 * first - second)
        label, weight, valid = batch['label'], batch['weight'], batch['valid']
        return torch.stack(
            [
                self.ce(first, batch['label'], weight=batch['weight']),
                self.dice(first, batch['label']),
                self.affinity(first, batch['label']),
                self.cross(first, second, batch['image_label'], batch['valid']),
                self.cross.between(streams, batch['image_label'], valid),
                self.balanced(second, label, weight),
                self.boundary(streams, label, valid, weight),
                self.energy(second, batch['image'], label, valid),
            ]
        )


def losses_and_gradients(network, batch):
    losses = network(batch)
    # Unequal factors, so that an error in one gradient cannot hide in another.
    (losses * torch.arange(1.0, len(losses) + 1)).sum().backward()
    return losses.detach(), [p.grad for p in network.parameters()]


def run_rank(rank, folder):
    torch.set_num_threads(1)
    with process_group(rank, folder):
        # Three images here and one there: the shares are uneven as well.
        part = slice(0, 3) if rank == 0 else slice(3, 4)
        batch = {name: value[part] for name, value in joint_batch().items()}
        found = losses_and_gradients(DistributedDataParallel(TinyNetwork()), batch)
        torch.save(found, f'{folder}/rank{rank}.pt')
