"""Frozen DINOv2 (Oquab et al., TMLR 2024) on mmpretrain's VisionTransformer."""

import re
from collections.abc import Mapping, Sequence

import torch
from mmpretrain.models import VisionTransformer
from torch import Tensor

from mmwsss.errors import InputError
from mmwsss.registry import MODELS

from .base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Encoded,
    FrozenEncoder,
    load_into,
    load_weight_file,
)
from .vit import encode_vit

# Published by OpenMMLab for mmpretrain.
_ZOO = 'https://download.openmmlab.com/mmpretrain/v1.0/dinov2/'
DOWNLOADS = {
    'small': _ZOO + 'vit-small-p14_dinov2-pre_3rdparty_20230426-5641ca5a.pth',
    'base': _ZOO + 'vit-base-p14_dinov2-pre_3rdparty_20230426-ba246503.pth',
    'large': _ZOO + 'vit-large-p14_dinov2-pre_3rdparty_20230426-f3302d9e.pth',
}
HOW_TO_GET = (
    "give the path of mmpretrain's or Meta's checkpoint, weights='download' for "
    "OpenMMLab's (S, B, L without registers), or weights=None for a dry run"
)
# Meta's names -> mmpretrain's.
RENAMES = (
    (r'^patch_embed\.proj\.', 'patch_embed.projection.'),
    (r'^blocks\.(\d+)\.norm1\.', r'layers.\1.ln1.'),
    (r'^blocks\.(\d+)\.norm2\.', r'layers.\1.ln2.'),
    (r'^blocks\.(\d+)\.attn\.', r'layers.\1.attn.'),
    (r'^blocks\.(\d+)\.ls1\.gamma$', r'layers.\1.attn.gamma1.weight'),
    (r'^blocks\.(\d+)\.ls2\.gamma$', r'layers.\1.ffn.gamma2.weight'),
    (r'^blocks\.(\d+)\.mlp\.fc1\.', r'layers.\1.ffn.layers.0.0.'),
    (r'^blocks\.(\d+)\.mlp\.fc2\.', r'layers.\1.ffn.layers.1.'),
    (r'^norm\.', 'ln1.'),
)


@MODELS.register_module()
class FrozenDINOv2(FrozenEncoder):
    """DINOv2 S, B or L, with or without register tokens.

    Args:
        arch: 'small', 'base', 'large', or mmpretrain's architecture dict.
        weights: local file in mmpretrain's or Meta's key names, 'download', or None.
        registers: register tokens (0 or 4).
        patch_size: pixels.
        image_size: that the position embedding was trained for, pixels.
        num_attentions: attentions of the last so many layers are kept.
        mean: RGB in [0, 1].
        std: RGB in [0, 1].
    """

    def __init__(
        self,
        *,
        arch: str | Mapping = 'small',
        weights: str | None = None,
        registers: int = 0,
        patch_size: int = 14,
        image_size: int = 518,
        num_attentions: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if isinstance(arch, str) and arch not in DOWNLOADS:
            raise InputError(f'arch must be one of {sorted(DOWNLOADS)}, got {arch!r}')
        vit = VisionTransformer(
            arch=f'dinov2-{arch}' if isinstance(arch, str) else dict(arch),
            img_size=image_size,
            patch_size=patch_size,
            layer_scale_init_value=1.0,
            out_type='featmap',
        )
        tokens = torch.zeros(1, registers, vit.embed_dims) if registers else None
        if registers and weights is None:
            torch.nn.init.normal_(tokens, std=1e-6)
        if weights is not None:
            tokens = _load(vit, arch, weights, registers)
        super().__init__(tower=vit, mean=mean, std=std, patch_size=patch_size)
        self.register_buffer('registers', tokens, persistent=False)
        self.num_attentions = num_attentions

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the one feature map."""
        return (self.tower.embed_dims,)

    def _encode(self, image: Tensor) -> Encoded:
        return encode_vit(
            self.tower,
            image,
            out_indices=(len(self.tower.layers) - 1,),
            num_attentions=self.num_attentions,
            registers=self.registers,
        )


def _load(vit, arch: str | Mapping, weights: str, registers: int) -> Tensor | None:
    state = _read(arch, weights)
    if any(key.startswith('blocks.') for key in state):
        state = {_rename(key): value for key, value in state.items()}
    state = {k.removeprefix('backbone.'): v.float() for k, v in state.items()}
    state.pop('mask_token', None)
    tokens = state.pop('register_tokens', None)
    found = 0 if tokens is None else tokens.shape[1]
    if found != registers:
        raise InputError(
            f'the weights {weights} have {found} register tokens, but the config says '
            f'registers={registers}'
        )
    load_into(vit, state, weights)
    return tokens


def _read(arch: str | Mapping, weights: str) -> dict[str, Tensor]:
    if weights != 'download':
        return load_weight_file(weights, HOW_TO_GET)
    if not isinstance(arch, str):
        raise InputError("weights='download' needs arch 'small', 'base' or 'large'")
    url = DOWNLOADS[arch]
    try:
        state = torch.hub.load_state_dict_from_url(url, map_location='cpu')
    except OSError as error:
        raise InputError(
            f'{url} cannot be downloaded ({error}); {HOW_TO_GET}'
        ) from None
    return state.get('state_dict', state)


def _rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key
