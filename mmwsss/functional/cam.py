"""Class activation maps: class weights, Grad-CAM, normalisation, background.

Sources: Zhou et al., CVPR 2016 (class maps); CLIP-ES, Lin et al., CVPR 2023 (softmax
Grad-CAM on CLIP). Unlike the released code all classes of a batch are differentiated
in one backward pass and nothing leaves the device.
"""

import torch
from torch import Tensor


def class_maps(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Project features on class weights, without normalisation.

    Args:
        features: (N, D, h, w).
        weight: (K, D).
        bias: (K,), or None.

    Returns:
        (N, K, h, w), unbounded.
    """
    if features.ndim != 4 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            'features must be (N, D, h, w) and weight (K, D), got '
            f'{tuple(features.shape)} and {tuple(weight.shape)}'
        )
    return torch.nn.functional.conv2d(features, weight[:, :, None, None], bias)


def present_softmax(logits: Tensor, image_label: Tensor) -> Tensor:
    """Softmax over the classes of each image and all background words.

    Args:
        logits: (N, K + B), the first K are classes, the others background words.
        image_label: (N, K), 0/1.

    Returns:
        (N, K + B) in [0, 1]; absent classes exactly 0. An image without any class
        gets zeros where there is no background word either.
    """
    n, k = image_label.shape
    if logits.ndim != 2 or logits.shape[0] != n or logits.shape[1] < k:
        raise ValueError(
            f'logits must be ({n}, {k} or more), got {tuple(logits.shape)}'
        )
    num_words = logits.shape[1] - k
    absent = torch.nn.functional.pad(image_label <= 0, (0, num_words), value=False)
    # A row of -inf alone would make softmax and its gradient NaN: such a row keeps
    # its logits here and is cleared afterwards.
    masked = logits.masked_fill(absent & ~absent.all(1, keepdim=True), float('-inf'))
    return masked.softmax(1).masked_fill(absent, 0)


def softmax_grad_cam(
    activations: Tensor,
    class_scores: Tensor,
    image_label: Tensor,
    *,
    grid: tuple[int, int],
    max_classes: int | None = None,
) -> Tensor:
    """Grad-CAM of all present classes of a batch in one backward pass.

    Args:
        activations: (N, T, D), connected by autograd to class_scores; the last h*w
            tokens are patches, the others class or register tokens.
        class_scores: (N, K), where image n depends on activations n alone.
        image_label: (N, K), 0/1.
        grid: (h, w).
        max_classes: upper bound of classes in one image; None finds it out, which
            waits for the device once. A bound that is too small raises ValueError; on
            CUDA the device checks it while the host goes on, so that it surfaces as
            a device assertion at a later call.

    Returns:
        (N, K, h, w), relu(sum_d w_d a_d) with w the mean gradient over the patch
        tokens; not normalised, detached, zero for absent classes.
    """
    n, k = image_label.shape
    num_patches = grid[0] * grid[1]
    if activations.shape[1] < num_patches:
        raise ValueError(f'{activations.shape[1]} tokens cannot fill the grid {grid}')
    if class_scores.shape != (n, k):
        raise ValueError(
            f'class_scores must be {(n, k)}, got {tuple(class_scores.shape)}'
        )
    if not class_scores.requires_grad:
        raise ValueError(
            'class_scores must carry a graph back to activations, got a tensor with '
            'requires_grad=False'
        )
    present = image_label > 0
    max_classes = _slots_needed(present, max_classes)
    cams = activations.new_zeros(n, k, num_patches)
    if max_classes == 0:
        return cams.unflatten(2, grid)
    # Slot j differentiates the j-th present class of every image: images do not
    # interact, so one vector-Jacobian product serves the whole batch.
    order = torch.argsort(present.to(torch.int8), dim=1, descending=True, stable=True)
    slots = order[:, :max_classes]  # (N, M)
    filled = present.gather(1, slots)
    targets = torch.zeros(
        slots.shape[1], n, k, dtype=class_scores.dtype, device=class_scores.device
    )
    targets.scatter_(2, slots.t()[:, :, None], filled.t()[:, :, None].to(targets))
    (gradients,) = torch.autograd.grad(
        class_scores, activations, targets, is_grads_batched=True
    )  # (M, N, T, D)
    patches = activations.detach()[:, -num_patches:]
    weights = gradients[:, :, -num_patches:].mean(2)  # (M, N, D)
    maps = torch.einsum('mnd,npd->nmp', weights, patches).relu()
    cams.scatter_(1, slots[:, :, None].expand_as(maps), maps * filled[:, :, None])
    return cams.unflatten(2, grid)


def _slots_needed(present: Tensor, max_classes: int | None) -> int:
    """Most classes of any image, or the bound, which is checked."""
    if max_classes is not None and _runs_ahead(present):
        within = (present.sum(1) <= max_classes).all()
        message = f'max_classes is {max_classes}, but an image has more classes'
        if 'msg' in torch.ops.aten._assert_async.overloads():
            torch._assert_async(within, message)
        else:  # torch 2.0
            torch._assert_async(within)
        return max_classes
    fullest = int(present.sum(1).max()) if len(present) else 0
    if max_classes is not None and max_classes < fullest:
        raise ValueError(
            f'max_classes is {max_classes}, but an image has {fullest} classes'
        )
    return fullest


def _runs_ahead(tensor: Tensor) -> bool:
    """Whether the host would have to wait to see a value of this tensor."""
    return tensor.is_cuda


def normalize_cams(cams: Tensor, *, mode: str = 'max', eps: float = 1e-5) -> Tensor:
    """Scale every map to [0, 1]; negative values are cut to 0 first.

    Args:
        cams: (N, K, h, w), any range.
        mode: 'max' gives x / (max + eps), 'minmax' (x - min) / (max - min + eps),
            per image and class.
        eps: keeps empty maps at 0.

    Returns:
        (N, K, h, w) in [0, 1].
    """
    cams = cams.relu()
    highest = cams.amax((-2, -1), keepdim=True)
    if mode == 'max':
        return cams / (highest + eps)
    if mode == 'minmax':
        lowest = cams.amin((-2, -1), keepdim=True)
        return (cams - lowest) / (highest - lowest + eps)
    raise ValueError(f"mode must be 'max' or 'minmax', got {mode!r}")


def add_background(cams: Tensor, *, power: float = 1.0) -> Tensor:
    """Put the background score (1 - max_k cam)^power in front of the classes.

    Args:
        cams: (N, K, h, w) in [0, 1].
        power: above 1 makes the background weaker.

    Returns:
        scores (N, K + 1, h, w) in [0, 1].
    """
    if cams.ndim != 4 or cams.shape[1] < 1:
        raise ValueError(f'cams must be (N, K, h, w), K >= 1, got {tuple(cams.shape)}')
    if not power > 0:
        raise ValueError(f'power must be positive, got {power}')
    background = (1 - cams.amax(1, keepdim=True)).clamp(min=0) ** power
    return torch.cat([background, cams], dim=1)
