"""The ridge against parabolas whose lowest point is known, and whether its slope's interval covers the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchlab import stats

RATES = 2.0 ** np.arange(-6, 7)


def parabolas(lowest, scale=1.0):
    """(..., rates): lowest at the binary logarithms given."""
    return scale * (np.log2(RATES) - np.asarray(lowest)[..., None]) ** 2


@given(st.floats(-4.9, 4.9), st.floats(0.1, 10))
def test_a_parabola_is_found_exactly(lowest, scale):
    assert math.log2(stats.best_rates(RATES, parabolas(lowest, scale))) == pytest.approx(lowest, abs=1e-9)


def test_next_to_a_rate_that_diverged_it_is_the_limit_of_ever_higher_losses():
    for left, right in ((3.0, np.inf), (np.inf, 3.0), (np.inf, np.inf)):
        high = [1e12 if value == np.inf else value for value in (left, right)]
        found = stats.best_rates([1, 4, 16], [left, 1.0, right])
        assert found == pytest.approx(stats.best_rates([1, 4, 16], [high[0], 1.0, high[1]]))
    assert stats.best_rates([1, 4, 16], [1.0, 1.0, 1.0], edge="allow") == 1


def test_an_end_of_the_grid_is_an_error_or_taken_as_it_is():
    with pytest.raises(ValueError, match="edge of its grid \\(0.015625\\)"):
        stats.best_rates(RATES, parabolas([0.3, -9]))
    assert stats.best_rates(RATES, parabolas([0.5, -9]), edge="allow") == pytest.approx([2**0.5, RATES[0]])


def test_the_slope_of_planted_rules():
    sizes = np.array([4, 16, 64, 256])
    for exponent in (0, 0.5, 1):
        losses = parabolas(exponent * np.log2(sizes) / 2 - 1)
        slope = stats.ridge_slope(sizes, RATES, [losses] * 3)
        assert tuple(slope)[0] == pytest.approx(exponent / 2) and slope.high - slope.low < 1e-9
    losses = np.where(
        RATES > 2 ** (np.log2(sizes) / 2)[:, None] * 1.5, np.inf, losses
    )  # all rates past the best diverge
    assert tuple(stats.ridge_slope(sizes, RATES, [losses] * 3))[0] == pytest.approx(0.5, abs=0.2)
    own = np.array([RATES * size**0.5 for size in sizes])  # a grid for each size
    slope = stats.ridge_slope(sizes, own, [parabolas(np.zeros(4))] * 2)
    assert slope.estimate == pytest.approx(0.5)


def test_its_interval_covers():
    rng, sizes, hits = np.random.default_rng(0), np.array([4, 16, 64]), 0
    for i in range(200):
        noise = rng.normal(0, 2.0, (10, 3, 1)) * np.log2(RATES) + rng.normal(0, 1, (10, 3, 1))  # each seed its own best
        found = stats.ridge_slope(sizes, RATES, parabolas(np.zeros(3)) + noise, resamples=400, seed=i)
        hits += found.low <= 0 <= found.high
    assert 0.9 <= hits / 200 <= 0.99  # 95 %, standard error 1.5 %


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stats.best_rates([1, 2], [1, 2]), "rates = .* at least three"),
        (lambda: stats.best_rates([1, 2, 5], [1, 0, 2]), "rates = .* equal factors"),
        (lambda: stats.best_rates([4, 2, 1], [1, 0, 2]), "rates = "),
        (lambda: stats.best_rates([1, 2, 4], [1, 0]), "losses.shape = \\(2,\\)"),
        (lambda: stats.best_rates([1, 2, 4], [1, np.nan, 1]), "losses = 'NaN or -inf': .* where a run diverged"),
        (lambda: stats.best_rates([1, 2, 4], [np.inf] * 3), "losses = 'infinite at all rates'"),
        (lambda: stats.best_rates([1, 2, 4], [1, 0, 1], edge="flag"), "edge = 'flag'"),
        (lambda: stats.ridge_slope([1, 1], RATES, np.zeros((2, 2, 13))), "batch_sizes = .* two different"),
        (lambda: stats.ridge_slope([1, 2], RATES, np.zeros((2, 3, 13))), "losses.shape = \\(2, 3, 13\\)"),
        (lambda: stats.ridge_slope([1, 2], RATES[:4], np.zeros((2, 2, 13))), "rates.shape = \\(4,\\)"),
        (lambda: stats.ridge_slope([1, 2], RATES, [parabolas([0, -9])] * 2), "edge of its grid"),
        (lambda: stats.ridge_slope([1, 2], RATES, [parabolas([0, 1])]), "losses.shape = .* at least two seeds"),
    ],
)
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says):
        call()
