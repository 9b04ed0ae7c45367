"""Hooks that watch the pseudo-labels of a training and change nothing about it."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import all_gather_object, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import DATASETS
from torch import nn
from torch.utils.data import Dataset

from mmwsss.errors import InputError
from mmwsss.evaluation.explained import explained_photos
from mmwsss.evaluation.meters import LabelMeter
from mmwsss.functional.boundary import boundary_band
from mmwsss.functional.pseudo_label import scores_to_label
from mmwsss.models.labelers.history import find_histories, merged_histories
from mmwsss.registry import HOOKS
from mmwsss.visualization.overlay import (
    overlay_band,
    overlay_labels,
    overlay_reliability,
)
from mmwsss.visualization.sheet import tile_sheet


@contextmanager
def untouched(model: nn.Module, *, progress: float) -> Iterator[nn.Module]:
    """Lend a model in eval mode at some progress; training goes on as if it had not.

    Puts back the mode of every module, ``model.progress``, and the random state of
    Python, NumPy and torch on all devices. Gradients are off.

    In a distributed training every process must enter this, since the histories in
    the model are put together. Inside, each may explain what it likes.
    """
    model = model.module if is_model_wrapper(model) else model
    modes = [(module, module.training) for module in model.modules()]
    before = getattr(model, 'progress', None)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        model.eval()
        if before is not None:
            model.progress = progress
        whole = merged_histories(find_histories(model), everywhere=True)
        with whole, torch.random.fork_rng(), torch.no_grad():
            yield model
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if before is not None:
            model.progress = before
        # Not train(), which a model may override: frozen parts stay as they were.
        for module, mode in modes:
            module.training = mode


@HOOKS.register_module()
class PseudoLabelProbeHook(Hook):
    """Logs how good the pseudo-labels of some fixed training photos are.

    Before the first iteration, every ``interval`` iterations and after the last one
    the model explains the same photos, evenly spread over the set, and these scores
    against their masks go to the log and the visualiser, in percent:
    ``probe/pseudo_label_miou`` (decided pixels), ``probe/decided_share``,
    ``probe/refined_miou`` (best class everywhere, before the labeler) and
    ``probe/segmentor_miou`` (argmax of the network, no image labels, no CRF). The
    masks serve the log alone; nothing of the training depends on them.

    Photos are shared among the processes of a distributed run, so the model's
    ``explain`` must not exchange anything between them.

    Args:
        dataloader: Config with a ``dataset`` of photos with masks and image labels
            (``batch_size`` is used too); default: the run's
            ``train_eval_dataloader``.
        num_images: Photos in the probe; all of a smaller set.
        interval: Iterations between two probes.
    """

    # After the weights of this iteration are final, before the checkpoint.
    priority = 'LOW'

    def __init__(
        self,
        *,
        dataloader: dict | None = None,
        num_images: int = 64,
        interval: int = 1000,
    ) -> None:
        if num_images < 1:
            raise ValueError(f'num_images must be at least 1, got {num_images}')
        if interval < 1:
            raise ValueError(f'interval must be at least 1, got {interval}')
        self.dataloader = dataloader
        self.num_images = num_images
        self.interval = interval
        self._dataset: Dataset | None = None
        self._positions: list[int] = []
        self._batch_size = 1

    def before_train(self, runner) -> None:
        """Find the photos; probe unless the run goes on from a checkpoint."""
        dataloader = self.dataloader or runner.cfg.get('train_eval_dataloader')
        if dataloader is None:
            raise InputError(
                'PseudoLabelProbeHook has no photos with masks: give it a dataloader, '
                'or the config a train_eval_dataloader'
            )
        self._batch_size = dataloader.get('batch_size') or 1
        self._dataset = DATASETS.build(dataloader['dataset'])
        if hasattr(self._dataset, 'full_init'):
            self._dataset.full_init()
        self._positions = spread_positions(len(self._dataset), self.num_images)
        if runner.iter == 0:
            self._probe(runner, iteration=0)

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Probe where it is time."""
        iteration = runner.iter + 1
        if iteration % self.interval == 0 or iteration == runner.max_iters:
            self._probe(runner, iteration=iteration)

    def _probe(self, runner, *, iteration: int) -> None:
        begin = time.monotonic()
        progress = iteration / runner.max_iters
        with untouched(runner.model, progress=progress) as model:
            scores = self._scores(model)
        scores = {f'probe/{name}': value for name, value in scores.items()}
        # With the checkpoint these survive a restart.
        runner.message_hub.update_scalars(scores)
        # Not through the loss log, which shows means over many iterations.
        runner.visualizer.add_scalars(scores, step=iteration)
        shown = ', '.join(f'{name} {value:.2f}' for name, value in scores.items())
        seconds = time.monotonic() - begin
        runner.logger.info(
            f'Pseudo-labels of {len(self._positions)} training photos at iteration '
            f'{iteration}: {shown} ({seconds:.1f} s)'
        )

    def _scores(self, model: nn.Module) -> dict[str, float]:
        classes = self._dataset.metainfo['classes']
        meters = {
            name: LabelMeter(len(classes)) for name in ('label', 'refined', 'segmentor')
        }
        rank, world_size = get_dist_info()
        for batch in self._batches(self._positions[rank::world_size]):
            for sample in explained_photos(model, batch, inference=False):
                _score(meters, sample)
        if world_size > 1:
            meters = _gathered(meters, len(classes))
        tables = {name: meter.result(classes) for name, meter in meters.items()}
        if not tables['refined']['images']:
            raise InputError(
                'no photo of the PseudoLabelProbeHook has a mask; its pipeline needs '
                'mmwsss.LoadMask and its data_prefix a seg_map_path'
            )
        return {
            'pseudo_label_miou': tables['label']['miou'] or 0.0,
            'decided_share': tables['label']['kept'],
            'refined_miou': tables['refined']['miou'] or 0.0,
            'segmentor_miou': tables['segmentor']['miou'] or 0.0,
        }

    def _batches(self, positions: Sequence[int]) -> Iterator[dict]:
        # No workers: the photos are few, and none have to be kept alive between
        # two probes.
        for start in range(0, len(positions), self._batch_size):
            chosen = positions[start : start + self._batch_size]
            yield pseudo_collate([self._dataset[i] for i in chosen])


