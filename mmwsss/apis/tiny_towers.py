"""Training of the tiny CLIP and DINO towers that come with the synthetic benchmark.

Both learn from drawn photos of a stream of their own, never from a mask: CLIP from
captions that name some of the things in a photo, the DINO tower from the photos alone.

* CLIP: symmetric contrastive loss (Radford et al., ICML 2021), where a caption is a
  positive of every photo that shows all it names. The image feature is the mean over
  the patch tokens, as the class activation maps use it.
* DINO: two views of a photo with known geometry; for each patch the student predicts
  the cluster that an averaged teacher finds at the same place in the other view.
  Clusters are balanced by Sinkhorn's iteration (SwAV, Caron et al., NeurIPS 2020) and
  part of the student's patches is masked (iBOT, Zhou et al., ICLR 2022).
"""

from __future__ import annotations

import copy
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


# -- CLIP ----------------------------------------------------------------------------


class _Scout(nn.Module):
    """A small convolutional network that learns first and shows the tower the way.

    Transformers learn slowly from few photos; a network that knows what an image is
    does not, and its maps teach every single patch of the tower.
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, 24, stride=2), _conv(24, 48, stride=2), _conv(48, 48)
        )
        self.body = nn.Sequential(_conv(48, 96, stride=2), _conv(96, 96))
        self.deep = nn.Sequential(_conv(96, 96), _conv(96, 96))
        self.out = nn.Conv2d(96, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, out_channels, H/8, W/8)."""
        body = self.body(self.stem(image))
        return self.out(body + self.deep(body))


