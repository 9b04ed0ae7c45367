import pytest
import torch
from co_occurrence_cases import DECISIONS, PHOTOS, PIXEL_FIGURES
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmwsss.evaluation import CoOccurrenceMeter, CoOccurrenceMetric
from mmwsss.registry import METRICS

META = {'classes': ('background', 'smoke')}


def filled(names=tuple(PHOTOS), *, probs=True, distractors=True, **options):
    meter = CoOccurrenceMeter(1, thresholds=(0.2, 0.5), **options)
    for name in names:
        target, distractor, predicted, prob = PHOTOS[name]
        meter.update(
            0.4 * predicted[None].float(),
            target,
            distractor=distractor if distractors else None,
            probs=torch.tensor([prob]) if probs else None,
        )
    return meter


def rounded(figures):
    return {name: round(value, 4) for name, value in figures.items()}


@pytest.mark.parametrize('gate', ['none', 'pred', 'label'])
def test_four_photos_equal_the_count_by_hand(gate):
    result = filled().result(0, gate=gate)
    assert result.pop('images') == 4
    cells = {'none': 1, 'dis_only': 1, 'obj_only': 1, 'obj_dis': 1}
    assert result.pop('cells') == cells
    assert result == rounded({**PIXEL_FIGURES[gate], **DECISIONS})


def test_a_higher_threshold_finds_nothing():
    result = filled().result(1, gate='none')
    assert result['fg_iou'] == result['DAR'] == result['FPR_pix_D'] == 0
    assert result['precision'] is None
    assert result['TPR_obj_dis'] == 1


def test_without_probabilities_any_predicted_pixel_decides():
    meter = filled(probs=False)
    result = meter.result(0)
    assert 'any predicted pixel' in meter.decision
    assert result['TPR_obj_only'] == result['FPR_img_D'] == result['FPR_img_0'] == 1
    assert result['img_fg_iou'] == round(PIXEL_FIGURES['none']['img_fg_iou'], 4)
    assert meter.result(1)['TPR_obj_dis'] == 0


def test_without_distractors_only_what_needs_none():
    result = filled(distractors=False).result(0, gate='none')
    assert {'DAR', 'CR', 'FPR_img_D', 'TPR_obj_only', 'ctx_gap', 'cells'}.isdisjoint(
        result
    )
    assert result['FPR_pix_neg'] == 4 / 32
    assert result['BAR'] == round(3 / 20, 4)


def test_a_cell_without_photos_is_left_undefined():
    result = filled(('both', 'none')).result(0)
    assert result['TPR_obj_only'] is result['ctx_gap'] is result['conflict_acc'] is None


def test_otsu_cuts_each_photo_by_itself():
    meter = CoOccurrenceMeter(1, thresholds=(0.5,), otsu=True)
    target, distractor, predicted, _ = PHOTOS['both']
    for scale in (0.1, 0.9):
        cams = scale * (0.2 + 0.8 * predicted[None].float())
        meter.update(cams, target, distractor=distractor)
    assert meter.result(-1)['img_fg_iou'] == round(3 / 7, 4)
    assert meter.result(0)['img_fg_iou'] == round(3 / 14, 4)


def test_best_threshold_is_the_lowest_of_the_best():
    meter = CoOccurrenceMeter(1, thresholds=(0.1, 0.3, 0.5, 0.7))
    target = PHOTOS['both'][0]
    meter.update(0.2 + 0.4 * target[None].float(), target)
    assert meter.best(gate='none') == 1


def random_photo(seed, num_classes=2):
    generator = torch.Generator().manual_seed(seed)
    cams = torch.rand(num_classes, 8, 9, generator=generator)
    target, distractor = (
        torch.randint(0, num_classes + 1, (8, 9), generator=generator)
        * (torch.rand(8, 9, generator=generator) < 0.1)
        for _ in range(2)
    )
    probs = torch.rand(num_classes, generator=generator)
    return cams, target, distractor, probs


def test_sums_of_two_processes_are_those_of_one():
    photos = [random_photo(seed) for seed in range(7)]
    meters = [CoOccurrenceMeter(2, thresholds=(0.3, 0.6), otsu=True) for _ in range(3)]
    for number, (cams, target, distractor, probs) in enumerate(photos):
        for meter in (meters[0], meters[1 + number % 2]):
            meter.update(cams, target, distractor=distractor, probs=probs)
    together = CoOccurrenceMeter(2, thresholds=(0.3, 0.6), otsu=True)
    for meter in meters[1:]:
        together.add_state(meter.state())
    for cut in (0, 1, -1):
        assert together.result(cut) == meters[0].result(cut)


def test_classes_are_scored_apart_and_averaged():
    meter = CoOccurrenceMeter(2, thresholds=(0.5,))
    target, distractor, predicted, _ = PHOTOS['both']
    # Class 2 sits perfectly on the lower half, away from class 1.
    target, cams = target.clone(), torch.zeros(2, 4, 4)
    target[3] = 2
    predicted = predicted.clone()
    predicted[3] = 0
    cams[0], cams[1] = predicted, (target == 2)
    meter.update(cams, target, distractor=distractor)
    result = meter.result(0, classes=('smoke', 'boat'))
    of_class = result['per_class']
    assert of_class['smoke']['fg_iou'] == round(3 / 6, 4)
    assert of_class['boat']['fg_iou'] == 1
    assert result['fg_iou'] == 0.75
    assert of_class['boat']['DAR'] is None
    # Column 0 outside of row 0 has three pixels, two of them predicted.
    assert of_class['smoke']['DAR'] == result['DAR'] == round(2 / 3, 4)
    background = (8 - 2) / 9
    assert result['miou'] == pytest.approx((0.5 + 1 + background) / 3, abs=1e-4)


def sample(name, *, probs=True):
    target, distractor, predicted, prob = PHOTOS[name]
    one = SegDataSample()
    one.gt_sem_seg = PixelData(data=target[None])
    one.set_field(PixelData(data=distractor[None]), 'distractor_map')
    one.set_field(0.4 * predicted[None].float(), 'cams')
    if probs:
        one.set_field(torch.tensor([prob]), 'class_probs')
    return one.to_dict()


def run(metric, names=tuple(PHOTOS)):
    metric.dataset_meta = META
    for name in names:
        metric.process({}, [sample(name)])
    return metric.evaluate(len(names))


def test_metric_gives_the_figures_of_four_photos():
    config = dict(type='CoOccurrenceMetric', threshold=0.2, prefix='val')
    result = run(METRICS.build(config))
    expected = rounded({**PIXEL_FIGURES['pred'], **DECISIONS})
    assert result == {f'val/{name}': value for name, value in expected.items()}


def test_an_oracles_figures_say_so():
    result = run(CoOccurrenceMetric(threshold='oracle', gate='none'))
    assert all(name.startswith('oracle_') for name in result)
    best = round(PIXEL_FIGURES['none']['img_fg_iou'], 4)
    assert result['oracle_img_fg_iou'] == best


def test_metric_with_each_photos_own_threshold():
    result = run(CoOccurrenceMetric(threshold='otsu', gate='none'))
    assert result['DAR'] == round(PIXEL_FIGURES['none']['DAR'], 4)


@pytest.mark.parametrize('threshold', ['best', 1.5, None])
def test_metric_refuses_unknown_thresholds(threshold):
    with pytest.raises(ValueError, match="'otsu' or 'oracle', got"):
        CoOccurrenceMetric(threshold=threshold)
    with pytest.raises(ValueError, match=r"gate must be one of .* got 'prob'"):
        CoOccurrenceMetric(gate='prob')
