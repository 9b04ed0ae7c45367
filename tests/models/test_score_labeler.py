import pytest
import torch

from mmwsss.models.decode_heads.streams import DecodedStreams
from mmwsss.models.labelers import ScoreLabeler
from mmwsss.models.segmentors.wsss_segmentor import attach_labels

pytestmark = pytest.mark.mm

IMAGE_LABEL = torch.tensor([[1.0, 0.0]])


def label(labeler, progress):
    """One row: background, class 1, padding; the decoder is sure of class 2."""
    scores = torch.tensor([[[[0.9, 0.2, 0.9]], [[0.1, 0.8, 0.1]], [[0.0, 0.0, 0.0]]]])
    logits = torch.zeros(1, 3, 1, 3)
    logits[:, 2, 0, 0] = 9.0
    logits[:, 2, 0, 2] = 9.0
    return labeler(
        scores,
        IMAGE_LABEL,
        valid=torch.tensor([[[[1.0, 1.0, 0.0]]]]),
        decoded=DecodedStreams(logits, (logits,), None),
        encoded={},
        data_samples=[],
        progress=progress,
    )


def test_strict_labels_follow_the_published_rules():
    labeler = ScoreLabeler(
        low=None, high=None, self_label_start=0.6, strict_reference=True
    )
    early, late = label(labeler, 0.5), label(labeler, 0.6)
    assert early.pseudo_label.tolist() == [[[0, 1, 0]]]
    # Any class, in padding too; the affinity loss keeps the labels of the scores.
    assert late.pseudo_label.tolist() == [[[2, 1, 2]]]
    assert late.affinity_label.tolist() == [[[0, 1, 0]]]
    assert early.affinity_label.tolist() == [[[0, 1, 0]]]


def test_default_labels_stay_in_the_photo_and_its_classes():
    labeler = ScoreLabeler(low=None, high=None, self_label_start=0.6)
    late = label(labeler, 1.0)
    assert late.pseudo_label.tolist() == [[[0, 1, 255]]]
    assert late.affinity_label is None


class Sample:
    pass


def test_labels_of_the_affinity_loss_reach_the_samples():
    strict = label(ScoreLabeler(strict_reference=True), 0.0)
    samples = [Sample()]
    attach_labels(samples, strict)
    assert torch.equal(samples[0].affinity_label.data, strict.affinity_label)
    samples = [Sample()]
    attach_labels(samples, label(ScoreLabeler(), 0.0))
    assert not hasattr(samples[0], 'affinity_label')
