import json
import sys

import cv2
import fake_cams
import numpy as np
import pytest
import torch
from PIL import Image

from mmwsss.apis.cam_scores import (
    GivenRecall,
    GivenThreshold,
    SweepOptions,
    evaluate_store,
    format_policies,
    parse_thresholds,
    score_at_recall,
)
from mmwsss.apis.eval_pseudo_labels import eval_pseudo_labels_command
from mmwsss.apis.outputs import MARKER
from mmwsss.datasets import CAMStore, StoredCAMs
from mmwsss.errors import InputError
from mmwsss.evaluation.meters import SweepMeter

pytestmark = pytest.mark.mm
CLASSES = ['background', 'box', 'crate', 'disc']
SIZE = (30, 41)
# Present classes of six photos; the first one is empty.
PRESENT = ((), (0,), (1,), (2,), (0, 2), (0, 1, 2))


def draw(folder, *, own=True):
    """A store and masks of one's own; a mask holds a class that the label lacks."""
    generator = np.random.default_rng(7)
    store, masks = CAMStore(folder / 'cams'), folder / 'gt'
    masks.mkdir(parents=True)
    for number, classes in enumerate(PRESENT):
        maps = generator.random((len(classes) + 1, 8, 11), dtype=np.float32)
        stored = StoredCAMs(
            classes=np.array(classes, dtype=np.int64),
            cams=maps[1:],
            size=SIZE,
            background=maps[0] if own else None,
        )
        store.write(f'photo_{number}', stored)
        mask = generator.choice([0, *(k + 1 for k in classes), 3, 255], SIZE)
        Image.fromarray(mask.astype(np.uint8)).save(masks / f'photo_{number}.png')
    return store.root, masks


@pytest.fixture
def folders(tmp_path):
    return draw(tmp_path)


def slow_scores(folders, threshold):
    """Pixel sets in numpy; a threshold, or None for the CAMs' own background."""
    pairs = []
    for number, classes in enumerate(PRESENT):
        stored = CAMStore(folders[0]).read(f'photo_{number}')
        maps = [stored.background, *stored.cams]
        if threshold is not None:
            maps[0] = np.full_like(stored.cams.sum(0), threshold)
        maps = [cv2.resize(m, SIZE[::-1], interpolation=cv2.INTER_LINEAR) for m in maps]
        label = np.array([0, *(k + 1 for k in classes)])[np.argmax(maps, axis=0)]
        mask = np.array(Image.open(folders[1] / f'photo_{number}.png'))
        pairs.append(np.stack([label[mask != 255], mask[mask != 255]]))
    pred, target = np.concatenate(pairs, axis=1)
    rows = []
    for c in range(4):
        hit = ((pred == c) & (target == c)).sum()
        rows.append(
            [
                hit / ((pred == c) | (target == c)).sum(),
                hit / max((pred == c).sum(), 1),
                hit / (target == c).sum(),
            ]
        )
    return 100 * np.array(rows)


def assert_scores(table, expected):
    for row, values in zip(table['per_class'], expected, strict=True):
        found = [row['iou'], row['precision'], row['recall']]
        # A pixel of 7,380 may fall on the other side by rounding.
        assert found == pytest.approx(values.tolist(), abs=0.1)
    found = [table['miou'], table['precision'], table['recall']]
    assert found == pytest.approx(expected.mean(0).tolist(), abs=0.05)


def test_every_policy_equals_a_slow_count(folders):
    thresholds = (0.3, 0.45, 0.6, 0.75)
    options = SweepOptions(
        thresholds=thresholds, fixed=0.2, given=GivenThreshold(0.33, 'the best there')
    )
    table = evaluate_store(*folders, ids=None, classes=CLASSES, options=options)
    expected = {t: slow_scores(folders, t) for t in thresholds}
    assert [row['threshold'] for row in table['sweep']] == list(thresholds)
    for row in table['sweep']:
        found = [row['miou'], row['precision'], row['recall']]
        means = expected[row['threshold']].mean(0)
        assert found == pytest.approx(means.tolist(), abs=0.05)
    best = max(thresholds, key=lambda t: expected[t][:, 0].mean())
    policies = table['policies']
    assert policies['best']['threshold'] == best
    assert_scores(policies['best'], expected[best])
    assert_scores(policies['fixed'], slow_scores(folders, 0.2))
    assert_scores(policies['given'], slow_scores(folders, 0.33))
    assert_scores(policies['own'], slow_scores(folders, None))
    assert policies['own']['threshold'] is None
    assert table['headline'] == 'own'
    assert table['miou'] == policies['own']['miou']
    assert table['images'] == 6
    assert json.loads(json.dumps(table)) == table


