"""CAMs on disk: one file per photo, and the way of other repositories' files into it.

``ID.npz`` holds ``classes`` uint16, ``cams`` (one per class) float16 or uint8 on a grid
of stride 4, ``size`` (height, width) of the photo, ``background`` where the network has
a score of its own for it, and ``probs``, one per class of the data set, where it says
which classes the photo shows. Nothing is pickled; a file is whole or not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from torch import Tensor

from mmwsss.errors import InputError, tool
from mmwsss.files import DAMAGED_ZIP, whole_file
from mmwsss.registry import TRANSFORMS

from .transforms import PackWSSSInputs

STRIDE = 4
DTYPES = ('float16', 'uint8')
HOW_TO_MAKE = f'make them with: {tool("make_cams")} (see --help)'
# What a cut-off or foreign file makes zipfile and numpy raise.
DAMAGED = (OSError, *DAMAGED_ZIP)
# Rounding of float16 and of other repositories' sums.
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class StoredCAMs:
    """CAMs of one photo.

    Attributes:
        classes: ascending indices into the K foreground classes, (P,) int64.
        cams: (P, h, w) float32 in [0, 1] on the grid of stride 4.
        size: (height, width) of the photo.
        background: (h, w) float32 in [0, 1], or None.
        probs: (K,) float32 in [0, 1] of all K classes, or None.
    """

    classes: np.ndarray
    cams: np.ndarray
    size: tuple[int, int]
    background: np.ndarray | None = None
    probs: np.ndarray | None = None

    def dense(self, num_classes: int) -> Tensor:
        """CAMs (K, h, w) of all classes, absent ones zero."""
        if self.classes.max(initial=-1) >= num_classes:
            raise ValueError(
                f'num_classes is {num_classes}, but the classes are '
                f'{self.classes.tolist()}'
            )
        cams = torch.zeros(num_classes, *grid_size(self.size))
        cams[torch.from_numpy(self.classes)] = torch.from_numpy(self.cams)
        return cams


def grid_size(size: Sequence[int]) -> tuple[int, int]:
    """Cells of the stride 4 grid of a photo (height, width)."""
    height, width = (-(-int(side) // STRIDE) for side in size)
    return height, width


class CAMStore:
    """A folder of CAMs.

    Args:
        root: the folder; it need not be there yet.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, image_id: str) -> Path:
        """Where the CAMs of a photo are or would be."""
        return self.root / f'{image_id}.npz'

    def write(
        self, image_id: str, stored: StoredCAMs, *, dtype: str = 'float16'
    ) -> None:
        """Write one photo's CAMs; equal CAMs make equal files.

        Raises:
            ValueError: for an unknown dtype or maps that do not fit together.
            InputError: if values are not finite, or the file cannot be written.
        """
        if dtype not in DTYPES:
            raise ValueError(f'dtype must be one of {DTYPES}, got {dtype!r}')
        problem = _problem(stored)
        if problem:
            raise ValueError(f'CAMs of {image_id!r} cannot be stored: {problem}')
        maps = {'cams': stored.cams}
        if stored.background is not None:
            maps['background'] = stored.background
        plain = {} if stored.probs is None else {'probs': stored.probs}
        for values in (*maps.values(), *plain.values()):
            if not np.isfinite(values).all():
                raise InputError(
                    f'the CAMs of {image_id!r} hold values that are not finite; the '
                    'checkpoint is from a training that went wrong'
                )
        with whole_file(self.path(image_id)) as stream:
            np.savez_compressed(
                stream,
                classes=stored.classes.astype(np.uint16),
                size=np.array(stored.size, dtype=np.int32),
                **{name: _packed(values, dtype) for name, values in maps.items()},
                **{name: np.float32(values) for name, values in plain.items()},
            )

    def read(self, image_id: str) -> StoredCAMs:
        """Read one photo's CAMs.

        Raises:
            InputError: if the file is missing, damaged or something else.
        """
        path = self.path(image_id)
        try:
            with np.load(path, allow_pickle=False) as content:
                stored = StoredCAMs(
                    classes=_row(content['classes'], 'iu').astype(np.int64),
                    cams=_unpacked(content['cams']),
                    size=tuple(_row(content['size'], 'iu').tolist()),
                    background=_unpacked(content['background'])
                    if 'background' in content
                    else None,
                    probs=_row(content['probs'], 'f').astype(np.float32)
                    if 'probs' in content
                    else None,
                )
        except FileNotFoundError:
            raise InputError(f'{path} does not exist; {HOW_TO_MAKE}') from None
        except DAMAGED as error:
            raise InputError(
                f'{path} cannot be read as stored CAMs ({error!s:.200}); delete it and '
                'make it again'
            ) from None
        problem = _problem(stored) or _outside(stored)
        if problem:
            raise InputError(
                f'{path} holds no usable CAMs: {problem}; delete it and make it again'
            )
        return stored