def spread_positions(size: int, count: int) -> list[int]:
    """Positions of ``count`` items evenly spread over ``size``, all of fewer."""
    count = min(count, size)
    return [(2 * i + 1) * size // (2 * count) for i in range(count)]


def _score(meters: dict[str, LabelMeter], sample: dict) -> None:
    target = sample['target']
    if target is None:
        return
    image_label = sample['image_label'][None]
    refined = scores_to_label(sample['refined'][None], image_label)[0]
    meters['label'].update(sample['label'], target)
    meters['refined'].update(refined, target)
    meters['segmentor'].update(sample['prediction'], target)


def _gathered(meters: dict[str, LabelMeter], num_classes: int) -> dict:
    total = {name: LabelMeter(num_classes) for name in meters}
    states = {name: meter.state() for name, meter in meters.items()}
    for part in all_gather_object(states):
        for name, state in part.items():
            total[name].add_state(state)
    return total


@HOOKS.register_module()
class PseudoLabelVisualizationHook(Hook):
    """Draws what the training learns from: labels, reliability, boundary band.

    Every ``interval`` iterations the first photos of the batch are explained once
    more, without dropout and after the step, and one picture ``pseudo_labels`` goes
    to the visualiser (a file with ``LocalVisBackend``, an image in TensorBoard).

    Args:
        interval: Iterations between two pictures.
        num_images: Photos in a picture; all of a smaller batch.
        band_width: Width of the boundary band, as in the boundary loss.
    """

    priority = 'LOW'

    def __init__(
        self, *, interval: int = 1000, num_images: int = 4, band_width: int = 2
    ) -> None:
        for name, value in (('interval', interval), ('num_images', num_images)):
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        self.interval = interval
        self.num_images = num_images
        self.band_width = band_width

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Draw where it is time, in the first process."""
        iteration = runner.iter + 1
        if iteration % self.interval:
            return
        progress = iteration / runner.max_iters
        with untouched(runner.model, progress=progress) as model:
            if not is_main_process():
                return
            rows, titles = self._rows(runner, model, self._first(data_batch))
        sheet = tile_sheet(rows, titles)
        runner.visualizer.add_image('pseudo_labels', sheet, step=iteration)

    def _first(self, batch: dict) -> dict:
        return {name: values[: self.num_images] for name, values in batch.items()}

    def _rows(self, runner, model: nn.Module, batch: dict) -> tuple[list, list]:
        # Padded as for a training step; an evaluation expects photos of one size.
        data = model.data_preprocessor(batch, training=True)
        labels = model.explain(data['inputs'], data['data_samples'])
        palette = _palette(runner.train_dataloader.dataset)
        reliability = getattr(labels, 'reliability', None)
        titles = ['photo', 'pseudo-label', 'boundary band']
        if reliability is not None:
            titles.insert(2, 'reliability (light: high)')
        rows = []
        for i, sample in enumerate(data['data_samples']):
            height, width = sample.img_shape[:2]
            photo = _upright_photo(batch['inputs'][i], model.data_preprocessor)
            label = labels.pseudo_label[i, :height, :width]
            values = label.cpu().numpy().astype(np.uint8)
            band = self._band(label)
            row = [photo, overlay_labels(photo, values, palette)]
            if reliability is not None:
                trust = reliability[i, :height, :width].float().cpu().numpy()
                row.append(overlay_reliability(photo, trust, values))
            rows.append([*row, overlay_band(photo, band, values, palette)])
        return rows, titles

    def _band(self, label: torch.Tensor) -> np.ndarray:
        return boundary_band(label[None], width=self.band_width)[0].cpu().numpy()


def _upright_photo(inputs: torch.Tensor, preprocessor: nn.Module) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a photo (3, H, W) as the data loader gives it."""
    pixels = inputs.permute(1, 2, 0).cpu().numpy()
    # The loader gives BGR where the preprocessor turns the channels round; the flag
    # has no underscore in upstream's MMSegmentation.
    upstream = getattr(preprocessor, 'channel_conversion', True)
    turned = getattr(preprocessor, '_channel_conversion', upstream)
    return np.ascontiguousarray(pixels[..., ::-1] if turned else pixels)


def _palette(dataset: Dataset) -> np.ndarray | None:
    palette = getattr(dataset, 'metainfo', {}).get('palette')
    return None if palette is None else np.asarray(palette)
