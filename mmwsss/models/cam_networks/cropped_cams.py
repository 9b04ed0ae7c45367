"""CAMs of whole photos, made once and cut to the crops of a training."""

import torch
from mmengine.model import BaseModule
from torch import Tensor

from mmwsss.errors import InputError
from mmwsss.functional.history import read_history
from mmwsss.registry import MODELS

from ..batch import crop_geometry


@MODELS.register_module()
class CroppedCAMs(BaseModule):
    """Takes CAMs from the data samples instead of computing them in each step.

    A frozen network says the same of a photo each time it is asked. ``make_cams.py``
    asks once, ``mmwsss.LoadCAMs(cam_root=..., grid_size=...)`` and ``mmwsss.PackCAMs``
    bring the maps along, and here they are cut to the crop. Other than CAMs of the
    crop alone, these are normalised over the photo: a crop that shows the background
    has low values and not a peak of 1.

    Args:
        source: name of the encoder on whose grid the CAMs are wanted, the
            ``cam_refiner``'s.
    """

    needs_samples = True

    def __init__(self, *, source: str = 'clip') -> None:
        super().__init__()
        self.source = source

    def cams(
        self,
        encoded: dict,
        image_label: Tensor,
        valid: Tensor,
        *,
        encoders,
        max_classes: int | None = None,
        data_samples: list,
    ) -> Tensor:
        """CAMs (N, K, h, w) in [0, 1] on the grid of ``source``, absent classes zero.

        Args:
            encoded: encoder name -> ``Encoded``.
            image_label: (N, K).
            valid: (N, 1, H, W).
            encoders: not asked.
            max_classes: not needed.
            data_samples: with ``cams`` (K, G, G) of the whole photos.

        Raises:
            InputError: a sample has no CAMs, or they are on different grids.
        """
        maps = _stack_cams(data_samples).to(valid.device, non_blocking=True)
        affine = crop_geometry(data_samples, valid.shape[-2:], valid.device)
        cams = read_history(maps.float(), affine, encoded[self.source].grid)
        return cams * image_label[:, :, None, None]

    def losses(self, encoded: dict, image_label: Tensor, valid: Tensor) -> dict:
        """None: what is stored stays as it is."""
        return {}


def _stack_cams(data_samples: list) -> Tensor:
    """(N, K, G, G)."""
    sizes = {tuple(s.cams.shape) if 'cams' in s else None for s in data_samples}
    (size, *others) = sizes
    if others or size is None or size[-1] != size[-2]:
        raise InputError(
            'mmwsss.CroppedCAMs needs CAMs on equal square grids; put '
            'mmwsss.LoadCAMs(cam_root=..., grid_size=64) before the crop of the '
            'pipeline and pack with mmwsss.PackCAMs'
        )
    return torch.stack([sample.cams for sample in data_samples])