def test_the_fixed_threshold_never_wins_the_sweep(folders):
    options = SweepOptions(thresholds=(0.9, 0.95), fixed=0.4)
    table = evaluate_store(*folders, ids=None, classes=CLASSES, options=options)
    policies = table['policies']
    assert policies['fixed']['miou'] > policies['best']['miou']
    assert [row['threshold'] for row in table['sweep']] == [0.9, 0.95]


def test_policies_say_where_the_threshold_comes_from(tmp_path):
    folders = draw(tmp_path, own=False)
    table = evaluate_store(*folders, ids=['photo_1', 'photo_4'], classes=CLASSES)
    assert table['headline'] == 'best'
    assert 'own' not in table['policies']
    best = table['policies']['best']
    assert best['policy'] == (
        f'image labels given; threshold {best["threshold"]:g}, the best of 99 '
        'thresholds on these same 2 images: an oracle choice'
    )
    assert table['policies']['fixed']['policy'] == (
        'image labels given; threshold 0.25, fixed beforehand'
    )
    path = tmp_path / 'train.json'
    path.write_text(json.dumps(table))
    given = GivenThreshold.read(path)
    assert given == GivenThreshold(
        best['threshold'], f'the best on the 2 images of {path}'
    )
    options = SweepOptions(given=given)
    table = evaluate_store(*folders, ids=None, classes=CLASSES, options=options)
    assert table['headline'] == 'given'
    assert table['threshold'] == best['threshold']


# --------------------------------------------------------------------- equal recall
def at_recall(folders, value, thresholds):
    options = SweepOptions(
        thresholds=thresholds, recall=GivenRecall(value, 'that of another')
    )
    table = evaluate_store(*folders, ids=None, classes=CLASSES, options=options)
    return table, table['policies']['equal_recall']


def counts(folders, threshold):
    """Per class and in pixels: hits, predicted, in the mask."""
    scores = slow_scores(folders, threshold) / 100
    masks = [np.array(Image.open(p)) for p in sorted(folders[1].glob('*.png'))]
    target = np.bincount(np.concatenate([m[m != 255] for m in masks]), minlength=4)
    hits = scores[:, 2] * target
    predicted = np.divide(hits, scores[:, 1], where=hits > 0, out=np.zeros(4))
    return hits, predicted, target


def test_equal_recall_mixes_the_two_thresholds_around_it(folders):
    low, high = slow_scores(folders, 0.5), slow_scores(folders, 0.7)
    wanted = 0.7 * low[:, 2].mean() + 0.3 * high[:, 2].mean()
    table, found = at_recall(folders, wanted, (0.3, 0.5, 0.7, 0.9))
    assert found['threshold'] == pytest.approx(0.56, abs=2e-3)
    assert found['recall'] == pytest.approx(wanted, abs=1e-3)
    # Seven of ten pixels are cut at the lower threshold.
    pairs = zip(counts(folders, 0.5), counts(folders, 0.7), strict=True)
    hits, predicted, target = (0.7 * a + 0.3 * b for a, b in pairs)
    expected = 100 * np.stack([hits / (predicted + target - hits), hits / predicted])
    rows = [[r['iou'], r['precision']] for r in found['per_class']]
    np.testing.assert_allclose(rows, expected.T, atol=0.2)
    assert found['miou'] == pytest.approx(expected[0].mean(), abs=0.1)
    assert found['precision'] == pytest.approx(expected[1].mean(), abs=0.1)
    pixels = [row['pixels'] for row in found['per_class']]
    assert pixels == counts(folders, 0.5)[2].tolist()
    assert found['pixels'] == table['pixels'] == sum(pixels)
    assert found['images'] == 6
    assert found['policy'] == (
        f'image labels given; a recall of {wanted:.2f} %, that of another, between the '
        'thresholds 0.5 and 0.7 (mean over the classes, background included)'
    )
    assert json.loads(json.dumps(table)) == table


