"""One propagation step of PAMR and PAR as one kernel.

PyTorch's form reads and writes all scores once for each of the 48 neighbours; this one
reads each weight and each score where it is needed and writes once. Channels without
any score are not worked on, which needs no word from the device.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # pixels of one program


@triton.jit
def _step(
    scores,
    kernel,
    occupied,
    shifts,
    result,
    channels,
    height,
    width,
    num_taps,
    BLOCK: tl.constexpr,
):
    """result[n, c, p] = sum over taps of kernel[n, t, p] scores[n, c, p + shift_t]."""
    # Neighbouring programs work on the channels of the same pixels: the weights, most
    # of what is read, come from the cache for all but the first.
    channel = tl.program_id(0) % channels
    pixel = tl.program_id(0) // channels * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    pixels = height * width
    inside = pixel < pixels
    y = pixel // width
    x = pixel % width
    plane = image * channels + channel
    taps = num_taps * tl.load(occupied + plane)
    total = tl.full((BLOCK,), 0, scores.dtype.element_ty)
    for tap in range(0, taps):
        # Beyond the border its pixels are repeated.
        down = tl.minimum(tl.maximum(y + tl.load(shifts + 2 * tap), 0), height - 1)
        right = tl.minimum(tl.maximum(x + tl.load(shifts + 2 * tap + 1), 0), width - 1)
        weights = kernel + (image * num_taps + tap) * pixels + pixel
        weight = tl.load(weights, mask=inside, other=0.0)
        neighbours = scores + plane * pixels + down * width + right
        total += weight * tl.load(neighbours, mask=inside, other=0.0)
    tl.store(result + plane * pixels + pixel, total, mask=inside)


def propagate(
    scores: Tensor, kernel: Tensor, taps: Sequence[tuple[int, int]], num_iters: int
) -> Tensor:
    """Propagate scores along a kernel of weights, ``num_iters`` times.

    Args:
        scores: (N, C, H, W) float32 or float64.
        kernel: (N, len(taps), H, W) of the same type.
        taps: (dy, dx) of each neighbour; borders are replicated.
        num_iters: steps.

    Returns:
        (N, C, H, W).
    """
    n, channels, height, width = scores.shape
    scores, kernel = scores.contiguous(), kernel.contiguous()
    occupied = scores.flatten(2).any(2).to(torch.int32)
    # Made on the host: one copy, which the device need not wait for.
    shifts = torch.tensor(taps, dtype=torch.int32, device='cpu')
    shifts = shifts.to(scores.device, non_blocking=True)
    grid = (channels * triton.cdiv(height * width, BLOCK), n)
    buffers = [torch.empty_like(scores) for _ in range(min(2, num_iters))]
    with torch.cuda.device_of(scores):
        for step in range(num_iters):
            result = buffers[step % 2]
            _step[grid](
                scores,
                kernel,
                occupied,
                shifts,
                result,
                channels,
                height,
                width,
                len(taps),
                BLOCK=BLOCK,
            )
            scores = result
    return scores
