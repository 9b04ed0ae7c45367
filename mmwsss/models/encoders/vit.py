"""Running mmpretrain's VisionTransformer block by block."""

from collections.abc import Sequence

import torch
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from .base import Encoded, attention_weights, tokens_to_map


def encode_vit(
    vit: nn.Module,
    image: Tensor,
    *,
    out_indices: Sequence[int],
    num_attentions: int,
    registers: Tensor | None = None,
) -> Encoded:
    """Feature maps and attentions of a plain mmpretrain ViT.

    Args:
        vit: ``mmpretrain.VisionTransformer`` with a class token.
        image: (N, 3, H, W), normalised, sides multiples of the patch size.
        out_indices: layers whose outputs are the features; the final norm is applied
            to the last layer alone, as mmpretrain does.
        num_attentions: attentions of the last so many layers are kept.
        registers: (1, R, D) tokens put behind the class token (DINOv2-reg).
    """
    tokens, grid = vit.patch_embed(image)
    tokens = torch.cat([vit.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    tokens = tokens + resize_pos_embed(
        vit.pos_embed,
        vit.patch_resolution,
        grid,
        mode=vit.interpolate_mode,
        num_extra_tokens=1,
    )
    num_extra = 1
    if registers is not None:
        # They carry no position, so they come in after it was added.
        extra = registers.to(tokens).expand(len(tokens), -1, -1)
        tokens = torch.cat([tokens[:, :1], extra, tokens[:, 1:]], dim=1)
        num_extra += registers.shape[1]
    tokens = vit.pre_norm(tokens)
    last = len(vit.layers) - 1
    features, attentions = {}, []
    for number, layer in enumerate(vit.layers):
        if number > last - num_attentions:
            attentions.append(_attention(layer, tokens))
        tokens = layer(tokens)
        if number == last and vit.final_norm:
            tokens = vit.ln1(tokens)
        if number in out_indices:
            features[number] = tokens_to_map(tokens, grid)
    return Encoded(
        features=tuple(features[i] for i in out_indices),
        attentions=torch.stack(attentions, dim=1) if attentions else None,
        num_extra_tokens=num_extra,
    )


def _attention(layer: nn.Module, tokens: Tensor) -> Tensor:
    n, t, _ = tokens.shape
    module = layer.attn
    qkv = module.qkv(layer.ln1(tokens))
    qkv = qkv.view(n, t, 3, module.num_heads, module.head_dims)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return attention_weights(query, key)
