"""AffinityNet (PSA): how alike neighbouring cells are, and CAMs that walk among them.

Ahn and Kwak, CVPR 2018. Trained by ``tools/train.py`` on stored labels of what is sure
(``make_pseudo_labels.py --ir``); afterwards it refines CAMs by a random walk. Photos
without any object are background for sure everywhere: with them it sees what stands
beside the objects elsewhere. Written from the formulas; different here: any frozen
backbone, any number of classes, the loss is that of the joint batch of all processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.functional import affinity_walk, feature_pair_affinity
from mmwsss.functional.inter_pixel import pair_loss_from_sums, psa_loss_sums
from mmwsss.functional.pseudo_label import resize_label
from mmwsss.registry import MODELS

from ..batch import valid_mask
from ..encoders.base import FrozenEncoder
from ..losses.reduce import all_reduce_sums
from .stored_cams import StoredCAMRefiner, resized

_LARGEST_STRIDE = 32


@MODELS.register_module()
class AffinityNet(StoredCAMRefiner):
    """Features whose distance is the affinity, on the maps of a frozen backbone.

    Images are RGB in [0, 1] (data preprocessor with mean 0 and std 255); padding gets
    the mean colour.

    Args:
        backbone: ``mmwsss.FrozenBackbone`` config; any of its maps take part.
        channels: width of each map's part of the features.
        stride: of the grid that the affinity lives on, in pixels; 8 in the released
            code, 16 costs a quarter of the pairs.
        radius: of the pairs, in cells, in training and in the walk.
        beta: see ``functional.affinity_walk``.
        num_steps: see ``functional.affinity_walk``.
        cam_power: exponent on the maps before they walk.
        background_threshold: the background's score after the walk, where the maximum
            of each class is 1. None lets the background's map walk with the others
            instead, and nothing is normalised.
        data_preprocessor: MMSegmentation's, see above.
        init_cfg: MMEngine initialisation.

    Raises:
        ValueError: if an argument is outside its range.
        InputError: if the backbone is no frozen encoder or has another number of maps.
    """

    def __init__(
        self,
        *,
        backbone: dict,
        channels: Sequence[int] = (64, 128, 256),
        stride: int = 8,
        radius: int = 5,
        beta: float = 8.0,
        num_steps: int = 256,
        cam_power: float = 1.0,
        background_threshold: float | None = 0.25,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if stride < 1 or radius < 2:
            raise ValueError(
                f'stride must be at least 1 and radius 2, got {stride} and {radius}'
            )
        if not cam_power > 0:
            raise ValueError(f'cam_power must be positive, got {cam_power}')
        self.backbone = MODELS.build(backbone)
        if not isinstance(self.backbone, FrozenEncoder):
            raise InputError(
                f'the backbone of AffinityNet is a {type(self.backbone).__name__}: '
                'wrap it in mmwsss.FrozenBackbone'
            )
        depths = self.backbone.feature_channels
        if len(depths) != len(channels):
            raise InputError(
                f'the backbone of AffinityNet gives {len(depths)} maps, but channels='
                f'{tuple(channels)}; give one number per map, or correct out_indices'
            )
        self.stride = stride
        self.radius = radius
        self.beta = beta
        self.num_steps = num_steps
        self.cam_power = cam_power
        self.background_threshold = background_threshold
        self.parts = nn.ModuleList(
            nn.Conv2d(depth, width, 1, bias=False)
            for depth, width in zip(depths, channels, strict=True)
        )
        self.join = nn.Conv2d(sum(channels), sum(channels), 1, bias=False)

    # --------------------------------------------------------------------- network
    def features(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] -> (N, D, ceil(H / stride), ceil(W / stride))."""
        size = [-(-side // self.stride) for side in image.shape[-2:]]
        maps = self.backbone.encode(image).features
        parts = [
            nn.functional.elu(resized(part(m), size))
            for part, m in zip(self.parts, maps, strict=True)
        ]
        return nn.functional.elu(self.join(torch.cat(parts, dim=1)))

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> Tensor | dict | list:
        """'loss' gives losses, 'predict' samples with labels, 'tensor' features."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'tensor':
            return self.features(inputs)
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}")

    # -------------------------------------------------------------------- training
    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Loss of one batch against its labels.

        Args:
            inputs: (N, 3, H, W) RGB in [0, 1], padded on the right and at the bottom.
            data_samples: with the label in ``gt_sem_seg``, 255 undecided.

        Returns:
            ``loss_affinity`` of the joint batch of all processes, and the shares of the
            kinds of pairs for the log.
        """
        valid = valid_mask(data_samples, inputs.shape[-2:], inputs.device)
        features = self.features(torch.where(valid > 0, inputs, self.backbone.mean))
        label = torch.cat([sample.gt_sem_seg.data for sample in data_samples])
        label = resize_label(label.to(features.device), features.shape[-2:])
        sums = all_reduce_sums(psa_loss_sums(features, label, radius=self.radius))
        pairs = sums[:3].detach() / sums[:3].detach().sum().clamp(min=1)
        return {
            'loss_affinity': pair_loss_from_sums(sums),
            'pairs.background_share': pairs[0],
            'pairs.foreground_share': pairs[1],
            'pairs.different_share': pairs[2],
        }

    # ------------------------------------------------------------------- inference
    @torch.no_grad()
    def affinity(self, image: Tensor) -> Tensor:
        """Affinity of the neighbouring cells of photos.

        Args:
            image: (N, 3, H, W) RGB in [0, 1], any size.

        Returns:
            (N, directions, ceil(H / stride), ceil(W / stride)) in [0, 1].
        """
        height, width = image.shape[-2:]
        sides = [
            -(-side // _LARGEST_STRIDE) * _LARGEST_STRIDE for side in image.shape[-2:]
        ]
        padded = (
            self.backbone.mean.expand(len(image), -1, *sides).to(image.dtype).clone()
        )
        padded[..., :height, :width] = image
        features = self.features(padded).float()
        rows, columns = -(-height // self.stride), -(-width // self.stride)
        return feature_pair_affinity(features[..., :rows, :columns], radius=self.radius)

    @torch.no_grad()
    def refine(self, image: Tensor, scores: Tensor, image_label: Tensor) -> Tensor:
        """Scores after the random walk.

        Args:
            image: (N, 3, H, W) RGB in [0, 1].
            scores: (N, C, h, w) in [0, 1], channel 0 background; with a
                ``background_threshold`` channel 0 is not read.
            image_label: (N, K) 0/1; absent classes are cleared.

        Returns:
            (N, C, H, W) in [0, 1]; with a ``background_threshold`` the maximum of each
            class that walked is 1.
        """
        height, width = image.shape[-2:]
        affinity = self.affinity(image)
        grid = affinity.shape[-2:]
        cams = scores[:, 1:].float() * image_label[:, :, None, None]
        if self.background_threshold is None:
            cams = torch.cat([scores[:, :1].float(), cams], dim=1)
        walked = affinity_walk(
            resized(cams, grid).clamp(min=0) ** self.cam_power,
            affinity,
            radius=self.radius,
            beta=self.beta,
            num_steps=self.num_steps,
        )
        walked = resized(walked, [side * self.stride for side in grid])
        walked = walked[..., :height, :width]
        if self.background_threshold is None:
            return walked
        walked = walked / walked.amax((2, 3), keepdim=True).clamp(min=1e-5)
        background = torch.full_like(walked[:, :1], self.background_threshold)
        return torch.cat([background, walked], dim=1)
