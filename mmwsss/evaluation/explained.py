"""What a segmentor says about photos, on the grid of each photo or its mask."""

from collections.abc import Iterator
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn


def explained_photos(
    model: nn.Module, batch: dict, *, inference: bool = True
) -> Iterator[dict]:
    """Explain the photos of a batch and bring every map to the size of the mask.

    Args:
        model: Has ``data_preprocessor``, ``explain`` and, for ``inference``,
            ``test_step``. It should be in eval mode.
        batch: As from a val data loader, with ``image_label`` in the data samples.
        inference: Take the prediction from the model's own inference (sliding
            window, CRF); False takes the argmax of the explanation's logits, which
            saves a forward pass.

    Yields:
        Per photo: ``id``, ``photo`` (3, H, W) in [0, 1], ``cams`` (K, H, W),
        ``refined`` (C, H, W), ``label`` and ``prediction`` (H, W) int64,
        ``reliability`` (H, W) or None, ``image_label`` (K,), ``target`` (H, W) int64
        or None for a photo without a mask.
    """
    data = model.data_preprocessor(batch, training=False)
    samples = data['data_samples']
    explanation = model.explain(data['inputs'], samples)
    reliability = getattr(explanation, 'reliability', None)
    predicted = model.test_step(batch) if inference else None
    device = explanation.cams.device
    for i, sample in enumerate(samples):
        target = sample.gt_sem_seg.data[0] if 'gt_sem_seg' in sample else None
        size = tuple(sample.ori_shape[:2]) if target is None else tuple(target.shape)
        inner = tuple(sample.img_shape[:2])
        image_label = getattr(sample.image_label, 'data', sample.image_label)
        if predicted is None:
            logits = resized(explanation.seg_logits[i : i + 1], inner, size)
            prediction = logits[0].argmax(dim=0)
        else:
            prediction = resized_label(predicted[i].pred_sem_seg.data[0], None, size)
        yield {
            'id': sample.metainfo.get('img_id') or Path(sample.img_path).stem,
            'photo': resized(data['inputs'][i : i + 1].float(), inner, size)[0],
            'cams': resized(explanation.cams[i : i + 1], inner, size)[0],
            'refined': resized(explanation.refined[i : i + 1], inner, size)[0],
            'label': resized_label(explanation.pseudo_label[i], inner, size).long(),
            'reliability': None
            if reliability is None
            # Not interpolated: each pixel keeps the value of its own label.
            else resized_label(reliability[i].float(), inner, size),
            'prediction': prediction.long(),
            'image_label': image_label.to(device),
            'target': None if target is None else target.to(device).long(),
        }


def resized(maps: Tensor, inner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Maps (N, C, H, W) without the padding right and below, bilinearly at a size."""
    maps = maps[..., : inner[0], : inner[1]].float()
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode='bilinear', align_corners=False)


def resized_label(
    label: Tensor, inner: tuple[int, int] | None, size: tuple[int, int]
) -> Tensor:
    """A map (H, W) without the padding right and below, at a size, no new values."""
    if inner is not None:
        label = label[: inner[0], : inner[1]]
    if tuple(label.shape) == size:
        return label
    scaled = F.interpolate(label[None, None].float(), size=size, mode='nearest-exact')
    return scaled[0, 0].to(label.dtype)