def test_the_recall_of_a_threshold_is_met_at_that_threshold(folders):
    thresholds = (0.3, 0.5, 0.7, 0.9)
    table, _ = at_recall(folders, 50, thresholds)
    row = table['sweep'][1]
    _, found = at_recall(folders, row['recall'], thresholds)
    assert found['threshold'] == pytest.approx(0.5, abs=1e-3)
    for key in ('miou', 'precision', 'recall'):
        assert found[key] == pytest.approx(row[key], abs=0.01)


def test_the_highest_threshold_that_reaches_the_recall_counts():
    """Recall need not fall with the threshold: the background's rises."""
    sweep = SweepMeter(2, thresholds=(0.2, 0.4, 0.6))
    sweep.confusion = torch.tensor(
        [[[0, 10], [0, 10]], [[8, 2], [2, 8]], [[10, 0], [8, 2]]]
    )
    found = score_at_recall(
        sweep, ['ground', 'thing'], among=(0.2, 0.4, 0.6), recall=GivenRecall(70.0, '')
    )
    assert found['threshold'] == 0.5
    thing = found['per_class'][1]
    expected = [100 * 5 / 11, 100 * 5 / 6, 50]
    assert [thing[k] for k in ('iou', 'precision', 'recall')] == pytest.approx(
        expected, abs=1e-3
    )
    # Thresholds that are scored beside the sweep play no part.
    found = score_at_recall(
        sweep, ['ground', 'thing'], among=(0.2, 0.4), recall=GivenRecall(70.0, '')
    )
    assert found['threshold'] is None


def test_pixels_stay_whole_where_counts_are_mixed():
    sweep = SweepMeter(3, thresholds=(0.3, 0.6))
    sweep.confusion = torch.tensor(
        [
            [[40, 5, 5], [3, 40, 7], [9, 1, 40]],
            [[48, 1, 1], [30, 13, 7], [29, 1, 20]],
        ]
    )
    # Adding the mixed counts up again gives a hair less than 50 for some of them.
    for wanted in range(55, 80):
        found = score_at_recall(
            sweep, ['a', 'b', 'c'], among=(0.3, 0.6), recall=GivenRecall(wanted, '')
        )
        assert found['recall'] == pytest.approx(wanted)
        assert [row['pixels'] for row in found['per_class']] == [50, 50, 50]
        assert found['pixels'] == 150


@pytest.mark.parametrize('value', [1.5, 99.9])
def test_a_recall_out_of_reach_is_said(folders, value):
    table, found = at_recall(folders, value, (0.3, 0.5, 0.7))
    assert (
        f'no threshold has a recall of {value:.2f} %, that of another'
        in (found['policy'])
    )
    assert {found[k] for k in ('threshold', 'miou', 'precision', 'recall')} == {None}
    # The other policies are what they are.
    assert table['headline'] == 'own'
    assert 'equal_recall         -       -       -       -' in format_policies(
        table['policies']
    )


