"""A multi-label classifier whose CAMs come from its head, gradients or attention.

Sources: class maps (Zhou et al., CVPR 2016) as IRN and ORANDNet make them; Grad-CAM
(Selvaraju et al., ICCV 2017); transformer relevance (Chefer et al., 2021), see
``functional/relevance.py``. Written from formulas and behaviour (spec orandnet,
section 1); a photo that cannot be explained stops with a sentence, where the released
code leaves it out without a word.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.functional import normalize_cams
from mmwsss.functional.prototype import full_precision
from mmwsss.functional.relevance import (
    class_gradients,
    grad_cam_maps,
    gradient_attention,
    lrp_linear,
    patch_maps,
    relevance_rollout,
    rescale_maps,
)
from mmwsss.registry import MODELS

from ..batch import stack_image_labels, valid_mask
from ..encoders.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrozenEncoder,
    fixed_cpu_rng,
    init_quietly,
)
from ..encoders.vit import tokens_to_map
from .base import CAMNetwork, PhotoCAMs, unflipped_sum
from .trained_backbone import build_backbone, load_backbone, probe_output
from .vit_access import (
    attention_modules,
    in_whole_patches,
    patch_side,
    recorded_attentions,
    recorded_grids,
)
from .vit_relevance import attention_relevances, linear_layers, recorded_blocks

POOLS = ('average', 'cls_token')
RELEVANCES = ('attention', 'lrp')
# Numbers of all gradients of attention at once: 1 GiB in float32.
_MOST_GRADIENTS = 2**28


@dataclass
class _Seen:
    """What the classifier says about images: (N, D, h, w), (N, T, D), (N, K)."""

    features: Tensor
    tokens: Tensor | None
    scores: Tensor


@MODELS.register_module()
class CAMClassifier(CAMNetwork):
    """Any backbone with a linear multi-label head; padding has the mean colour.

    Kinds of maps: 'cam' (the head's weights on each cell), 'grad' (Grad-CAM of
    ``grad_layer``), 'relevance' (a transformer's attention and its gradients). For the
    first two a backbone gives feature maps; a vision transformer of mmpretrain with
    ``out_type='raw'`` gives its tokens and has all three.

    Args:
        backbone: config of an mmpretrain or MMSegmentation backbone; its last output
            is used. Stages that are not to be trained are frozen by its own
            ``frozen_stages``.
        num_classes: K, foreground classes.
        weights: local file or URL with the backbone's pretrained weights. None leaves
            it to the backbone's ``init_cfg``; random and always the same if frozen.
        prefix: start of the backbone's names in ``weights``.
        unstride: submodules of the backbone that get stride 1.
        frozen: the whole backbone stays as it is, in eval mode, and is left out of the
            checkpoint.
        pool: what the head looks at in training: the 'average' over all cells, or a
            transformer's 'cls_token'.
        kind: of the maps that the network is made for.
        grad_layer: submodule of the backbone that gives a map (N, D, h, w) or tokens
            (N, T, D). None is the last block's first norm in a transformer (behind the
            last attention a class token has no gradient to the patches), else the
            backbone's output, where Grad-CAM is the same as 'cam'.
        relevance: what is weighted with its gradient: the 'attention' itself (ICCV
            2021) or its 'lrp' relevance (CVPR 2021), which ORANDNet's released code
            uses and which needs ``pool='cls_token'``.
        normalize_rows: in the rollout of relevance; the released code does not.
        loss_cls: config of the loss of (scores, image_label, data_samples), such as
            ``mmwsss.VideoMIL``; None is the multi-label soft margin loss.
        data_preprocessor: see ``CAMNetwork``.
        mean: see ``CAMNetwork``.
        std: see ``CAMNetwork``.
        test_scales: see ``CAMNetwork``.
        test_flip: see ``CAMNetwork``.
        max_side: see ``CAMNetwork``; relevance needs memory that grows with its fourth
            power.
        loss_schedules: see ``CAMNetwork``; the loss is ``loss_cls``.
        init_cfg: MMEngine initialisation.

    Raises:
        ValueError: if an argument is outside its range.
        InputError: if the backbone cannot be built, or cannot give what is asked for.
    """

    def __init__(
        self,
        *,
        backbone: Mapping,
        num_classes: int,
        weights: str | None = None,
        prefix: str = 'backbone.',
        unstride: Sequence[str] = (),
        frozen: bool = False,
        pool: str = 'average',
        kind: str = 'cam',
        grad_layer: str | None = None,
        relevance: str = 'attention',
        normalize_rows: bool = False,
        loss_cls: dict | None = None,
        data_preprocessor: dict | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        test_scales: Sequence[float] = (1.0,),
        test_flip: bool = False,
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
        for name, value, known in (
            ('pool', pool, POOLS),
            ('relevance', relevance, RELEVANCES),
        ):
            if value not in known:
                raise ValueError(f'{name} must be one of {known}, got {value!r}')
        self.pool = pool
        self.loss_cls = None if loss_cls is None else MODELS.build(loss_cls)
        self.relevance = relevance
        self.normalize_rows = normalize_rows
        self.weights = weights
        self.prefix = prefix
        self.frozen = frozen
        if frozen:
            tower = _frozen_tower(backbone, weights, prefix, unstride)
            self.encoder = FrozenEncoder(tower, mean=mean, std=std, feature_channels=())
        else:
            self.backbone = build_backbone(backbone, unstride=unstride)
        channels, self.gives_tokens = probe_output(self.tower)
        self.classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
        self.grad_layer = self._grad_layer(grad_layer)
        self.kinds = self._kinds(kind)

    @property
    def tower(self) -> nn.Module:
        """The backbone, trained or frozen."""
        return self.encoder.tower if self.frozen else self.backbone

    def _grad_layer(self, name: str | None) -> str:
        if name is None:
            name = self._default_layer()
        if name not in dict(self.tower.named_modules()):
            raise InputError(
                f'grad_layer names {name!r}, which {type(self.tower).__name__} has '
                f'not; its parts are {[n for n, _ in self.tower.named_children()]}'
            )
        return name

    def _default_layer(self) -> str:
        last = len(getattr(self.tower, 'layers', ())) - 1
        return f'layers.{last}.ln1' if self.gives_tokens else ''

    def _kinds(self, wanted: str) -> tuple[str, ...]:
        """All kinds that the backbone can give, the wanted one last."""
        name = type(self.tower).__name__
        if self.pool == 'cls_token' and not self._has_class_token():
            raise InputError(
                f"pool='cls_token' needs a vision transformer of mmpretrain with a "
                f"class token and out_type='raw', but the backbone is {name}"
            )
        can = ['cam', 'grad']
        attends = self.gives_tokens and bool(attention_modules(self.tower))
        if self.relevance == 'lrp' and not (
            attends
            and self.pool == 'cls_token'
            and all(len(linear_layers(b.ffn)) == 2 for b in self.tower.layers)
        ):
            raise InputError(
                "relevance='lrp' needs pool='cls_token' and a vision transformer of "
                "mmpretrain with out_type='raw' and feed-forward networks of two "
                f'linear layers, but the backbone is {name}, pool={self.pool!r}'
            )
        if attends:
            can.append('relevance')
        elif wanted == 'relevance':
            raise InputError(
                'relevance needs the attention of a vision transformer of mmpretrain '
                f"with out_type='raw', but the backbone is {name}: take kind='cam' or "
                "'grad'"
            )
        if wanted not in can:
            raise InputError(f'kind must be one of {tuple(can)}, got {wanted!r}')
        return (*(kind for kind in can if kind != wanted), wanted)

    def _has_class_token(self) -> bool:
        return self.gives_tokens and getattr(self.tower, 'cls_token', None) is not None

    def init_weights(self) -> None:
        """MMEngine's initialisation, then the backbone's pretrained weights."""
        super().init_weights()
        if self.weights is not None and not self.frozen:
            load_backbone(self.backbone, self.weights, prefix=self.prefix)

    # ------------------------------------------------------------------- training
    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Multi-label soft margin loss of a batch, or ``loss_cls``.

        Args:
            inputs: (N, 3, H, W) RGB in [0, 1], padded on the right and at the bottom.
            data_samples: with ``image_label`` (K,) each; none of the classes is legal.

        Returns:
            ``loss_cls``.
        """
        image_label = stack_image_labels(data_samples, inputs.device)
        valid = valid_mask(data_samples, inputs.shape[-2:], inputs.device)
        scores = self._see(self.padding_filled(inputs, valid)).scores
        if self.loss_cls is None:
            loss = F.multilabel_soft_margin_loss(scores, image_label)
        else:
            loss = self.loss_cls(scores, image_label, data_samples)
        losses = {'loss_cls': loss}
        self.apply_schedules(losses)
        return losses

    def _see(self, image: Tensor) -> _Seen:
        image = self.normalized(image)
        if not self.gives_tokens:
            features, tokens = self.tower(image)[-1], None
        else:
            with recorded_grids(self.tower) as grids:
                tokens = self.tower(image)[-1]
            features = tokens_to_map(tokens, grids[0])
        if self.pool == 'cls_token':
            scores = self.classifier(tokens[:, 0, :, None, None])
        else:
            scores = self.classifier(features)
        scores = full_precision(scores).mean((2, 3))
        return _Seen(features=features, tokens=tokens, scores=scores)

    # ------------------------------------------------------------------ inference
    def scale_maps(
        self, image: Tensor, image_label: Tensor, kinds: Sequence[str]
    ) -> dict[str, Tensor]:
        """Maps of one photo at one scale, see ``CAMNetwork``.

        'cam' is ReLU of the class maps, 'grad' and 'relevance' are in [0, 1], since
        gradients of different scales are of different size.
        """
        if self.gives_tokens:
            image = in_whole_patches(image, patch_side(self.tower))
        views = torch.cat([image, image.flip(-1)]) if self.test_flip else image
        makers = dict(
            cam=self._class_maps, grad=self._grad_maps, relevance=self._relevance_maps
        )
        return {kind: unflipped_sum(makers[kind](views, image_label)) for kind in kinds}

    def finish_maps(self, kind: str, total: Tensor, image_label: Tensor) -> PhotoCAMs:
        """The sum over the scales to CAMs."""
        mode = 'minmax' if kind == 'relevance' else 'max'
        cams = normalize_cams(total, mode=mode) * image_label[:, :, None, None]
        return PhotoCAMs(cams=cams[0])

    def _class_maps(self, views: Tensor, image_label: Tensor) -> Tensor:
        return self.classifier(self._see(views).features).relu()

    # ------------------------------------------------------------------- gradients
    def _grad_maps(self, views: Tensor, image_label: Tensor) -> Tensor:
        """(V, K, h, w) in [0, 1] of V views of one photo."""
        classes = image_label[0].nonzero().flatten()
        if not len(classes):
            return self._empty_maps(views)
        with torch.enable_grad(), self._recorded_layer() as seen:
            scores = self._see(views).scores
            if not seen:
                raise InputError(f'the layer {self.grad_layer!r} takes no part in CAMs')
            tokens, grid = seen[0]
            (gradients,) = class_gradients(scores, [tokens], classes)
        first = tokens.shape[1] - grid[0] * grid[1]
        gradients = gradients[:, :, first:]
        if not gradients.any():
            hint = f', such as {self._default_layer()!r}' if self.gives_tokens else ''
            raise InputError(
                f'the gradients at the layer {self.grad_layer!r} are all 0: its cells '
                f'have no part in the scores (pool={self.pool!r}), so name an earlier '
                f'layer as grad_layer{hint}'
            )
        found = grad_cam_maps(tokens.detach()[:, first:], gradients)
        maps = found.new_zeros(len(views), self.num_classes, *grid)
        maps[:, classes] = found.transpose(0, 1).unflatten(2, grid)
        return rescale_maps(maps, mode='max')

    def _empty_maps(self, views: Tensor) -> Tensor:
        return views.new_zeros(len(views), self.num_classes, 1, 1)

    @contextmanager
    def _recorded_layer(self) -> Iterator[list[tuple[Tensor, tuple[int, int]]]]:
        """Collect the tokens (N, T, D) that ``grad_layer`` gives, and their grid.

        The pass goes on from them, so that scores have a gradient to them.
        """
        seen = []

        def record(module: nn.Module, inputs: tuple, output: Tensor | Sequence):
            several = isinstance(output, (tuple, list))
            values = output[-1] if several else output
            tokens, grid = self._as_tokens(values, grids[-1] if grids else None)
            if not tokens.requires_grad:
                tokens.requires_grad_()
            seen.append((tokens, grid))
            # A copy, since what follows may write into its input.
            values_after = tokens.clone()
            if values.ndim == 4:
                values_after = values_after.transpose(1, 2).unflatten(2, grid)
            return (*output[:-1], values_after) if several else values_after

        recording = recorded_grids(self.tower) if self.gives_tokens else nullcontext([])
        layer = self.tower.get_submodule(self.grad_layer)
        handle = layer.register_forward_hook(record)
        try:
            with recording as grids:
                yield seen
        finally:
            handle.remove()

    def _as_tokens(
        self, values: object, grid: tuple[int, int] | None
    ) -> tuple[Tensor, tuple[int, int]]:
        num_axes = values.ndim if isinstance(values, Tensor) else 0
        if num_axes == 4:
            return values.flatten(2).transpose(1, 2), tuple(values.shape[2:])
        if num_axes == 3 and grid and values.shape[1] >= grid[0] * grid[1]:
            return values, grid
        raise InputError(
            f'the layer {self.grad_layer!r} gives no map (N, D, h, w) and no tokens '
            '(N, T, D) of a vision transformer: name another one as grad_layer'
        )

    # ------------------------------------------------------------------- relevance
    def _relevance_maps(self, views: Tensor, image_label: Tensor) -> Tensor:
        """(V, K, h, w) in [0, 1] of V views of one photo."""
        classes = image_label[0].nonzero().flatten()
        if not len(classes):
            return self._empty_maps(views)
        return torch.cat([self._relevance_of_view(v[None], classes) for v in views])

    def _relevance_of_view(self, view: Tensor, classes: Tensor) -> Tensor:
        """(1, K, h, w) in [0, 1] for a view (1, 3, H, W)."""
        recording = nullcontext([])
        if self.relevance == 'lrp':
            recording = recorded_blocks(self.tower)
        with (
            torch.enable_grad(),
            recorded_attentions(self.tower, mean_over_heads=False) as attentions,
            recording as records,
        ):
            seen = self._see(view)
        grid = tuple(seen.features.shape[2:])
        start = self._start_of_rollout(seen)
        maps = view.new_zeros(1, self.num_classes, *grid)
        at_once = max(1, _MOST_GRADIENTS // sum(a.numel() for a in attentions))
        for part in classes.split(at_once):
            gradients = class_gradients(seen.scores, attentions, part)
            if not any(gradient.any() for gradient in gradients):
                raise InputError(
                    "the gradients of the attention are all 0: the head's weights or "
                    'the backbone are broken, so train again or give other weights'
                )
            weighted = [attention.detach()[0] for attention in attentions]
            if records:
                weighted = attention_relevances(
                    self.tower, records, weighted, self._head_relevance(seen, part)
                )
            layers = [
                gradient_attention(of_block, gradient[:, 0])
                for of_block, gradient in zip(weighted, gradients, strict=True)
            ]
            rows = relevance_rollout(
                torch.stack(layers, 1), start=start, normalize_rows=self.normalize_rows
            )
            maps[0, part] = rescale_maps(patch_maps(rows, grid))
        return maps

    def _start_of_rollout(self, seen: _Seen) -> Tensor | None:
        """Share of each token in what the head sees; None for the class token."""
        if self.pool == 'cls_token':
            return None
        num_patches = seen.features[0, 0].numel()
        start = seen.tokens.new_zeros(seen.tokens.shape[1])
        start[-num_patches:] = 1 / num_patches
        return start

    def _head_relevance(self, seen: _Seen, classes: Tensor) -> Tensor:
        """(M, T, D) that the head sends to the last block's output, all to token 0."""
        tokens = seen.tokens.detach()[0]
        scores = F.one_hot(classes, self.num_classes).to(tokens)
        weight = self.classifier.weight.flatten(1)
        relevance = tokens.new_zeros(len(classes), *tokens.shape)
        relevance[:, 0] = lrp_linear(tokens[0], weight, scores)
        return relevance


def _frozen_tower(
    config: Mapping, weights: str | None, prefix: str, unstride: Sequence[str]
) -> nn.Module:
    with fixed_cpu_rng():
        tower = build_backbone(config, unstride=unstride)
        if weights is None:
            init_quietly(tower)
    if weights is not None:
        load_backbone(tower, weights, prefix=prefix)
    return tower
