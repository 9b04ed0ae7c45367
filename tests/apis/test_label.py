import gc
import json
import os
import pickle
import random
import shutil
import tracemalloc

import fake_cams
import fake_inference
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mmwsss.apis.inferencer import WSSSInferencer
from mmwsss.apis.label import (
    MANIFEST,
    Labelling,
    LabellingOptions,
    PhotoRecord,
    listing,
    read_manifest,
    tags_from,
)
from mmwsss.apis.label_rules import BackgroundRule
from mmwsss.command.label import command
from mmwsss.errors import InputError
from mmwsss.files import read_json


@pytest.fixture
def case(tmp_path):
    """Options, and tags that are wrong for two photos and missing for one."""
    root, config, checkpoint = fake_inference.write(tmp_path)
    photos = root / 'JPEGImages'
    (photos / 'sub dir').mkdir()
    shutil.copy(photos / 'photo_3.jpg', photos / 'sub dir/größe 1.jpg')
    (photos / 'cut.jpg').write_bytes((photos / 'photo_1.jpg').read_bytes()[:900])
    path = root / 'image_labels.json'
    content = json.loads(path.read_text())
    content['labels'] |= {'sub dir/größe 1': ['disc'], 'cut': ['bar']}
    content['labels']['photo_1'] = ['disc', 'bar']
    del content['labels']['photo_7']
    path.write_text(json.dumps(content))
    options = LabellingOptions(
        photos=photos, out=tmp_path / 'out', config=config, checkpoint=checkpoint
    )
    return options, tags_from(path, photos)


def run(options, tags=None, **given):
    labelling = Labelling(options, tags)
    return list(labelling.run(**given)), labelling.there


def files(out):
    return {
        path.relative_to(out).as_posix(): path.stat().st_mtime_ns
        for path in out.rglob('*')
        if path.is_file()
    }


def test_a_folder_becomes_masks_and_a_manifest(case):
    options, tags = case
    before = files(options.photos)
    records, there = run(options, tags)
    assert there == 0
    assert [r.id for r in records] == [i for i, _ in listing(options.photos)]
    assert records == list(read_manifest(options.out))
    states = {r.id: r.state for r in records}
    assert states.pop('cut') == 'unreadable'
    assert states.pop('photo_7') == 'untagged'
    assert set(states.values()) == {'ok'}
    assert (options.out / 'labelled.txt').read_text().split('\n')[:-1] == [*states]
    assert (options.out / 'classes.txt').read_text() == 'disc\nbar\n'
    flags = {r.id: (r.missing, r.unexpected) for r in records if r.flagged}
    assert flags == {
        'photo_1': (('bar',), ()),
        'sub dir/größe 1': ((), ('bar',)),
    }
    worst = (options.out / 'look_first.txt').read_text().split('\n')[:-1]
    assert sorted(worst) == sorted(states)
    assert set(worst[:2]) == {'photo_1', 'sub dir/größe 1'}
    sure = {
        r.id: 1 if r.object_reliability is None else r.object_reliability
        for r in records
        if r.state == 'ok'
    }
    assert [sure[i] for i in worst[2:]] == sorted(sure[i] for i in worst[2:])
    inferencer = WSSSInferencer(options.config, options.checkpoint)
    for record in records:
        written = options.files(record.id)
        assert {p.is_file() for p in written.values()} == {record.state == 'ok'}
        if record.state != 'ok':
            continue
        (found,) = inferencer(options.photos / record.photo, list(record.tags))
        with Image.open(written['mask']) as mask:
            assert mask.mode == 'P'
            assert np.array_equal(np.array(mask), found.mask)
        sure = np.array(Image.open(written['reliability']))
        assert np.abs(sure / 255 - found.reliability).max() <= 0.5 / 255 + 1e-6
        assert record.reliability == pytest.approx(found.reliability.mean(), abs=1e-4)
        shares = {n: (found.mask == k).mean() for k, n in found.numbered_classes}
        assert record.classes == pytest.approx(shares, abs=1e-4)
        assert Image.open(written['overlay']).size == (64, 48)
    assert files(options.photos) == before


