import pytest
import torch

from mmwsss.evaluation import ReliabilityMeter


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    reliability = torch.rand(13, 17, generator=generator)
    label = torch.randint(0, 3, (13, 17), generator=generator)
    target = torch.randint(0, 3, (13, 17), generator=generator)
    label[torch.rand(13, 17, generator=generator) < 0.2] = 255
    target[torch.rand(13, 17, generator=generator) < 0.2] = 255
    return reliability, label, target


def counted(triples):
    """(bin, is correct) of every counted pixel, one by one."""
    found = []
    for reliability, label, target in triples:
        rows = zip(
            reliability.flatten().tolist(),
            label.flatten().tolist(),
            target.flatten().tolist(),
            strict=True,
        )
        found += [(int(r * 5), a == b) for r, a, b in rows if 255 not in (a, b)]
    return found


def test_bins_and_separation_equal_a_count_pixel_by_pixel():
    meter = ReliabilityMeter(num_bins=5)
    triples = [maps(0), maps(1)]
    for triple in triples:
        meter.update(*triple)
    pixels = counted(triples)
    result = meter.result()
    assert result['pixels'] == len(pixels)
    assert result['images'] == 2
    for i, entry in enumerate(result['bins']):
        here = [correct for b, correct in pixels if b == i]
        assert entry['pixels'] == len(here)
        assert entry['correct'] == pytest.approx(100 * sum(here) / len(here), abs=1e-3)
        assert entry['low'] == pytest.approx(i / 5)
    good = [b for b, correct in pixels if correct]
    bad = [b for b, correct in pixels if not correct]
    won = sum((g > w) + 0.5 * (g == w) for g in good for w in bad)
    expected = 100 * won / (len(good) * len(bad))
    assert result['separation'] == pytest.approx(expected, abs=1e-3)


def test_perfect_and_useless_reliability():
    label = torch.tensor([[0, 0, 1, 1]])
    target = torch.tensor([[0, 0, 0, 0]])
    perfect, useless = ReliabilityMeter(), ReliabilityMeter()
    perfect.update(torch.tensor([[0.9, 1.0, 0.1, 0.0]]), label, target)
    useless.update(torch.full((1, 4), 0.5), label, target)
    assert perfect.result()['separation'] == 100
    assert useless.result()['separation'] == 50
    assert useless.result()['correct'] == 50


def test_nothing_counted_and_nothing_wrong():
    meter = ReliabilityMeter()
    meter.update(torch.ones(1, 2), torch.full((1, 2), 255), torch.zeros(1, 2).long())
    result = meter.result()
    assert result['correct'] is result['separation'] is None
    assert all(entry['correct'] is None for entry in result['bins'])
    meter.update(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 2))
    assert meter.result()['correct'] == 100
    assert meter.result()['separation'] is None


def test_states_add_up():
    whole, first, second = (ReliabilityMeter() for _ in range(3))
    for meter, seed in ((whole, 0), (whole, 1), (first, 0), (second, 1)):
        meter.update(*maps(seed))
    first.add_state(second.state())
    assert first.result() == whole.result()
    with pytest.raises(ValueError, match='got 0'):
        ReliabilityMeter(num_bins=0)
