import pytest
import tiny_run
import torch
from mmengine.registry import init_default_scope
from mmseg.structures import SegDataSample

import mmwsss.models  # noqa: F401
from mmwsss.models.decode_heads.streams import DecodedStreams
from mmwsss.models.labelers import ReliabilityGate
from mmwsss.registry import MODELS


def sample(image_id='a', shape=(8, 8)):
    return SegDataSample(
        metainfo=dict(img_id=image_id, img_shape=shape, ori_shape=shape)
    )


def logits_for(label, *, num_classes=3, sharpness=8.0):
    """Logits (N, C, h, w) that prefer a label."""
    one_hot = torch.nn.functional.one_hot(label, num_classes).movedim(-1, 1).float()
    return sharpness * one_hot


def run(gate, base, network, *, image_label=((1.0, 1.0),), sharpness=8.0, **changes):
    """Gate a batch whose streams agree on ``network`` (N, h, w)."""
    logits = logits_for(network, sharpness=sharpness)
    arguments = dict(
        valid=torch.ones(len(base), 1, *base.shape[1:]),
        decoded=DecodedStreams(logits, (logits, logits), None),
        features=None,
        data_samples=[sample() for _ in base],
    )
    arguments.update(changes)
    return gate(base, torch.tensor(image_label), **arguments)


@pytest.fixture
def halves():
    """Base label says class 1 on the left; the network says 2 on the upper half."""
    base = torch.zeros(1, 8, 8, dtype=torch.long)
    base[:, :, :4] = 1
    network = torch.zeros(1, 8, 8, dtype=torch.long)
    network[:, :4] = 2
    return base, network


def test_explore_keeps_the_base_labels(halves):
    base, network = halves
    labels = run(ReliabilityGate(num_classes=3), base, network)
    assert torch.equal(labels.pseudo_label, base)
    assert labels.weight is None
    assert labels.logs['kept_share'] == 1
    assert labels.logs['repaired_share'] == 0


def test_repair_takes_confident_predictions(halves):
    base, network = halves
    gate = ReliabilityGate(num_classes=3, weight_power=2.0)
    gate.set_phase('repair', 0.6)
    labels = run(gate, base, network)
    assert torch.equal(labels.pseudo_label, network)
    # left half: 1 -> 2 above, 1 -> 0 below; right half above: 0 -> 2
    assert labels.logs['repaired_share'] == pytest.approx(0.75)
    assert (labels.reliability > 0.6).all()
    assert (labels.weight == 1).all()


def test_base_labels_that_are_reliable_themselves_are_not_repaired(halves):
    base, network = halves
    # The streams lean to the network's label and leave 0.27 for the base label.
    gate = ReliabilityGate(num_classes=3, weights=(0.0, 1.0, 0.0), repair_below=0.1)
    gate.set_phase('repair', 0.4)
    kept = run(gate, base, network, sharpness=1.0)
    assert torch.equal(kept.pseudo_label, base)
    gate.repair_below = 0.5
    assert torch.equal(run(gate, base, network, sharpness=1.0).pseudo_label, network)
    # Undecided pixels are filled in all the same.
    gate.repair_below = 0.1
    nothing = torch.full_like(base, 255)
    filled = run(gate, nothing, network, sharpness=1.0)
    assert torch.equal(filled.pseudo_label, network)


def test_timid_predictions_repair_nothing_and_void_disputed_labels(halves):
    base, network = halves
    gate = ReliabilityGate(num_classes=3, weight_power=2.0, ignore_below=0.35)
    gate.set_phase('repair', 0.9)
    labels = run(gate, base, network, sharpness=0.5)
    disputed = base != network
    assert (labels.pseudo_label[disputed] == 255).all()
    assert torch.equal(labels.pseudo_label[~disputed], base[~disputed])
    assert labels.logs['dropped_share'] == pytest.approx(0.75)
    assert (labels.weight[disputed] == 0).all()
    gate.ignore_below = None
    assert torch.equal(run(gate, base, network, sharpness=0.5).pseudo_label, base)


def test_consolidate_drops_agreed_labels_without_trust():
    base = torch.ones(1, 8, 8, dtype=torch.long)
    gate = ReliabilityGate(num_classes=3)
    timid = logits_for(base, sharpness=0.5)
    timid = dict(decoded=DecodedStreams(timid, (timid,), None))
    gate.set_phase('repair', 0.8)
    assert (run(gate, base, base, **timid).pseudo_label == 1).all()
    gate.set_phase('consolidate', 0.8)
    assert (run(gate, base, base, **timid).pseudo_label == 255).all()
    assert (run(gate, base, base).pseudo_label == 1).all()


@pytest.mark.parametrize('phase', ['explore', 'repair', 'consolidate'])
def test_labels_never_leave_the_image_and_the_padding_stays_ignored(phase):
    generator = torch.Generator().manual_seed(0)
    gate = ReliabilityGate(num_classes=3)
    gate.set_phase(phase, 0.4)
    base = torch.zeros(2, 8, 8, dtype=torch.long)
    base[:, 6:] = 255
    valid = torch.ones(2, 1, 8, 8)
    valid[:, :, 6:] = 0
    network = torch.randint(0, 3, (2, 8, 8), generator=generator)
    labels = run(gate, base, network, image_label=((1.0, 0.0), (0.0, 0.0)), valid=valid)
    assert set(labels.pseudo_label[0, :6].unique().tolist()) <= {0, 1, 255}
    assert set(labels.pseudo_label[1, :6].unique().tolist()) <= {0, 255}
    assert (labels.pseudo_label[:, 6:] == 255).all()
    assert 0 <= labels.reliability.min() <= labels.reliability.max() <= 1


