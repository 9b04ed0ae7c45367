"""Scores a trained run step by step: raw CAMs, refined labels, segmentor.

Each number carries its policy: which photos, whether the photo's image labels were
used, and where a threshold was chosen. Nothing of the val masks decides anything; the
CAM threshold is chosen on the train photos and then used on both sets.
"""

import hashlib
import heapq
import platform
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint
from PIL import Image
from torch import Tensor, nn

import mmwsss
from mmwsss.apis.pretrained_weights import naming_pretrained
from mmwsss.errors import InputError, tool
from mmwsss.evaluation import explained as explained_module
from mmwsss.evaluation.explained import explained_photos
from mmwsss.evaluation.meters import LabelMeter, SweepMeter, default_thresholds
from mmwsss.evaluation.reliability import ReliabilityMeter
from mmwsss.files import find_checkpoint, hash_files, read_json, write_json
from mmwsss.functional.confusion import segmentation_scores
from mmwsss.functional.pseudo_label import scores_to_label
from mmwsss.visualization.overlay import (
    overlay_cam,
    overlay_labels,
    overlay_reliability,
    overlay_scores,
)

LOADERS = {'train': 'train_eval_dataloader', 'val': 'val_dataloader'}
PICTURE_SIDE_PX = 480
_CONFUSIONS = ('refined', 'labels', 'segmentor')

