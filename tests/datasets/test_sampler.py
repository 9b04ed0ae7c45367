import pickle
from itertools import islice

import numpy as np
import pytest

from mmwsss.datasets import (
    BalancedStreamSampler,
    SeededIndex,
    SeededStreamSampler,
    WeightedStreamSampler,
)
from mmwsss.datasets import sampler as sampler_module
from mmwsss.datasets.photo_weights import save_photo_weights
from mmwsss.errors import InputError


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


class Labelled:
    """Three photos with an object among thirteen."""

    positives = (2, 5, 11)

    def __init__(self, positives=positives):
        self.positives = positives

    def __len__(self):
        return 13

    def get_data_info(self, index):
        return {'image_label': np.array([0.0, float(index in self.positives)])}


def balanced(count, *, skip=0, rank=0, world_size=1, monkeypatch, **options):
    monkeypatch.setattr(sampler_module, 'get_dist_info', lambda: (rank, world_size))
    sampler = BalancedStreamSampler(Labelled(), **options)
    sampler.skip(skip)
    return [(int(i), i.seed) for i in islice(sampler, count)]


@pytest.mark.parametrize(
    ('fraction', 'block', 'wanted'), [(0.5, 2, 1), (0.25, 4, 1), (0.3, 10, 3)]
)
def test_every_block_has_the_fraction(monkeypatch, fraction, block, wanted):
    samples = balanced(200, pos_fraction=fraction, seed=3, monkeypatch=monkeypatch)
    shown = [i in Labelled.positives for i, _ in samples]
    sums = [sum(shown[b : b + block]) for b in range(0, 200, block)]
    assert set(sums) == {wanted}
    # In no fixed order, so that every rank meets both kinds.
    assert len({tuple(shown[b : b + block]) for b in range(0, 200, block)}) > 1
    assert len({seed for _, seed in samples}) == 200


def test_both_kinds_come_in_epochs_of_their_own(monkeypatch):
    samples = [i for i, _ in balanced(60, seed=0, monkeypatch=monkeypatch)]
    positives = [i for i in samples if i in Labelled.positives]
    negatives = [i for i in samples if i not in Labelled.positives]
    epochs = [tuple(positives[e : e + 3]) for e in range(0, 30, 3)]
    assert all(sorted(epoch) == [2, 5, 11] for epoch in epochs)
    assert len(set(epochs)) > 1
    assert all(len(set(negatives[e : e + 10])) == 10 for e in (0, 10, 20))


def test_balanced_stream_goes_on_and_is_shared_by_ranks(monkeypatch):
    whole = balanced(48, pos_fraction=0.3, seed=7, monkeypatch=monkeypatch)
    rest = balanced(17, pos_fraction=0.3, seed=7, skip=31, monkeypatch=monkeypatch)
    assert rest == whole[31:]
    parts = [
        balanced(
            12, pos_fraction=0.3, seed=7, rank=r, world_size=4, monkeypatch=monkeypatch
        )
        for r in range(4)
    ]
    assert [sample for group in zip(*parts, strict=True) for sample in group] == whole
    assert balanced(48, pos_fraction=0.3, seed=8, monkeypatch=monkeypatch) != whole


def test_balance_needs_both_kinds():
    with pytest.raises(InputError, match='no photo of the data set is without'):
        BalancedStreamSampler(Labelled(range(13)), seed=0)
    with pytest.raises(InputError, match='no photo of the data set is with an'):
        BalancedStreamSampler(Labelled(()), seed=0)
    with pytest.raises(
        ValueError, match='pos_fraction must lie between 0 and 1, got 1'
    ):
        BalancedStreamSampler(Labelled(), pos_fraction=1.0, seed=0)


class Named:
    """Photos called a, b, c, ..."""

    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def get_data_info(self, index):
        return {'img_id': self.names[index]}


@pytest.fixture
def weighted(tmp_path, monkeypatch):
    def draw(weights, count, *, names='abcd', skip=0, rank=0, world_size=1, seed=0):
        monkeypatch.setattr(sampler_module, 'get_dist_info', lambda: (rank, world_size))
        save_photo_weights(tmp_path / 'w.json', dict(zip('abcd', weights, strict=True)))
        sampler = WeightedStreamSampler(
            Named(names), weights=str(tmp_path / 'w.json'), seed=seed
        )
        sampler.skip(skip)
        return [(names[i], i.seed) for i in islice(sampler, count)]

    return draw


def test_equal_weights_give_each_photo_once_an_epoch(weighted):
    for weight in (1, 0.1, 7):
        names = [name for name, _ in weighted([weight] * 4, 400)]
        epochs = [tuple(names[e : e + 4]) for e in range(0, 400, 4)]
        assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple('abcd')}
        assert len(set(epochs)) > 10


def test_photos_come_as_often_as_their_weights_say(weighted):
    weights = [5, 0, 1, 2]
    names = [name for name, _ in weighted(weights, 4000)]
    epochs = np.array(
        [[names[e : e + 4].count(name) for name in 'abcd'] for e in range(0, 4000, 4)]
    )
    wanted = np.array(weights) * 4 / sum(weights)
    # Rounded up or down in each epoch, never further off.
    assert (np.abs(epochs - wanted) < 1).all()
    np.testing.assert_allclose(epochs.mean(0), wanted, atol=0.06)


def test_weighted_stream_goes_on_and_is_shared_by_ranks(weighted):
    weights = [5, 0.5, 1, 2]
    whole = weighted(weights, 48)
    assert len({seed for _, seed in whole}) == 48
    assert weighted(weights, 17, skip=31) == whole[31:]
    parts = [weighted(weights, 12, rank=r, world_size=4) for r in range(4)]
    assert [sample for group in zip(*parts, strict=True) for sample in group] == whole
    assert weighted(weights, 48, seed=1) != whole


def test_photos_without_a_weight_are_refused(weighted):
    with pytest.raises(
        InputError, match=r'1 of 3 photos have no weight in .*first is e'
    ):
        weighted([1, 1, 1, 1], 4, names='abe')
    with pytest.raises(InputError, match='all weights of the photos are 0'):
        weighted([0, 0, 1, 1], 4, names='ab')
    # Others in the file do no harm.
    assert {name for name, _ in weighted([1, 1, 9, 9], 8, names='ab')} == {'a', 'b'}
