"""CAMs of a data set's photos into a store, from a trained network or old files."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

import mmwsss
from mmwsss.apis.cli import Counts, add_trust_argument, parse_and_run
from mmwsss.apis.evaluate import load_model
from mmwsss.apis.jobs import device_of, rank_and_size
from mmwsss.apis.label_folders import find_map, read_mask
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
from mmwsss.apis.train import load_config
from mmwsss.datasets.cam_store import (
    DTYPES,
    CAMStore,
    StoredCAMs,
    grid_size,
    read_pickled_cams,
)
from mmwsss.errors import InputError, tool
from mmwsss.evaluation.explained import explained_photos
from mmwsss.files import find_checkpoint
from mmwsss.registry import MODELS

# Kinds of maps of a one-stage segmentor; CAM networks name their own.
SEGMENTOR_KINDS = ('cams', 'refined')
# photo, image_label (K,) -> cams (K, H, W), background (H, W) or None


class Explanation(NamedTuple):
    """What is known of one photo: CAMs (K, H, W) and maybe more.

    Attributes:
        cams: In [0, 1], at the photo's size.
        background: (H, W) in [0, 1] of a network with a score of its own for it.
        probs: (K,) in [0, 1] of a network that says which classes the photo shows.
    """

    cams: Tensor
    background: Tensor | None = None
    probs: Tensor | None = None


Source = Callable[[Photo, Tensor], Explanation]


@dataclass(frozen=True, kw_only=True)
class CAMOptions:
    """What makes the CAMs; sent to every worker process.

    Attributes:
        config: Config file of the network and the data set.
        cfg_options: Changes of the config.
        checkpoint: Of the network; None for an import.
        import_dir: Folder of another repository's ``ID.npy`` files; None for a network.
        trust_pickle: The files in ``import_dir`` may be unpickled.
        kind: Kind of maps; None for the network's own choice.
        ir_labels: Folder of the photos' IR labels, for networks whose CAMs take them
            (``mmwsss.AMN``); None leaves them out.
        all_classes: CAMs of every class, whatever the image label.
        out: Folder of the store.
        dtype: Of the stored maps.
        device: For example ``'cuda:0'``; None finds one.
        num_classes: K, of the data set.
    """

    config: str
    cfg_options: dict | None = None
    checkpoint: Path | None = None
    import_dir: Path | None = None
    trust_pickle: bool = False
    kind: str | None = None
    ir_labels: Path | None = None
    all_classes: bool = False
    out: Path
    dtype: str = 'float16'
    device: str | None = None
    num_classes: int = 0


def make_cams_command() -> int:
    """Parse the command line, make what is missing, say what was made."""
    return parse_and_run(add_arguments, run)


def run(args: argparse.Namespace, counts: Counts) -> None:
    """Do what the options say."""
    config, found = find_photos(args)
    if args.all_classes:
        found = with_all_classes(found)
    options = CAMOptions(
        config=args.config,
        cfg_options=args.cfg_options,
        checkpoint=find_checkpoint(args.checkpoint) if args.checkpoint else None,
        import_dir=args.import_npy,
        trust_pickle=args.trust_pickle,
        kind=args.kind,
        ir_labels=args.ir_labels,
        all_classes=args.all_classes,
        out=args.out,
        dtype=args.dtype,
        device=args.device,
        num_classes=len(found.class_names),
    )
    make_cams(
        config,
        found,
        options,
        jobs=args.jobs,
        overwrite=args.overwrite,
        counts=counts,
        dry_run=args.dry_run,
        max_unreadable=args.max_unreadable,
    )
    without = options.checkpoint and not options.ir_labels and _takes_ir_labels(config)
    if without and rank_and_size()[0] == 0:
        print(
            f'{config.model.type} was given no --ir-labels; its own decision on '
            'what is background stood in for them'
        )
    say_made(args, counts, 'CAM files')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, and what they are for."""
    parser.description = (
        'CAMs of all photos of a data set into a store, one .npz each. '
        'Stopped at any moment, the same command goes on. Under torchrun the ranks '
        'share the photos.'
    )
    parser.add_argument('config', help='config of the network and the data set')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        'checkpoint', nargs='?', help='a checkpoint, or a work directory'
    )
    source.add_argument(
        '--import-npy',
        type=Path,
        metavar='DIR',
        help="take another repository's ID.npy files instead of a network",
    )
    parser.add_argument(
        '--trust-pickle',
        action='store_true',
        help='unpickle those files, which can run any code they bring along',
    )
    parser.add_argument('--out', type=Path, required=True, help='folder of the store')
    parser.add_argument(
        '--kind', help="kind of maps; default: the network's (a segmentor's: cams)"
    )
    parser.add_argument(
        '--ir-labels',
        type=Path,
        metavar='DIR',
        help="the photos' IR labels, OUT/SegmentationClass of "
        f"{tool('make_pseudo_labels')} --ir; AMN's activation keeps to their "
        'background',
    )
    parser.add_argument(
        '--all-classes',
        action='store_true',
        help='CAMs of every class, also of those that a photo does not show, for '
        f'{tool("eval_co_occurrence")}; labels cannot be made from them',
    )
    parser.add_argument(
        '--dtype', choices=DTYPES, default='float16', help='default: float16'
    )
    add_photo_arguments(parser, what='CAMs')
    add_trust_argument(parser)


