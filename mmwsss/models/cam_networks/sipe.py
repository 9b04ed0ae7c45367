"""SIPE (Chen et al., CVPR 2022) and AE-SIPE, its affinity enhancement.

Written from the papers' formulas and the behaviour of the released MIT code (spec
sipe, sections 2 to 4). Different here: classes and stages in any number and kind, no
NaN at cells without features, and a choice of what AE-SIPE fixes in its code: the order
of its steps, the maps that train, what its seeds may be.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.functional import (
    class_prototypes,
    enhance_cams,
    general_scores,
    hierarchical_features,
    normalize_cams,
    prototype_cams,
    structure_seeds,
)
from mmwsss.functional.prototype import (
    check_enhancement,
    full_precision,
    gsc_from_sums,
    gsc_sums,
)
from mmwsss.registry import MODELS

from ..batch import stack_image_labels, valid_mask
from ..encoders.base import IMAGENET_MEAN, IMAGENET_STD
from ..losses.reduce import all_reduce_sums
from .base import CAMNetwork, PhotoCAMs, unflipped_sum
from .trained_backbone import build_backbone, load_backbone, probe_channels

SEED_FEATURES = ('deepest', 'hierarchical')
_GRID_STAGE = 2  # whose resolution all maps are brought to


@MODELS.register_module()
class SIPE(CAMNetwork):
    """A classifier whose CAMs agree with those of prototypes made for each image.

    Four stages of a backbone, a 1x1 classifier on the last one, and a 1x1 convolution
    beside each stage for the hierarchical features. Kinds of maps: 'cam' (the
    classifier's), 'is_cam' (the prototypes'), 'enhanced' (after ``enhancement``).

    Args:
        backbone: config of an mmpretrain or MMSegmentation backbone that returns four
            maps. Stages that are not to be trained are frozen by its own
            ``frozen_stages`` (2 as published), which keeps DDP content.
        num_classes: K, foreground classes.
        weights: local file or URL with the backbone's pretrained weights, loaded by
            ``init_weights``, which the runner calls before training; None leaves it to
            the backbone's ``init_cfg``.
        prefix: start of the backbone's names in ``weights``.
        unstride: submodules of the backbone that get stride 1.
        side_channels: of the hierarchical features, one number per stage.
        train_seed_features: whose structure the seeds of a training step follow:
            'deepest' (the last stage; SIPE) or 'hierarchical' (AE-SIPE).
        test_seed_features: the same for photos; 'hierarchical' as published. After a
            short training (MSRC, 144 steps) the side convolutions are nearly as random
            as at its start, so that most classes get no seeds with 'hierarchical';
            'deepest' is then better by far.
        seed_bg_factor: on the background's agreement where seeds are chosen.
        norm: of the prototypes' maps before they are compared with the classifier's,
            and of 'enhanced' at each scale: 'max' or 'minmax'.
        enhancement: steps of ``functional.enhance_cams``; AE-SIPE's are 'pamr',
            'prototypes', 'is_cam'. None of them is SIPE.
        enhancement_bg_factor: on the background where the enhancement takes seeds, in
            [0, 1]; 1 as published.
        enhancement_num_iters: of PAMR.
        learn_from_padding: as published, padding makes seeds of the enhancement and
            counts in the GSC losses, where it pushes the prototypes' maps to 0. False
            leaves it out of both.
        gsc_weights: which maps the classifier's are compared with and how much that
            counts, e.g. ``dict(enhanced=1.0)``. Empty trains a plain classifier.
        bg_rescale: on the final background score of photos; AE-SIPE 0.8.
        data_preprocessor: see ``CAMNetwork``.
        mean: see ``CAMNetwork``.
        std: see ``CAMNetwork``.
        test_scales: see ``CAMNetwork``.
        test_flip: see ``CAMNetwork``.
        max_side: see ``CAMNetwork``.
        loss_schedules: see ``CAMNetwork``; the losses are ``loss_cls``,
            ``loss_gsc_is_cam`` and ``loss_gsc_enhanced``.
        init_cfg: MMEngine initialisation.

    Raises:
        ValueError: if an argument is outside its range.
        InputError: if the backbone cannot be built or used.
    """

    def __init__(
        self,
        *,
        backbone: dict,
        num_classes: int,
        weights: str | None = None,
        prefix: str = 'backbone.',
        unstride: Sequence[str] = (),
        side_channels: Sequence[int] = (128, 128, 256, 256),
        train_seed_features: str = 'deepest',
        test_seed_features: str = 'hierarchical',
        seed_bg_factor: float = 0.5,
        norm: str = 'max',
        enhancement: Sequence[str] = (),
        enhancement_bg_factor: float = 1.0,
        enhancement_num_iters: int = 10,
        learn_from_padding: bool = True,
        gsc_weights: Mapping[str, float] | None = None,
        bg_rescale: float = 1.0,
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
        check_enhancement(enhancement)
        self.enhancement = tuple(enhancement)
        self.kinds = ('cam', 'is_cam', 'enhanced')[: 3 if enhancement else 2]
        if gsc_weights is None:
            gsc_weights = {self.default_kind: 1.0}
        if not isinstance(gsc_weights, Mapping):
            raise InputError(
                'gsc_weights must be a dict of kinds of maps and weights, got '
                f'{gsc_weights!r}; --cfg-options writes no dict, so set it in a '
                'config, where gsc_weights={} trains the classifier alone'
            )
        self.gsc_weights = dict(gsc_weights)
        self.train_seed_features = train_seed_features
        self.test_seed_features = test_seed_features
        self.seed_bg_factor = seed_bg_factor
        self.norm = norm
        self.enhancement_bg_factor = enhancement_bg_factor
        self.enhancement_num_iters = enhancement_num_iters
        self.learn_from_padding = learn_from_padding
        self.bg_rescale = bg_rescale
        self._check_arguments()
        self.weights = weights
        self.prefix = prefix
        self.backbone = build_backbone(backbone, unstride=unstride)
        channels = probe_channels(self.backbone, num_stages=4)
        self.classifier = nn.Conv2d(channels[-1], num_classes, 1, bias=False)
        self.side_convs = nn.ModuleList(
            nn.Conv2d(before, after, 1, bias=False)
            for before, after in zip(channels, side_channels, strict=True)
        )
        # DDP waits for the gradient of every parameter that has not been frozen.
        self.side_convs.requires_grad_(self._side_convs_learn())

    def _check_arguments(self) -> None:
        for name, value, known in (
            ('train_seed_features', self.train_seed_features, SEED_FEATURES),
            ('test_seed_features', self.test_seed_features, SEED_FEATURES),
            ('norm', self.norm, ('max', 'minmax')),
        ):
            if value not in known:
                raise ValueError(f'{name} must be one of {known}, got {value!r}')
        for name in ('seed_bg_factor', 'enhancement_bg_factor', 'bg_rescale'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} must be in [0, 1], got {getattr(self, name)}')
        maps = self.kinds[1:]
        unknown = self.gsc_weights.keys() - set(maps)
        if unknown:
            raise ValueError(
                f'gsc_weights may name {maps}, got {sorted(self.gsc_weights)}'
            )

    def _side_convs_learn(self) -> bool:
        through_enhanced = self.enhancement[-1:] == ('is_cam',)
        return 'is_cam' in self.gsc_weights or (
            'enhanced' in self.gsc_weights and through_enhanced
        )

    def init_weights(self) -> None:
        """MMEngine's initialisation, then the backbone's pretrained weights."""
        super().init_weights()
        if self.weights is not None:
            load_backbone(self.backbone, self.weights, prefix=self.prefix)

    # ------------------------------------------------------------------- training
    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Multi-label soft margin loss and the GSC losses of a batch.

        Args:
            inputs: (N, 3, H, W) RGB in [0, 1], padded on the right and at the bottom.
            data_samples: with ``image_label`` (K,) each.

        Returns:
            ``loss_cls``, a ``loss_gsc_<kind>`` per entry of ``gsc_weights``, and
            ``seedless.<kind>``: the share of the image's classes that got no prototype.
        """
        image_label = stack_image_labels(data_samples, inputs.device)
        valid = valid_mask(data_samples, inputs.shape[-2:], inputs.device)
        image = self.padding_filled(inputs, valid)
        stages = self.backbone(self.normalized(image))
        class_maps = self.classifier(stages[-1])
        class_scores = full_precision(class_maps).mean((2, 3))
        losses = {'loss_cls': F.multilabel_soft_margin_loss(class_scores, image_label)}
        if self.gsc_weights:
            losses.update(
                self._gsc_losses(image, stages, class_maps, image_label, valid)
            )
        self.apply_schedules(losses)
        return losses

    def _gsc_losses(
        self,
        image: Tensor,
        stages: Sequence[Tensor],
        class_maps: Tensor,
        image_label: Tensor,
        valid: Tensor,
    ) -> dict:
        features = self.hierarchical(stages)
        size = features.shape[-2:]
        valid = F.interpolate(valid, size, mode='nearest')
        allowed = valid * with_bg(image_label)  # (N, C, h, w)
        # The background is what all K classes leave, absent ones included.
        general = general_scores(class_maps, size) * allowed
        seed_features = features
        if self.train_seed_features == 'deepest':
            seed_features = on_grid(stages[-1].detach(), size)
        seeds = structure_seeds(
            seed_features, general, allowed, bg_factor=self.seed_bg_factor
        )
        counted = None if self.learn_from_padding else valid
        maps = self.prototype_maps(
            image,
            features,
            seeds,
            kinds=tuple(self.gsc_weights),
            allowed=None if self.learn_from_padding else allowed,
        )
        losses = {}
        for kind, weight in self.gsc_weights.items():
            target = normalize_cams(maps[kind], mode=self.norm)
            sums = all_reduce_sums(gsc_sums(general, target, valid=counted))
            losses[f'loss_gsc_{kind}'] = weight * gsc_from_sums(sums)
            losses[f'seedless.{kind}'] = seedless_share(maps[kind], image_label)
        return losses

    def hierarchical(self, stages: Sequence[Tensor]) -> Tensor:
        """(N, D, h, w) of all stages; only the side convolutions learn from it."""
        sides = [
            conv(stage.detach())
            for conv, stage in zip(self.side_convs, stages, strict=True)
        ]
        return hierarchical_features(sides, stages[_GRID_STAGE].shape[-2:])

    def prototype_maps(
        self,
        image: Tensor,
        features: Tensor,
        seeds: Tensor,
        *,
        kinds: Sequence[str],
        allowed: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Maps (N, C, h, w) of prototypes, not normalised, for each kind asked for.

        Args:
            image: (N, 3, H, W) RGB in [0, 1]; PAMR runs at a quarter of its size.
            features: (N, D, h, w).
            seeds: (N, C, h, w).
            kinds: 'is_cam' and 'enhanced'; others are left out.
            allowed: (N, C, h, w) 0/1, where the enhancement may take seeds.
        """
        maps = {'is_cam': prototype_cams(features, class_prototypes(features, seeds))}
        if 'enhanced' in kinds:
            maps['enhanced'] = enhance_cams(
                quarter(image),
                features,
                maps['is_cam'].detach(),
                allowed,
                steps=self.enhancement,
                bg_factor=self.enhancement_bg_factor,
                num_iters=self.enhancement_num_iters,
            )
        return {kind: maps[kind] for kind in kinds if kind in maps}

    # ------------------------------------------------------------------ inference
    def scale_maps(
        self, image: Tensor, image_label: Tensor, kinds: Sequence[str]
    ) -> dict[str, Tensor]:
        """Maps of one photo at one scale, see ``CAMNetwork``."""
        views = torch.cat([image, image.flip(-1)]) if self.test_flip else image
        stages = self.backbone(self.normalized(views))
        class_maps = unflipped_sum(self.classifier(stages[-1]))
        maps = {}
        if 'cam' in kinds:
            maps['cam'] = class_maps.relu()
        if set(kinds) <= {'cam'}:
            return maps
        features = unflipped_sum(self.hierarchical(stages))
        size = features.shape[-2:]
        seed_features = features
        if self.test_seed_features == 'deepest':
            seed_features = on_grid(unflipped_sum(stages[-1]), size)
        seeds = structure_seeds(
            seed_features,
            # Not limited to the image's classes: where another one wins is no seed.
            general_scores(class_maps, size),
            with_bg(image_label),
            bg_factor=self.seed_bg_factor,
        )
        maps.update(self.prototype_maps(image, features, seeds, kinds=kinds))
        if 'enhanced' in maps:
            maps['enhanced'] = normalize_cams(maps['enhanced'], mode=self.norm)
        return maps

    def finish_maps(self, kind: str, total: Tensor, image_label: Tensor) -> PhotoCAMs:
        """The sum over the scales to CAMs, with a background for prototypes."""
        if kind == 'cam':
            cams = normalize_cams(total) * image_label[:, :, None, None]
            return PhotoCAMs(cams=cams[0])
        # Absent classes have had no seeds, so theirs are 0 already.
        scores = normalize_cams(total)[0]
        scores[0] *= self.bg_rescale
        return PhotoCAMs(cams=scores[1:], scores=scores)


def on_grid(stage: Tensor, size: tuple[int, int]) -> Tensor:
    """A stage's features (N, D, h, w) at another resolution, in full precision."""
    stage = full_precision(stage)
    if tuple(stage.shape[-2:]) == tuple(size):
        return stage
    return F.interpolate(stage, size, mode='bilinear', align_corners=False)


def with_bg(image_label: Tensor) -> Tensor:
    """image_label (N, K) -> (N, C, 1, 1) with a 1 for the background."""
    return F.pad(image_label, (1, 0), value=1.0)[:, :, None, None]


def quarter(image: Tensor) -> Tensor:
    """The image at a quarter of its height and width, at least one pixel."""
    size = [max(1, side // 4) for side in image.shape[-2:]]
    return F.interpolate(image, size, mode='bilinear', align_corners=True)


@torch.no_grad()
def seedless_share(maps: Tensor, image_label: Tensor) -> Tensor:
    """Share of the images' classes whose map (N, C, h, w) is empty, for the log."""
    empty = maps[:, 1:].amax((2, 3)) <= 0
    return (empty * image_label).sum() / image_label.sum().clamp(min=1)
