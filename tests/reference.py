"""Slow loops in float64, written from the formulas, for the tests to compare with."""

import math

import numpy as np


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