Meters = dict[str, LabelMeter | SweepMeter | ReliabilityMeter]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What evaluate_run scores and draws.

    Attributes:
        splits: Some of ``'train'`` and ``'val'``.
        num_pictures: Photos drawn per split: so many evenly spread over the set, so
            that two runs show the same ones, and as many that the segmentor gets worst.
        thresholds: Thresholds of the CAM sweep.
        fixed_threshold: Also reported without any choice; one of ``thresholds``.
    """

    splits: Sequence[str] = ('train', 'val')
    num_pictures: int = 12
    thresholds: Sequence[float] = default_thresholds()
    fixed_threshold: float = 0.25

    def __post_init__(self) -> None:
        if not self.splits or set(self.splits) - set(LOADERS):
            raise InputError(
                f'splits must be some of train and val, got {list(self.splits)}'
            )
        if self.fixed_threshold not in self.thresholds:
            raise InputError(
                f'the fixed threshold {self.fixed_threshold} is not in the sweep'
            )
        if self.num_pictures < 0:
            raise InputError(
                f'the number of pictures must be 0 or more, got {self.num_pictures}'
            )


def evaluate_run(
    config: str | Path | Config,
    checkpoint: str | Path,
    out_dir: str | Path,
    *,
    options: EvaluationOptions | None = None,
    device: str | None = None,
    progress: object = iter,
) -> dict:
    """Score a run and write ``metrics.json`` and pictures.

    A finished split is kept in ``parts/`` and not computed again for the same
    checkpoint, config and options.

    Args:
        config: A config with ``train_eval_dataloader`` and ``val_dataloader``, both
            of batch size 1, with masks and image labels in the data samples.
        checkpoint: A checkpoint, or a work directory whose last one is taken.
        out_dir: Receives everything.
        options: What to score and draw.
        device: For example ``'cuda:0'``; default: the GPU if there is one.
        progress: Wraps a data loader, called as ``progress(loader, split)``; the
            default shows nothing.

    Returns:
        The content of ``metrics.json``.
    """
    options = options or EvaluationOptions()
    config = _load_config(config)
    checkpoint = find_checkpoint(checkpoint)
    out_dir = Path(out_dir)
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    key = _run_key(config, checkpoint, options)
    parts, model, facts = {}, None, None
    for split in options.splits:
        path = _part_file(out_dir, split)
        part = read_json(path) if path.exists() else {}
        if not _finished(part, key, out_dir):
            loader = _build_loader(config, split)
            if model is None:
                model, facts = load_model(config, checkpoint, device)
                _check_explains(model, config)
            part = evaluate_split(
                model,
                _wrap(progress, loader, split),
                classes=_classes(loader.dataset),
                palette=loader.dataset.metainfo.get('palette'),
                picture_ids=_picture_positions(len(loader.dataset), options),
                picture_dir=out_dir / 'pictures' / split,
                out_dir=out_dir,
                options=options,
            )
            part = {'key': key, 'run': facts, **part}
            write_json(path, part)
        parts[split] = part
    metrics = summarize(parts, options)
    metrics['run'] = _run_facts(config, checkpoint, parts)
    write_json(out_dir / 'metrics.json', metrics)
    return metrics


def split_states(
    config: Config,
    checkpoint: Path,
    out_dir: Path,
    *,
    options: EvaluationOptions,
) -> dict[str, str]:
    """What ``evaluate_run`` would find in ``out_dir``, by split; changes nothing.

    Returns:
        ``'done'``, ``'missing'``, or ``'other'`` where the numbers there are those of
        another checkpoint, config or choice of options.
    """
    key, states = _run_key(config, checkpoint, options), {}
    for split in options.splits:
        path = _part_file(out_dir, split)
        if not path.exists():
            states[split] = 'missing'
            continue
        part = read_json(path)
        done = _finished(part, key, out_dir)
        # Pictures that were lost are drawn again; the numbers stay what they are.
        same = part.get('key') == key
        states[split] = 'done' if done else 'missing' if same else 'other'
    return states


def _part_file(out_dir: Path, split: str) -> Path:
    return out_dir / 'parts' / f'{split}.json'


def _finished(part: dict, key: str, out_dir: Path) -> bool:
    return part.get('key') == key and _pictures_exist(part, out_dir)


def load_model(
    config: Config, checkpoint: Path, device: str
) -> tuple[nn.Module, dict[str, object]]:
    """Build the config's model with a checkpoint, in eval mode.

    Returns:
        The model and the facts that the checkpoint tells about its training.
    """
    from mmseg.registry import MODELS

    with naming_pretrained(config):
        model = MODELS.build(config.model)
    try:
        content = load_checkpoint(model, str(checkpoint), 'cpu', strict=True)
    except InputError:
        raise
    except (RuntimeError, ValueError, KeyError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise InputError(
            f'{checkpoint} does not fit the model of this config; the config of its '
            f'training lies in its work directory: {reason}'
        ) from None
    meta = content.get('meta', {}) if isinstance(content, dict) else {}
    facts = {'iteration': meta.get('iter'), 'seed': meta.get('seed')}
    if hasattr(model, 'progress'):
        # Labels depend on how far training was; explain those of this checkpoint.
        model.progress = facts['progress'] = _progress(config, meta)
    return model.to(device).eval(), facts


def _check_explains(model: nn.Module, config: Config) -> None:
    if not hasattr(model, 'explain'):
        raise InputError(
            f'{config.filename} has a {type(model).__name__}, which is no one-stage '
            f'segmentor; score a CAM network with {tool("make_cams")} and then '
            f'{tool("eval_pseudo_labels")}, any other segmentor with {tool("test")}'
        )


def _progress(config: Config, meta: dict) -> float:
    """Share of the training that lies behind a checkpoint, 1 where nothing tells."""
    train_cfg = config.get('train_cfg') or {}
    for done, whole in (('iter', 'max_iters'), ('epoch', 'max_epochs')):
        if meta.get(done) is not None and train_cfg.get(whole):
            return min(meta[done] / train_cfg[whole], 1.0)
    return 1.0


@torch.no_grad()
def evaluate_split(
    model: nn.Module,
    batches: Iterable[dict],
    *,
    classes: Sequence[str],
    palette: Sequence | None,
    picture_ids: set[int],
    picture_dir: Path,
    out_dir: Path,
    options: EvaluationOptions,
) -> dict:
    """Score one set of photos in one pass.

    Args:
        model: Has ``data_preprocessor``, ``explain`` and ``test_step``.
        batches: Uncollated or collated batches, as from a val data loader.
        classes: C names, background first.
        palette: C colours of the label pictures, None for VOC's.
        picture_ids: Positions of the photos to draw in any case.
        picture_dir: Receives a folder per drawn photo.
        out_dir: Picture paths are noted relative to it.
        options: Thresholds, and how many of the worst photos are drawn.

    Returns:
        The sums of all meters, every photo's own mIoU, the pictures, and the seconds
        taken, ready for JSON.
    """
    begin = time.monotonic()
    meters = _new_meters(len(classes), options)
    worst = WorstPhotos(options.num_pictures)
    pictures, photo_scores, position, without_mask = {}, {}, 0, 0
    for batch in batches:
        for sample in explained_photos(model, batch):
            if sample['target'] is None:
                without_mask += 1
            else:
                _score(meters, sample)
            score = sample.get('iou', {}).get('prediction')
            if score is not None:
                photo_scores[sample['id']] = score
            entered, dropped = worst.add(position, score)
            if entered or position in picture_ids:
                folder = picture_dir / f'{position:05d}'
                pictures[position] = _draw(sample, classes, palette, folder, out_dir)
            if dropped is not None and dropped not in picture_ids:
                del pictures[dropped]
                shutil.rmtree(picture_dir / f'{dropped:05d}')
            position += 1
    return {
        'classes': list(classes),
        'palette': None if palette is None else np.asarray(palette).tolist(),
        'thresholds': list(options.thresholds),
        'meters': {name: meter.state() for name, meter in meters.items()},
        'photos': position,
        'without_mask': without_mask,
        'photo_scores': photo_scores,
        'pictures': [
            {**picture, 'fixed': position in picture_ids}
            for position, picture in pictures.items()
        ],
        'seconds': round(time.monotonic() - begin, 1),
    }


def summarize(parts: dict[str, dict], options: EvaluationOptions) -> dict:
    """Turn the sums of the splits into numbers with their policies.

    Args:
        parts: ``evaluate_split`` results by split name.
        options: The options they were made with.

    Returns:
        ``classes``, ``numbers`` (a list of score tables with ``key``, ``title`` and
        ``policy``), ``palette``, and by split ``sweeps``, ``reliability`` (of models
        that estimate it), ``confusion`` (step -> pixel counts (C, C), rows = mask),
        ``photo_scores`` (photo -> mIoU of the segmentor over the photo's own classes
        in percent), ``pictures`` and ``seconds``.
    """
    classes = next(iter(parts.values()))['classes']
    meters = {
        split: _restored(part, len(classes), options) for split, part in parts.items()
    }
    numbers, sweeps, reliability = [], {}, {}
    train_cams = meters['train']['cams'] if 'train' in meters else None
    chosen = train_cams.best() if train_cams and train_cams.num_images else None
    for split, own in meters.items():
        numbers += _numbers(split, own, classes, options, chosen=chosen)
        sweeps[split] = {
            'thresholds': list(options.thresholds),
            'miou': own['cams'].curve(),
        }
        if own['reliability'].num_images:
            reliability[split] = own['reliability'].result()
    return {
        'format': 1,
        'classes': classes,
        'palette': next(iter(parts.values()))['palette'],
        'numbers': numbers,
        'sweeps': sweeps,
        'reliability': reliability,
        'confusion': {
            split: {step: own[step].confusion.tolist() for step in _CONFUSIONS}
            for split, own in meters.items()
            if own['segmentor'].num_images
        },
        'photo_scores': {split: part['photo_scores'] for split, part in parts.items()},
        'pictures': {split: part['pictures'] for split, part in parts.items()},
        'photos': {split: part['photos'] for split, part in parts.items()},
        'without_mask': {s: part['without_mask'] for s, part in parts.items()},
        'seconds': {split: part['seconds'] for split, part in parts.items()},
    }


def _numbers(
    split: str,
    meters: Meters,
    classes: Sequence[str],
    options: EvaluationOptions,
    *,
    chosen: int | None,
) -> list[dict]:
    fixed = list(options.thresholds).index(options.fixed_threshold)
    tags = 'image labels given'
    rows = []
    if chosen is not None:
        where = 'chosen on these photos' if split == 'train' else 'chosen on train'
        cut = f'threshold {options.thresholds[chosen]:.2f} {where}'
        table = meters['cams'].result(classes, index=chosen)
        rows.append(('raw_cams', 'Raw CAMs', f'{tags}; {cut}', table))
    cut = f'threshold fixed at {options.fixed_threshold:.2f}'
    table = meters['cams'].result(classes, index=fixed)
    rows.append(('raw_cams_fixed', 'Raw CAMs, fixed', f'{tags}; {cut}', table))
    table = meters['refined'].result(classes)
    policy = f'{tags}; best class at every pixel, none left undecided'
    rows.append(('refined', 'Refined labels', policy, table))
    table = meters['labels'].result(classes)
    policy = f'{tags}; decided pixels only'
    rows.append(('labels', 'Pseudo labels', policy, table))
    table = meters['segmentor'].result(classes)
    rows.append(('segmentor', 'Segmentor', 'no image labels used', table))
    return [
        {'key': f'{split}/{key}', 'split': split, 'title': title, 'policy': policy}
        | table
        for key, title, policy, table in rows
        if table['images']
    ]


class WorstPhotos:
    """Positions of the photos with the lowest scores so far, the first on a tie."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._heap: list[tuple[float, int]] = []

    def add(self, position: int, score: float | None) -> tuple[bool, int | None]:
        """Tell whether the photo is among the worst, and which one is no longer."""
        if score is None or not self.count:
            return False, None
        entry = (-score, -position)
        if len(self._heap) < self.count:
            heapq.heappush(self._heap, entry)
            return True, None
        dropped = -heapq.heappushpop(self._heap, entry)[1]
        return (False, None) if dropped == position else (True, dropped)


