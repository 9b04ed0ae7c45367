"""The obvious forms, in torch: what tools/benchmark.py compares the fast ones with.

Each computes what its fast form computes, on the same inputs, as the papers write it
down or as their released code does it. ``reference.py`` has loops in float64 for the
tests; these run at full size.
"""

import torch
import torch.nn.functional as F
from reference import cells_between, stacked_neighbours, stacked_pamr

__all__ = ['stacked_pamr']  # handed on: the benchmark finds all naive forms here


# ------------------------------------------------------------------- PAMR and PAR
def stacked_par(image, scores, *, num_iters=10, dilations=(1, 2, 4, 8, 12, 24)):
    """PAR with all neighbours of all pixels laid on each other."""
    around = stacked_neighbours(image, dilations)
    difference = around - image[:, :, None]
    deviation = around.std(dim=2, keepdim=True)
    colour = -((difference.abs() / (deviation + 1e-8) / 0.3) ** 2)
    ring = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    distance = image.new_tensor([(y * y + x * x) ** 0.5 for y, x in ring])
    distance = (image.new_tensor(dilations)[:, None] * distance).flatten()
    position = (-((distance / (distance.std() + 1e-8) / 0.3) ** 2)).softmax(0)
    weights = colour.mean(1, keepdim=True).softmax(2)
    weights = weights + 0.01 * position[None, None, :, None, None]
    for _ in range(num_iters):
        scores = (stacked_neighbours(scores, dilations) * weights).sum(2)
    return scores


def convolved_pamr(image, scores, *, num_iters=10, dilations=(1, 2, 4, 8, 12, 24)):
    """PAMR as released: neighbours are fetched by dilated one-hot convolutions."""
    ring = torch.eye(9, dtype=image.dtype, device=image.device).view(9, 1, 3, 3)
    others = ring[[0, 1, 2, 3, 5, 6, 7, 8]]

    def fetched(maps, kernel):
        n, c, height, width = maps.shape
        planes = maps.reshape(n * c, 1, height, width)
        parts = [
            F.conv2d(F.pad(planes, (d,) * 4, mode='replicate'), kernel, dilation=d)
            for d in dilations
        ]
        return torch.cat(parts, 1).view(n, c, -1, height, width)

    deviation = fetched(image, ring).std(dim=2, keepdim=True)
    difference = (fetched(image, others) - image[:, :, None]).abs()
    logits = -(difference / (1e-8 + 0.1 * deviation)).mean(1, keepdim=True)
    weights = logits.softmax(2)
    for _ in range(num_iters):
        scores = (fetched(scores, others) * weights).sum(2)
    return scores


# ------------------------------------------------------------------------ Grad-CAM
def grad_cams_one_by_one(encoder, encoded, image_label):
    """One pass through the last block and one backward for each class of each image."""
    visual, block = encoder.tower, encoder.tower.transformer.resblocks[-1]
    h, w = encoded.grid
    n, k = image_label.shape
    cams = torch.zeros(n, k, h, w, device=image_label.device)
    for i in range(n):
        present = image_label[i].nonzero().flatten().tolist()
        words = range(k, len(encoder.text_features))
        texts = encoder.text_features[[*present, *words]]
        for place, one in enumerate(present):
            tokens = encoded.last_block_input[i : i + 1]
            normed = block.ln_1(tokens).detach().requires_grad_()
            mixed = block.attn(normed, normed, normed, need_weights=False)[0]
            after = tokens + block.ls_1(mixed)
            after = after + block.ls_2(block.mlp(block.ln_2(after)))
            pooled = visual.ln_post(after[:, 1:]).mean(1) @ visual.proj
            cosine = F.normalize(pooled, dim=-1) @ texts.T
            score = (encoder.logit_scale * cosine).softmax(1)[0, place]
            (gradient,) = torch.autograd.grad(score, normed)
            weight = gradient[0, 1:].mean(0)
            cams[i, one] = (normed[0, 1:] @ weight).relu().view(h, w).detach()
    return cams