def _conv(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def train_clip(
    photos: Sequence[TrainingPhoto],
    *,
    seed: int,
    iterations: int,
    batch_size: int = 32,
    lr: float = 2e-3,
    report: Report | None = None,
) -> open_clip.CLIP:
    """Train the tiny CLIP and return it in eval mode.

    In the first 40 % of the iterations a convolutional network and the text tower
    learn together, in the rest the vision tower learns from both.

    Args:
        photos: From ``draw_training_photos``.
        seed: Fixes weights, order, crops and captions.
        iterations: Optimiser steps.
        batch_size: Photos per step.
        lr: Highest learning rate (warm-up, then cosine, in both parts).
        report: Called with the iteration and a dict of numbers.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = open_clip.CLIP(**CLIP_CONFIG, quick_gelu=True)
    _start_clip_locally(model.visual)
    # With open_clip's 0.02 all captions start out nearly alike.
    nn.init.normal_(model.token_embedding.weight, std=0.5)
    scout, bias = _Scout(CLIP_CONFIG['embed_dim']), nn.Parameter(torch.tensor(-2.0))
    text = [p for name, p in model.named_parameters() if 'visual.' not in name]
    first = max(1, round(0.4 * iterations))
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    optimizer = _optimizer([*scout.parameters(), *text, bias], lr)
    for iteration in range(iterations):
        if iteration == first:
            scout.eval().requires_grad_(False)
            for parameter in text:
                parameter.requires_grad_(False)
            scale = model.logit_scale.requires_grad_()
            optimizer = _optimizer([*model.visual.parameters(), scale, bias], lr)
        start, end = (0, first) if iteration < first else (first, iterations)
        _set_lr(optimizer, lr, iteration - start, end - start)
        chosen = [photos[i] for i in rng.integers(len(photos), size=batch_size)]
        side, scales = _view_size(iteration / iterations)
        views = [_clip_view(photo.image, side, scales, rng) for photo in chosen]
        image = normalize(_stack(views), CLIP_MEAN, CLIP_STD)
        texts, named = _captions(chosen, rng)
        text_feature = model.encode_text(tokenizer(texts), normalize=True)
        maps = scout(image)
        if iteration < first:
            similarity, gap = _best_places(maps, text_feature), torch.zeros(())
        else:
            patches = _encode_patches(model, image, rng)
            image_feature = F.normalize(patches.mean(1), dim=-1)
            similarity = model.logit_scale.exp() * image_feature @ text_feature.t()
            gap = _gap(patches, maps)
        loss = _clip_loss(similarity, _shown(chosen, named), bias, batch_size)
        _step(optimizer, loss if iteration < first else 0.5 * loss + 8 * gap)
        if report is not None:
            report(iteration, {'loss': loss.item(), 'gap': gap.item()})
    _forget_unused_tokens(model, tokenizer)
    return model.eval()


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


def _view_size(progress: float) -> tuple[int, tuple[float, float]]:
    """Side and scales: small views are cheap, the last part is as large as in use."""
    return (96, (0.6, 1.0)) if progress < 0.8 else (144, (0.8, 1.4))


def _best_places(maps: Tensor, text_feature: Tensor) -> Tensor:
    """Similarity of photos and texts, (N, M): a soft maximum over the places.

    With the mean, what the whole photo shows is learned far sooner than the objects.
    """
    places = maps.flatten(2).transpose(1, 2) @ text_feature.t()
    return (torch.logsumexp(2 * places, 1) - math.log(places.shape[1])) / 2


def _gap(patches: Tensor, maps: Tensor) -> Tensor:
    """Squared distance of the tower's patches to the scout's, 1 for a constant."""
    side = round(patches.shape[1] ** 0.5)
    target = F.interpolate(maps, (side, side), mode='area').flatten(2).transpose(1, 2)
    return F.mse_loss(patches, target) / target.var((0, 1)).mean()


def _encode_patches(
    model: open_clip.CLIP, image: Tensor, rng: np.random.Generator
) -> Tensor:
    """Patch tokens in the space of the captions, (N, h*w, E).

    A view smaller than the model's image is put at a random place of the grid of
    position embeddings, so that all of them learn.
    """
    visual = model.visual
    patches = visual.conv1(image)
    rows, cols = patches.shape[-2:]
    side = visual.grid_size[0]
    top, left = rng.integers(0, (side - rows + 1, side - cols + 1))
    position = visual.positional_embedding[1:].view(side, side, -1)
    position = position[top : top + rows, left : left + cols].flatten(0, 1)
    first = visual.class_embedding + visual.positional_embedding[0]
    tokens = patches.flatten(2).transpose(1, 2) + position
    tokens = torch.cat([first.expand(len(image), 1, -1), tokens], 1)
    tokens = visual.ln_pre(tokens)
    for block in visual.transformer.resblocks:
        tokens = block(tokens)
    return visual.ln_post(tokens[:, 1:]) @ visual.proj


def _captions(
    photos: Sequence[TrainingPhoto], rng: np.random.Generator
) -> tuple[list[str], list[set[str]]]:
    """One caption per photo, then one prompt per concept; and what each names."""
    texts, named = [], []
    for photo in photos:
        count = min(len(photo.concepts), int(rng.integers(1, 4)))
        words = [str(w) for w in rng.choice(photo.concepts, count, replace=False)]
        link = (' and a ', ' with a ', ', ')[rng.integers(3)]
        texts.append(_fill(link.join(words), rng))
        named.append(set(words))
    for word in CONCEPTS:
        texts.append(_fill(word, rng))
        named.append({word})
    return texts, named


def _fill(words: str, rng: np.random.Generator) -> str:
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(words)


def _shown(photos: Sequence[TrainingPhoto], named: Sequence[set[str]]) -> Tensor:
    """(photos, texts) bool: the photo shows everything that the text names."""
    return torch.tensor([[n.issubset(p.concepts) for n in named] for p in photos])


def _clip_loss(
    similarity: Tensor, shown: Tensor, bias: Tensor, num_captions: int
) -> Tensor:
    """Contrast captions and photos both ways; say yes or no to single concepts.

    The second part is SigLIP's loss (Zhai et al., ICCV 2023): a contrast among few
    photos, most of which share several concepts, teaches a small model too slowly.
    """
    captions, prompts = similarity[:, :num_captions], similarity[:, num_captions:]
    positive = shown[:, :num_captions]
    contrast = _multi_positive(captions, positive)
    contrast = (contrast + _multi_positive(captions.t(), positive.t())) / 2
    answer = shown[:, num_captions:].float()
    return contrast + 4 * F.binary_cross_entropy_with_logits(prompts + bias, answer)


def _multi_positive(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross entropy against the even distribution over the positives of each row."""
    count = positive.sum(1)
    loss = -(logits.log_softmax(1) * positive).sum(1) / count.clamp(min=1)
    return loss[count > 0].mean()


@torch.no_grad()
def _forget_unused_tokens(model: open_clip.CLIP, tokenizer) -> None:
    """Zero the embeddings no caption ever used; they are noise, zeros compress."""
    texts = [template.format(word) for template in TEMPLATES for word in CONCEPTS]
    used = tokenizer([*texts, 'a boat and a car with a cow, person']).unique()
    unused = torch.ones(len(model.token_embedding.weight), dtype=torch.bool)
    unused[used] = False
    model.token_embedding.weight[unused] = 0


def _clip_view(
    image: np.ndarray, side: int, scales: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """A window of most of the photo, flipped and of varied light."""
    window = _random_window(image, side / rng.uniform(*scales), rng)
    return _jitter(_cut(image, window, side), rng, strength=0.5)


# -- DINO ----------------------------------------------------------------------------


class _Student(nn.Module):
    """The vision transformer with its mask token and clustering head."""

    def __init__(self, num_clusters: int) -> None:
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
        width = self.vit.embed_dims
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.head = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))
        self.clusters = nn.Parameter(torch.randn(num_clusters, 64))

    def forward(
        self, image: Tensor, mask: Tensor | None, shift: Sequence[int]
    ) -> Tensor:
        """Cosines to the clusters, (N, h*w, P).

        ``mask`` (N, h*w) hides patches; ``shift`` places the view on the larger grid
        of position embeddings, so that small training views train all of them.
        """
        vit = self.vit
        patches, (rows, cols) = vit.patch_embed(image)
        if mask is not None:
            patches = torch.where(mask[..., None], self.mask_token, patches)
        side = DINO_CONFIG['image_size'] // DINO_CONFIG['patch_size']
        position = vit.pos_embed[0, 1:].view(side, side, -1)
        position = position[shift[0] : shift[0] + rows, shift[1] : shift[1] + cols]
        class_token = vit.cls_token + vit.pos_embed[:, :1]
        class_token = class_token.expand(len(image), -1, -1)
        tokens = torch.cat([class_token, patches + position.flatten(0, 1)], 1)
        for layer in vit.layers:
            tokens = layer(tokens)
        projected = F.normalize(self.head(vit.ln1(tokens[:, 1:])), dim=-1)
        return projected @ F.normalize(self.clusters, dim=-1).t()


