"""Photos with image labels; masks, where there are any, are for evaluation only."""

import logging
import os
import os.path as osp
from collections.abc import Sequence

import numpy as np
from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset

from mmwsss.errors import InputError, UnreadablePhoto, tool
from mmwsss.registry import DATASETS

from .image_labels import load_image_labels
from .sampler import seed_augmentation

PHOTO_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
PREPARE = tool('prepare_data')


def voc_palette(num_colors: int) -> list[list[int]]:
    """The VOC colour map: bits of the index spread over the three channels."""
    palette = []
    for index in range(num_colors):
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        palette.append(color)
    return palette


@DATASETS.register_module()
class ImageLabelDataset(BaseSegDataset):
    """VOC 2012, COCO 2014 or a plain folder, in VOC layout.

    Everything that can be wrong with lists, labels and folders is found when the data
    set is built. A photo without any object is legal. Masks are named in the samples
    but opened by ``LoadMask`` alone, which training pipelines do not have.

    Args:
        image_labels: the JSON of image labels, relative to ``data_root``.
        ann_file: text file with one image id a line, with the subfolder in front
            where there is one; '' takes every photo of the folder and its subfolders.
        skip_unlabelled: leave photos out that have no entry in the image labels, with
            a warning that counts them; False refuses them. A photo without objects
            has an entry, an empty list, and stays.
        exclude: text file as ``ann_file``, relative to ``data_root``, of photos to
            leave out, or several; '' leaves none out. How many are is told. They need
            not be there.
        only_with: folders of PNGs named by image id; photos without one in any of them
            are left out, with a warning that counts them. Not relative to
            ``data_root``.
        data_root: folder that the other paths are relative to.
        data_prefix: ``img_path`` and, for evaluation, ``seg_map_path``.
        img_suffix: suffix of the photos; None takes any, as without ``ann_file``.
        seg_map_suffix: suffix of the masks.
        pipeline: transforms.
        test_mode: as in MMSegmentation.
        indices: first so many photos, or these.
        serialize_data: share the list between workers.
        lazy_init: build the list later.
    """

    def __init__(
        self,
        *,
        image_labels: str,
        ann_file: str = '',
        skip_unlabelled: bool = False,
        exclude: str | Sequence[str] = '',
        only_with: Sequence[str] = (),
        data_root: str | None = None,
        data_prefix: dict | None = None,
        img_suffix: str | None = '.jpg',
        seg_map_suffix: str = '.png',
        pipeline: Sequence = (),
        test_mode: bool = False,
        indices: int | Sequence[int] | None = None,
        serialize_data: bool = True,
        lazy_init: bool = False,
    ) -> None:
        if data_root and not osp.isdir(data_root):
            raise InputError(
                f'the data set folder {osp.abspath(data_root)} does not exist; what '
                f'must lie where says: {PREPARE} check voc {data_root} (or coco, or '
                'folder)'
            )
        path = osp.join(data_root, image_labels) if data_root else image_labels
        self.image_labels_path = path
        self.image_labels = load_image_labels(path)
        self.skip_unlabelled = skip_unlabelled
        lists = [exclude] if isinstance(exclude, str) else exclude
        self.exclude = [osp.join(data_root or '', file) for file in lists if file]
        self.only_with = tuple(only_with)
        classes = ('background', *self.image_labels.classes)
        super().__init__(
            ann_file=ann_file,
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            metainfo=dict(classes=classes, palette=voc_palette(len(classes))),
            data_root=data_root,
            data_prefix=data_prefix or dict(img_path=''),
            indices=indices,
            serialize_data=serialize_data,
            pipeline=list(pipeline),
            test_mode=test_mode,
            lazy_init=lazy_init,
            # A broken photo is an error with a name, never silently another photo.
            max_refetch=0,
        )

    def load_data_list(self) -> list[dict]:
        """One entry per photo, checked."""
        folder = self.data_prefix['img_path']
        if not osp.isdir(folder):
            raise InputError(
                f'the photo folder {osp.abspath(folder)} does not exist; correct '
                'data_root or data_prefix.img_path in the config'
            )
        names = self._kept_photos(folder)
        masks = self.data_prefix.get('seg_map_path')
        entries = []
        for image_id, file_name in self._with_maps(self._labelled(names)):
            entry = dict(
                img_path=osp.join(folder, file_name),
                img_id=image_id,
                image_label=self.image_labels.multi_hot(image_id),
                label_map=None,
                reduce_zero_label=False,
                seg_fields=[],
            )
            if masks is not None:
                entry['seg_map_path'] = osp.join(masks, image_id + self.seg_map_suffix)
            entries.append(entry)
        if not entries:
            raise InputError(
                f'{self.ann_file or folder} names no photo; give a list with image ids '
                'or a folder with photos'
            )
        return entries

    def _kept_photos(self, folder: str) -> list[tuple[str, str]]:
        """(id, file) of the photos that ``exclude`` does not name."""
        files = None if self.ann_file else dict(find_photos(folder))
        ids = self._listed_ids(self.ann_file) if files is None else list(files)
        for file in self.exclude:
            named = set(self._listed_ids(file, setting='exclude'))
            kept = [i for i in ids if i not in named]
            if len(kept) < len(ids):
                left_out = f'{len(ids) - len(kept)} of {len(ids)} photos'
                print_log(f'left out: {left_out}, which {file} names', 'current')
            ids = kept
        if files is None:
            return self._find_listed(ids, folder)
        return [(i, files[i]) for i in ids]

    def _with_maps(self, names: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The photos that ``only_with`` has a map of; others are counted aloud."""
        if not self.only_with:
            return names
        there = {image_id for root in self.only_with for image_id in find_maps(root)}
        missing = [image_id for image_id, _ in names if image_id not in there]
        if missing:
            folders = ' or '.join(self.only_with)
            sentence = f'{_named("image", missing, len(names))} no map in {folders}'
            if len(missing) == len(names):
                raise InputError(
                    f'{sentence}; maps are called as their photos, with .png: correct '
                    'the folder'
                )
            print_log(f'left out: {sentence}', 'current', logging.WARNING)
        return [name for name in names if name[0] in there]

    def _labelled(self, names: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The photos with an entry; those without are refused or counted aloud."""
        known = self.image_labels.labels
        missing = [image_id for image_id, _ in names if image_id not in known]
        if not missing:
            return names
        sentence = (
            f'{_named("image", missing, len(names))} no entry in '
            f'{self.image_labels_path}'
        )
        if len(missing) == len(names):
            raise InputError(f'{sentence}; correct image_labels in the config')
        if not self.skip_unlabelled:
            raise InputError(
                f'{sentence}; add entries (an empty list for a photo without objects) '
                'or leave these photos out by skip_unlabelled=True in the data set'
            )
        print_log(f'left out: {sentence}', 'current', logging.WARNING)
        return [name for name in names if name[0] in known]

    def _listed_ids(self, file: str, *, setting: str = 'ann_file') -> list[str]:
        try:
            with open(file, encoding='utf-8-sig') as stream:
                lines = [line.strip() for line in stream if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise InputError(
                f'the list {osp.abspath(file)} cannot be read; it should hold '
                f'one image id a line (correct {setting} in the config)'
            ) from None
        known = self.image_labels.labels
        # VOC lists may have a second column, own ids may have spaces.
        return [line if line in known else line.split()[0] for line in lines]

    def _find_listed(self, ids: Sequence[str], folder: str) -> list[tuple[str, str]]:
        # One listing per subfolder: a stat per photo is slow on network drives.
        there = {
            osp.join(place, name)
            for place in {osp.dirname(i) for i in ids}
            if osp.isdir(osp.join(folder, place))
            for name in os.listdir(osp.join(folder, place))
        }
        if self.img_suffix is None:
            files = {osp.splitext(name)[0]: name for name in there if _is_photo(name)}
        else:
            files = {
                i: i + self.img_suffix for i in ids if i + self.img_suffix in there
            }
        missing = [i for i in ids if i not in files]
        if missing:
            file = missing[0] + (self.img_suffix or '.*')
            raise InputError(
                f'{len(missing)} of {len(ids)} photos are missing, the first is '
                f'{osp.join(osp.abspath(folder), file)}; add them, take them out of '
                f'{self.ann_file}, or correct img_suffix'
            )
        return [(i, files[i]) for i in ids]

    def get_cat_ids(self, idx: int) -> list[int]:
        """Indices of a photo's classes, for ``mmwsss.ClassBalancedDataset``."""
        return np.flatnonzero(self.get_data_info(idx)['image_label']).tolist()

    def __getitem__(self, index: int) -> dict:
        """One sample; a SeededIndex makes its augmentation reproducible."""
        seed_augmentation(index)
        try:
            return super().__getitem__(int(index))
        except UnreadablePhoto as error:
            own = self.get_data_info(int(index))['img_path']
            if own not in str(error):  # one of another folder, that a transform read
                raise
            folder = self.data_prefix['img_path']
            raise UnreadablePhoto(how_to_leave_out(str(error), folder)) from None


def how_to_leave_out(sentence: str, folder: str) -> str:
    """The sentence on a photo of a folder that cannot be read, with another advice."""
    return (
        f'{sentence.partition("; ")[0]}; replace it, or list all such photos by '
        f'{PREPARE} check photos {osp.abspath(folder)} --list broken.txt and leave '
        'them out by exclude=broken.txt, with its full path, in the data set (mmwsss '
        'train --exclude broken.txt)'
    )


def _named(what: str, ids: Sequence[str], total: int) -> str:
    """'image 'a' has', or '5 of 9 images ('a', 'b', 'c', ...) have'."""
    if len(ids) == 1:
        return f'{what} {ids[0]!r} has'
    first = ', '.join(map(repr, ids[:3])) + (', ...' if len(ids) > 3 else '')
    return f'{len(ids)} of {total} {what}s ({first}) have'


def _is_photo(path: str) -> bool:
    suffix = osp.splitext(path)[1].lower()
    return suffix in PHOTO_SUFFIXES and not osp.basename(path).startswith('.')


def find_maps(folder: str | os.PathLike) -> list[str]:
    """Ids of the PNGs below a folder, sorted; [] where there is no such folder."""
    found = []
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.endswith('.png') and not name.startswith('.'):
                path = osp.relpath(osp.join(place, name), folder)
                found.append(path.replace(os.sep, '/').removesuffix('.png'))
    return sorted(found)


def find_photos(folder: str | os.PathLike) -> list[tuple[str, str]]:
    """(id, file) of every photo below the folder, linked subfolders included.

    Returns:
        Sorted pairs of the path below the folder without and with its suffix. Names
        with a dot in front are not photos (macOS leaves such files beside them).

    Raises:
        InputError: two photos have the same id.
    """
    photos = {}
    for place, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith('.')]
        for name in sorted(names):
            path = osp.relpath(osp.join(place, name), folder)
            stem, _ = osp.splitext(path.replace(os.sep, '/'))
            if not _is_photo(path):
                continue
            if stem in photos:
                raise InputError(
                    f'{path} and {photos[stem]} in {folder} have the same image id; '
                    'rename one of them'
                )
            photos[stem] = path
    return sorted(photos.items())
