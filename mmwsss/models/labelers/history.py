"""What the network said about each training photo on earlier visits."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmwsss.errors import InputError
from mmwsss.functional.history import (
    decay_histogram,
    label_on_image_grid,
    pack_counts,
    read_history,
    unpack_counts,
)
from mmwsss.registry import MODELS


@MODELS.register_module()
class PredictionHistory(nn.Module):
    """A decayed histogram of predicted classes on a fixed grid over each photo.

    Kept in one byte buffer, for the background and the image's own classes only:
    G * G bytes for each (28 MB for the 10,582 photos of VOC at G = 32). It stands in
    the checkpoint with what it was made for. Every process of a distributed training
    holds the whole of it, and all of them the same.

    Until ``prepare`` or a checkpoint fills it, it is empty and reads as zeros.

    Args:
        grid_size: G, cells per side of a photo.
        decay: share of the counts that a visit leaves, in [0, 1).
    """

    bank: Tensor  # (slots + 1, G, G) uint8; the last slot stays zero
    image_keys: Tensor  # (M,) int64, a hash of each image id
    image_labels: Tensor  # (M, K) uint8
    fingerprint: Tensor  # (16,) uint8 of the two above and the settings
    slots: Tensor  # (M + 1, C) int32 into bank; the last row is for unknown photos

    def __init__(self, *, grid_size: int = 32, decay: float = 0.8) -> None:
        super().__init__()
        if grid_size < 1:
            raise ValueError(f'grid_size must be at least 1, got {grid_size}')
        if not 0 <= decay < 1:
            raise ValueError(f'decay must be in [0, 1), got {decay}')
        self.grid_size = grid_size
        self.decay = decay
        self.prepared = False
        no_images = torch.zeros(0, dtype=torch.int64)
        no_labels = torch.zeros(0, 0, dtype=torch.uint8)
        for name in ('bank', 'image_keys', 'image_labels', 'fingerprint'):
            self.register_buffer(name, None)
        self.register_buffer('slots', None, persistent=False)
        self._set_images(no_images, no_labels, torch.device('cpu'))

    # --------------------------------------------------------------------- filling
    def prepare(self, image_ids: Sequence[str], image_labels: Tensor) -> None:
        """Make room for the photos of a training set; nothing is remembered yet.

        A history that a checkpoint filled before keeps what it holds, if it was made
        for these photos.

        Args:
            image_ids: M ids, as ``img_id`` of the data samples; an id that stands
                there again counts once.
            image_labels: (M, K) 0/1.

        Raises:
            InputError: if an id has two different image labels, or the history was
                filled for other photos.
            ValueError: if the numbers do not agree.
        """
        image_labels = torch.as_tensor(image_labels).cpu() > 0
        if image_labels.ndim != 2 or len(image_labels) != len(image_ids):
            raise ValueError(
                f'image_labels must be ({len(image_ids)}, K), '
                f'got {tuple(image_labels.shape)}'
            )
        rows = _first_rows(image_ids, image_labels)
        keys = torch.tensor([_key(i) for i in rows], dtype=torch.int64)
        labels = image_labels[list(rows.values())].to(torch.uint8)
        if len(self.image_keys):
            self._require_same(self._fingerprint(keys, labels))
        else:
            self._set_images(keys, labels, self.bank.device)
        self.prepared = True

    def _set_images(self, keys: Tensor, labels: Tensor, device: torch.device) -> None:
        grid = (self.grid_size, self.grid_size)
        number_of_slots = len(keys) + int(labels.sum())
        self.bank = torch.zeros(
            number_of_slots + 1, *grid, dtype=torch.uint8, device=device
        )
        self.image_keys = keys.to(device)
        self.image_labels = labels.to(device)
        self.fingerprint = self._fingerprint(keys, labels).to(device)
        self.slots = _slot_table(labels).to(device)
        self._rows = {key: row for row, key in enumerate(keys.tolist())}

    def _fingerprint(self, keys: Tensor, labels: Tensor) -> Tensor:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f'{self.grid_size} {self.decay} {tuple(labels.shape)}'.encode())
        digest.update(keys.cpu().numpy().astype('<i8').tobytes())
        digest.update(labels.cpu().numpy().tobytes())
        return torch.tensor(list(digest.digest()), dtype=torch.uint8)

    def _require_same(self, fingerprint: Tensor) -> None:
        if not torch.equal(fingerprint.cpu(), self.fingerprint.cpu()):
            raise InputError(
                'the history of predictions in the checkpoint and the one of this '
                'training are for other photos, image labels, grid sizes or decays; '
                'resume with the config and label file of that checkpoint, or start '
                'without it'
            )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        found = {n: state_dict.get(prefix + n) for n in self._persistent_names()}
        if all(value is not None for value in found.values()):
            if self.prepared:
                self._require_same(found['fingerprint'])
            else:
                self._adopt(found)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _persistent_names(self) -> list[str]:
        return ['bank', 'image_keys', 'image_labels', 'fingerprint']

    def _adopt(self, found: dict[str, Tensor]) -> None:
        """Take over the photos of a checkpoint; loading then fills the bank."""
        keys, labels = found['image_keys'].cpu(), found['image_labels'].cpu()
        fingerprint = self._fingerprint(keys, labels)
        if not torch.equal(fingerprint, found['fingerprint'].cpu()):
            raise InputError(
                'the history of predictions in the checkpoint was made with another '
                f'grid size or decay than {self.grid_size} and {self.decay}; load it '
                'with the config that it was trained with'
            )
        self._set_images(keys, labels, self.bank.device)

    # ------------------------------------------------------------------ every step
    @torch.no_grad()
    def read(
        self,
        data_samples: list,
        image_label: Tensor,
        size: tuple[int, int],
        affine: Tensor,
    ) -> Tensor:
        """What earlier visits predicted at the cells of these inputs.

        Args:
            data_samples: of the batch.
            image_label: (N, K) 0/1.
            size: (h, w) of the grid laid over each padded input.
            affine: (N, 2, 3) of ``crop_geometry``.

        Returns:
            histogram (N, C, h, w) float32, soft counts in [0, 1 / (1 - decay)]; 0 in
            the padding, for absent classes, and for photos that the history does not
            hold.

        Raises:
            ValueError: if the history is of another number of classes.
        """
        n, k = image_label.shape
        if not self._rows:
            return image_label.new_zeros(n, k + 1, *size, dtype=torch.float32)
        self._check_classes(k)
        slots = self.slots[self._rows_of(data_samples)].long()  # (N, C)
        counts = unpack_counts(self.bank[slots], decay=self.decay)
        background = image_label.new_ones(n, 1)
        allowed = torch.cat([background, image_label], dim=1) > 0
        return read_history(counts * allowed[:, :, None, None], affine, size)

    @torch.no_grad()
    def update(self, data_samples: list, label: Tensor, affine: Tensor) -> None:
        """Count one visit of each photo of the batch.

        In a distributed run the visits of all processes are applied in the order of
        their ranks, as if they were one batch; every process must call this, with
        equally many images. Photos that the history does not hold are left out.
        Several visits to one photo are applied in their order, and rounded once.

        Args:
            data_samples: of the batch.
            label: (N, h, w) int64 predicted classes on a grid laid over each padded
                input; 255 is not counted.
            affine: (N, 2, 3) of ``crop_geometry``.

        Raises:
            ValueError: if the history holds no photos.
        """
        if not self._rows:
            raise ValueError(
                'the history holds no photos: call prepare(image_ids, image_labels) '
                'before the training'
            )
        seen = label_on_image_grid(label, affine, self.grid_size).to(torch.uint8)
        rows, seen = _gather_visits(self._rows_of(data_samples), seen)
        slots = self.slots[rows].long()  # (N, C)
        counts = decay_histogram(
            unpack_counts(self.bank[slots], decay=self.decay),
            seen,
            decay=self.decay,
            photo=rows,
        )
        packed = pack_counts(counts, decay=self.decay)
        # Absent classes and unknown photos share the last slot, which stays zero.
        real = slots != len(self.bank) - 1
        self.bank[slots] = packed * real[:, :, None, None]

    def _rows_of(self, data_samples: list) -> Tensor:
        unknown = len(self._rows)
        rows = [
            self._rows.get(_key(_image_id(sample.metainfo)), unknown)
            for sample in data_samples
        ]
        return torch.tensor(rows).to(self.bank.device, non_blocking=True)

    def _check_classes(self, k: int) -> None:
        if k != self.image_labels.shape[1]:
            raise ValueError(
                f'the history is of {self.image_labels.shape[1]} classes, '
                f'image_label of {k}'
            )


def _image_id(meta: dict) -> str:
    image_id = meta.get('img_id')
    return Path(meta['img_path']).stem if image_id is None else str(image_id)


def _key(image_id: str) -> int:
    # Python's own hash differs from process to process.
    digest = hashlib.blake2b(image_id.encode('utf-8', 'surrogateescape'), digest_size=8)
    return int.from_bytes(digest.digest(), 'little', signed=True)


def _first_rows(image_ids: Sequence[str], image_labels: Tensor) -> dict[str, int]:
    """First row of each id."""
    rows: dict[str, int] = {}
    for row, image_id in enumerate(map(str, image_ids)):
        first = rows.setdefault(image_id, row)
        if first != row and not torch.equal(image_labels[first], image_labels[row]):
            raise InputError(
                f'image {image_id!r} stands in the training set twice with different '
                'image labels; keep one of the two'
            )
    return rows


def _slot_table(labels: Tensor) -> Tensor:
    """(M, K) 0/1 -> (M + 1, C) int32: slots one after the other, absent ones last."""
    has_slot = torch.ones(len(labels) + 1, labels.shape[1] + 1, dtype=torch.bool)
    has_slot[:-1, 1:] = labels > 0
    has_slot[-1] = False
    number = has_slot.flatten().cumsum(0).view(has_slot.shape) - 1
    return torch.where(has_slot, number, has_slot.sum()).to(torch.int32)


def _gather_visits(rows: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N,) and labels (N, G, G) of all processes, in the order of the ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows, seen
    if dist.get_world_size() == 1:
        return rows, seen
    # One message of bytes: eight of the row, then the labels.
    message = torch.cat([rows[:, None].view(torch.uint8), seen.flatten(1)], dim=1)
    gathered = [torch.empty_like(message) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, message)
    message = torch.cat(gathered)
    rows = message[:, :8].contiguous().view(torch.int64)[:, 0]
    return rows, message[:, 8:].unflatten(1, seen.shape[1:])