def with_all_classes(found: PhotoList) -> PhotoList:
    """The same photos, each asked for every class."""
    every = tuple(range(len(found.class_names)))
    return replace(found, photos=[replace(p, classes=every) for p in found.photos])


def make_cams(
    config: Config,
    found: PhotoList,
    options: CAMOptions,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    show: bool = True,
    counts: Counts | None = None,
    dry_run: bool = False,
    max_unreadable: int = 0,
) -> int:
    """Make the CAMs that are missing.

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
    _check(config, options)
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


def missing_cams(
    config: Config, found: PhotoList, options: CAMOptions, *, overwrite: bool = False
) -> list[str]:
    """Ids of the photos that ``make_cams`` would work on; changes nothing.

    Raises:
        InputError: As ``make_cams`` before it begins.
    """
    _check(config, options)
    return _folder(config, found, options).plan(overwrite=overwrite)


def _check(config: Config, options: CAMOptions) -> None:
    if options.import_dir is not None:
        _check_import(options)
    elif options.ir_labels is not None:
        _check_ir_labels(config, options)


def _folder(config: Config, found: PhotoList, options: CAMOptions) -> OutputFolder:
    store = CAMStore(options.out)
    return OutputFolder(
        options.out,
        what='CAMs',
        settings=_settings(config, options, found.class_names),
        inputs={p.id: _input(p, options, found.class_names) for p in found.photos},
        files=lambda image_id: [store.path(image_id)],
        notes={'checkpoint': str(options.checkpoint)},
    )


def _check_import(options: CAMOptions) -> None:
    if not options.import_dir.is_dir():
        raise InputError(f'the folder {options.import_dir} does not exist')
    if options.kind is not None:
        raise InputError('--kind is for networks; an imported file holds one kind')
    if options.ir_labels is not None:
        raise InputError('--ir-labels is for networks; an imported file is taken as is')
    if options.all_classes:
        raise InputError(
            '--all-classes is for networks; an imported file has the classes of the '
            'image label'
        )
    if not options.trust_pickle:
        raise InputError(
            f'the files in {options.import_dir} are pickled, which can run any code '
            'when they are read; if they come from someone you trust, add '
            '--trust-pickle'
        )


def _check_ir_labels(config: Config, options: CAMOptions) -> None:
    if not options.ir_labels.is_dir():
        raise InputError(
            f'the folder {options.ir_labels} does not exist; make IR labels with: '
            f'{tool("make_pseudo_labels")} CONFIG --cams CAM_STORE --ir 0.45 0.15 '
            '--out OUT'
        )
    if not _takes_ir_labels(config):
        raise InputError(
            '--ir-labels is for networks whose CAMs take them, such as mmwsss.AMN, but '
            f'{options.config} has a {config.model.type}; leave it out'
        )


def _takes_ir_labels(config: Config) -> bool:
    # As MMEngine finds what it builds.
    scope = config.get('default_scope', 'mmseg')
    with MODELS.switch_scope_and_registry(scope) as registry:
        cams = getattr(registry.get(config.model.type), 'cams', None)
    return cams is not None and 'ir_label' in signature(cams).parameters


def _settings(config: Config, options: CAMOptions, class_names) -> dict:
    common = {
        'dtype': options.dtype,
        'class list': list(class_names),
        'version of mmwsss': mmwsss.__version__,
    }
    if options.import_dir is not None:
        return {'folder of .npy files': str(options.import_dir.resolve()), **common}
    if options.ir_labels is not None:
        # Named only where they are, so that other stores stay what they are.
        common['use of IR labels'] = 'one for each photo'
    if options.all_classes:
        common['choice of classes'] = 'all, whatever the image label'
    return {
        'checkpoint': file_hash(options.checkpoint),
        'kind of maps': options.kind,
        'network (model in the config)': text_hash(config.model.to_dict()),
        **common,
    }


def _input(photo: Photo, options: CAMOptions, class_names) -> str:
    """What only this photo's CAMs depend on."""
    text = photo.record(class_names)
    if options.ir_labels is not None:
        label = find_map(options.ir_labels, photo.id)
        return f'{text}; IR label {file_hash(label)}'
    if options.import_dir is None:
        return text
    path = _npy(options.import_dir, photo)
    if not path.is_file():
        raise InputError(
            f'{path} does not exist; leave photos without a file out by --list'
        )
    return f'{text}; {path.stat().st_size} bytes'


def _npy(folder: Path, photo: Photo) -> Path:
    return folder / f'{photo.id}.npy'


