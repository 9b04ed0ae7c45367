"""Training of the tiny CLIP and DINO towers that come with the synthetic benchmark.

They learn from drawn photos of a stream of their own and from words, never from a mask:

1. A small convolutional network, the scout, learns from whole photos which words
   describe them. It scores every place and averages, so its score maps are class
   activation maps (Zhou et al., CVPR 2016). Convolutions need far fewer photos than
   transformers, which is why they go first.
2. The text tower learns to put a caption where the directions of its words add up.
3. The vision tower of CLIP learns patch by patch which of the photo's words the scout
   finds there.
4. The DINO tower learns the scout's features of visible and hidden patches alike (as
   small DINOv2 models are distilled from a large one, and as in masked distillation).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from mmpretrain.models import VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from mmwsss.datasets.synthetic import BACKGROUND_WORDS, CLASSES, draw_photo
from mmwsss.files import write_json

CLIP_CONFIG = {
    'embed_dim': 64,
    'vision_cfg': {
        'image_size': 144,
        'patch_size': 12,
        'width': 96,
        'layers': 5,
        'head_width': 32,
        'pool_type': 'avg',
    },
    'text_cfg': {
        'context_length': 32,
        'vocab_size': 49408,
        'width': 24,
        'heads': 2,
        'layers': 2,
    },
}
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
DINO_CONFIG = {
    'arch': {
        'embed_dims': 96,
        'num_layers': 4,
        'num_heads': 3,
        'feedforward_channels': 384,
    },
    'patch_size': 8,
    'image_size': 144,
}
DINO_MEAN = (0.485, 0.456, 0.406)
DINO_STD = (0.229, 0.224, 0.225)
TEMPLATES = (
    'a photo of a {}.',
    'a picture of a {}.',
    'a clean origami {}.',
    'a drawing of a {}.',
    'there is a {} in the scene.',
    '{}',
)
CONCEPTS = (*CLASSES, *BACKGROUND_WORDS)
SCOUT_CHANNELS = 96
_CLIP_SIDE = CLIP_CONFIG['vision_cfg']['image_size']
# Of the scout's scores when they become shares; 1 is what it was trained with.
_SOFTNESS = 1.5

Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainingPhoto:
    """What the towers may see of a drawn photo: pixels and what a caption may name."""

    image: np.ndarray
    concepts: tuple[str, ...]


def draw_training_photos(
    count: int, *, seed: int, progress: Callable[[int], None] | None = None
) -> list[TrainingPhoto]:
    """Photos of the stream 'towers', which shares none with the benchmark."""
    photos = []
    for index in range(count):
        drawn = draw_photo(seed, index, stream='towers')
        photos.append(TrainingPhoto(drawn.image, (*drawn.classes, *drawn.words)))
        if progress is not None:
            progress(index + 1)
    return photos


# -- scout ---------------------------------------------------------------------------


class Scout(nn.Module):
    """A small residual network with a score map per word at stride 8.

    Its input is normalised as for CLIP.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(3, 24, stride=2),
            _conv(24, 48, stride=2),
            _Residual(48),
            _conv(48, SCOUT_CHANNELS, stride=2),
            _Residual(SCOUT_CHANNELS),
            _Residual(SCOUT_CHANNELS),
            _Residual(SCOUT_CHANNELS, dilation=2),
        )
        self.scores = nn.Conv2d(SCOUT_CHANNELS, len(CONCEPTS), 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> features (N, D, H/8, W/8) and scores (N, words, H/8, W/8)."""
        features = self.body(image)
        return features, self.scores(features)


class _Residual(nn.Module):
    def __init__(self, channels: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.first = _conv(channels, channels, dilation=dilation)
        self.second = _conv(channels, channels, dilation=dilation)[:-1]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _conv(
    inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def train_scout(
    photos: Sequence[TrainingPhoto],
    *,
    seed: int,
    iterations: int,
    batch_size: int = 32,
    lr: float = 2e-3,
    report: Report | None = None,
) -> Scout:
    """Train the scout on the words of whole photos and return it in eval mode.

    Args:
        photos: From ``draw_training_photos``.
        seed: Fixes weights, order and crops.
        iterations: Optimiser steps.
        batch_size: Photos per step.
        lr: Highest learning rate (warm-up, then cosine).
        report: Called with the iteration and a dict of numbers.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    scout = Scout()
    optimizer = _optimizer(scout.parameters(), lr)
    for iteration in range(iterations):
        _set_lr(optimizer, lr, iteration, iterations)
        image, answer = _views(photos, rng, count=batch_size, side=96)
        score = scout(image)[1].mean((2, 3))
        loss = _naming_loss(score, answer)
        _step(optimizer, loss)
        if report is not None:
            report(iteration, {'loss': loss.item()})
    return scout.eval().requires_grad_(False)


def _naming_loss(score: Tensor, answer: Tensor) -> Tensor:
    """Yes or no to every word; which class, for the photos that show just one.

    Args:
        score: (N, words).
        answer: (N, words) 0/1.
    """
    classes = answer[:, : len(CLASSES)]
    single = classes.sum(1) == 1
    # Weighted by size: a word in a few photos would be learned last.
    loss = 8 * F.binary_cross_entropy_with_logits(score, answer)
    if single.any():
        chosen = score[single, : len(CLASSES)]
        loss = loss + F.cross_entropy(chosen, classes[single].argmax(1))
    return loss


# -- CLIP ----------------------------------------------------------------------------


def train_clip(
    photos: Sequence[TrainingPhoto],
    scout: Scout,
    *,
    seed: int,
    iterations: int,
    text_iterations: int = 800,
    batch_size: int = 24,
    lr: float = 1e-3,
    report: Report | None = None,
) -> open_clip.CLIP:
    """Train the tiny CLIP and return it in eval mode.

    Args:
        photos: From ``draw_training_photos``.
        scout: Trained.
        seed: Fixes weights, order, crops and captions.
        iterations: Optimiser steps of the vision tower.
        text_iterations: Optimiser steps of the text tower before.
        batch_size: Photos per step.
        lr: Highest learning rate (warm-up, then cosine).
        report: Called with the iteration and a dict of numbers.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = open_clip.CLIP(**CLIP_CONFIG, quick_gelu=True)
    _start_clip_locally(model.visual)
    _train_text(model, rng, iterations=text_iterations)
    model.logit_scale.data.fill_(math.log(16))
    prompts = _prompt_bank(model)
    optimizer = _optimizer([*model.visual.parameters(), model.logit_scale], lr)
    side = model.visual.grid_size[0]
    for iteration in range(iterations):
        _set_lr(optimizer, lr, iteration, iterations)
        image, answer = _views(photos, rng, count=batch_size, side=_CLIP_SIDE)
        target = _words_of_places(scout(image)[1], answer, side)
        skip = bool(rng.random() < 0.5)
        patches = F.normalize(_encode_patches(model, image, skip=skip), dim=-1)
        words = prompts[rng.integers(len(prompts))]
        score = model.logit_scale.exp() * patches @ words.t()
        loss = F.cross_entropy(score.flatten(0, 1), target.flatten(0, 1))
        _step(optimizer, loss)
        if report is not None:
            right = score.argmax(-1) == target.argmax(-1)
            report(
                iteration, {'loss': loss.item(), 'right': right.float().mean().item()}
            )
    return model.eval()


@torch.no_grad()
def _words_of_places(scores: Tensor, answer: Tensor, side: int) -> Tensor:
    """Shares of a photo's own words at each place.

    Args:
        scores: (N, words, h, w) of the scout.
        answer: (N, words) 0/1, what the photo shows.
        side: Places per side.

    Returns:
        (N, side * side, words); words that the photo does not show get 0.
    """
    scores = F.interpolate(
        scores, (side, side), mode='bilinear', align_corners=False, antialias=True
    )
    scores = scores / _SOFTNESS
    scores = scores.masked_fill(answer[..., None, None] == 0, -torch.inf)
    # A photo without any word says nothing; its patches shall be any word.
    scores = scores.masked_fill((answer.sum(1) == 0)[:, None, None, None], 0.0)
    return scores.softmax(1).flatten(2).transpose(1, 2)


@torch.no_grad()
def _start_clip_locally(visual: nn.Module) -> None:
    """Positions as sines; attention that looks at places and contents alike."""
    side, width = visual.grid_size[0], visual.conv1.out_channels
    visual.positional_embedding[1:] = _sines(side, width)
    for block in visual.transformer.resblocks:
        attention = block.attn
        _start_locally(
            attention.in_proj_weight, attention.out_proj.weight, attention.num_heads
        )


def _sines(side: int, width: int) -> Tensor:
    """(side * side, width) position embedding whose products fall off with distance."""
    place = torch.arange(side, dtype=torch.float32)
    angle = place[:, None] / 100 ** (torch.arange(width // 4) / (width // 4))
    wave = torch.cat([angle.sin(), angle.cos()], 1)
    rows = wave[:, None].expand(-1, side, -1)
    cols = wave[None].expand(side, -1, -1)
    return 0.5 * torch.cat([rows, cols], -1).flatten(0, 1)


@torch.no_grad()
def _start_locally(qkv: Tensor, out: Tensor, heads: int) -> None:
    """Set attention weights as they look in trained transformers, in place.

    Queries and keys multiply to about the identity, values and output to about minus
    the identity (Trockman and Kolter, ICML 2023); small data then goes further.
    """
    width, depth = len(out), len(out) // heads
    for head in range(heads):
        noise = torch.randn(width, width) / width**0.5
        left, size, right = torch.linalg.svd(0.7 * noise + 0.7 * torch.eye(width))
        root = size[:depth].sqrt()[:, None]
        rows = slice(head * depth, (head + 1) * depth)
        qkv[:width][rows] = root * left[:, :depth].t()
        qkv[width : 2 * width][rows] = root * right[:depth]
    noise = torch.randn(width, width) / width**0.5
    left, size, right = torch.linalg.svd(0.4 * noise - 0.4 * torch.eye(width))
    qkv[2 * width :] = size.sqrt()[:, None] * right
    out.copy_(left * size.sqrt())


def _encode_patches(model: open_clip.CLIP, image: Tensor, *, skip: bool) -> Tensor:
    """Patch tokens in the space of the captions, (N, h*w, E).

    Args:
        model: Tiny CLIP.
        image: (N, 3, H, W), normalised.
        skip: Leave out the last block's identity path around its attention. Class
            activation maps follow the gradient through that attention alone; trained
            with the identity always there, the attention carries little.
    """
    visual = model.visual
    patches = visual.conv1(image).flatten(2).transpose(1, 2)
    first = visual.class_embedding.expand(len(image), 1, -1)
    tokens = torch.cat([first, patches], 1) + visual.positional_embedding
    tokens = visual.ln_pre(tokens)
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    last = visual.transformer.resblocks[-1]
    normed = last.ln_1(tokens)
    attended = last.attn(normed, normed, normed, need_weights=False)[0]
    tokens = attended if skip else tokens + attended
    tokens = tokens + last.mlp(last.ln_2(tokens))
    return visual.ln_post(tokens[:, 1:]) @ visual.proj


def _train_text(
    model: open_clip.CLIP,
    rng: np.random.Generator,
    *,
    iterations: int,
    batch_size: int = 32,
    lr: float = 2e-3,
) -> None:
    """Teach the text tower one direction per word, and sums of them; then freeze it."""
    # With open_clip's 0.02 all captions start out nearly alike.
    nn.init.normal_(model.token_embedding.weight, std=0.5)
    text = [p for name, p in model.named_parameters() if 'visual.' not in name]
    directions = torch.randn(CLIP_CONFIG['embed_dim'], len(CONCEPTS))
    directions = torch.linalg.qr(directions)[0].t()
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    optimizer = _optimizer(text, lr)
    for iteration in range(iterations):
        _set_lr(optimizer, lr, iteration, iterations)
        texts, named = _captions(rng, count=batch_size)
        feature = model.encode_text(tokenizer(texts), normalize=True)
        goal = F.normalize(named @ directions, dim=-1)
        _step(optimizer, (1 - (feature * goal).sum(1)).mean())
    for parameter in text:
        parameter.requires_grad_(False)
    model.logit_scale.requires_grad_()
    _forget_unused_tokens(model, tokenizer)


@torch.no_grad()
def _prompt_bank(model: open_clip.CLIP) -> Tensor:
    """Text features of all words in all templates, (templates, words, E)."""
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    bank = [
        model.encode_text(tokenizer([t.format(w) for w in CONCEPTS]), normalize=True)
        for t in TEMPLATES
    ]
    return torch.stack(bank)


def _captions(rng: np.random.Generator, *, count: int) -> tuple[list[str], Tensor]:
    """Captions of one to three words, then one prompt per word.

    Returns:
        The texts, and (texts, words) 0/1: what each names.
    """
    chosen = [
        rng.choice(len(CONCEPTS), rng.integers(1, 4), replace=False)
        for _ in range(count)
    ]
    chosen += [[word] for word in range(len(CONCEPTS))]
    texts, named = [], torch.zeros(len(chosen), len(CONCEPTS))
    for row, words in enumerate(chosen):
        link = (' and a ', ' with a ', ', ')[rng.integers(3)]
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        texts.append(template.format(link.join(CONCEPTS[word] for word in words)))
        named[row, list(words)] = 1
    return texts, named


@torch.no_grad()
def _forget_unused_tokens(model: open_clip.CLIP, tokenizer) -> None:
    """Zero the embeddings no caption ever used; they are noise, zeros compress."""
    texts = [template.format(word) for template in TEMPLATES for word in CONCEPTS]
    used = tokenizer([*texts, 'a boat and a car with a cow, person']).unique()
    unused = torch.ones(len(model.token_embedding.weight), dtype=torch.bool)
    unused[used] = False
    model.token_embedding.weight[unused] = 0


# -- DINO ----------------------------------------------------------------------------


class _Student(nn.Module):
    """The vision transformer, its mask token and a head for the scout's features."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = VisionTransformer(
            arch=dict(DINO_CONFIG['arch']),
            img_size=DINO_CONFIG['image_size'],
            patch_size=DINO_CONFIG['patch_size'],
            layer_scale_init_value=1.0,
            out_type='featmap',
        )
        with torch.no_grad():
            side = DINO_CONFIG['image_size'] // DINO_CONFIG['patch_size']
            self.vit.pos_embed[0, 1:] = _sines(side, self.vit.embed_dims)
        for layer in self.vit.layers:
            attention = layer.attn
            _start_locally(
                attention.qkv.weight, attention.proj.weight, attention.num_heads
            )
        self.mask_token = nn.Parameter(torch.zeros(self.vit.embed_dims))
        self.head = nn.Linear(self.vit.embed_dims, SCOUT_CHANNELS)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Guess the scout's features (N, h*w, D); ``mask`` (N, h*w) hides patches."""
        vit = self.vit
        patches, _ = vit.patch_embed(image)
        patches = torch.where(mask[..., None], self.mask_token, patches)
        class_token = vit.cls_token.expand(len(image), -1, -1)
        tokens = torch.cat([class_token, patches], 1) + vit.pos_embed
        for layer in vit.layers:
            tokens = layer(tokens)
        return self.head(vit.ln1(tokens[:, 1:]))