# ------------------------------------------------------------------ prototypes, SIPE
def broadcast_prototype_maps(features, cams, valid):
    """Seeds by a soft IoU over (C, cells, cells), prototypes and their maps."""
    maps = torch.zeros_like(cams)
    for i, (f, m, v) in enumerate(zip(features, cams, valid, strict=True)):
        cells = f.flatten(1)
        unit = cells / (cells.norm(dim=0) + 1e-5)
        like = (unit.T @ unit).relu()[None]  # (1, cells, cells)
        mass = m.flatten(1)[:, None, :]  # (C, 1, cells)
        both = (like * mass).sum(2)
        agreement = both / (like + mass - like * mass).sum(2)
        agreement[0] *= 0.5
        seeds = F.one_hot(agreement.argmax(0), len(m)).T * v.flatten(1)
        prototypes = (seeds[:, None] * cells[None]).sum(2) / cells.shape[1]
        for c, prototype in enumerate(prototypes):
            if prototype.any():
                cosine = F.cosine_similarity(f, prototype[:, None, None], dim=0)
                maps[i, c] = cosine.relu()
    return maps


# --------------------------------------------------------------------- random walk
def squared_walk(cams, boundary, *, radius, beta, num_steps):
    """The dense transition matrix, squared until it stands for all steps (IRN)."""
    height, width = boundary.shape[2:]
    index = torch.arange(height * width, device=cams.device).view(height, width)
    walked = []
    for maps, edge in zip(cams, boundary[:, 0], strict=True):
        matrix = torch.eye(height * width, dtype=maps.dtype, device=maps.device)
        for dy in range(radius):
            for dx in range(1 - radius, radius):
                if (dy, dx) <= (0, 0) or dy * dy + dx * dx >= radius * radius:
                    continue
                _add_pairs(matrix, edge, index, dy, dx, beta)
        matrix = matrix / matrix.sum(0, keepdim=True)
        steps = num_steps
        while steps > 1:
            matrix, steps = matrix @ matrix, steps // 2
        walked.append(((maps * (1 - edge)).flatten(1) @ matrix).view_as(maps))
    return torch.stack(walked)


def _add_pairs(matrix, edge, index, dy, dx, beta):
    height, width = edge.shape
    left, right = max(-dx, 0), width - max(dx, 0)
    if dy >= height or left >= right:
        return
    origin = (0, abs(dx))
    on_the_way = cells_between(origin, (dy, abs(dx) + dx))
    strongest = torch.stack(
        [
            edge[y : y + height - dy, left + x - abs(dx) : right + x - abs(dx)]
            for y, x in on_the_way
        ]
    ).amax(0)
    value = ((1 - strongest) ** beta).flatten()
    first = index[: height - dy, left:right].flatten()
    second = index[dy:, left + dx : right + dx].flatten()
    matrix[first, second] = value
    matrix[second, first] = value


# ---------------------------------------------------------------------- affinity loss
def looped_affinity_loss(affinity, label, *, radius):
    """Loss and its gradient, a row of the matrix at a time."""
    n, h, w = label.shape
    affinity = affinity.detach().requires_grad_()
    rows, columns = (torch.arange(s, device=label.device) for s in (h, w))
    like, unlike, num_like, num_unlike = 0.0, 0.0, 0, 0
    for i in range(n):
        for y in range(h):
            for x in range(w):
                if label[i, y, x] == 255:
                    continue
                near = (rows[:, None] - y).abs().maximum((columns - x).abs()) <= radius
                known = (near & (label[i] != 255)).flatten()
                same = (label[i] == label[i, y, x]).flatten()
                row = affinity[i, y * w + x]
                like = like + (1 - row[known & same]).sum()
                unlike = unlike + row[known & ~same].sum()
                num_like += int((known & same).sum())
                num_unlike += int((known & ~same).sum())
    loss = 0.5 * like / (num_like + 1) + 0.5 * unlike / (num_unlike + 1)
    (gradient,) = torch.autograd.grad(loss, affinity)
    return loss, gradient


