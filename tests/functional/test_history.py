import math

import pytest
import torch

from mmwsss.functional.history import (
    decay_histogram,
    label_on_image_grid,
    pack_counts,
    read_history,
    unpack_counts,
)

WHOLE = [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]  # rows, columns: scale, offset, extent


def affine(*images):
    return torch.tensor(images, dtype=torch.float32)


def random_affine(generator, n):
    """Crops, flips and paddings of all kinds; some reach out of the photo."""
    scale = torch.rand(n, 2, generator=generator) * 1.2 + 0.1
    flip = torch.rand(n, 2, generator=generator) < 0.5
    offset = torch.rand(n, 2, generator=generator) * 1.4 - 0.2
    extent = torch.rand(n, 2, generator=generator) * 0.6 + 0.4
    return torch.stack([torch.where(flip, -scale, scale), offset, extent], dim=-1)


def slow_read(maps, where, size):
    n, s, g, _ = maps.shape
    out = torch.zeros(n, s, *size, dtype=torch.float64)
    for i in range(n):
        for row in range(size[0]):
            for column in range(size[1]):
                place = []
                for axis, cell in enumerate((row, column)):
                    x = (cell + 0.5) / size[axis]
                    scale, offset, extent = where[i, axis].tolist()
                    v = scale * x + offset
                    place.append(v if 0 <= v <= 1 and x < extent else None)
                if None in place:
                    continue
                for c in range(s):
                    total = 0.0
                    for r in range(g):
                        for q in range(g):
                            # The tent of each cell's centre; beyond the outermost
                            # centres the outermost cell alone counts.
                            v = min(max(place[0] * g - 0.5, 0), g - 1)
                            u = min(max(place[1] * g - 0.5, 0), g - 1)
                            tent = max(0, 1 - abs(v - r)) * max(0, 1 - abs(u - q))
                            total += tent * maps[i, c, r, q].item()
                    out[i, c, row, column] = total
    return out


def slow_write(label, where, g):
    n, h, w = label.shape
    out = torch.full((n, g, g), 255)
    for i in range(n):
        for row in range(g):
            for column in range(g):
                index = []
                for axis, cell, cells in ((0, row, h), (1, column, w)):
                    scale, offset, extent = where[i, axis].tolist()
                    x = ((cell + 0.5) / g - offset) / scale
                    index.append(math.floor(x * cells) if 0 <= x < extent else None)
                if None not in index:
                    out[i, row, column] = label[i, index[0], index[1]]
    return out


@pytest.mark.parametrize('size', [(5, 7), (1, 1), (12, 3)])
@pytest.mark.parametrize('g', [1, 6])
def test_warps_equal_the_slow_form(size, g):
    generator = torch.Generator().manual_seed(g)
    where = random_affine(generator, 8)
    maps = torch.rand(8, 2, g, g, generator=generator)
    expected = slow_read(maps, where, size)
    assert (expected == 0).any() or size == (1, 1)
    torch.testing.assert_close(
        read_history(maps, where, size).double(), expected, atol=1e-5, rtol=0
    )
    label = torch.randint(0, 4, (8, *size), generator=generator)
    # Doubles on both sides, so that no centre falls to the other side of an edge.
    found = label_on_image_grid(label, where.double(), g)
    torch.testing.assert_close(found, slow_write(label, where, g))


def test_a_whole_photo_on_its_own_grid_stays_as_it_is():
    maps = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(read_history(maps, affine(WHOLE), (4, 4)), maps)
    label = torch.randint(0, 5, (1, 4, 4))
    assert torch.equal(label_on_image_grid(label, affine(WHOLE), 4), label)


def test_a_known_crop_scale_and_flip_by_hand():
    # The crop is the photo's lower right quarter, mirrored, and fills the left three
    # quarters of an input of 4 x 4 cells, whose right column is padding: photo
    # columns run from 1 down to 0.5 while x runs from 0 to 0.75.
    crop = affine([[0.5, 0.5, 1.0], [-0.5 / 0.75, 1.0, 0.75]])
    label = torch.tensor([[[1, 2, 3, 9], [4, 5, 6, 9], [7, 8, 0, 9], [1, 1, 1, 9]]])
    # A 4 x 4 grid: rows 2, 3 have their centres at .25 and .75 of the crop, which are
    # input rows 1 and 3; columns 2, 3 are at .75 and .25 of the mirrored crop, 2.25
    # and .75 cells from the left.
    expected = torch.full((1, 4, 4), 255)
    expected[0, 2, 2:] = torch.tensor([6, 4])
    expected[0, 3, 2:] = torch.tensor([1, 1])
    assert torch.equal(label_on_image_grid(label, crop, 4), expected)
    # Reading a ramp along the columns: 0.125, 0.375, 0.625, 0.875 at the centres.
    ramp = ((torch.arange(4) + 0.5) / 4).expand(1, 1, 4, 4)
    found = read_history(ramp, crop, (4, 4))
    # Cell centres at x = 1/8, 3/8, 5/8 show 11/12, 9/12, 7/12 of the photo; the first
    # lies beyond the outermost centre, 7/8. The padding reads zero.
    expected = torch.tensor([7 / 8, 9 / 12, 7 / 12, 0.0]).expand(1, 1, 4, 4)
    torch.testing.assert_close(found, expected)


def test_what_one_crop_wrote_another_reads_at_its_place():
    def world(rows, columns):  # four fields of the photo
        return 2 * (rows > 0.55).long() + (columns > 0.45).long()

    def places(where, h, w):
        axes = []
        for axis, cells in enumerate((h, w)):
            scale, offset, _ = where[axis]
            axes.append(scale * (torch.arange(cells) + 0.5) / cells + offset)
        return torch.meshgrid(*axes, indexing='ij')

    wide = [[0.8, 0.1, 1.0], [-0.9, 0.95, 1.0]]
    near = [[-0.3, 0.7, 1.0], [0.3, 0.3, 1.0]]
    label = world(*places(wide, 64, 64))[None]
    seen = label_on_image_grid(label, affine(wide), 32)
    counts = decay_histogram(torch.zeros(1, 4, 32, 32), seen)
    found = read_history(counts, affine(near), (9, 9))
    rows, columns = places(near, 9, 9)
    # Away from the borders of the fields by more than a cell of the history.
    clear = ((rows - 0.55).abs() > 1 / 16) & ((columns - 0.45).abs() > 1 / 16)
    assert clear.sum() > 20
    expected = world(rows, columns)
    assert len(expected[clear].unique()) == 4
    assert torch.equal(found.argmax(1)[0][clear], expected[clear])
    torch.testing.assert_close(found.max(1)[0][0][clear], torch.ones(9, 9)[clear])


def test_flipped_inputs_read_flipped():
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(2, 3, 8, 8, generator=generator)
    crop = affine(*[[[0.6, 0.2, 1.0], [0.7, 0.15, 1.0]]] * 2)
    flipped = affine(*[[[0.6, 0.2, 1.0], [-0.7, 0.85, 1.0]]] * 2)
    straight = read_history(maps, crop, (5, 6))
    torch.testing.assert_close(read_history(maps, flipped, (5, 6)), straight.flip(3))
    label = torch.randint(0, 9, (2, 5, 6), generator=generator)
    assert torch.equal(
        label_on_image_grid(label, crop, 8),
        label_on_image_grid(label.flip(2), flipped, 8),
    )


def test_reading_keeps_range_dtype_and_carries_no_gradient():
    where = random_affine(torch.Generator().manual_seed(0), 4)
    maps = torch.rand(4, 2, 8, 8)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        found = read_history(maps.to(dtype), where, (6, 6))
        assert found.dtype == dtype
        assert found.min() >= 0
        assert found.max() <= 1
        torch.testing.assert_close(
            found.float(), read_history(maps, where, (6, 6)), atol=0.01, rtol=0
        )
    assert not read_history(maps.requires_grad_(), where, (6, 6)).requires_grad
    assert (
        read_history(torch.zeros(0, 2, 8, 8), torch.zeros(0, 2, 3), (3, 3)).numel() == 0
    )


@pytest.mark.parametrize('decay', [0.0, 0.5, 0.8])
def test_histogram_equals_a_loop_over_the_visits(decay):
    generator = torch.Generator().manual_seed(5)
    photo = torch.tensor([7, 3, 7, 7, 0, 3])
    before = {p: torch.rand(4, 3, 3, generator=generator) for p in (7, 3, 0)}
    label = torch.randint(0, 5, (6, 3, 3), generator=generator)
    label[label == 4] = 255
    assert (label == 255).any()
    counts = torch.stack([before[p] for p in photo.tolist()])
    found = decay_histogram(counts, label, decay=decay, photo=photo)
    after = {p: value.double() for p, value in before.items()}
    for p, seen in zip(photo.tolist(), label, strict=True):
        for row in range(3):
            for column in range(3):
                if seen[row, column] != 255:
                    after[p][:, row, column] *= decay
                    after[p][seen[row, column], row, column] += 1
    expected = torch.stack([after[p] for p in photo.tolist()]).float()
    torch.testing.assert_close(found, expected)
    alone = decay_histogram(counts[[0, 1, 4]], label[[0, 1, 4]], decay=decay)
    numbered = decay_histogram(
        counts[[0, 1, 4]], label[[0, 1, 4]], decay=decay, photo=photo[[0, 1, 4]]
    )
    torch.testing.assert_close(alone, numbered)


def test_counts_add_up_to_at_most_the_memory_and_forget():
    counts = torch.zeros(1, 3, 1, 1)
    for _ in range(60):
        counts = decay_histogram(counts, torch.ones(1, 1, 1, dtype=torch.int64))
    torch.testing.assert_close(counts.flatten(), torch.tensor([0.0, 5.0, 0.0]))
    for visit in range(1, 6):
        counts = decay_histogram(counts, torch.zeros(1, 1, 1, dtype=torch.int64))
        assert counts[0, 1].item() == pytest.approx(5 * 0.8**visit, rel=1e-5)
    unseen = decay_histogram(counts, torch.full((1, 1, 1), 255))
    assert torch.equal(unseen, counts)


def test_bytes_stay_close_to_the_exact_history():
    generator = torch.Generator().manual_seed(2)
    exact = torch.zeros(1, 3, 20, 20, dtype=torch.float64)
    packed = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    for _ in range(40):
        label = torch.randint(0, 3, (1, 20, 20), generator=generator)
        exact = decay_histogram(exact, label)
        packed = pack_counts(decay_histogram(unpack_counts(packed), label))
        error = (unpack_counts(packed).double() - exact).abs().max()
        # The bound of the docstring: 0.5 / (255 * 0.2^2).
        assert error <= 0.5 / (255 * 0.04) + 1e-6


def test_bytes_by_hand():
    counts = torch.tensor([0.0, 1.0, 1.8, 5.0, 6.0])
    packed = pack_counts(counts)
    assert packed.tolist() == [0, 51, 92, 255, 255]
    assert packed.dtype == torch.uint8
    every = torch.arange(256).to(torch.uint8)
    for decay in (0.0, 0.5, 0.8, 0.95):
        restored = pack_counts(unpack_counts(every, decay=decay), decay=decay)
        assert torch.equal(restored, every)


def test_wrong_arguments_are_named():
    maps, label = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 5, dtype=torch.int64)
    two = affine(WHOLE, WHOLE)
    with pytest.raises(ValueError, match=r'affine must be \(2, 2, 3\)'):
        read_history(maps, affine(WHOLE), (4, 4))
    with pytest.raises(ValueError, match=r'affine must be float32'):
        read_history(maps, two.half(), (4, 4))
    with pytest.raises(ValueError, match=r'maps must be \(N, S, G, G\)'):
        read_history(maps[..., :2], two, (4, 4))
    with pytest.raises(ValueError, match=r'floating point, got torch\.uint8'):
        read_history(maps.to(torch.uint8), two, (4, 4))
    with pytest.raises(ValueError, match=r'size must be'):
        read_history(maps, two, (0, 4))
    with pytest.raises(ValueError, match=r'label must be \(N, h, w\) integers'):
        label_on_image_grid(maps[:, 0], two, 4)
    with pytest.raises(ValueError, match=r'grid_size must be at least 1, got 0'):
        label_on_image_grid(label, two, 0)
    with pytest.raises(ValueError, match=r'do not belong together'):
        decay_histogram(maps, label)
    with pytest.raises(ValueError, match=r'photo must be \(2,\)'):
        decay_histogram(maps, label[:, :4, :4], photo=torch.zeros(3))
    for decay in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=r'decay must be in'):
            decay_histogram(maps, label[:, :4, :4], decay=decay)
        with pytest.raises(ValueError, match=r'decay must be in'):
            pack_counts(maps, decay=decay)
        with pytest.raises(ValueError, match=r'decay must be in'):
            unpack_counts(label.to(torch.uint8), decay=decay)
