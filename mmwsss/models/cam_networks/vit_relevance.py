"""Relevance propagation through an mmpretrain vision transformer.

The rules are those of Chefer et al., CVPR 2021, as their MIT code runs them with
alpha 1: linear layers along positive products, residual connections by share, norms,
activations and softmax let relevance pass. All classes go together, one image at a
time, because a residual connection sums over its image.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmwsss.functional.relevance import lrp_add, lrp_linear, lrp_matmul

from ..encoders.vit import split_heads


@contextmanager
def recorded_blocks(backbone: nn.Module) -> Iterator[list[dict[str, Tensor]]]:
    """Collect what the modules of each block see, for ``attention_relevances``."""
    blocks: list[dict[str, Tensor]] = [{} for _ in backbone.layers]
    handles = []

    def keep(record: dict, name: str, side: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            record[name] = (inputs[0] if side == 'input' else output).detach()[0]

        return hook

    for record, block in zip(blocks, backbone.layers, strict=True):
        for name, side, module in (
            ('block_input', 'input', block),
            ('block_output', 'output', block),
            ('attention_output', 'output', block.attn),
            ('qkv_input', 'input', block.attn.qkv),
            ('qkv_output', 'output', block.attn.qkv),
            ('proj_input', 'input', block.attn.proj),
            *(
                (f'linear{number}_input', 'input', linear)
                for number, linear in enumerate(linear_layers(block.ffn))
            ),
        ):
            handles.append(module.register_forward_hook(keep(record, name, side)))
    try:
        yield blocks
    finally:
        for handle in handles:
            handle.remove()


def linear_layers(module: nn.Module) -> list[nn.Linear]:
    """The linear layers of a feed-forward network, in the order of their use."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def attention_relevances(
    backbone: nn.Module,
    records: Sequence[dict[str, Tensor]],
    attentions: Sequence[Tensor],
    relevance: Tensor,
) -> list[Tensor]:
    """Relevance of every block's attention for M classes of one image.

    Args:
        backbone: the transformer that ran.
        records: of ``recorded_blocks`` in that pass.
        attentions: (heads, T, T) per block, in that pass.
        relevance: (M, T, D) of the last block's output.

    Returns:
        (M, heads, T, T) per block, the first block first.
    """
    found = []
    for block, record, attention in zip(
        reversed(backbone.layers), reversed(records), reversed(attentions), strict=True
    ):
        middle = record['block_input'] + record['attention_output']
        relevance, to_ffn = lrp_add(middle, record['block_output'] - middle, relevance)
        linears = list(enumerate(linear_layers(block.ffn)))
        for number, linear in reversed(linears):
            to_ffn = lrp_linear(record[f'linear{number}_input'], linear.weight, to_ffn)
        relevance = relevance + to_ffn
        relevance, to_attention = lrp_add(
            record['block_input'], record['attention_output'], relevance
        )
        of_attention, of_input = _through_attention(
            block.attn, record, attention, to_attention
        )
        found.append(of_attention)
        relevance = relevance + of_input
    return found[::-1]


def _through_attention(
    module: nn.Module, record: dict[str, Tensor], attention: Tensor, relevance: Tensor
) -> tuple[Tensor, Tensor]:
    """(M, T, D) at the output -> (M, heads, T, T) and (M, T, D) at the input."""
    relevance = lrp_linear(record['proj_input'], module.proj.weight, relevance)
    relevance = relevance.unflatten(2, (module.num_heads, -1)).transpose(1, 2)
    qkv = record['qkv_output'][None]
    query, key, value = (part[0] for part in split_heads(qkv, module.num_heads))
    of_attention, of_value = lrp_matmul(attention, value, relevance)
    of_query, of_key = lrp_matmul(query, key.transpose(1, 2), of_attention)
    parts = [of_query, of_key.transpose(2, 3), of_value]
    parts = torch.cat([part.transpose(1, 2).flatten(2) for part in parts], 2)
    of_input = lrp_linear(record['qkv_input'], module.qkv.weight, parts)
    return of_attention, of_input