# -------------------------------------------------------------------------- reliability
def looped_reliability(
    counts, streams, features, image_label, affine, label, cell_label, means
):
    """Reliability of each pixel's label, class means, and counts; image by image."""
    n, num_classes = counts.shape[:2]
    reliability = torch.zeros(label.shape, device=counts.device)
    after = counts.clone()
    for i in range(n):
        allowed = [0, *(image_label[i].nonzero().flatten() + 1).tolist()]
        logits = [s[i, allowed] for s in streams]
        size = logits[0].shape[-2:]
        maps = torch.zeros(num_classes, *size, device=counts.device)
        maps[allowed] = (
            0.30 * _past(counts[i, allowed], affine[i], size)
            + 0.35 * _confidence(logits)
            + 0.35 * _structure(features[i], cell_label[i], num_classes)[allowed]
        )
        large = F.interpolate(
            maps[None], label.shape[-2:], mode='bilinear', align_corners=False
        )[0]
        reliability[i] = large.gather(0, label[i][None])[0]
        _count_visit(after[i], cell_label[i], affine[i])
    means = means.clone()
    for c in range(num_classes):
        own = reliability[label == c]
        if len(own):
            means[c] = 0.99 * means[c] + 0.01 * own.mean()
    return reliability, means, after


def _past(counts, affine, size):
    """Share of earlier visits, read cell by cell."""
    grid = counts.shape[-1]
    read = counts.new_zeros(len(counts), *size)
    (scale_y, offset_y, _), (scale_x, offset_x, _) = affine.tolist()
    for y in range(size[0]):
        for x in range(size[1]):
            v = (scale_y * (y + 0.5) / size[0] + offset_y) * grid - 0.5
            u = (scale_x * (x + 0.5) / size[1] + offset_x) * grid - 0.5
            v, u = (min(max(place, 0.0), grid - 1.0) for place in (v, u))
            top, left = int(v), int(u)
            bottom, right = min(top + 1, grid - 1), min(left + 1, grid - 1)
            down, across = v - top, u - left
            upper = counts[:, top, left] * (1 - across) + counts[:, top, right] * across
            lower = counts[:, bottom, left] * (1 - across)
            lower = lower + counts[:, bottom, right] * across
            read[:, y, x] = upper * (1 - down) + lower * down
    return (read + 0.5) / (read.sum(0) + 1)


def _confidence(logits):
    probabilities = [x.softmax(0) for x in logits]
    number = len(logits[0])
    if number == 1:
        return torch.ones_like(logits[0])
    most = torch.log(torch.tensor(float(number)))
    entropy = sum(-(p * p.log()).sum(0) for p in probabilities) / len(logits) / most
    p, q = probabilities
    apart = 0.5 * ((p - q) * (p.log() - q.log())).sum(0)
    uncertainty = 0.5 * entropy + 0.5 * (1 - (-apart).exp())
    mean = (p + q) / 2
    return (1 - uncertainty).clamp(0, 1) * mean / mean.amax(0)


def _structure(features, label, num_classes, radius=2):
    _, h, w = features.shape
    unit = F.normalize(features, dim=0)
    votes = features.new_zeros(num_classes, h, w)
    ballots = F.one_hot(label, num_classes).movedim(-1, 0).float()
    for y in range(h):
        for x in range(w):
            for v in range(max(y - radius, 0), min(y + radius + 1, h)):
                for u in range(max(x - radius, 0), min(x + radius + 1, w)):
                    if (v, u) != (y, x):
                        cosine = (unit[:, y, x] @ unit[:, v, u]).relu()
                        votes[:, y, x] += cosine**4 * ballots[:, v, u]
    total = votes.sum(0)
    return torch.where(total >= 1e-6, votes / total, torch.full_like(votes, 0.5))


def _count_visit(counts, cell_label, affine):
    grid, (h, w) = counts.shape[-1], cell_label.shape
    (scale_y, offset_y, _), (scale_x, offset_x, _) = affine.tolist()
    for y in range(grid):
        for x in range(grid):
            v = ((y + 0.5) / grid - offset_y) / scale_y
            u = ((x + 0.5) / grid - offset_x) / scale_x
            if 0 <= v < 1 and 0 <= u < 1:
                counts[:, y, x] *= 0.8
                counts[int(cell_label[int(v * h), int(u * w)]), y, x] += 1


# --------------------------------------------------------------------------- evaluation
def looped_scores(pairs, num_classes):
    """IoU of each class in percent, class by class and mask by mask."""
    both, either = [0] * num_classes, [0] * num_classes
    for pred, target in pairs:
        counted = target != 255
        for c in range(num_classes):
            said, true = (pred == c) & counted, (target == c) & counted
            both[c] += int((said & true).sum())
            either[c] += int((said | true).sum())
    return [100 * b / max(e, 1) for b, e in zip(both, either, strict=True)]