def test_what_is_done_is_not_opened_again(case, monkeypatch):
    options, tags = case
    run(options, tags)
    masks = files(options.out)

    def opened(*_, **__):
        raise AssertionError('opened')

    # No network is built, and no photo and no result opened.
    monkeypatch.setattr('mmwsss.apis.label.WSSSInferencer', opened)
    monkeypatch.setattr('mmwsss.apis.label.file_hash', hash_of_checkpoint_alone)
    monkeypatch.setattr('PIL.Image.open', opened)
    assert run(options, tags) == ([], 10)
    assert Labelling(options, tags).plan() == 0
    changed = {k for k, v in files(options.out).items() if masks[k] != v}
    lists = {'classes.txt', 'labelled.txt', 'look_first.txt', '.in_use.lock'}
    assert changed <= {'made_from.json', *lists}


def hash_of_checkpoint_alone(path):
    assert path.suffix == '.pth'
    from mmwsss.apis.outputs import file_hash

    return file_hash(path)


def test_only_what_changed_is_made_again(case):
    options, tags = case
    run(options, tags)
    photos = options.photos
    # Only touched; another content; a lost mask; repaired; new; other tags; gone.
    os.utime(photos / 'photo_0.jpg')
    shutil.copy(photos / 'photo_3.jpg', photos / 'photo_2.jpg')
    options.files('photo_4')['mask'].unlink()
    shutil.copy(photos / 'photo_2.jpg', photos / 'cut.jpg')
    shutil.copy(photos / 'photo_2.jpg', photos / 'a new one.jpg')
    (photos / 'photo_6.jpg').unlink()
    labels = {**tags.labels, 'photo_5': (), 'a new one': (1,)}
    tags = type(tags)(tags.classes, labels)
    records, there = run(options, tags)
    assert [(r.id, r.state) for r in records] == [
        ('a new one', 'ok'),
        ('photo_6', 'gone'),
        # Of those that have a line.
        ('cut', 'ok'),
        ('photo_2', 'ok'),
        ('photo_4', 'ok'),
        ('photo_5', 'ok'),
    ]
    assert there == 5
    manifest = {r.id: r for r in read_manifest(options.out)}
    assert list(manifest) == sorted(manifest)
    assert manifest['photo_5'].unexpected == ('disc',)
    # The new time is noted: the next run need not read the photo.
    assert manifest['photo_0'].mtime_ns == (photos / 'photo_0.jpg').stat().st_mtime_ns
    assert run(options, tags) == ([], 10)
    # A mask of what the file was before does not stand for what it is now.
    broken = photos / 'photo_3.jpg'
    broken.write_bytes(broken.read_bytes()[:700])
    assert [r.state for r in run(options, tags)[0]] == ['unreadable']
    assert not any(path.exists() for path in options.files('photo_3').values())
    # What comes back unchanged is taken as it is.
    shutil.copy(photos / 'photo_2.jpg', photos / 'photo_6.jpg')
    assert [r.id for r in run(options, tags)[0]] == ['photo_6']


def test_stopped_anywhere_it_goes_on(case):
    options, tags = case
    for stop in (3, 2, 4):
        labelling = Labelling(options, tags).run()
        for _ in range(stop):
            next(labelling, None)
        labelling.close()
        # As if killed while writing a line.
        for journal in options.out.glob('.journal*'):
            with journal.open('a') as stream:
                stream.write('{"id": "photo_9", "pho')
    run(options, tags)
    whole = [r.line() for r in read_manifest(options.out)]
    assert not list(options.out.glob('.journal*'))
    fresh = LabellingOptions(**{**vars(options), 'out': options.out.parent / 'fresh'})
    run(fresh, tags)
    assert [r.line() for r in read_manifest(fresh.out)] == whole


