"""A clip's label for the scores of its frames: multiple instance learning."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.functional import mil_pool
from mmwsss.functional.prototype import full_precision
from mmwsss.functional.temporal import MIL_MODES
from mmwsss.registry import MODELS


@MODELS.register_module()
class VideoMIL(nn.Module):
    """Multi-label soft margin loss of pooled frame scores, one per clip.

    For batches that hold whole clips: ``mmwsss.VideoClipDataset`` with
    ``mmwsss.ClipStreamSampler``. A clip without objects pushes all its frames down; one
    with an object asks for frames of it, not for all of them.

    Args:
        mode: 'lse', 'max', 'topk' or 'mean', see ``functional.mil_pool``.
        sharpness: of 'lse'.
        k: frames of 'topk'.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, *, mode: str = 'lse', sharpness: float = 4.0, k: int = 2
    ) -> None:
        super().__init__()
        if mode not in MIL_MODES:
            raise ValueError(f'mode must be one of {MIL_MODES}, got {mode!r}')
        if not sharpness > 0 or k < 1:
            raise ValueError(
                f'sharpness must be positive and k at least 1, got {sharpness} and {k}'
            )
        self.mode = mode
        self.sharpness = sharpness
        self.k = k

    def forward(
        self, scores: Tensor, image_label: Tensor, data_samples: list
    ) -> Tensor:
        """Mean over the clips of the batch.

        Args:
            scores: (N, K) logits of frames.
            image_label: (N, K) 0/1; a clip has the classes of all its frames.
            data_samples: with ``clip_id`` as meta information.
        """
        frames, valid = clip_table(data_samples, scores.device)
        pooled = mil_pool(
            full_precision(scores)[frames],
            valid,
            mode=self.mode,
            sharpness=self.sharpness,
            k=self.k,
        )
        label = (image_label[frames] * valid[:, :, None]).amax(1)
        return F.multilabel_soft_margin_loss(pooled, label)


def clip_table(data_samples: list, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which samples of a batch are frames of one clip, without asking the device.

    Returns:
        Numbers of the samples (B, T), clips in the order of the batch, and which of
        them count (B, T): shorter clips are filled up.

    Raises:
        InputError: if a sample says nothing about its clip.
    """
    clips: dict[str, list[int]] = {}
    for number, sample in enumerate(data_samples):
        clip = sample.metainfo.get('clip_id')
        if clip is None:
            raise InputError(
                'VideoMIL pools the frames of a clip, but a sample has no clip_id; '
                'train on a mmwsss.VideoClipDataset and keep clip_id among the '
                'meta_keys of its packing'
            )
        clips.setdefault(clip, []).append(number)
    longest = max(map(len, clips.values()))
    rows = [own + own[:1] * (longest - len(own)) for own in clips.values()]
    valid = [[n < len(own) for n in range(longest)] for own in clips.values()]
    return (
        torch.tensor(rows).to(device, non_blocking=True),
        torch.tensor(valid).to(device, non_blocking=True),
    )