def _new_meters(num_classes: int, options: EvaluationOptions) -> Meters:
    return {
        'cams': SweepMeter(num_classes, thresholds=options.thresholds),
        'refined': LabelMeter(num_classes),
        'labels': LabelMeter(num_classes),
        'segmentor': LabelMeter(num_classes),
        # Stays empty for a model that does not estimate reliability.
        'reliability': ReliabilityMeter(),
    }


def _restored(part: dict, num_classes: int, options: EvaluationOptions) -> Meters:
    meters = _new_meters(num_classes, options)
    for name, meter in meters.items():
        meter.add_state(part['meters'][name])
    return meters


def _score(meters: Meters, sample: dict) -> None:
    target, image_label = sample['target'], sample['image_label']
    meters['cams'].update(sample['cams'], image_label, target)
    refined = scores_to_label(sample['refined'][None], image_label[None])[0]
    own = {
        'refined': meters['refined'].update(refined, target),
        'labels': meters['labels'].update(sample['label'], target),
        'prediction': meters['segmentor'].update(
            sample['prediction'].to(target.device), target
        ),
    }
    if sample['reliability'] is not None:
        meters['reliability'].update(sample['reliability'], sample['label'], target)
    sample['iou'] = {
        name: round(100 * float(segmentation_scores(confusion)['mean_iou']), 2)
        for name, confusion in own.items()
        if confusion.sum()
    }


