"""What compares two ways to train: tuned, clustered, at a matched loss, twice differenced; and how often it covers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from batchlab import results, stats
from batchlab._seeds import generator
from batchlab.stats import Arm

RNG = np.random.default_rng
INF = math.inf


def ends(interval):
    return interval.low, interval.high


# --- Student's t and bootstrap-t ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 10, 33])
def test_the_paired_t_interval_is_scipys(n):
    a, b = RNG(n).normal(1, 2, (2, n))
    theirs = scipy_stats.ttest_rel(a, b).confidence_interval(0.9)
    found = stats.paired_difference(a, b, method="t", level=0.9)
    assert ends(found) == pytest.approx((theirs.low, theirs.high)) and found.level == 0.9


def test_bootstrap_t_is_the_textbooks_loop():
    values = RNG(0).exponential(1, 12)
    rows = generator(3, "noise").integers(12, size=(999, 12))
    t = []
    for row in rows:
        drawn = values[row]
        t.append((drawn.mean() - values.mean()) / scipy_stats.sem(drawn))
    low, high = np.sort(t)[[25, 973]]  # the quantiles at 0.025 and 0.975 of 999
    found = stats.bootstrap_t(values, resamples=999, seed=3)
    error = scipy_stats.sem(values)
    assert ends(found) == pytest.approx((values.mean() - high * error, values.mean() - low * error), rel=1e-9)
    assert stats.paired_difference(values, 0 * values, method="bootstrap-t", resamples=999, seed=3) == found
    assert stats.bootstrap_t([0.7] * 10) == stats.Interval(0.7, 0.7, 0.7)


def test_the_expanded_percentile_is_as_wide_as_t():
    n = 400  # so that the resampled means are near normal
    values = scipy_stats.norm.ppf((np.arange(n) + 0.5) / n)
    wide = stats.bootstrap(values, method="expanded", resamples=20_000)
    t = stats.mean_interval(values)
    assert wide.high - wide.low == pytest.approx(t.high - t.low, rel=0.03)
    few = RNG(1).normal(0, 1, 10)
    level = 2 * scipy_stats.norm.cdf(2.2621571627 * math.sqrt(10 / 9)) - 1
    plain = stats.bootstrap(few, method="percentile", level=level)
    assert ends(stats.bootstrap(few, method="expanded")) == pytest.approx(ends(plain), abs=1e-9)


METHODS = ("t", "bootstrap-t", "bca", "percentile", "expanded")


@pytest.mark.parametrize("method", [m for m in METHODS if m != "bca"])  # whose bias is a count, which rounding moves
@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.1, 10), shift=st.floats(-9, 9), seed=st.integers(0, 99))
def test_differences_move_with_shift_and_scale(method, scale, shift, seed):
    a, b = RNG(seed).normal(0, 1, (2, 8))
    clusters = [0, 0, 1, 2, 3, 4, 5, 5]
    given = dict(method=method, resamples=200, clusters=clusters)
    one, two = stats.paired_difference(a, b, **given), stats.paired_difference(a * scale + shift, b * scale, **given)
    expected = np.array([one.estimate, one.low, one.high]) * scale + shift
    assert np.allclose([two.estimate, two.low, two.high], expected, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_difference_in_differences_is_the_paired_difference_of_the_changes(method):
    a1, a0, b1, b0 = RNG(2).normal(0, 1, (4, 12))
    given = dict(method=method, clusters=np.arange(12) // 2, resamples=200)
    found = stats.difference_in_differences(a1, a0, b1, b0, **given)
    assert found == stats.paired_difference(a1 - a0, b1 - b0, **given)
    assert found.estimate == pytest.approx(a1.mean() - a0.mean() - b1.mean() + b0.mean())


def test_a_difference_in_differences_by_hand():
    found = stats.difference_in_differences([5, 7, 6], [3, 4, 4], [2, 2, 3], [1, 2, 2])  # 1, 3, 1
    reach = 4.302652729911275 * math.sqrt(4 / 3) / math.sqrt(3)
    assert ends(found) == pytest.approx((5 / 3 - reach, 5 / 3 + reach))


# --- Clusters ----------------------------------------------------------------------------------------------------


def test_clustered_t_is_t_over_the_means():
    values, clusters = [1.0, 3.0, 10.0, 4.0, 5.0, 6.0], ["a", "a", "b", "c", "c", "c"]  # means 2, 10, 5
    theirs = scipy_stats.ttest_1samp([2, 10, 5], 0).confidence_interval(0.95)
    found = stats.mean_interval(values, clusters=clusters)
    assert ends(found) == pytest.approx((theirs.low, theirs.high)) and found.estimate == pytest.approx(17 / 3)


def test_a_clusters_rows_are_drawn_together():
    values, clusters = np.array([0.0, 10.0, 20.0, 1.0, 11.0, 21.0]), [0, 1, 2, 0, 1, 2]
    seen = set()
    stats.bootstrap(values, lambda rows: seen.add(tuple(rows)) or rows.mean(), clusters=clusters, resamples=300)
    whole = {(0.0, 1.0), (10.0, 11.0), (20.0, 21.0)}
    assert len(seen) > 20
    assert all({rows[i : i + 2] for i in range(0, len(rows), 2)} <= whole for rows in seen)
    assert {len(rows) for rows in seen} == {4, 6}  # 4: the jackknife of bca leaves one cluster out


def test_the_clustered_mean_is_scipys_bootstrap_of_the_means_and_one_row_a_cluster_changes_nothing():
    values, clusters = RNG(3).normal(0, 1, 20), np.arange(20) % 7
    means = np.array([values[clusters == k].mean() for k in range(7)])
    theirs = scipy_stats.bootstrap((means,), np.mean, n_resamples=999, random_state=generator(1, "noise"))
    found = stats.bootstrap(values, clusters=clusters, resamples=999, seed=1)
    assert ends(found) == pytest.approx((theirs.confidence_interval.low, theirs.confidence_interval.high))
    for make in (stats.bootstrap, stats.bootstrap_t, stats.mean_interval):
        assert make(values, clusters=np.arange(20)) == make(values)
    statistic = np.median
    assert stats.bootstrap(values, statistic, clusters=np.arange(20)) == stats.bootstrap(values, statistic)


# --- The choice of the rate --------------------------------------------------------------------------------------


def draw(seed, seeds=9, rates=5):
    """A parabola of validation scores with noise as large as a step, and test values."""
    rng = RNG(seed)
    step = np.arange(rates) - rates // 2
    return step**2 + rng.normal(0, 1.5, (seeds, rates)), step + rng.normal(0, 1, (seeds, rates))


RATES = [0.1, 0.2, 0.4, 0.8, 1.6]


def by_loop(validation, test, rows, rule):
    """The mean test value at the rates chosen on these rows: the definition, for one resample."""
    means = [np.mean(validation[rows, rate]) for rate in range(validation.shape[1])]
    best = int(np.argmin(means))
    kept = [best]
    if rule == "tied":
        for rate in range(validation.shape[1]):
            excess = validation[rows, rate] - validation[rows, best]
            if rate != best and excess.mean() <= scipy_stats.sem(excess):
                kept.append(rate)
    return np.mean([test[rows, rate].mean() for rate in kept])


@pytest.mark.parametrize("rule", ["best", "tied"])
@pytest.mark.parametrize("seed", range(4))
def test_tuning_is_done_again_in_every_resample(rule, seed):
    (va, ta), (vb, tb) = draw(seed), draw(seed + 50)
    every = np.arange(9)

    def loop(rows):
        return by_loop(va, ta, rows, rule) - by_loop(vb, tb, rows, rule)

    found = stats.tuned_difference(
        Arm(RATES, va, ta), Arm(RATES, vb, tb), rule=rule, edge="allow", resamples=500, seed=seed
    )
    level = 2 * scipy_stats.norm.cdf(scipy_stats.t(8).ppf(0.975) * math.sqrt(9 / 8)) - 1
    theirs = scipy_stats.bootstrap(
        (every,), loop, n_resamples=500, method="percentile", confidence_level=level,
        random_state=generator(seed, "noise"), vectorized=False,
    ).confidence_interval  # fmt: skip
    assert found.estimate == pytest.approx(loop(every))
    assert ends(found) == pytest.approx((theirs.low, theirs.high)) and found.level == 0.95
    alone = stats.tuned_mean(Arm(RATES, va, ta), rule=rule, edge="allow", resamples=500)
    assert alone.estimate == pytest.approx(by_loop(va, ta, every, rule))


def test_the_rules_by_hand():
    arm = Arm([1, 2, 3, 4], [[5, 1, 2, 9], [5, 2, 1, 9], [5, 1, 2, 9], [5, 1, 2.2, 9]], np.ones((4, 4)))
    # rate 3 is worse by (1, -1, 1, 1.2): mean 0.55, standard error 0.519
    assert arm.chosen() == arm.chosen("tied") == (2.0,)
    arm = Arm([1, 2, 3, 4], [[5, 1, 2, 9], [5, 2, 1, 9], [5, 1, 2, 9], [5, 1, 1.9, 9]], np.ones((4, 4)))
    assert arm.chosen("tied") == (2.0, 3.0)  # by (1, -1, 1, 0.9): 0.475, 0.492
    arm = Arm([1, 2, 3, 4], [[5, 2, 2, 9], [5, 1, 1, 9]], np.ones((2, 4)))
    assert arm.chosen() == (2.0,) and arm.chosen("tied") == (2.0, 3.0)  # of equals the smallest


@pytest.mark.parametrize("clusters", [None, [0, 0, 1, 1, 2, 3, 4, 5, 6]])
def test_one_rate_is_the_plain_paired_difference(clusters):
    (va, ta), (vb, tb) = draw(7, rates=1), draw(8, rates=1)
    given = dict(clusters=clusters, resamples=500, seed=2)
    for rule in ("best", "tied"):
        found = stats.tuned_difference(Arm([0.1], va, ta), Arm([0.2], vb, tb), rule=rule, **given)
        plain = stats.paired_difference(ta[:, 0], tb[:, 0], method="expanded", **given)
        assert [found.estimate, *ends(found)] == pytest.approx([plain.estimate, *ends(plain)], rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(
    scale=st.floats(0.1, 10), shift=st.floats(-9, 9), seed=st.integers(0, 99), rule=st.sampled_from(["best", "tied"])
)
def test_tuned_values_move_with_shift_and_scale_but_not_with_those_of_validation(scale, shift, seed, rule):
    validation, test = draw(seed)
    given = dict(rule=rule, edge="allow", resamples=200)
    one = stats.tuned_mean(Arm(RATES, validation, test), **given)
    two = stats.tuned_mean(Arm(RATES, validation * scale + shift, test * scale + shift), **given)
    assert np.allclose([two.estimate, *ends(two)], np.array([one.estimate, *ends(one)]) * scale + shift, atol=1e-9)


def test_the_same_arm_twice_differs_by_nothing_since_both_are_tuned_on_the_same_seeds():
    arm = Arm(RATES, *draw(3))
    assert stats.tuned_difference(arm, arm, edge="allow") == stats.Interval(0, 0, 0)
    assert stats.tuned_mean(arm, edge="allow").low < stats.tuned_mean(arm, edge="allow").high


def test_a_rate_that_diverged_is_never_chosen():
    validation, test = draw(4)
    validation[:, 1] -= 100  # the best by far,
    validation[2, 1], test[:, 1] = INF, -INF  # but for one seed
    found = stats.tuned_mean(Arm(RATES, validation, test), edge="allow")
    keep = [0, 2, 3, 4]
    without = stats.tuned_mean(Arm(np.array(RATES)[keep], validation[:, keep], test[:, keep]), edge="allow")
    assert [found.estimate, *ends(found)] == pytest.approx([without.estimate, *ends(without)])
    assert 0.2 not in Arm(RATES, validation, test).chosen("tied")


def test_a_chosen_rate_without_a_finite_value_is_named():
    validation, test = draw(5)
    validation[:, 3] = validation[:, 2] + RNG(0).normal(0.3, 1, 9)  # chosen by some resamples only
    test[4, 3] = INF
    assert Arm(RATES, validation, test).chosen() == (0.4,)
    with pytest.raises(ValueError, match=r"(?s)test of arm at lr 0\.8 .*finite"):
        stats.tuned_mean(Arm(RATES, validation, test))
    validation[:, 3] += 1000
    stats.tuned_mean(Arm(RATES, validation, test))


def test_the_edge_of_the_grid_is_told():
    validation, test = draw(6)
    inside, low = Arm(RATES, validation, test), Arm(RATES[2:], validation[:, 2:], test[:, 2:])
    assert inside.chosen() == low.chosen() == (0.4,)
    with pytest.raises(ValueError, match=r"edge of its grid \(0\.4 of b\): .*edge='allow'"):
        stats.tuned_difference(inside, low)
    assert stats.tuned_mean(low, edge="allow").estimate == pytest.approx(test[:, 2].mean())
    stats.tuned_mean(inside, rule="best")


def test_an_edge_that_resamples_choose_is_told_too():
    excess = np.array([2.0, 1, -1, 3, 1, -2, 2, 1, -1.5])  # of rate 0.1 over 0.2: mean 0.61, often below 0 in resamples
    validation = np.stack([excess, 0 * excess, 9 + 0 * excess], 1)
    arm = Arm([0.1, 0.2, 0.4], validation, np.ones((9, 3)))
    share = np.mean([excess[rows].mean() < 0 for rows in RNG(0).integers(9, size=(4000, 9))])
    assert arm.chosen() == (0.2,) and 0.05 < share < 0.3
    with pytest.raises(ValueError, match=r"edge of its grid \(0\.1 of arm, in (\d+)% of resamples\)") as told:
        stats.tuned_mean(arm)
    assert abs(int(str(told.value).split("in ")[1].split("%")[0]) / 100 - share) < 0.03
    stats.tuned_mean(arm, edge="allow")
    assert stats.tuned_mean(Arm([0.1, 0.2, 0.4], validation + [[50, 0, 0]], np.ones((9, 3)))).estimate == 1


# --- Matched loss ------------------------------------------------------------------------------------------------


def test_matched_loss_by_hand():
    loss_a, value_a = [[4, 2, 1], [4, 2, 1]], [[0, 10, 30], [0, 20, 30]]
    loss_b, value_b = [[5, 3, 1, 2, 0], [5, 3, 1, 2, 0]], [[0, 4, 8, 99, 50], [0, 4, 8, 99, 50]]
    # at 1.5: a halfway between 10 and 30, 20 and 30; b three quarters of the way from 4 to 8, the first time
    assert stats.matched_loss(loss_a, value_a, loss_b, value_b, at=1.5).estimate == pytest.approx(22.5 - 7)
    assert stats.matched_loss(loss_a, value_a, loss_b, value_b, at=4).estimate == pytest.approx(0 - 2)
    assert stats.matched_loss(loss_a, value_a, loss_b, value_b, at=1).estimate == pytest.approx(30 - 8)
    plain = stats.paired_difference([20, 25], [7, 7], method="t")
    assert stats.matched_loss(loss_a, value_a, loss_b, value_b, at=1.5) == plain


def test_matched_over_a_range_is_the_mean_over_it():
    rng = RNG(5)
    times = {"a": np.linspace(0, 3, 13), "b": np.linspace(0, 2, 9)}
    level = {"a": 1.0, "b": 1.3}
    loss = {arm: np.exp(-t) * rng.uniform(0.9, 1.1, (6, 1)) for arm, t in times.items()}
    value = {arm: level[arm] - loss[arm] ** 1 for arm in times}  # linear in the loss: interpolation is exact
    found = stats.matched_loss(loss["a"], value["a"], loss["b"], value["b"])
    assert found.estimate == pytest.approx(-0.3, abs=1e-12) and found.high - found.low < 1e-9
    steeper = stats.matched_loss(loss["a"], 2 * loss["a"], loss["b"], loss["b"], at=(0.3, 0.7))
    assert steeper.estimate == pytest.approx(0.5)
    widest = stats.matched_loss(loss["a"], 2 * loss["a"], loss["b"], loss["b"])
    low = max(v.min(1).max() for v in loss.values())
    high = min(v[:, 0].min() for v in loss.values())
    assert widest.estimate == pytest.approx((low + high) / 2)
    backwards = stats.matched_loss(loss["b"], value["b"], loss["a"], value["a"])
    assert backwards.estimate == pytest.approx(-found.estimate)


def test_one_curve_against_itself_is_nothing_whatever_it_does():
    loss, value = RNG(6).uniform(1, 3, (2, 5, 20))
    loss[:, 0], loss[:, -1] = 3, 1
    assert stats.matched_loss(loss, value, loss, value) == stats.Interval(0, 0, 0)


# --- Bad input ---------------------------------------------------------------------------------------------------

V, T = draw(0)
ARM = Arm(RATES, V, T)
NAN = [0.1, math.nan, 0.2]
L, A = [[3.0, 1.0], [3.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: stats.bootstrap([1, 2, 3], clusters=[0, 1]), "clusters.shape"),
        (lambda: stats.bootstrap([1, 2, 3], clusters=[[0], [1], [2]]), "clusters.shape"),
        (lambda: stats.bootstrap([1, 2, 3], clusters=[4, 4, 4]), "clusters = .*two different"),
        (lambda: stats.bootstrap([1, 2, 3], clusters=NAN), "clusters = .*none missing"),
        (lambda: stats.bootstrap([1, 2, 3], clusters=["a", None, "b"]), "clusters = .*none missing"),
        (lambda: stats.bootstrap([1, 2, 3], np.median, clusters=[0, 1]), "clusters.shape"),
        (lambda: stats.mean_interval([1, 2, 3], clusters=[4, 4, 4]), "clusters"),
        (lambda: stats.paired_difference([1, 2], [1, 3], clusters=[1]), "clusters.shape"),
        (lambda: stats.paired_difference([1, 2], [1, 3], method="student"), "method"),
        (lambda: stats.bootstrap([1, 2], method="t"), "method"),
        (lambda: stats.bootstrap_t([1, 2]), "values = .*alike"),
        (lambda: stats.bootstrap_t([1, 1, 1, 1, 1, 2]), "values = .*alike"),
        (lambda: stats.bootstrap_t(NAN), "values"),
        (lambda: stats.bootstrap_t([1, 2, 3, 4], resamples=10), "resamples"),
        (lambda: stats.bootstrap_t([1, 2, 3, 4], level=95), "level"),
        (lambda: stats.bootstrap_t([[1, 2], [3, 4]]), "values.ndim"),
        (lambda: stats.difference_in_differences([1, 2], [1, 2], [1, 2], [1]), "b0"),
        (lambda: stats.difference_in_differences([1, 2], [1, 2], [1, 2, 3], [1, 2]), "lengths"),
        (lambda: stats.difference_in_differences([1, 2, 3], NAN, [1, 2, 3], [1, 2, 3]), "a0"),
        (lambda: Arm([0.2, 0.1], V[:, :2], T[:, :2]), "rates = .*rising"),
        (lambda: Arm([0.1, 0.1], V[:, :2], T[:, :2]), "rates = .*rising"),
        (lambda: Arm([0.0, 0.1], V[:, :2], T[:, :2]), "rates"),
        (lambda: Arm(RATES, V[:, :2], T), "validation.shape"),
        (lambda: Arm(RATES, V[0], T), "validation.shape"),
        (lambda: Arm(RATES, V[:1], T[:1]), "validation.shape"),
        (lambda: Arm(RATES, V, T[:5]), "test.shape"),
        (lambda: Arm(RATES, V, "none"), "test = "),
        (lambda: Arm([0.1], [[math.nan], [1]], [[1], [1]]), "validation = .*NaN"),
        (lambda: Arm([0.1], [[1], [1]], [[math.nan], [1]]), "test = .*NaN"),
        (lambda: Arm([0.1], [[-INF], [1]], [[1], [1]]), "validation = .*lower is better"),
        (lambda: Arm([0.1, 0.2], [[1, INF], [INF, 1]], [[1, 1], [1, 1]]), "validation = .*no seed diverged"),
        (lambda: stats.tuned_mean(V), "arm = .*stats.Arm"),
        (lambda: stats.tuned_mean(ARM, rule="1se"), "rule"),
        (lambda: ARM.chosen("1se"), "rule"),
        (lambda: stats.tuned_mean(ARM, edge="flag"), "edge"),
        (lambda: stats.tuned_mean(ARM, edge="allow", level=95), "level"),
        (lambda: stats.tuned_mean(ARM, edge="allow", resamples=10), "resamples"),
        (lambda: stats.tuned_mean(ARM, edge="allow", clusters=[1, 2]), "clusters.shape"),
        (lambda: stats.tuned_difference(ARM, Arm(RATES, V[:5], T[:5]), edge="allow"), "seeds"),
        (lambda: stats.matched_loss(L, A, L, A, at=0.5), "at = 0.5: .*loss_a never reaches 0.5 in rows .0 1."),
        (lambda: stats.matched_loss(L, A, [[3, 1], [3, 2]], A, at=1.5), "loss_b never reaches 1.5 in rows .1."),
        (lambda: stats.matched_loss(L, A, [[2, 1], [3, 1]], A, at=2.5), "loss_b starts below 2.5 in rows .0."),
        (lambda: stats.matched_loss(L, A, [[2, 3, 1]] * 2, [[0, 0, 1]] * 2, at=2.5), "loss_b starts below 2.5"),
        (lambda: stats.matched_loss(L, A, L, A, at=(0.5, 2)), "loss_a never reaches 0.5"),
        (lambda: stats.matched_loss(L, A, L, A, at=(2, 1)), "at = .*low below high"),
        (lambda: stats.matched_loss(L, A, L, A, at=(1, 2, 3)), "at.shape"),
        (lambda: stats.matched_loss(L, A, L, A, at=INF), "at = "),
        (lambda: stats.matched_loss(L, A, [[1, 0.5], [0.9, 0.1]], A), "at = None: .*in common"),
        (lambda: stats.matched_loss(L, A, L, [[1, 2]], at=2), "value_b.shape"),
        (lambda: stats.matched_loss(L[0], A[0], L, A, at=2), "loss_a.ndim"),
        (lambda: stats.matched_loss([[3, INF], [3, 1]], A, L, A, at=2), "loss_a = "),
        (lambda: stats.matched_loss(L, A, [[3, 1]] * 3, [[0, 1]] * 3, at=2), "seeds"),
        (lambda: stats.matched_loss(L[:1], A[:1], L[:1], A[:1], at=2), "seeds"),
        (lambda: stats.matched_loss(L, A, L, A, at=2, method="z"), "method"),
        (lambda: stats.matched_loss(L, A, L, A, at=2, clusters=[1, 1]), "clusters"),
    ],
)
def test_nonsense_is_refused(make, name):
    with pytest.raises(ValueError, match=f"(?s){name}"):  # an array's lines
        make()


# --- Coverage ----------------------------------------------------------------------------------------------------


def experiment():
    return results.script("00-coverage")


def table():
    return {(row.method, row.n, row.shape): row for row in results.read("00-coverage").itertuples()}


def test_the_committed_table_has_every_cell_with_its_error():
    module, rows = experiment(), table()
    assert list(rows) == module.CELLS
    for row in rows.values():
        share = row.covered
        assert row.nominal == 0.95 and row.seed == module.SEED
        error = math.sqrt(share * (1 - share) / module.REPEATS)
        assert row.mcse == pytest.approx(error, abs=1e-4)  # both are rounded


@pytest.mark.parametrize(
    "subject, cell, said",
    [
        (stats.bootstrap, ("bca", 10, "normal"), "90% (normal values)"),
        (stats.bootstrap, ("bca", 10, "exponential"), "88% (exponential ones)"),
        (stats.bootstrap, ("bca", 20, "normal"), "at n = 20 the default had 93%"),
        (stats.bootstrap, ("bca, clustered", 10, "classes of 5"), "the default covered with 88%"),
        (stats.bootstrap_t, ("bootstrap-t", 10, "exponential"), "94% for exponential ones"),
        (stats.mean_interval, ("t", 10, "exponential"), "of exponential values, 91%"),
        (stats.mean_interval, ("t, clustered", 5, "classes of 5"), "it covered with 94%"),
        (stats.mean_interval, ("t", 5, "classes of 5"), "with 73% where it was not told"),
        (stats.tuned_mean, ("tuned", 10, "tied"), "97% at n = 10"),
        (stats.tuned_mean, ("tuned once", 10, "tied"), "with 47% and 14%"),
        (stats.tuned_mean, ("tuned once", 20, "tied"), "and 14%"),
    ],
)
def test_docstrings_say_what_the_table_says(subject, cell, said):
    share = table()[cell].covered
    assert said in " ".join(subject.__doc__.split())
    assert any(float(part.split()[-1]) == round(100 * share) for part in said.split("%")[:-1])


@pytest.mark.parametrize("cell", [("bca", 10, "normal"), ("tuned", 10, "tied"), ("tuned once", 10, "tied")])
def test_fresh_draws_of_a_cell_agree_with_the_table(cell):
    module, repeats = experiment(), 200
    committed, (found, _) = table()[cell].covered, module.covered(cell, repeats, seed=1)
    pooled = (committed * module.REPEATS + found * repeats) / (module.REPEATS + repeats)
    error = math.sqrt(pooled * (1 - pooled) * (1 / module.REPEATS + 1 / repeats))
    assert abs(found - committed) <= 4 * error