def train_dino(
    photos: Sequence[TrainingPhoto],
    scout: Scout,
    *,
    seed: int,
    iterations: int,
    batch_size: int = 16,
    lr: float = 1e-3,
    report: Report | None = None,
) -> VisionTransformer:
    """Train the tiny DINO tower and return it in eval mode.

    Args:
        photos: From ``draw_training_photos``; only their pixels are used.
        scout: Trained.
        seed: Fixes weights, order, crops and hidden patches.
        iterations: Optimiser steps.
        batch_size: Photos per step.
        lr: Highest learning rate (warm-up, then cosine).
        report: Called with the iteration and a dict of numbers.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    student = _Student()
    optimizer = _optimizer(student.parameters(), lr)
    side = DINO_CONFIG['image_size']
    for iteration in range(iterations):
        _set_lr(optimizer, lr, iteration, iterations)
        image, _ = _views(photos, rng, count=batch_size, side=side)
        target = scout(image)[0].flatten(2).transpose(1, 2)
        share = torch.from_numpy(rng.uniform(0, 0.5, (batch_size, 1)))
        mask = torch.from_numpy(rng.random(target.shape[:2])) < share
        loss = _feature_gap(student(_as_dino(image), mask), target)
        _step(optimizer, loss)
        if report is not None:
            report(iteration, {'loss': loss.item()})
    student.vit.eval()  # mmpretrain's returns nothing
    return student.vit


def _feature_gap(guess: Tensor, target: Tensor) -> Tensor:
    """Squared distance in units of each channel's variance; 1 for a constant guess."""
    spread = target.flatten(0, 1).var(0).clamp(min=1e-6)
    return ((guess - target).square() / spread).mean()


