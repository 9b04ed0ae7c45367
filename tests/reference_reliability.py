"""Slow float64 loops written from the formulas, for comparison with mmwsss."""

import math
from itertools import combinations

import numpy as np
import torch


def allowed_classes(image_label_row):
    return [0] + [k + 1 for k, on in enumerate(image_label_row) if on > 0]


def cells(maps):
    """Positions (n, y, x) of (N, C, h, w)."""
    n, _, h, w = maps.shape
    return np.ndindex(n, h, w)


def temporal(histogram, image_label, prior):
    result = torch.zeros(histogram.shape, dtype=torch.float64)
    for n, y, x in cells(histogram):
        allowed = allowed_classes(image_label[n].tolist())
        visits = sum(float(histogram[n, c, y, x]) for c in allowed)
        for c in allowed:
            count = float(histogram[n, c, y, x])
            result[n, c, y, x] = (count + prior) / (visits + 2 * prior)
    return result


def softmax(values):
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def confidence(stream_logits, image_label):
    result = torch.zeros(stream_logits[0].shape, dtype=torch.float64)
    for n, y, x in cells(result):
        allowed = allowed_classes(image_label[n].tolist())
        if len(allowed) == 1:
            result[n, 0, y, x] = 1.0
            continue
        streams = [
            softmax([float(logits[n, c, y, x]) for c in allowed])
            for logits in stream_logits
        ]
        entropies = [-sum(v * math.log(v) for v in p if v > 0) for p in streams]
        u = sum(entropies) / len(streams) / math.log(len(allowed))
        if len(streams) > 1:
            pairs = list(combinations(streams, 2))
            apart = sum((kl(p, q) + kl(q, p)) / 2 for p, q in pairs) / len(pairs)
            u = 0.5 * u + 0.5 * (1 - math.exp(-apart))
        mean = [sum(values) / len(streams) for values in zip(*streams, strict=True)]
        for c, value in zip(allowed, mean, strict=True):
            result[n, c, y, x] = (1 - u) * value / max(mean)
    return result


def cosine(a, b):
    norms = math.sqrt(sum(v * v for v in a) * sum(v * v for v in b))
    return sum(p * q for p, q in zip(a, b, strict=True)) / norms if norms else 0.0


def structure(features, label, num_classes, *, radius, power, valid=None):
    n_images, _, h, w = features.shape
    result = torch.full((n_images, num_classes, h, w), 0.5, dtype=torch.float64)
    for n, y, x in cells(features):
        votes = [0.0] * num_classes
        for v in range(max(y - radius, 0), min(y + radius, h - 1) + 1):
            for u in range(max(x - radius, 0), min(x + radius, w - 1) + 1):
                own = int(label[n, v, u])
                real = valid is None or valid[n, 0, v, u] > 0
                if (v, u) == (y, x) or own == 255 or not real:
                    continue
                like = cosine(
                    features[n, :, y, x].tolist(), features[n, :, v, u].tolist()
                )
                votes[own] += max(like, 0.0) ** power
        if sum(votes) >= 1e-6:
            for c in range(num_classes):
                result[n, c, y, x] = votes[c] / sum(votes)
    return result


def blend(signals, weights, image_label, mode):
    """``signals`` without a missing one and ``weights`` to match."""
    result = torch.zeros(signals[0].shape, dtype=torch.float64)
    share = [weight / sum(weights) for weight in weights]
    for n, y, x in cells(result):
        for c in allowed_classes(image_label[n].tolist()):
            values = [float(signal[n, c, y, x]) for signal in signals]
            if mode == 'geometric':
                logs = [
                    s * math.log(v) if v > 0 else -math.inf
                    for v, s in zip(values, share, strict=True)
                ]
                result[n, c, y, x] = math.exp(sum(logs))
            else:
                result[n, c, y, x] = sum(
                    v * s for v, s in zip(values, share, strict=True)
                )
    return result


def own_values(maps, label):
    """Value of each pixel's class after enlarging all channels."""
    large = torch.nn.functional.interpolate(
        maps, label.shape[1:], mode='bilinear', align_corners=False
    )
    result = torch.zeros(label.shape, dtype=maps.dtype)
    for n, y, x in np.ndindex(*label.shape):
        if label[n, y, x] != 255:
            result[n, y, x] = large[n, int(label[n, y, x]), y, x]
    return result


def class_means(means, values, label, momentum):
    result = means.clone()
    for c in range(len(means)):
        own = [
            float(values[index])
            for index in np.ndindex(*label.shape)
            if label[index] == c
        ]
        if own:
            result[c] = momentum * means[c] + (1 - momentum) * sum(own) / len(own)
    return result


def gated(
    base, network, base_r, network_r, gates, repair_below, ignore_below, drop_below
):
    if network == 255:
        return base
    if base == network:
        return 255 if drop_below is not None and base_r < drop_below else base
    weak = base == 255 or repair_below is None or base_r < repair_below
    if weak and network_r >= gates[network]:
        return network
    return 255 if ignore_below is not None and base_r < ignore_below else base


def weight(reliability, label, gates, power):
    if label == 255:
        return 0.0
    return min(max(reliability / gates[label], 0.0), 1.0) ** power


def bins(reliability, pseudo_label, target, num_bins):
    result = [[0, 0] for _ in range(num_bins)]
    for index in np.ndindex(*target.shape):
        guess, truth = int(pseudo_label[index]), int(target[index])
        if 255 in (guess, truth):
            continue
        edges = [b for b in range(num_bins) if reliability[index] >= b / num_bins]
        result[edges[-1]][0] += 1
        result[edges[-1]][1] += guess == truth
    return result
