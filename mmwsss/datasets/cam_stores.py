"""CAMs of several stores side by side, for networks that join them."""

from collections.abc import Sequence

import torch
from mmcv.transforms import BaseTransform
from torch import Tensor

from mmwsss.errors import InputError
from mmwsss.registry import TRANSFORMS

from .cam_store import LoadCAMs
from .transforms import PackWSSSInputs

# Axes of (S, K, h, w).
_FLIPPED = {'horizontal': (3,), 'vertical': (2,), 'diagonal': (2, 3)}


@TRANSFORMS.register_module()
class LoadCAMStores(BaseTransform):
    """Reads the CAMs of a photo from several stores, those of one classifier each.

    A background that a store has is left out: the classifiers are joined class by
    class.

    Args:
        cam_roots: two folders or more; their order is that of the offsets.
    """

    def __init__(self, *, cam_roots: Sequence[str]) -> None:
        if isinstance(cam_roots, str) or len(cam_roots) < 2:
            raise InputError(
                f'cam_roots must name two CAM stores or more, got {cam_roots!r}'
            )
        self.readers = [LoadCAMs(cam_root=root) for root in cam_roots]

    def transform(self, results: dict) -> dict:
        """Adds ``cam_sources`` (S, K, h, w) on the grid of stride 4."""
        cams = [reader.transform(dict(results))['cams'] for reader in self.readers]
        results['cam_sources'] = torch.stack(cams)
        return results


@TRANSFORMS.register_module()
class PackCAMStores(PackWSSSInputs):
    """``PackWSSSInputs``, and the CAMs of several stores as ``cam_sources``.

    They follow a flip of the photo; resizing needs nothing, since they keep a grid of
    their own. A crop they cannot follow.

    Args:
        meta_keys: what of the results is kept as meta information, where present.
    """

    def transform(self, results: dict) -> dict:
        """As ``PackWSSSInputs``; ``cam_sources`` is (S, K, h, w).

        Raises:
            ValueError: if the photo was cropped.
        """
        packed = super().transform(results)
        if 'cam_sources' not in results:
            return packed
        if 'crop_box' in results:
            raise ValueError(
                'PackCAMStores packs CAMs of whole photos, but the pipeline crops; '
                'take the crop out'
            )
        sources = results['cam_sources']
        if results.get('flip'):
            sources = sources.flip(_FLIPPED[results.get('flip_direction')])
        packed['data_samples'].set_field(sources, 'cam_sources', dtype=Tensor)
        return packed
