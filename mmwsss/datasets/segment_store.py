"""Class-free segments on disk: one file per photo, whatever made them.

``ID.npz`` holds ``size`` (height, width) of the photo, int32, and ``packed`` uint8
(M, ceil(height * width / 8)): the pixels of each segment row by row, eight in a byte,
the first one in the highest bit (``numpy.packbits``). Segments may overlap; M = 0 is
legal. Nothing is pickled; a file is whole or not there. With Segment Anything::

    found = SamAutomaticMaskGenerator(sam).generate(photo)  # (H, W, 3) RGB uint8
    masks = [segment['segmentation'] for segment in found]
    SegmentStore('segments').write('photo_1', masks)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmwsss.errors import InputError
from mmwsss.files import whole_file

from .cam_store import DAMAGED

HOW_TO_MAKE = (
    'write one with mmwsss.datasets.SegmentStore(FOLDER).write(ID, masks), masks being '
    'boolean arrays (height, width)'
)


class SegmentStore:
    """A folder of segments.

    Args:
        root: the folder; it need not be there yet.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, image_id: str) -> Path:
        """Where the segments of a photo are or would be."""
        return self.root / f'{image_id}.npz'

    def write(
        self,
        image_id: str,
        masks: Sequence[np.ndarray] | np.ndarray,
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Write the segments of one photo.

        Args:
            image_id: of the photo.
            masks: (M, H, W) bool, or so many (H, W).
            size: (height, width); needed where there is no segment.

        Raises:
            ValueError: if masks are not boolean, not of one size or not of ``size``.
            InputError: if the file cannot be written.
        """
        masks = [np.asarray(mask) for mask in masks]
        sizes = {mask.shape for mask in masks} | ({tuple(size)} if size else set())
        if len(sizes) != 1 or len(next(iter(sizes))) != 2:
            raise ValueError(
                f'segments of {image_id!r} must have one height and width, got '
                f'{sorted(sizes)} (give size= where there is no segment)'
            )
        wrong = [mask.dtype for mask in masks if mask.dtype != bool]
        if wrong:
            raise ValueError(
                f'segments of {image_id!r} must be boolean, got {wrong[0]}'
            )
        size = next(iter(sizes))
        packed = [np.packbits(mask) for mask in masks]
        num_bytes = -(-size[0] * size[1] // 8)
        with whole_file(self.path(image_id)) as stream:
            np.savez_compressed(
                stream,
                size=np.array(size, dtype=np.int32),
                packed=np.array(packed, np.uint8).reshape(-1, num_bytes),
            )

    def read(self, image_id: str) -> np.ndarray:
        """The segments (M, H, W) bool of one photo.

        Raises:
            InputError: if the file is missing, damaged or something else.
        """
        path = self.path(image_id)
        try:
            with np.load(path, allow_pickle=False) as content:
                size, packed = content['size'], content['packed']
        except FileNotFoundError:
            raise InputError(f'{path} does not exist; {HOW_TO_MAKE}') from None
        except DAMAGED as error:
            raise InputError(
                f'{path} cannot be read as stored segments ({error}); {HOW_TO_MAKE}'
            ) from None
        problem = _problem(size, packed)
        if problem:
            raise InputError(f'{path} holds no segments: {problem}; {HOW_TO_MAKE}')
        height, width = size.tolist()
        bits = np.unpackbits(packed, axis=1, count=height * width)
        return bits.view(bool).reshape(-1, height, width)


def _problem(size: np.ndarray, packed: np.ndarray) -> str | None:
    if size.shape != (2,) or size.dtype.kind not in 'iu' or size.min() < 1:
        return f'size must be a height and a width, got {size.tolist()}'
    num_bytes = -(-int(size[0]) * int(size[1]) // 8)
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != num_bytes:
        return (
            f'packed must be uint8 (M, {num_bytes}) for a photo '
            f'{tuple(size.tolist())}, got {packed.dtype} {packed.shape}'
        )
    return None
