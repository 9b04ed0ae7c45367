"""Filling a region of an image from what surrounds it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def fill_from_neighbours(image: Tensor, region: Tensor, *, radius: int = 2) -> Tensor:
    """Replace a region by medians of its surroundings, from the border inwards.

    In each round every pixel of the region with a known one in its square
    neighbourhood becomes the median of the known ones, channel by channel (the lower
    one of two), and is known from then on. A tall thin thing takes the colour beside
    it at every height.

    Args:
        image: (3, H, W), any range.
        region: (H, W) bool, what is to go.
        radius: of the neighbourhood in pixels.

    Returns:
        (3, H, W); the image itself where the region is everything.

    Raises:
        ValueError: for shapes that do not belong together, or a radius below 1.
    """
    if image.ndim != 3 or image.shape[1:] != region.shape:
        raise ValueError(
            f'image must be (3, H, W) and region (H, W), got {tuple(image.shape)} and '
            f'{tuple(region.shape)}'
        )
    if radius < 1:
        raise ValueError(f'radius must be at least 1, got {radius}')
    channels, height, width = image.shape
    hidden = region.bool()
    if bool(hidden.all()):
        return image.clone()
    values = image.float().masked_fill(hidden, torch.nan)
    side = 2 * radius + 1
    while bool(hidden.any()):
        padded = F.pad(values, (radius,) * 4, value=torch.nan)
        around = F.unfold(padded[None], side).view(channels, side**2, height * width)
        around = around[:, :, hidden.flatten()]
        values[:, hidden] = around.nanmedian(dim=1).values
        hidden = values[0].isnan()
    return values.to(image.dtype)
