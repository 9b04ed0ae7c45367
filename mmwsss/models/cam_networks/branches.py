"""Two ways to see a photo, with one result: a convolutional and a transformer branch.

The parts of ``CrossArch``. A branch takes RGB in [0, 1] and normalises by itself,
since two pretrained backbones need not agree on that.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.functional import (
    class_gradients,
    correlate_maps,
    grad_cam_maps,
    layer_cam_maps,
)
from mmwsss.functional.prototype import full_precision
from mmwsss.registry import MODELS

from ..encoders.base import IMAGENET_MEAN, IMAGENET_STD
from ..encoders.vit import tokens_to_map
from .trained_backbone import build_backbone, load_backbone, probe_output
from .vit_access import in_whole_patches, patch_side, recorded_grids

HEADS = ('cls_token', 'patch')
_LAYER_RULES = dict(grad=grad_cam_maps, layer=layer_cam_maps)


@dataclass
class Seen:
    """What a branch says about N images.

    Attributes:
        scores: (N, K), logits, float32 or wider.
        features: (N, D, h, w), the deepest ones.
        class_maps: (N, K, h, w), what each cell says about the classes, unbounded.
    """

    scores: Tensor
    features: Tensor
    class_maps: Tensor


class CAMBranch(BaseModule):
    """A backbone with a linear classifier (1 x 1, without bias) on its cells.

    Args:
        backbone: config of an mmpretrain or MMSegmentation backbone; its last output
            is used.
        num_classes: K, foreground classes.
        weights: local file or URL with the backbone's pretrained weights, loaded by
            ``init_weights``; None leaves it to the backbone's ``init_cfg``.
        prefix: start of the backbone's names in ``weights``.
        unstride: submodules of the backbone that get stride 1.
        mean: image mean of the backbone, RGB, 0..255.
        std: image standard deviation, RGB, 0..255.
        grad_layers: submodules of the backbone that CAMs from gradients look at, each
            with maps (N, D, h, w) or tokens (N, T, D); '' is the backbone's output.
            None is the branch's own choice.
        init_cfg: MMEngine initialisation.

    Raises:
        InputError: if the backbone cannot be built, or cannot give what is asked for.
    """

    # The kind of maps that the branch alone is best asked for.
    default_kind = 'direct'

    def __init__(
        self,
        *,
        backbone: Mapping,
        num_classes: int,
        weights: str | None = None,
        prefix: str = 'backbone.',
        unstride: Sequence[str] = (),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        grad_layers: Sequence[str] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.weights = weights
        self.prefix = prefix
        self.backbone = build_backbone(backbone, unstride=unstride)
        self.channels, self.gives_tokens = probe_output(self.backbone)
        self.classifier = nn.Conv2d(self.channels, num_classes, 1, bias=False)
        for name, values in (('mean', mean), ('std', std)):
            values = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) / 255
            self.register_buffer(name, values, persistent=False)
        self.grad_layers = self._grad_layers(grad_layers)

    def _default_layer(self) -> str:
        # Behind the last attention a class token has no gradient to the patches.
        last = len(getattr(self.backbone, 'layers', ())) - 1
        return f'layers.{last}.ln1' if self.gives_tokens else ''

    def _grad_layers(self, names: Sequence[str] | None) -> tuple[str, ...]:
        names = (self._default_layer(),) if names is None else tuple(names)
        if not names:
            raise ValueError('grad_layers must name one layer or more, got none')
        for name in names:
            if name not in dict(self.backbone.named_modules()):
                parts = [child for child, _ in self.backbone.named_children()]
                raise InputError(
                    f'grad_layers names {name!r}, which '
                    f'{type(self.backbone).__name__} has not; its parts are {parts}'
                )
        return names

    def init_weights(self) -> None:
        """MMEngine's initialisation, then the backbone's pretrained weights."""
        super().init_weights()
        if self.weights is not None:
            load_backbone(self.backbone, self.weights, prefix=self.prefix)

    def forward(self, image: Tensor, valid: Tensor | None = None) -> Seen:
        """See images.

        Args:
            image: (N, 3, H, W) RGB in [0, 1].
            valid: (N, 1, H, W) 0/1; what is padding gets the mean colour.
        """
        if valid is not None:
            image = torch.where(valid > 0, image, self.mean)
        if self.gives_tokens:
            image = in_whole_patches(image, patch_side(self.backbone))
        return self._see((image - self.mean) / self.std)

    def _see(self, image: Tensor) -> Seen:
        raise NotImplementedError

    # ------------------------------------------------------------------- gradients
    def explained(
        self, image: Tensor, classes: Tensor, kinds: Sequence[str]
    ) -> tuple[Seen, dict[str, list[Tensor]]]:
        """Maps that the gradients of the classes' scores at each layer give.

        Args:
            image: (N, 3, H, W) RGB in [0, 1].
            classes: (M,), M >= 1, indices of classes.
            kinds: 'grad' for Grad-CAM, 'layer' for LayerCAM.

        Returns:
            What the branch says, and kind -> (N, M, h, w) >= 0 of each layer.

        Raises:
            InputError: if a layer has no cells, or its cells no part in the scores.
        """
        with torch.enable_grad(), self._recorded_layers() as recorded:
            seen = self(image)
        unused = [name for name in self.grad_layers if name not in recorded]
        if unused:
            raise InputError(f'the layer {unused[0]!r} takes no part in CAMs')
        gradients = class_gradients(
            seen.scores, [recorded[name] for name in self.grad_layers], classes
        )
        maps: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        for name, gradient in zip(self.grad_layers, gradients, strict=True):
            values = recorded[name].detach()
            is_map = values.ndim == 4
            grid = tuple((values if is_map else seen.features).shape[2:])
            cells = _cells(values, grid, is_map=is_map)
            slopes = _cells(gradient, grid, is_map=is_map)
            if cells.shape[1] != grid[0] * grid[1]:
                raise self._no_cells(name)
            if not slopes.any():
                raise self._no_gradient(name)
            for kind in kinds:
                found = _LAYER_RULES[kind](cells, slopes)  # (M, N, P)
                maps[kind].append(found.transpose(0, 1).unflatten(2, grid))
        parts = (seen.scores, seen.features, seen.class_maps)
        return Seen(*(part.detach() for part in parts)), maps

    def _no_gradient(self, name: str) -> InputError:
        hint = f', such as {self._default_layer()!r}' if self.gives_tokens else ''
        return InputError(
            f'the gradients at the layer {name!r} are all 0: its cells have no part in '
            'the scores (behind the last attention only the class token has), so name '
            f'an earlier layer in grad_layers{hint}'
        )

    @contextmanager
    def _recorded_layers(self) -> Iterator[dict[str, Tensor]]:
        """Collect what ``grad_layers`` give, with gradients to them."""
        recorded = {}

        def recorder(name: str):
            def record(module: nn.Module, inputs: tuple, output: Tensor | Sequence):
                several = isinstance(output, (tuple, list))
                values = output[-1] if several else output
                if not isinstance(values, Tensor) or values.ndim not in (3, 4):
                    raise self._no_cells(name)
                if not values.requires_grad:
                    values.requires_grad_()
                recorded[name] = values
                # A copy, since what follows may write into its input.
                after = values.clone()
                return (*output[:-1], after) if several else after

            return record

        handles = [
            self.backbone.get_submodule(name).register_forward_hook(recorder(name))
            for name in self.grad_layers
        ]
        try:
            yield recorded
        finally:
            for handle in handles:
                handle.remove()

    def _no_cells(self, name: str) -> InputError:
        return InputError(
            f'the layer {name!r} gives no map (N, D, h, w) and no tokens (N, T, D) of '
            'a vision transformer: name another one in grad_layers'
        )


def _cells(values: Tensor, grid: tuple[int, int], *, is_map: bool) -> Tensor:
    """Maps (..., D, h, w) or tokens (..., T, D), patches last -> (..., P, D)."""
    if is_map:
        return values.flatten(-2).transpose(-2, -1)
    num_patches = grid[0] * grid[1]
    return values[..., max(0, values.shape[-2] - num_patches) :, :]


@MODELS.register_module()
class PixelCorrelation(BaseModule):
    """Class maps that agree where the picture does (SEAM's pixel correlation module).

    What is alike is learned from the image and the two deepest feature maps, which get
    no gradient from here. A 1 x 1 classifier without bias on features that were spread
    gives the same as spreading its maps, so only these are.

    Args:
        in_channels: of the two deepest feature maps.
        channels: that each of the two is projected to.
        residual: add the maps to their spread version, as in the smoke paper's code;
            False is the spread version alone (SEAM).
        init_cfg: MMEngine initialisation.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int = 256,
        residual: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.residual = residual
        self.sides = nn.ModuleList(
            nn.Conv2d(before, channels, 1, bias=False) for before in in_channels
        )
        joined = 3 + channels * len(self.sides)
        self.mix = nn.Conv2d(joined, channels * len(self.sides), 1, bias=False)

    def forward(
        self, class_maps: Tensor, stages: Sequence[Tensor], image: Tensor
    ) -> Tensor:
        """Class maps (N, K, h, w), stages and the normalised image -> (N, K, h, w)."""
        size = class_maps.shape[2:]
        parts = [_on_grid(image, size)]
        for conv, stage in zip(self.sides, stages, strict=True):
            parts.append(_on_grid(conv(stage.detach()).relu(), size))
        spread = correlate_maps(class_maps, self.mix(torch.cat(parts, 1)))
        return class_maps + spread if self.residual else spread


def _on_grid(maps: Tensor, size: torch.Size) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, tuple(size), mode='bilinear', align_corners=False)