def write_scores(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def test_the_reference_is_an_evaluation_or_a_number(tmp_path):
    best = dict(miou=50.0, recall=70.0, threshold=0.3, images=9)
    cams = write_scores(tmp_path / 'a.json', {'policies': {'best': best}, 'recall': 1})
    labels = dict(miou=55.0, recall=60.0, images=8, threshold=None)
    maps = write_scores(tmp_path / 'b.json', labels)
    assert GivenRecall.read([cams]) == GivenRecall(
        70.0, f'that of the best threshold 0.3 on the 9 images of {cams}'
    )
    for words in ([maps], [cams, maps], [maps, cams]):
        assert GivenRecall.read(words) == GivenRecall(
            60.0, f'that of the 8 images of {maps}'
        )
    assert GivenRecall.read(['62.5']) == GivenRecall(62.5, 'given as a number')
    for word in ('0.75', '101', 'nan', '-3'):
        with pytest.raises(InputError, match=f'in percent .* got {word}$'):
            GivenRecall.read([word])
    for content in ({}, {'policies': {}}, {**labels, 'recall': None}, [1]):
        other = write_scores(tmp_path / 'c.json', content)
        with pytest.raises(InputError, match=r'c\.json holds no mIoU and recall; make'):
            GivenRecall.read([cams, other])


@pytest.mark.parametrize('jobs', [2, 3])
def test_processes_add_up_to_the_same(folders, jobs):
    seen = []

    def progress(done, total):
        assert total == 6
        for photo in done:
            seen.append(photo[0])
            yield photo

    alone = evaluate_store(*folders, ids=None, classes=CLASSES)
    together = evaluate_store(
        *folders, ids=None, classes=CLASSES, jobs=jobs, progress=progress
    )
    assert together == alone
    assert sorted(seen) == [f'photo_{i}' for i in range(6)]


def test_thresholds_are_numbers_and_ranges():
    assert parse_thresholds(['0.5', '0.25', '0.5']) == (0.25, 0.5)
    assert parse_thresholds(['0.1:0.3:0.1', '0']) == (0, 0.1, 0.2, 0.3)
    assert parse_thresholds(['0.01:0.99:0.01']) == SweepOptions().thresholds
    for word in ('a', '1.5', 'nan', '0.1:0.2', '0.3:0.1:0.1', '0:1:0', '0:1:nan'):
        with pytest.raises(InputError, match='threshold') as caught:
            parse_thresholds([word])
        assert '\n' not in str(caught.value)


# ----------------------------------------------------------------------- bad input
def rewrite(folders, number, **changes):
    store = CAMStore(folders[0])
    old = store.read(f'photo_{number}')
    values = {k: getattr(old, k) for k in ('classes', 'cams', 'size', 'background')}
    store.write(f'photo_{number}', StoredCAMs(**values | changes))


def spoil_size(folders):
    rewrite(folders, 2, size=(29, 41))


def spoil_class(folders):
    rewrite(folders, 1, classes=np.array([3]))


def spoil_background(folders):
    rewrite(folders, 5, background=None)


def spoil_file(folders):
    (folders[0] / 'photo_3.npz').write_bytes(b'PK')


def spoil_mask(folders):
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(folders[1] / 'photo_0.png')


def remove_mask(folders):
    (folders[1] / 'photo_4.png').unlink()


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (spoil_size, r'photo_2\.npz holds CAMs of a photo of 41 x 29 but its mask is'),
        (spoil_class, r'photo_1\.npz holds the CAM of class 4, but there are 4'),
        (spoil_background, r'photo_5\.npz has no background of its own, unlike'),
        (spoil_file, r'photo_3\.npz cannot be read as stored CAMs'),
        (spoil_mask, r'photo_0\.png holds the index 9, but there are 4 classes'),
        (remove_mask, 'has no map for image photo_4'),
    ],
)
def test_spoilt_files_are_named(folders, spoil, message):
    spoil(folders)
    with pytest.raises(InputError, match=message) as caught:
        evaluate_store(*folders, ids=None, classes=CLASSES)
    assert '\n' not in str(caught.value)


def test_spoilt_files_are_named_by_other_processes_too(folders):
    spoil_size(folders)
    with pytest.raises(InputError, match=r'photo_2\.npz holds CAMs of a photo'):
        evaluate_store(*folders, ids=None, classes=CLASSES, jobs=2)


# ------------------------------------------------------------------ the command line
def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['tool.py', *map(str, arguments)])
    assert eval_pseudo_labels_command() == 0


