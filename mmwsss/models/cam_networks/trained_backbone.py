"""Any backbone of mmpretrain or MMSegmentation as the trained part of a CAM network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from mmengine.logging import MMLogger
from torch import nn

from mmwsss.checkpoints import download
from mmwsss.errors import InputError
from mmwsss.registry import MODELS

from ..encoders.backbone import set_stride_to_one
from ..encoders.weights import load_exactly, read_weights, without_prefix

_PROBE_SIZE = 64


def build_backbone(config: Mapping, *, unstride: Sequence[str] = ()) -> nn.Module:
    """Build a backbone that gives a tuple of feature maps.

    Args:
        config: of the backbone; without a scope in the type, MMSegmentation's.
        unstride: submodules whose convolutions get stride 1, e.g.
            ``('stage4.0.branch_reparam',)`` of a deployed MobileOne.

    Raises:
        InputError: if the type is missing or unknown, or a submodule is.
    """
    config = deepcopy(dict(config))
    if 'type' not in config:
        raise InputError(f'the backbone config needs a type, got {config}')
    try:
        backbone = MODELS.build(config)
    except KeyError as error:
        raise InputError(
            f"the backbone '{config['type']}' is not known (mmpretrain's are written "
            "'mmpretrain.Name' and need onedl-mmpretrain installed)"
        ) from error
    for name in unstride:
        set_stride_to_one(backbone, name)
    return backbone


def probe_channels(backbone: nn.Module, *, num_stages: int) -> list[int]:
    """Channels of each feature map; freezes what the last map does not depend on.

    Side branches see detached maps, so a parameter that the last map does not depend
    on (a norm layer behind an early stage) would never get a gradient, and
    DistributedDataParallel would wait for it.

    Args:
        backbone: returns feature maps, the deepest one last.
        num_stages: how many maps it must return.

    Raises:
        InputError: if it returns something else.
    """
    backbone.eval()
    maps = backbone(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE))
    # mmpretrain's MobileOne freezes its stages when the mode is set and not before,
    # but DDP decides at its construction what to wait for.
    backbone.train()
    if isinstance(maps, torch.Tensor) or any(m.ndim != 4 for m in maps):
        raise InputError(
            f'{type(backbone).__name__} must return feature maps (N, D, h, w); give a '
            "vision transformer out_type='featmap'"
        )
    if len(maps) != num_stages:
        raise InputError(
            f'{type(backbone).__name__} returns {len(maps)} feature maps, but '
            f'{num_stages} are needed: set out_indices={tuple(range(num_stages))}'
        )
    _freeze_unused(backbone, maps[-1])
    return [m.shape[1] for m in maps]


def probe_output(backbone: nn.Module) -> tuple[int, bool]:
    """Channels of the last output and whether it is tokens instead of a map.

    What it does not depend on is frozen, since DistributedDataParallel would wait for
    a gradient.
    """
    was_training = backbone.training
    backbone.eval()
    try:
        outputs = backbone(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE))
    except RuntimeError as error:
        reason = str(error).strip().split('\n')[0]
        raise InputError(
            f'{type(backbone).__name__} cannot see an image of {_PROBE_SIZE} x '
            f'{_PROBE_SIZE} ({reason}), but photos are of every size: take another one'
        ) from error
    last = outputs[-1] if isinstance(outputs, (tuple, list)) else None
    if not isinstance(last, torch.Tensor) or last.ndim not in (3, 4):
        raise InputError(
            f'{type(backbone).__name__} must return feature maps (N, D, h, w) or '
            "tokens (N, T, D): give a vision transformer out_type='raw'"
        )
    if last.ndim == 3 and not hasattr(backbone, 'patch_embed'):
        raise InputError(
            f'{type(backbone).__name__} returns tokens but has no patch_embed to tell '
            "their grid: give it out_type='featmap'"
        )
    # mmpretrain's MobileOne freezes its stages when the mode is set and not before.
    backbone.train(was_training)
    _freeze_unused(backbone, last)
    return last.shape[1 if last.ndim == 4 else 2], last.ndim == 3


def _freeze_unused(backbone: nn.Module, output: torch.Tensor) -> None:
    """Freeze the parameters that an output does not depend on."""
    trained = [p for p in backbone.parameters() if p.requires_grad]
    if trained:
        gradients = torch.autograd.grad(output.sum(), trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)


def load_backbone(backbone: nn.Module, weights: str, *, prefix: str) -> None:
    """Load pretrained weights; every parameter must be met and no name left over.

    Args:
        backbone: where to.
        weights: file (.safetensors or .pth; half precision becomes float32) or URL.
        prefix: start of the backbone's names in the file; '' if there is none.

    Raises:
        InputError: if the file is missing or does not fit.
    """
    if weights.startswith(('http://', 'https://')):
        weights = download(weights)
    tensors = read_weights(weights, how_to_get='give an existing file or a URL')
    tensors = without_prefix(tensors, prefix, path=weights)
    name = type(backbone).__name__
    load_exactly(backbone, tensors, path=weights, what=f"'{name}'")
    # MMEngine's list of initialisations is written before and does not know it.
    MMLogger.get_current_instance().info(f"{name} got the weights of '{weights}'")
