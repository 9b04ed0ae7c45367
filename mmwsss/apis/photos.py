"""The photos that a config's data loaders name, without loading any of them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from torch import Tensor

from mmwsss.apis.cli import Counts
from mmwsss.apis.config_files import build_from_config, dataset_config
from mmwsss.apis.jobs import rank_and_size
from mmwsss.apis.outputs import UNREADABLE
from mmwsss.apis.train import load_config
from mmwsss.datasets.transforms import photo_file, read_photo
from mmwsss.errors import InputError

SPLITS = {
    'train': 'train_dataloader',
    'train_eval': 'train_eval_dataloader',
    'val': 'val_dataloader',
    'test': 'test_dataloader',
}
# Photos that cannot be read and are left out before a tool stops.
MAX_UNREADABLE = 10
# Steps of a test pipeline that need masks or what a network is yet to make.
_NOT_FOR_PHOTOS = {
    'mmwsss.LoadMask',
    'LoadMask',
    'LoadAnnotations',
    'mmwsss.LoadPseudoLabels',
    'mmwsss.LoadCAMs',
}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photo of a data set.

    Attributes:
        id: Image id.
        path: Its file.
        classes: Ascending indices into the foreground classes.
    """

    id: str
    path: str
    classes: tuple[int, ...]

    def image_label(self, num_classes: int) -> Tensor:
        """image_label (K,) float32."""
        label = torch.zeros(num_classes)
        label[list(self.classes)] = 1
        return label

    def pixels(self) -> Tensor:
        """The photo as (3, H, W) RGB uint8."""
        bgr = read_photo(self.path)
        return torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1])).movedim(-1, 0)

    def record(self, class_names: Sequence[str]) -> str:
        """What outputs of this photo depend on: its bytes, by their number, and label.

        Raises:
            InputError: The photo does not exist.
        """
        names = ','.join(class_names[k] for k in self.classes)
        try:
            size = Path(photo_file(self.path)).stat().st_size
        except OSError:
            raise InputError(f'the photo {self.path} does not exist') from None
        return f'{size} bytes: {names}'


@dataclass(frozen=True, kw_only=True)
class PhotoList:
    """The photos of one data loader.

    Attributes:
        photos: In the order of the data set.
        class_names: K foreground classes.
    """

    photos: Sequence[Photo]
    class_names: Sequence[str]


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which photos of a config are meant."""
    parser.add_argument(
        '--split',
        choices=SPLITS,
        default='train',
        help='whose photos, by the data loaders of the config (default: train)',
    )
    parser.add_argument(
        '--list', type=Path, help="image ids, one a line, instead of the split's own"
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override config values, for example model.test_scales=(1.0,)',
    )


def add_photo_arguments(parser: argparse.ArgumentParser, *, what: str) -> None:
    """Options of a tool that makes ``what`` for each photo of a config's loader."""
    add_list_arguments(parser)
    parser.add_argument(
        '--jobs', type=int, default=1, help='processes that share the photos'
    )
    parser.add_argument(
        '--max-unreadable',
        type=int,
        default=MAX_UNREADABLE,
        metavar='N',
        help='photos that cannot be read and are left out, before the run stops '
        '(default: %(default)s)',
    )
    parser.add_argument('--device', help='default: the GPUs in turn, or the CPU')
    parser.add_argument(
        '--overwrite', action='store_true', help=f'replace {what} of other settings'
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='say how much would be made; write nothing',
    )


def say_made(args: argparse.Namespace, counts: Counts, what: str) -> None:
    """One line on what such a tool made, or would make, of ``what``; on one rank."""
    if rank_and_size()[0] > 0:
        return
    if args.dry_run:
        print(
            f'dry run: {counts.ok} {what} to make, {counts.skipped} there already: '
            f'{args.out}; nothing was written'
        )
    else:
        print(f'{counts.ok} {what} made, {counts.skipped} were there: {args.out}')
        say_left_out(args.out, counts)


