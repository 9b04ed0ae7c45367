"""Slow loops in float64, written from the formulas, for the tests to compare with."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def neighbours(dilations):
    """(dy, dx) of the eight neighbours of every dilation."""
    taps = []
    for dilation in dilations:
        for dy in (-dilation, 0, dilation):
            for dx in (-dilation, 0, dilation):
                if dy or dx:
                    taps.append((dy, dx))
    return taps


def fetch(values, y, x):
    """Value at (y, x) with coordinates clamped into the image; values (..., H, W)."""
    height, width = values.shape[-2:]
    return values[..., min(max(y, 0), height - 1), min(max(x, 0), width - 1)]


def pamr_kernel(image, y, x, dilations, eps=1e-8):
    """Weights of the 48 taps at one pixel of one image (3, H, W)."""
    samples = []
    for dilation in dilations:
        for dy in (-dilation, 0, dilation):
            for dx in (-dilation, 0, dilation):
                samples.append(fetch(image, y + dy, x + dx))
    deviation = np.std(np.stack(samples), axis=0, ddof=1)
    logits = []
    for dy, dx in neighbours(dilations):
        difference = np.abs(image[:, y, x] - fetch(image, y + dy, x + dx))
        logits.append(np.mean(-difference / (eps + 0.1 * deviation)))
    return _softmax(logits)


def par_kernel(image, y, x, dilations, w1=0.3, w2=0.01):
    """Weights of the 48 taps at one pixel of one image (3, H, W)."""
    taps = neighbours(dilations)
    samples = np.stack([fetch(image, y + dy, x + dx) for dy, dx in taps])
    deviation = np.std(samples, axis=0, ddof=1) + 1e-8
    colour = [np.mean(-(((image[:, y, x] - s) / deviation / w1) ** 2)) for s in samples]
    distance = np.array([math.hypot(dy, dx) for dy, dx in taps])
    position = -((distance / (np.std(distance, ddof=1) + 1e-8) / w1) ** 2)
    return _softmax(colour) + w2 * _softmax(position)


def propagate(image, scores, dilations, num_iters, kernel):
    """Jacobi iterations of one image (3, H, W) and scores (C, H, W)."""
    height, width = image.shape[-2:]
    taps = neighbours(dilations)
    weights = {
        (y, x): kernel(image, y, x, dilations)
        for y in range(height)
        for x in range(width)
    }
    for _ in range(num_iters):
        after = np.zeros_like(scores)
        for (y, x), weight in weights.items():
            for tap, (dy, dx) in enumerate(taps):
                after[:, y, x] += weight[tap] * fetch(scores, y + dy, x + dx)
        scores = after
    return scores


def stacked_pamr(image, scores, *, num_iters=10, dilations=(1, 2, 4, 8, 12, 24)):
    """PAMR as its paper writes it down, in torch and in the type of the inputs.

    All neighbours of all pixels are shifted copies laid on each other: once for the
    image and anew for the scores in every iteration. It is what tools/benchmark.py
    compares with.
    """
    around = stacked_neighbours(image, dilations, with_centre=True)
    deviation = around.std(dim=2, keepdim=True)
    neighbours = stacked_neighbours(image, dilations)
    difference = (neighbours - image[:, :, None]).abs()
    logits = -(difference / (1e-8 + 0.1 * deviation)).mean(1, keepdim=True)
    weights = logits.softmax(2)  # (N, 1, 8 * dilations, H, W)
    for _ in range(num_iters):
        scores = (stacked_neighbours(scores, dilations) * weights).sum(2)
    return scores


def stacked_neighbours(maps, dilations, *, with_centre=False):
    """(N, C, H, W) -> (N, C, 8 or 9 times the dilations, H, W)."""
    height, width = maps.shape[-2:]
    stack = []
    for dilation in dilations:
        padded = F.pad(maps, [dilation] * 4, mode='replicate')
        for y in (0, dilation, 2 * dilation):
            for x in (0, dilation, 2 * dilation):
                if with_centre or (y, x) != (dilation, dilation):
                    stack.append(padded[..., y : y + height, x : x + width])
    return torch.stack(stack, dim=2)


def _softmax(values):
    values = np.asarray(values, dtype=np.float64)
    values = np.exp(values - values.max())
    return values / values.sum()


def sinkhorn(attention, num_iters, num_squarings):
    """One matrix (T, T), entry by entry."""
    matrix = np.array(attention, dtype=np.float64)
    size = len(matrix)
    for _ in range(num_iters):
        for column in range(size):
            matrix[:, column] /= sum(matrix[row, column] for row in range(size))
        for row in range(size):
            matrix[row] /= sum(matrix[row, column] for column in range(size))
    matrix = (matrix + matrix.T) / 2
    for _ in range(num_squarings):
        matrix = np.array(
            [
                [
                    sum(matrix[i, k] * matrix[k, j] for k in range(size))
                    for j in range(size)
                ]
                for i in range(size)
            ]
        )
    return matrix


# ------------------------------------------------------ prototypes (SIPE, AE-SIPE)
# One image at a time: features (D, h, w), maps (C, h, w), all float64 arrays.
def cells(height, width):
    """All (y, x) of a grid, row by row."""
    return [(y, x) for y in range(height) for x in range(width)]


def resize(maps, size, *, align_corners):
    """Bilinear (C, h, w) -> (C, *size), pixel by pixel."""
    height, width = maps.shape[-2:]
    out = np.zeros((*maps.shape[:-2], *size))
    for y, x in cells(*size):
        top, down = _source(y, height, size[0], align_corners)
        left, right = _source(x, width, size[1], align_corners)
        out[..., y, x] = (1 - down) * (1 - right) * fetch(maps, top, left)
        out[..., y, x] += (1 - down) * right * fetch(maps, top, left + 1)
        out[..., y, x] += down * (1 - right) * fetch(maps, top + 1, left)
        out[..., y, x] += down * right * fetch(maps, top + 1, left + 1)
    return out


def _source(position, before, after, align_corners):
    if align_corners:
        place = position * (before - 1) / (after - 1) if after > 1 else 0.0
    else:
        place = max((position + 0.5) * before / after - 0.5, 0.0)
    whole = min(int(place), before - 1)
    return whole, place - whole


def hierarchical_features(stages, size):
    """Every stage normalised cell by cell, resized, side by side."""
    parts = []
    for stage in stages:
        unit = np.zeros_like(stage)
        for y, x in cells(*stage.shape[-2:]):
            length = math.sqrt(sum(v * v for v in stage[:, y, x]))
            unit[:, y, x] = stage[:, y, x] / (length + 1e-5)
        parts.append(resize(unit, size, align_corners=False))
    return np.concatenate(parts)


def general_scores(class_maps):
    """Maps of the classifier (K, h, w) to scores (C, h, w)."""
    cut = np.maximum(class_maps, 0)
    scaled = np.stack([c / (c.max() + 1e-5) for c in cut])
    return np.concatenate([1 - scaled.max(0, keepdims=True), scaled])


def structure_seeds(features, cams, valid, bg_factor=0.5):
    """Soft IoU of what is like the cell and each class, the best one as one-hot."""
    f = features.reshape(len(features), -1)
    m = cams.reshape(len(cams), -1)
    count = f.shape[1]
    lengths = [np.linalg.norm(f[:, p]) + 1e-5 for p in range(count)]
    seeds = np.zeros_like(m)
    for p in range(count):
        likeness = [
            max(f[:, p] @ f[:, q] / (lengths[p] * lengths[q]), 0) for q in range(count)
        ]
        iou = []
        for c in range(len(m)):
            both = sum(likeness[q] * m[c, q] for q in range(count))
            either = sum(likeness[q] + m[c, q] for q in range(count)) - both
            iou.append(both / either if either > 0 else 0.0)
        iou[0] *= bg_factor
        seeds[iou.index(max(iou)), p] = 1
    return seeds.reshape(cams.shape) * valid


def largest_seeds(scores, bg_factor=1.0):
    """One-hot of the largest score of each cell."""
    seeds = np.zeros_like(scores)
    for y, x in cells(*scores.shape[-2:]):
        values = scores[:, y, x].copy()
        values[0] *= bg_factor
        seeds[values.argmax(), y, x] = 1
    return seeds


def class_prototypes(features, seeds):
    """(C, D), sums over the seeds divided by the number of cells."""
    grid = cells(*features.shape[-2:])
    prototypes = np.zeros((len(seeds), len(features)))
    for c, seed in enumerate(seeds):
        for y, x in grid:
            prototypes[c] += seed[y, x] * features[:, y, x] / len(grid)
    return prototypes


def prototype_cams(features, prototypes):
    """Cosine of each cell and each prototype, negative ones and empty ones 0."""
    maps = np.zeros((len(prototypes), *features.shape[-2:]))
    for c, prototype in enumerate(prototypes):
        for y, x in cells(*features.shape[-2:]):
            feature = features[:, y, x]
            lengths = np.linalg.norm(prototype) * np.linalg.norm(feature)
            maps[c, y, x] = max(prototype @ feature / lengths, 0) if lengths else 0.0
    return maps


def enhance(
    image,
    features,
    cams,
    steps,
    dilations,
    num_iters,
    bg_factor=1.0,
    kernel=pamr_kernel,
    allowed=1.0,
):
    """The steps of AE-SIPE one after the other; image (3, H, W)."""
    maps, prototypes = cams, None
    for step in steps:
        if step == 'pamr':
            fine = resize(maps, image.shape[-2:], align_corners=True)
            fine = propagate(image, fine, dilations, num_iters, kernel)
            maps = resize(fine, cams.shape[-2:], align_corners=True)
        elif step == 'prototypes':
            seeds = largest_seeds(maps, bg_factor) * allowed
            prototypes = class_prototypes(features, seeds)
        else:
            maps = prototype_cams(features, prototypes)
    return maps


def normalized(maps, mode='max'):
    """(C, h, w) >= 0, each map to [0, 1]."""
    low = maps.min((1, 2), keepdims=True) if mode == 'minmax' else 0.0
    high = maps.max((1, 2), keepdims=True)
    return (maps - low) / (high - low + 1e-5)


# ------------------------------------------- pairs of pixels and random walk (IRN)
def pairs_within(radius, height, width):
    """Every pair ((y, x), (v, u)) nearer than the radius, once, downwards or right."""
    cells = [(y, x) for y in range(height) for x in range(width)]
    return [
        (first, second)
        for first in cells
        for second in cells
        if first < second and math.dist(first, second) < radius - 1e-9
    ]


def cells_between(first, second):
    """Cells of the bounding box nearer than 1 to the line through both cells."""
    (y, x), (v, u) = first, second
    length = math.dist(first, second)
    found = []
    for row in range(min(y, v), max(y, v) + 1):
        for column in range(min(x, u), max(x, u) + 1):
            area = (v - y) * (column - x) - (u - x) * (row - y)
            if abs(area) / length < 1 - 1e-9:
                found.append((row, column))
    return found


def affinity_of_pair(boundary, first, second):
    """Of one boundary map (h, w)."""
    return 1 - max(float(boundary[cell]) for cell in cells_between(first, second))


def transition_matrix(boundary, radius, beta):
    """(h*w, h*w) of one boundary map: entry (i, j) is the step from i to j."""
    height, width = boundary.shape
    weights = np.eye(height * width)
    for first, second in pairs_within(radius, height, width):
        i, j = (y * width + x for y, x in (first, second))
        value = affinity_of_pair(boundary, first, second) ** beta
        weights[i, j] = weights[j, i] = value
    # Columns are divided by their sums and maps are rows: each new value is a mean.
    return weights / weights.sum(axis=0, keepdims=True)


def dense_random_walk(cams, boundary, radius, beta, num_steps):
    """Maps (K, h, w) and one boundary (h, w), by a power of the dense matrix."""
    power = np.linalg.matrix_power(transition_matrix(boundary, radius, beta), num_steps)
    begin = (cams * (1 - boundary)).reshape(len(cams), -1)
    return (begin @ power).reshape(cams.shape)


def irn_losses(boundary, displacement, label, radius, ignore=255):
    """Both losses of a batch, pair by pair; the published sources are not cut off."""
    like = {0: [], 1: []}
    different, toward, still = [], [], []
    for b, d, one in zip(boundary, displacement, label, strict=True):
        for first, second in pairs_within(radius, *one.shape):
            if ignore in (one[first], one[second]):
                continue
            affinity = affinity_of_pair(b[0], first, second)
            if one[first] != one[second]:
                different.append(-math.log(1 + 1e-5 - affinity))
                continue
            like[int(one[first] > 0)].append(-math.log(affinity + 1e-5))
            for axis in (0, 1):
                moved = d[axis][first] - d[axis][second]
                if one[first] == 0:
                    still.append(abs(moved))
                else:
                    toward.append(abs(moved - (second[axis] - first[axis])))
    mean = [sum(v) / max(len(v), 1) for v in (like[0], like[1], different)]
    edge = (mean[0] + mean[1]) / 4 + mean[2] / 2
    shift = [sum(v) / max(len(v), 1) for v in (toward, still)]
    return edge, sum(shift) / 2
