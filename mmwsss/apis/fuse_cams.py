"""CAMs of several stores joined in a new one, by a rule or by a trained ORANDNet."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

import mmwsss
from mmwsss.apis.cli import Counts, add_trust_argument, parse_and_run
from mmwsss.apis.evaluate import load_model
from mmwsss.apis.jobs import device_of
from mmwsss.apis.outputs import OutputFolder, file_hash, make_missing, text_hash
from mmwsss.apis.photos import (
    Photo,
    PhotoList,
    add_photo_arguments,
    find_photos,
    say_made,
)
from mmwsss.apis.stored_cams import check_store, read_cams
from mmwsss.apis.train import load_config
from mmwsss.datasets.cam_store import DTYPES, CAMStore, StoredCAMs, grid_size
from mmwsss.errors import InputError, tool
from mmwsss.files import find_checkpoint
from mmwsss.functional import fuse_cams
from mmwsss.functional.fusion import FUSION_MODES

# CAMs (S, P, h, w), size of the photo -> fused CAMs (P, h', w') of any resolution
Rule = Callable[[Tensor, tuple[int, int]], Tensor]


@dataclass(frozen=True, kw_only=True)
class FusionOptions:
    """What makes the fused CAMs; sent to every worker process.

    Attributes:
        config: Config file of the data set, and of the ORANDNet where there is one.
        cfg_options: Changes of the config.
        stores: Folders of the CAM stores.
        mode: Rule of ``functional.fuse_cams``, or None for an ORANDNet.
        offsets: One per store for the rule; an ORANDNet has its own.
        checkpoint: Of the ORANDNet, or None for a rule.
        out: Folder of the new store.
        dtype: Of the stored maps.
        device: For example ``'cuda:0'``; None finds one.
        num_classes: K, of the data set.
    """

    config: str
    cfg_options: dict | None = None
    stores: Sequence[Path]
    mode: str | None = None
    offsets: Sequence[float] | None = None
    checkpoint: Path | None = None
    out: Path
    dtype: str = 'float16'
    device: str | None = None
    num_classes: int = 0


def fuse_cams_command() -> int:
    """Parse the command line, make what is missing, say what was made."""
    return parse_and_run(add_arguments, run)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the options say."""
    config, found = find_photos(args)
    options = FusionOptions(
        config=args.config,
        cfg_options=args.cfg_options,
        stores=tuple(args.stores),
        mode=args.mode,
        offsets=None if args.offset is None else tuple(args.offset),
        checkpoint=find_checkpoint(args.checkpoint) if args.checkpoint else None,
        out=args.out,
        dtype=args.dtype,
        device=args.device,
        num_classes=len(found.class_names),
    )
    fuse_stores(
        config,
        found,
        options,
        jobs=args.jobs,
        overwrite=args.overwrite,
        counts=counts,
        dry_run=args.dry_run,
        max_unreadable=args.max_unreadable,
    )
    say_made(args, counts, 'CAM files')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, and what they are for."""
    parser.description = (
        'CAMs of two or more stores joined in a new one, class by class; '
        'backgrounds that the stores may have are left out. Stopped at any moment, the '
        'same command goes on. Under torchrun the ranks share the photos.'
    )
    parser.add_argument('config', help='config of the data set (and the ORANDNet)')
    parser.add_argument(
        'stores', nargs='+', type=Path, help=f'stores of {tool("make_cams")}'
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        '--mode',
        choices=FUSION_MODES,
        help='or: a + b - ab, and: ab, mean, max; nothing is normalised afterwards',
    )
    source.add_argument(
        '--checkpoint',
        help='of the ORANDNet in the config; a file or a work directory',
    )
    parser.add_argument(
        '--offset',
        nargs='+',
        type=float,
        help='added to the CAMs of each store, which are then cut to [0, 1], for '
        'example 0 0.15 (an ORANDNet has its own)',
    )
    parser.add_argument('--out', type=Path, required=True, help='the new store')
    parser.add_argument(
        '--dtype', choices=DTYPES, default='float16', help='default: float16'
    )
    add_photo_arguments(parser, what='CAMs')
    add_trust_argument(parser)


def fuse_stores(
    config: Config,
    found: PhotoList,
    options: FusionOptions,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    show: bool = True,
    counts: Counts | None = None,
    dry_run: bool = False,
    max_unreadable: int = 0,
) -> int:
    """Make the fused CAMs that are missing.

    Args:
        config: The config that ``options`` names, with its changes.
        found: The photos.
        options: What makes the CAMs.
        jobs: Processes.
        overwrite: Replace a store of other settings.
        show: Show a progress bar.
        counts: See ``make_missing``.
        dry_run: The same.
        max_unreadable: The same.

    Returns:
        Number of files made, by all ranks together.

    Raises:
        InputError: Bad input; what is done stays done.
    """
    _check(options)
    return make_missing(
        partial(_folder, config, found, options),
        partial(_build, options),
        {photo.id: photo for photo in found.photos},
        what='CAMs',
        jobs=jobs,
        overwrite=overwrite,
        show=show,
        counts=counts,
        dry_run=dry_run,
        max_unreadable=max_unreadable,
    )


def _check(options: FusionOptions) -> None:
    number = len(options.stores)
    if number < 2:
        raise InputError(f'give two CAM stores or more, got {number}')
    # --overwrite would remove what is to be read.
    if options.out.resolve() in [store.resolve() for store in options.stores]:
        raise InputError(f'--out {options.out} is one of the stores; give another')
    if (options.mode is None) == (options.checkpoint is None):
        raise InputError('give either --mode or --checkpoint')
    if options.offsets is None:
        return
    if options.checkpoint is not None:
        raise InputError('--offset is for --mode; an ORANDNet has offsets of its own')
    if len(options.offsets) != number:
        raise InputError(
            f'--offset needs {number} numbers, one for each store, got '
            f'{len(options.offsets)}'
        )


def _folder(config: Config, found: PhotoList, options: FusionOptions) -> OutputFolder:
    store = CAMStore(options.out)
    return OutputFolder(
        options.out,
        what='CAMs',
        settings=_settings(config, options, found.class_names),
        inputs=_inputs(options, found),
        files=lambda image_id: [store.path(image_id)],
        notes={'checkpoint': str(options.checkpoint)},
    )


def _settings(config: Config, options: FusionOptions, class_names) -> dict:
    settings = {
        'rule of fusion': options.mode or 'ORANDNet',
        'number of stores': len(options.stores),
        'offset': list(options.offsets or [0.0] * len(options.stores)),
        'dtype': options.dtype,
        'class list': list(class_names),
        'version of mmwsss': mmwsss.__version__,
    }
    if options.checkpoint is not None:
        settings['checkpoint'] = file_hash(options.checkpoint)
        settings['network (model in the config)'] = text_hash(config.model.to_dict())
    return settings


def _inputs(options: FusionOptions, found: PhotoList) -> dict[str, str]:
    """What only one photo's CAMs depend on: photo, image label and stored CAMs."""
    stores = [CAMStore(root) for root in options.stores]
    for store in stores:
        check_store(store, found.photos)
    inputs = {}
    for photo in found.photos:
        hashes = [file_hash(store.path(photo.id)) for store in stores]
        record = photo.record(found.class_names)
        inputs[photo.id] = f'{record}; CAMs {" ".join(hashes)}'
    return inputs


