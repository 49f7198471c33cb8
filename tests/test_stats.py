"""Intervals: against scipy and closed forms, and whether they cover the truth as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from batchlab import stats
from batchlab._seeds import generator
from batchlab.stats import Interval

RNG = np.random.default_rng  # a new one for each test


def covers(interval, truth):
    return interval.low <= truth <= interval.high


def binomial_band(share, repeats, sigmas=4):
    """The half-width within which a measured coverage must lie."""
    return sigmas * math.sqrt(share * (1 - share) / repeats)


# --- The bootstrap -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 30])
def test_percentile_coverage_is_that_of_theory(n):
    # the bootstrap's standard error lacks Bessel's correction and its quantile is normal: P(|t| < 1.96 sqrt((n-1)/n))
    theory = 1 - 2 * scipy_stats.t(n - 1).sf(1.96 * math.sqrt((n - 1) / n))
    rng, repeats = RNG(0), 800
    found = [stats.bootstrap(rng.normal(3, 2, n), method="percentile", resamples=500, seed=i) for i in range(repeats)]
    share = np.mean([covers(f, 3) for f in found])
    assert abs(share - theory) < binomial_band(theory, repeats) + 0.005  # and 500 resamples for a 2.5% tail


def test_bca_covers_a_skewed_mean_better_than_the_percentile():
    rng, repeats = RNG(1), 400
    draws = rng.lognormal(0, 1, (repeats, 25))
    share = {
        method: np.mean(
            [covers(stats.bootstrap(d, method=method, resamples=500, seed=1), math.exp(0.5)) for d in draws]
        )
        for method in ("bca", "percentile")
    }
    assert 0.80 < share["percentile"] < share["bca"] < 0.95


def test_bootstrap_equals_scipys_own():
    values = RNG(2).gamma(2, size=15)
    ours = stats.bootstrap(values, lambda rows: np.median(rows), resamples=999, seed=4)
    theirs = scipy_stats.bootstrap(
        (values,), np.median, n_resamples=999, method="BCa", random_state=generator(4, "noise")
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert ours.estimate == np.median(values)


def test_rows_are_resampled_whole():
    pairs = np.stack([np.arange(10.0), 5 - np.arange(10.0)], 1)  # every row sums to 5
    found = stats.bootstrap(pairs, lambda rows: rows.sum(1).mean() + 1e-9 * rows[:, 0].mean())
    assert found.low == pytest.approx(5, abs=1e-6) and found.high == pytest.approx(5, abs=1e-6)


def test_the_same_seed_gives_the_same_interval_and_equal_values_a_point():
    values = RNG(3).normal(size=12)
    assert stats.bootstrap(values, seed=1) == stats.bootstrap(values, seed=1) != stats.bootstrap(values, seed=2)
    assert stats.bootstrap([0.7] * 10) == Interval(0.7, 0.7, 0.7)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-5, 5).map(lambda v: round(v, 3)), min_size=4, max_size=15), st.floats(0.1, 10), st.floats(-9, 9)
)
def test_intervals_move_with_shift_and_scale(values, scale, shift):
    values = np.array(values)
    if np.ptp(values) < 0.01:
        return
    one = stats.bootstrap(values, method="percentile", resamples=200)
    two = stats.bootstrap(values * scale + shift, method="percentile", resamples=200)
    assert np.allclose([one.low * scale + shift, one.high * scale + shift], [two.low, two.high], atol=1e-9)
    assert one.low <= one.estimate + 1e-12 and one.estimate <= one.high + 1e-12


def test_pairing_takes_out_what_seeds_share():
    rng = RNG(4)
    shared = rng.normal(0, 1, 20)
    a, b = shared + 0.2 + rng.normal(0, 0.05, 20), shared + rng.normal(0, 0.05, 20)
    paired = stats.paired_difference(a, b)
    assert paired.low > 0.1 and paired.high - paired.low < 0.1
    assert paired.estimate == pytest.approx(a.mean() - b.mean())
    assert stats.bootstrap(a).high - stats.bootstrap(a).low > 5 * (paired.high - paired.low)
    reverse = stats.paired_difference(b, a, method="percentile")
    assert reverse.estimate == pytest.approx(-paired.estimate)


# --- Equivalence and proportions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [-0.02, 0.0, 0.004, 0.02])
def test_tost_is_two_one_sided_t_tests(mean):
    differences = RNG(5).normal(mean, 0.01, 12)
    found, difference = stats.tost(differences, 0.01), stats.tost(differences, 0.01).difference
    error = differences.std(ddof=1) / math.sqrt(12)
    above, below = ((differences.mean() + 0.01) / error, (differences.mean() - 0.01) / error)
    assert found.p == pytest.approx(max(scipy_stats.t(11).sf(above), scipy_stats.t(11).cdf(below)), rel=1e-10)
    inner = scipy_stats.ttest_1samp(differences, 0).confidence_interval(0.90)
    assert (difference.low, difference.high) == pytest.approx((inner.low, inner.high)) and difference.level == 0.9
    assert found.equivalent == (found.p < 0.05) == (-0.01 < difference.low and difference.high < 0.01)


def test_tost_errs_at_the_margin_as_often_as_alpha_says():
    rng, repeats = RNG(6), 2000
    declared = np.mean([stats.tost(rng.normal(0.01, 0.003, 10), 0.01).equivalent for _ in range(repeats)])
    assert abs(declared - 0.05) < binomial_band(0.05, repeats)


def test_tost_of_constant_differences_and_few_seeds():
    assert stats.tost([0.005] * 5, 0.01).equivalent and not stats.tost([0.01] * 5, 0.01).equivalent
    assert not stats.tost([0.0, 0.02, -0.02], 0.01).equivalent  # no difference seen, but too noisy to say so


@pytest.mark.parametrize("k, n", [(0, 10), (1, 10), (5, 10), (10, 10), (137, 500)])
def test_proportion_is_wilsons_formula(k, n):
    z, p = 1.959963984540054, k / n
    centre, half = (p + z * z / 2 / n), z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    found = stats.proportion(k, n)
    assert found.estimate == p
    assert (found.low, found.high) == pytest.approx(
        ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)), abs=1e-12
    )


@pytest.mark.parametrize("n", [2, 5, 30])
def test_the_mean_has_students_interval(n):
    values = RNG(13).normal(3, 2, n)
    found = stats.mean_interval(values, level=0.9)
    theirs = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high)) and found.level == 0.9
    assert found.estimate == pytest.approx(values.mean())


# --- Ratios ------------------------------------------------------------------------------------------------------


def test_fieller_covers_the_true_ratio():
    rng, repeats, truth = RNG(7), 2000, 3.0
    shared = rng.normal(0, 0.3, (repeats, 10))  # numerator and denominator rise and fall together
    b = 1 + shared + rng.normal(0, 0.3, (repeats, 10))
    a = truth + 2 * shared + rng.normal(0, 0.5, (repeats, 10))
    share = np.mean([covers(stats.ratio_of_means(*pair), truth) for pair in zip(a, b, strict=True)])
    assert abs(share - 0.95) < binomial_band(0.95, repeats)


@pytest.mark.parametrize("seed", range(40))
def test_fiellers_interval_holds_the_ratios_that_t_does_not_reject(seed):
    """Every ratio of a grid is tried, from far below 0 to far above; where they have no bounds, see the docstring."""
    rng = RNG(seed)
    top, bottom = rng.normal(0, 2, 2)
    root = rng.normal(size=(2, 2))
    covariance, t2 = root @ root.T / 5, scipy_stats.t(7).ppf(0.95) ** 2
    grid = np.sort(np.concatenate([-np.geomspace(1e-3, 1e6, 4000), [0], np.geomspace(1e-3, 1e6, 4000)]))
    variance = covariance[0, 0] - 2 * grid * covariance[0, 1] + grid**2 * covariance[1, 1]
    kept = (top - grid * bottom) ** 2 <= t2 * variance
    found, scale = (stats.fieller(top, bottom, covariance, 7, level=0.9, positive=p) for p in (False, True))
    if kept[0] or kept[-1]:
        assert (found.low, found.high) == (-math.inf, math.inf)
    else:
        assert (kept == ((found.low <= grid) & (grid <= found.high))).all()
    assert found.estimate == top / bottom
    if bottom > 0 and not kept[-1]:
        assert scale == found
    elif kept[-1]:
        least = grid[kept & (grid >= 0)][0]
        assert least / 1.01 - 1e-3 <= scale.low <= least and scale.high == math.inf
    else:
        assert (scale.low, scale.high) == (0, math.inf)
    assert math.isnan(scale.estimate) == (bottom <= 0)


def test_ratio_of_means_is_not_the_mean_of_ratios_and_can_be_unbounded():
    b = np.array([0.1, 1.0, 2.0, 0.9])
    a = 50 * b + np.array([5.0, -3.0, 1.0, -3.0])
    assert stats.ratio_of_means(a, b).estimate == pytest.approx(50)
    assert (a / b).mean() > 55
    nothing = stats.ratio_of_means([1.0, 2.0, 3.0], [1.0, -1.0, 0.2])
    assert (nothing.low, nothing.high) == (-math.inf, math.inf)
    exact = stats.ratio_of_means([3.0, 3.0], [2.0, 2.0])
    assert (exact.low, exact.estimate, exact.high) == pytest.approx((1.5, 1.5, 1.5))


# --- Fits --------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(exponent=st.floats(-3, 3), factor=st.floats(0.01, 100), points=st.integers(3, 8))
def test_an_exact_power_law_gives_its_exponent(exponent, factor, points):
    x = 2.0 ** np.arange(points)
    found = stats.loglog_slope(x, factor * x**exponent)
    assert found.estimate == pytest.approx(exponent, abs=1e-9)
    assert found.high - found.low < 1e-6


def test_the_slopes_t_interval_is_numpys_and_covers():
    rng, repeats = RNG(8), 1000
    x = 2.0 ** np.arange(6)
    hits = 0
    for i in range(repeats):
        y = 5 * x**-0.5 * np.exp(rng.normal(0, 0.1, 6))
        found = stats.loglog_slope(x, y)
        if i == 0:
            (slope, _), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
            reach = scipy_stats.t(4).ppf(0.975) * math.sqrt(covariance[0, 0])
            assert (found.estimate, found.low) == pytest.approx((slope, slope - reach))
        hits += covers(found, -0.5)
    assert abs(hits / repeats - 0.95) < binomial_band(0.95, repeats)


def test_the_slope_over_seeds_is_the_mean_of_the_seeds_slopes():
    rng = RNG(9)
    x = np.array([1.0, 2, 8, 16])
    y = x ** rng.normal(-1, 0.02, (12, 1)) * np.exp(rng.normal(0, 0.3, (12, 1)))  # each seed its own exponent and level
    slopes = np.polyfit(np.log(x), np.log(y).T, 1)[0]
    found = stats.loglog_slope(x, y, seed=3)
    resampled = stats.bootstrap(slopes, seed=3)  # of slopes fitted by another formula: equal up to rounding
    assert found.estimate == pytest.approx(np.mean(slopes))
    assert (found.low, found.high) == pytest.approx((resampled.low, resampled.high)) and found.level == resampled.level


SIZES = np.array([8.0, 16, 32, 64, 128, 256, 512, 1024])


@settings(max_examples=30, deadline=None)
@given(s_min=st.floats(1, 1e4), b_c=st.floats(2, 4000))
def test_an_exact_law_gives_its_parameters(s_min, b_c):
    exact = s_min * (1 + b_c / SIZES)
    found = stats.fit_steps_to_target(SIZES, [exact, exact], resamples=100)
    assert found.s_min.estimate == pytest.approx(s_min, rel=1e-3) and found.b_c.estimate == pytest.approx(b_c, rel=1e-3)
    assert found.rms_log < 1e-4
    assert np.allclose(found.steps(SIZES), exact, rtol=1e-3) and found.steps(math.inf) == found.s_min.estimate


def noisy(rng, seeds=10, b_c=100.0, sizes=SIZES, sd=0.15):
    level = rng.normal(0, 0.1, (seeds, 1))  # a seed is slow or fast at every size
    return 50 * (1 + b_c / sizes) * np.exp(level + rng.normal(0, sd, (seeds, len(sizes))))


def test_the_fit_is_the_least_squares_of_scipy():
    steps = noisy(RNG(10))
    found = stats.fit_steps_to_target(SIZES, steps)
    fitted, _ = optimize.curve_fit(
        lambda b, s, c: s + np.log1p(np.exp(c) / b), np.tile(SIZES, 10), np.log(steps).ravel(), p0=(4.0, 4.0)
    )
    assert (found.s_min.estimate, found.b_c.estimate) == pytest.approx(tuple(np.exp(fitted)), rel=1e-4)
    misfit = np.log(steps).mean(0) - np.log(found.steps(SIZES))
    assert found.rms_log == pytest.approx(np.sqrt((misfit**2).mean()), rel=1e-6)


def test_the_fits_intervals_cover_about_as_a_bootstrap_of_ten_seeds_does():
    rng, repeats = RNG(11), 400
    found = [stats.fit_steps_to_target(SIZES, noisy(rng), resamples=300, seed=i) for i in range(repeats)]
    for name, truth in (("b_c", 100), ("s_min", 50)):
        share = np.mean([covers(getattr(f, name), truth) for f in found])
        assert abs(share - 0.904) < binomial_band(0.904, repeats) + 0.01  # 90.4%: theory for a mean of ten


def test_no_bend_in_the_data_is_said_not_hidden():
    rng = RNG(12)
    flat = 70 * np.exp(rng.normal(0, 1e-6, (5, 8)))
    perfect = 9000 / SIZES * np.exp(rng.normal(0, 1e-6, (5, 8)))
    scaled = stats.fit_steps_to_target(SIZES, perfect, resamples=100)
    assert scaled.b_c.high == math.inf and scaled.s_min.low == 0 and scaled.rms_log < 1e-3
    assert stats.fit_steps_to_target(SIZES, flat, resamples=100).b_c.low < 0.01
    rising = stats.fit_steps_to_target(SIZES, 70 * SIZES**0.1 * np.exp(rng.normal(0, 1e-6, (5, 8))), resamples=100)
    assert rising.b_c.estimate == 0 and rising.rms_log > 0.1


def test_an_interval_unpacks_as_a_claim_wants_it():
    estimate, (low, high) = stats.proportion(3, 10)
    assert low < estimate == 0.3 < high
    assert str(Interval(0.5, 0.4, math.inf, 0.9)) == "0.5 [0.4, inf]"
    assert Interval(0.5, 0.4, 0.7, 0.9).times(2) == Interval(1.0, 0.8, 1.4, 0.9)


# --- Bad input ---------------------------------------------------------------------------------------------------

NAN = [0.1, math.nan, 0.2]


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: stats.bootstrap([]), "values"),
        (lambda: stats.bootstrap([0.5]), "values"),
        (lambda: stats.bootstrap(0.5), "values"),
        (lambda: stats.bootstrap(NAN), "values"),
        (lambda: stats.bootstrap(["a", "b"]), "values"),
        (lambda: stats.bootstrap([[1, 2], [3, 4]]), "values.ndim"),
        (lambda: stats.bootstrap([1, 2], method="basic"), "method"),
        (lambda: stats.bootstrap([1, 2], level=95), "level"),
        (lambda: stats.bootstrap([1, 2], resamples=10), "resamples"),
        (lambda: stats.bootstrap([1, 2], "mean"), "statistic"),
        (lambda: stats.bootstrap([1, 2], seed=-1), "seed"),
        (lambda: stats.paired_difference([1, 2], [1, 2, 3]), "lengths"),
        (lambda: stats.paired_difference(NAN, [1, 2, 3]), "a = "),
        (lambda: stats.paired_difference([[1], [2]], [1, 2]), "a.ndim"),
        (lambda: stats.tost([0.1, 0.2], 0), "margin"),
        (lambda: stats.tost([0.1, 0.2], -0.1), "margin"),
        (lambda: stats.tost([0.1, 0.2], 0.1, alpha=0.7), "alpha"),
        (lambda: stats.tost([0.1], 0.1), "differences"),
        (lambda: stats.tost(NAN, 0.1), "differences"),
        (lambda: stats.mean_interval([0.5]), "values"),
        (lambda: stats.mean_interval(NAN), "values"),
        (lambda: stats.mean_interval([1, 2], level=0), "level"),
        (lambda: stats.student_t(0), "degrees"),
        (lambda: stats.student_t(3, level=1), "level"),
        (lambda: Interval(1, 0, 2).times(-1), "factor"),
        (lambda: stats.fieller(1.0, 0.0, np.eye(2), 5), "bottom"),
        (lambda: stats.fieller(math.nan, 1.0, np.eye(2), 5), "top"),
        (lambda: stats.fieller(1.0, 1.0, np.eye(3), 5), "covariance"),
        (lambda: stats.fieller(1.0, 1.0, np.eye(2), 5, positive="yes"), "positive"),
        (lambda: stats.proportion(1, 0), "total"),
        (lambda: stats.proportion(5, 4), "successes"),
        (lambda: stats.proportion(-1, 4), "successes"),
        (lambda: stats.proportion(0.5, 4), "successes"),
        (lambda: stats.ratio_of_means([1, 2], [1, -1]), "denominators"),
        (lambda: stats.ratio_of_means([1, 2], [1]), "denominators"),
        (lambda: stats.ratio_of_means(NAN, NAN), "numerators"),
        (lambda: stats.loglog_slope([1, 2, 0], [1, 2, 3]), "x"),
        (lambda: stats.loglog_slope([1, 2, 3], [1, -2, 3]), "y"),
        (lambda: stats.loglog_slope([2, 2, 2], [1, 2, 3]), "x"),
        (lambda: stats.loglog_slope([1, 2], [1, 2]), "x"),
        (lambda: stats.loglog_slope([1, 2, 3], [1, 2]), "y.shape"),
        (lambda: stats.fit_steps_to_target([8, 16], [[1, 2], [3, 4]]), "batch_sizes"),
        (lambda: stats.fit_steps_to_target([8, 16, 32], [[3, 2, 1]]), "steps.shape"),
        (lambda: stats.fit_steps_to_target([8, 16, 32], [3, 2, 1]), "steps.shape"),
        (lambda: stats.fit_steps_to_target([8, 16, 32], [[3, 2, 1], [3, 2, math.nan]]), "steps"),
        (lambda: stats.fit_steps_to_target([8, 16, 32], [[3, 2, 1], [3, 2, math.inf]]), "steps"),
        (lambda: stats.fit_steps_to_target([8, 0, 32], [[3, 2, 1], [3, 2, 1]]), "batch_sizes"),
    ],
)
def test_nonsense_is_refused(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def test_overhead_batch_is_where_the_fitted_law_spends_that_many_more_examples():
    batch_sizes = np.array([8, 32, 128, 512])
    law = stats.fit_steps_to_target(batch_sizes, [w * 100 * (1 + 64 / batch_sizes) for w in (0.9, 1.0, 1.2)])
    batch, fewest = law.overhead_batch(0.2).estimate, 1e-6
    assert batch * law.steps(batch) == pytest.approx(1.2 * fewest * law.steps(fewest), rel=1e-5)
    assert law.steps(batch) == pytest.approx(1.2 * law.perfect_scaling(batch))
    for bad in (0, -0.1, math.inf, True, "much"):
        with pytest.raises(ValueError, match="overhead"):
            law.overhead_batch(bad)
