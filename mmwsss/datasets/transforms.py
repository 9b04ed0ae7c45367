"""Transforms: strict photo loading, crops that remember themselves, packing."""

import io
import os.path as osp
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import BaseTransform, to_tensor
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image, ImageFile, ImageOps

from mmwsss.errors import InputError, UnreadablePhoto, tool
from mmwsss.files import png_damage
from mmwsss.registry import TRANSFORMS

# What Pillow raises on damaged files; SyntaxError is a broken PNG.
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# Between a clip's file and the number of a frame, in the path of a photo.
NPY_FRAME = '#'


@TRANSFORMS.register_module()
class LoadPhoto(BaseTransform):
    """Reads any photo as upright BGR uint8.

    EXIF rotation is applied; grey, palette, CMYK and 16-bit photos are converted,
    transparent ones are laid on white. A truncated or unreadable file raises
    UnreadablePhoto with its name (OpenCV would hand out a grey lower half).
    """

    def transform(self, results: dict) -> dict:
        """Adds ``img`` (H, W, 3), ``img_shape``, ``ori_shape``."""
        image = read_photo(results['img_path'])
        results['img'] = image
        results['img_shape'] = image.shape[:2]
        results['ori_shape'] = image.shape[:2]
        return results


def read_photo(path: str) -> np.ndarray:
    """A photo as (H, W, 3) BGR uint8, upright; ``clip.npy#12`` is a clip's frame 12.

    Raises:
        UnreadablePhoto: The file is there, but has no pixels that can be read.
        InputError: There is no such file.
    """
    file, mark, number = str(path).rpartition(NPY_FRAME)
    if mark and file.endswith('.npy'):
        return np.ascontiguousarray(open_npy_clip(file)[int(number), :, :, ::-1])
    _refuse_truncated_files()
    try:
        with Image.open(path) as image:
            if image.mode == 'F':
                raise UnreadablePhoto(
                    f'the photo {path} has floating point pixels, whose range is not '
                    'known; save it with 8 or 16 bits'
                )
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise InputError(f'the photo {path} does not exist') from None
    except InputError:
        raise
    except DAMAGED as error:
        raise UnreadablePhoto(
            f'the photo {path} is truncated or damaged ({error}); replace it or take '
            'it out of the list'
        ) from None
    return np.ascontiguousarray(np.asarray(rgb)[:, :, ::-1])


def photo_file(path: str) -> str:
    """The file that holds a photo: the path, or the clip that the frame is in."""
    file, mark, _ = str(path).rpartition(NPY_FRAME)
    return file if mark and file.endswith('.npy') else str(path)


def open_npy_clip(path: str) -> np.ndarray:
    """A clip (T, H, W, 3) RGB uint8, left on the disk until it is looked at."""
    try:
        clip = np.load(path, mmap_mode='r', allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f'the clip {path} does not exist') from None
    except (OSError, ValueError, EOFError) as error:
        raise UnreadablePhoto(
            f'the clip {path} cannot be read as a numpy array ({error}); make it again'
        ) from None
    if clip.ndim != 4 or clip.shape[3] != 3 or 0 in clip.shape or clip.dtype != 'uint8':
        raise InputError(
            f'the clip {path} must be uint8 (T, H, W, 3), RGB, got {clip.dtype} '
            f'{clip.shape}; save it like that'
        )
    return clip


