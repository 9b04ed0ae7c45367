"""The mathematics of mmwsss: pure functions on tensors, torch alone.

Axes: N images, K foreground classes, C = K + 1 with the background in channel 0,
H W pixels, h w cells. Images are RGB in [0, 1]; 255 is the ignore label.
"""

from .attention import (
    box_limits,
    filter_attentions,
    propagate_cams,
    sinkhorn_affinity,
)
from .cam import (
    add_background,
    class_maps,
    normalize_cams,
    present_softmax,
    softmax_grad_cam,
)
from .confusion import confusion_matrix, segmentation_scores, threshold_sweep
from .local_affinity import pamr, par
from .losses import (
    affinity_loss,
    balanced_cross_entropy,
    cross_view_loss,
    feature_affinity,
    present_dice_loss,
)
from .pseudo_label import (
    confident_labels,
    ignore_padding,
    restrict_to_image_classes,
    scores_to_label,
)
from .schedule import cosine, piecewise_linear, warmup_poly

__all__ = [
    'add_background',
    'affinity_loss',
    'balanced_cross_entropy',
    'box_limits',
    'class_maps',
    'confident_labels',
    'confusion_matrix',
    'cosine',
    'cross_view_loss',
    'feature_affinity',
    'filter_attentions',
    'ignore_padding',
    'normalize_cams',
    'pamr',
    'par',
    'piecewise_linear',
    'present_dice_loss',
    'present_softmax',
    'propagate_cams',
    'restrict_to_image_classes',
    'scores_to_label',
    'segmentation_scores',
    'sinkhorn_affinity',
    'softmax_grad_cam',
    'threshold_sweep',
    'warmup_poly',
]
