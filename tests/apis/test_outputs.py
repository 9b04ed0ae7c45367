import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from mmwsss.apis import outputs
from mmwsss.apis.cli import Counts
from mmwsss.apis.outputs import (
    MARKER,
    OutputFolder,
    file_hash,
    make_missing,
    text_hash,
)
from mmwsss.errors import InputError, UnreadablePhoto
from mmwsss.files import whole_file


def folder(root, *, settings=None, inputs=None, two=False):
    names = ('x', 'y') if two else ('x',)
    return OutputFolder(
        root,
        what='maps',
        settings={'threshold': 0.5, 'pair': (1, 2)} | (settings or {}),
        inputs=inputs or {'a': '1', 'b': '1', 'sub/c': '1'},
        files=lambda image_id: [root / n / f'{image_id}.txt' for n in names],
        notes={'network': 'net.pth'},
    )


def make(out, ids):
    for image_id in ids:
        for path in out.files(image_id):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(image_id)


def there(root):
    return sorted(p.relative_to(root / 'x').as_posix() for p in root.rglob('*.txt'))


def test_it_names_what_is_missing(tmp_path):
    out = folder(tmp_path)
    assert out.open() == ['a', 'b', 'sub/c']
    make(out, ['b'])
    assert folder(tmp_path).open() == ['a', 'sub/c']
    make(out, ['a', 'sub/c'])
    assert folder(tmp_path).open() == []
    # A second kind of file is missing for all of them.
    assert folder(tmp_path, two=True).open() == ['a', 'b', 'sub/c']


def test_a_plan_is_what_open_would_do_and_changes_nothing(tmp_path):
    out = folder(tmp_path)
    assert out.plan() == ['a', 'b', 'sub/c']
    assert not list(tmp_path.iterdir())
    make(out, ['b'])
    with pytest.raises(InputError, match='says what it was made from'):
        out.plan()
    assert out.plan(overwrite=True) == ['a', 'b', 'sub/c']
    out.open(overwrite=True)
    make(out, ['a', 'b'])
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    assert out.plan() == ['sub/c']
    # One photo has changed, then a setting of all.
    changed = folder(tmp_path, inputs={'a': '2', 'b': '1', 'sub/c': '1'})
    assert changed.plan() == ['a', 'sub/c']
    other = folder(tmp_path, settings={'threshold': 0.7})
    with pytest.raises(InputError, match='another threshold'):
        other.plan()
    assert other.plan(overwrite=True) == ['a', 'b', 'sub/c']
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before
    assert changed.open() == ['a', 'sub/c']


def test_other_settings_are_refused_in_one_sentence_and_lose_nothing(tmp_path):
    out = folder(tmp_path)
    out.open()
    make(out, ['a', 'b'])
    before = (tmp_path / MARKER).read_text()
    other = folder(tmp_path, settings={'threshold': 0.7, 'network': 'abc'})
    with pytest.raises(InputError) as caught:
        other.open()
    assert str(caught.value) == (
        f'{tmp_path} holds maps made with another threshold (and 1 more): it was 0.5 '
        'and is now 0.7; give another --out, or add --overwrite to make all of them '
        'again'
    )
    assert (tmp_path / MARKER).read_text() == before
    assert there(tmp_path) == ['a.txt', 'b.txt']
    assert other.open(overwrite=True) == ['a', 'b', 'sub/c']
    assert there(tmp_path) == []
    make(other, ['a'])
    with pytest.raises(InputError, match=r'another network: it was net\.pth and is '):
        folder(tmp_path, settings={'threshold': 0.7}).open()


def test_settings_that_left_nothing_behind_bind_nobody(tmp_path):
    folder(tmp_path, settings={'threshold': 'a typing error'}).open()
    out = folder(tmp_path)
    make(out, out.open())
    assert folder(tmp_path).open() == []


def test_overwriting_with_the_same_settings_keeps_what_is_right(tmp_path):
    out = folder(tmp_path)
    out.open()
    make(out, ['a'])
    assert folder(tmp_path).open(overwrite=True) == ['b', 'sub/c']
    assert there(tmp_path) == ['a.txt']