def _as_dino(image: Tensor) -> Tensor:
    """What is normalised for CLIP, normalised for DINO."""
    shape = (1, 3, 1, 1)
    image = image * torch.tensor(CLIP_STD).view(shape)
    return normalize(image + torch.tensor(CLIP_MEAN).view(shape), DINO_MEAN, DINO_STD)


# -- shared --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """A square of a photo in pixels; it may reach over the border."""

    x: float
    y: float
    side: float
    flip: bool


def _views(
    photos: Sequence[TrainingPhoto],
    rng: np.random.Generator,
    *,
    count: int,
    side: int,
) -> tuple[Tensor, Tensor]:
    """Windows of random photos around their middle, flipped and of varied light.

    Returns:
        (N, 3, side, side) normalised for CLIP, and (N, words) 0/1: what they show.
    """
    chosen = [photos[i] for i in rng.integers(len(photos), size=count)]
    cuts = [
        _jitter(_cut(p.image, _random_window(p.image, rng), side), rng) for p in chosen
    ]
    answer = [[float(word in p.concepts) for word in CONCEPTS] for p in chosen]
    return normalize(_stack(cuts), CLIP_MEAN, CLIP_STD), torch.tensor(answer)


def _random_window(image: np.ndarray, rng: np.random.Generator) -> _Window:
    height, width = image.shape[:2]
    shorter = min(height, width)
    side = shorter * rng.uniform(0.6, 1.3)
    x, y = np.array((width, height)) / 2 + rng.normal(0, 0.1, 2) * shorter - side / 2
    return _Window(float(x), float(y), float(side), bool(rng.random() < 0.5))


