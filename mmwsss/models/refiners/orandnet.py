"""ORANDNet: from what either classifier sees to what both see.

From the poster (AAAI-24 workshop) and from how the released code behaves; its authors'
repository has no licence, and nothing was taken from it. A network sees the OR of two
classifiers' CAMs and learns their AND, one class at a time and all classes alike; the
photo itself it does not see. Different here: losses, sizes, see ``ORANDNet``.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor

from mmwsss.errors import InputError
from mmwsss.functional import fuse_cams, normalize_cams, soft_target_loss
from mmwsss.functional.fusion import LOSSES
from mmwsss.registry import MODELS

from ..losses.reduce import all_reduce_sums


@MODELS.register_module()
class ORANDNet(BaseModel):
    """A class-agnostic network from the OR of several CAMs to their AND.

    Trained on stored CAMs (``mmwsss.LoadCAMStores``) of the photos' own classes; a
    photo without classes is legal and contributes nothing. Every photo goes through
    the network at its own size, so that neither the padding of a batch nor the other
    photos in it change anything; the images of a batch are used for nothing.

    Args:
        network: config of a module (M, 1, H, W) -> logits (M, 1, H, W), for example
            ``mmwsss.LightUNet`` or, as published, ``mmwsss.VGGFCN8s``.
        offsets: added to each classifier's CAMs before they are joined
            (``functional.calibrate``), one per store; None adds nothing.
        clip: see ``functional.calibrate``; False as released.
        loss_mode: 'bce', where the sigmoid is the prediction, or 'soft_ce' as released,
            see ``functional.soft_target_loss``; its predictions are cut at 0 and
            divided by their maximum.
        stride: pixels per cell of the maps that the network sees, 1 as published; 4 is
            the grid of the stores.
        data_preprocessor: MMSegmentation's.
        init_cfg: MMEngine initialisation.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        *,
        network: dict,
        offsets: Sequence[float] | None = None,
        clip: bool = True,
        loss_mode: str = 'bce',
        stride: int = 1,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if loss_mode not in LOSSES:
            raise ValueError(f'loss_mode must be one of {LOSSES}, got {loss_mode!r}')
        if stride < 1:
            raise ValueError(f'stride must be at least 1, got {stride}')
        if offsets is not None and len(offsets) < 2:
            raise ValueError(
                f'offsets must hold one number per classifier, got {tuple(offsets)}'
            )
        self.network = MODELS.build(network)
        self.offsets = None if offsets is None else tuple(offsets)
        self.clip = clip
        self.loss_mode = loss_mode
        self.stride = stride

    # ------------------------------------------------------------------ one photo
    def logits(self, maps: Tensor) -> Tensor:
        """Logits (P, H, W) of OR maps (P, H, W), each by itself."""
        found = self.network(maps[:, None])
        if found.shape != (len(maps), 1, *maps.shape[1:]):
            raise InputError(
                f'the network of ORANDNet made {tuple(found.shape)} of maps '
                f'{(len(maps), 1, *maps.shape[1:])}; it must return one channel of the '
                'same size'
            )
        return found[:, 0]

    def joined(self, sources: Tensor, mode: str) -> Tensor:
        """The 'or' or 'and' (P, H, W) of CAMs (S, P, H, W) with their offsets."""
        return fuse_cams(
            sources.unbind(), mode=mode, offsets=self.offsets, clip=self.clip
        )

    def photo_loss(self, sources: Tensor) -> Tensor:
        """Loss of one photo's CAMs (S, P, H, W), P present classes."""
        logits = self.logits(self.joined(sources, 'or'))
        return soft_target_loss(
            logits, self.joined(sources, 'and'), mode=self.loss_mode
        )

    @torch.no_grad()
    def predicted(self, maps: Tensor) -> Tensor:
        """Refined CAMs (P, H, W) in [0, 1] of OR maps (P, H, W)."""
        if not maps.numel():
            return maps
        logits = self.logits(maps).float()
        if self.loss_mode == 'bce':
            return logits.sigmoid()
        return normalize_cams(logits[None])[0]

    @torch.no_grad()
    def fused(self, sources: Tensor, size: tuple[int, int]) -> Tensor:
        """CAMs of one photo from those of its classifiers.

        Args:
            sources: (S, P, h, w) in [0, 1], the P classes that the photo shows.
            size: (height, width) of the photo.

        Returns:
            (P, ceil(H / stride), ceil(W / stride)) in [0, 1] on the network's device.
        """
        self._check_sources(sources)
        sources = sources.to(next(self.parameters()))
        return self.predicted(self.joined(_resized(sources, self._grid(size)), 'or'))

    def _grid(self, size: Sequence[int]) -> tuple[int, int]:
        height, width = (-(-int(side) // self.stride) for side in size)
        return height, width

    def _check_sources(self, sources: Tensor) -> None:
        wanted = 2 if self.offsets is None else len(self.offsets)
        enough = len(sources) >= 2 if self.offsets is None else len(sources) == wanted
        if not enough:
            raise InputError(
                f'ORANDNet joins the CAMs of {wanted} classifiers, got those of '
                f'{len(sources)}; give as many CAM stores as its config has offsets'
            )

    # ------------------------------------------------------------- MMEngine's modes
    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> dict | list | Tensor:
        """'loss' gives losses, 'predict' the samples with CAMs, 'tensor' logits.

        Args:
            inputs: images (N, 3, H, W), not looked at; for 'tensor' OR maps (P, H, W).
            data_samples: with ``image_label`` and ``cam_sources``.
            mode: see above.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'tensor':
            return self.logits(inputs)
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Mean over the photos with classes, of all processes together.

        Args:
            inputs: images (N, 3, H, W), padded; not looked at.
            data_samples: with ``image_label`` (K,), ``cam_sources`` (S, K, h, w) and
                ``img_shape``.
        """
        losses = []
        for sample in data_samples:
            sources = self._sources(sample)
            if sources.shape[1]:
                grid = self._grid(sample.img_shape)
                losses.append(self.photo_loss(_resized(sources, grid)))
        if losses:
            total = torch.stack(losses).sum()
        else:
            # DDP waits for a gradient of every parameter.
            total = 0 * self.logits(inputs.new_zeros(1, 8, 8)).sum()
        count = total.new_tensor(float(len(losses)))
        total, count = all_reduce_sums(torch.stack([total, count]))
        return {f'loss_{self.loss_mode}': total / count.clamp(min=1)}

    def _sources(self, sample) -> Tensor:
        """CAMs (S, P, h, w) of the classes that the photo shows."""
        if 'cam_sources' not in sample:
            raise InputError(
                'ORANDNet joins stored CAMs, but the data samples hold none; put '
                'mmwsss.LoadCAMStores into the pipeline and pack with '
                'mmwsss.PackCAMStores'
            )
        self._check_sources(sample.cam_sources)
        sources = sample.cam_sources.to(next(self.parameters()))
        return sources[:, sample.image_label.to(sources.device) > 0]

    def predict(self, inputs: Tensor, data_samples: list) -> list:
        """Add ``cams`` (K, H, W) at ``ori_shape``, absent classes 0.

        Args:
            inputs: not looked at.
            data_samples: as for ``loss``, with ``ori_shape``.
        """
        for sample in data_samples:
            size = tuple(sample.ori_shape[:2])
            found = _resized(self.fused(self._sources(sample), size), size)
            cams = found.new_zeros(len(sample.image_label), *size)
            cams[sample.image_label.to(cams.device) > 0] = found
            sample.set_field(cams, 'cams', dtype=Tensor)
        return data_samples

    # ------------------------------------------------------------ among the refiners
    @torch.no_grad()
    def refine(self, image: Tensor, scores: Tensor, image_label: Tensor) -> Tensor:
        """Refine OR maps (``tools/fuse_cams.py --mode or``, with these offsets).

        Args:
            image: (N, 3, H, W); its size alone is used.
            scores: (N, C, h, w) in [0, 1], channel 0 background.
            image_label: (N, K) 0/1; absent classes are cleared.

        Returns:
            (N, C, H, W) in [0, 1]; the background is the one given.
        """
        size = tuple(image.shape[-2:])
        refined = _resized(scores.float(), size) * F.pad(
            image_label > 0, (1, 0), value=True
        )[:, :, None, None].to(scores.device)
        maps = _resized(scores[:, 1:].float(), self._grid(size))
        for number, present in enumerate(image_label > 0):
            predicted = self.predicted(maps[number][present])
            refined[number, 1:][present] = _resized(predicted, size)
        return refined


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(..., h, w) at another resolution."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if not maps.numel():
        return maps.new_zeros(*maps.shape[:-2], *size)
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    flat = F.interpolate(flat, tuple(size), mode='bilinear', align_corners=False)
    return flat.view(*maps.shape[:-2], *size)