def test_a_changed_input_removes_its_own_files_alone(tmp_path):
    out = folder(tmp_path)
    make(out, out.open())
    changed = folder(tmp_path, inputs={'a': '1', 'b': '2', 'sub/c': '1'})
    assert changed.open() == ['b']
    assert there(tmp_path) == ['a.txt', 'sub/c.txt']
    # Not made yet and asked again: it is still missing.
    assert changed.open() == ['b']


def test_other_photos_stay_and_are_remembered(tmp_path):
    out = folder(tmp_path)
    make(out, out.open())
    more = folder(tmp_path, inputs={'d': '1'})
    assert more.open() == ['d']
    make(more, ['d'])
    assert folder(tmp_path).open() == []
    assert there(tmp_path) == ['a.txt', 'b.txt', 'd.txt', 'sub/c.txt']
    # Nobody knows what this one was made from.
    content = json.loads((tmp_path / MARKER).read_text())
    del content['photos']['a']
    (tmp_path / MARKER).write_text(json.dumps(content))
    assert folder(tmp_path).open() == ['a']


def test_files_without_a_record_are_not_taken_over(tmp_path):
    out = folder(tmp_path)
    make(out, ['b'])
    with pytest.raises(InputError, match=r'b\.txt is there, but no made_from\.json'):
        out.open()
    assert there(tmp_path) == ['b.txt']
    assert out.open(overwrite=True) == ['a', 'b', 'sub/c']


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / MARKER).write_text('[]')
    with pytest.raises(InputError, match='is not a record of maps'):
        folder(tmp_path).open()
    (tmp_path / MARKER).write_text('{"settings": ')
    with pytest.raises(InputError, match='cannot be read as JSON'):
        folder(tmp_path).open()


def test_remains_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    with whole_file(tmp_path / 'x/b.npz') as stream:
        stream.write(b'half')
        stream.flush()
        dead = tmp_path / 'x/.a.npz.1-0.tmp'
        dead.write_text('')
        folder(tmp_path).open()
        assert not dead.exists()
        assert len(list(tmp_path.rglob('.b.npz.*.tmp'))) == 1
    assert [p.name for p in (tmp_path / 'x').iterdir()] == ['b.npz']


def test_several_may_fill_a_folder_and_none_may_change_it_meanwhile(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(outputs, '_PATIENCE_S', 0.1)
    more = folder(tmp_path, inputs={'d': '1'})
    with folder(tmp_path).opened() as missing:
        # Nothing is made yet, and yet these would be wrong.
        for other in (
            folder(tmp_path, settings={'threshold': 0.7}),
            folder(tmp_path, inputs={'a': '2'}),
        ):
            with (
                pytest.raises(InputError, match='makes maps in'),
                other.opened(overwrite=True),
            ):
                pass
        with folder(tmp_path).opened() as also_missing, more.opened() as new:
            assert missing == also_missing == ['a', 'b', 'sub/c']
            assert new == ['d']
            make(more, new)
        with pytest.raises(InputError, match='makes maps'), more.held():
            pass
        make(folder(tmp_path), missing)
    # No list of photos has taken the place of the other.
    with folder(tmp_path).opened() as missing, more.opened() as new:
        assert missing == new == []
    with more.held(), pytest.raises(InputError, match='makes maps'), more.held():
        pass
    changed = folder(tmp_path, settings={'threshold': 0.7})
    with changed.opened(overwrite=True) as missing:
        assert len(missing) == 3


def test_what_is_torn_is_made_again_and_told(tmp_path, capsys):
    def pictures():
        return OutputFolder(
            tmp_path,
            what='maps',
            settings={},
            inputs={'a': '1', 'b': '1', 'c': '1', 'd': '1'},
            files=lambda name: [tmp_path / f'{name}.png', tmp_path / f'{name}.npz'],
        )

    pictures().open()
    for name in 'abcd':
        Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / f'{name}.png')
        np.savez_compressed(tmp_path / f'{name}.npz', x=np.eye(9))
    assert pictures().open() == pictures().plan() == []
    capsys.readouterr()
    content = bytearray((tmp_path / 'b.png').read_bytes())
    content[-20] ^= 1
    (tmp_path / 'b.png').write_bytes(content)
    os.truncate(tmp_path / 'd.npz', 100)
    assert pictures().plan() == pictures().open() == ['b', 'd']
    assert capsys.readouterr().out == (
        f'{tmp_path}/b.png is damaged; it and its like are made again\n'
    )