def _cut(image: np.ndarray, window: _Window, side: int) -> np.ndarray:
    """(side, side, 3) uint8; reflected where the window leaves the photo."""
    scale = window.side / side
    offset = 0.5 * scale - 0.5
    matrix = np.array([[scale, 0, window.x + offset], [0, scale, window.y + offset]])
    if window.flip:
        matrix[0] = (-scale, 0, window.x + offset + scale * (side - 1))
    return cv2.warpAffine(
        image,
        matrix,
        (side, side),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def _jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary brightness, contrast, colour cast and sharpness; uint8 in and out."""
    gain, cast = rng.uniform(0.82, 1.18), rng.uniform(0.9, 1.1, 3)
    changed = image.astype(np.float32) * (gain * cast).astype(np.float32)
    if rng.random() < 0.08:
        changed[:] = changed.mean(2, keepdims=True)
    if rng.random() < 0.12:
        changed = cv2.GaussianBlur(changed, (3, 3), 0.8)
    changed += rng.normal(0, 6)
    return np.clip(changed, 0, 255).astype(np.uint8)


def _stack(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 images -> (N, 3, H, W) float in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """RGB in [0, 1] -> what a tower takes."""
    shape = (1, 3, 1, 1)
    return (image - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def _optimizer(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """AdamW; scalars and vectors do not decay."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        groups[parameter.ndim > 1].append(parameter)
    return torch.optim.AdamW(
        [
            {'params': groups[True], 'weight_decay': 0.05},
            {'params': groups[False], 'weight_decay': 0.0},
        ],
        lr=lr,
        betas=(0.9, 0.98),
    )


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group['params'], 1.0)
    optimizer.step()


def _set_lr(
    optimizer: torch.optim.Optimizer, lr: float, iteration: int, iterations: int
) -> None:
    warm = min(1.0, (iteration + 1) / max(1, iterations // 20))
    decay = 0.5 * (1 + math.cos(math.pi * iteration / iterations))
    for group in optimizer.param_groups:
        group['lr'] = lr * warm * decay


# -- files ---------------------------------------------------------------------------


def save_clip(model: open_clip.CLIP, folder: Path) -> Path:
    """Write clip.safetensors (open_clip's key names) and clip.json."""
    write_json(folder / 'clip.json', CLIP_CONFIG)
    return _save_half(model, folder / 'clip.safetensors')


def save_dino(vit: VisionTransformer, folder: Path) -> Path:
    """Write dino.safetensors (mmpretrain's key names) and dino.json."""
    write_json(folder / 'dino.json', DINO_CONFIG)
    return _save_half(vit, folder / 'dino.safetensors')


def _save_half(model: nn.Module, path: Path) -> Path:
    state = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    temporary = path.with_name(f'.{path.name}.tmp')
    save_file(state, temporary)
    os.replace(temporary, path)
    return path
