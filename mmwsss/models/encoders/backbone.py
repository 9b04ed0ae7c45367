"""Any registered backbone (mmpretrain, MMSeg) as a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy

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
from .vit import mean_attention
from .weights import load_exactly, read_weights, without_prefix

_PROBE_SIZE = 64


@MODELS.register_module()
class FrozenBackbone(FrozenEncoder):
    """A pretrained backbone that gives its feature maps and never trains.

    Images keep their size: convolutions take any, and mmpretrain's vision transformers
    pad to the patch size by themselves (so h = ceil(H / patch)).

    Args:
        backbone: Config of the backbone, e.g. ``dict(type='mmpretrain.MobileOne',
            arch='s0', deploy=True, out_indices=(1, 3))``. Vision transformers need
            ``out_type='featmap'``. Without a scope in the type, MMSeg's are meant.
        weights: Local file (.safetensors or .pth; half precision becomes float32), a
            URL, or None for random weights, which are the same in every run.
        prefix: Start of the backbone's names in the file; '' if there is none.
        mean: Image mean, RGB, 0..255.
        std: Image standard deviation, RGB, 0..255.
        unstride: Submodules whose convolutions get stride 1, e.g.
            ``('stage4.0.branch_reparam',)`` for stride 16 instead of 32.
        num_attentions: Attention maps of that many last blocks are returned;
            mmpretrain's vision transformers only.

    Raises:
        InputError: Anything above is unusable.
    """

    def __init__(
        self,
        *,
        backbone: Mapping,
        weights: str | None = None,
        prefix: str = 'backbone.',
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        unstride: Sequence[str] = (),
        num_attentions: int = 0,
    ) -> None:
        tower = _build_tower(backbone, init=weights is None)
        if weights is not None:
            _load(tower, weights, prefix=prefix, name=backbone['type'])
        for name in unstride:
            set_stride_to_one(tower, name)
        _attention_modules(tower, num_attentions)  # fails early
        tower.eval()
        super().__init__(
            tower,
            mean=mean,
            std=std,
            feature_channels=_probe_channels(tower, backbone),
        )
        self.num_attentions = num_attentions

    def _encode(self, image: Tensor) -> Encoded:
        modules = _attention_modules(self.tower, self.num_attentions)
        with _recorded_attentions(modules) as attentions:
            features = self.tower(image)
        return Encoded(
            features=tuple(features),
            attentions=torch.stack(attentions, dim=1) if attentions else None,
            num_extra_tokens=getattr(self.tower, 'num_extra_tokens', 0),
        )


def _build_tower(backbone: Mapping, *, init: bool) -> nn.Module:
    config = deepcopy(dict(backbone))
    if 'type' not in config:
        raise InputError(f'The backbone config needs a type, got {dict(backbone)}.')
    if isinstance(config.get('out_indices'), tuple):
        # mmpretrain's vision transformer writes into it.
        config['out_indices'] = list(config['out_indices'])
    try:
        with fixed_cpu_rng():
            tower = MODELS.build(config)
            if init:
                init_quietly(tower)
    except KeyError as error:
        raise InputError(
            f"The backbone '{config['type']}' is not known (mmpretrain's are written "
            "'mmpretrain.Name' and need onedl-mmpretrain installed)."
        ) from error
    return tower


def _load(tower: nn.Module, weights: str, *, prefix: str, name: str) -> None:
    if weights.startswith(('http://', 'https://')):
        weights = download(weights)
    tensors = read_weights(weights, how_to_get='give an existing file or a URL')
    tensors = without_prefix(tensors, prefix, path=weights)
    load_exactly(tower, tensors, path=weights, what=f"'{name}'")


def set_stride_to_one(tower: nn.Module, name: str) -> None:
    """Let the strided convolutions at or below a submodule keep the resolution."""
    try:
        module = tower.get_submodule(name)
    except AttributeError as error:
        raise InputError(
            f"unstride names '{name}', which the backbone has not; its parts are "
            f'{[child for child, _ in tower.named_children()]}.'
        ) from error
    strided = [
        conv
        for conv in module.modules()
        if isinstance(conv, nn.Conv2d) and max(conv.stride) > 1
    ]
    if not strided:
        raise InputError(
            f"unstride names '{name}', which has no convolution with a stride."
        )
    for conv in strided:
        conv.stride = (1, 1)


def _attention_modules(tower: nn.Module, count: int) -> list[nn.Module]:
    """Return the attention modules of the last blocks of an mmpretrain ViT."""
    if count == 0:
        return []
    blocks = list(getattr(tower, 'layers', []))
    modules = [getattr(block, 'attn', None) for block in blocks]
    if not all(hasattr(module, 'qkv') for module in modules) or not modules:
        raise InputError(
            f'num_attentions={count} needs a vision transformer of mmpretrain, but '
            f'{type(tower).__name__} has no attention to show: set it to 0.'
        )
    if not 0 < count <= len(modules):
        raise InputError(f'num_attentions must be 0..{len(modules)}, got {count}.')
    return modules[-count:]


@contextmanager
def _recorded_attentions(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the head-averaged attention that each module computes inside the block.

    The fused kernel does not give it away, so it is computed a second time from the
    module's input.
    """
    recorded = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        recorded.append(mean_attention(module, inputs[0]))

    handles = [module.register_forward_pre_hook(record) for module in modules]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _probe_channels(tower: nn.Module, backbone: Mapping) -> list[int]:
    """Run a black image through, to learn the channels and check the shapes."""
    with torch.no_grad():
        features = tower(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE))
    if not isinstance(features, Sequence) or any(f.ndim != 4 for f in features):
        raise InputError(
            f"The backbone '{backbone['type']}' must return feature maps (N, D, h, w): "
            "give a vision transformer out_type='featmap'."
        )
    return [feature.shape[1] for feature in features]