# ----------------------------------------------------------------------- in a worker
def _build(options: CAMOptions, number: int) -> Callable[[Photo], None]:
    """The function from a photo to its file; loads the network."""
    if options.import_dir is not None:
        source = partial(_imported, options)
    else:
        source = network_source(options, device_of(number, options.device))
    return partial(_make, source, options)


def _make(source: Source, options: CAMOptions, photo: Photo) -> None:
    found = source(photo, photo.image_label(options.num_classes))
    stored = stored_cams(found, photo)
    CAMStore(options.out).write(photo.id, stored, dtype=options.dtype)


def network_source(options: CAMOptions, device: str) -> Source:
    """CAMs from a CAM network or from a one-stage segmentor."""
    config = load_config(options.config, options.cfg_options, None)
    init_default_scope(config.get('default_scope', 'mmseg'))
    model, _ = load_model(config, options.checkpoint, device)
    if hasattr(model, 'explain'):
        if options.kind not in (None, *SEGMENTOR_KINDS):
            raise InputError(
                f'a segmentor gives the maps {SEGMENTOR_KINDS}, it has no '
                f'{options.kind!r}'
            )
        pipeline = photo_pipeline(config)
        return partial(_explained, model, pipeline, options.kind or 'cams')
    if hasattr(model, 'cams'):
        return partial(_from_cam_network, model, options)
    raise InputError(
        f'{options.config} has a {type(model).__name__}, which gives no CAMs; use a '
        'CAM network such as mmwsss.SIPE, or mmwsss.WSSSSegmentor'
    )


def _from_cam_network(
    model: torch.nn.Module, options: CAMOptions, photo: Photo, image_label: Tensor
) -> Explanation:
    pixels, more = photo.pixels(), {}
    if options.ir_labels is not None:
        more = {'ir_label': _ir_label(options, photo, tuple(pixels.shape[1:]))}
    found = model.cams(pixels, image_label, kind=options.kind, **more)
    if found.scores is None:
        return Explanation(found.cams, probs=found.probs)
    return Explanation(found.scores[1:], found.scores[0], found.probs)


def _ir_label(options: CAMOptions, photo: Photo, size: tuple[int, int]) -> Tensor:
    """IR label (H, W) of a photo of that size."""
    path = find_map(options.ir_labels, photo.id)
    label = read_mask(path, options.num_classes + 1)
    if label.shape != size:
        raise InputError(
            f'the IR label {path} is {label.shape[1]} x {label.shape[0]} but its photo '
            f'is {size[1]} x {size[0]}; make the IR labels again'
        )
    return torch.from_numpy(label)


@torch.no_grad()
def _explained(
    model: torch.nn.Module, pipeline, kind: str, photo: Photo, image_label: Tensor
) -> Explanation:
    batch = photo_batch(pipeline, photo, len(image_label))
    (found,) = explained_photos(model, batch, inference=False)
    if kind == 'cams':
        return Explanation(found['cams'])
    return Explanation(found['refined'][1:], found['refined'][0])


def _imported(options: CAMOptions, photo: Photo, image_label: Tensor) -> Explanation:
    path = _npy(options.import_dir, photo)
    pickled = read_pickled_cams(path, trust_pickle=options.trust_pickle)
    if tuple(pickled.classes.tolist()) != photo.classes:
        raise InputError(
            f'{path} holds CAMs of the classes {pickled.classes.tolist()}, but the '
            f'image label of the photo has {list(photo.classes)}; the class order and '
            'the labels must be those of the data set'
        )
    height, width = photo.pixels().shape[1:]
    cams = torch.zeros(options.num_classes, *pickled.cams.shape[1:])
    cams[list(photo.classes)] = torch.from_numpy(pickled.cams)
    cams = _resized(cams, (height, width))
    if pickled.background is None:
        return Explanation(cams)
    background = torch.from_numpy(pickled.background)[None]
    return Explanation(cams, _resized(background, (height, width))[0])


def stored_cams(found: Explanation, photo: Photo) -> StoredCAMs:
    """What is stored of a photo's maps: those of its classes on the grid of stride 4.

    The grid samples them bilinearly; a CAM has no finer detail.
    """
    size = tuple(found.cams.shape[-2:])
    maps = found.cams[list(photo.classes)]
    if found.background is not None:
        maps = torch.cat([found.background[None], maps])
    maps = _resized(maps.float(), grid_size(size)).clamp(0, 1).cpu().numpy()
    background = None
    if found.background is not None:
        background, maps = maps[0], maps[1:]
    return StoredCAMs(
        classes=np.array(photo.classes, dtype=np.int64),
        cams=maps,
        size=size,
        background=background,
        probs=None if found.probs is None else found.probs.float().cpu().numpy(),
    )


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    if not len(maps):
        return maps.new_zeros(0, *size)
    return F.interpolate(maps[None], size, mode='bilinear', align_corners=False)[0]
