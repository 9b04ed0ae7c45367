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
from .boundary import boundary_band, boundary_loss, pairwise_energy, symmetric_kl
from .cam import (
    add_background,
    class_maps,
    normalize_cams,
    present_softmax,
    softmax_grad_cam,
)
from .confusion import confusion_matrix, segmentation_scores, threshold_sweep
from .consistency import teacher_consistency
from .history import (
    decay_histogram,
    label_on_image_grid,
    pack_counts,
    read_history,
    unpack_counts,
)
from .inter_pixel import affinity_labels, irn_loss
from .local_affinity import pamr, par
from .losses import (
    affinity_loss,
    balanced_cross_entropy,
    class_counts,
    cross_view_loss,
    feature_affinity,
    frequency_weights,
    multi_view_loss,
    present_dice_loss,
)
from .prototype import (
    class_prototypes,
    enhance_cams,
    general_scores,
    gsc_loss,
    hierarchical_features,
    largest_seeds,
    prototype_cams,
    structure_seeds,
)
from .pseudo_label import (
    confident_labels,
    ignore_padding,
    ir_label,
    restrict_to_image_classes,
    scores_to_label,
)
from .random_walk import pair_affinity, path_index, random_walk
from .reliability import (
    blend_reliability,
    class_gates,
    gate_labels,
    reliability_bins,
    reliability_weight,
    sample_class_maps,
    stream_confidence,
    structural_consistency,
    temporal_agreement,
    update_class_means,
)
from .schedule import cosine, piecewise_linear, warmup_poly

__all__ = [
    'add_background',
    'affinity_labels',
    'affinity_loss',
    'balanced_cross_entropy',
    'blend_reliability',
    'boundary_band',
    'boundary_loss',
    'box_limits',
    'class_counts',
    'class_gates',
    'class_maps',
    'class_prototypes',
    'confident_labels',
    'confusion_matrix',
    'cosine',
    'cross_view_loss',
    'decay_histogram',
    'enhance_cams',
    'feature_affinity',
    'filter_attentions',
    'frequency_weights',
    'gate_labels',
    'general_scores',
    'gsc_loss',
    'hierarchical_features',
    'ignore_padding',
    'ir_label',
    'irn_loss',
    'label_on_image_grid',
    'largest_seeds',
    'multi_view_loss',
    'normalize_cams',
    'pack_counts',
    'pair_affinity',
    'pairwise_energy',
    'pamr',
    'par',
    'path_index',
    'piecewise_linear',
    'present_dice_loss',
    'present_softmax',
    'propagate_cams',
    'prototype_cams',
    'random_walk',
    'read_history',
    'reliability_bins',
    'reliability_weight',
    'restrict_to_image_classes',
    'sample_class_maps',
    'scores_to_label',
    'segmentation_scores',
    'sinkhorn_affinity',
    'softmax_grad_cam',
    'stream_confidence',
    'structural_consistency',
    'structure_seeds',
    'symmetric_kl',
    'teacher_consistency',
    'temporal_agreement',
    'threshold_sweep',
    'unpack_counts',
    'update_class_means',
    'warmup_poly',
]
