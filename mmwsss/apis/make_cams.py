"""CAMs of a data set's photos into a store, from a trained network or old files."""

import argparse
from collections.abc import Callable
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
from mmwsss.apis.evaluate import load_model
from mmwsss.apis.jobs import device_of, rank_and_size
from mmwsss.apis.outputs import OutputFolder, file_hash, make_missing, text_hash
from mmwsss.apis.photos import (
    Photo,
    PhotoList,
    add_photo_arguments,
    find_photos,
    photo_batch,
    photo_pipeline,
)
from mmwsss.apis.train import load_config
from mmwsss.datasets.cam_store import (
    DTYPES,
    CAMStore,
    StoredCAMs,
    grid_size,
    read_pickled_cams,
)
from mmwsss.errors import InputError
from mmwsss.evaluation.explained import explained_photos
from mmwsss.files import find_checkpoint

# Kinds of maps of a one-stage segmentor; CAM networks name their own.
SEGMENTOR_KINDS = ('cams', 'refined')
# photo, image_label (K,) -> cams (K, H, W), background (H, W) or None
Source = Callable[[Photo, Tensor], tuple[Tensor, Tensor | None]]


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
    out: Path
    dtype: str = 'float16'
    device: str | None = None
    num_classes: int = 0


def make_cams_command() -> int:
    """Parse the command line, make what is missing, say what was made."""
    args = _parse()
    config, found = find_photos(args)
    options = CAMOptions(
        config=args.config,
        cfg_options=args.cfg_options,
        checkpoint=find_checkpoint(args.checkpoint) if args.checkpoint else None,
        import_dir=args.import_npy,
        trust_pickle=args.trust_pickle,
        kind=args.kind,
        out=args.out,
        dtype=args.dtype,
        device=args.device,
        num_classes=len(found.class_names),
    )
    made = make_cams(config, found, options, jobs=args.jobs, overwrite=args.overwrite)
    if rank_and_size()[0] == 0:
        total = len(found.photos)
        print(f'{made} CAM files made, {total - made} were there: {args.out}')
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='make_cams.py',
        description='CAMs of all photos of a data set into a store, one .npz each. '
        'Stopped at any moment, the same command goes on. Under torchrun the ranks '
        'share the photos.',
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
        '--dtype', choices=DTYPES, default='float16', help='default: float16'
    )
    add_photo_arguments(parser, what='CAMs')
    return parser.parse_args()


def make_cams(
    config: Config,
    found: PhotoList,
    options: CAMOptions,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    show: bool = True,
) -> int:
    """Make the CAMs that are missing.

    Args:
        config: The config that ``options`` names, with its changes.
        found: The photos.
        options: What makes the CAMs.
        jobs: Processes.
        overwrite: Replace a store of other settings.
        show: Show a progress bar.

    Returns:
        Number of files made, by all ranks together.

    Raises:
        InputError: Bad input; what is done stays done.
    """
    if options.import_dir is not None:
        _check_import(options)
    return make_missing(
        partial(_folder, config, found, options),
        partial(_build, options),
        {photo.id: photo for photo in found.photos},
        what='CAMs',
        jobs=jobs,
        overwrite=overwrite,
        show=show,
    )


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
    if not options.trust_pickle:
        raise InputError(
            f'the files in {options.import_dir} are pickled, which can run any code '
            'when they are read; if they come from someone you trust, add '
            '--trust-pickle'
        )


def _settings(config: Config, options: CAMOptions, class_names) -> dict:
    common = {
        'dtype': options.dtype,
        'class list': list(class_names),
        'version of mmwsss': mmwsss.__version__,
    }
    if options.import_dir is not None:
        return {'folder of .npy files': str(options.import_dir.resolve()), **common}
    return {
        'checkpoint': file_hash(options.checkpoint),
        'kind of maps': options.kind,
        'network (model in the config)': text_hash(config.model.to_dict()),
        **common,
    }


def _input(photo: Photo, options: CAMOptions, class_names) -> str:
    """What only this photo's CAMs depend on."""
    text = photo.record(class_names)
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
    cams, background = source(photo, photo.image_label(options.num_classes))
    stored = stored_cams(cams, background, photo)
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
        return partial(_from_cam_network, model, options.kind)
    raise InputError(
        f'{options.config} has a {type(model).__name__}, which gives no CAMs; use a '
        'CAM network such as mmwsss.SIPE, or mmwsss.WSSSSegmentor'
    )


def _from_cam_network(
    model: torch.nn.Module, kind: str | None, photo: Photo, image_label: Tensor
) -> tuple[Tensor, Tensor | None]:
    found = model.cams(photo.pixels(), image_label, kind=kind)
    if found.scores is None:
        return found.cams, None
    return found.scores[1:], found.scores[0]


@torch.no_grad()
def _explained(
    model: torch.nn.Module, pipeline, kind: str, photo: Photo, image_label: Tensor
) -> tuple[Tensor, Tensor | None]:
    batch = photo_batch(pipeline, photo, len(image_label))
    (found,) = explained_photos(model, batch, inference=False)
    if kind == 'cams':
        return found['cams'], None
    return found['refined'][1:], found['refined'][0]


def _imported(
    options: CAMOptions, photo: Photo, image_label: Tensor
) -> tuple[Tensor, Tensor | None]:
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
        return cams, None
    background = torch.from_numpy(pickled.background)[None]
    return cams, _resized(background, (height, width))[0]


def stored_cams(cams: Tensor, background: Tensor | None, photo: Photo) -> StoredCAMs:
    """CAMs (K, H, W) and a background (H, W) at the photo's size, as they are stored.

    The grid of stride 4 samples them bilinearly; a CAM has no finer detail.
    """
    size = tuple(cams.shape[-2:])
    maps = cams[list(photo.classes)]
    if background is not None:
        maps = torch.cat([background[None], maps])
    grid = grid_size(size)
    maps = _resized(maps.float(), grid).clamp(0, 1).cpu().numpy()
    if background is not None:
        background, maps = maps[0], maps[1:]
    return StoredCAMs(
        classes=np.array(photo.classes, dtype=np.int64),
        cams=maps,
        size=size,
        background=background,
    )


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    if not len(maps):
        return maps.new_zeros(0, *size)
    return F.interpolate(maps[None], size, mode='bilinear', align_corners=False)[0]
