"""Photos that a classifier gets wrong: their weights and what it looks at in them."""

import json

import fake_cams
import numpy as np
import pytest
import tiny_run
from PIL import Image

from mmwsss.apis.find_shortcuts import factor_of, find_shortcuts_command
from mmwsss.datasets import CAMStore, PasteRegions, StoredCAMs
from mmwsss.datasets.cam_store import grid_size
from mmwsss.datasets.photo_weights import load_photo_weights
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm
SIZE = (48, 64)
GRID = grid_size(SIZE)
# Photo n of tiny_run shows the disc where n is odd, the bar where n // 2 is; what the
# classifier says, and whether that is wrong, by hand.
PROBS = [
    ((0.1, 0.2), False),
    ((0.9, 0.6), True),  # a disc, and a bar that is not there
    ((0.49, 0.51), False),
    ((0.6, 0.4), True),  # the bar is missed
    ((0.8, 0.9), True),  # both are not there
    ((0.9, 0.1), False),
    ((0.2, 0.7), False),
    ((0.7, 0.8), False),
]
# Photo and class of what is found and not there -> cells (top, left, bottom, right).
BOXES = {
    'photo_1_2': (2, 3, 5, 6),
    'photo_4_1': (0, 0, 1, 4),
    'photo_4_2': (10, 14, 12, 16),
}


def cams_of(number):
    """Two maps: a peak in the box, a smaller one apart, a slope in between."""
    maps = np.full((2, *GRID), 0.1, np.float32)
    for k in range(2):
        top, left, bottom, right = BOXES.get(f'photo_{number}_{k + 1}', (1, 1, 3, 3))
        maps[k, top:bottom, left:right] = 0.5
        maps[k, top, left] = 0.75
        maps[k, 7, 8] = 0.7
    return maps


def fill(store, *, with_probs=True, classes=(0, 1)):
    for number, (probs, _) in enumerate(PROBS):
        stored = StoredCAMs(
            np.array(classes, np.int64),
            cams_of(number)[list(classes)],
            SIZE,
            probs=np.float32(probs) if with_probs else None,
        )
        CAMStore(store).write(f'photo_{number}', stored)


@pytest.fixture
def case(tmp_path):
    fake_cams.write(tmp_path)
    fill(tmp_path / 'cams')
    return tmp_path


def call(case, monkeypatch, *arguments, refused=False):
    words = [case / 'fake.py', case / 'cams', *arguments]
    if refused:
        return fake_cams.refusal(find_shortcuts_command, monkeypatch, *words)
    monkeypatch.setattr('sys.argv', ['find_shortcuts.py', *map(str, words)])
    return find_shortcuts_command()


def test_weights_of_photos_that_are_decided_wrongly(case, monkeypatch, capsys):
    path = case / 'new/weights.json'
    assert call(case, monkeypatch, '--weights', path, '--factor', '7') == 0
    assert load_photo_weights(path) == {
        f'photo_{n}': 7.0 if wrong else 1.0 for n, (_, wrong) in enumerate(PROBS)
    }
    said = capsys.readouterr().out
    assert '3 of 8 photos are decided wrongly, 2 of them for a class' in said


@pytest.mark.parametrize(('share', 'factor'), [('0.5', 5 / 3), ('0.75', 5), ('0.1', 1)])
def test_weights_by_which_they_are_a_share_of_all(case, monkeypatch, share, factor):
    path = case / 'weights.json'
    assert call(case, monkeypatch, '--weights', path, '--share', share) == 0
    weights = load_photo_weights(path)
    assert sorted(set(weights.values())) == pytest.approx(sorted({1.0, factor}))
    wrong = sum(weights[f'photo_{n}'] for n, (_, wrong) in enumerate(PROBS) if wrong)
    assert wrong / sum(weights.values()) == pytest.approx(max(float(share), 3 / 8))


def test_no_share_for_none_or_all():
    for number, hint in ((0, 'for a shorter time'), (8, 'longer')):
        with pytest.raises(InputError, match=f'wrong about {number} of 8 .* {hint}'):
            factor_of(0.5, number, 8)


