"""What the data samples of a batch say, as tensors."""

import torch
from torch import Tensor


def stack_image_labels(data_samples: list, device: torch.device) -> Tensor:
    """image_label (N, K) float32."""
    labels = torch.stack([sample.image_label for sample in data_samples])
    return labels.to(device, torch.float32)


def valid_mask(data_samples: list, size: tuple[int, int], device: torch.device):
    """Valid (N, 1, H, W) float32: 1 on real pixels, 0 on right and bottom padding."""
    shapes = [sample.metainfo.get('img_shape', size)[:2] for sample in data_samples]
    shapes = torch.tensor(shapes).to(device, non_blocking=True)
    rows = torch.arange(size[0], device=device)[None, :, None]
    columns = torch.arange(size[1], device=device)[None, None, :]
    valid = (rows < shapes[:, 0, None, None]) & (columns < shapes[:, 1, None, None])
    return valid[:, None].to(torch.float32)