def say_left_out(out: Path, counts: Counts) -> None:
    """One line where photos could not be read: how many, and the file that lists."""
    if counts.failed:
        print(
            f'left out, since they cannot be read: {counts.failed} photos, listed in '
            f'{out / UNREADABLE}; replace them and run the same command again, it '
            'makes what is missing'
        )


def find_photos(args: argparse.Namespace) -> tuple[Config, PhotoList]:
    """The config and the photos that ``config`` and these options name."""
    config = load_config(args.config, args.cfg_options, None)
    init_default_scope(config.get('default_scope', 'mmseg'))
    return config, list_photos(config, split=args.split, list_file=args.list)


def list_photos(
    config: Config, *, split: str, list_file: Path | None = None
) -> PhotoList:
    """Photos and image labels of a config's data loader.

    Args:
        config: With the loader of the split.
        split: One of ``SPLITS``.
        list_file: Image ids, one a line, in the place of the data set's own list.

    Raises:
        InputError: There is no such loader, or its data set has no image labels.
    """
    from mmseg.registry import DATASETS

    name = SPLITS[split]
    if config.get(name) is None:
        raise InputError(
            f'{config.filename or "the config"} has no {name}; choose another --split '
            f'of {", ".join(SPLITS)}'
        )
    content = _innermost(dataset_config(config, name))
    content.pipeline = []
    content.test_mode = True
    if list_file is not None:
        if not list_file.is_file():
            raise InputError(f'the list {list_file} does not exist')
        content.ann_file = str(list_file.resolve())
    dataset = build_from_config(DATASETS, content, f'the data set of {name}')
    photos = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if 'image_label' not in info:
            raise InputError(
                f'the data set {content.type} of {name} has no image labels; use '
                'mmwsss.ImageLabelDataset'
            )
        present = np.flatnonzero(np.asarray(info['image_label']) > 0).tolist()
        photos.append(
            Photo(id=info['img_id'], path=info['img_path'], classes=tuple(present))
        )
    ids = [photo.id for photo in photos]
    if len(set(ids)) < len(ids):
        twice = next(one for i, one in enumerate(ids) if one in ids[:i])
        raise InputError(f'{name} names the image {twice!r} more than once')
    return PhotoList(photos=photos, class_names=tuple(dataset.metainfo['classes'][1:]))


def _innermost(dataset: ConfigDict) -> ConfigDict:
    """The data set inside wrappers that repeat or balance it."""
    while isinstance(dataset.get('dataset'), ConfigDict):
        dataset = dataset.dataset
    if 'datasets' in dataset:
        raise InputError(
            f'{dataset.type} joins several data sets, whose photos may share ids; give '
            'a config with one of them'
        )
    # Changed afterwards, and the config may be used for something else.
    return ConfigDict(dataset.to_dict())


def photo_pipeline(config: Config) -> Compose:
    """A segmentor's own test pipeline, without masks."""
    for name in ('test_dataloader', 'val_dataloader'):
        if config.get(name) is not None:
            steps = _innermost(dataset_config(config, name)).pipeline
            break
    else:
        raise InputError(
            f'{config.filename or "the config"} has neither test_dataloader nor '
            'val_dataloader, whose pipeline says how the network sees a photo'
        )
    return Compose([step for step in steps if step['type'] not in _NOT_FOR_PHOTOS])


def photo_batch(pipeline: Compose, photo: Photo, num_classes: int) -> dict:
    """One photo as a batch of a test loader, with its image label."""
    packed = pipeline(
        dict(
            img_path=photo.path,
            img_id=photo.id,
            image_label=photo.image_label(num_classes).numpy(),
            label_map=None,
            reduce_zero_label=False,
            seg_fields=[],
        )
    )
    sample = packed['data_samples']
    if 'image_label' not in sample:
        # MMSegmentation's own packing does not know it.
        label = photo.image_label(num_classes)
        sample.set_field(label, 'image_label', dtype=Tensor)
    return dict(inputs=[packed['inputs']], data_samples=[sample])