# ----------------------------------------------------------------------- in a worker
def _build(options: FusionOptions, number: int) -> Callable[[Photo], None]:
    """The function from a photo to its file; loads the network."""
    if options.mode is not None:
        rule = partial(_by_rule, options)
    else:
        rule = _network(options, device_of(number, options.device)).fused
    return partial(_make, rule, options)


def _by_rule(options: FusionOptions, sources: Tensor, size: tuple[int, int]) -> Tensor:
    return fuse_cams(sources.unbind(), mode=options.mode, offsets=options.offsets)


def _network(options: FusionOptions, device: str) -> torch.nn.Module:
    config = load_config(options.config, options.cfg_options, None)
    init_default_scope(config.get('default_scope', 'mmseg'))
    model, _ = load_model(config, options.checkpoint, device)
    if not hasattr(model, 'fused'):
        raise InputError(
            f'{options.config} has a {type(model).__name__}, which joins no CAMs; use '
            'mmwsss.ORANDNet or --mode'
        )
    return model


def _make(rule: Rule, options: FusionOptions, photo: Photo) -> None:
    parts = [read_cams(CAMStore(root), photo) for root in options.stores]
    size = parts[0].size
    for root, part in zip(options.stores, parts, strict=True):
        if part.size != size:
            raise InputError(
                f'the CAMs of {photo.id} are of a photo of {size} in '
                f'{options.stores[0]} and of {part.size} in {root}; make them again'
            )
    sources = torch.from_numpy(np.stack([part.cams for part in parts]))
    cams = _on_grid(rule(sources, size).float(), size).clamp(0, 1).cpu().numpy()
    stored = StoredCAMs(classes=parts[0].classes, cams=cams, size=size)
    CAMStore(options.out).write(photo.id, stored, dtype=options.dtype)


def _on_grid(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (P, h, w) of a photo on the grid of a store."""
    grid = grid_size(size)
    if tuple(maps.shape[-2:]) == grid:
        return maps
    if not len(maps):
        return maps.new_zeros(0, *grid)
    return F.interpolate(maps[None], grid, mode='bilinear', align_corners=False)[0]
