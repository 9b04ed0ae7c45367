"""Small towers and files that the encoder tests share."""

import importlib.util
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
WORDS = {
    'class_names': ('dog', 'person with clothes,people,human', 'boat'),
    'background_words': ('sky', 'ground'),
}
# The real vocabulary, since the real tokenizer is used.
TINY_CLIP = {
    'embed_dim': 24,
    'vision_cfg': {
        'image_size': 32,
        'layers': 4,
        'width': 32,
        'head_width': 16,
        'patch_size': 8,
    },
    'text_cfg': {
        'context_length': 16,
        'vocab_size': 49408,
        'width': 16,
        'heads': 2,
        'layers': 2,
    },
}
TINY_VIT = {
    'embed_dims': 24,
    'num_layers': 3,
    'num_heads': 2,
    'feedforward_channels': 96,
}


def shake(module, seed=0):
    """Give every parameter a value of its own, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if 'logit_scale' not in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.1 * noise)
    module.eval()  # not chained: mmpretrain's returns None
    return module


def tiny_clip(image_size=32, seed=0, **config):
    """Build open_clip's own model, untouched."""
    import open_clip

    vision = {**TINY_CLIP['vision_cfg'], 'image_size': image_size}
    torch.manual_seed(seed)
    model = open_clip.CLIP(**{**TINY_CLIP, 'vision_cfg': vision, **config})
    return shake(model, seed)


def images(*size, seed=0):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool
