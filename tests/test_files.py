"""Files that are whole or not there, check sums, locks."""

import io
import os
import threading

import numpy as np
import pytest
from PIL import Image

from mmwsss.apis.label_folders import read_label_map
from mmwsss.datasets import CAMStore, LoadMask, StoredCAMs
from mmwsss.errors import InputError
from mmwsss.files import (
    is_whole,
    open_lock,
    png_damage,
    remove_abandoned,
    take_lock,
    whole_file,
    write_text,
)


@pytest.fixture
def mask(tmp_path):
    """A palette PNG as the tools write it."""
    values = np.random.default_rng(0).integers(0, 3, (12, 16)).astype(np.uint8)
    picture = Image.fromarray(values).convert('P')
    picture.putpalette(bytes(range(256)) * 3)
    picture.save(tmp_path / 'mask.png')
    return tmp_path / 'mask.png', values


def spoilt(content, step=1):
    """Cut anywhere, and one bit changed anywhere."""
    for place in range(0, len(content), step):
        yield 'cut', place, content[:place]
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        yield 'bit', place, bytes(changed)


def test_a_mask_that_is_cut_off_or_changed_is_never_read(mask):
    path, values = mask
    whole = path.read_bytes()
    assert np.array_equal(read_label_map(path), values)
    load = LoadMask(num_classes=3)
    given = {'seg_map_path': str(path), 'ori_shape': values.shape}
    assert np.array_equal(load.transform(given)['gt_seg_map'], values)
    decoded = 0
    for _, _, content in spoilt(whole):
        path.write_bytes(content)
        assert png_damage(content) is not None
        assert not is_whole(path)
        with pytest.raises(InputError, match='cannot be read'):
            read_label_map(path)
        with pytest.raises(InputError, match=r'cannot be read \('):
            load.transform(dict(given))
        try:
            np.array(Image.open(io.BytesIO(content)))
            decoded += 1
        except (OSError, SyntaxError, ValueError):
            pass
    # Pillow alone would have handed these out.
    assert decoded > 20


def test_stored_cams_that_are_cut_off_or_changed_are_never_other_cams(tmp_path):
    store = CAMStore(tmp_path)
    cams = np.random.default_rng(0).random((2, 3, 4), dtype=np.float32)
    store.write('a', StoredCAMs(np.array([0, 2]), cams, (12, 16)))
    path = store.path('a')
    whole, before = path.read_bytes(), store.read('a')
    assert is_whole(path)
    refused, told = 0, set()
    for _, _, content in spoilt(whole):
        path.write_bytes(content)
        try:
            read = store.read('a')
        except InputError as error:
            told.add('delete it and make it again' in str(error))
            refused += 1
            continue
        # A time or an attribute that means nothing.
        assert np.array_equal(read.cams, before.cams)
        assert np.array_equal(read.classes, before.classes)
        assert read.size == before.size
    assert refused > len(whole)
    assert told == {True}


def test_a_text_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    path, order = tmp_path / 'a.json', []
    write_text(path, 'old')

    def noted(name):
        call = getattr(os, name)

        def inner(*given):
            order.append(name)
            assert path.read_text() == 'old'
            return call(*given)

        return inner

    for name in ('fsync', 'replace'):
        monkeypatch.setattr(os, name, noted(name))
    write_text(path, 'new')
    # Renamed before it is on the disk, it could be empty after a power cut.
    assert order == ['fsync', 'replace']
    assert path.read_text() == 'new'
    monkeypatch.undo()

    def full(handle):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(InputError, match=r'a\.json cannot be written .*No space left'):
        write_text(path, 'newer')
    assert [p.name for p in tmp_path.iterdir()] == ['a.json']
    assert path.read_text() == 'new'


def test_what_dead_processes_left_goes_with_the_next_writing(tmp_path):
    left = tmp_path / '.a.json.1-0.tmp'
    left.touch()
    of_another = tmp_path / '.b.json.1-0.tmp'
    of_another.touch()
    write_text(tmp_path / 'a.json', 'x')
    assert not left.exists()
    assert of_another.exists()
    with whole_file(tmp_path / 'c') as stream:
        remove_abandoned(tmp_path.glob('.*.tmp'))
        stream.write(b'c')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.json', 'c']


def test_two_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / 'a'

    def write(letter):
        for _ in range(50):
            with whole_file(path) as stream:
                stream.write(letter * 5000)
                stream.write(letter * 5000)
            assert len(set(path.read_bytes())) == 1

    threads = [threading.Thread(target=write, args=(x,)) for x in (b'x', b'y')]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.stat().st_size == 10000
    assert [p.name for p in tmp_path.iterdir()] == ['a']


def test_locks_are_shared_or_not(tmp_path):
    path = tmp_path / 'new/.lock'
    with open_lock(path) as first, open_lock(path) as second:
        assert take_lock(first)
        assert not take_lock(second)
        assert not take_lock(second, shared=True)
        assert take_lock(first, shared=True)
        assert take_lock(second, shared=True)
        assert not take_lock(second)
        assert path.read_text() == f'{os.getpid()}\n'
    with open_lock(path) as third:
        assert take_lock(third)