def _draw(
    sample: dict,
    classes: Sequence[str],
    palette: Sequence | None,
    folder: Path,
    out_dir: Path,
) -> dict:
    photo = _to_uint8(sample['photo'])
    palette = None if palette is None else np.asarray(palette)
    present = sample['image_label'].nonzero()[:, 0].tolist()
    names = [classes[k + 1] for k in present]
    tiles = [('photo', 'Photo', photo)]
    for k, name in zip(present, names, strict=True):
        cam = sample['cams'][k].cpu().numpy()
        tiles.append((f'cam_{k + 1:03d}', f'CAM {name}', overlay_cam(photo, cam)))
    refined = sample['refined'].cpu().numpy()
    tiles.append(('refined', 'Refined', overlay_scores(photo, refined, palette)))
    for key, title in (
        ('label', 'Pseudo label'),
        ('prediction', 'Segmentor'),
        ('target', 'Truth'),
    ):
        if sample[key] is not None:
            values = sample[key].cpu().numpy().astype(np.uint8)
            tiles.append((key, title, overlay_labels(photo, values, palette)))
        if key == 'label' and sample['reliability'] is not None:
            trust = sample['reliability'].cpu().numpy()
            drawn = overlay_reliability(photo, trust, values)
            tiles.append(('reliability', 'Reliability', drawn))
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, title, pixels in tiles:
        path = folder / f'{name}.png'
        picture = Image.fromarray(pixels)
        picture.thumbnail((PICTURE_SIDE_PX, PICTURE_SIDE_PX))
        # Quick, since many are among the worst for a while only.
        picture.save(path, compress_level=1)
        entries.append({'title': title, 'file': path.relative_to(out_dir).as_posix()})
    return {
        'id': sample['id'],
        'classes': names,
        'iou': sample.get('iou', {}),
        'tiles': entries,
    }