def test_a_stopped_run_goes_on_before_it_looks_at_what_is_done(case, monkeypatch):
    options, tags = case
    labelling = Labelling(options, tags).run()
    done = {next(labelling).id for _ in range(5)}
    labelling.close()
    parse, parsed = PhotoRecord.from_line, []

    def counted(line):
        parsed.append(parse(line))
        return parsed[-1]

    monkeypatch.setattr(PhotoRecord, 'from_line', counted)
    monkeypatch.setattr('mmwsss.apis.label._written', lambda *_: pytest.fail('early'))
    again = Labelling(options, tags).run()
    left = {i for i, _ in listing(options.photos)} - done
    assert {next(again).id for _ in left} == left
    assert not parsed
    again.close()


def test_other_settings_are_refused_or_replace_everything(case):
    options, tags = case
    run(options, tags)
    other = LabellingOptions(**{**vars(options), 'low': 0.2, 'high': 0.6})
    with pytest.raises(InputError, match='another low and high'):
        run(other, tags)
    (options.photos / 'photo_0.jpg').unlink()
    bare = LabellingOptions(**{**vars(other), 'overlays': False})
    records, there = run(bare, tags, overwrite=True)
    assert there == 0
    assert len(records) == 9
    # Nothing of the old settings is left, also not what is no longer made.
    names = {path.split('/')[0] for path in files(options.out)}
    assert 'Overlay' not in names
    assert not options.files('photo_0')['mask'].exists()


def test_processes_share_the_photos(case, monkeypatch):
    """What goes to another process and back is all that it needs."""
    options, tags = case
    alone = [r.line() for r in run(options, tags)[0]]

    def elsewhere(build, items, *, jobs):
        assert jobs == 3
        label = pickle.loads(pickle.dumps(build))(1)
        for item in items:
            there = pickle.loads(pickle.dumps(item))
            label(there)
            yield pickle.loads(pickle.dumps(there))

    monkeypatch.setattr('mmwsss.apis.label.stream_jobs', elsewhere)
    shared = LabellingOptions(**{**vars(options), 'out': options.out.parent / 'two'})
    assert [r.line() for r in run(shared, tags, jobs=3)[0]] == alone


def test_a_threshold_is_chosen_once(tmp_path, monkeypatch):
    config, checkpoint = fake_cams.write(tmp_path)
    root = tmp_path / 'data'
    tags = tags_from(root / 'image_labels.json', root / 'JPEGImages')
    options = LabellingOptions(
        photos=root / 'JPEGImages',
        out=tmp_path / 'out',
        config=config,
        checkpoint=checkpoint,
        kind='cam',
        choose_threshold=True,
    )
    with pytest.raises(InputError, match='give them'):
        run(LabellingOptions(**{**vars(options), 'out': tmp_path / 'no'}))
    labelling = Labelling(options, tags)
    records = list(labelling.run())
    assert 'chosen without masks on 6 tagged photos' in labelling.background.source
    chosen = read_json(options.out / 'threshold.json')
    assert 0 < chosen['threshold'] < 1
    assert chosen['photos'] == 6
    assert {r.state for r in records} == {'ok'}
    rule = BackgroundRule('threshold', chosen['threshold'])
    looks = WSSSInferencer(config, checkpoint, kind='cam', background=rule)
    for record in records:
        (found,) = looks(root / f'JPEGImages/{record.photo}', list(record.tags))
        mask = np.array(Image.open(options.files(record.id)['mask']))
        assert np.array_equal(mask, found.mask)
    assert any(record.classes for record in records)

    def again(*_):
        raise AssertionError('chosen again')

    monkeypatch.setattr(WSSSInferencer, 'choose_threshold', again)
    (options.photos / 'photo_1.jpg').write_bytes(
        (options.photos / 'photo_3.jpg').read_bytes()
    )
    assert [r.id for r in run(options, tags)[0]] == ['photo_1']
    segmentor = fake_inference.write(tmp_path / 'segmentor')
    own = LabellingOptions(
        photos=options.photos,
        out=tmp_path / 'own',
        config=segmentor[1],
        checkpoint=segmentor[2],
        choose_threshold=True,
    )
    monkeypatch.undo()
    with pytest.raises(InputError, match='no threshold is needed'):
        run(own, tags)


