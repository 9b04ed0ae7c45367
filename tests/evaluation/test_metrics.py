import pytest
import torch
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample

from mmwsss.evaluation import CAMMetric, PseudoLabelMetric
from mmwsss.evaluation import metrics as metrics_module
from mmwsss.registry import METRICS

META = {'classes': ('background', 'box', 'crate')}


def make_sample(seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (1, 9, 8), generator=generator)
    target[0, 0, :3] = 255
    sample = SegDataSample()
    sample.gt_sem_seg = PixelData(data=target)
    pred = torch.randint(0, 3, (1, 9, 8), generator=generator)
    sample.pred_sem_seg = PixelData(data=pred)
    sample.set_field(torch.rand(2, 9, 8, generator=generator), 'cams')
    sample.set_field(torch.tensor([1.0, 0.0]), 'image_label')
    return sample.to_dict()


def run(metric, samples, size):
    metric.dataset_meta = META
    for sample in samples:
        metric.process({}, [sample])
    return metric.evaluate(size)


def test_pseudo_label_metric_equals_mmseg():
    samples = [make_sample(seed) for seed in range(5)]
    ours = run(METRICS.build({'type': 'PseudoLabelMetric'}), samples, 5)
    theirs = run(IoUMetric(), samples, 5)
    assert ours['mIoU'] == pytest.approx(theirs['mIoU'], abs=0.011)
    assert ours['aAcc'] == pytest.approx(theirs['aAcc'], abs=0.011)
    assert ours['kept'] == 100


def test_metric_starts_anew_after_evaluate():
    metric = PseudoLabelMetric(prefix='label')
    first = run(metric, [make_sample(0)], 1)
    run(metric, [make_sample(1)], 1)
    assert run(metric, [make_sample(0)], 1) == first
    assert 'label/mIoU' in first


def test_repeats_of_a_distributed_sampler_are_left_out(monkeypatch):
    # Five photos on two ranks: the sampler gives photo 0 a second time to rank 1.
    samples = [make_sample(seed) for seed in range(5)]
    parts = []
    monkeypatch.setattr(
        metrics_module, 'all_gather_object', lambda mine: parts.append(mine) or [mine]
    )
    run(PseudoLabelMetric(), samples[0::2], 5)
    run(PseudoLabelMetric(), [samples[1], samples[3], samples[0]], 5)
    monkeypatch.setattr(metrics_module, 'all_gather_object', lambda mine: parts)
    metric = PseudoLabelMetric()
    metric.dataset_meta = META
    together = metric.evaluate(5)
    monkeypatch.undo()
    assert together == run(PseudoLabelMetric(), samples, 5)


def test_cam_metric_ignores_absent_classes():
    sample = make_sample(0)
    sample['gt_sem_seg']['data'] = (sample['cams'][0] > 0.4).long()[None]
    result = run(CAMMetric(), [sample], 1)
    assert result['mIoU'] == 100
    assert result['threshold'] == pytest.approx(0.4, abs=0.05)
    assert result['mIoU@0.25'] < 100


def test_cam_metric_refuses_a_fixed_threshold_outside_the_sweep():
    with pytest.raises(ValueError, match=r'got 0\.25'):
        CAMMetric(thresholds=(0.1, 0.2))
