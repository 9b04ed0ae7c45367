"""Write randomly filled CLIP and DINOv2 weights in the real formats.

For dry runs without downloads: a configuration, its memory and its speed can be tried
on a machine that reaches no weights server. The results of such a run mean nothing.

    python tools/make_random_weights.py clip ViT-B-16 --out weights
    python tools/make_random_weights.py dinov2 small --registers 4 --out weights

CLIP is written as OpenAI publishes it (a TorchScript archive, half precision; --format
safetensors gives open_clip's form), DINOv2 with Meta's names. File names are the
official ones.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.models.encoders.clip import build_clip
from mmwsss.models.encoders.dinov2 import FrozenDINOv2

_MMPRETRAIN_TO_META = (
    (r'^ln1\.', 'norm.'),
    (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
    (r'^layers\.', 'blocks.'),
    (r'\.ln1\.', '.norm1.'),
    (r'\.ln2\.', '.norm2.'),
    (r'\.attn\.gamma1\.weight$', '.ls1.gamma'),
    (r'\.ffn\.gamma2\.weight$', '.ls2.gamma'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
)


def save_clip(model: str, folder: Path, *, file_format: str = 'openai') -> Path:
    """Write a random CLIP and return its path.

    Args:
        model: open_clip's name, or the path of a JSON config.
        folder: Created if it is not there.
        file_format: 'openai' (TorchScript archive) or 'safetensors'.
    """
    clip, _ = build_clip(model, None)
    folder.mkdir(parents=True, exist_ok=True)
    stem = Path(model).stem.replace('/', '-')
    if file_format == 'safetensors':
        from safetensors.torch import save_file

        path = folder / f'{stem}.safetensors'
        save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, path)
        return path
    path = folder / f'{stem}.pt'
    _scripted_tree(_as_openai_tensors(clip)).save(str(path))
    return path


def save_dinov2(arch: str, folder: Path, *, registers: int = 0) -> Path:
    """Write a random DINOv2 with Meta's names and return its path.

    Args:
        arch: 'small', 'base' or 'large'.
        folder: Created if it is not there.
        registers: 0 or 4.
    """
    tower = FrozenDINOv2(arch=arch, registers=registers).tower
    tensors = {'mask_token': torch.zeros(1, tower.embed_dims)}
    for name, tensor in tower.state_dict().items():
        for pattern, replacement in _MMPRETRAIN_TO_META:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f'_reg{registers}' if registers else ''
    path = folder / f'dinov2_vit{arch[0]}14{suffix}_pretrain.pth'
    torch.save(tensors, path)
    return path


def _as_openai_tensors(clip: nn.Module) -> dict[str, Tensor]:
    """Half precision where OpenAI has it, and the three scalars of its archives."""
    from open_clip.model import convert_weights_to_fp16

    scalars = {
        'input_resolution': clip.visual.image_size[0],
        'context_length': clip.context_length,
        'vocab_size': clip.vocab_size,
    }
    convert_weights_to_fp16(clip)
    tensors = {k: v.detach() for k, v in clip.state_dict().items()}
    return tensors | {k: torch.tensor(v) for k, v in scalars.items()}


def _scripted_tree(tensors: dict[str, Tensor]) -> torch.jit.ScriptModule:
    """Wrap named tensors into the module tree that their dotted names describe."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *parents, leaf = name.split('.')
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.register_buffer(leaf, tensor)
    with warnings.catch_warnings():
        # Deprecated, but the format that OpenAI published.
        warnings.simplefilter('ignore', FutureWarning)
        return torch.jit.script(root)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('family', choices=['clip', 'dinov2'])
    parser.add_argument('name', help='open_clip model or JSON path; small, base, large')
    parser.add_argument('--out', type=Path, required=True, help='folder to write to')
    parser.add_argument('--registers', type=int, choices=[0, 4], default=0)
    parser.add_argument('--format', choices=['openai', 'safetensors'], default='openai')
    options = parser.parse_args(arguments)
    try:
        if options.family == 'clip':
            path = save_clip(options.name, options.out, file_format=options.format)
        else:
            path = save_dinov2(options.name, options.out, registers=options.registers)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