@MODELS.register_module()
class CNNBranch(CAMBranch):
    """Feature maps, a classifier on each cell, scores by averaging.

    Args:
        backbone: see ``CAMBranch``; with ``pcm`` it returns two maps or more.
        num_classes: see ``CAMBranch``.
        pcm: config of what makes class maps agree with the picture, such as
            ``dict(type='mmwsss.PixelCorrelation')``, which is told ``in_channels``;
            None goes without.
        weights: see ``CAMBranch``.
        prefix: see ``CAMBranch``.
        unstride: see ``CAMBranch``.
        mean: see ``CAMBranch``.
        std: see ``CAMBranch``.
        grad_layers: see ``CAMBranch``; the backbone's output by default.
        init_cfg: MMEngine initialisation.
    """

    def __init__(
        self,
        *,
        backbone: Mapping,
        num_classes: int,
        pcm: Mapping | None = None,
        weights: str | None = None,
        prefix: str = 'backbone.',
        unstride: Sequence[str] = (),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        grad_layers: Sequence[str] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            num_classes=num_classes,
            weights=weights,
            prefix=prefix,
            unstride=unstride,
            mean=mean,
            std=std,
            grad_layers=grad_layers,
            init_cfg=init_cfg,
        )
        name = type(self.backbone).__name__
        if self.gives_tokens:
            raise InputError(
                f'CNNBranch needs feature maps (N, D, h, w), but {name} gives tokens: '
                'take mmwsss.ViTBranch'
            )
        self.pcm = None
        if pcm is not None:
            self.pcm = MODELS.build({**pcm, 'in_channels': self._two_deepest()})

    def _two_deepest(self) -> list[int]:
        was_training = self.backbone.training
        self.backbone.eval()
        with torch.no_grad():
            stages = self.backbone(torch.zeros(1, 3, 64, 64))
        self.backbone.train(was_training)
        if len(stages) < 2:
            raise InputError(
                f'pcm needs the two deepest feature maps, but '
                f'{type(self.backbone).__name__} returns {len(stages)}: set '
                'out_indices to the last two stages'
            )
        return [stage.shape[1] for stage in stages[-2:]]

    def _see(self, image: Tensor) -> Seen:
        stages = self.backbone(image)
        class_maps = self.classifier(stages[-1])
        if self.pcm is not None:
            class_maps = self.pcm(class_maps, stages[-2:], image)
        scores = full_precision(class_maps).mean((2, 3))
        return Seen(scores=scores, features=stages[-1], class_maps=class_maps)