def _refuse_truncated_files() -> None:
    # Some libraries set this flag for the whole process; Pillow would then hand out
    # the missing part of a photo as grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):
        values = np.asarray(image, dtype=np.float64)
        # 16-bit files come as I;16 or I; others keep their own 0..255 scale.
        scale = 257.0 if values.max(initial=0) > 255 else 1.0
        grey = np.clip(np.rint(values / scale), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert('RGB')
    if 'A' in image.getbands() or 'transparency' in image.info:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(white, image).convert('RGB')
    return image.convert('RGB')


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """Reads an index or palette PNG mask for evaluation; 255 is void.

    Args:
        num_classes: C with background; values from there to 254 raise InputError.
    """

    def __init__(self, *, num_classes: int | None = None) -> None:
        self.num_classes = num_classes

    def transform(self, results: dict) -> dict:
        """Adds ``gt_seg_map`` (H, W) uint8."""
        path = results.get('seg_map_path')
        if path is None:
            raise InputError(
                f'LoadMask has no mask for the photo {results.get("img_path")}; set '
                'seg_map_path in data_prefix or take LoadMask out of the pipeline'
            )
        _refuse_truncated_files()
        try:
            content = Path(path).read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                mask = np.array(image)
            if image.format == 'PNG' and (damage := png_damage(content)):
                raise OSError(damage)
        except DAMAGED as error:
            raise InputError(
                f'the mask {path} cannot be read ({error}); add or replace it, or take '
                'the image out of the list'
            ) from None
        if mask.dtype == bool:  # a 1-bit PNG of one class
            mask = mask.astype(np.uint8)
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise InputError(
                f'the mask {path} must be an index or palette PNG with one 8-bit '
                f'channel, got {mask.dtype} of shape {mask.shape}'
            )
        if mask.shape != tuple(results['ori_shape']):
            raise InputError(
                f'the mask {path} is {mask.shape[1]}x{mask.shape[0]}, its photo '
                f'{results["ori_shape"][1]}x{results["ori_shape"][0]}; they must agree'
            )
        objects = mask[mask != 255]
        if self.num_classes and objects.size and objects.max() >= self.num_classes:
            raise InputError(
                f'the mask {path} holds the value {objects.max()}, but the data set '
                f'has the values 0 to {self.num_classes - 1} and 255'
            )
        self._refuse_binary(mask, results)
        results['gt_seg_map'] = mask
        results['seg_fields'] = [*results.get('seg_fields', []), 'gt_seg_map']
        return results

    def _refuse_binary(self, mask: np.ndarray, results: dict) -> None:
        """Refuse an object saved as 255, which would count as void.

        Only with one class, whose photos seldom show nothing but void; of a clip some
        frames do not show the object.
        """
        labelled = np.any(results.get('image_label', 0)) and 'clip_id' not in results
        if self.num_classes != 2 or not labelled:
            return
        if (mask == 255).any() and not (mask == 1).any():
            raise InputError(
                f'the mask {results["seg_map_path"]} holds no value but 0 and 255, yet '
                'its photo is labelled with an object; 255 is void, save the object as '
                f'1: {tool("prepare_data")} binary-masks MASKS OUT'
            )


@TRANSFORMS.register_module()
class LoadDistractorMask(BaseTransform):
    """Reads the mask of what accompanies objects, for ``CoOccurrenceMetric``.

    Index or palette PNGs named by image id: k where the distractor of class k is, 0
    elsewhere, 255 unknown. They go through the same crops and flips as the photo.

    Args:
        mask_root: folder of the masks.
        num_classes: C with background; values from there to 254 raise InputError.
    """

    def __init__(self, *, mask_root: str, num_classes: int | None = None) -> None:
        self.mask_root = mask_root
        self._reader = LoadMask(num_classes=num_classes)

    def transform(self, results: dict) -> dict:
        """Adds ``distractor_map`` (H, W) uint8."""
        name = results.get('img_id') or Path(results['img_path']).stem
        asked = {
            'seg_map_path': osp.join(self.mask_root, f'{name}.png'),
            'img_path': results.get('img_path'),
            'ori_shape': results['ori_shape'],
        }
        results['distractor_map'] = self._reader.transform(asked)['gt_seg_map']
        results['seg_fields'] = [*results.get('seg_fields', []), 'distractor_map']
        return results


@TRANSFORMS.register_module()
class AllClasses(BaseTransform):
    """Labels a photo with all classes, so that a network gives CAMs of all of them.

    For evaluation, behind ``LoadMask``: what is activated on photos without the object
    shows only in CAMs that the image label did not empty.
    """

    def transform(self, results: dict) -> dict:
        """``image_label`` (K,) becomes ones."""
        results['image_label'] = np.ones_like(results['image_label'])
        return results


@TRANSFORMS.register_module()
class RemoveOverlay(BaseTransform):
    """Cuts a strip with a camera's logo or clock off; a classifier would learn it.

    Stands behind the loading steps. What is left counts as the photo, so its CAMs have
    its size. Tools that look at photos without a pipeline see the strip: cut it off on
    the disk for those (``python tools/prepare_data.py crops --remove-overlay``).

    Args:
        top: share of the height that goes, from the upper edge, in [0, 1).
        left: share of the width that goes, from the left edge, in [0, 1).
    """

    def __init__(self, *, top: float = 0.0, left: float = 0.0) -> None:
        if not (0 <= top < 1 and 0 <= left < 1):
            raise ValueError(f'top and left must lie in [0, 1), got {top} and {left}')
        self.top = top
        self.left = left

    def transform(self, results: dict) -> dict:
        """Cuts ``img`` and masks; ``img_shape`` and ``ori_shape`` follow.

        Raises:
            ValueError: if the photo was scaled, cropped or flipped before.
        """
        height, width = results['img'].shape[:2]
        if results.get('flip') or (height, width) != tuple(results['ori_shape'][:2]):
            raise ValueError(
                'RemoveOverlay must stand directly behind the loading steps; it got '
                f'{results.get("img_path", "a photo")} changed'
            )
        rows = without_overlay((height, width), top=self.top, left=self.left)
        for key in ('img', *results.get('seg_fields', [])):
            results[key] = results[key][rows]
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


def without_overlay(
    size: tuple[int, int], *, top: float, left: float
) -> tuple[slice, slice]:
    """The part of an image (height, width) right of and below a strip."""
    height, width = size
    # At least one pixel stays.
    first = min(round(top * height), height - 1), min(round(left * width), width - 1)
    return slice(first[0], None), slice(first[1], None)


@TRANSFORMS.register_module()
class RandomCropWithBox(BaseTransform):
    """Crops at random and records where.

    It must be the first crop and stand before a flip, or the box would not say where
    in the photo the crop lies.

    Args:
        crop_size: (height, width) in pixels.
        pad_to_crop: False leaves a smaller image as it is, and what a batch adds to it
            counts as padding. True lays it at random on a black crop that counts as
            image, as AFA, ToCo and WeCLIP do; masks are void there.
    """

    def __init__(
        self, *, crop_size: tuple[int, int], pad_to_crop: bool = False
    ) -> None:
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ValueError(f'crop_size must be (height, width), got {crop_size}')
        self.crop_size = tuple(crop_size)
        self.pad_to_crop = pad_to_crop

    def transform(self, results: dict) -> dict:
        """Adds ``crop_box`` and ``crop_from``.

        The box is x0, y0, x1, y1 in pixels of the scaled image, whose (height, width)
        is ``crop_from``; with ``pad_to_crop`` it may reach beyond the image.

        Raises:
            ValueError: if the photo was flipped or cropped before.
        """
        if results.get('flip') or 'crop_box' in results:
            raise ValueError(
                'RandomCropWithBox must be the first crop of the pipeline and stand '
                f'before RandomFlip; it got {results.get("img_path", "a photo")} '
                'flipped or cropped'
            )
        height, width = results['img'].shape[:2]
        top, bottom = self._span(height, self.crop_size[0])
        left, right = self._span(width, self.crop_size[1])
        for key in ('img', *results.get('seg_fields', [])):
            void = 0 if key == 'img' else 255
            results[key] = _cut_out(results[key], (top, bottom), (left, right), void)
        results['img_shape'] = results['img'].shape[:2]
        results['crop_box'] = (left, top, right, bottom)
        results['crop_from'] = (height, width)
        return results

    def _span(self, side: int, crop: int) -> tuple[int, int]:
        if self.pad_to_crop:
            first, last = sorted((0, side - crop))
            start = np.random.randint(first, last + 1)
            return start, start + crop
        start = np.random.randint(0, max(side - crop, 0) + 1)
        return start, min(start + crop, side)


def _cut_out(
    values: np.ndarray, rows: tuple[int, int], columns: tuple[int, int], void: int
) -> np.ndarray:
    """Rows and columns from a start to an end; void where they leave the image."""
    inside = values[max(rows[0], 0) : rows[1], max(columns[0], 0) : columns[1]]
    size = rows[1] - rows[0], columns[1] - columns[0]
    if inside.shape[:2] == size:
        return inside
    cut = np.full((*size, *values.shape[2:]), void, values.dtype)
    top, left = max(-rows[0], 0), max(-columns[0], 0)
    cut[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return cut


@TRANSFORMS.register_module()
class PackWSSSInputs(BaseTransform):
    """MMSegmentation's packing plus ``image_label`` (K,) on the data sample.

    The meta information ``num_present`` is the number of its classes.

    Args:
        meta_keys: what of the results is kept as meta information, where present.
    """

    META_KEYS = (
        'img_path',
        'img_id',
        'seg_map_path',
        'ori_shape',
        'img_shape',
        'pad_shape',
        'scale_factor',
        'flip',
        'flip_direction',
        'crop_box',
        'crop_from',
        'reduce_zero_label',
        'clip_id',
        'frame_idx',
        'num_frames',
    )

    def __init__(self, *, meta_keys: tuple[str, ...] = META_KEYS) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """``inputs`` (3, H, W) uint8 and ``data_samples``."""
        image = results['img']
        inputs = to_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        sample = SegDataSample(
            metainfo={k: results[k] for k in self.meta_keys if k in results}
        )
        if 'image_label' in results:
            label = torch.as_tensor(results['image_label'], dtype=torch.float32)
            sample.set_field(label, 'image_label', dtype=torch.Tensor)
            # Counted here, since on a GPU nobody can look without waiting.
            sample.set_metainfo({'num_present': int((label > 0).sum())})
        if 'gt_seg_map' in results:
            mask = to_tensor(results['gt_seg_map'][None].astype(np.int64))
            sample.gt_sem_seg = PixelData(data=mask)
        if 'distractor_map' in results:
            mask = to_tensor(results['distractor_map'][None].astype(np.int64))
            sample.set_field(PixelData(data=mask), 'distractor_map', dtype=PixelData)
        return dict(inputs=inputs, data_samples=sample)
