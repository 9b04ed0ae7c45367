"""Consistency of two architectures: a student's maps follow those of a teacher.

After Zhang & Hsu, "Mitigating Spurious Correlations in Weakly Supervised Semantic
Segmentation via Cross-architecture Consistency Regularization" (arXiv 2507.21959), from
its formulas (spec smoke, sections 1 and 2). Different from the released code: what
projects the student is a trained part of the network, the background map that is
transferred is not an untrained one, photos without the object can have an empty map,
and rectangular photos keep their shape.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmwsss.checkpoints import read_checkpoint
from mmwsss.errors import InputError
from mmwsss.files import find_checkpoint
from mmwsss.functional import (
    fuse_layer_maps,
    fuse_window_maps,
    linear_cka,
    normalize_cams,
    rescale_maps,
    window_boxes,
)
from mmwsss.functional.cam_fusion import check_layer_fusion
from mmwsss.functional.prototype import full_precision
from mmwsss.registry import MODELS

from ..batch import stack_image_labels, valid_mask
from ..encoders.base import FrozenEncoder, fixed_cpu_rng, init_quietly
from ..encoders.weights import load_exactly
from .base import CAMNetwork, PhotoCAMs, resized_photo, scaled_size, unflipped_sum
from .branches import CAMBranch, Seen

PARADIGMS = ('teacher_student', 'co_training')
DETACHMENTS = ('none', 'mutual')
TARGETS = ('cam', 'cam+bg', 'feature')
GATES = ('label', 'pred', 'prob', None)
# In place of a file: the control whose teacher knows nothing.
UNTRAINED = 'untrained'
_GRADIENT_KINDS = ('grad', 'layer')
_WINDOWS_AT_ONCE = 16


@MODELS.register_module()
class CrossArch(CAMNetwork):
    """A student that learns from image labels and from another network's maps.

    Kinds of maps: 'grad' (Grad-CAM) and 'layer' (LayerCAM) of the student's
    ``grad_layers``, 'direct' (its classifier on each cell), 'teacher' (the same of the
    teacher), 'proj' (what the student's projection says of each class, where maps are
    transferred). ``PhotoCAMs`` carries the student's ``probs``.

    A teacher is trained as a student without one: ``student=dict(type=
    'mmwsss.CNNBranch', ...)``, ``teacher=None``, which is a plain classifier.

    Args:
        student: config of a ``CNNBranch`` or ``ViTBranch`` without ``num_classes``.
        num_classes: K, foreground classes.
        teacher: the same of the teacher; None trains the student alone.
        teacher_checkpoint: where a frozen teacher's weights are: a checkpoint of this
            class or of ``CAMClassifier``, or a work directory whose last one is taken;
            read at the first need. 'untrained' is the control with a teacher as its
            initialisation leaves it, the same in every run.
        save_teacher: put a frozen teacher into the checkpoint, which then needs
            ``teacher_checkpoint`` no more.
        paradigm: 'teacher_student' freezes the teacher: no ``train()``, no optimizer
            and, without ``save_teacher``, no checkpoint reaches it. 'co_training'
            trains both.
        detach: in co-training 'none' lets both move towards each other (as
            published); 'mutual' adds up two terms, in each of which the other one is
            given, on the grid of the one that learns. Where the metric is symmetric
            and the grids are equal the gradients of the two are the same.
        teacher_target: the teacher's 'cam' (its class maps), 'cam+bg' (with
            -max_k of them in front) or 'feature' (its deepest features by a fixed
            random orthogonal projection, so that both cannot agree on a constant).
        feature_channels: of that projection.
        projection: config of what brings the student's features to the channels of the
            target, without its channels.
        loss_kt: config of the transfer's loss; like ``projection`` needed with a
            teacher and not looked at without.
        loss_cls: config of the loss of (scores, image_label, data_samples) of either
            network, such as ``mmwsss.VideoMIL``; None is the multi-label soft margin
            loss.
        kind: of the maps that the network is made for; None is 'proj', where there
            are no such maps 'direct', for a class token 'grad'.
        layer_fusion: arguments of ``functional.fuse_layer_maps`` for several
            ``grad_layers``.
        gate: what a photo's maps depend on: 'label' leaves classes out that its image
            label has not, 'pred' those that the network finds less likely than not,
            'prob' multiplies with the probabilities, None takes all. Without a gate a
            photo without an object has a map with a peak too.
        window_share: see a photo in overlapping windows of this share of its shorter
            side, half a window apart, each weighed by its own class probabilities;
            None sees it whole.
        min_window: smallest side of a window in pixels.
        data_preprocessor: see ``CAMNetwork``.
        test_scales: see ``CAMNetwork``.
        test_flip: see ``CAMNetwork``.
        max_side: see ``CAMNetwork``.
        loss_schedules: see ``CAMNetwork``; the losses are ``loss_cls_student``,
            ``loss_cls_teacher`` (co-training) and ``loss_kt``.
        init_cfg: MMEngine initialisation.

    Raises:
        ValueError: if an argument is outside its range.
        InputError: if a branch cannot be built, or arguments do not go together.
    """

    def __init__(
        self,
        *,
        student: Mapping,
        num_classes: int,
        teacher: Mapping | None = None,
        teacher_checkpoint: str | None = None,
        save_teacher: bool = False,
        paradigm: str = 'teacher_student',
        detach: str = 'none',
        teacher_target: str = 'cam+bg',
        feature_channels: int = 256,
        projection: Mapping | None = None,
        loss_kt: Mapping | None = None,
        loss_cls: Mapping | None = None,
        kind: str | None = None,
        layer_fusion: Mapping | None = None,
        gate: str | None = 'label',
        window_share: float | None = None,
        min_window: int = 64,
        data_preprocessor: dict | None = None,
        test_scales: Sequence[float] = (1.0,),
        test_flip: bool = False,
        max_side: int = 2048,
        loss_schedules: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            data_preprocessor=data_preprocessor,
            test_scales=test_scales,
            test_flip=test_flip,
            max_side=max_side,
            loss_schedules=loss_schedules,
            init_cfg=init_cfg,
        )
        for name, value, known in (
            ('paradigm', paradigm, PARADIGMS),
            ('detach', detach, DETACHMENTS),
            ('teacher_target', teacher_target, TARGETS),
            ('gate', gate, GATES),
        ):
            if value not in known:
                raise ValueError(f'{name} must be one of {known}, got {value!r}')
        if window_share is not None and not 0 < window_share <= 1:
            raise ValueError(f'window_share must be in (0, 1], got {window_share}')
        if min_window < 2:
            raise ValueError(f'min_window must be at least 2, got {min_window}')
        self.loss_cls = None if loss_cls is None else MODELS.build(loss_cls)
        self.teacher_checkpoint = teacher_checkpoint
        self.save_teacher = save_teacher
        self.paradigm = paradigm
        self.detach = detach
        self.teacher_target = teacher_target
        self.gate = gate
        self.window_share = window_share
        self.min_window = min_window
        self.student = self._build_branch(student)
        self.layer_fusion = dict(layer_fusion or {})
        check_layer_fusion(len(self.student.grad_layers), **self.layer_fusion)
        self._teacher_known = True
        if teacher is not None:
            self._check_pair(loss_kt)
            self._add_teacher(teacher)
            self.loss_kt = MODELS.build(loss_kt)
            self._add_projection(projection, feature_channels)
        self.kinds = self._kinds(kind)

    # ------------------------------------------------------------------ the parts
    def _build_branch(self, config: Mapping) -> CAMBranch:
        branch = MODELS.build({**config, 'num_classes': self.num_classes})
        if not isinstance(branch, CAMBranch):
            raise InputError(
                'student and teacher must be mmwsss.CNNBranch or mmwsss.ViTBranch, got '
                f'{type(branch).__name__}'
            )
        return branch

    def _check_pair(self, loss_kt: Mapping | None) -> None:
        if loss_kt is None:
            raise InputError(
                "a teacher needs loss_kt=dict(type='mmwsss.KnowledgeTransferLoss'); "
                'without it set teacher=None'
            )
        frozen = self.paradigm == 'teacher_student'
        if frozen and self.teacher_checkpoint is None:
            raise InputError(
                'a frozen teacher needs teacher_checkpoint, a training of the teacher '
                f'alone; {UNTRAINED!r} is the control with a random one'
            )
        if not frozen and (self.teacher_checkpoint or self.save_teacher):
            raise InputError(
                'co_training trains the teacher with the student: take '
                'teacher_checkpoint and save_teacher out of the config'
            )

    def _add_teacher(self, config: Mapping) -> None:
        if self.paradigm == 'co_training':
            self.teacher = self._build_branch(config)
            return
        # A frozen teacher must not shift the random numbers of the student.
        with fixed_cpu_rng():
            branch = self._build_branch(config)
            if self.teacher_checkpoint == UNTRAINED:
                init_quietly(branch)
        self._teacher_known = self.teacher_checkpoint == UNTRAINED
        self.frozen_teacher = FrozenEncoder(
            branch,
            mean=(branch.mean * 255).flatten().tolist(),
            std=(branch.std * 255).flatten().tolist(),
            feature_channels=(),
        )

    @property
    def teacher_branch(self) -> CAMBranch | None:
        """The teacher, trained or frozen."""
        if hasattr(self, 'frozen_teacher'):
            return self.frozen_teacher.tower
        return getattr(self, 'teacher', None)

    @property
    def transfers_maps(self) -> bool:
        """Whether there is a teacher whose maps, not scores, the student learns."""
        return self.teacher_branch is not None and self.loss_kt.mode != 'logits'

    def _add_projection(self, config: Mapping | None, feature_channels: int) -> None:
        if not self.transfers_maps:
            if config is not None:
                raise InputError(
                    "mode 'logits' compares class scores, which nothing projects: take "
                    'projection out of the config'
                )
            return
        if config is None:
            raise InputError(
                "a teacher needs projection=dict(type='mmwsss.PointwiseProjection'), "
                "which brings the student's features to the channels of the target"
            )
        channels = self.num_classes + (self.teacher_target == 'cam+bg')
        if self.teacher_target == 'feature':
            known = self.teacher_branch.channels
            channels = min(feature_channels, known)
            with fixed_cpu_rng():
                basis = torch.nn.init.orthogonal_(torch.empty(channels, known))
            # In the checkpoint, since no two machines need to draw the same one.
            self.register_buffer('teacher_basis', basis[:, :, None, None])
        self.projection = MODELS.build(
            {
                **config,
                'in_channels': self.student.channels,
                'out_channels': channels,
            }
        )

    def _kinds(self, wanted: str | None) -> tuple[str, ...]:
        """All kinds that the network can give, the wanted one last."""
        can = [*_GRADIENT_KINDS, 'direct']
        if self.teacher_branch is not None:
            can.append('teacher')
        best = self.student.default_kind
        if self.transfers_maps and self.teacher_target != 'feature':
            can.append('proj')
            best = 'proj'
        wanted = wanted or best
        if wanted not in can:
            raise InputError(f'kind must be one of {tuple(can)}, got {wanted!r}')
        return (*(kind for kind in can if kind != wanted), wanted)

    def init_weights(self) -> None:
        """MMEngine's initialisation of what is trained, then the frozen teacher."""
        super().init_weights()
        self._know_teacher()

    def _know_teacher(self) -> None:
        """Read the frozen teacher's weights, if nobody has yet."""
        if self._teacher_known:
            return
        path = find_checkpoint(self.teacher_checkpoint)
        content = read_checkpoint(path)
        tensors = content.get('state_dict', content)
        prefix = 'student.'
        own = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        load_exactly(self.teacher_branch, own or tensors, path=path, what='the teacher')
        self._teacher_known = True

    def _save_to_state_dict(
        self, destination: dict, prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.save_teacher and self.teacher_branch is not None:
            self._know_teacher()
            self.teacher_branch.state_dict(
                destination=destination, prefix=f'{prefix}teacher.', keep_vars=keep_vars
            )

    def _load_from_state_dict(
        self, state_dict: Mapping, prefix: str, *args: object
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.save_teacher or self.teacher_branch is None:
            return
        start = f'{prefix}teacher.'
        own = {
            name.removeprefix(start): value
            for name, value in state_dict.items()
            if name.startswith(start)
        }
        missing, unexpected = args[-3], args[-2]
        unexpected[:] = [name for name in unexpected if not name.startswith(start)]
        if not own:
            missing.append(f'{start}*')
            return
        load_exactly(
            self.teacher_branch, own, path='of the student', what='the teacher'
        )
        self._teacher_known = True

    # ------------------------------------------------------------------- training
    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Multi-label soft margin losses and the transfer of a batch.

        Args:
            inputs: (N, 3, H, W) RGB in [0, 1], padded on the right and at the bottom.
            data_samples: with ``image_label`` (K,) each; none of the classes is legal.

        Returns:
            ``loss_cls_student``; with a teacher ``loss_kt`` and ``cka``, how alike the
            student's features and the target are (in [0, 1], no loss); in co-training
            ``loss_cls_teacher``.
        """
        image_label = stack_image_labels(data_samples, inputs.device)
        valid = valid_mask(data_samples, inputs.shape[-2:], inputs.device)
        seen = self.student(inputs, valid)
        given = (image_label, data_samples)
        losses = {'loss_cls_student': self._classified(seen.scores, *given)}
        if self.teacher_branch is not None:
            taught = self._taught(inputs, valid)
            if self.paradigm == 'co_training':
                losses['loss_cls_teacher'] = self._classified(taught.scores, *given)
            losses.update(self._transfer(seen, taught, image_label))
        self.apply_schedules(losses)
        return losses

    def _classified(
        self, scores: Tensor, image_label: Tensor, data_samples: list
    ) -> Tensor:
        if self.loss_cls is None:
            return F.multilabel_soft_margin_loss(scores, image_label)
        return self.loss_cls(scores, image_label, data_samples)

    def _taught(self, image: Tensor, valid: Tensor | None = None) -> Seen:
        if self.paradigm == 'co_training':
            return self.teacher(image, valid)
        self._know_teacher()
        with torch.no_grad():
            return self.teacher_branch(image, valid)

    def _transfer(self, seen: Seen, taught: Seen, image_label: Tensor) -> dict:
        if self.transfers_maps:
            own, target = self.projection(seen.features), self._target(taught)
        else:
            own, target = seen.scores, taught.scores
        present = self._present(image_label)
        if self.paradigm == 'co_training' and self.detach == 'mutual':
            loss = self.loss_kt(own, target.detach(), present)
            loss = loss + self.loss_kt(target, own.detach(), present)
        else:
            loss = self.loss_kt(own, target, present)
        maps = target if self.transfers_maps else taught.class_maps
        return {'loss_kt': loss, 'cka': _alikeness(seen.features, maps)}

    def _target(self, taught: Seen) -> Tensor:
        """What the student's projected features are compared with."""
        if self.teacher_target == 'feature':
            return F.conv2d(taught.features, self.teacher_basis)
        if self.teacher_target == 'cam':
            return taught.class_maps
        background = -taught.class_maps.amax(1, keepdim=True)
        return torch.cat([background, taught.class_maps], 1)

    def _present(self, image_label: Tensor) -> Tensor | None:
        """Which channels of the target an image has, (N, channels)."""
        if not self.transfers_maps or self.teacher_target == 'cam':
            return image_label
        if self.teacher_target == 'cam+bg':
            return F.pad(image_label, (1, 0), value=1.0)
        return None

    # ------------------------------------------------------------------ inference
    @torch.no_grad()
    def all_cams(
        self,
        photo: Tensor,
        image_label: Tensor,
        *,
        kinds: Sequence[str] | None = None,
    ) -> dict[str, PhotoCAMs]:
        """See ``CAMNetwork``; the gate says which classes are there."""
        shown = self._label_of_photo(image_label)[0]
        probs = self.class_probs(photo)
        if self.gate == 'pred':
            shown = (probs > 0.5).to(shown)
        elif self.gate != 'label':
            shown = torch.ones_like(shown)
        found = super().all_cams(photo, shown, kinds=kinds)
        for photo_cams in found.values():
            photo_cams.probs = probs
            if self.gate == 'prob':
                photo_cams.cams = photo_cams.cams * probs[:, None, None]
        return found

    @torch.no_grad()
    def class_probs(self, photo: Tensor) -> Tensor:
        """Probabilities (K,) of a photo (3, H, W), seen whole at its own size."""
        image = self._photo_as_image(photo)
        size = scaled_size(tuple(image.shape[-2:]), 1.0, self.max_side)
        views = self._views(resized_photo(image, size))
        return self.student(views).scores.sigmoid().mean(0)

    def _views(self, image: Tensor) -> Tensor:
        return torch.cat([image, image.flip(-1)]) if self.test_flip else image

    def scale_maps(
        self, image: Tensor, image_label: Tensor, kinds: Sequence[str]
    ) -> dict[str, Tensor]:
        """Maps of one photo at one scale, each in [0, 1], see ``CAMNetwork``."""
        views = self._views(image)
        if self.window_share is None:
            maps, _ = self._maps_of(views, image_label, kinds)
        else:
            found = [self._window_maps(v[None], image_label, kinds) for v in views]
            maps = {kind: torch.cat([own[kind] for own in found]) for kind in kinds}
        return {kind: unflipped_sum(maps[kind]) for kind in kinds}

    def _window_maps(
        self, view: Tensor, image_label: Tensor, kinds: Sequence[str]
    ) -> dict[str, Tensor]:
        """(1, K, H, W) of a view, put together from its windows."""
        size = tuple(view.shape[-2:])
        window = max(self.min_window, round(self.window_share * min(size)))
        boxes = window_boxes(size, window=window, stride=max(1, window // 2))
        crops = [view[..., t:b, left:r] for t, left, b, r in boxes]
        parts = [
            self._maps_of(
                torch.cat(crops[i : i + _WINDOWS_AT_ONCE]), image_label, kinds
            )
            for i in range(0, len(crops), _WINDOWS_AT_ONCE)
        ]
        probs = torch.cat([of_part for _, of_part in parts])
        return {
            kind: fuse_window_maps(
                torch.cat([maps[kind] for maps, _ in parts]), boxes, probs, size
            )
            for kind in kinds
        }

    def _maps_of(
        self, views: Tensor, image_label: Tensor, kinds: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Maps (V, K, h, w) in [0, 1] and probabilities (V, K) of V views."""
        classes = image_label[0].nonzero().flatten()
        by_gradient = [kind for kind in _GRADIENT_KINDS if kind in kinds]
        maps = {}
        if by_gradient and len(classes):
            seen, layers = self.student.explained(views, classes, by_gradient)
            for kind in by_gradient:
                maps[kind] = self._fused(layers[kind], seen, classes)
        else:
            seen = self.student(views)
            empty = views.new_zeros(len(views), self.num_classes, 1, 1)
            maps.update(dict.fromkeys(by_gradient, empty))
        if 'direct' in kinds:
            maps['direct'] = _brought_to_one(seen.class_maps)
        if 'proj' in kinds:
            projected = self.projection(seen.features)[:, -self.num_classes :]
            maps['proj'] = _brought_to_one(projected)
        if 'teacher' in kinds:
            maps['teacher'] = _brought_to_one(self._taught(views).class_maps)
        return maps, seen.scores.sigmoid()

    def _fused(self, layers: Sequence[Tensor], seen: Seen, classes: Tensor) -> Tensor:
        """(V, K, h, w) from the classes' maps (V, M, h, w) of each layer."""
        height, width = (max(layer.shape[axis] for layer in layers) for axis in (2, 3))
        fused = fuse_layer_maps(layers, (height, width), **self.layer_fusion)
        maps = fused.new_zeros(len(fused), self.num_classes, height, width)
        maps[:, classes] = fused
        return maps

    def finish_maps(self, kind: str, total: Tensor, image_label: Tensor) -> PhotoCAMs:
        """The sum over the scales to CAMs."""
        cams = normalize_cams(total) * image_label[:, :, None, None]
        return PhotoCAMs(cams=cams[0])


def _brought_to_one(maps: Tensor) -> Tensor:
    return rescale_maps(full_precision(maps).relu(), mode='max')


@torch.no_grad()
def _alikeness(features: Tensor, target: Tensor) -> Tensor:
    """CKA of the cells of (N, D, h, w) and (N, E, h', w'), for the log."""
    if target.shape[2:] != features.shape[2:]:
        target = F.interpolate(
            full_precision(target),
            tuple(features.shape[2:]),
            mode='bilinear',
            align_corners=False,
        )
    return linear_cka(
        *(maps.movedim(1, -1).flatten(0, 2) for maps in (features, target))
    )
