"""Encoder-decoders from one map to another of the same size, plain torch."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmwsss.checkpoints import download
from mmwsss.registry import MODELS

from ..encoders.weights import load_exactly, read_weights


@MODELS.register_module()
class LightUNet(BaseModule):
    """A small U-Net: (M, 1, H, W) -> logits (M, 1, H, W), any size from one pixel.

    No norm layers: how high a map is belongs to what is to be learnt, and a map is
    answered alike whatever stands beside it.

    Args:
        widths: channels of each resolution, each half the one before.
        init_cfg: MMEngine initialisation.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 32, 64, 128),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not widths or min(widths) < 1:
            raise ValueError(f'widths must be positive numbers, got {tuple(widths)}')
        before = (1, *widths[:-1])
        self.down = nn.ModuleList(
            _two_convs(a, b) for a, b in zip(before, widths, strict=True)
        )
        self.up = nn.ModuleList(
            _two_convs(fine + coarse, fine) for fine, coarse in pairwise(widths)
        )
        self.last = nn.Conv2d(widths[0], 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(M, 1, H, W) -> (M, 1, H, W)."""
        stages = []
        for number, block in enumerate(self.down):
            if number:
                maps = F.max_pool2d(maps, 2, ceil_mode=True)
            maps = block(maps)
            stages.append(maps)
        for block, skip in zip(reversed(self.up), reversed(stages[:-1]), strict=True):
            maps = F.interpolate(
                maps, skip.shape[-2:], mode='bilinear', align_corners=False
            )
            maps = block(torch.cat([skip, maps], dim=1))
        return self.last(maps)


def _two_convs(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1),
        nn.ReLU(inplace=True),
    )


@MODELS.register_module()
class VGGFCN8s(BaseModule):
    """FCN-8s on VGG16 (Long et al., CVPR 2015) from one channel to one, 134 M.

    The network of ORANDNet. The crops that bring its branches together are those of
    the geometry, each axis by itself; the released code takes the crop of the height
    for the width as well.

    Args:
        weights: torchvision's VGG16 (file or URL), read by ``init_weights``; all of it
            but the first convolution, which has another number of channels. None
            starts at random.
        widths: channels of the five blocks; others than VGG16's are for tests.
        fc_channels: of the two layers behind them.
        dropout_ratio: of whole channels, after each of those two.
        init_cfg: MMEngine initialisation.
    """

    DEPTHS = (2, 2, 3, 3, 3)
    # Where the first pixel of a branch lies in the next finer one, as the strides,
    # kernels and the padding of 100 make it.
    CROPS = (5, 9, 31)

    def __init__(
        self,
        *,
        weights: str | None = None,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        fc_channels: int = 4096,
        dropout_ratio: float = 0.5,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if len(widths) != len(self.DEPTHS):
            raise ValueError(f'widths must be five numbers, got {tuple(widths)}')
        self.weights = weights
        before = (1, *widths[:-1])
        self.blocks = nn.ModuleList(
            _vgg_block(a, b, depth, padding=100 if first else 1)
            for a, b, depth, first in zip(
                before, widths, self.DEPTHS, (True, *[False] * 4), strict=True
            )
        )
        self.fc6 = nn.Conv2d(widths[-1], fc_channels, 7)
        self.fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
        self.dropout = nn.Dropout2d(dropout_ratio)
        self.scores = nn.ModuleList(
            nn.Conv2d(channels, 1, 1) for channels in (fc_channels, *widths[3:1:-1])
        )
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(1, 1, 2 * stride, stride=stride, bias=False)
            for stride in (2, 2, 8)
        )
        for score in self.scores:
            nn.init.xavier_normal_(score.weight)
            nn.init.zeros_(score.bias)
        for up in self.ups:
            up.weight.data.copy_(_bilinear_kernel(up.kernel_size[0]))

    def init_weights(self) -> None:
        """MMEngine's initialisation, then VGG16's ImageNet weights.

        Raises:
            InputError: if the file is missing or is no VGG16.
        """
        super().init_weights()
        if self.weights is None:
            return
        path = self.weights
        if path.startswith(('http://', 'https://')):
            path = download(path)
        tensors = read_weights(path, how_to_get="give torchvision's vgg16 weights")
        load_exactly(self, self._completed(tensors), path=path, what="'VGGFCN8s'")
        MMLogger.get_current_instance().info(f"VGGFCN8s got the weights of '{path}'")

    def _completed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """VGG16's tensors under our names, and our own where it has none."""
        own = self.state_dict()
        known = self._torchvision_names()
        content = {}
        for name, values in tensors.items():
            ours = known.get(name, name)
            # Its layers of 4096 were linear ones.
            fits = ours in own and values.numel() == own[ours].numel()
            content[ours] = values.view_as(own[ours]) if fits else values
        for name in ('classifier.6.weight', 'classifier.6.bias'):
            content.pop(name, None)
        kept = ('scores.', 'ups.', 'blocks.0.0.')
        return content | {n: v for n, v in own.items() if n.startswith(kept)}

    def _torchvision_names(self) -> dict[str, str]:
        """Names of torchvision's VGG16 -> ours."""
        names, position = {}, 0
        for number, depth in enumerate(self.DEPTHS):
            for layer in range(depth):
                # A ReLU follows each convolution.
                names[f'features.{position}'] = f'blocks.{number}.{2 * layer}'
                position += 2
            position += 1  # the pooling
        names.update({'classifier.0': 'fc6', 'classifier.3': 'fc7'})
        return {
            f'{theirs}.{kind}': f'{ours}.{kind}'
            for theirs, ours in names.items()
            for kind in ('weight', 'bias')
        }

    def forward(self, maps: Tensor) -> Tensor:
        """(M, 1, H, W) -> (M, 1, H, W)."""
        pooled, values = [], maps
        for block in self.blocks:
            values = F.max_pool2d(block(values), 2, ceil_mode=True)
            pooled.append(values)
        values = self.dropout(self.fc6(values).relu())
        values = self.scores[0](self.dropout(self.fc7(values).relu()))
        finer = [self.scores[1](pooled[3]), self.scores[2](pooled[2])]
        for up, skip, crop in zip(self.ups[:2], finer, self.CROPS[:2], strict=True):
            values = up(values)
            values = values + _cropped(skip, crop, values.shape[-2:])
        return _cropped(self.ups[2](values), self.CROPS[2], maps.shape[-2:])


def _vgg_block(before: int, after: int, depth: int, *, padding: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [
            nn.Conv2d(
                after if number else before, after, 3, padding=1 if number else padding
            ),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _bilinear_kernel(side: int) -> Tensor:
    """(1, 1, side, side) that a transposed convolution interpolates with."""
    place = torch.arange(side, dtype=torch.float32)
    ramp = 1 - (place - (side - 1) / 2).abs() / (side / 2)
    return (ramp[:, None] * ramp)[None, None]


def _cropped(values: Tensor, start: int, size: Sequence[int]) -> Tensor:
    height, width = size
    return values[..., start : start + height, start : start + width]
