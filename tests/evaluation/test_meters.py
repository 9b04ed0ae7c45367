import numpy as np
import pytest
import torch

from mmwsss.evaluation.meters import LabelMeter, SweepMeter, score_table
from mmwsss.functional import threshold_sweep

CLASSES = ('background', 'box', 'crate')


def slow_iou(pred, target, num_classes, *, missed=()):
    """Set arithmetic on pixel positions; the mean over classes with target pixels."""
    scored = {i for i, value in enumerate(target) if value != 255}
    ious = {}
    for c in range(num_classes):
        truth = {i for i in scored if target[i] == c}
        guess = {i for i in scored if pred[i] == c and i not in missed}
        if truth:
            ious[c] = len(truth & guess) / len(truth | guess)
    return ious


@pytest.fixture
def pair():
    rng = np.random.default_rng(3)
    pred = rng.integers(0, 3, (20, 30))
    target = rng.integers(0, 3, (20, 30))
    pred[rng.random(pred.shape) < 0.2] = 255
    target[rng.random(pred.shape) < 0.2] = 255
    return pred, target


@pytest.mark.parametrize('undecided', ['leave_out', 'background', 'wrong'])
def test_label_meter_equals_set_arithmetic(pair, undecided):
    pred, target = pair
    meter = LabelMeter(3, undecided=undecided)
    meter.update(torch.tensor(pred), torch.tensor(target))
    flat_pred, flat_target = pred.ravel().copy(), target.ravel().copy()
    open_pixels = flat_pred == 255
    if undecided == 'leave_out':
        flat_target[open_pixels] = 255
    if undecided == 'background':
        flat_pred[open_pixels] = 0
    expected = slow_iou(flat_pred, flat_target, 3)
    result = meter.result(CLASSES)
    for c, row in enumerate(result['per_class']):
        assert row['iou'] == pytest.approx(100 * expected[c], abs=1e-4)
    assert result['miou'] == pytest.approx(
        100 * sum(expected.values()) / len(expected), abs=1e-4
    )
    scored = target != 255
    assert result['kept'] == pytest.approx(
        100 * (scored & (pred != 255)).sum() / scored.sum(), abs=1e-4
    )


def test_label_meter_adds_up_like_one_large_map(pair):
    pred, target = map(torch.tensor, pair)
    whole, first, second = (LabelMeter(3) for _ in range(3))
    whole.update(pred, target)
    first.update(pred[:7], target[:7])
    second.update(pred[7:], target[7:])
    first.add_state(second.state())
    assert torch.equal(whole.confusion, first.confusion)
    assert first.result(CLASSES)['images'] == 2
    assert first.result(CLASSES)['kept'] == whole.result(CLASSES)['kept']


def test_class_without_pixels_is_left_out_of_the_mean():
    meter = LabelMeter(3)
    meter.update(torch.tensor([[0, 0, 2, 1]]), torch.tensor([[0, 0, 1, 1]]))
    result = meter.result(CLASSES)
    assert result['per_class'][2]['iou'] is None
    assert result['scored_classes'] == 2
    assert result['miou'] == pytest.approx((100 + 50) / 2)


def test_nothing_scored_gives_none():
    meter = LabelMeter(3)
    meter.update(torch.zeros(2, 2), torch.full((2, 2), 255))
    result = meter.result(CLASSES)
    assert result['miou'] is None
    assert result['kept'] == 0


@pytest.mark.parametrize('undecided', ['leave_out', 'wrong'])
def test_label_meter_refuses_index_out_of_range(undecided):
    meter = LabelMeter(3, undecided=undecided)
    with pytest.raises(ValueError, match='got 3'):
        meter.update(torch.tensor([[3]]), torch.tensor([[0]]))


def test_label_meter_refuses_bad_arguments():
    with pytest.raises(ValueError, match="got 'drop'"):
        LabelMeter(3, undecided='drop')
    with pytest.raises(ValueError, match=r'\(1, 2\)'):
        LabelMeter(3).update(torch.zeros(1, 2), torch.zeros(1, 3))


def test_sweep_meter_finds_the_separating_threshold():
    target = torch.tensor([[0, 0, 1, 1, 2, 255]])
    cams = torch.tensor([[[0.1, 0.3, 0.6, 0.8, 0.2, 0.9]], [[0, 0, 0, 0, 0.7, 0.9]]])
    meter = SweepMeter(3, thresholds=(0.05, 0.2, 0.45, 0.65, 0.9))
    meter.update(cams, torch.ones(2), target)
    assert meter.best() == 2
    best = meter.result(CLASSES, index=2)
    assert best['miou'] == 100
    assert best['threshold'] == 0.45
    assert meter.curve()[4] == pytest.approx(100 * (2 / 5) / 3, abs=1e-3)


