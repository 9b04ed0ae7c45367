import io

import numpy as np
import pytest
from PIL import Image

from mmwsss.errors import InputError
from mmwsss.visualization.sweep_curve import sweep_figure, write_sweep_curve

SWEEP = [
    {'threshold': 0.1, 'miou': 30.0, 'precision': 40.0, 'recall': 90.0},
    {'threshold': 0.4, 'miou': None, 'precision': None, 'recall': None},
    {'threshold': 0.8, 'miou': 50.0, 'precision': 85.0, 'recall': 35.0},
]


def figure(sweep=SWEEP, thresholds=None, levels=None):
    return sweep_figure(
        sweep, thresholds=thresholds or {}, levels=levels or {}, title='12 images'
    )


def test_every_score_is_drawn_against_its_threshold():
    (axes,) = figure(levels={'own': 61.0}).axes
    lines = {line.get_label(): np.array(line.get_xydata()) for line in axes.lines}
    assert list(lines) == ['mIoU', 'precision', 'recall', 'own']
    for key, label in (('miou', 'mIoU'), ('precision',) * 2, ('recall',) * 2):
        values = [np.nan if row[key] is None else row[key] for row in SWEEP]
        expected = np.array([[row['threshold'] for row in SWEEP], values]).T
        np.testing.assert_array_equal(lines[label], expected)
    assert lines['own'][:, 1].tolist() == [61, 61]
    assert {text.get_text() for text in axes.get_legend().texts} == set(lines)


def test_thresholds_are_marked_and_equal_ones_once():
    marks = {'best': 0.31, 'fixed': 0.25, 'given': 0.25}
    (axes,) = figure(thresholds=marks).axes
    assert [line.get_xdata()[0] for line in axes.lines[3:]] == [0.25, 0.31]
    texts = [text.get_text().strip() for text in axes.texts]
    assert texts == ['fixed, given 0.25', 'best 0.31']


def test_it_needs_no_display_and_leaves_no_global_figure(tmp_path, monkeypatch):
    monkeypatch.setenv('MPLBACKEND', 'tkagg')
    monkeypatch.delenv('DISPLAY', raising=False)
    drawn = figure()
    # Those that pyplot keeps have a number.
    assert not hasattr(drawn, 'number')
    write_sweep_curve(tmp_path / 'new/curve.png', drawn)
    with Image.open(io.BytesIO((tmp_path / 'new/curve.png').read_bytes())) as picture:
        assert picture.format == 'PNG'
        pixels = np.asarray(picture.convert('RGB'))
    assert pixels.shape == (540, 840, 3)
    assert (pixels == (0, 114, 178)).all(-1).sum() > 20


def test_a_single_threshold_is_visible():
    (axes,) = figure(SWEEP[:1]).axes
    assert {line.get_marker() for line in axes.lines} == {'.'}


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=r'curve\.png cannot be written'):
        write_sweep_curve(tmp_path / 'file/curve.png', figure())