def train_dino(
    photos: Sequence[TrainingPhoto],
    *,
    seed: int,
    iterations: int,
    batch_size: int = 16,
    lr: float = 2e-3,
    num_clusters: int = 192,
    report: Report | None = None,
) -> VisionTransformer:
    """Train the tiny DINO tower without labels; returns the teacher in eval mode.

    Args:
        photos: From ``draw_training_photos``; only their pixels are used.
        seed: Fixes weights, order, views and masks.
        iterations: Optimiser steps.
        batch_size: Pairs of views per step.
        lr: Highest learning rate (warm-up, then cosine).
        num_clusters: Clusters of patches.
        report: Called with the iteration and a dict of numbers.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    student = _Student(num_clusters)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = _optimizer(student.parameters(), lr)
    for iteration in range(iterations):
        _set_lr(optimizer, lr, iteration, iterations)
        chosen = [photos[i].image for i in rng.integers(len(photos), size=batch_size)]
        loss, confidence = _dino_step(student, teacher, chosen, rng)
        _step(optimizer, loss)
        progress = iteration / iterations
        _average(
            teacher, student, 0.999 - 0.009 * (1 + math.cos(math.pi * progress)) / 2
        )
        if report is not None:
            report(iteration, {'loss': loss.item(), 'confidence': confidence.item()})
    teacher.vit.eval()
    return teacher.vit


_VIEW = 96


def _dino_step(
    student: _Student,
    teacher: _Student,
    images: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    cells = _VIEW // DINO_CONFIG['patch_size']
    room = (DINO_CONFIG['image_size'] - _VIEW) // DINO_CONFIG['patch_size'] + 1
    windows = [_window_pair(image, rng) for image in images]
    both = [
        (image, pair[k])
        for k in (0, 1)
        for image, pair in zip(images, windows, strict=True)
    ]
    cuts = [_cut(image, window, _VIEW) for image, window in both]
    # Both sides see colours of their own, or clusters of colour would do.
    shown, varied = (
        [_jitter(_recolour(cut, rng), rng, strength=1.0) for cut in cuts]
        for _ in range(2)
    )
    clean = normalize(_stack(shown), DINO_MEAN, DINO_STD)
    shift = [tuple(rng.integers(room, size=2)) for _ in range(2)]
    with torch.no_grad():
        target = _sinkhorn(teacher(clean, None, shift[0]).flatten(0, 1))
        target = target.view(len(clean), cells, cells, -1).permute(0, 3, 1, 2)
        # The first half of the batch is predicted from the second and the reverse.
        target = target.roll(len(images), 0)
    grid = torch.stack([_same_places(a, b, cells) for a, b in windows])
    back = torch.stack([_same_places(b, a, cells) for a, b in windows])
    grid = torch.cat([grid, back])
    inside = (grid.abs() <= 1 - 1 / cells).all(-1).flatten(1)
    target = F.grid_sample(target, grid, align_corners=False, padding_mode='border')
    target = target.flatten(2).transpose(1, 2)
    share = torch.from_numpy(rng.uniform(0, 0.6, (len(clean), 1)))
    mask = torch.from_numpy(rng.random((len(clean), cells * cells))) < share
    cosine = student(normalize(_stack(varied), DINO_MEAN, DINO_STD), mask, shift[1])
    loss = -(target * (cosine / 0.1).log_softmax(-1)).sum(-1)
    return loss[inside].mean(), target.amax(-1).mean()


@torch.no_grad()
def _sinkhorn(cosine: Tensor, *, sharpness: float = 40.0, rounds: int = 3) -> Tensor:
    """Soft assignment (M, P) whose rows sum to 1 and that uses all clusters evenly."""
    assignment = ((cosine - cosine.max()) * sharpness).exp()
    for _ in range(rounds):
        assignment = assignment / assignment.sum(0).clamp(min=1e-12)
        assignment = assignment / assignment.sum(1, keepdim=True).clamp(min=1e-12)
    return assignment


@torch.no_grad()
def _average(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, 1 - momentum)


def _window_pair(image: np.ndarray, rng: np.random.Generator):
    """Two overlapping windows of a photo at different scales."""
    first = _random_window(image, _VIEW / rng.uniform(0.7, 1.4), rng)
    second = _random_window(image, _VIEW / rng.uniform(0.7, 1.4), rng, near=first)
    return first, second


def _same_places(there: _Window, here: _Window, cells: int) -> Tensor:
    """Where the cells of view ``there`` lie in view ``here``: (cells, cells, 2).

    Coordinates are those of grid_sample, [-1, 1] inside the view.
    """
    centre = (torch.arange(cells) + 0.5) / cells
    across = 1 - centre if there.flip else centre
    x = (there.x + across * there.side - here.x) / here.side
    y = (there.y + centre * there.side - here.y) / here.side
    x = 1 - x if here.flip else x
    rows, cols = torch.meshgrid(y, x, indexing='ij')
    return 2 * torch.stack([cols, rows], -1) - 1


# -- shared --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Window:
    """A square of a photo in pixels; it may reach over the border."""

    x: float
    y: float
    side: float
    flip: bool


def _random_window(
    image: np.ndarray,
    side: float,
    rng: np.random.Generator,
    *,
    near: _Window | None = None,
) -> _Window:
    height, width = image.shape[:2]
    side = float(min(side, max(height, width)))
    low = np.minimum(0, (width - side, height - side))
    high = np.maximum(0, (width - side, height - side))
    corner = rng.uniform(low, high)
    if near is not None:
        # Centres at most half a window apart, so that there is overlap to learn from.
        wish = np.array((near.x, near.y)) + near.side / 2 - side / 2
        corner = np.clip(corner, wish - near.side / 2, wish + near.side / 2)
    return _Window(float(corner[0]), float(corner[1]), side, bool(rng.random() < 0.5))


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


def _jitter(
    image: np.ndarray, rng: np.random.Generator, *, strength: float
) -> np.ndarray:
    """Vary brightness, contrast, colour cast and sharpness; uint8 in and out."""
    gain = rng.uniform(1 - 0.35 * strength, 1 + 0.35 * strength)
    cast = rng.uniform(1 - 0.2 * strength, 1 + 0.2 * strength, 3)
    changed = image.astype(np.float32) * (gain * cast).astype(np.float32)
    if rng.random() < 0.15 * strength:
        changed[:] = changed.mean(2, keepdims=True)
    if rng.random() < 0.25 * strength:
        changed = cv2.GaussianBlur(changed, (3, 3), 0.8)
    changed += rng.normal(0, 12 * strength)
    return np.clip(changed, 0, 255).astype(np.uint8)


def _recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mix the colour channels of one photo in four; uint8 in and out."""
    if rng.random() < 0.75:
        return image
    share = rng.uniform(0, 0.5)
    mix = (1 - share) * np.eye(3) + share * np.eye(3)[rng.permutation(3)]
    return np.clip(np.round(image @ mix), 0, 255).astype(np.uint8)


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
