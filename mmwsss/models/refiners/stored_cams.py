"""A trained refiner judged on stored CAMs: what the tools and the metrics ask of it."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from torch import Tensor

from mmwsss.errors import InputError


class StoredCAMRefiner(BaseModel):
    """A network that refines CAMs and labels the samples that bring some.

    A subclass writes ``refine`` and has ``background_threshold``, the score of the
    background behind it, or None where the CAMs bring a background of their own.
    """

    background_threshold: float | None

    def refine(self, image: Tensor, scores: Tensor, image_label: Tensor) -> Tensor:
        """(N, 3, H, W), (N, C, h, w), (N, K) -> (N, C, H, W)."""
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: list) -> list:
        """Add ``pred_sem_seg`` at ``ori_shape``: labels of the samples' stored CAMs.

        Args:
            inputs: (N, 3, H, W) RGB in [0, 1].
            data_samples: with ``image_label`` and what ``mmwsss.LoadCAMs`` loads.
        """
        for image, sample in zip(inputs, data_samples, strict=True):
            if 'cams' not in sample:
                raise InputError(
                    f'{type(self).__name__} refines CAMs, but the data samples hold '
                    'none; put mmwsss.LoadCAMs into the pipeline and pack with '
                    'mmwsss.PackCAMs'
                )
            height, width = sample.img_shape[:2]
            scores = self._stored_scores(sample).to(inputs.device)
            refined = self.refine(
                image[None, :, :height, :width],
                scores[None],
                sample.image_label[None].to(inputs.device),
            )
            label = resized(refined, tuple(sample.ori_shape[:2])).argmax(1)
            sample.pred_sem_seg = PixelData(data=label)
        return data_samples

    def _stored_scores(self, sample) -> Tensor:
        if 'cam_background' in sample:
            return torch.cat([sample.cam_background, sample.cams])
        if self.background_threshold is None:
            raise InputError(
                f'the stored CAMs of {sample.metainfo.get("img_id")} have no '
                'background of their own, and background_threshold of '
                f'{type(self).__name__} is None; set it, for example to 0.25'
            )
        return torch.cat([torch.zeros_like(sample.cams[:1]), sample.cams])


def resized(maps: Tensor, size) -> Tensor:
    """Maps (N, C, h, w) at another resolution, bilinear."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode='bilinear', align_corners=False)
