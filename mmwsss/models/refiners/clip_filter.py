"""Components of a mask that look more like the background than like their class."""

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmwsss.errors import InputError, tool
from mmwsss.functional import (
    follow_label,
    prompt_margin,
    restrict_to_image_classes,
    scores_to_label,
)
from mmwsss.registry import MODELS

from ..encoders.clip import FrozenCLIP

_CROPS_AT_ONCE = 64


@MODELS.register_module()
class CLIPFilter(BaseModule):
    """Scores without the components that a background prompt describes better.

    Each connected component of a class is cut out of the photo with what surrounds it,
    and CLIP compares the crop with the prompt of the class and all background prompts;
    where one of those wins, the component becomes background. First see whether the
    prompts tell the classes apart at all: ``tools/check_prompts.py``. Name as
    background what stands beside the objects (chimney, cloud, steam, sky).

    Args:
        class_names: one prompt word per foreground class, see ``FrozenCLIP``.
        background_words: one or more.
        model: see ``FrozenCLIP``.
        weights: see ``FrozenCLIP``.
        templates: see ``FrozenCLIP``.
        embeddings: instead of all that, a folder of ``tools/check_prompts.py --out``,
            which ``make_pseudo_labels.py`` reads: a component's embedding is then the
            mean of those of its cells, and CLIP is not needed.
        context: border around a component, as a share of its longer side.
        min_area: smaller components, in pixels, show nothing that could be judged and
            stay.
        keep_best: keep a class's best component where all would go, since the image
            label says that it is there.

    Raises:
        InputError: if neither CLIP nor embeddings are given, or both.
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str] | None = None,
        background_words: Sequence[str] = (),
        model: str | Mapping | None = None,
        weights: str | None = None,
        templates: Sequence[str] = ('a photo of a {}.',),
        embeddings: str | None = None,
        context: float = 0.1,
        min_area: int = 16,
        keep_best: bool = True,
    ) -> None:
        super().__init__()
        if (model is None) == (embeddings is None):
            raise InputError(
                'CLIPFilter needs either model (with weights, class_names and '
                f'background_words) or embeddings, a folder of {tool("check_prompts")}'
            )
        if context < 0 or min_area < 1:
            raise ValueError(
                f'context must be 0 or more and min_area 1 or more, got {context} and '
                f'{min_area}'
            )
        self.context = context
        self.min_area = min_area
        self.keep_best = keep_best
        self.clip = None
        self.photo_inputs = {}
        if embeddings is not None:
            self.photo_inputs = {'embeddings': embeddings}
            return
        if not class_names or not background_words:
            raise InputError(
                'CLIPFilter needs class_names and background_words, one or more each'
            )
        self.clip = FrozenCLIP(
            model=model,
            weights=weights,
            class_names=class_names,
            background_words=background_words,
            templates=templates,
            num_attentions=0,
        )

    @torch.no_grad()
    def forward(
        self,
        image: Tensor,
        scores: Tensor,
        image_label: Tensor,
        embeddings: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Let the scores follow the label without the components that go.

        Args:
            image: (N, 3, H, W) RGB in [0, 1].
            scores: (N, C, h, w) >= 0, channel 0 background.
            image_label: (N, K) 0/1.
            embeddings: cells (E, h', w') and prompts (K + B, E) of each photo, where
                there is no CLIP.

        Returns:
            (N, C, H, W), absent classes 0; where a component went, two scores have
            changed places.
        """
        if self.clip is None and embeddings is None:
            raise InputError(
                'CLIPFilter needs the embeddings of each photo, which only '
                f'{tool("make_pseudo_labels")} reads; use it there, or give it a model'
            )
        scores = F.interpolate(scores.float(), image.shape[-2:], mode='bilinear')
        scores = restrict_to_image_classes(scores, image_label, fill=0.0)
        label = scores_to_label(scores, image_label)
        num_classes = image_label.shape[1]
        for number, own in enumerate(label):
            found = list(components(own.cpu().numpy(), self.min_area))
            if not found:
                continue
            classes = torch.tensor([k for k, _ in found])
            masks = torch.from_numpy(np.stack([mask for _, mask in found]))
            if self.clip is not None:
                margins = self._of_crops(image[number], masks, num_classes)
            else:
                margins = _of_cells(masks, *embeddings[number], num_classes)
            margins = margins.cpu().gather(1, classes[:, None])[:, 0]
            goes = self._goes(margins, classes)
            own[masks[goes].any(0).to(own.device)] = 0
        return follow_label(scores, label)

    def _of_crops(self, image: Tensor, masks: Tensor, num_classes: int) -> Tensor:
        """Margins (M, K) of what the photo (3, H, W) shows at each mask (M, H, W)."""
        texts = self.clip.text_features
        if len(self.clip.class_names) != num_classes:
            raise InputError(
                f'CLIPFilter has {len(self.clip.class_names)} class_names, but the '
                f'data set {num_classes} classes; give one each'
            )
        size = tuple(self.clip.tower.image_size)
        boxes = [_box(mask, self.context) for mask in masks]
        crops = [
            image[None, :, top:bottom, left:right] for top, left, bottom, right in boxes
        ]
        crops = [F.interpolate(c, size, mode='bilinear', antialias=True) for c in crops]
        features = [
            self.clip.image_features(part)
            for part in torch.cat(crops).split(_CROPS_AT_ONCE)
        ]
        return prompt_margin(torch.cat(features), texts, num_classes=num_classes)

    def _goes(self, margins: Tensor, classes: Tensor) -> Tensor:
        goes = margins < 0
        if self.keep_best:
            for k in classes.unique():
                of_class = classes == k
                if goes[of_class].all():
                    best = margins.masked_fill(~of_class, float('-inf')).argmax()
                    goes[best] = False
        return goes


def components(label: np.ndarray, min_area: int) -> Iterator[tuple[int, np.ndarray]]:
    """Class (from 0) and mask (H, W) bool of the components of a label (H, W).

    Pixels are connected to all eight neighbours of the same class.
    """
    for value in np.unique(label):
        if value == 0:
            continue
        own = (label == value).astype(np.uint8)
        count, numbers, stats, _ = cv2.connectedComponentsWithStats(own, connectivity=8)
        for number in range(1, count):
            if stats[number, cv2.CC_STAT_AREA] >= min_area:
                yield int(value) - 1, numbers == number


def _of_cells(masks: Tensor, cells: Tensor, texts: Tensor, num_classes: int) -> Tensor:
    """Margins (M, K) from the mean of the cells (E, h, w) under each mask."""
    share = F.interpolate(masks[:, None].float(), cells.shape[1:], mode='area')[:, 0]
    features = share.flatten(1).to(cells.device) @ cells.flatten(1).t()
    return prompt_margin(features, texts, num_classes=num_classes)


def _box(mask: Tensor, context: float) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of a square around a mask, as far as the photo goes."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    spans = [(int(line[0]), int(line[-1]) + 1) for line in (rows, columns)]
    side = max(end - start for start, end in spans) * (1 + 2 * context)
    box = []
    for (start, end), limit in zip(spans, mask.shape, strict=True):
        middle = (start + end) / 2
        box.append(
            (
                min(start, max(0, round(middle - side / 2))),
                max(end, min(limit, round(middle + side / 2))),
            )
        )
    (top, bottom), (left, right) = box
    return top, left, bottom, right