def test_what_it_looks_at_is_cut_out(case, monkeypatch, capsys):
    out = case / 'regions'
    call(case, monkeypatch, '--regions', out, '--cut', '0.7')
    assert {path.stem for path in (out / 'JPEGImages').iterdir()} == set(BOXES)
    record = json.loads((out / 'regions.json').read_text())
    labels = json.loads((out / 'image_labels.json').read_text())
    assert labels['classes'] == tiny_run.CLASSES
    for name, (top, left, *_) in BOXES.items():
        photo, _, number = name.rpartition('_')
        taken_for = tiny_run.CLASSES[int(number) - 1]
        # At this cut the peak's own cell alone.
        box = [4 * top, 4 * left, 4 * top + 4, 4 * left + 4]
        assert record[name] == {'photo': photo, 'box': box, 'taken_for': taken_for}
        whole = np.asarray(Image.open(case / f'data/JPEGImages/{photo}.jpg'))
        piece = np.asarray(Image.open(out / f'JPEGImages/{name}.png'))
        np.testing.assert_array_equal(
            piece, whole[box[0] : box[2], box[1] : box[3]], err_msg=name
        )
    assert labels['labels'] == {
        'photo_1_2': ['disc'],
        'photo_4_1': [],
        'photo_4_2': [],
    }
    # What the transform asks for.
    assert len(PasteRegions(data_root=str(out)).paths) == len(BOXES)
    call(case, monkeypatch, '--regions', out, '--cut', '0.7')
    assert 'regions already there' in capsys.readouterr().out
    said = call(case, monkeypatch, '--regions', out, '--cut', '0.4', refused=True)
    assert 'exists and is not a folder of regions' in said


def test_a_lower_cut_takes_all_that_is_connected(case, monkeypatch):
    out = case / 'regions'
    call(case, monkeypatch, '--regions', out)
    record = json.loads((out / 'regions.json').read_text())
    assert {name: tuple(entry['box']) for name, entry in record.items()} == {
        name: tuple(4 * side for side in box) for name, box in BOXES.items()
    }


def test_pieces_end_where_the_photo_ends(case, monkeypatch):
    """A grid of stride 4 covers more than a photo of 45 x 62."""
    for path in (case / 'data/JPEGImages').iterdir():
        Image.open(path).crop((0, 0, 62, 45)).save(path)
    for number, (probs, _) in enumerate(PROBS):
        stored = StoredCAMs(
            np.arange(2), cams_of(number), (45, 62), probs=np.float32(probs)
        )
        CAMStore(case / 'cams').write(f'photo_{number}', stored)
    call(case, monkeypatch, '--regions', case / 'regions')
    record = json.loads((case / 'regions/regions.json').read_text())
    assert record['photo_4_2']['box'] == [40, 56, 45, 62]
    with Image.open(case / 'regions/JPEGImages/photo_4_2.png') as piece:
        assert piece.size == (6, 5)


def test_bad_input_is_one_sentence(case, monkeypatch):
    weights = ('--weights', case / 'w.json')
    for arguments, sentence in (
        ((), 'nothing is asked for: give --weights JSON or --regions DIR'),
        ((*weights, '--factor', '0.5'), '--factor must be a number of 1 or more'),
        ((*weights, '--share', '1'), '--share must be in (0, 1), got 1'),
        ((*weights, '--factor', 'nan'), '--factor must be a number of 1 or more'),
        ((*weights, '--cut', '0'), '--cut is a share in (0, 1], got 0.0'),
    ):
        assert sentence in call(case, monkeypatch, *arguments, refused=True)
    fill(case / 'cams', with_probs=False)
    said = call(case, monkeypatch, *weights, refused=True)
    assert 'does not hold the probabilities of 2 classes' in said
    fill(case / 'cams', classes=(1,))
    said = call(case, monkeypatch, *weights, refused=True)
    assert 'holds CAMs of 1 of 2 classes; make them with' in said
    assert not (case / 'w.json').exists()
    (case / 'cams/photo_3.npz').unlink()
    assert 'lacks the CAMs of 1 of 8' in call(case, monkeypatch, *weights, refused=True)


def test_a_classifier_without_mistakes_has_nothing_to_cut_out(case, monkeypatch):
    for number in range(8):
        right = np.float32([number & 1, number >> 1 & 1])
        stored = StoredCAMs(np.arange(2), cams_of(number), SIZE, probs=right)
        CAMStore(case / 'cams').write(f'photo_{number}', stored)
    arguments = ('--regions', case / 'regions')
    said = call(case, monkeypatch, *arguments, refused=True)
    assert 'train it for a shorter time' in said
    assert not (case / 'regions').exists()
