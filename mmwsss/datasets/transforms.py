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
    """Crops at random and records where; a smaller image stays as it is.

    It must be the first crop and stand before a flip, or the box would not say where
    in the photo the crop lies.

    Args:
        crop_size: (height, width) in pixels.
    """

    def __init__(self, *, crop_size: tuple[int, int]) -> None:
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ValueError(f'crop_size must be (height, width), got {crop_size}')
        self.crop_size = tuple(crop_size)

    def transform(self, results: dict) -> dict:
        """Adds ``crop_box`` and ``crop_from``.

        The box is x0, y0, x1, y1 in pixels of the scaled image, whose (height, width)
        is ``crop_from``.

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
        top = np.random.randint(0, max(height - self.crop_size[0], 0) + 1)
        left = np.random.randint(0, max(width - self.crop_size[1], 0) + 1)
        bottom = min(top + self.crop_size[0], height)
        right = min(left + self.crop_size[1], width)
        for key in ('img', *results.get('seg_fields', [])):
            results[key] = results[key][top:bottom, left:right]
        results['img_shape'] = results['img'].shape[:2]
        results['crop_box'] = (left, top, right, bottom)
        results['crop_from'] = (height, width)
        return results


@TRANSFORMS.register_module()
class PackWSSSInputs(BaseTransform):
    """MMSegmentation's packing plus ``image_label`` (K,) on the data sample.

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
        if 'gt_seg_map' in results:
            mask = to_tensor(results['gt_seg_map'][None].astype(np.int64))
            sample.gt_sem_seg = PixelData(data=mask)
        return dict(inputs=inputs, data_samples=sample)
