"""Label maps of all photos of a data set from stored CAMs or a trained segmentor."""

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from torch import Tensor

import mmwsss
from mmwsss.apis.cli import Counts, add_trust_argument, parse_and_run
from mmwsss.apis.evaluate import load_model
from mmwsss.apis.jobs import device_of, rank_and_size
from mmwsss.apis.label_rules import (
    BACKGROUND_HELP,
    BackgroundRule,
    build_refiners,
    parse_refiner,
)
from mmwsss.apis.outputs import OutputFolder, file_hash, make_missing, text_hash
from mmwsss.apis.photos import (
    Photo,
    PhotoList,
    add_photo_arguments,
    find_photos,
    photo_batch,
    photo_pipeline,
    say_made,
)
from mmwsss.apis.refiner_inputs import (
    photo_input_hashes,
    read_photo_inputs,
    without_folders,
)
from mmwsss.apis.select_threshold import select_for_store
from mmwsss.apis.stored_cams import check_store, read_cams
from mmwsss.apis.train import load_config
from mmwsss.datasets.cam_store import CAMStore
from mmwsss.errors import InputError, tool
from mmwsss.files import find_checkpoint, whole_file
from mmwsss.functional import ir_label, restrict_to_image_classes, scores_to_label
from mmwsss.visualization.colors import voc_palette

