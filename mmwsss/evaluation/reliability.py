"""Does reliability mean something? Correct pseudo-labels per level of reliability."""

import torch
from torch import Tensor

from mmwsss.functional.reliability import reliability_bins

NUM_BINS = 10


class ReliabilityMeter:
    """Adds up pixels and correct pseudo-labels per bin of reliability.

    Args:
        num_bins: B bins of equal width over [0, 1].
        ignore_index: Pixels of this value in the pseudo-label or the mask are not
            counted.
    """

    def __init__(self, *, num_bins: int = NUM_BINS, ignore_index: int = 255) -> None:
        if num_bins < 1:
            raise ValueError(f'num_bins must be at least 1, got {num_bins}')
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_bins, 2, dtype=torch.int64)
        self.num_images = 0

    def update(self, reliability: Tensor, pseudo_label: Tensor, target: Tensor) -> None:
        """Add the maps (H, W) of one photo."""
        self.counts += reliability_bins(
            reliability[None],
            pseudo_label[None],
            target[None],
            num_bins=len(self.counts),
            ignore_index=self.ignore_index,
        ).cpu()
        self.num_images += 1

    def result(self) -> dict:
        """Plain numbers for JSON, shares in percent.

        Returns:
            ``bins`` with ``low``, ``high``, ``pixels`` and ``correct`` (None for a bin
            without pixels), ``pixels``, ``correct`` (of all), ``images``, and
            ``separation``: how often a correct pixel lies in a higher bin than a
            wrong one, equal bins counting half; 50 tells nothing, 100 everything,
            None where one of the two kinds is missing.
        """
        pixels = self.counts[:, 0].tolist()
        correct = self.counts[:, 1].tolist()
        step = 1 / len(pixels)
        bins = [
            {
                'low': round(i * step, 6),
                'high': round((i + 1) * step, 6),
                'pixels': pixels[i],
                'correct': _percent(correct[i], pixels[i]),
            }
            for i in range(len(pixels))
        ]
        return {
            'bins': bins,
            'pixels': sum(pixels),
            'correct': _percent(sum(correct), sum(pixels)),
            'separation': _separation(pixels, correct),
            'images': self.num_images,
        }

    def state(self) -> dict:
        """The sums as plain Python, for JSON and for adding up over processes."""
        return {'counts': self.counts.tolist(), 'num_images': self.num_images}

    def add_state(self, state: dict) -> None:
        """Add the sums of another meter with as many bins."""
        self.counts += torch.tensor(state['counts'], dtype=torch.int64)
        self.num_images += state['num_images']


def _percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 4) if whole else None


def _separation(pixels: list[int], correct: list[int]) -> float | None:
    wrong = [n - c for n, c in zip(pixels, correct, strict=True)]
    pairs = sum(correct) * sum(wrong)
    won, wrong_below = 0.0, 0
    for right_here, wrong_here in zip(correct, wrong, strict=True):
        won += right_here * (wrong_below + 0.5 * wrong_here)
        wrong_below += wrong_here
    return round(100 * won / pairs, 4) if pairs else None
