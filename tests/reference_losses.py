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


def balanced_cross_entropy(
    logits, label, *, smoothing=0.0, ignore=255, weight=None, class_weight=None
):
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
        w *= 1.0 if class_weight is None else class_weight[value]
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


def cross_view(
    logits_a, logits_b, image_label, *, valid=None, threshold=0.0, weight=None
):
    """Restricted decisions; returns the sum of both directions."""
    num_classes = logits_a.shape[1]
    limits = threshold if isinstance(threshold, list) else [threshold] * num_classes
    total = 0.0
    for learner, teacher in ((logits_a, logits_b), (logits_b, logits_a)):
        label = learner[:, 0].clone().fill_(255).long()
        for n, y, x, _ in pixels(label.tolist()):
            allowed = [0] + [k + 1 for k, on in enumerate(image_label[n]) if on > 0]
            values = [float(teacher[n, c, y, x]) for c in allowed]
            best = max(range(len(allowed)), key=lambda i: values[i])
            sure = math.exp(log_softmax(values)[best]) >= limits[allowed[best]]
            real = valid is None or valid[n, 0, y, x] > 0
            if sure and real:
                label[n, y, x] = allowed[best]
        total += balanced_cross_entropy(learner, label, weight=weight)
    return total


def class_weights(label, num_classes, *, weight=None, low=0.5, high=3.0, ignore=255):
    """Clipped mean count / count of the present foreground classes."""
    counts = [0.0] * num_classes
    for n, y, x, value in pixels(label.tolist()):
        if value != ignore:
            counts[value] += 1.0 if weight is None else float(weight[n, y, x])
    present = [count for count in counts[1:] if count > 0]
    weights = [1.0] * num_classes
    for c in range(1, num_classes):
        if counts[c] > 0:
            mean = sum(present) / len(present)
            weights[c] = min(max(mean / counts[c], low), high)
    return weights


def boundary_band(label, valid=None, *, width=2, ignore=255):
    """Nested list (N, H, W) of 0 and 1: every pixel against every edge pixel."""
    n_images, height, width_of_image = label.shape
    label = label.tolist()

    def known(n, y, x):
        inside = 0 <= y < height and 0 <= x < width_of_image
        if not inside or (valid is not None and valid[n, 0, y, x] <= 0):
            return None
        return None if label[n][y][x] == ignore else label[n][y][x]

    band = [[[0] * width_of_image for _ in range(height)] for _ in range(n_images)]
    edges = []
    for n, y, x, _ in pixels(label):
        around = [
            known(n, y + dy, x + dx) for dy, dx in [(0, 1), (1, 0), (0, -1), (-1, 0)]
        ]
        own = known(n, y, x)
        if own is not None and any(v is not None and v != own for v in around):
            edges.append((n, y, x))
    for n, y, x, _ in pixels(label):
        real = valid is None or valid[n, 0, y, x] > 0
        near = any(m == n and max(abs(y - v), abs(x - u)) <= width for m, v, u in edges)
        band[n][y][x] = int(real and near)
    return band


def symmetric_kl(logits_a, logits_b, temperature):
    """Mean of both directions of one pixel's KL times T^2; lists of C logits."""
    log_p = log_softmax([v / temperature for v in logits_a])
    log_q = log_softmax([v / temperature for v in logits_b])
    forward = sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))
    backward = sum(math.exp(q) * (q - p) for p, q in zip(log_p, log_q, strict=True))
    return temperature**2 * (forward + backward) / 2


def boundary(streams, label, band, *, temperature, kl, ce, weight=None, ignore=255):
    distance = distance_count = cross_entropy = mass = 0.0
    count = len(streams)
    for n, y, x, value in pixels(label.tolist()):
        if not band[n][y][x]:
            continue
        at = [stream[n, :, y, x].tolist() for stream in streams]
        distance_count += 1
        pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
        for a, b in pairs:
            distance += symmetric_kl(at[a], at[b], temperature) / len(pairs)
        if value != ignore:
            w = 1.0 if weight is None else float(weight[n, y, x])
            mean = [sum(values) / count for values in zip(*at, strict=True)]
            cross_entropy -= w * log_softmax(mean)[value]
            mass += w
    total = kl * distance / distance_count if distance_count else 0.0
    return total + (ce * cross_entropy / mass if mass else 0.0)


def energy(logits, image, kernel, taps, *, gate=None):
    """kernel(image, y, x) gives the weights of the taps (dy, dx) at one pixel."""
    n_images, _, height, width = logits.shape
    total = mass = 0.0
    for n in range(n_images):
        p = {
            (y, x): [math.exp(v) for v in log_softmax(logits[n, :, y, x].tolist())]
            for y in range(height)
            for x in range(width)
        }
        g = {at: 1.0 if gate is None else float(gate[(n, *at)]) for at in p}
        for y, x in p:
            mass += g[y, x]
            weights = kernel(image[n].numpy(), y, x)
            for weight, (dy, dx) in zip(weights, taps, strict=True):
                other = (y + dy, x + dx)
                if other in p:
                    dot = sum(a * b for a, b in zip(p[y, x], p[other], strict=True))
                    total += g[y, x] * g[other] * float(weight) * (1 - dot)
    return total / mass if mass else 0.0


def multi_view(streams, image_label, **options):
    """Each learner's mean over its teachers; one direction at a time."""
    total = 0.0
    for a in range(len(streams)):
        for b in range(a + 1, len(streams)):
            total += cross_view(streams[a], streams[b], image_label, **options)
    return total / (len(streams) - 1)
