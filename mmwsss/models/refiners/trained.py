"""A trained model in a chain of refiners: its config and a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.files import find_checkpoint
from mmwsss.registry import MODELS


@MODELS.register_module()
class TrainedRefiner(BaseModule):
    """A model that was trained to refine, for example ``mmwsss.IRNet``.

    It stays as it is: no parameters here, an empty state dict.

    Args:
        config: the file that it was trained with.
        checkpoint: a checkpoint, or a work directory whose last one is taken.
        cfg_options: changes of the config, as on the command line, for example
            ``{'model.background_threshold': 0.3}``.

    Raises:
        InputError: if a file is missing or does not fit, or the model cannot refine.
    """

    def __init__(
        self, *, config: str, checkpoint: str, cfg_options: dict | None = None
    ) -> None:
        super().__init__()
        if not Path(config).is_file():
            raise InputError(f'the config {config} of TrainedRefiner does not exist')
        content = Config.fromfile(str(config))
        content.merge_from_dict(cfg_options or {})
        model = MODELS.build(content.model)
        if not hasattr(model, 'refine'):
            raise InputError(
                f'TrainedRefiner needs a model that refines, such as mmwsss.IRNet, but '
                f'{config} has a {type(model).__name__}'
            )
        path = find_checkpoint(checkpoint)
        try:
            load_checkpoint(model, str(path), 'cpu', strict=True)
        except InputError:
            raise
        except (RuntimeError, ValueError, KeyError) as error:
            reason = ' '.join(str(error).split())[:200]
            raise InputError(
                f'{path} does not fit the model of {config}: {reason}'
            ) from None
        # In a tuple, where nn.Module does not look for submodules.
        self._outside = (model.requires_grad_(False).eval(),)

    @property
    def model(self) -> nn.Module:
        """The trained model."""
        return self._outside[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        self.model._apply(fn)
        return super()._apply(fn)

    @torch.no_grad()
    def forward(self, image: Tensor, scores: Tensor, image_label: Tensor) -> Tensor:
        """(N, 3, H, W), (N, C, h, w), (N, K) -> (N, C, H, W)."""
        return self.model.refine(image, scores, image_label)
