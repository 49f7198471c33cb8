"""Gaussian least squares and the noisy quadratic model against simulated SGD and against brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchlab import least_squares, noisy_quadratic

POWER_LAW = 1 / np.arange(1, 51)


def rng(seed):
    return np.random.default_rng(np.random.SeedSequence(seed))


def within_three_errors(samples, expected):
    samples = np.asarray(samples)
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    assert 3 * error < 0.08 * abs(expected), "too few samples to hold the formula to anything"
    assert abs(samples.mean() - expected) < 3 * error, (samples.mean(), error, expected)


def sgd(h, lr, batch_size, steps, e, label_variance, chains, seed):
    """Excess risk of each chain of SGD on real batches of Gaussian inputs and noisy labels, after ``steps``."""
    r = rng(seed)
    e = np.tile(np.asarray(e, float), (chains, 1))
    for _ in range(steps):
        x = r.normal(size=(chains, batch_size, len(h))) * np.sqrt(h)
        residual = np.einsum("cbd,cd->cb", x, e) - math.sqrt(label_variance) * r.normal(size=(chains, batch_size))
        e = e - lr * np.einsum("cbd,cb->cd", x, residual) / batch_size
    return 0.5 * (e**2 @ h)


# --- Least squares ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr, batch_size, noise", [(0.1, 1, 1.0), (0.4, 4, 0.0), (0.6, 8, 0.5)])
@pytest.mark.parametrize("steps", [1, 6, 20])
def test_risk_is_that_of_simulated_sgd(lr, batch_size, noise, steps):
    h, e = np.array([1.0, 0.5, 0.25, 0.125]), np.array([1.0, -1.0, 2.0, 0.5])
    simulated = sgd(h, lr, batch_size, steps, e, noise, 12_000, seed=31)
    within_three_errors(simulated, least_squares.risk(h, lr, batch_size, steps, e, noise)[-1])


@pytest.mark.parametrize("lr, batch_size", [(0.2, 1), (0.5, 4), (0.9, 16)])
def test_floor_is_where_the_recursion_and_sgd_stay(lr, batch_size):
    h, noise = np.array([1.0, 0.5, 0.25]), 0.7
    floor = least_squares.floor(h, lr, batch_size, noise)
    assert least_squares.risk(h, lr, batch_size, 3000, np.ones(3), noise)[-1] == pytest.approx(floor, rel=1e-12)
    within_three_errors(sgd(h, lr, batch_size, 80, np.zeros(3), noise, 20_000, seed=32), floor)


@pytest.mark.parametrize(
    "batch_size, probed", [(1, 0.373), (4, 1.10), (16, 1.75), (64, 1.94), (256, 1.98), (1024, 2.00)]
)
def test_max_lr_is_where_the_recursion_turns(batch_size, probed):
    """The oracle is the spectral radius of the recursion's matrix, built column by column from ``risk``'s rule."""
    limit = least_squares.max_lr(POWER_LAW, batch_size)

    def radius(lr):
        h = POWER_LAW
        columns = [(1 - lr * h) ** 2 * m + lr**2 / batch_size * (h**2 * m + h * (h @ m)) for m in np.eye(len(h))]
        return np.abs(np.linalg.eigvals(np.array(columns).T)).max()

    assert radius(limit * (1 - 1e-9)) < 1 < radius(limit * (1 + 1e-9))
    assert limit == pytest.approx(probed, abs=0.006)
    assert least_squares.floor(POWER_LAW, limit, batch_size, 1.0) == math.inf
    assert math.isfinite(least_squares.floor(POWER_LAW, limit * (1 - 1e-6), batch_size, 1.0))


def test_sgd_diverges_above_max_lr_and_not_below():
    h = np.array([1.0, 1.0, 1.0])
    limit = least_squares.max_lr(h, 4)
    start = 1.5
    below = sgd(h, 0.5 * limit, 4, 60, np.ones(3), 0.0, 200, seed=33)
    above = sgd(h, 2.0 * limit, 4, 60, np.ones(3), 0.0, 200, seed=33)
    assert below.max() < 1e-3 * start and np.median(above) > 1e3 * start


@pytest.mark.parametrize("dimension, batch_size", [(1, 1), (9, 3), (20, 100)])
def test_the_isotropic_one_liners_are_the_general_case(dimension, batch_size):
    h, e, eps = np.ones(dimension), np.ones(dimension), 1e-3
    best = least_squares.isotropic_lr(dimension, batch_size)
    assert least_squares.max_lr(h, batch_size) == pytest.approx(least_squares.isotropic_max_lr(dimension, batch_size))
    one = least_squares.risk(h, best, batch_size, 1, e)
    assert one[1] / one[0] == pytest.approx(least_squares.isotropic_contraction(dimension, batch_size))
    steps, lr = least_squares.min_steps(h, batch_size, e, eps * 0.5 * dimension)
    assert steps == pytest.approx(least_squares.isotropic_steps(dimension, batch_size, eps), rel=1e-4)
    assert lr == pytest.approx(best, rel=0.01)
    error = 2 * least_squares.floor(h, best, batch_size, 0.3)
    assert least_squares.isotropic_error(dimension, best, batch_size, 0.3) == pytest.approx(error)


def test_isotropic_risk_falls_by_exactly_e_at_the_critical_batch():
    """At B = d + 1 the risk halves at each update."""
    assert least_squares.isotropic_steps(15, 16, 0.5) == pytest.approx(1.0)


def test_critical_batch_on_a_power_law():
    """Steps at that batch are twice those of gradient descent, both found by counting updates over a grid of lr."""
    h, e, target = POWER_LAW[:12], np.ones(12), 1e-6
    critical = least_squares.critical_batch(h, e, target)

    def counted(batch_size, limit):
        lrs = limit * np.linspace(0.3, 0.99, 60)
        return min(np.argmax(least_squares.risk(h, lr, batch_size, 300, e) <= target) or 10**9 for lr in lrs)

    alone = counted(1e12, 2.0)
    assert 25 < alone < 100  # each count is rounded up by less than one
    assert abs(counted(critical, least_squares.max_lr(h, critical)) - 2 * alone) <= 2


@pytest.mark.parametrize("label_variance", [0.0, 2.0])
def test_noise_scales_are_those_of_sampled_gradients(label_variance):
    h, e = np.array([2.0, 1.0, 0.5, 0.25]), np.array([0.5, -1.0, 1.0, 2.0])
    r = rng(34)
    x = r.normal(size=(400_000, 4)) * np.sqrt(h)
    g = x * (x @ e - math.sqrt(label_variance) * r.normal(size=len(x)))[:, None]
    mean, covariance = h * e, np.cov(g.T)
    simple, noise = least_squares.noise_scales(h, e, label_variance)
    assert simple == pytest.approx(np.trace(covariance) / (mean @ mean), rel=0.02)
    assert noise == pytest.approx((h * np.diag(covariance)).sum() / (h @ mean**2), rel=0.02)


# --- The noisy quadratic model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr, batch_size, steps", [(0.1, 1, 1), (0.5, 4, 10), (1.5, 16, 40)])
def test_noisy_quadratic_risk_is_that_of_simulated_sgd(lr, batch_size, steps):
    h, c, e = np.array([1.0, 0.3, 0.1]), np.array([1.0, 2.0, 0.0]), np.array([1.0, -1.0, 2.0])
    r, w = rng(41), np.tile(e, (20_000, 1))
    for _ in range(steps):
        w = w - lr * (h * w + np.sqrt(c / batch_size) * r.normal(size=w.shape))
    within_three_errors(0.5 * w**2 @ h, noisy_quadratic.risk(h, c, lr, batch_size, steps, e)[-1])


def test_noisy_quadratic_floor_is_where_risk_stays():
    h, c = np.array([1.0, 0.3, 0.1]), np.array([1.0, 2.0, 0.5])
    risk = noisy_quadratic.risk(h, c, 0.7, 8, 2000, np.ones(3))
    assert risk[-1] == pytest.approx(noisy_quadratic.floor(h, c, 0.7, 8), rel=1e-12)
    assert noisy_quadratic.floor(h, c, 2.0, 8) == math.inf


def test_min_steps_beats_every_learning_rate_on_a_grid_and_is_reached():
    h = 1 / np.arange(1, 11)
    c, e, target = h, np.ones(10), 0.02
    for batch_size in (2, 32, 1024):
        steps, lr = noisy_quadratic.min_steps(h, c, batch_size, e, target)
        counted = [
            np.argmax(noisy_quadratic.risk(h, c, x, batch_size, math.ceil(steps) + 5, e) <= target) or 10**9
            for x in np.concatenate([[lr], lr * np.geomspace(0.2, 3, 30)])
        ]
        assert counted[0] == min(counted) == math.ceil(steps)


def test_noisy_quadratic_critical_batch_doubles_the_steps():
    h = 1 / np.arange(1, 11)
    b = noisy_quadratic.critical_batch(h, h, np.ones(10), 0.02)
    at, without = (noisy_quadratic.min_steps(h, h, x, np.ones(10), 0.02)[0] for x in (b, math.inf))
    assert at == pytest.approx(2 * without, rel=1e-3)


# --- Both ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.01, 4.0), min_size=1, max_size=6),
    st.floats(0.01, 0.9),
    st.sampled_from([1, 2, 8, 64]),
    st.floats(0.0, 2.0),
    st.floats(0.02, 0.9),
)
def test_steps_to_is_the_first_step_of_the_recursion_below_the_target(h, share, batch_size, noise, level):
    """The closed form in t against the recursion, for any spectrum: one step more reaches the target, one less not."""
    e = np.ones(len(h))
    lr = share * least_squares.max_lr(h, batch_size)
    start = 0.5 * np.sum(h)
    target = level * start
    for steps, risk in [
        (
            least_squares.steps_to(h, lr, batch_size, e, target, noise),
            lambda t: least_squares.risk(h, lr, batch_size, t, e, noise),
        ),
        (
            noisy_quadratic.steps_to(h, noise * np.array(h), lr, batch_size, e, target),
            lambda t: noisy_quadratic.risk(h, noise * np.array(h), lr, batch_size, t, e),
        ),
    ]:
        if steps > 20_000:  # never, or too long to count here
            continue
        losses = risk(math.ceil(steps) + 1)
        nearest = round(steps)
        if abs(steps - nearest) < 1e-6:  # on a whole step to rounding: either side will do
            assert losses[nearest] == pytest.approx(target, rel=1e-4)
        else:
            assert losses[math.floor(steps)] > target >= losses[math.ceil(steps)] * (1 - 1e-9)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: least_squares.risk([0.0], 0.1, 1, 5, [1.0]), "eigenvalues"),
        (lambda: least_squares.risk([1.0], 0.1, 0, 5, [1.0]), "batch_size"),
        (lambda: least_squares.risk([1.0], 0.1, 1, -1, [1.0]), "steps"),
        (lambda: least_squares.risk([1.0], 0.1, 1, 5, [1.0], -1.0), "label_variance"),
        (lambda: least_squares.max_lr([], 1), "eigenvalues"),
        (lambda: least_squares.floor([1.0], math.nan, 1, 1.0), "lr"),
        (lambda: least_squares.min_steps([1.0], 1, [1.0], 0.0), "target"),
        (lambda: least_squares.steps_to([1.0], 0.1, 1, [1.0, 1.0], 0.1), "weights"),
        (lambda: least_squares.isotropic_steps(0, 1, 0.1), "dimension"),
        (lambda: least_squares.isotropic_steps(1, 1, 1.0), "eps"),
        (lambda: noisy_quadratic.risk([1.0], [-1.0], 0.1, 1, 5, [1.0]), "variances"),
        (lambda: noisy_quadratic.floor([1.0], [1.0, 1.0], 0.1, 1), "variances"),
        (lambda: noisy_quadratic.min_steps([1.0], [1.0], -1, [1.0], 0.1), "batch_size"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        call()