LABEL_FOLDER = 'SegmentationClass'
RELIABILITY_FOLDER = 'Reliability'
DEFAULT_THRESHOLD = BackgroundRule('threshold', 0.25)
OWN = BackgroundRule('own', 1.0)
# photo, image_label (K,) -> cams (K, h, w) in [0, 1], own background (h, w) or None
Source = Callable[[Photo, Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """What makes the labels; sent to every worker process.

    Attributes:
        config: Config file of the data set, and of the segmentor where there is one.
        cfg_options: Changes of the config.
        cams: Folder of a CAM store, or None.
        checkpoint: Of the segmentor, or None.
        backgrounds: One rule, or two for IR labels: that of the sure objects and that
            of the sure background.
        refiners: Configs of the chain.
        low: A best foreground score up to here is background; None for the best class.
        high: A best foreground score from here on is foreground.
        reliability: Write how sure each label is as well.
        out: Folder of the outputs.
        device: For example ``'cuda:0'``; None finds one.
        num_classes: K, of the data set.
    """

    config: str
    cfg_options: dict | None = None
    cams: Path | None = None
    checkpoint: Path | None = None
    backgrounds: Sequence[BackgroundRule]
    refiners: Sequence[dict] = ()
    low: float | None = None
    high: float | None = None
    reliability: bool = False
    out: Path
    device: str | None = None
    num_classes: int = 0

    def label_file(self, image_id: str) -> Path:
        """The label map of a photo."""
        return self.out / LABEL_FOLDER / f'{image_id}.png'

    def reliability_file(self, image_id: str) -> Path:
        """The reliability map of a photo."""
        return self.out / RELIABILITY_FOLDER / f'{image_id}.png'

    def files(self, image_id: str) -> list[Path]:
        """All that is written for a photo."""
        files = [self.label_file(image_id)]
        return [*files, self.reliability_file(image_id)] if self.reliability else files


def make_pseudo_labels_command() -> int:
    """Parse the command line, make what is missing, say what was made and how."""
    return parse_and_run(add_arguments, run)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the options say."""
    config, found = find_photos(args)
    options = LabelOptions(
        config=args.config,
        cfg_options=args.cfg_options,
        cams=args.cams,
        checkpoint=find_checkpoint(args.checkpoint) if args.checkpoint else None,
        backgrounds=_backgrounds(args, found.photos),
        refiners=[parse_refiner(text) for text in args.refine],
        low=args.low,
        high=args.high,
        reliability=args.reliability,
        out=args.out,
        device=args.device,
        num_classes=len(found.class_names),
    )
    _check(options)
    make_pseudo_labels(
        config,
        found,
        options,
        jobs=args.jobs,
        overwrite=args.overwrite,
        counts=counts,
        dry_run=args.dry_run,
        max_unreadable=args.max_unreadable,
    )
    if rank_and_size()[0] == 0:
        print(f'policy: {policy(options)}')
    say_made(args, counts, 'label maps')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, and what they are for."""
    parser.description = (
        'Label maps of all photos of a data set: OUT/SegmentationClass/'
        'ID.png with the VOC palette, 255 undecided, only classes of the photo. '
        'Stopped at any moment, the same command goes on. Under torchrun the ranks '
        'share the photos.'
    )
    parser.add_argument('config', help='config of the data set (and the segmentor)')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--cams', type=Path, help=f'a store of {tool("make_cams")}')
    source.add_argument(
        '--checkpoint',
        help='of the segmentor in the config, whose predictions are taken; a file or a '
        'work directory',
    )
    parser.add_argument('--out', type=Path, required=True, help='receives everything')
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument(
        '--background',
        metavar='RULE',
        help=f'score of the background before refinement: {BACKGROUND_HELP}, or "auto" '
        '(a threshold that suits the photos most, chosen without masks); default: '
        f'own where there is one, else {DEFAULT_THRESHOLD}',
    )
    rule.add_argument(
        '--ir',
        nargs=2,
        metavar='RULE',
        help='IR labels: objects by the first, background by the second rule, 255 '
        'between; for example 0.30 0.05, or own own*0.8',
    )
    parser.add_argument(
        '--refine',
        nargs='+',
        default=[],
        metavar='STEP',
        help='refiners in order, for example PAMR "DenseCRF(gt_prob=0.7)" '
        "\"TrainedRefiner(config='irnet_msrc', "
        "checkpoint='work_dirs/irnet_msrc')\"",
    )
    parser.add_argument(
        '--low', type=float, help='a best class score up to here is background'
    )
    parser.add_argument(
        '--high', type=float, help='from here on it is that class; 255 between'
    )
    parser.add_argument(
        '--reliability',
        action='store_true',
        help='also OUT/Reliability/ID.png: share of the label in the scores, 255 = 1',
    )
    add_photo_arguments(parser, what='labels')
    add_trust_argument(parser)


def _backgrounds(args: argparse.Namespace, photos: Sequence[Photo]) -> list:
    if args.ir:
        return [BackgroundRule.parse(text) for text in args.ir]
    if args.background == 'auto':
        return [_chosen(args, photos)]
    if args.background:
        return [BackgroundRule.parse(args.background)]
    if args.checkpoint:
        return [OWN]
    first = CAMStore(args.cams).read(photos[0].id)
    return [DEFAULT_THRESHOLD if first.background is None else OWN]


def _chosen(args: argparse.Namespace, photos: Sequence[Photo]) -> BackgroundRule:
    if args.cams is None:
        raise InputError(
            '--background auto chooses the threshold of stored CAMs (--cams); the '
            'scores of a segmentor have a background of their own'
        )
    choice = select_for_store(args.cams, photos)
    # Six digits are what is shown and recorded.
    value = float(f'{choice.threshold:g}')
    return BackgroundRule('threshold', value, choice.described)


def _check(options: LabelOptions) -> None:
    low, high = options.low, options.high
    if (low is None) != (high is None):
        raise InputError('give both --low and --high, or neither')
    if low is not None and not 0 <= low <= high <= 1:
        raise InputError(f'0 <= low <= high <= 1 must hold, got {low} and {high}')
    if len(options.backgrounds) == 2 and (low is not None or options.reliability):
        raise InputError(
            '--ir decides where labels are sure; leave out --low, --high and '
            '--reliability'
        )


def policy(options: LabelOptions) -> str:
    """One sentence on how the labels were made."""
    rules = ' and '.join(rule.described for rule in options.backgrounds)
    parts = ['image labels given', f'background {rules}']
    if options.refiners:
        names = [r['type'].removeprefix('mmwsss.') for r in options.refiners]
        parts.append(f'refined by {", ".join(names)}')
    if len(options.backgrounds) == 2:
        parts.append('255 where the two disagree')
    elif options.low is not None:
        parts.append(f'255 for scores between {options.low:g} and {options.high:g}')
    else:
        parts.append('best class at every pixel')
    return '; '.join(parts)


def make_pseudo_labels(
    config: Config,
    found: PhotoList,
    options: LabelOptions,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    show: bool = True,
    counts: Counts | None = None,
    dry_run: bool = False,
    max_unreadable: int = 0,
) -> int:
    """Make the labels that are missing.

    Args:
        config: The config that ``options`` names, with its changes.
        found: The photos.
        options: What makes the labels.
        jobs: Processes.
        overwrite: Replace labels of other settings.
        show: Show a progress bar.
        counts: See ``make_missing``.
        dry_run: The same.
        max_unreadable: The same.

    Returns:
        Number of photos labelled, by all ranks together.

    Raises:
        InputError: Bad input; what is done stays done.
    """
    return make_missing(
        partial(_folder, config, found, options),
        partial(_build, options),
        {photo.id: photo for photo in found.photos},
        what='labels',
        jobs=jobs,
        overwrite=overwrite,
        show=show,
        counts=counts,
        dry_run=dry_run,
        max_unreadable=max_unreadable,
    )


def _folder(config: Config, found: PhotoList, options: LabelOptions) -> OutputFolder:
    return OutputFolder(
        options.out,
        what='labels',
        settings=_settings(config, options, found.class_names),
        inputs=_inputs(options, found),
        files=options.files,
        notes={'checkpoint': str(options.checkpoint)},
    )


def _settings(config: Config, options: LabelOptions, class_names) -> dict:
    settings = {
        'background': ' '.join(map(str, options.backgrounds)),
        'chain of refiners': ' '.join(map(described_refiner, options.refiners)),
        'low and high': [options.low, options.high],
        'class list': list(class_names),
        'version of mmwsss': mmwsss.__version__,
    }
    if options.checkpoint is not None:
        settings['checkpoint'] = file_hash(options.checkpoint)
        settings['network (model in the config)'] = text_hash(config.model.to_dict())
    return settings


def described_refiner(refiner: dict) -> str:
    """A refiner's config; a trained one by its weights too, not by their place."""
    content = {k: v for k, v in without_folders(refiner).items() if k != 'type'}
    if 'checkpoint' in content:
        content['checkpoint'] = file_hash(find_checkpoint(content['checkpoint']))
    if Path(content.get('config', '')).is_file():
        model = Config.fromfile(content['config']).model
        content['config'] = text_hash(model.to_dict())
    for name in ('model', 'weights'):
        if isinstance(content.get(name), str) and Path(content[name]).is_file():
            content[name] = file_hash(Path(content[name]))
    arguments = ', '.join(f'{k}={v!r}' for k, v in sorted(content.items()))
    return f'{refiner["type"].removeprefix("mmwsss.")}({arguments})'


def _inputs(options: LabelOptions, found: PhotoList) -> dict[str, str]:
    """What only one photo's label depends on: photo, image label, stored files."""
    store = None if options.cams is None else CAMStore(options.cams)
    if store is not None:
        check_store(store, found.photos)
    hashes = photo_input_hashes(options.refiners, found.photos)
    inputs = {}
    for photo in found.photos:
        text = photo.record(found.class_names)
        if store is not None:
            text = f'{text}; CAMs {file_hash(store.path(photo.id))}'
        if hashes[photo.id]:
            text = f'{text}; refiners read {" ".join(hashes[photo.id])}'
        inputs[photo.id] = text
    return inputs


# ----------------------------------------------------------------------- in a worker
def _build(options: LabelOptions, number: int) -> Callable[[Photo], None]:
    """The function from a photo to its files; loads networks."""
    device = device_of(number, options.device)
    config = load_config(options.config, options.cfg_options, None)
    init_default_scope(config.get('default_scope', 'mmseg'))
    if options.cams is not None:
        source = partial(_stored, CAMStore(options.cams))
    else:
        model, _ = load_model(config, options.checkpoint, device)
        source = partial(_predicted, model, photo_pipeline(config))
    refiners = build_refiners(options.refiners, device)
    return partial(_make, options, source, refiners, device)


def _stored(
    store: CAMStore, photo: Photo, image_label: Tensor
) -> tuple[Tensor, Tensor | None]:
    stored = read_cams(store, photo)
    own = None if stored.background is None else torch.from_numpy(stored.background)
    return stored.dense(len(image_label)), own


@torch.no_grad()
def _predicted(
    model: torch.nn.Module, pipeline, photo: Photo, image_label: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Class probabilities of the segmentor among background and the photo's classes."""
    (result,) = model.test_step(photo_batch(pipeline, photo, len(image_label)))
    logits = result.seg_logits.data.float()[None]
    if logits.shape[1] != len(image_label) + 1:
        raise InputError(
            f'the segmentor predicts {logits.shape[1]} classes, but the data set has '
            f'{len(image_label) + 1} with background; they must be the same'
        )
    allowed = restrict_to_image_classes(logits, image_label[None].to(logits.device))
    probabilities = allowed.softmax(1)[0]
    return probabilities[1:], probabilities[0]


@torch.no_grad()
def _make(
    options: LabelOptions,
    source: Source,
    refiners: Sequence[Callable],
    device: str,
    photo: Photo,
) -> None:
    image_label = photo.image_label(options.num_classes)
    pixels = photo.pixels()
    cams, own = source(photo, image_label)
    image = pixels[None].to(device).float() / 255
    size = tuple(image.shape[-2:])
    extras = [read_photo_inputs(refiner, photo, size) for refiner in refiners]
    variants = []
    for rule in options.backgrounds:
        scores = rule.scores(cams.to(device), None if own is None else own.to(device))
        for refiner, extra in zip(refiners, extras, strict=True):
            scores = refiner(image, scores, image_label[None].to(device), **extra)
        variants.append(_resized(scores.float(), size))
    label = label_of(options, variants, image_label[None].to(device))
    if options.reliability:
        # First, so that the label, which a reader looks for, is never without it.
        sure = reliability_of(variants[0], label, image_label[None].to(device))
        values = (sure[0] * 255).round().byte().cpu().numpy()
        write_map(options.reliability_file(photo.id), values)
    write_map(options.label_file(photo.id), label[0].byte().cpu().numpy(), palette=True)


def label_of(
    options: LabelOptions, variants: Sequence[Tensor], image_label: Tensor
) -> Tensor:
    """Label (1, H, W) of refined scores (1, C, H, W), or of two for IR labels."""
    if len(variants) == 2:
        return ir_label(*(scores_to_label(v, image_label) for v in variants))
    return scores_to_label(variants[0], image_label, low=options.low, high=options.high)


def reliability_of(scores: Tensor, label: Tensor, image_label: Tensor) -> Tensor:
    """Share of the label's score among those of background and the photo's classes.

    Args:
        scores: (1, C, H, W) >= 0.
        label: (1, H, W), 255 undecided.
        image_label: (1, K) 0/1.

    Returns:
        (1, H, W) in [0, 1]; 0 where undecided or where all scores are 0.
    """
    allowed = restrict_to_image_classes(scores, image_label, fill=0.0).clamp(min=0)
    decided = label != 255
    own = allowed.gather(1, (label * decided)[:, None])[:, 0]
    total = allowed.sum(1)
    return torch.where(total > 0, own / total.clamp(min=1e-12), own) * decided


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size, mode='bilinear', align_corners=False)


def write_map(path: Path, values: np.ndarray, *, palette: bool = False) -> None:
    """Write (H, W) uint8 as a PNG, with the VOC palette or grey."""
    picture = Image.fromarray(values)
    if palette:
        picture = picture.convert('L')
        picture.putpalette(voc_palette(256).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG')
    with whole_file(path) as stream:
        stream.write(buffer.getvalue())