def test_history_raises_trust_in_what_was_said_before(halves):
    base, network = halves
    gate = ReliabilityGate(
        num_classes=3, history=dict(type='mmwsss.PredictionHistory', grid_size=8)
    )
    gate.history.prepare(['a'], torch.tensor([[1, 1]]))
    first = run(gate, base, network, update=True)
    again = run(gate, base, network)
    other = run(gate, base, (network + 1) % 3)
    risen = again.reliability > first.reliability
    assert torch.equal(risen, base == network)
    assert again.logs['temporal_mean'] > first.logs['temporal_mean'] == 0.5
    assert other.logs['temporal_mean'] < 0.5


def test_nothing_is_recorded_without_update(halves):
    gate = ReliabilityGate(
        num_classes=3, history=dict(type='mmwsss.PredictionHistory', grid_size=8)
    )
    gate.history.prepare(['a'], torch.tensor([[1, 1]]))
    before = {k: v.clone() for k, v in gate.state_dict().items()}
    run(gate, *halves)
    assert all(torch.equal(v, before[k]) for k, v in gate.state_dict().items())
    run(gate, *halves, update=True)
    after = gate.state_dict()
    assert not torch.equal(after['history.bank'], before['history.bank'])
    assert not torch.equal(after['class_means'], before['class_means'])


def test_checkpoint_restores_phase_means_and_history(halves):
    config = dict(
        num_classes=3, history=dict(type='mmwsss.PredictionHistory', grid_size=8)
    )
    gate = ReliabilityGate(**config)
    gate.history.prepare(['a'], torch.tensor([[1, 1]]))
    gate.set_phase('consolidate', 0.75)
    run(gate, *halves, update=True)
    other = ReliabilityGate(**config)
    other.load_state_dict(gate.state_dict())
    assert (other.phase, other.base_gate) == ('consolidate', 0.75)
    assert torch.equal(other.gates, gate.gates)
    expected, restored = run(gate, *halves), run(other, *halves)
    assert torch.equal(expected.reliability, restored.reliability)
    assert torch.equal(expected.pseudo_label, restored.pseudo_label)


def test_weaker_classes_get_lower_gates():
    gate = ReliabilityGate(num_classes=3, momentum=0.0)
    gate.set_phase('repair', 0.8)
    network = torch.zeros(1, 8, 8, dtype=torch.long)
    network[:, :4] = 1
    logits = logits_for(network)
    logits[:, :, :4] *= 0.1  # class 1 is recognised with little confidence
    run(
        gate,
        network,
        network,
        decoded=DecodedStreams(logits, (logits,), None),
        update=True,
    )
    assert gate.gates[1] < gate.gates[0] == pytest.approx(0.8)


def test_structure_counts_only_with_features(halves):
    base, network = halves
    gate = ReliabilityGate(num_classes=3)
    alone = run(gate, base, network)
    features = torch.ones(1, 4, 8, 8)
    both = run(gate, base, network, features=features)
    assert 'structure_mean' not in alone.logs
    assert 0 < both.logs['structure_mean'] < 1


def test_unknown_phase_mode_and_source_are_named():
    with pytest.raises(ValueError, match="'middle'"):
        ReliabilityGate(num_classes=3).set_phase('middle', 0.5)
    with pytest.raises(ValueError, match="'best'"):
        ReliabilityGate(num_classes=3, mode='best')


def gated_model(**changes):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return MODELS.build({**tiny_run.gated_config('unused')['model'], **changes})


def batch():
    samples = []
    for name, label in (('photo_1', (1.0, 0.0)), ('photo_3', (1.0, 1.0))):
        one = sample(name, (24, 40))
        one.set_field(torch.tensor(label), 'image_label', dtype=torch.Tensor)
        samples.append(one)
    image = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(1))
    image[..., 24:, :] = 0
    return image, samples


@pytest.mark.parametrize('phase', ['explore', 'repair', 'consolidate'])
def test_whole_model_gives_finite_gradients_in_every_phase(phase):
    model = gated_model().train()
    model.labeler.gate.history.prepare(
        ['photo_1', 'photo_3'], torch.tensor([[1, 0], [1, 1]])
    )
    model.labeler.gate.set_phase(phase, 0.5)
    model.progress = 0.9
    image, samples = batch()
    losses = model.loss(image, samples)
    assert {'decode.loss_boundary', 'teacher.loss_consistency'} <= set(losses)
    assert {'label.temporal_mean', 'label.structure_mean'} <= set(losses)
    sum(v for n, v in losses.items() if 'loss' in n).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_missing_structure_source_is_named():
    model = gated_model()
    model.labeler.gate.structure_source = 'dino'
    with pytest.raises(ValueError, match="'dino'"):
        model.explain(*batch())


def test_teacher_is_an_average_and_stays_in_eval_mode():
    model = gated_model().train()
    assert not model.teacher_head.training
    assert not any(p.requires_grad for p in model.teacher_head.parameters())
    before = [p.clone() for p in model.teacher_head.parameters()]
    with torch.no_grad():
        for parameter in model.decode_head.parameters():
            parameter.add_(1.0)
    model.update_teacher(0.75)
    pairs = zip(before, model.teacher_head.parameters(), strict=True)
    assert all(torch.allclose(new, old + 0.25, atol=1e-6) for old, new in pairs)


def test_prediction_by_the_teacher():
    model = gated_model().eval()
    with torch.no_grad():
        for parameter in model.decode_head.parameters():
            parameter.zero_()
    image, samples = batch()
    metas = [s.metainfo for s in samples]
    assert not model.encode_decode(image, metas).any()
    model.test_cfg['use_teacher'] = True
    assert model.encode_decode(image, metas).any()
    with pytest.raises(ValueError, match='loss_teacher'):
        gated_model(loss_teacher=None, test_cfg=dict(mode='whole', use_teacher=True))