def test_the_last_of_all_classes_counts():
    """A released evaluator left it out."""
    target = torch.zeros(1, 10, dtype=torch.int64)
    target[:, 5:] = 20
    names = [str(number) for number in range(21)]
    for found, expected in ((0, 25), (20, 100)):
        pred = torch.where(target == 20, found, 0)
        meter = LabelMeter(21)
        meter.update(pred, target)
        assert meter.result(names)['miou'] == expected
        cams = torch.nn.functional.one_hot(pred[0], 21).T[1:, None].float()
        sweep = SweepMeter(21, thresholds=(0.5,))
        sweep.update(cams, torch.ones(20), target)
        assert sweep.result(names, index=0)['miou'] == expected


def test_the_sweep_goes_on_where_precision_exceeds_recall():
    """A released search ends there, and its thresholds are those of where it began."""
    target = torch.zeros(1, 120, dtype=torch.int64)
    target[:, :10], target[:, 10:20] = 1, 2
    cams = torch.zeros(2, 1, 120)
    cams[0, 0, :2] = 0.9
    cams[1, 0, 10:20], cams[1, 0, 20:30] = 0.9, 0.3
    meter = SweepMeter(3, thresholds=(0.1, 0.5, 0.95))
    meter.update(cams, torch.ones(2), target)
    early, best, late = meter.sweep()
    assert early['precision'] > early['recall']
    assert best['miou'] > early['miou'] > late['miou']
    assert meter.best() == 1


def photos(*, num_photos=6, num_classes=7, ignore_index=255):
    """CAMs, labels and masks; masks hold classes that the labels lack, and none."""
    generator = torch.Generator().manual_seed(5)
    for number in range(num_photos):
        cams = 2 * torch.rand(num_classes - 1, 9, 11, generator=generator) - 1
        label = (torch.rand(num_classes - 1, generator=generator) < 0.4).float()
        target = torch.randint(0, num_classes, (9, 11), generator=generator)
        if number == 0:
            label, target = torch.zeros_like(label), torch.zeros_like(target)
        target[2:4] = ignore_index
        yield cams, label, target


@pytest.mark.parametrize('ignore_index', [255, -1])
def test_sweep_of_present_classes_equals_that_of_all(ignore_index):
    # Below zero, an absent class whose CAM counts as zero would win.
    thresholds = (0.9, -0.6, 0.2)
    meter, short = (
        SweepMeter(7, thresholds=thresholds, ignore_index=ignore_index)
        for _ in range(2)
    )
    expected = torch.zeros(3, 7, 7, dtype=torch.int64)
    for cams, label, target in photos(ignore_index=ignore_index):
        expected += threshold_sweep(
            cams[None],
            label[None],
            target[None],
            thresholds=thresholds,
            ignore_index=ignore_index,
        )
        meter.update(cams, label, target)
        present = label.nonzero()[:, 0]
        short.update_present(cams[present], present.tolist(), target)
    assert torch.equal(meter.confusion, expected)
    assert torch.equal(short.confusion, expected)
    assert meter.num_images == 6


def test_sweep_meter_lists_and_chooses():
    thresholds = (0.1, 0.3, 0.5, 0.7)
    meter = SweepMeter(7, thresholds=thresholds)
    assert meter.sweep()[0]['miou'] is None
    assert meter.best() == 0
    for photo in photos():
        meter.update(*photo)
    names = [str(i) for i in range(7)]
    for i, row in enumerate(meter.sweep()):
        table = meter.result(names, index=i)
        assert row == {
            key: table[key] for key in ('threshold', 'miou', 'precision', 'recall')
        }
    curve = meter.curve()
    assert curve[meter.best()] == max(curve)
    among = [t for i, t in enumerate(thresholds) if i != meter.best()]
    chosen = meter.best(among=among)
    assert thresholds[chosen] in among
    assert curve[chosen] == sorted(curve)[-2]


@pytest.mark.parametrize('wrong', [7, 254, -2])
def test_sweep_meter_refuses_targets_out_of_range(wrong):
    meter = SweepMeter(7, thresholds=(0.5,))
    cams, label, target = next(photos())
    target[0, 0] = wrong
    with pytest.raises(ValueError, match=rf'\[0, 7\), got {wrong}'):
        meter.update(cams, label, target)
    assert meter.num_images == 0


def test_score_table_is_plain_and_in_percent():
    table = score_table(torch.tensor([[6, 2], [1, 3]]), CLASSES[:2])
    assert table['accuracy'] == pytest.approx(75)
    assert table['per_class'][1] == {
        'name': 'box',
        'iou': 50.0,
        'precision': 60.0,
        'recall': 75.0,
        'pixels': 4,
    }
