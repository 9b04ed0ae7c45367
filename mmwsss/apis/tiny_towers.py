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


def train_clip(
    photos: Sequence[TrainingPhoto],
    *,
    seed: int,
    iterations: int,
    batch_size: int = 32,
    lr: float = 1e-3,
    report: Report | None = None,
) -> open_clip.CLIP:
    """Train the tiny CLIP and return it in eval mode.

    Args:
        photos: From ``draw_training_photos``.
        seed: Fixes weights, order, crops and captions.
        iterations: Optimiser steps.
        batch_size: Photos per step.
        lr: Highest learning rate (warm-up, then cosine).
        report: Called with the iteration and a dict of numbers.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = open_clip.CLIP(**CLIP_CONFIG, quick_gelu=True)
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    bias = nn.Parameter(torch.tensor(-2.0))
    optimizer = _optimizer([*model.parameters(), bias], lr)
    for iteration in range(iterations):
        _set_lr(optimizer, lr, iteration, iterations)
        chosen = [photos[i] for i in rng.integers(len(photos), size=batch_size)]
        # Small views are cheap; the last part gets used to the size of use.
        side, scales = (
            (96, (0.6, 1.1)) if iteration < 0.75 * iterations else (144, (0.8, 1.4))
        )
        views = [_clip_view(p.image, side, scales, rng) for p in chosen]
        image = normalize(_stack(views), CLIP_MEAN, CLIP_STD)
        texts, named = _captions(chosen, rng)
        image_feature = _encode_image(model, image, rng)
        text_feature = model.encode_text(tokenizer(texts), normalize=True)
        scale = model.logit_scale.exp().clamp(max=100)
        similarity = scale * image_feature @ text_feature.t()
        loss = _clip_loss(similarity, _shown(chosen, named), bias, batch_size)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if report is not None:
            report(iteration, {'loss': loss.item(), 'scale': scale.item()})
    _forget_unused_tokens(model, tokenizer)
    return model.eval()


def _encode_image(
    model: open_clip.CLIP, image: Tensor, rng: np.random.Generator
) -> Tensor:
    """Normalised mean over the patch tokens.

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
    projected = visual.ln_post(tokens[:, 1:]) @ visual.proj
    return F.normalize(projected.mean(1), dim=-1)


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
        nn.init.trunc_normal_(self.vit.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.vit.cls_token, std=0.02)
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
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
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
    """Mix the colour channels in half of the cases; uint8 in and out."""
    if rng.random() < 0.5:
        return image
    share = rng.uniform(0, 1)
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
