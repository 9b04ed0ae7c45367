"""Frozen DINOv2, on mmpretrain's vision transformer.

Oquab et al., DINOv2, TMLR 2024; Darcet et al., Vision Transformers Need Registers, ICLR
2024. Weights: Meta's official files (Apache-2.0) or mmpretrain's copies of them.
Differs from Meta's code in one point: for models without registers the position
embedding is resized to the wanted size as mmpretrain does it, not by a factor that is
0.1 cells too large (at most 0.2 cells apart at the far border).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmwsss.checkpoints import download
from mmwsss.errors import InputError
from mmwsss.registry import MODELS

from .base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Encoded,
    FrozenEncoder,
    fixed_cpu_rng,
    init_quietly,
)
from .vit import mean_attention, resize_position_embedding, tokens_to_map
from .weights import load_exactly, read_weights, without_prefix

_ARCHS = {'small': 'dinov2-small', 'base': 'base', 'large': 'large'}
_URL = 'https://dl.fbaipublicfiles.com/dinov2/{model}/{model}{registers}_pretrain.pth'
_META_TO_MMPRETRAIN = (
    (r'^blocks\.', 'layers.'),
    (r'\.norm1\.', '.ln1.'),
    (r'\.norm2\.', '.ln2.'),
    (r'\.ls1\.gamma$', '.attn.gamma1.weight'),
    (r'\.ls2\.gamma$', '.ffn.gamma2.weight'),
    (r'\.mlp\.fc1\.', '.ffn.layers.0.0.'),
    (r'\.mlp\.fc2\.', '.ffn.layers.1.'),
    (r'^norm\.', 'ln1.'),
    (r'^patch_embed\.proj\.', 'patch_embed.projection.'),
)


@MODELS.register_module()
class FrozenDINOv2(FrozenEncoder):
    """DINOv2's normalised patch tokens as one feature map.

    Images are resized to floor(H / patch) * patch, so a 320 crop becomes 308 and gives
    22 x 22 cells.

    Args:
        arch: 'small', 'base' or 'large', or mmpretrain's arch dict (embed_dims,
            num_layers, num_heads, feedforward_channels).
        weights: A local file with Meta's or mmpretrain's names, .pth or .safetensors;
            'download' for Meta's file of this arch; None for random weights (dry
            runs), which are the same in every run.
        registers: Register tokens after the class token: 4 for the ``_reg4`` files.
        patch_size: Side of a patch in pixels.
        num_attentions: Attention maps of that many last blocks are returned.
        image_size: Side of the square the position embedding was trained for.

    Raises:
        InputError: Unknown arch, missing or foreign weights.
    """

    def __init__(
        self,
        *,
        arch: str | Mapping = 'small',
        weights: str | None = None,
        registers: int = 0,
        patch_size: int = 14,
        num_attentions: int = 0,
        image_size: int = 518,
    ) -> None:
        with fixed_cpu_rng():
            tower = _build_tower(arch, image_size=image_size, patch_size=patch_size)
            if weights is None:
                init_quietly(tower)
            if registers:
                tokens = 0.02 * torch.randn(1, registers, tower.embed_dims)
                tower.register_parameter('register_tokens', nn.Parameter(tokens))
        if weights is not None:
            _load(tower, weights, arch=arch, registers=registers)
        if not 0 <= num_attentions <= len(tower.layers):
            raise InputError(
                f'num_attentions must be 0..{len(tower.layers)}, got {num_attentions}.'
            )
        super().__init__(
            tower,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            feature_channels=[tower.embed_dims],
            patch_size=patch_size,
        )
        self.registers = registers
        self.num_attentions = num_attentions

    def _encode(self, image: Tensor) -> Encoded:
        tower = self.tower
        tokens, grid = self._embed(image)
        attentions = []
        for index, layer in enumerate(tower.layers):
            if len(tower.layers) - index <= self.num_attentions:
                attentions.append(mean_attention(layer.attn, layer.ln1(tokens)))
            tokens = layer(tokens)
        return Encoded(
            features=(tokens_to_map(tower.ln1(tokens), grid),),
            attentions=torch.stack(attentions, dim=1) if attentions else None,
            num_extra_tokens=1 + self.registers,
        )

    def _embed(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patches, class token, positions, then registers -> (N, T, D), grid."""
        tower = self.tower
        patches, grid = tower.patch_embed(image)
        position = resize_position_embedding(
            tower.pos_embed[0],
            tuple(tower.patch_resolution),
            tuple(grid),
            # Meta trained and runs the register models with the antialiased kernel.
            antialias=self.registers > 0,
        )
        tokens = torch.cat([tower.cls_token.expand(len(image), -1, -1), patches], dim=1)
        tokens = tokens + position
        if self.registers:
            # Registers have no position, so they go in after the addition.
            registers = tower.register_tokens.expand(len(image), -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        return tokens, tuple(grid)


def meta_to_mmpretrain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an official DINOv2 file to mmpretrain's names.

    Args:
        tensors: Meta's names; ``mask_token`` (training only) is dropped.

    Returns:
        The same tensors under mmpretrain's names, ``register_tokens`` kept.
    """
    renamed = {}
    for name, tensor in tensors.items():
        if name == 'mask_token':
            continue
        for pattern, replacement in _META_TO_MMPRETRAIN:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _build_tower(arch: str | Mapping, *, image_size: int, patch_size: int) -> nn.Module:
    # Imported late: configs without DINOv2 must run where mmpretrain is not installed.
    try:
        from mmpretrain.models import VisionTransformer
    except ImportError as error:
        raise InputError(
            f'FrozenDINOv2 needs mmpretrain ({error}): pip install onedl-mmpretrain.'
        ) from error
    if isinstance(arch, str) and arch not in _ARCHS:
        raise InputError(
            f"arch must be one of {sorted(_ARCHS)} or a dict, got '{arch}'."
        )
    return VisionTransformer(
        arch=_ARCHS[arch] if isinstance(arch, str) else dict(arch),
        img_size=image_size,
        patch_size=patch_size,
        layer_scale_init_value=1.0,
        out_type='featmap',
    )


def _load(
    tower: nn.Module, weights: str, *, arch: str | Mapping, registers: int
) -> None:
    url = _official_url(arch, registers)
    if weights == 'download':
        if url is None:
            raise InputError(
                f"weights='download' works for {sorted(_ARCHS)} with 0 or 4 registers, "
                f'not for arch={arch!r}, registers={registers}: give a file.'
            )
        weights = download(url)
    how_to_get = (
        f"get it with `curl -L --create-dirs -o '{weights}' {url}`"
        if url
        else 'give the file that belongs to this arch'
    )
    tensors = read_weights(weights, how_to_get=how_to_get)
    if any(name.startswith('backbone.') for name in tensors):
        tensors = without_prefix(tensors, 'backbone.', path=weights)
    if any(name.startswith('blocks.') for name in tensors):
        tensors = meta_to_mmpretrain(tensors)
    found = tensors.get('register_tokens', torch.empty(1, 0)).shape[1]
    if found != registers:
        raise InputError(
            f"The weights file '{weights}' has {found} register tokens, the config "
            f'registers={registers}: set registers={found} or take the other file.'
        )
    name = f"FrozenDINOv2 '{arch}'" if isinstance(arch, str) else 'this DINOv2 arch'
    load_exactly(tower, tensors, path=weights, what=name)


def _official_url(arch: str | Mapping, registers: int) -> str | None:
    if not isinstance(arch, str) or registers not in (0, 4):
        return None
    return _URL.format(
        model=f'dinov2_vit{arch[0]}14', registers='_reg4' if registers else ''
    )