def test_what_is_missing_is_made_and_counted(tmp_path):
    out, seen = folder(tmp_path), []

    def build(number):
        return lambda item: (seen.append(item), make(out, [item]))

    def made(**options):
        seen.clear()
        items = {name: name for name in ('a', 'b', 'sub/c')}
        return make_missing(
            lambda: folder(tmp_path, **options),
            build,
            items,
            what='maps',
            overwrite='settings' in options,
            show=False,
        )

    assert made() == 3
    assert sorted(seen) == ['a', 'b', 'sub/c']
    assert made() == 0
    assert seen == []
    assert made(inputs={'a': '1', 'b': '2', 'sub/c': '1'}) == 1
    assert seen == ['b']
    assert made(settings={'threshold': 0.7}) == 3


def test_photos_that_cannot_be_read_are_left_out_and_listed(tmp_path, capsys):
    out, broken = folder(tmp_path), {'b', 'sub/c'}

    def read(item):
        if item in broken:
            raise UnreadablePhoto(f'the photo {item}.jpg is damaged; replace it')
        make(out, [item])

    def made(limit, names=('a', 'b', 'sub/c')):
        counts = Counts()
        made = make_missing(
            lambda: folder(tmp_path, inputs=dict.fromkeys(names, '1')),
            lambda number: read,
            {name: name for name in names},
            what='maps',
            show=False,
            counts=counts,
            max_unreadable=limit,
        )
        assert (made, counts.failed) == (counts.ok, len(told()))
        return made

    def told():
        said.append(capsys.readouterr().out)
        return re.findall(r'left out: the photo .*jpg is damaged; replace it', said[-1])

    def listed():
        return (tmp_path / 'unreadable.txt').read_text()

    said = []
    # Without a limit the first one stops it, as it always did.
    with pytest.raises(UnreadablePhoto, match=r'^the photo b.jpg is damaged; replace'):
        made(0)
    expected = (
        '2 photos cannot be read, more than --max-unreadable 1: b, sub/c (the first: '
        'the photo b.jpg is damaged); replace them, or let more be left out, and run '
        'the same command again to go on'
    )
    with pytest.raises(InputError, match=f'^{re.escape(expected)}$'):
        made(1)
    assert not (tmp_path / 'unreadable.txt').exists()
    told()
    assert made(2) == 0  # 'a' is there since the first run
    assert listed() == 'b\nsub/c\n'
    assert made(2) == 0
    broken.remove('b')
    assert made(2) == 1
    assert listed() == 'sub/c\n'
    broken.clear()
    # A run of other photos does not forget it.
    assert made(2, 'a') == 0
    assert listed() == 'sub/c\n'
    assert made(2) == 1
    assert not (tmp_path / 'unreadable.txt').exists()
    with pytest.raises(InputError, match='--max-unreadable must not be negative'):
        made(-1)


def test_photos_left_out_on_other_ranks_count_as_well(tmp_path, monkeypatch):
    found = [('x', 'the photo x is damaged; replace it')]
    monkeypatch.setattr(outputs, 'joined', lambda own: own + found)

    def made(limit):
        counts = Counts()
        make_missing(
            lambda: folder(tmp_path),
            lambda number: lambda item: make(folder(tmp_path), [item]),
            {name: name for name in ('a', 'b', 'sub/c')},
            what='maps',
            show=False,
            counts=counts,
            max_unreadable=limit,
        )
        return counts.failed

    assert made(1) == 1
    assert (tmp_path / 'unreadable.txt').read_text() == 'x\n'
    with pytest.raises(InputError, match='1 photos cannot be read'):
        made(0)


def test_other_ranks_do_not_look_at_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    # What the first rank has found out.
    monkeypatch.setattr(outputs, 'decided_by_first_rank', lambda decide: ['a', 'b'])
    seen = []
    items = {name: name.upper() for name in ('a', 'b', 'sub/c')}
    assert make_missing(None, lambda number: seen.append, items, what='maps') == 2
    assert seen == ['B']


def test_hashes_follow_the_content(tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    first.write_bytes(b'a' * (3 << 20))
    second.write_bytes(b'a' * (3 << 20))
    assert file_hash(first) == file_hash(second)
    second.write_bytes(b'a' * (3 << 20) + b'b')
    assert file_hash(first) != file_hash(second)
    assert text_hash({'a': 1}) == text_hash({'a': 1}) != text_hash({'a': 2})