@MODELS.register_module()
class ViTBranch(CAMBranch):
    """A vision transformer; photos of any size are resized to whole patches.

    Args:
        backbone: config of a vision transformer of mmpretrain with ``out_type='raw'``;
            ``head='patch'`` takes any backbone with feature maps too.
        num_classes: see ``CAMBranch``.
        head: what the scores come from, the 'cls_token', or the 'patch' tokens, whose
            class maps are averaged. Trained from scratch the latter's maps are flat.
        weights: see ``CAMBranch``.
        prefix: see ``CAMBranch``.
        unstride: see ``CAMBranch``.
        mean: see ``CAMBranch``.
        std: see ``CAMBranch``.
        grad_layers: see ``CAMBranch``; by default the last block's first norm, which
            is as deep as a class token has a gradient to the patches.
        init_cfg: MMEngine initialisation.
    """

    def __init__(
        self,
        *,
        backbone: Mapping,
        num_classes: int,
        head: str = 'cls_token',
        weights: str | None = None,
        prefix: str = 'backbone.',
        unstride: Sequence[str] = (),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        grad_layers: Sequence[str] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if head not in HEADS:
            raise ValueError(f'head must be one of {HEADS}, got {head!r}')
        super().__init__(
            backbone=backbone,
            num_classes=num_classes,
            weights=weights,
            prefix=prefix,
            unstride=unstride,
            mean=mean,
            std=std,
            grad_layers=grad_layers,
            init_cfg=init_cfg,
        )
        self.head = head
        self.default_kind = 'direct' if head == 'patch' else 'grad'
        has_class_token = getattr(self.backbone, 'cls_token', None) is not None
        if head == 'cls_token' and not (self.gives_tokens and has_class_token):
            raise InputError(
                "head='cls_token' needs a vision transformer of mmpretrain with a "
                "class token and out_type='raw', but the backbone is "
                f"{type(self.backbone).__name__}: change it or take head='patch'"
            )

    def _see(self, image: Tensor) -> Seen:
        features, tokens = self._features(image)
        class_maps = self.classifier(features)
        scores = class_maps
        if self.head == 'cls_token':
            scores = self.classifier(tokens[:, 0, :, None, None])
        scores = full_precision(scores).mean((2, 3))
        return Seen(scores=scores, features=features, class_maps=class_maps)

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.gives_tokens:
            return self.backbone(image)[-1], None
        with recorded_grids(self.backbone) as grids:
            tokens = self.backbone(image)[-1]
        return tokens_to_map(tokens, grids[0]), tokens
