"""Runs of pixels: how COCO, CVAT and Label Studio write a mask as numbers.

All three are written from their descriptions: COCO's ``maskApi``, CVAT's XML 1.1 and
``rle-pack``, which Label Studio's brush uses.
"""

from collections.abc import Sequence

import numpy as np

# Of a run in Label Studio's brush, the bits of its length to choose from.
_BRUSH_BITS = (3, 4, 8, 16)


def run_lengths(values: np.ndarray) -> list[int]:
    """Lengths of the runs of a flat bool array, that of False first (maybe 0)."""
    if not values.size:
        return []
    ends = np.flatnonzero(np.diff(values, append=~values[-1:])) + 1
    lengths = np.diff(ends, prepend=0).tolist()
    return [0, *lengths] if values[0] else lengths


def from_run_lengths(lengths: Sequence[int], count: int) -> np.ndarray:
    """The flat bool array (count,) of such lengths.

    Raises:
        ValueError: They do not add up to ``count``.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if (lengths < 0).any() or lengths.sum() != count:
        raise ValueError(
            f'the runs add up to {int(lengths.sum())} pixels, but there are {count}'
        )
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


# ------------------------------------------------------------------------------- COCO
def coco_counts(mask: np.ndarray) -> str:
    """A mask (H, W) as COCO's compressed runs, column by column."""
    lengths = run_lengths(np.asarray(mask, bool).ravel(order='F'))
    text = []
    for position, length in enumerate(lengths):
        # From the third on, the change against the run two before.
        number = length - lengths[position - 2] if position > 2 else length
        while True:
            low, number = number & 31, number >> 5
            more = number != (-1 if low & 16 else 0)
            text.append(chr(48 + (low | 32 * more)))
            if not more:
                break
    return ''.join(text)


def from_coco_counts(counts: str | Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The mask (H, W) of COCO's runs, compressed or as a list.

    Raises:
        ValueError: They are not runs of a mask of that size.
    """
    lengths = _decompressed(counts) if isinstance(counts, str) else list(counts)
    height, width = (int(side) for side in size)
    return from_run_lengths(lengths, height * width).reshape(height, width, order='F')


def _decompressed(text: str) -> list[int]:
    lengths: list[int] = []
    number, shift = 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError(f'{letter!r} is no part of compressed runs')
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        lengths.append(number + lengths[-2] if len(lengths) > 2 else number)
        number, shift = 0, 0
    if shift:
        raise ValueError('the compressed runs end in the middle of a number')
    return lengths


# ----------------------------------------------------------------------- Label Studio
def brush_bytes(mask: np.ndarray) -> list[int]:
    """A mask (H, W) as Label Studio's brush: packed runs of RGBA bytes, all alike."""
    values = np.repeat(np.where(np.asarray(mask, bool).ravel(), 255, 0), 4)
    ends = np.flatnonzero(np.diff(values, append=-1)) + 1
    bits = [f'{values.size:032b}', f'{8 - 1:05b}']
    bits += [f'{size - 1:04b}' for size in _BRUSH_BITS]
    begin = 0
    for end in ends.tolist():
        value = int(values[begin])
        while begin < end:
            length = min(end - begin, 1 << _BRUSH_BITS[-1])
            index = next(i for i, b in enumerate(_BRUSH_BITS) if length <= 1 << b)
            bits.append(f'1{index:02b}{length - 1:0{_BRUSH_BITS[index]}b}{value:08b}')
            begin += length
    packed = ''.join(bits)
    packed += '0' * (-len(packed) % 8)
    return list(int(packed, 2).to_bytes(len(packed) // 8, 'big'))


def from_brush_bytes(packed: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The mask (H, W) of Label Studio's brush: where its alpha is above 0.

    Raises:
        ValueError: It is damaged or of another size.
    """
    bits = ''.join(f'{byte:08b}' for byte in bytes(packed))
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ValueError('the brush runs end too early')
        return int(bits[place - count : place], 2) if count else 0

    height, width = (int(side) for side in size)
    total, word = read(32), read(5) + 1
    if total != 4 * height * width:
        raise ValueError(
            f'the brush runs are of {total // 4} pixels, but the photo has '
            f'{height * width}'
        )
    sizes = [read(4) + 1 for _ in range(4)]
    values = np.zeros(total, dtype=np.int64)
    done = 0
    while done < total:
        repeated, length = read(1), read(sizes[read(2)]) + 1
        end = min(done + length, total)
        if repeated:
            values[done:end] = read(word)
        else:
            values[done:end] = [read(word) for _ in range(end - done)]
        done = end
    return values.reshape(height, width, 4)[..., 3] > 0
