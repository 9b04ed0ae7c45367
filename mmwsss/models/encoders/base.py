"""What every frozen encoder shares: the tower out of the module tree, one result type.

A frozen tower must survive ``model.train()``, must not be saved with every
checkpoint, must not be counted by DDP or the optimiser. All four follow from one
decision: the tower is no submodule. ``FrozenEncoder`` keeps it in a plain object and
moves it by overriding ``_apply``, so ``model.to(device)`` still does what it says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from mmwsss.errors import InputError

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass
class Encoded:
    """What a frozen encoder says about a batch of images.

    Attributes:
        features: Feature maps (N, D, h, w), the deepest one last.
        attentions: Softmaxed attention of the last L blocks, averaged over the heads,
            (N, L, T, T), rows sum to 1, T = num_extra_tokens + h * w. None if the
            encoder was not asked for them.
        num_extra_tokens: Class and register tokens in front of the patch tokens.
        last_block_input: Tokens (N, T, D) that the block used for CAMs starts from;
            None if the encoder cannot give CAMs.
    """

    features: tuple[Tensor, ...]
    attentions: Tensor | None = None
    num_extra_tokens: int = 0
    last_block_input: Tensor | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Cells (h, w) of the deepest feature map."""
        height, width = self.features[-1].shape[-2:]
        return height, width


class _OutsideTheTree:
    """Keeps a module where ``nn.Module`` does not look for it.

    A deep copy (an EMA model, a teacher) shares the tower: it never changes, and a
    second copy of CLIP is a waste of memory. Moving one of the copies to another
    device or type therefore moves the tower of both.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict) -> _OutsideTheTree:
        return self


class FrozenEncoder(BaseModule):
    """A pretrained tower that never trains: no parameters, empty state dict.

    Subclasses implement :meth:`_encode` for normalised images.

    Args:
        tower: The pretrained module; put into eval mode, its gradients switched off.
        mean: Per-channel mean, RGB, on the 0..255 scale of MM configs.
        std: Per-channel standard deviation, RGB, 0..255.
        feature_channels: Channels D of each feature map.
        patch_size: Images are resized to multiples of it; None leaves them alone.

    Raises:
        InputError: mean or std have not three values, or a std is not positive.
    """

    def __init__(
        self,
        tower: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        feature_channels: Sequence[int],
        patch_size: int | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise InputError(
                f'mean and std need three values each (RGB, 0..255) and a positive '
                f'std, got mean={tuple(mean)}, std={tuple(std)}.'
            )
        # Not chained: the train() of some mmpretrain backbones returns None.
        tower.eval()
        tower.requires_grad_(False)
        self._outside = _OutsideTheTree(tower)
        self._feature_channels = tuple(feature_channels)
        self._patch_size = patch_size
        self._compiled: Callable[[Tensor], Encoded] | None = None
        self._register_constant('mean', torch.tensor(mean).view(1, 3, 1, 1) / 255)
        self._register_constant('std', torch.tensor(std).view(1, 3, 1, 1) / 255)

    @property
    def tower(self) -> nn.Module:
        """The frozen network."""
        return self._outside.module

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each feature map, in the order of ``Encoded.features``."""
        return self._feature_channels

    def encode(self, image: Tensor, *, compiled: bool = False) -> Encoded:
        """Encode without gradients.

        Args:
            image: (N, 3, H, W), RGB in [0, 1], any H and W. With a patch size it is
                resized (bilinear) to the next lower multiples, at least one patch.
            compiled: Run the tower through ``torch.compile``, which takes a minute at
                the first batch of each size.

        Returns:
            The encoded batch; autocast of the caller applies.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                f'image must be (N, 3, H, W), got shape {tuple(image.shape)}'
            )
        with torch.no_grad():
            image = _resize_to_patches(image.to(self.mean.dtype), self._patch_size)
            encode = self._compiled_tower() if compiled else self._encode
            return encode((image - self.mean) / self.std)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps alone, so that MMSeg can use this as a backbone."""
        return self.encode(image).features

    def _encode(self, image: Tensor) -> Encoded:
        raise NotImplementedError

    def _compiled_tower(self) -> Callable[[Tensor], Encoded]:
        if self._compiled is None:
            for module in self.tower.modules():
                if hasattr(module, 'drop_prob'):
                    # NumPy's number in mmcv's DropPath would cut the graph at each.
                    module.drop_prob = float(module.drop_prob)
            self._compiled = torch.compile(self._encode)
        return self._compiled

    def _register_constant(self, name: str, value: Tensor) -> None:
        """Register a buffer that moves with the model and is never saved."""
        self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        # `recurse` (torch >= 2.1) is not handed on: there are no child modules, and
        # the tower has to move in either case.
        self.tower._apply(fn)
        return super()._apply(fn)


def _resize_to_patches(image: Tensor, patch_size: int | None) -> Tensor:
    """Bilinear resize to the next lower multiple of the patch size, at least one."""
    if patch_size is None:
        return image
    size = tuple(max(side // patch_size, 1) * patch_size for side in image.shape[-2:])
    if size == tuple(image.shape[-2:]):
        return image
    return F.interpolate(image, size=size, mode='bilinear', align_corners=False)


@contextmanager
def fixed_cpu_rng(seed: int = 0) -> Iterator[None]:
    """Draw initial weights the same way each time and leave no trace.

    Building a tower must not shift the random numbers of the training: a run with
    weights from a file and one from a tag would otherwise see other augmentations.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def init_quietly(module: BaseModule) -> None:
    """Run an MM module's ``init_weights`` without its line per parameter in the log."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        module.init_weights()
    finally:
        logger.setLevel(level)
