"""What every frozen encoder shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmwsss.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class Encoded:
    """What an encoder saw in a batch.

    Attributes:
        features: (N, D, h, w) each, the last one is the deepest.
        attentions: (N, L, T, T) softmaxed attentions of the last L blocks, averaged
            over the heads, float32; T = num_extra_tokens + h * w. Or None.
        num_extra_tokens: class and register tokens in front of the patches.
        last_block_input: (N, T, D) for encoders that run their last block again.
    """

    features: tuple[Tensor, ...]
    attentions: Tensor | None = None
    num_extra_tokens: int = 0
    last_block_input: Tensor | None = None


class _Held:
    """Keeps a module out of the module tree; copies of the owner share it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict) -> '_Held':
        return self


class FrozenEncoder(BaseModule):
    """An encoder that stays as it is.

    The tower is not part of the module tree: it has no parameters for an optimizer,
    nothing in a checkpoint, nothing for DistributedDataParallel to compare, and
    ``model.train()`` cannot reach it. It still follows ``model.to(...)``.

    Args:
        tower: the network; it is put into eval mode and loses requires_grad.
        mean: RGB, for images in [0, 1].
        std: RGB, for images in [0, 1].
        patch_size: images are resized down to multiples of it; 1 changes nothing.
    """

    def __init__(
        self,
        *,
        tower: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self._held = _Held(tower.eval().requires_grad_(False))
        self.patch_size = patch_size
        for name, values in (('mean', mean), ('std', std)):
            values = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @property
    def tower(self) -> nn.Module:
        """The frozen network."""
        return self._held.module

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each feature map."""
        raise NotImplementedError(f'{type(self).__name__} must name its channels')

    def _apply(self, fn, *args, **kwargs):
        # torch's own signature: this is what .to(), .cuda() and .half() go through.
        self.tower._apply(fn)
        return super()._apply(fn, *args, **kwargs)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Encoded:
        """Encode images.

        Args:
            image: (N, 3, H, W) RGB in [0, 1], any size.

        Returns:
            Features on a grid of (H // patch_size, W // patch_size), at least 1 x 1.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f'image must be (N, 3, H, W), got {tuple(image.shape)}')
        return self._encode(self._fit((image - self.mean) / self.std))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The feature maps, as an MMSegmentation backbone gives them."""
        return self.encode(image).features

    def _encode(self, image: Tensor) -> Encoded:
        raise NotImplementedError(f'{type(self).__name__} must encode')

    def _fit(self, image: Tensor) -> Tensor:
        size = [
            max(side // self.patch_size, 1) * self.patch_size
            for side in image.shape[-2:]
        ]
        if tuple(size) == tuple(image.shape[-2:]):
            return image
        return F.interpolate(image, size, mode='bilinear', align_corners=False)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(q k^t / sqrt(d)), averaged over the heads: (N, T, T) float32.

    Args:
        query: (N, heads, T, d).
        key: (N, heads, T, d).
    """
    scale = query.shape[-1] ** -0.5
    logits = (query.float() * scale) @ key.float().transpose(-1, -2)
    return logits.softmax(-1).mean(1)


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, extra + h*w, D) -> (N, D, h, w), without the extra tokens."""
    patches = tokens[:, -grid[0] * grid[1] :]
    return patches.transpose(1, 2).unflatten(2, grid)


def load_weight_file(path: str, how_to_get: str) -> dict[str, Tensor]:
    """Read a state dict without executing anything from the file."""
    if not Path(path).is_file():
        raise InputError(f'the weights {path} do not exist; {how_to_get}')
    try:
        if str(path).endswith('.safetensors'):
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        raise InputError(
            f'the weights {path} cannot be read ({type(error).__name__}); {how_to_get}'
        ) from error
    for key in ('state_dict', 'model'):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise InputError(f'{path} holds no state dict of tensors; {how_to_get}')
    return state


def load_into(module: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Load every tensor, or say which one does not belong."""
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise InputError(
            f'the weights {path} belong to another architecture: {detail}'
        ) from None
    if missing or unexpected:
        first = f'{missing[0]!r} is missing' if missing else f'{unexpected[0]!r} is new'
        raise InputError(
            f'the weights {path} do not fit the architecture in the config: {first} '
            f'({len(missing)} missing, {len(unexpected)} unexpected tensors)'
        )
