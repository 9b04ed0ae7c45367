"""What the network said about each training photo on earlier visits."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.dist import get_dist_info
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

_SAVED_BUFFERS = ('image_keys', 'image_labels', 'fingerprint')


@MODELS.register_module()
class PredictionHistory(nn.Module):
    """A decayed histogram of predicted classes on a fixed grid over each photo.

    Kept as bytes, for the background and the image's own classes only: G * G of them
    for each (28 MB for the 10,582 photos of VOC at G = 32).

    In a distributed training the W processes share the photos, and each holds one
    W-th of the bytes: photo i is with rank i % W. ``prepare``, which begins a
    training, is what deals them out. From then on

    * ``read`` and ``update`` of a training step exchange what is needed among the
      processes, and give what one process would have got from the joint batch;
    * whatever is not a training step goes through ``merged``, where the whole history
      is at hand and nothing is exchanged. A checkpoint is written in there and always
      holds the whole of it, so that any number of processes can go on from it.

    Without ``prepare`` (evaluation, making labels) the history of a checkpoint is
    there as a whole in every process, and reading never exchanges anything.

    Until ``prepare`` or a checkpoint fills it, it is empty and reads as zeros.

    Args:
        grid_size: G, cells per side of a photo.
        decay: share of the counts that a visit leaves, in [0, 1).
    """

    image_keys: Tensor  # (M,) int64, a hash of each image id
    image_labels: Tensor  # (M, K) uint8
    fingerprint: Tensor  # (16,) uint8 of the two above and the settings
    # These two are of the m photos of this process. In one process m is M and they are
    # buffers; else they are not, since wrappers and hooks of a distributed training
    # may overwrite buffers with those of rank 0 or average them.
    bank: Tensor  # (slots + 1, G, G) uint8; the last slot stays zero
    slots: Tensor  # (m + 1, C) int32 into bank; the last row is for other photos

    def __init__(self, *, grid_size: int = 32, decay: float = 0.8) -> None:
        super().__init__()
        if grid_size < 1:
            raise ValueError(f'grid_size must be at least 1, got {grid_size}')
        if not 0 <= decay < 1:
            raise ValueError(f'decay must be in [0, 1), got {decay}')
        self.grid_size = grid_size
        self.decay = decay
        self.prepared = False
        # Bank and slots of all photos, on the CPU; there inside of ``merged`` only.
        self._whole: tuple[Tensor, Tensor] | None = None
        no_images = torch.zeros(0, dtype=torch.int64)
        no_labels = torch.zeros(0, 0, dtype=torch.uint8)
        for name in _SAVED_BUFFERS:
            self.register_buffer(name, None)
        self._set_images(no_images, no_labels, torch.device('cpu'))

    # --------------------------------------------------------------------- filling
    def prepare(self, image_ids: Sequence[str], image_labels: Tensor) -> None:
        """Make room for the photos of a training set; nothing is remembered yet.

        A history that a checkpoint filled before keeps what it holds, if it was made
        for these photos. In a distributed run every process calls this with the same
        arguments and keeps the part of the photos that are its own.

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
        if not self.prepared:
            adopted = self.bank if len(self.image_keys) else None
            self._set_images(keys, labels, self.bank.device, part=get_dist_info())
            if adopted is not None:
                self._fill(adopted)
        self.prepared = True

    def _set_images(
        self,
        keys: Tensor,
        labels: Tensor,
        device: torch.device,
        *,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Empty room for photos; ``part`` is (rank, W) of those who share them."""
        self.rank, self.num_parts = part
        self._blank = True
        own = labels[self.rank :: self.num_parts]
        self._hold('bank', self._empty_bank(own).to(device), persistent=True)
        self._hold('slots', _slot_table(own).to(device), persistent=False)
        self.image_keys = keys.to(device)
        self.image_labels = labels.to(device)
        self.fingerprint = self._fingerprint(keys, labels).to(device)
        self._rows = {key: row for row, key in enumerate(keys.tolist())}

    def _empty_bank(self, labels: Tensor) -> Tensor:
        number_of_slots = len(labels) + int(labels.sum())
        grid = (self.grid_size, self.grid_size)
        return torch.zeros(number_of_slots + 1, *grid, dtype=torch.uint8)

    def _hold(self, name: str, value: Tensor, *, persistent: bool) -> None:
        if hasattr(self, name):
            delattr(self, name)
        if self.num_parts == 1:
            self.register_buffer(name, value, persistent=persistent)
        else:
            setattr(self, name, value)

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        """What to(), cuda() and half() do to buffers."""
        super()._apply(fn, recurse)
        if self.num_parts > 1:
            self.bank, self.slots = fn(self.bank), fn(self.slots)
        return self

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

    # ------------------------------------------------------------------- checkpoint
    @contextmanager
    def merged(self, *, everywhere: bool = False) -> Iterator[None]:
        """Bring the parts of all processes together for a while, on the CPU.

        Inside, ``state_dict`` and ``read`` work on the whole history and exchange
        nothing more, so that a single process may save or look something up. In one
        process, and for a history that is not prepared, nothing happens.

        Every process of a distributed training must enter this. The parts go round
        one by one: no device holds more than two of them.

        Args:
            everywhere: put the whole together in every process, not in rank 0 alone.
        """
        if self.num_parts > 1:
            self._whole = self._collect(keep=everywhere or self.rank == 0)
        try:
            yield
        finally:
            self._whole = None

    def _collect(self, *, keep: bool) -> tuple[Tensor, Tensor] | None:
        labels = self.image_labels.cpu()
        slots = _slot_table(labels)
        whole = self._empty_bank(labels) if keep else None
        for source in range(self.num_parts):
            own = _slots_of_part(slots, source, self.num_parts)
            part = self.bank
            if source != self.rank:
                part = part.new_empty(len(own) + 1, *part.shape[1:])
            dist.broadcast(part, source)
            if keep:
                whole[own] = part[:-1].cpu()
        return None if whole is None else (whole, slots)

    def _fill(self, whole: Tensor) -> None:
        """Keep this process's part of the bank of all photos."""
        slots = _slot_table(self.image_labels.cpu())
        own = _slots_of_part(slots, self.rank, self.num_parts)
        self.bank[:-1] = whole[own.to(whole.device)].to(self.bank.device)
        self._blank = False

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.num_parts == 1:
            return
        if self._whole is not None:
            destination[prefix + 'bank'] = self._whole[0]
        elif self._blank:
            # MMEngine takes a state dict to make all processes start alike.
            destination[prefix + 'bank'] = self._empty_bank(self.image_labels)
        else:
            raise InputError(
                f'each of the {self.num_parts} processes holds a part of the history '
                'of predictions, and state_dict() alone would save one part only; set '
                "default_hooks.checkpoint to dict(type='mmwsss.CheckpointHook', ...), "
                'which puts them together first'
            )

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        names = ('bank', *_SAVED_BUFFERS)
        found = {name: state_dict.get(prefix + name) for name in names}
        if all(value is not None for value in found.values()):
            if self.prepared:
                self._require_same(found['fingerprint'])
            else:
                self._adopt(found)
            if self.num_parts > 1:
                self._fill(found['bank'])
        if self.num_parts > 1:
            # No buffer here, so torch would call it unexpected.
            bank = prefix + 'bank'
            state_dict = {k: v for k, v in state_dict.items() if k != bank}
        super()._load_from_state_dict(state_dict, prefix, *args)

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

        In a distributed training step every process must call this, with equally
        many images: all tell all which N photos they need, and the answers of the W
        processes are added up. That is W * N * (8 + C * G * G) bytes a step, 1.4 MB
        for VOC and 1.3 MB for COCO (G = 16) with 8 processes of batch 8. Outside of
        a step (eval mode) it is for ``merged``, where nothing is exchanged.

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
            RuntimeError: in eval mode outside of ``merged``, if other processes hold
                a part of the history.
        """
        n, k = image_label.shape
        if not self._rows:
            return image_label.new_zeros(n, k + 1, *size, dtype=torch.float32)
        self._check_classes(k)
        stored = self._stored(self._rows_of(data_samples))
        counts = unpack_counts(stored, decay=self.decay)
        background = image_label.new_ones(n, 1)
        allowed = torch.cat([background, image_label], dim=1) > 0
        return read_history(counts * allowed[:, :, None, None], affine, size)

    def _stored(self, rows: Tensor) -> Tensor:
        """(N,) photos -> (N, C, G, G) uint8, whoever holds them."""
        if self._whole is not None:
            bank, slots = self._whole
            return bank[slots[rows.cpu()].long()].to(rows.device)
        if self.num_parts == 1:
            return self.bank[self.slots[rows].long()]
        if not self.training:
            raise RuntimeError(
                'a history of predictions that is spread over processes was read in '
                'eval mode, where the others may not be there to answer; let every '
                'process enter its merged(everywhere=True) first'
            )
        wanted = self._own_rows(_gather(rows))
        stored = self.bank[self.slots[wanted].long()]
        # All but the owner of a photo add zeros.
        dist.all_reduce(stored)
        return stored.unflatten(0, (self.num_parts, -1))[self.rank]

    @torch.no_grad()
    def update(self, data_samples: list, label: Tensor, affine: Tensor) -> None:
        """Count one visit of each photo of the batch.

        In a distributed run the visits of all processes are applied in the order of
        their ranks, as if they were one batch; every process must call this, with
        equally many images, and counts those of its own photos. The message of each
        is N * (8 + G * G) bytes, 8 kB for eight images at G = 32. Photos that the
        history does not hold are left out. Several visits to one photo are applied in
        their order, and rounded once.

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
        slots = self.slots[self._own_rows(rows)].long()  # (N, C)
        counts = decay_histogram(
            unpack_counts(self.bank[slots], decay=self.decay),
            seen,
            decay=self.decay,
            photo=rows,
        )
        packed = pack_counts(counts, decay=self.decay)
        # Absent classes and photos that are unknown or another process's share the
        # last slot, which stays zero.
        real = slots != len(self.bank) - 1
        self.bank[slots] = packed * real[:, :, None, None]
        self._blank = False

    def _rows_of(self, data_samples: list) -> Tensor:
        unknown = len(self._rows)
        rows = [
            self._rows.get(_key(_image_id(sample.metainfo)), unknown)
            for sample in data_samples
        ]
        return torch.tensor(rows).to(self.bank.device, non_blocking=True)

    def _own_rows(self, rows: Tensor) -> Tensor:
        """Rows among all photos -> rows of ``slots``; the last for those of others."""
        own = rows % self.num_parts == self.rank
        # Unknown photos have the number of all photos. Divided, that is the last row.
        return torch.where(own, rows // self.num_parts, len(self.slots) - 1)

    def _check_classes(self, k: int) -> None:
        if k != self.image_labels.shape[1]:
            raise ValueError(
                f'the history is of {self.image_labels.shape[1]} classes, '
                f'image_label of {k}'
            )


@contextmanager
def merged_histories(
    histories: Iterable[PredictionHistory], *, everywhere: bool = False
) -> Iterator[None]:
    """``PredictionHistory.merged`` of several at once."""
    with ExitStack() as stack:
        for history in histories:
            stack.enter_context(history.merged(everywhere=everywhere))
        yield


def find_histories(model: nn.Module) -> list[PredictionHistory]:
    """All histories in a model."""
    return [m for m in model.modules() if isinstance(m, PredictionHistory)]


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


def _slots_of_part(slots: Tensor, rank: int, num_parts: int) -> Tensor:
    """Where the slots of one process lie among all: (slots,) int64, in its order."""
    own = slots[:-1][rank::num_parts]
    return own[own < slots[-1, 0]].long()


def _gather_visits(rows: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N,) and labels (N, G, G) of all processes, in the order of the ranks."""
    if get_dist_info()[1] == 1:
        return rows, seen
    # One message of bytes: eight of the row, then the labels.
    message = torch.cat([rows[:, None].view(torch.uint8), seen.flatten(1)], dim=1)
    message = _gather(message)
    rows = message[:, :8].contiguous().view(torch.int64)[:, 0]
    return rows, message[:, 8:].unflatten(1, seen.shape[1:])


def _gather(local: Tensor) -> Tensor:
    """(N, ...) of each process -> (W * N, ...) in the order of the ranks."""
    gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, local)
    return torch.cat(gathered)