def _packed(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == 'uint8':
        return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return values.astype(np.float16)


def _unpacked(values: np.ndarray) -> np.ndarray:
    if values.dtype.name not in DTYPES:
        raise ValueError(f'maps must be one of {DTYPES}, got {values.dtype}')
    scale = 255 if values.dtype == np.uint8 else 1
    return values.astype(np.float32) / scale


def _row(values: np.ndarray, kinds: str) -> np.ndarray:
    if values.ndim != 1 or values.dtype.kind not in kinds:
        raise ValueError(f'a row of numbers is {values.dtype} {values.shape}')
    return values


def _outside(stored: StoredCAMs) -> str | None:
    """What is not in [0, 1], as in a file that another program wrote."""
    for name in ('cams', 'background', 'probs'):
        values = getattr(stored, name)
        if values is None or not values.size:
            continue
        lowest, highest = values.min(), values.max()
        # Not a number fails both.
        if not (lowest >= -TOLERANCE and highest <= 1 + TOLERANCE):
            return f'{name} must lie in [0, 1], got {lowest:.3g} to {highest:.3g}'
    return None


def _problem(stored: StoredCAMs) -> str | None:
    classes, cams = stored.classes, stored.cams
    if len(stored.size) != 2 or min(stored.size) < 1:
        return f'size must be a height and a width, got {stored.size}'
    if classes.ndim != 1 or (np.diff(classes) <= 0).any():
        return f'classes must ascend, got {classes.tolist()}'
    expected = (len(classes), *grid_size(stored.size))
    if cams.shape != expected:
        return f'cams must be {expected} for a photo {stored.size}, got {cams.shape}'
    background = stored.background
    if background is not None and background.shape != expected[1:]:
        return f'background must be {expected[1:]}, got {background.shape}'
    probs = stored.probs
    if probs is not None and (probs.ndim != 1 or len(probs) <= classes.max(initial=-1)):
        return f'probs must be one per class, got {probs.shape}'
    return None


# -------------------------------------------------------- files of other repositories
@dataclass(frozen=True, eq=False)
class PickledCAMs:
    """What a pickled file of another repository holds, at any resolution.

    Attributes:
        classes: (P,) ascending indices into the foreground classes.
        cams: (P, h, w) float32 in [0, 1].
        background: (h, w) float32, or None.
    """

    classes: np.ndarray
    cams: np.ndarray
    background: np.ndarray | None


def read_pickled_cams(path: str | Path, *, trust_pickle: bool = False) -> PickledCAMs:
    """Read a ``.npy`` dictionary as other WSSS repositories write it.

    Known are ``{class: map}`` (PSA, MCTformer), ``{'keys', 'high_res' or 'cam'}`` (IRN;
    AMN has one map more, the background) and ``{'keys', 'IS_CAM'}`` (SIPE, where key 0
    is the background).

    Args:
        path: the file.
        trust_pickle: unpickling runs code that the file brings along; True says that
            the file comes from someone who may do that.

    Raises:
        InputError: without trust, and for anything else in the file.
    """
    if not trust_pickle:
        raise InputError(
            f'{path} is a pickled file, which can run any code when it is read; if it '
            'comes from someone you trust, add --trust-pickle'
        )
    try:
        content = np.load(path, allow_pickle=True)
        content = content.item() if content.ndim == 0 else None
    except FileNotFoundError:
        raise InputError(f'{path} does not exist') from None
    except (*DAMAGED, UnpicklingError, ImportError, AttributeError) as error:
        raise InputError(f'{path} cannot be read as pickled CAMs ({error})') from None
    if not isinstance(content, dict):
        raise InputError(f'{path} holds no dictionary of CAMs')
    try:
        found = _from_dictionary(content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'{path} holds no known kind of CAMs, its keys are '
            f'{list(content)[:5]} ({error})'
        ) from None
    lowest, highest = found.cams.min(initial=0), found.cams.max(initial=0)
    if not (lowest >= -TOLERANCE and highest <= 1 + TOLERANCE):
        raise InputError(
            f'{path} holds values from {lowest:.3g} to {highest:.3g}; CAMs must be '
            'normalised to [0, 1]'
        )
    return found


def _from_dictionary(content: dict) -> PickledCAMs:
    if 'keys' not in content:
        classes = np.array([int(k) for k in content], dtype=np.int64)
        maps = [np.asarray(m, dtype=np.float32) for m in content.values()]
        cams = np.stack(maps) if maps else np.zeros((0, 1, 1), np.float32)
        return _ascending(classes, cams, None)
    classes = np.asarray(content['keys'], dtype=np.int64).reshape(-1)
    names = [n for n in ('IS_CAM', 'high_res', 'cam') if content.get(n) is not None]
    if not names:
        raise KeyError('none of IS_CAM, high_res, cam')
    cams = np.asarray(content[names[0]], dtype=np.float32)
    if cams.ndim != 3:
        raise ValueError(f'maps of shape {cams.shape}')
    if names[0] == 'IS_CAM':
        if classes[0] != 0:
            raise ValueError('IS_CAM without a background')
        return _ascending(classes[1:] - 1, cams[1:], cams[0])
    if len(cams) == len(classes) + 1:
        return _ascending(classes, cams[1:], cams[0])
    return _ascending(classes, cams, None)


def _ascending(
    classes: np.ndarray, cams: np.ndarray, background: np.ndarray | None
) -> PickledCAMs:
    if cams.ndim != 3 or len(cams) != len(classes) or len(set(classes)) < len(classes):
        raise ValueError(f'{len(classes)} classes and maps of shape {cams.shape}')
    order = np.argsort(classes)
    return PickledCAMs(classes[order], cams[order], background)


# ------------------------------------------------------------------------- transforms
@TRANSFORMS.register_module()
class LoadCAMs(BaseTransform):
    """Reads the stored CAMs of a photo.

    Args:
        cam_root: the store's folder.
        grid_size: cells per side (bilinear, antialiased), so that those of photos of
            many sizes go into one batch; None keeps the stored grid.

    Raises:
        InputError: for a grid without cells.
    """

    def __init__(self, *, cam_root: str, grid_size: int | None = None) -> None:
        if grid_size is not None and grid_size < 1:
            raise InputError(f'grid_size must be 1 or more, got {grid_size}')
        self.store = CAMStore(cam_root)
        self.grid_size = grid_size

    def transform(self, results: dict) -> dict:
        """Adds ``cams`` (K, h, w) and maybe ``cam_background`` (1, h, w)."""
        name = results.get('img_id') or Path(results['img_path']).stem
        stored = self.store.read(name)
        path, present = self.store.path(name), np.flatnonzero(results['image_label'])
        if present.tolist() != stored.classes.tolist():
            raise InputError(
                f'{path} holds CAMs of the classes {stored.classes.tolist()}, but the '
                f'image label of the photo has {present.tolist()}; make the CAMs again'
            )
        if stored.size != tuple(results['ori_shape'][:2]):
            raise InputError(
                f'{path} holds CAMs of a photo of {stored.size}, but '
                f'{results["img_path"]} has {tuple(results["ori_shape"][:2])}; make '
                'the CAMs again'
            )
        results['cams'] = self._resized(stored.dense(len(results['image_label'])))
        if stored.background is not None:
            background = torch.from_numpy(stored.background)[None]
            results['cam_background'] = self._resized(background)
        return results

    def _resized(self, maps: Tensor) -> Tensor:
        if self.grid_size is None:
            return maps
        size = (self.grid_size, self.grid_size)
        return F.interpolate(maps[None].float(), size, mode='bilinear', antialias=True)[
            0
        ].to(maps.dtype)


@TRANSFORMS.register_module()
class PackCAMs(PackWSSSInputs):
    """``PackWSSSInputs``, and the stored CAMs as ``cams`` and ``cam_background``.

    Args:
        meta_keys: what of the results is kept as meta information, where present.
    """

    def transform(self, results: dict) -> dict:
        """As ``PackWSSSInputs``; the CAMs stay on their grid, (K, h, w), (1, h, w)."""
        packed = super().transform(results)
        for name in ('cams', 'cam_background'):
            if name in results:
                packed['data_samples'].set_field(results[name], name, dtype=Tensor)
        return packed
