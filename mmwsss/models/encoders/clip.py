"""Frozen CLIP image tower with text-driven class activation maps.

Follows CLIP-ES (Lin et al., CVPR 2023) and WeCLIP (Zhang et al., CVPR 2024): the image
runs once through all blocks but the last without gradients; softmax Grad-CAM
differentiates the last block alone. Own code on top of open_clip's modules (MIT).
Differences from the released code: all classes of a batch in one backward pass, any
rectangular input, CLIP's own image normalisation, no hard half precision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmwsss.errors import InputError
from mmwsss.functional.cam import present_softmax, softmax_grad_cam
from mmwsss.registry import MODELS

from .base import Encoded, FrozenEncoder, fixed_cpu_rng
from .vit import (
    attention_weights,
    resize_position_embedding,
    split_heads,
    tokens_to_map,
)
from .weights import (
    is_openai_archive,
    load_exactly,
    read_weights,
    without_openai_scalars,
)

OPENAI_MEAN = (122.7709383, 116.7460125, 104.09373615)
OPENAI_STD = (68.5005327, 66.6321579, 70.32316305)
_WEIGHT_SUFFIXES = ('.pt', '.pth', '.bin', '.ckpt', '.safetensors')
_TEXT_BATCH = 256


@MODELS.register_module()
class FrozenCLIP(FrozenEncoder):
    """CLIP's image tower as a frozen encoder and CAM source.

    The text tower runs once, when the object is built, and is dropped.

    Layer indices count the outputs of all blocks but the last, F_0 .. F_{L-2}: the
    last block exists for the CAMs only. So -1 is F_{L-2}, here and in
    ``cam_input_layer``.

    Args:
        model: open_clip's name of a ViT ('ViT-B-16', 'ViT-L-14', ...), or a model
            config as a dict or the path of its JSON file (also open_clip's
            ``open_clip_config.json`` with ``model_cfg`` and ``preprocess_cfg``).
        weights: A local file (OpenAI's TorchScript archive, a state dict, safetensors),
            an open_clip pretrained tag, or None for random weights (dry runs), which
            are the same in every run. OpenAI's archives and tags switch QuickGELU on
            by themselves; for a converted OpenAI file use the '-quickgelu' model name.
        class_names: One prompt word or comma list per foreground class, in the order
            of ``image_label``.
        background_words: Words for what may surround the objects; they compete with
            the classes in the softmax.
        templates: Sentences with one ``{}`` each; the text features are their mean.
        num_attentions: Attention maps of that many last blocks are returned.
        feature_layers: Which block outputs become feature maps.
        cam_input_layer: Output the last block starts from in :meth:`grad_cams`; -1 as
            the network is, -2 skips the last but one block (WeCLIP+ on VOC). The
            last attention map is that of the same pass, as published.
        logit_scale_divisor: Softens the softmax over the classes; 4 for ViT-L/14 in
            the released code.
        mean: Image mean, RGB, 0..255; None takes that of the weights.
        std: Image standard deviation, RGB, 0..255; None takes that of the weights.

    Raises:
        InputError: Anything above is unusable.
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
        feature_layers: Sequence[int] = (-1,),
        cam_input_layer: int = -1,
        logit_scale_divisor: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        _check_words(class_names, background_words, templates)
        if logit_scale_divisor <= 0:
            raise InputError(
                f'logit_scale_divisor must be positive, got {logit_scale_divisor}.'
            )
        clip, preprocess = build_clip(model, weights)
        visual = clip.visual
        num_blocks = len(visual.transformer.resblocks)
        if not 0 <= num_attentions <= num_blocks:
            raise InputError(
                f'num_attentions must be 0..{num_blocks} for {_name(model)}, '
                f'got {num_attentions}.'
            )
        layers = [_layer(i, num_blocks, 'feature_layers') for i in feature_layers]
        if not layers:
            raise InputError('feature_layers is empty: give at least one, e.g. (-1,).')
        patch_size, other_side = visual.patch_size
        if patch_size != other_side:
            raise InputError(f'Patches must be square, got {visual.patch_size}.')
        super().__init__(
            visual,
            mean=mean or preprocess['mean'],
            std=std or preprocess['std'],
            feature_channels=[len(visual.class_embedding)] * len(layers),
            patch_size=patch_size,
        )
        self.class_names = tuple(class_names)
        self.background_words = tuple(background_words)
        self.num_attentions = num_attentions
        self._feature_layers = layers
        self._cam_input_layer = _layer(cam_input_layer, num_blocks, 'cam_input_layer')
        words = [*class_names, *background_words]
        self._register_constant('text_features', _encode_texts(clip, words, templates))
        scale = clip.logit_scale.detach().exp().reshape(()) / logit_scale_divisor
        self._register_constant('logit_scale', scale)

    def grad_cams(
        self, encoded: Encoded, image_label: Tensor, *, max_classes: int | None = None
    ) -> Tensor:
        """Softmax Grad-CAMs of the present classes, by text, in one backward pass.

        The class scores are softmax(scale * f t^T) over the image's classes and all
        background words, f the normalised mean of the patch tokens after the last
        block; the activation is the normed input of that block's attention.

        Args:
            encoded: Of this encoder.
            image_label: (N, K), 0/1.
            max_classes: Most classes that any image of the batch has; known, it saves
                a wait for the device.

        Returns:
            (N, K, h, w), non-negative, not normalised, absent classes zero, detached.

        Raises:
            InputError: K is not the number of class_names.
        """
        if image_label.ndim != 2 or image_label.shape[1] != len(self.class_names):
            raise InputError(
                f'image_label has shape {tuple(image_label.shape)}, but FrozenCLIP was '
                f'given {len(self.class_names)} class_names: they must list the '
                "dataset's foreground classes, one each."
            )
        if encoded.last_block_input is None:
            raise ValueError('encoded carries no last_block_input, so not from CLIP')
        # Inside inference_mode no gradient exists, and its tensors cannot be saved
        # for a backward pass; copies made outside of it can.
        with torch.inference_mode(False), torch.enable_grad():
            image_label = image_label.clone()
            tokens = encoded.last_block_input.detach().clone()
            block = self.tower.transformer.resblocks[-1]
            activations = block.ln_1(tokens).detach().requires_grad_()
            output, _ = _run_block(block, tokens, activations, explicit=True)
            # The scores are sums of tiny differences; the block itself may run in half
            # precision, what follows may not.
            with torch.autocast(tokens.device.type, enabled=False):
                scores = present_softmax(self._text_logits(output), image_label)
                return softmax_grad_cam(
                    activations,
                    scores[:, : len(self.class_names)],
                    image_label,
                    grid=encoded.grid,
                    max_classes=max_classes,
                )

    @torch.no_grad()
    def image_features(self, image: Tensor) -> Tensor:
        """Embeddings of whole images, as CLIP compares them with texts.

        Args:
            image: (N, 3, H, W), RGB in [0, 1]; resized to the tower's own size.

        Returns:
            (N, E), unit length.
        """
        size = tuple(self.tower.image_size)
        if tuple(image.shape[-2:]) != size:
            image = F.interpolate(image, size, mode='bilinear', antialias=True)
        return F.normalize(self.tower((image - self.mean) / self.std), dim=-1)

    @torch.no_grad()
    def cell_features(self, image: Tensor) -> Tensor:
        """Embeddings of the patches, each as if it were the image.

        Args:
            image: (N, 3, H, W), RGB in [0, 1], any size.

        Returns:
            (N, E, h, w), unit length.
        """
        encoded = self.encode(image)
        block, tokens = self.tower.transformer.resblocks[-1], encoded.last_block_input
        tokens, _ = _run_block(block, tokens, block.ln_1(tokens), explicit=False)
        features = self.tower.ln_post(tokens[:, 1:]) @ self.tower.proj
        return tokens_to_map(F.normalize(features, dim=-1), encoded.grid)

    def _encode(self, image: Tensor) -> Encoded:
        tokens, grid = self._embed(image)
        blocks = self.tower.transformer.resblocks
        outputs, attentions = [], []
        for block in blocks[:-1]:
            explicit = len(blocks) - len(outputs) <= self.num_attentions
            tokens, attention = _run_block(
                block, tokens, block.ln_1(tokens), explicit=explicit
            )
            outputs.append(tokens)
            if explicit:
                attentions.append(attention.mean(1))
        last_block_input = outputs[self._cam_input_layer]
        if self.num_attentions:
            normed = blocks[-1].ln_1(last_block_input)
            query, key, _ = _project_qkv(blocks[-1], normed)
            attentions.append(attention_weights(query, key).mean(1))
        return Encoded(
            features=tuple(
                tokens_to_map(outputs[layer], grid) for layer in self._feature_layers
            ),
            attentions=torch.stack(attentions, dim=1) if attentions else None,
            num_extra_tokens=1,
            last_block_input=last_block_input,
        )

    def _embed(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Cut into patches, add class token and positions -> (N, T, D), grid."""
        visual = self.tower
        position = visual.positional_embedding
        patches = visual.conv1(image)  # (N, D, h, w)
        grid = patches.shape[-2], patches.shape[-1]
        # Kept in the type of the weights: under autocast the sum over the blocks
        # would otherwise be accumulated in half precision.
        patches = patches.flatten(2).transpose(1, 2).to(position.dtype)
        token = visual.class_embedding.to(position.dtype).expand(len(image), 1, -1)
        tokens = torch.cat([token, patches], dim=1)
        position = resize_position_embedding(
            position, tuple(visual.grid_size), grid, antialias=True
        )
        return visual.ln_pre(tokens + position), grid

    def _text_logits(self, tokens: Tensor) -> Tensor:
        """Scaled cosine (N, K + B) of the pooled patch tokens with the texts."""
        visual = self.tower
        patches = tokens[:, 1:].to(self.text_features.dtype)
        if visual.final_ln_after_pool:
            pooled = visual.ln_post(patches.mean(1))
        else:
            pooled = visual.ln_post(patches).mean(1)
        image_features = F.normalize(pooled @ visual.proj, dim=-1)
        return self.logit_scale * image_features @ self.text_features.T


def build_clip(
    model: str | Mapping, weights: str | None
) -> tuple[nn.Module, dict[str, Sequence[float]]]:
    """Build an open_clip model with a plain ViT and load its weights.

    Args:
        model: See :class:`FrozenCLIP`.
        weights: See :class:`FrozenCLIP`.

    Returns:
        The model in float32 on the CPU, and its image ``mean`` and ``std``, 0..255.

    Raises:
        InputError: Unknown model or tag, missing or foreign weights, no ViT.
    """
    open_clip = _import_open_clip()
    config, preprocess = _read_config(model)
    path = weights
    if weights is not None and not Path(weights).expanduser().is_file():
        path, tag_preprocess = _fetch_tag(open_clip, model, weights)
        preprocess = {**preprocess, **tag_preprocess}
    config['quick_gelu'] = preprocess.pop('quick_gelu', config.get('quick_gelu', False))
    tensors = None
    if path is not None:
        tensors = read_weights(path, how_to_get='give an existing file')
        config['quick_gelu'] |= is_openai_archive(tensors)
        tensors = without_openai_scalars(tensors)
    custom_text = config.pop('custom_text', False)
    model_class = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    try:
        with fixed_cpu_rng():
            clip = model_class(**config)
    except TypeError as error:
        raise InputError(
            f'open_clip cannot build the config of {_name(model)}: {error}.'
        ) from error
    _check_is_plain_vit(clip, model)
    if tensors is not None:
        load_exactly(clip, tensors, path=path, what=_name(model))
    clip.eval()
    return clip, {
        'mean': [255 * value for value in preprocess['mean']],
        'std': [255 * value for value in preprocess['std']],
    }


def _import_open_clip():
    # Imported late: configs without CLIP must run where open_clip is not installed.
    try:
        import open_clip
    except ImportError as error:
        raise InputError(
            f'FrozenCLIP needs open_clip ({error}): pip install open_clip_torch.'
        ) from error
    return open_clip


def _read_config(model: str | Mapping) -> tuple[dict, dict]:
    """Return a private copy of the model config, and mean / std in 0..1."""
    from open_clip import get_model_config, list_models

    if isinstance(model, str) and model.endswith('.json'):
        try:
            model = json.loads(Path(model).expanduser().read_text('utf-8'))
        except (OSError, ValueError) as error:
            raise InputError(
                f"The open_clip config '{model}' cannot be read: {error}."
            ) from error
    if isinstance(model, str):
        config = get_model_config(model.replace('/', '-'))
        if config is None:
            near = get_close_matches(model, list_models(), n=3, cutoff=0.3)
            raise InputError(
                f"open_clip has no model '{model}': did you mean one of {near}?"
            )
        model = config
    if not isinstance(model, Mapping):
        raise InputError(f'model must be a name, a path or a dict, got {model!r}.')
    config = json.loads(json.dumps(model))
    preprocess = config.pop('preprocess_cfg', {})
    config = config.pop('model_cfg', config)
    preprocess.setdefault('mean', [value / 255 for value in OPENAI_MEAN])
    preprocess.setdefault('std', [value / 255 for value in OPENAI_STD])
    text = config.get('text_cfg', {})
    if not config.get('vision_cfg') or not text:
        raise InputError(
            'An open_clip config needs vision_cfg and text_cfg, got only '
            f'{sorted(config)}.'
        )
    foreign = {'hf_model_name', 'hf_tokenizer_name'} & text.keys()
    if foreign or 'multimodal_cfg' in config:
        raise InputError(
            f'{_name(model)} brings its own text model or tokenizer '
            f"({sorted(foreign) or 'multimodal_cfg'}): use one with CLIP's, such as "
            "'ViT-B-16'."
        )
    return config, preprocess


def _fetch_tag(open_clip, model: str | Mapping, tag: str) -> tuple[str, dict]:
    """Download an open_clip tag; return the file and what belongs to the tag."""
    name = model.replace('/', '-') if isinstance(model, str) else ''
    tag_config = open_clip.get_pretrained_cfg(name, tag)
    if not tag_config:
        raise InputError(_missing_weights_message(open_clip, name, tag))
    try:
        path = open_clip.download_pretrained(tag_config)
    except Exception as error:
        # huggingface_hub, urllib and open_clip each raise their own types.
        reason = str(error).strip().split('\n')[0]
        raise InputError(
            f"The open_clip weights '{tag}' of {name} could not be downloaded "
            f'({reason}): fetch them on a connected machine and give the file.'
        ) from error
    belongs = {k: tag_config[k] for k in ('mean', 'std') if k in tag_config}
    belongs['quick_gelu'] = bool(tag_config.get('quick_gelu', tag == 'openai'))
    return path, belongs


def _missing_weights_message(open_clip, name: str, weights: str) -> str:
    path = Path(weights).expanduser()
    looks_like_path = path.suffix in _WEIGHT_SUFFIXES or '/' in weights
    tags = open_clip.list_pretrained_tags_by_model(name)
    url = open_clip.get_pretrained_url(name, 'openai')
    if looks_like_path and url:
        return (
            f"There is no weights file at '{path.absolute()}': get it with "
            f"`curl -L --create-dirs -o '{weights}' {url}`."
        )
    if looks_like_path:
        return (
            f"There is no weights file at '{path.absolute()}': give the file that "
            f'belongs to the model, or one of its tags {tags}.'
        )
    return (
        f"'{weights}' is neither a file (looked at '{path.absolute()}') nor a "
        f'pretrained tag of {name or "this config"}: its tags are {tags}.'
    )


def _check_is_plain_vit(clip: nn.Module, model: str | Mapping) -> None:
    from open_clip.transformer import VisionTransformer

    visual = clip.visual
    if not isinstance(visual, VisionTransformer):
        problem = f'its image tower is a {type(visual).__name__}'
    elif getattr(visual, 'attn_pool', None) is not None:
        problem = 'it pools with attention'
    elif not all(
        isinstance(block.attn, nn.MultiheadAttention)
        for block in visual.transformer.resblocks
    ):
        problem = 'its blocks have a special attention'
    elif len(visual.transformer.resblocks) < 2:
        problem = 'it has fewer than two blocks'
    else:
        return
    raise InputError(
        f'FrozenCLIP needs a plain CLIP ViT, but {_name(model)} is none ({problem}): '
        "use 'ViT-B-16' or 'ViT-L-14'."
    )


def _encode_texts(
    clip: nn.Module, words: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Mean over the templates of each word's text feature, (words, E), unit length."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    # CustomTextCLIP keeps the number on its text tower in some versions.
    length = getattr(clip, 'context_length', None) or clip.text.context_length
    texts = [template.format(word) for word in words for template in templates]
    token_ids = tokenizer(texts, context_length=length)
    with torch.no_grad():
        features = torch.cat(
            [
                F.normalize(clip.encode_text(part), dim=-1)
                for part in token_ids.split(_TEXT_BATCH)
            ]
        )
    features = features.reshape(len(words), len(templates), -1).mean(1)
    return F.normalize(features, dim=-1)


def _run_block(
    block: nn.Module, tokens: Tensor, normed: Tensor, *, explicit: bool
) -> tuple[Tensor, Tensor | None]:
    """Run one residual block of open_clip.

    Args:
        block: The block; its ln_1 is not applied here.
        tokens: (N, T, D), the residual stream.
        normed: ln_1(tokens).
        explicit: Write the attention out, for its maps and for batched gradients
            (fused attention has no batched backward); else the fused kernel.

    Returns:
        The output tokens, and the attention (N, heads, T, T) if explicit.
    """
    query, key, value = _project_qkv(block, normed)
    if explicit:
        attention = attention_weights(query, key)
        mixed = attention.to(value.dtype) @ value
    else:
        attention = None
        mixed = F.scaled_dot_product_attention(query, key, value)
    mixed = block.attn.out_proj(mixed.transpose(1, 2).flatten(2))
    tokens = tokens + block.ls_1(mixed)
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens))), attention


def _project_qkv(block: nn.Module, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attention = block.attn
    qkv = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    return split_heads(qkv, attention.num_heads)


def _layer(index: int, num_blocks: int, argument: str) -> int:
    """Turn a layer index into its place among F_0 .. F_{L-2}."""
    usable = num_blocks - 1
    if not -usable <= index < usable:
        raise InputError(
            f'{argument} must lie in {-usable}..{usable - 1} (outputs of all '
            f'{num_blocks} blocks but the last), got {index}.'
        )
    return index % usable


def _check_words(
    class_names: Sequence[str],
    background_words: Sequence[str],
    templates: Sequence[str],
) -> None:
    for argument, words in (
        ('class_names', class_names),
        ('background_words', background_words),
        ('templates', templates),
    ):
        if isinstance(words, str) or not all(
            isinstance(word, str) and word.strip() for word in words
        ):
            raise InputError(f'{argument} must be a list of words, got {words!r}.')
    for argument, words in (('class_names', class_names), ('templates', templates)):
        if not words:
            raise InputError(f'{argument} is empty: give at least one.')
    for template in templates:
        if template.count('{}') != 1 or template.count('{') != 1:
            raise InputError(
                f"A template needs exactly one '{{}}' for the class, got '{template}'."
            )
    words = [*class_names, *background_words]
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise InputError(
            f"'{twice[0]}' stands twice among class_names and background_words: a "
            'word may compete with the others only once.'
        )


def _name(model: str | Mapping) -> str:
    return f"'{model}'" if isinstance(model, str) else 'this open_clip config'
