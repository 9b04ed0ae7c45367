import math

import numpy as np
import pytest

from mmwsss.functional.schedule import (
    cosine,
    piecewise_constant,
    piecewise_linear,
    warmup_poly,
)

RAMP = [(0.1, 0.0), (0.3, 2.0), (0.5, 2.0), (0.9, -1.0)]


def test_piecewise_linear_equals_numpy_interp():
    places, values = zip(*RAMP, strict=True)
    for progress in np.linspace(-0.2, 1.2, 57):
        expected = np.interp(progress, places, values)
        assert piecewise_linear(float(progress), RAMP) == pytest.approx(expected)


def test_piecewise_linear_jumps_to_the_later_value():
    points = [[0.0, 1.0], [0.5, 1.0], [0.5, 3.0], [1.0, 3.0]]
    assert piecewise_linear(0.4999, points) == 1.0
    assert piecewise_linear(0.5, points) == 3.0


@pytest.mark.parametrize('progress', [0, 0.4, 1])
def test_piecewise_linear_of_one_point_is_constant(progress):
    value = piecewise_linear(progress, [(0.4, 7)])
    assert value == 7.0
    assert isinstance(value, float)


def test_cosine_hits_its_ends_and_middle():
    schedule = {'start': 0.55, 'end': 0.825, 'begin': 0.44, 'finish': 0.625}
    assert cosine(0.0, **schedule) == cosine(0.44, **schedule) == 0.55
    assert cosine(0.625, **schedule) == cosine(1.0, **schedule) == 0.825
    assert cosine(0.5325, **schedule) == pytest.approx((0.55 + 0.825) / 2)
    quarter = cosine(0.25, start=1.0, end=0.0)
    assert quarter == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_cosine_is_monotone():
    values = [cosine(i / 100, start=0.7, end=0.55) for i in range(101)]
    assert values == sorted(values, reverse=True)


def test_warmup_poly_gives_the_published_learning_rates():
    def rate(iteration):
        return 2e-4 * warmup_poly(iteration, max_iters=30000)

    assert rate(0) == pytest.approx(2e-10)
    assert rate(25) == pytest.approx(2e-4 * (1 - 0.5 * (1 - 1e-6)))
    assert rate(50) == pytest.approx(1.9967e-4, rel=1e-4)
    assert rate(15000) == pytest.approx(1e-4)
    assert rate(30000) == rate(40000) == 0.0


def test_warmup_poly_power_and_no_warmup():
    assert warmup_poly(0, max_iters=10, warmup_iters=0) == 1.0
    assert warmup_poly(5, max_iters=10, warmup_iters=0, power=2.0) == 0.25
    # A training shorter than its warm-up still rises.
    values = [warmup_poly(i, max_iters=5) for i in range(5)]
    assert values == sorted(values)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: piecewise_linear(0.5, []), r'at least one pair, got \[\]'),
        (lambda: piecewise_linear(0.5, [(0.5, 1), (0.1, 0)]), 'sorted'),
        (lambda: piecewise_linear(0.5, [(0.5, 1, 2)]), r'pair, got \(0.5, 1, 2\)'),
        (lambda: piecewise_linear(math.nan, RAMP), 'progress .* got nan'),
        (lambda: cosine(math.nan, start=0, end=1), 'progress .* got nan'),
        (
            lambda: cosine(0.5, start=0, end=1, begin=0.6, finish=0.2),
            'got 0.6 and 0.2',
        ),
        (lambda: warmup_poly(-1, max_iters=5), 'got -1'),
        (lambda: warmup_poly(1, max_iters=0), 'got 0'),
    ],
)
def test_errors_show_what_was_received(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_piecewise_constant_holds_the_last_value_reached():
    points = [(0.1, 0.5), (0.25, 0.75), (0.5, 1.0)]
    expected = {0.0: 0.5, 0.1: 0.5, 0.2499: 0.5, 0.25: 0.75, 0.4999: 0.75, 0.5: 1.0}
    for progress, value in {**expected, 1.0: 1.0, 7.0: 1.0}.items():
        assert piecewise_constant(progress, points) == value
    assert piecewise_constant(0.5, [(0.5, 1), (0.5, 2)]) == 2.0
    with pytest.raises(ValueError, match='sorted'):
        piecewise_constant(0.5, points[::-1])
    with pytest.raises(ValueError, match='at least one'):
        piecewise_constant(0.5, [])
    with pytest.raises(ValueError, match='must be a number'):
        piecewise_constant(math.nan, points)
