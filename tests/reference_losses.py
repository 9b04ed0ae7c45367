"""Slow float64 loops written from the formulas, for comparison with mmwsss."""

import math


def log_softmax(values):
    top = max(values)
    total = math.log(sum(math.exp(v - top) for v in values)) + top
    return [v - total for v in values]


def pixels(label):
    """Positions (n, y, x) and labels of a nested (N, H, W) list."""
    for n, plane in enumerate(label):
        for y, row in enumerate(plane):
            for x, value in enumerate(row):
                yield n, y, x, value


def balanced_cross_entropy(logits, label, *, smoothing=0.0, ignore=255, weight=None):
    logits, label = logits.tolist(), label.tolist()
    halves = {'background': [0.0, 0.0], 'foreground': [0.0, 0.0]}
    for n, y, x, value in pixels(label):
        if value == ignore:
            continue
        log_p = log_softmax([channel[y][x] for channel in logits[n]])
        others = len(log_p) - 1
        loss = -(1 - smoothing) * log_p[value]
        for c, log_pc in enumerate(log_p):
            if c != value and smoothing:
                loss -= smoothing / others * log_pc
        w = 1.0 if weight is None else float(weight[n, y, x])
        half = halves['background' if value == 0 else 'foreground']
        half[0] += w * loss
        half[1] += w
    return sum(0.5 * loss / w for loss, w in halves.values() if w > 0)


def dice(logits, label, *, ignore=255, weight=None, all_classes=False):
    logits, label = logits.tolist(), label.tolist()
    num_classes = len(logits[0])
    overlap, prediction, mass = ([0.0] * num_classes for _ in range(3))
    for n, y, x, value in pixels(label):
        if value == ignore:
            continue
        log_p = log_softmax([channel[y][x] for channel in logits[n]])
        w = 1.0 if weight is None else float(weight[n, y, x])
        for c in range(num_classes):
            prediction[c] += w * math.exp(log_p[c])
        overlap[value] += w * math.exp(log_p[value])
        mass[value] += w
    classes = [c for c in range(num_classes) if all_classes or mass[c] > 0]
    if not classes:
        return 0.0
    scores = [2 * overlap[c] / (prediction[c] + mass[c] + 1e-300) for c in classes]
    return 1 - sum(scores) / len(classes)


def affinity(matrix, label, *, radius, ignore=255):
    n_images, h, w = label.shape
    positive, negative = [], []
    for n in range(n_images):
        for i in range(h * w):
            for j in range(h * w):
                a, b = int(label[n, i // w, i % w]), int(label[n, j // w, j % w])
                far = max(abs(i // w - j // w), abs(i % w - j % w)) > radius
                if far or ignore in (a, b):
                    continue
                value = float(matrix[n, i, j])
                (positive if a == b else negative).append(value)
    return 0.5 * sum(1 - v for v in positive) / (len(positive) + 1) + 0.5 * sum(
        negative
    ) / (len(negative) + 1)


def cosine_affinity(features):
    """Nested list (N, h*w, h*w) of sigmoid(3 (cos - mean cos))."""
    result = []
    for image in features:
        d = image.shape[0]
        cells = image.reshape(d, -1).T.tolist()
        cosine = []
        for a in cells:
            row = []
            for b in cells:
                norms = math.sqrt(sum(v * v for v in a) * sum(v * v for v in b))
                dot = sum(p * q for p, q in zip(a, b, strict=True))
                row.append(dot / norms if norms else 0.0)
            cosine.append(row)
        mean = sum(map(sum, cosine)) / len(cells) ** 2
        result.append(
            [[1 / (1 + math.exp(-3 * (v - mean))) for v in row] for row in cosine]
        )
    return result


def cross_view(logits_a, logits_b, image_label, *, valid=None, threshold=0.0):
    """Restricted decisions; returns the sum of both directions."""
    total = 0.0
    for learner, teacher in ((logits_a, logits_b), (logits_b, logits_a)):
        label = learner[:, 0].clone().fill_(255).long()
        for n, y, x, _ in pixels(label.tolist()):
            allowed = [0] + [k + 1 for k, on in enumerate(image_label[n]) if on > 0]
            values = [float(teacher[n, c, y, x]) for c in allowed]
            best = max(range(len(allowed)), key=lambda i: values[i])
            sure = math.exp(log_softmax(values)[best]) >= threshold
            real = valid is None or valid[n, 0, y, x] > 0
            if sure and real:
                label[n, y, x] = allowed[best]
        total += balanced_cross_entropy(learner, label)
    return total
