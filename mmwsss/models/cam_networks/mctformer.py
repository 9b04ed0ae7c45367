"""MCTformer (Xu et al., CVPR 2022): a vision transformer with a token for each class.

Written from the paper's formulas and the behaviour of the released V2 (spec orandnet,
section 1.4). Different here: photos are resized to whole patches, of any rectangle,
where the released code cuts the rest off.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmwsss.checkpoints import download
from mmwsss.errors import InputError
from mmwsss.functional import normalize_cams
from mmwsss.functional.prototype import full_precision
from mmwsss.functional.relevance import (
    class_attention_maps,
    fuse_class_attention,
    refine_by_attention,
)
from mmwsss.registry import MODELS

from ..batch import stack_image_labels, valid_mask
from ..encoders.base import IMAGENET_MEAN, IMAGENET_STD
from ..encoders.vit import tokens_to_map
from ..encoders.weights import load_exactly, read_weights, without_prefix
from .base import CAMNetwork, PhotoCAMs, unflipped_sum
from .trained_backbone import build_backbone
from .vit_access import (
    attention_modules,
    in_whole_patches,
    patch_side,
    recorded_attentions,
    recorded_grids,
)


@MODELS.register_module()
class MCTformer(CAMNetwork):
    """Class tokens that attend to the patches of their class, and a patch classifier.

    A class token's score is the mean of its channels; a 3 x 3 convolution on the
    patches gives class maps, whose mean is a second score. Neither sees a final norm.
    Kinds of maps: 'patch' (ReLU of the class maps), 'attention' (of the class tokens,
    last layers), 'fused' (their product), 'refined' (that spread along the patches'
    attention, all layers).

    Args:
        backbone: config of mmpretrain's ``VisionTransformer``, with ``out_type='raw'``
            and ``final_norm=False``.
        num_classes: K, foreground classes.
        weights: local file or URL with pretrained weights of the transformer with one
            class token, which all K tokens start from; None starts at random.
        prefix: start of the backbone's names in ``weights``.
        num_attention_layers: of the last layers, whose attention is summed; 3 as
            released.
        data_preprocessor: see ``CAMNetwork``.
        mean: see ``CAMNetwork``.
        std: see ``CAMNetwork``.
        test_scales: see ``CAMNetwork``; the attention is spread thinner on larger
            photos, so that the smallest scale counts most.
        test_flip: see ``CAMNetwork``.
        max_side: see ``CAMNetwork``; memory grows with its fourth power.
        loss_schedules: see ``CAMNetwork``; the losses are ``loss_cls`` and
            ``loss_patch``.
        init_cfg: MMEngine initialisation.

    Raises:
        ValueError: if an argument is outside its range.
        InputError: if the backbone is no such transformer.
    """

    kinds = ('patch', 'attention', 'fused', 'refined')

    def __init__(
        self,
        *,
        backbone: Mapping,
        num_classes: int,
        weights: str | None = None,
        prefix: str = 'backbone.',
        num_attention_layers: int = 3,
        data_preprocessor: dict | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        test_scales: Sequence[float] = (1.0,),
        test_flip: bool = True,
        max_side: int = 1024,
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
        self.weights = weights
        self.prefix = prefix
        self.backbone = build_backbone(backbone)
        _check_transformer(self.backbone, backbone)
        _widen(self.backbone, num_classes)
        num_layers = len(self.backbone.layers)
        if not 1 <= num_attention_layers <= num_layers:
            raise ValueError(
                f'num_attention_layers must be 1..{num_layers}, got '
                f'{num_attention_layers}'
            )
        self.num_attention_layers = num_attention_layers
        self.head = nn.Conv2d(self.backbone.embed_dims, num_classes, 3, padding=1)

    def init_weights(self) -> None:
        """MMEngine's initialisation, then the pretrained weights."""
        super().init_weights()
        if self.weights is not None:
            self._load()

    def _load(self) -> None:
        path = self.weights
        if path.startswith(('http://', 'https://')):
            path = download(path)
        tensors = read_weights(path, how_to_get='give an existing file or a URL')
        tensors = without_prefix(tensors, self.prefix, path=path)
        # Of the released V2 too the final norm stays unused.
        tensors = {n: t for n, t in tensors.items() if not n.startswith('ln1.')}
        for name in ('cls_token', 'pos_embed'):
            if name in tensors:
                single = tensors[name][:, :1].expand(-1, self.num_classes, -1)
                tensors[name] = torch.cat([single, tensors[name][:, 1:]], 1)
        load_exactly(self.backbone, tensors, path=path, what='the MCTformer')

    # ------------------------------------------------------------------- training
    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """Multi-label soft margin losses of the class tokens and of the patches.

        Args:
            inputs: (N, 3, H, W) RGB in [0, 1], padded on the right and at the bottom.
            data_samples: with ``image_label`` (K,) each; none of the classes is legal.

        Returns:
            ``loss_cls`` and ``loss_patch``.
        """
        image_label = stack_image_labels(data_samples, inputs.device)
        valid = valid_mask(data_samples, inputs.shape[-2:], inputs.device)
        class_scores, patch_cams = self._see(self.padding_filled(inputs, valid))
        losses = {
            f'loss_{name}': F.multilabel_soft_margin_loss(scores, image_label)
            for name, scores in (
                ('cls', class_scores),
                ('patch', patch_cams.mean((2, 3))),
            )
        }
        self.apply_schedules(losses)
        return losses

    def _see(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the class tokens (N, K) and class maps of the patches."""
        with recorded_grids(self.backbone) as grids:
            tokens = self.backbone(self.normalized(image))[-1]
        patch_cams = self.head(tokens_to_map(tokens, grids[0]))
        class_tokens = full_precision(tokens[:, : self.num_classes])
        return class_tokens.mean(2), full_precision(patch_cams)

    # ------------------------------------------------------------------ inference
    def scale_maps(
        self, image: Tensor, image_label: Tensor, kinds: Sequence[str]
    ) -> dict[str, Tensor]:
        """Maps of one photo at one scale, see ``CAMNetwork``."""
        image = in_whole_patches(image, patch_side(self.backbone))
        views = torch.cat([image, image.flip(-1)]) if self.test_flip else image
        with recorded_attentions(self.backbone, mean_over_heads=True) as attentions:
            _, patch_cams = self._see(views)
        attentions = torch.stack(attentions, 1)
        maps = {'patch': patch_cams.relu()}
        maps['attention'] = class_attention_maps(
            attentions,
            tuple(patch_cams.shape[2:]),
            num_layers=self.num_attention_layers,
        )
        maps['fused'] = fuse_class_attention(patch_cams, maps['attention'])
        if 'refined' in kinds:
            maps['refined'] = refine_by_attention(maps['fused'], attentions)
        return {kind: unflipped_sum(maps[kind]) for kind in kinds}

    def finish_maps(self, kind: str, total: Tensor, image_label: Tensor) -> PhotoCAMs:
        """The sum over the scales to CAMs."""
        cams = normalize_cams(total, mode='minmax', eps=1e-8)
        return PhotoCAMs(cams=(cams * image_label[:, :, None, None])[0])


def _check_transformer(backbone: nn.Module, config: Mapping) -> None:
    name = type(backbone).__name__
    wanted = (
        bool(attention_modules(backbone))
        and getattr(backbone, 'cls_token', None) is not None
        and backbone.num_extra_tokens == 1
        and backbone.out_type == 'raw'
        and not backbone.final_norm
    )
    if not wanted:
        raise InputError(
            "MCTformer needs mmpretrain's VisionTransformer with a class token, "
            f"out_type='raw' and final_norm=False, but the backbone is {name} with "
            f'{ {k: v for k, v in config.items() if k != "type"} }'
        )
    if config.get('init_cfg'):
        raise InputError(
            'MCTformer has a token for each class, which init_cfg of the backbone '
            "cannot fill from a file with one: give the file as the model's weights="
        )


def _widen(backbone: nn.Module, num_classes: int) -> None:
    """Give a transformer a class token, with its position, for each class."""
    backbone.num_extra_tokens = num_classes
    for name in ('cls_token', 'pos_embed'):
        single = getattr(backbone, name).data
        tokens = single[:, :1].expand(-1, num_classes, -1)
        setattr(
            backbone, name, nn.Parameter(torch.cat([tokens, single[:, 1:]], 1).clone())
        )
