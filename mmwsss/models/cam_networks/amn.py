"""AMN (Lee et al., CVPR 2022): a per-pixel classifier trained on IR labels.

Its class probabilities are CAMs whose objects stand out more evenly. Written from how
the released code behaves (it has no licence; nothing was taken from it). Different
here: any backbone and number of classes; no NaN for a batch without background or
without foreground; the dropout is off where CAMs are made.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.functional.losses import (
    balanced_cross_entropy_from_sums,
    balanced_cross_entropy_sums,
)
from mmwsss.functional.pseudo_label import resize_label
from mmwsss.registry import MODELS

from ..batch import stack_image_labels, valid_mask
from ..encoders.base import IMAGENET_MEAN, IMAGENET_STD
from ..losses.reduce import all_reduce_sums
from .base import CAMNetwork, PhotoCAMs
from .trained_backbone import build_backbone, load_backbone, probe_channels

_EPS = 1e-5


@MODELS.register_module()
class AMN(CAMNetwork):
    """Features times an embedding of the image label, and a pyramid of classifiers.

    Trained on stored IR labels (``mmwsss.LoadPseudoLabels``) with the balanced,
    label-smoothed cross-entropy. Kinds of maps: 'softmax', the class probabilities
    with a background of their own, and 'cam', the activation that AMN publishes: each
    map between its minimum and maximum, except where the IR label is background, which
    keeps the probability.

    ``cams`` takes the photo's IR label for that. Where there is none, the network's own
    decision stands in: background where it finds background more probable than every
    class of the photo, which is what the IR labels taught it.

    Args:
        backbone: config of an mmpretrain or MMSegmentation backbone that returns four
            maps; the last one is classified.
        num_classes: K, foreground classes.
        weights: local file or URL with the backbone's pretrained weights, loaded by
            ``init_weights``, which the runner calls before training; None leaves it to
            the backbone's ``init_cfg``.
        prefix: start of the backbone's names in ``weights``.
        unstride: submodules of the backbone that get stride 1.
        dilations: of the pyramid's 3x3 convolutions, in cells.
        dropout_ratio: of the features before the pyramid.
        label_smoothing: probability that the loss gives to the other classes.
        data_preprocessor: see ``CAMNetwork``.
        mean: see ``CAMNetwork``.
        std: see ``CAMNetwork``.
        test_scales: see ``CAMNetwork``; their logits are averaged.
        test_flip: see ``CAMNetwork``.
        max_side: see ``CAMNetwork``.
        loss_schedules: see ``CAMNetwork``; the loss is ``loss_seg``.
        init_cfg: MMEngine initialisation.

    Raises:
        ValueError: if an argument is outside its range.
        InputError: if the backbone cannot be built or used.
    """

    kinds = ('softmax', 'cam')

    def __init__(
        self,
        *,
        backbone: dict,
        num_classes: int,
        weights: str | None = None,
        prefix: str = 'backbone.',
        unstride: Sequence[str] = (),
        dilations: Sequence[int] = (6, 12, 18, 24),
        dropout_ratio: float = 0.1,
        label_smoothing: float = 0.4,
        data_preprocessor: dict | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        test_scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0),
        test_flip: bool = True,
        max_side: int = 2048,
        loss_schedules: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            data_preprocessor=data_preprocessor,
            mean=mean,
            std=std,
            test_scales=test_scales,
            test_flip=test_flip,
            max_side=max_side,
            loss_schedules=loss_schedules,
            init_cfg=init_cfg,
        )
        if not dilations or min(dilations) < 1:
            raise ValueError(f'dilations must be at least 1, got {tuple(dilations)}')
        if not 0 <= label_smoothing <= num_classes / (num_classes + 1):
            raise ValueError(
                f'label_smoothing must lie in [0, {num_classes}/{num_classes + 1}], '
                f'got {label_smoothing}'
            )
        self.label_smoothing = label_smoothing
        self.weights = weights
        self.prefix = prefix
        self.backbone = build_backbone(backbone, unstride=unstride)
        channels = probe_channels(self.backbone, num_stages=4)[-1]
        self.label_embedding = nn.Linear(num_classes, channels)
        self.dropout = nn.Dropout(dropout_ratio)
        self.pyramid = nn.ModuleList(
            nn.Conv2d(channels, num_classes + 1, 3, padding=d, dilation=d)
            for d in dilations
        )
        for classifier in self.pyramid:
            nn.init.normal_(classifier.weight, std=0.01)
            nn.init.zeros_(classifier.bias)

    def init_weights(self) -> None:
        """MMEngine's initialisation, then the backbone's pretrained weights."""
        super().init_weights()
        if self.weights is not None:
            load_backbone(self.backbone, self.weights, prefix=self.prefix)

    def seg_logits(self, image: Tensor, image_label: Tensor) -> Tensor:
        """Logits (N, C, h, w) on the last map's grid.

        Args:
            image: (N, 3, H, W) RGB in [0, 1].
            image_label: (N, K) 0/1.
        """
        features = self.backbone(self.normalized(image))[-1]
        features = features * self.label_embedding(image_label)[:, :, None, None]
        features = self.dropout(features)
        return sum(classifier(features) for classifier in self.pyramid)

    # ------------------------------------------------------------------- training
    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Loss of a batch against its IR labels, on the grid of the logits.

        Args:
            inputs: (N, 3, H, W) RGB in [0, 1], padded on the right and at the bottom.
            data_samples: with ``image_label`` (K,) and the IR label in ``gt_sem_seg``,
                255 undecided and in the padding.
        """
        if any('gt_sem_seg' not in sample for sample in data_samples):
            raise InputError(
                'AMN learns from IR labels, but the data samples hold none; put '
                'mmwsss.LoadPseudoLabels into the pipeline and pack with '
                'mmwsss.PackPseudoLabels'
            )
        image_label = stack_image_labels(data_samples, inputs.device)
        valid = valid_mask(data_samples, inputs.shape[-2:], inputs.device)
        image = self.padding_filled(inputs, valid)
        logits = self.seg_logits(image, image_label.to(inputs.dtype))
        label = torch.cat([sample.gt_sem_seg.data for sample in data_samples])
        sums = balanced_cross_entropy_sums(
            logits,
            resize_label(label.to(logits.device), tuple(logits.shape[-2:])),
            label_smoothing=self.label_smoothing,
        )
        loss = balanced_cross_entropy_from_sums(all_reduce_sums(sums))
        losses = {'loss_seg': loss}
        self.apply_schedules(losses)
        return losses

    # ------------------------------------------------------------------ inference
    def cams(
        self,
        photo: Tensor,
        image_label: Tensor,
        *,
        kind: str | None = None,
        ir_label: Tensor | None = None,
    ) -> PhotoCAMs:
        """As ``CAMNetwork.cams``.

        Args:
            photo: (3, H, W).
            image_label: (K,).
            kind: 'cam' (default) or 'softmax'.
            ir_label: (H, W) with 0 where it is background; None takes the network's
                own decision. Of no use to 'softmax'.

        Returns:
            'softmax' with scores, 'cam' without: its background is a threshold.
        """
        if ir_label is None or (kind or self.default_kind) != 'cam':
            return super().cams(photo, image_label, kind=kind)
        if tuple(ir_label.shape) != tuple(photo.shape[-2:]):
            raise InputError(
                f'the IR label must be {tuple(photo.shape[-2:])} as its photo, got '
                f'{tuple(ir_label.shape)}'
            )
        scores = super().cams(photo, image_label, kind='softmax').scores
        return PhotoCAMs(cams=activation(scores, ir_label.to(scores.device) == 0)[1:])

    def scale_maps(
        self, image: Tensor, image_label: Tensor, kinds: Sequence[str]
    ) -> dict[str, Tensor]:
        """Logits of one photo at one scale, the mean of both mirrored views."""
        views = torch.cat([image, image.flip(-1)]) if self.test_flip else image
        logits = self.seg_logits(views, image_label.expand(len(views), -1))
        if self.test_flip:
            logits = (logits[:1] + logits[1:].flip(-1)) / 2
        return {kind: logits for kind in kinds}

    def finish_maps(self, kind: str, total: Tensor, image_label: Tensor) -> PhotoCAMs:
        """Mean logits to probabilities, of which absent classes are cleared."""
        scores = (total[0] / len(self.test_scales)).softmax(0)
        # The other classes keep their share: nothing is divided up again.
        scores[1:] *= image_label[0, :, None, None]
        if kind == 'softmax':
            return PhotoCAMs(cams=scores[1:], scores=scores)
        return PhotoCAMs(cams=activation(scores, scores.argmax(0) == 0)[1:])


def activation(scores: Tensor, background: Tensor) -> Tensor:
    """Spread every map between its minimum and maximum, except on the background.

    Args:
        scores: (C, H, W) in [0, 1].
        background: (H, W) bool, where the scores stay as they are.

    Returns:
        (C, H, W) in [0, 1]; an empty map stays empty.
    """
    lowest = scores.amin((1, 2), keepdim=True)
    highest = scores.amax((1, 2), keepdim=True)
    spread = (scores - lowest) / (highest - lowest + _EPS)
    return torch.where(background, scores, spread)
