"""Transforms: strict photo loading, crops that remember themselves, packing."""

import numpy as np
import torch
from mmcv.transforms import BaseTransform, to_tensor
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image, ImageFile, ImageOps

from mmwsss.errors import InputError
from mmwsss.registry import TRANSFORMS

# What Pillow raises on damaged files; SyntaxError is a broken PNG.
DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@TRANSFORMS.register_module()
class LoadPhoto(BaseTransform):
    """Reads any photo as upright BGR uint8.

    EXIF rotation is applied; grey, palette, CMYK and 16-bit photos are converted,
    transparent ones are laid on white. A truncated or unreadable file raises
    InputError with its name (OpenCV would hand out a grey lower half).
    """

    def transform(self, results: dict) -> dict:
        """Adds ``img`` (H, W, 3), ``img_shape``, ``ori_shape``."""
        image = read_photo(results['img_path'])
        results['img'] = image
        results['img_shape'] = image.shape[:2]
        results['ori_shape'] = image.shape[:2]
        return results


def read_photo(path: str) -> np.ndarray:
    """A photo as (H, W, 3) BGR uint8, upright."""
    _refuse_truncated_files()
    try:
        with Image.open(path) as image:
            if image.mode == 'F':
                raise InputError(
                    f'the photo {path} has floating point pixels, whose range is not '
                    'known; save it with 8 or 16 bits'
                )
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise InputError(f'the photo {path} does not exist') from None
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(
            f'the photo {path} is truncated or damaged ({error}); replace it or take '
            'it out of the list'
        ) from None
    return np.ascontiguousarray(np.asarray(rgb)[:, :, ::-1])


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
            with Image.open(path) as image:
                mask = np.array(image)
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
        results['gt_seg_map'] = mask
        results['seg_fields'] = [*results.get('seg_fields', []), 'gt_seg_map']
        return results


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
        return dict(inputs=inputs, data_samples=sample)