def _to_uint8(photo: Tensor) -> np.ndarray:
    pixels = photo.clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).cpu().numpy()


def _picture_positions(num_photos: int, options: EvaluationOptions) -> set[int]:
    count = min(options.num_pictures, num_photos)
    return {(2 * i + 1) * num_photos // (2 * count) for i in range(count)}


def _pictures_exist(part: dict, out_dir: Path) -> bool:
    return all(
        (out_dir / tile['file']).is_file()
        for picture in part.get('pictures', [])
        for tile in picture['tiles']
    )


def _load_config(config: str | Path | Config) -> Config:
    if not isinstance(config, Config):
        if not Path(config).is_file():
            raise InputError(f'the config {config} does not exist')
        config = Config.fromfile(str(config))
    init_default_scope(config.get('default_scope', 'mmseg'))
    return config


def _build_loader(config: Config, split: str) -> object:
    name = LOADERS[split]
    if config.get(name) is None:
        raise InputError(
            f'{config.filename or "the config"} has no {name}; add one (photos with '
            f'image labels and masks, batch_size=1) or leave out --split {split}'
        )
    return Runner.build_dataloader(config[name], seed=0)


def _classes(dataset: object) -> list[str]:
    return list(dataset.metainfo['classes'])


def _wrap(progress: object, loader: object, split: str) -> Iterable[dict]:
    return iter(loader) if progress is iter else progress(loader, split)


def _run_key(config: Config, checkpoint: Path, options: EvaluationOptions) -> str:
    kept = ('model', 'train_cfg', *LOADERS.values())
    # A split's numbers do not depend on which others are asked for.
    options = replace(options, splits=tuple(LOADERS))
    text = repr([config.get(name) for name in kept]) + repr(options)
    source = hash_files([checkpoint, Path(__file__), Path(explained_module.__file__)])
    return hashlib.sha256((source + text).encode()).hexdigest()


def _run_facts(config: Config, checkpoint: Path, parts: dict[str, dict]) -> dict:
    import mmengine
    import mmseg

    from_checkpoint = next(iter(parts.values()))['run'] or {}
    return {
        'config': str(config.filename or ''),
        'checkpoint': str(checkpoint),
        'run_dir': str(checkpoint.parent),
        'iteration': from_checkpoint.get('iteration'),
        'seed': from_checkpoint.get('seed'),
        'progress': from_checkpoint.get('progress'),
        'date': time.strftime('%Y-%m-%d %H:%M'),
        'device': torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f'CPU, {torch.get_num_threads()} threads',
        'versions': {
            'mmwsss': mmwsss.__version__,
            'Python': platform.python_version(),
            'torch': torch.__version__,
            'mmengine': mmengine.__version__,
            'mmseg': mmseg.__version__,
            'numpy': np.__version__,
        },
    }