def test_memory_and_resuming_do_not_grow(case, monkeypatch):
    """Thousands of photos of a dry network: what is held stays the same."""
    options, _ = case

    class Dry:
        def __init__(self, *_, **__):
            pass

    monkeypatch.setattr('mmwsss.apis.label.WSSSInferencer', Dry)
    monkeypatch.setattr('mmwsss.apis.label._Labeller.__call__', dry_label)
    monkeypatch.setattr('mmwsss.apis.label._written', lambda *_: True)
    monkeypatch.setattr('mmwsss.apis.label.listing', drawn_listing)
    tracemalloc.start()
    held = []
    for number, _ in enumerate(Labelling(options).run()):
        # What is imported and cached at the beginning is not counted.
        if number in (800, 1900):
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # A record that is kept takes some 500 bytes; other tests of the process leave a
    # few caches that still grow.
    assert held[1] - held[0] < 150 * (1900 - 800)
    assert run(options) == ([], 2000)


def dry_label(labeller, work):
    work.record = work.photo


def drawn_listing(folder):
    return ((f'{number:05d}', 'photo_1.jpg') for number in range(2000))


def test_the_listing_is_in_the_order_of_the_manifest(tmp_path):
    names = [
        'a.jpg',
        'a/b.png',
        'a/c d.JPG',
        'a-b.webp',
        'a b/z.tif',
        'é/ü.jpeg',
        'b.bmp',
    ]
    for name in random.Random(0).sample(names, len(names)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ('.hidden.jpg', 'notes.txt', '.cache'):
        (tmp_path / name).touch()
    ids = [i for i, _ in listing(tmp_path)]
    assert sorted(ids, key=lambda i: i.split('/')) == ids
    assert sorted(f for _, f in listing(tmp_path)) == sorted(names)
    (tmp_path / 'a/b.jpg').touch()
    with pytest.raises(InputError, match='same id, a/b'):
        list(listing(tmp_path))


def test_unusable_input(case):
    options, tags = case
    inside = LabellingOptions(**{**vars(options), 'out': options.photos / 'masks'})
    with pytest.raises(InputError, match='lies in the folder of the photos'):
        run(inside, tags)
    other = type(tags)(('disc', 'cat'), {})
    with pytest.raises(InputError, match=r"the class 'cat'.*disc, bar"):
        run(options, other)
    empty = options.out.parent / 'empty'
    empty.mkdir()
    with pytest.raises(InputError, match='holds no photo'):
        run(LabellingOptions(**{**vars(options), 'photos': empty}), tags)
    run(options, tags)
    (options.out / MANIFEST).write_text('{"id": 3}\n')
    with pytest.raises(InputError, match=r'line 1 of .* is damaged'):
        run(options, tags)


def test_lines_of_later_versions_are_read():
    record = PhotoRecord(id='a', photo='a.jpg', state='ok', classes={'ü': 0.5})
    line = record.line().replace('{', '{"colour": "red", ', 1)
    assert PhotoRecord.from_line(line) == record


def test_the_verb(case, tmp_path):
    options, _ = case
    arguments = [options.config, options.checkpoint, options.photos]
    arguments += ['--tags', options.photos.parent / 'image_labels.json']
    arguments = [str(a) for a in [*arguments, '--out', options.out]]
    dry = CliRunner().invoke(command, [*arguments, '--dry-run'])
    assert 'dry run: 9 to make, 0 there already' in dry.output
    assert not options.out.exists()
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == '8 ok, 1 skipped, 1 failed'
    assert 'failed: cut.jpg: the photo' in done.output
    assert '2 masks contradict their tags' in done.output
    again = CliRunner().invoke(command, arguments)
    assert again.output.splitlines()[-1] == '0 ok, 10 skipped, 0 failed'
    table = tmp_path / 'tags.csv'
    table.write_text('photo_1.jpg,disc\nphoto_2.jpg,bar\n')
    arguments[4] = str(table)
    arguments[-1] = str(tmp_path / 'csv')
    done = CliRunner().invoke(command, [*arguments, '--background', 'own*2'])
    assert done.output.splitlines()[-1] == '2 ok, 8 skipped, 0 failed'
