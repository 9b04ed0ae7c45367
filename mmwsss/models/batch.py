"""What the data samples of a batch say, as tensors."""

import torch
from torch import Tensor


def stack_image_labels(data_samples: list, device: torch.device) -> Tensor:
    """image_label (N, K) float32."""
    labels = torch.stack([sample.image_label for sample in data_samples])
    return labels.to(device, torch.float32)


def most_classes(data_samples: list) -> int | None:
    """Most classes of any image of the batch, without asking the device.

    ``PackWSSSInputs`` counts them on the host before ``image_label`` goes to the
    device; None if a sample does not say.
    """
    counts = [sample.metainfo.get('num_present') for sample in data_samples]
    return None if None in counts else max(counts, default=0)


def valid_mask(data_samples: list, size: tuple[int, int], device: torch.device):
    """Valid (N, 1, H, W) float32: 1 on real pixels, 0 on right and bottom padding."""
    shapes = [sample.metainfo.get('img_shape', size)[:2] for sample in data_samples]
    shapes = torch.tensor(shapes).to(device, non_blocking=True)
    rows = torch.arange(size[0], device=device)[None, :, None]
    columns = torch.arange(size[1], device=device)[None, None, :]
    valid = (rows < shapes[:, 0, None, None]) & (columns < shapes[:, 1, None, None])
    return valid[:, None].to(torch.float32)


def crop_geometry(
    data_samples: list, padded_size: tuple[int, int], device: torch.device
) -> Tensor:
    """Where each padded input lies in its photo.

    Reads ``crop_box`` and ``crop_from`` of ``RandomCropWithBox``, and ``flip`` with
    ``flip_direction`` of a flip of the crop. A sample without a crop (evaluation)
    shows the whole photo; a resize before or after the crop needs no mention.

    Args:
        data_samples: of the batch.
        padded_size: (H, W) of the inputs, right and bottom padding included.
        device: of the result; one small copy that does not wait.

    Returns:
        affine (N, 2, 3) float32: for rows and columns (scale, offset, extent), as
        ``functional/history.py`` says.

    Raises:
        ValueError: for a crop without the size that it was cut from, and for an
            unknown direction of a flip.
    """
    rows = [_sample_geometry(sample.metainfo, padded_size) for sample in data_samples]
    affine = torch.tensor(rows, dtype=torch.float32).reshape(-1, 2, 3)
    return affine.to(device, non_blocking=True)


# Which axes (rows, columns) a flip turns round.
FLIPPED_AXES = {
    'horizontal': (False, True),
    'vertical': (True, False),
    'diagonal': (True, True),
}


def _sample_geometry(meta: dict, padded_size: tuple[int, int]) -> list:
    if 'crop_box' in meta and 'crop_from' not in meta:
        raise ValueError(
            f'the crop {meta["crop_box"]} of {meta.get("img_path")} does not say what '
            'it was cut from; keep crop_from among the meta_keys of PackWSSSInputs'
        )
    left, top, right, bottom = meta.get('crop_box', (0, 0, 1, 1))
    height, width = meta.get('crop_from', (1, 1))
    direction = (meta.get('flip_direction') or 'horizontal') if meta.get('flip') else ''
    if direction and direction not in FLIPPED_AXES:
        raise ValueError(
            f'flip_direction must be one of {sorted(FLIPPED_AXES)}, got {direction!r}'
        )
    flipped = FLIPPED_AXES.get(direction, (False, False))
    spans = ((top / height, bottom / height), (left / width, right / width))
    sizes = meta.get('img_shape', padded_size)[:2]
    axes = zip(spans, flipped, sizes, padded_size, strict=True)
    return [_axis_geometry(*axis) for axis in axes]


def _axis_geometry(
    span: tuple[float, float], flipped: bool, size: int, padded_size: int
) -> tuple[float, float, float]:
    extent = size / padded_size
    start, end = reversed(span) if flipped else span
    # The flip turned the crop round before it was padded.
    return (end - start) / extent, start, extent