def test_the_tool_prints_draws_and_takes_thresholds(
    folders, tmp_path, monkeypatch, capsys
):
    train, curve = tmp_path / 'train.json', tmp_path / 'cams/curve.png'
    classes = ('--num-classes', 4)
    monkeypatch.chdir(tmp_path)
    arguments = ('--thresholds', '0.3:0.7:0.2', '--json', train, '--curve', curve)
    command(monkeypatch, *folders, *classes, *arguments)
    said = capsys.readouterr().out
    scores = json.loads(train.read_text())
    best = scores['policies']['best']
    assert f'best   {best["threshold"]:>9g} {best["miou"]:7.2f}' in said
    assert 'the best of 3 thresholds on these same 6 images: an oracle choice' in said
    assert "own: image labels given; the CAMs' own background" in said
    assert f'\nmIoU {scores["miou"]:.2f} over 4 of 4 classes, 6 images' in said
    assert f'images: all of {folders[0]}' in said
    assert scores['images_from'] == f'all of {folders[0]}'
    assert [row['threshold'] for row in scores['sweep']] == [0.3, 0.5, 0.7]
    with Image.open(curve) as picture:
        assert picture.format == 'PNG'
    # The picture in the store is no label map; a list names other images.
    (tmp_path / 'val.txt').write_text('photo_1\nphoto_4\n')
    arguments = ('--list', 'val.txt', '--threshold-from', train)
    command(monkeypatch, *folders, *classes, *arguments)
    said = capsys.readouterr().out
    assert (
        f'given: image labels given; threshold {best["threshold"]:g}, the best on the '
        f'6 images of {train}'
    ) in said
    assert 'images: the list val.txt' in said
    # Against itself: the best threshold.
    arguments = ('--at-recall', train, '--json', 'again.json', '--curve', curve)
    command(monkeypatch, *folders, *classes, *arguments)
    said = capsys.readouterr().out
    again = json.loads((tmp_path / 'again.json').read_text())['policies']
    assert again['equal_recall']['threshold'] == pytest.approx(best['threshold'])
    assert again['equal_recall']['miou'] == pytest.approx(best['miou'], abs=1e-3)
    assert f'equal_recall {best["threshold"]:>9g} {best["miou"]:7.2f}' in said
    assert f'best threshold {best["threshold"]:g} on the 6 images of {train}' in said


def test_a_store_brings_its_classes_along(folders, tmp_path, monkeypatch, capsys):
    names = CLASSES[1:]
    record = {'settings': {'class list': names}, 'photos': {}}
    (folders[0] / MARKER).write_text(json.dumps(record))
    command(monkeypatch, *folders)
    assert '\ncrate ' in capsys.readouterr().out
    (tmp_path / 'same.txt').write_text('\n'.join(names))
    command(monkeypatch, *folders, '--classes', tmp_path / 'same.txt')
    (tmp_path / 'other.txt').write_text('crate\nbox\ndisc\n')
    for arguments, message in (
        (('--classes', tmp_path / 'other.txt'), 'was made with: box, crate, disc;'),
        (('--num-classes', 21), 'was made with 4 classes with background'),
    ):
        said = fake_cams.refusal(
            eval_pseudo_labels_command, monkeypatch, *folders, *arguments
        )
        assert message in said


def test_bad_arguments_are_one_sentence(folders, tmp_path, monkeypatch):
    store, masks = folders
    (tmp_path / 'empty.json').write_text('{"policies": {}}')
    empty = tmp_path / 'nothing'
    empty.mkdir()
    cases = [
        ((store, tmp_path / 'none'), 'the folder'),
        ((store, masks, '--thresholds', '2'), 'thresholds lie in [0, 1], got 2'),
        ((store, masks, '--threshold', 'nan'), 'thresholds lie in [0, 1], got nan'),
        ((store, masks, '--threshold-from', 'none.json'), 'none.json does not exist'),
        (
            (store, masks, '--threshold-from', tmp_path / 'empty.json'),
            'holds no best threshold; make it with',
        ),
        ((store, masks, '--curve', 'curve.jpg'), 'draws a PNG, got curve.jpg'),
        ((store, masks, '--undecided', 'wrong'), '--undecided is for label maps'),
        ((store, masks, '--at-recall', 'none.json'), 'none.json does not exist'),
        ((store, masks, '--at-recall', '0.75'), 'got 0.75'),
        ((masks, masks, '--at-recall', '75'), '--at-recall is for stored CAMs'),
        ((store, masks, '--jobs', 0), '--jobs must be 1 or more'),
        ((masks, masks, '--curve', 'curve.png'), '--curve is for stored CAMs'),
        ((masks, masks, '--threshold-from', 'a.json'), '--threshold-from is for'),
        ((empty, masks), 'holds no label map'),
        ((tmp_path / 'none', masks), 'none does not exist'),
    ]
    for arguments, expected in cases:
        assert expected in fake_cams.refusal(
            eval_pseudo_labels_command, monkeypatch, *arguments
        )
    Image.new('L', SIZE[::-1]).save(store / 'photo_0.png')
    for path in store.glob('photo_[1-5].npz'):
        path.unlink()
    said = fake_cams.refusal(eval_pseudo_labels_command, monkeypatch, store, masks)
    assert 'holds CAMs and label maps (photo_0.npz, photo_0.png)' in said
