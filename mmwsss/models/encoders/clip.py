"""Frozen CLIP image tower with text-driven Grad-CAM, on open_clip.

Follows CLIP-ES (Lin et al., CVPR 2023) and WeCLIP (Zhang et al., CVPR 2024): the
image feature is the mean over the patch tokens, the last block is run again with
gradients, all classes of a batch are differentiated at once.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import load_checkpoint
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.functional import present_softmax, softmax_grad_cam
from mmwsss.registry import MODELS

from .base import (
    Encoded,
    FrozenEncoder,
    attention_weights,
    load_weight_file,
    tokens_to_map,
)

HOW_TO_GET = (
    'give the path of an OpenAI or open_clip checkpoint, an open_clip tag such as '
    "weights='openai' (downloads it), or weights=None for a dry run"
)
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@MODELS.register_module()
class FrozenCLIP(FrozenEncoder):
    """A CLIP vision transformer that explains class names.

    Args:
        model: open_clip name ('ViT-B-16', 'ViT-L-14', ...), or the path of a JSON
            file, or a dict, with open_clip's model config.
        weights: local file (OpenAI archive, open_clip state dict, safetensors), an
            open_clip tag, or None for random weights.
        class_names: what the K classes are called in the prompts.
        background_words: what usually surrounds the objects; they compete with the
            classes in the softmax.
        templates: prompts with one ``{}``; their embeddings are averaged.
        num_attentions: attentions of the last so many blocks are kept.
        feature_layers: blocks whose outputs are the feature maps; -2 is WeCLIP+'s.
        cam_input_layer: -1 runs the last block on its usual input, -2 on the input of
            the block before (the released VOC code of WeCLIP+ skips a block).
        logit_scale_divisor: 4 for ViT-L/14 in the released code.
        quick_gelu: the activation of OpenAI's weights.
        mean: RGB in [0, 1]; OpenAI's own by default.
        std: RGB in [0, 1].
    """

    def __init__(
        self,
        *,
        model: str | Mapping,
        weights: str | None = None,
        class_names: Sequence[str],
        background_words: Sequence[str] = (),
        templates: Sequence[str] = ('a clean origami {}.',),
        num_attentions: int = 6,
        feature_layers: Sequence[int] = (-2,),
        cam_input_layer: int = -1,
        logit_scale_divisor: float = 1.0,
        quick_gelu: bool = True,
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
    ) -> None:
        if not class_names:
            raise InputError('FrozenCLIP needs class_names, got none')
        wrong = [t for t in templates if t.count('{}') != 1]
        if wrong or not templates:
            raise InputError(
                f'templates must each hold one {{}}, got {list(templates)}'
            )
        if cam_input_layer not in (-1, -2):
            raise ValueError(f'cam_input_layer must be -1 or -2, got {cam_input_layer}')
        clip, tokenizer = _build(model, weights, quick_gelu)
        visual = clip.visual
        if not hasattr(visual, 'transformer') or not hasattr(visual, 'conv1'):
            raise InputError(f'FrozenCLIP needs a vision transformer, got {model!r}')
        super().__init__(
            tower=visual, mean=mean, std=std, patch_size=visual.conv1.stride[0]
        )
        words = [*class_names, *background_words]
        text = _embed_text(clip, tokenizer, words, templates)
        self.register_buffer('text_features', text, persistent=False)
        self.num_classes = len(class_names)
        scale = clip.logit_scale.exp().item() / logit_scale_divisor
        self.logit_scale = scale
        self.num_blocks = len(visual.transformer.resblocks)
        if num_attentions > self.num_blocks:
            raise ValueError(
                f'num_attentions is {num_attentions}, the model has '
                f'{self.num_blocks} blocks'
            )
        self.num_attentions = num_attentions
        self.feature_layers = tuple(layer % self.num_blocks for layer in feature_layers)
        self.cam_input_layer = cam_input_layer

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each feature map."""
        return (self.tower.conv1.out_channels,) * len(self.feature_layers)

    def _encode(self, image: Tensor) -> Encoded:
        visual = self.tower
        tokens, grid = self._embed(image)
        outputs, attentions = [], []
        for number, block in enumerate(visual.transformer.resblocks):
            if number >= self.num_blocks - self.num_attentions:
                query, key, _ = _qkv(block.attn, block.ln_1(tokens))
                attentions.append(attention_weights(query, key))
            tokens = block(tokens)
            outputs.append(tokens)
        # Block L-1 reads output L-2; the trick of the released code reads L-3.
        start = max(self.num_blocks - 1 + self.cam_input_layer, 0)
        return Encoded(
            features=tuple(
                tokens_to_map(outputs[layer], grid) for layer in self.feature_layers
            ),
            attentions=torch.stack(attentions, dim=1) if attentions else None,
            num_extra_tokens=1,
            last_block_input=outputs[start],
        )

    def _embed(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        visual = self.tower
        patches = visual.conv1(image)
        grid = tuple(patches.shape[-2:])
        tokens = patches.flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(tokens).expand(len(tokens), 1, -1)
        tokens = torch.cat([class_token, tokens], dim=1)
        position = _resize_position(visual.positional_embedding, grid)
        return visual.ln_pre(tokens + position.to(tokens)), grid

    def grad_cams(
        self, encoded: Encoded, image_label: Tensor, *, max_classes: int | None = None
    ) -> Tensor:
        """Softmax Grad-CAM of all present classes in one backward pass.

        Args:
            encoded: what ``encode`` returned.
            image_label: (N, K), 0/1.
            max_classes: upper bound of classes in one image; None finds it out.

        Returns:
            (N, K, h, w), non-negative, not normalised; the target layer is the first
            norm of the last block.
        """
        if image_label.shape[1] != self.num_classes:
            raise InputError(
                f'the image labels have {image_label.shape[1]} classes, but '
                f'class_names has {self.num_classes}; give one name per class'
            )
        grid = tuple(encoded.features[-1].shape[-2:])
        device = image_label.device.type
        # Amplitudes are about 1e-4: too small for half precision.
        with torch.enable_grad(), torch.autocast(device, enabled=False):
            tokens = encoded.last_block_input.detach().float()
            block = self.tower.transformer.resblocks[-1]
            activations = block.ln_1(tokens).detach().requires_grad_()
            scores = self._class_scores(block, tokens, activations, image_label)
            return softmax_grad_cam(
                activations, scores, image_label, grid=grid, max_classes=max_classes
            )

    def _class_scores(
        self, block: nn.Module, tokens: Tensor, activations: Tensor, image_label: Tensor
    ) -> Tensor:
        query, key, value = _qkv(block.attn, activations)
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        mixed = (weights.softmax(-1) @ value).transpose(1, 2).flatten(2)
        tokens = tokens + block.ls_1(block.attn.out_proj(mixed))
        tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        projected = self.tower.ln_post(tokens[:, 1:]) @ self.tower.proj
        image_feature = F.normalize(projected.mean(1), dim=-1)
        logits = self.logit_scale * image_feature @ self.text_features.t()
        return present_softmax(logits, image_label)[:, : self.num_classes]


def _build(model: str | Mapping, weights: str | None, quick_gelu: bool):
    if isinstance(model, Mapping) or str(model).endswith('.json'):
        clip = open_clip.CLIP(**_read_config(model), quick_gelu=quick_gelu)
        length = clip.context_length
        tokenizer = open_clip.SimpleTokenizer(context_length=length)
    elif model in open_clip.list_models():
        tag = None if weights is None or _looks_like_file(weights) else weights
        if tag and tag not in open_clip.list_pretrained_tags_by_model(model):
            raise InputError(f'the weights {weights} do not exist; {HOW_TO_GET}')
        clip = open_clip.create_model(
            model, pretrained=tag, force_quick_gelu=quick_gelu
        )
        tokenizer = open_clip.get_tokenizer(model)
        if tag:
            return clip, tokenizer
    else:
        raise InputError(
            f'{model!r} is no model of open_clip (see open_clip.list_models()) and no '
            'JSON file with a model config'
        )
    if weights is not None:
        _load(clip, weights)
    return clip.float(), tokenizer


def _read_config(model: str | Mapping) -> dict:
    if isinstance(model, Mapping):
        config = dict(model)
    else:
        try:
            config = json.loads(Path(model).read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f'the model config {model} is unreadable ({error})'
            ) from None
    return {key: config[key] for key in ('embed_dim', 'vision_cfg', 'text_cfg')}


def _looks_like_file(weights: str) -> bool:
    return Path(weights).is_file() or '/' in weights or '.' in weights


def _load(clip: nn.Module, weights: str) -> None:
    if not Path(weights).is_file():
        raise InputError(f'the weights {weights} do not exist; {HOW_TO_GET}')
    try:
        if _is_script_archive(weights):
            state = torch.jit.load(weights, map_location='cpu').state_dict()
            for key in ('input_resolution', 'context_length', 'vocab_size'):
                state.pop(key, None)
            clip.load_state_dict({k: v.float() for k, v in state.items()})
        else:
            load_weight_file(weights, HOW_TO_GET)  # refuses what is no state dict
            load_checkpoint(clip, weights)
    except (RuntimeError, KeyError) as error:
        detail = str(error).splitlines()[-1].strip()
        raise InputError(
            f'the weights {weights} do not fit the model in the config: {detail}'
        ) from None


def _is_script_archive(path: str) -> bool:
    """OpenAI's files are TorchScript archives: zip files with a code folder."""
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any('/code/' in name for name in archive.namelist())


@torch.no_grad()
def _embed_text(
    clip: nn.Module, tokenizer, words: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """(K + B, D), l2-normalised mean over the templates."""
    clip.eval()
    embeddings = []
    for template in templates:
        tokens = tokenizer([template.format(word) for word in words])
        embeddings.append(F.normalize(clip.encode_text(tokens), dim=-1))
    return F.normalize(torch.stack(embeddings).mean(0), dim=-1)


def _qkv(attention: nn.MultiheadAttention, tokens: Tensor) -> tuple[Tensor, ...]:
    """(N, T, D) -> query, key, value (N, heads, T, d)."""
    joined = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    n, t, _ = tokens.shape
    joined = joined.view(n, t, 3, attention.num_heads, attention.head_dim)
    return joined.permute(2, 0, 3, 1, 4).unbind(0)


def _resize_position(position: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1 + s*s, D) -> (1 + h*w, D), bicubic."""
    side = round((len(position) - 1) ** 0.5)
    if grid == (side, side):
        return position
    square = position[1:].t().reshape(1, -1, side, side).float()
    resized = F.interpolate(square, grid, mode='bicubic', align_corners=False)
    return torch.cat([position[:1], resized.flatten(2)[0].t().to(position)])
