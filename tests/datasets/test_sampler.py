import pickle
from itertools import islice

import pytest

from mmwsss.datasets import SeededIndex, SeededStreamSampler
from mmwsss.datasets import sampler as sampler_module


def stream(count, *, skip=0, rank=0, world_size=1, monkeypatch=None, **options):
    monkeypatch.setattr(sampler_module, 'get_dist_info', lambda: (rank, world_size))
    sampler = SeededStreamSampler(range(10), **options)
    sampler.skip(skip)
    return [(int(i), i.seed) for i in islice(sampler, count)]


def test_every_epoch_holds_every_photo_once_in_a_new_order(monkeypatch):
    samples = stream(30, seed=1, monkeypatch=monkeypatch)
    epochs = [[i for i, _ in samples[e : e + 10]] for e in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({seed for _, seed in samples}) == 30


def test_without_shuffle_the_order_is_the_data_sets(monkeypatch):
    samples = stream(12, seed=1, shuffle=False, monkeypatch=monkeypatch)
    assert [i for i, _ in samples] == [*range(10), 0, 1]


def test_skipping_goes_on_where_the_stream_was(monkeypatch):
    whole = stream(40, seed=7, monkeypatch=monkeypatch)
    assert stream(17, seed=7, skip=23, monkeypatch=monkeypatch) == whole[23:]
    with pytest.raises(ValueError, match='got -1'):
        stream(1, seed=7, skip=-1, monkeypatch=monkeypatch)


def test_ranks_share_one_stream(monkeypatch):
    whole = stream(24, seed=2, monkeypatch=monkeypatch)
    parts = [
        stream(8, seed=2, rank=r, world_size=3, monkeypatch=monkeypatch)
        for r in range(3)
    ]
    assert [sample for group in zip(*parts, strict=True) for sample in group] == whole
    late = stream(3, seed=2, skip=5, rank=1, world_size=3, monkeypatch=monkeypatch)
    assert late == parts[1][5:]


def test_seed_decides_and_index_pickles(monkeypatch):
    one, two = (stream(10, seed=s, monkeypatch=monkeypatch) for s in (1, 2))
    assert one != two
    copy = pickle.loads(pickle.dumps(SeededIndex(3, 99)))
    assert (int(copy), copy.seed) == (3, 99)


def test_empty_data_set_is_refused():
    with pytest.raises(ValueError, match='empty'):
        SeededStreamSampler([], seed=0)
