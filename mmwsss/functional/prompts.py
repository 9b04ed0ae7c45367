"""How pictures and prompts go together: margins over background prompts, and AUC."""

import torch
from torch import Tensor


def prompt_margin(
    image_features: Tensor, text_features: Tensor, *, num_classes: int
) -> Tensor:
    """Cosine with each class's prompt, minus the best one with a background prompt.

    Negative means that a background prompt wins.

    Args:
        image_features: (M, E), any length.
        text_features: (K + B, E), the K classes first, B >= 1.
        num_classes: K.

    Returns:
        (M, K) in [-2, 2].

    Raises:
        ValueError: if the shapes do not belong together or no prompt is background.
    """
    if (
        image_features.ndim != 2
        or text_features.ndim != 2
        or image_features.shape[1] != text_features.shape[1]
    ):
        raise ValueError(
            'image_features must be (M, E) and text_features (K + B, E), got '
            f'{tuple(image_features.shape)} and {tuple(text_features.shape)}'
        )
    if not 1 <= num_classes < len(text_features):
        raise ValueError(
            f'num_classes must be 1 to {len(text_features) - 1}, so that background '
            f'prompts are left, got {num_classes}'
        )
    normal = torch.nn.functional.normalize
    cosine = normal(image_features, dim=1) @ normal(text_features, dim=1).t()
    best_background = cosine[:, num_classes:].amax(1, keepdim=True)
    return cosine[:, :num_classes] - best_background


def separability(positive: Tensor, negative: Tensor) -> Tensor:
    """Area under the ROC curve: how often a positive scores above a negative.

    Args:
        positive: (P,) scores, P >= 1.
        negative: (Q,) scores, Q >= 1.

    Returns:
        Scalar in [0, 1]; 0.5 for scores that say nothing, equal ones count half.

    Raises:
        ValueError: if one of them is empty or not one-dimensional.
    """
    for name, values in (('positive', positive), ('negative', negative)):
        if values.ndim != 1 or not len(values):
            raise ValueError(
                f'{name} must hold one score or more, got shape {tuple(values.shape)}'
            )
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive)
    not_above = torch.searchsorted(ordered, positive, right=True)
    return (below + not_above).double().mean() / (2 * len(ordered))
