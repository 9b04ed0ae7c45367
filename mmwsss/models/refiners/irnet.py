"""IRNet: class boundaries between pixels, and CAMs that walk between them.

Ahn et al., CVPR 2019. Trained by ``tools/train.py`` on stored IR labels; afterwards it
refines CAMs by a random walk that boundaries stop. Written from the paper and from how
the released code (MIT) behaves. Different here: any frozen backbone with maps at
several strides; any number of classes; losses and the mean displacement are those of
the joint batch of all processes; photos larger than the padding are not cut.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.functional import random_walk
from mmwsss.functional.inter_pixel import irn_loss_from_sums, irn_loss_sums
from mmwsss.functional.pseudo_label import resize_label
from mmwsss.registry import MODELS

from ..batch import valid_mask
from ..encoders.base import FrozenEncoder
from ..losses.reduce import all_reduce_sums
from .stored_cams import StoredCAMRefiner, resized

_FINE_STRIDE, _MIDDLE_STRIDE, _LARGEST_STRIDE = 4, 8, 16


@MODELS.register_module()
class IRNet(StoredCAMRefiner):
    """Boundary and displacement branches on the maps of a frozen backbone.

    Images are RGB in [0, 1] (data preprocessor with mean 0 and std 255); padding gets
    the mean colour, which the backbone sees as 0. Both outputs have a quarter of the
    image's size.

    Args:
        backbone: ``mmwsss.FrozenBackbone`` config.
        strides: of its maps, finest first: 4, 8 or 16 each, with at least one 4 and one
            coarser; the stem's in front where ``stem`` is given.
        displacement_channels: width of the displacement branch per map; multiples of 8.
        edge_channels: width of the boundary branch per map; a multiple of 4.
        stem: submodule of the backbone whose output is one more map, in front of the
            others, for example ``'maxpool'`` of a ResNet; None for none.
        radius: of the pairs that it learns from, in cells.
        momentum: of the mean displacement; early on it is the plain mean of the steps
            so far.
        strict_reference: learn from the published choice of pairs, see
            ``functional.affinity_labels``.
        walk_radius: see ``functional.random_walk``.
        walk_beta: see ``functional.random_walk``.
        walk_num_steps: see ``functional.random_walk``.
        cam_power: exponent on the maps before they walk; 1.3 in AMN, 1.5 in SIPE.
        background_threshold: the background's score after the walk, where the best map
            of a photo has the maximum 1. None lets the background's map walk with the
            others instead (SIPE).
        pad_size: photos are padded to this height and width before the backbone, since
            the group norms see the padding too; 512 as published. None pads to the next
            multiple of 16 only.
        data_preprocessor: MMSegmentation's, see above.
        init_cfg: MMEngine initialisation.

    Raises:
        ValueError: if an argument is outside its range.
        InputError: if the backbone is no frozen encoder or has other maps.
    """

    def __init__(
        self,
        *,
        backbone: dict,
        strides: Sequence[int],
        displacement_channels: Sequence[int],
        edge_channels: int = 32,
        stem: str | None = None,
        radius: int = 10,
        momentum: float = 0.99,
        strict_reference: bool = False,
        walk_radius: int = 5,
        walk_beta: float = 10.0,
        walk_num_steps: int = 256,
        cam_power: float = 1.0,
        background_threshold: float | None = 0.25,
        pad_size: int | None = 512,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if not 0 <= momentum < 1:
            raise ValueError(f'momentum must be in [0, 1), got {momentum}')
        if not cam_power > 0:
            raise ValueError(f'cam_power must be positive, got {cam_power}')
        if pad_size is not None and (pad_size < 1 or pad_size % _LARGEST_STRIDE):
            raise ValueError(f'pad_size must be a multiple of 16, got {pad_size}')
        self.backbone = MODELS.build(backbone)
        if not isinstance(self.backbone, FrozenEncoder):
            raise InputError(
                f'the backbone of IRNet is a {type(self.backbone).__name__}: wrap it '
                'in mmwsss.FrozenBackbone'
            )
        self.stem = stem
        self.radius = radius
        self.momentum = momentum
        self.strict_reference = strict_reference
        self.walk_radius = walk_radius
        self.walk_beta = walk_beta
        self.walk_num_steps = walk_num_steps
        self.cam_power = cam_power
        self.background_threshold = background_threshold
        self.pad_size = pad_size
        channels = self._probe(strides)
        self.edge = EdgeBranch(channels, width=edge_channels)
        self.displacement = DisplacementBranch(
            channels, strides=strides, widths=displacement_channels
        )
        self.register_buffer('mean_displacement', torch.zeros(2))
        self.register_buffer('num_updates', torch.zeros((), dtype=torch.int64))

    def _probe(self, strides: Sequence[int]) -> list[int]:
        """Channels of the maps; their strides must be the given ones."""
        known = (_FINE_STRIDE, _MIDDLE_STRIDE, _LARGEST_STRIDE)
        fine = [s for s in strides if s == _FINE_STRIDE]
        if sorted(strides) != list(strides) or set(strides) - set(known) or not fine:
            raise ValueError(
                f'strides must be 4, 8 and 16, finest first, got {tuple(strides)}'
            )
        if len(fine) == len(strides):
            raise ValueError(f'strides must have a coarser one, got {tuple(strides)}')
        side = 4 * _LARGEST_STRIDE
        maps = self.features(torch.zeros(1, 3, side, side))
        found = [side // m.shape[-1] for m in maps]
        if found != list(strides):
            raise InputError(
                f'the backbone of IRNet gives maps of strides {found}, but strides='
                f'{tuple(strides)}; correct strides, or out_indices, strides or '
                'unstride of the backbone'
            )
        return [m.shape[1] for m in maps]

    # --------------------------------------------------------------------- network
    def features(self, image: Tensor) -> list[Tensor]:
        """Maps of (N, 3, H, W) RGB in [0, 1], finest first; no gradient."""
        if self.stem is None:
            return list(self.backbone.encode(image).features)
        with _recorded(self.backbone.tower, self.stem) as recorded:
            maps = self.backbone.encode(image).features
        return [*recorded, *maps]

    def outputs(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boundary logits (N, 1, h, w) and displacements (N, 2, h, w), y then x.

        In eval mode the mean displacement is taken off, which leaves the centres.
        """
        maps = self.features(image)
        displacement = self.displacement(maps)
        if not self.training:
            mean = self.mean_displacement.to(displacement.dtype)
            displacement = displacement - mean.view(1, 2, 1, 1)
        return self.edge(maps), displacement

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> tuple | dict | list:
        """'loss' gives losses, 'predict' data samples with labels, 'tensor' outputs."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'tensor':
            return self.outputs(inputs)
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    # -------------------------------------------------------------------- training
    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Losses of one batch against its IR labels.

        Args:
            inputs: (N, 3, H, W) RGB in [0, 1], padded on the right and at the bottom.
            data_samples: with the IR label in ``gt_sem_seg``, 255 undecided.

        Returns:
            ``loss_boundary`` and ``loss_displacement`` of the joint batch of all
            processes, and the shares of the kinds of pairs for the log.
        """
        valid = valid_mask(data_samples, inputs.shape[-2:], inputs.device)
        image = torch.where(valid > 0, inputs, self.backbone.mean)
        logits, displacement = self.outputs(image)
        label = torch.cat([sample.gt_sem_seg.data for sample in data_samples])
        label = resize_label(label.to(logits.device), logits.shape[-2:])
        sums = irn_loss_sums(
            logits.float().sigmoid(),
            displacement,
            label,
            radius=self.radius,
            strict_reference=self.strict_reference,
        )
        sums = all_reduce_sums(sums)
        boundary, shift = irn_loss_from_sums(sums)
        self._update_mean(displacement.detach(), valid)
        pairs = sums[:3].detach() / sums[:3].detach().sum().clamp(min=1)
        return {
            'loss_boundary': boundary,
            'loss_displacement': shift,
            'pairs.background_share': pairs[0],
            'pairs.foreground_share': pairs[1],
            'pairs.different_share': pairs[2],
        }

    @torch.no_grad()
    def _update_mean(self, displacement: Tensor, valid: Tensor) -> None:
        """Move the mean over the photos' cells; no waiting for the device."""
        inside = F.interpolate(valid, displacement.shape[-2:], mode='nearest-exact')
        total = (displacement.float() * inside).sum((0, 2, 3))
        sums = all_reduce_sums(torch.cat([total, inside.sum().view(1)]))
        mean = sums[:2] / sums[2].clamp(min=1)
        self.num_updates += 1
        # A function of a buffer, so that a resume changes nothing.
        share = (1 / self.num_updates.float()).clamp(min=1 - self.momentum)
        self.mean_displacement.lerp_(mean, share)

    # ------------------------------------------------------------------- inference
    @torch.no_grad()
    def boundary(self, image: Tensor) -> Tensor:
        """Class boundaries of photos, the mean of both mirrored views.

        Args:
            image: (N, 3, H, W) RGB in [0, 1], any size.

        Returns:
            (N, 1, ceil(H / 4), ceil(W / 4)) in [0, 1].
        """
        size = [-(-side // _FINE_STRIDE) for side in image.shape[-2:]]
        views = self._padded(torch.cat([image, image.flip(-1)]))
        logits = self.edge(self.features(views))[..., : size[0], : size[1]].float()
        straight, mirrored = logits.chunk(2)
        return ((straight + mirrored.flip(-1)) / 2).sigmoid()

    def _padded(self, image: Tensor) -> Tensor:
        sides = [
            max(self.pad_size or 0, -(-side // _LARGEST_STRIDE) * _LARGEST_STRIDE)
            for side in image.shape[-2:]
        ]
        padded = self.backbone.mean.expand(len(image), -1, *sides).to(image.dtype)
        padded = padded.contiguous()
        padded[..., : image.shape[-2], : image.shape[-1]] = image
        return padded

    @torch.no_grad()
    def refine(self, image: Tensor, scores: Tensor, image_label: Tensor) -> Tensor:
        """Scores after the random walk.

        Args:
            image: (N, 3, H, W) RGB in [0, 1].
            scores: (N, C, h, w) in [0, 1], channel 0 background; with a
                ``background_threshold`` channel 0 is not read.
            image_label: (N, K) 0/1; absent classes are cleared.

        Returns:
            (N, C, H, W) in [0, 1]; the best channel of a photo that walked has the
            maximum 1.
        """
        height, width = image.shape[-2:]
        boundary = self.boundary(image)
        grid = boundary.shape[-2:]
        cleared = scores[:, 1:].float() * image_label[:, :, None, None]
        if self.background_threshold is None:
            cleared = torch.cat([scores[:, :1].float(), cleared], dim=1)
        walked = random_walk(
            resized(cleared, grid).clamp(min=0) ** self.cam_power,
            boundary,
            radius=self.walk_radius,
            beta=self.walk_beta,
            num_steps=self.walk_num_steps,
        )
        walked = resized(walked, [side * _FINE_STRIDE for side in grid])
        walked = walked[..., :height, :width]
        walked = walked / walked.amax((1, 2, 3), keepdim=True).clamp(min=1e-5)
        if self.background_threshold is None:
            return walked
        background = torch.full_like(walked[:, :1], self.background_threshold)
        return torch.cat([background, walked], dim=1)


class EdgeBranch(nn.Module):
    """Boundary logits from all maps, at the resolution of the finest.

    Args:
        channels: of the maps.
        width: of each map's part.
    """

    def __init__(self, channels: Sequence[int], *, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_projection(c, width, groups=4) for c in channels)
        self.join = nn.Conv2d(width * len(channels), 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, D_l, h_l, w_l) each -> (N, 1, h, w)."""
        size = maps[0].shape[-2:]
        parts = [
            resized(part(m), size).relu()
            for part, m in zip(self.parts, maps, strict=True)
        ]
        return self.join(torch.cat(parts, dim=1))


class DisplacementBranch(nn.Module):
    """Displacements to the object's centre: coarse maps are joined first.

    Args:
        channels: of the maps.
        strides: of the maps.
        widths: of each map's part.
    """

    WIDTH = 256

    def __init__(
        self, channels: Sequence[int], *, strides: Sequence[int], widths: Sequence[int]
    ) -> None:
        super().__init__()
        if len(widths) != len(channels):
            raise ValueError(
                f'displacement_channels must have {len(channels)} numbers, one per '
                f'map, got {tuple(widths)}'
            )
        self.num_fine = sum(s == _FINE_STRIDE for s in strides)
        self.parts = nn.ModuleList(
            _projection(c, w, groups=_groups(w))
            for c, w in zip(channels, widths, strict=True)
        )
        fine, coarse = sum(widths[: self.num_fine]), sum(widths[self.num_fine :])
        groups = _groups(self.WIDTH)
        self.join_coarse = _projection(coarse, self.WIDTH, groups=groups)
        self.join = _projection(fine + self.WIDTH, self.WIDTH, groups=groups)
        self.last = nn.Conv2d(self.WIDTH, 2, 1, bias=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, D_l, h_l, w_l) each -> (N, 2, h, w)."""
        parts = [part(m) for part, m in zip(self.parts, maps, strict=True)]
        fine, coarse = parts[: self.num_fine], parts[self.num_fine :]
        middle_size = coarse[0].shape[-2:]
        coarse = [resized(part, middle_size).relu() for part in coarse]
        joined = resized(self.join_coarse(torch.cat(coarse, 1)), fine[0].shape[-2:])
        fine = [part.relu() for part in fine]
        together = self.join(torch.cat([*fine, joined.relu()], dim=1))
        return self.last(together.relu())


def _projection(channels: int, width: int, *, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width)
    )


def _groups(width: int) -> int:
    return max(1, min(16, width // 8))


@contextmanager
def _recorded(tower: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """Collect the output of a submodule inside the block."""
    modules: Mapping[str, nn.Module] = dict(tower.named_modules())
    if name not in modules:
        raise InputError(
            f"stem names '{name}', which the backbone has not; its parts are "
            f'{[child for child, _ in tower.named_children()]}'
        )
    recorded = []
    handle = modules[name].register_forward_hook(
        # A copy, should the next layer work in place.
        lambda module, inputs, output: recorded.append(output.clone())
    )
    try:
        yield recorded
    finally:
        handle.remove()
