"""Relevance of transformers in slow float64, written from the formulas."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def rollout(layers, start, normalize_rows):
    """Row vector of the full matrix product; layers (L, T, T), first block first."""
    product = np.eye(len(start))
    for layer in layers:
        matrix = np.eye(len(start)) + layer
        if normalize_rows:
            for row in range(len(matrix)):
                matrix[row] = matrix[row] / matrix[row].sum()
        product = matrix @ product
    return start @ product


def weighted_attention(attention, gradient):
    """(heads, T, T) twice -> (T, T)."""
    heads, size, _ = attention.shape
    result = np.zeros((size, size))
    for h in range(heads):
        for i in range(size):
            for j in range(size):
                result[i, j] += max(0, gradient[h, i, j] * attention[h, i, j]) / heads
    return result


def lrp_linear(inputs, weight, relevance):
    """(D,), (E, D), (E,) -> (D,): each output's relevance by positive products."""
    result = np.zeros(len(inputs))
    for j, row in enumerate(weight):
        products = [max(0, x * w) for x, w in zip(inputs, row, strict=True)]
        if sum(products) > 0:
            for i, product in enumerate(products):
                result[i] += product / sum(products) * relevance[j]
    return result


def lrp_matmul(left, right, relevance):
    """(I, J), (J, D), (I, D) -> half of the relevance to each factor."""
    to_left, to_right = np.zeros_like(left), np.zeros_like(right)
    for i in range(left.shape[0]):
        for d in range(right.shape[1]):
            total = sum(left[i, j] * right[j, d] for j in range(left.shape[1]))
            for j in range(left.shape[1]):
                part = left[i, j] * right[j, d] / total * relevance[i, d] / 2
                to_left[i, j] += part
                to_right[j, d] += part
    return to_left, to_right


def lrp_add(first, second, relevance):
    """(T, D) three times -> the relevance of the two terms."""
    parts = [np.zeros_like(first), np.zeros_like(first)]
    for place in np.ndindex(first.shape):
        for part, term in zip(parts, (first, second), strict=True):
            part[place] = term[place] / (first[place] + second[place])
            part[place] *= relevance[place]
    sizes = [abs(part.sum()) for part in parts]
    return [
        part * (size / sum(sizes) * relevance.sum() / part.sum())
        for part, size in zip(parts, sizes, strict=True)
    ]


class PlainViT:
    """The forward pass of a pre-norm transformer, from mmpretrain's state dict.

    One image on the grid of its position embedding; keeps what the relevance needs.
    """

    def __init__(self, state, *, num_heads, num_layers, patch, final_norm=True):
        self.state = state
        self.num_heads, self.num_layers = num_heads, num_layers
        self.patch, self.final_norm = patch, final_norm

    def linear(self, name, tokens):
        return tokens @ self.state[f'{name}.weight'].T + self.state[f'{name}.bias']

    def norm(self, name, tokens):
        mean = tokens.mean(-1, keepdim=True)
        variance = ((tokens - mean) ** 2).mean(-1, keepdim=True)
        scaled = (tokens - mean) / (variance + 1e-6).sqrt()
        return scaled * self.state[f'{name}.weight'] + self.state[f'{name}.bias']

    def run(self, image):
        """(3, H, W) normalised -> tokens (T, D); fills ``blocks``."""
        kernel = self.state['patch_embed.projection.weight']
        patches = []
        for top in range(0, image.shape[1], self.patch):
            for left in range(0, image.shape[2], self.patch):
                piece = image[:, top : top + self.patch, left : left + self.patch]
                patches.append((kernel * piece).sum((1, 2, 3)))
        patches = torch.stack(patches) + self.state['patch_embed.projection.bias']
        tokens = torch.cat([self.state['cls_token'][0], patches])
        tokens = tokens + self.state['pos_embed'][0]
        self.blocks = []
        for number in range(self.num_layers):
            tokens = self.block(f'layers.{number}', tokens)
        return self.norm('ln1', tokens) if self.final_norm else tokens

    def block(self, name, tokens):
        kept = dict(name=name, block_input=tokens)
        kept['qkv_input'] = self.norm(f'{name}.ln1', tokens)
        qkv = self.linear(f'{name}.attn.qkv', kept['qkv_input'])
        width = tokens.shape[1] // self.num_heads
        # Columns: all heads of q, then of k, then of v.
        pieces = qkv.split(width, dim=1)
        heads = self.num_heads
        groups = [pieces[i * heads : (i + 1) * heads] for i in range(3)]
        kept['q'], kept['k'], kept['v'] = groups
        attentions, outs = [], []
        for q, k in zip(*groups[:2], strict=True):
            attentions.append((q @ k.T / math.sqrt(width)).softmax(-1))
        kept['attention'] = torch.stack(attentions)
        if not kept['attention'].requires_grad:
            kept['attention'].requires_grad_()
        kept['attention'].retain_grad()
        for attention, v in zip(kept['attention'], groups[2], strict=True):
            outs.append(attention @ v)
        kept['proj_input'] = torch.cat(outs, 1)
        kept['attn_output'] = self.linear(f'{name}.attn.proj', kept['proj_input'])
        middle = tokens + kept['attn_output']
        kept['middle'] = middle
        kept['fc1_input'] = self.norm(f'{name}.ln2', middle)
        hidden = self.linear(f'{name}.ffn.layers.0.0', kept['fc1_input'])
        kept['fc2_input'] = F.gelu(hidden)
        kept['ffn_output'] = self.linear(f'{name}.ffn.layers.1', kept['fc2_input'])
        self.blocks.append(kept)
        return middle + kept['ffn_output']

    def attention_relevances(self, head_weight, class_token, one_hot):
        """LRP of one class through the blocks that ran: (heads, T, T) per block."""
        size = self.blocks[0]['block_input'].shape
        relevance = np.zeros(tuple(size))
        relevance[0] = lrp_linear(class_token, head_weight, one_hot)
        found = []
        for kept in reversed(self.blocks):
            name = kept['name']
            kept = {
                k: v.detach().numpy() if torch.is_tensor(v) else v
                for k, v in kept.items()
            }
            stay, go = lrp_add(kept['middle'], kept['ffn_output'], relevance)
            go = self.rows(f'{name}.ffn.layers.1', kept['fc2_input'], go)
            go = self.rows(f'{name}.ffn.layers.0.0', kept['fc1_input'], go)
            stay, go = lrp_add(kept['block_input'], kept['attn_output'], stay + go)
            go = self.rows(f'{name}.attn.proj', kept['proj_input'], go)
            width = size[1] // self.num_heads
            of_heads, of_q, of_k, of_v = [], [], [], []
            for h in range(self.num_heads):
                q, k, v = (kept[n][h].detach().numpy() for n in 'qkv')
                part = go[:, h * width : (h + 1) * width]
                of_attention, of_value = lrp_matmul(kept['attention'][h], v, part)
                of_query, of_key = lrp_matmul(q, k.T, of_attention)
                of_heads.append(of_attention)
                of_q.append(of_query)
                of_k.append(of_key.T)
                of_v.append(of_value)
            joint = np.concatenate([*of_q, *of_k, *of_v], 1)
            relevance = stay + self.rows(f'{name}.attn.qkv', kept['qkv_input'], joint)
            found.append(np.stack(of_heads))
        return found[::-1]

    def rows(self, name, inputs, relevance):
        weight = self.state[f'{name}.weight'].detach().numpy()
        return np.stack(
            [lrp_linear(x, weight, r) for x, r in zip(inputs, relevance, strict=True)]
        )
