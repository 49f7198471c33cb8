"""Every closed form against a simulation or a direct computation that does not use it.

A simulation runs thousands of chains at once from one fixed seed. Agreement means within 3 standard errors, measured
over the chains.
"""

import math

import numpy as np
import pytest

from batchlab import theory


def rng(seed):
    return np.random.default_rng(np.random.SeedSequence(seed))


def within_three_errors(samples, expected):
    """The mean of independent ``samples`` agrees with ``expected``, and could have told a 5% error apart."""
    samples = np.asarray(samples)
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    assert 3 * error < 0.05 * abs(expected), "too few samples to hold the formula to anything"
    assert abs(samples.mean() - expected) < 3 * error, (samples.mean(), error, expected)


# --- Gradient descent ------------------------------------------------------------------------------------------------


def gd_losses(h, lr, steps, w):
    losses = [0.5 * np.sum(h * w**2)]
    for _ in range(steps):
        w = w - lr * h * w
        losses.append(0.5 * np.sum(h * w**2))
    return np.array(losses)


@pytest.mark.parametrize("lr", [0.05, 0.4, 0.5, 0.51])
def test_gd_risk_is_gradient_descent(lr):
    h, w = np.array([4.0, 1.0, 0.1]), np.array([1.0, -2.0, 3.0])
    np.testing.assert_allclose(theory.gd_risk(h, lr, 50, w), gd_losses(h, lr, 50, w), rtol=1e-11)


def test_gd_converges_below_the_limit_and_not_at_it():
    h, w = np.array([4.0, 1.0, 0.1]), np.ones(3)
    limit = theory.gd_max_lr(h)
    below, at, above = (gd_losses(h, f * limit, 3000, w) for f in (0.99, 1.0, 1.01))
    assert below[-1] < 1e-9 * below[0]
    assert at[-1] == pytest.approx(0.5 * 4.0)  # the stiffest direction swings for ever
    assert above[-1] > 1e9 * above[0]


@pytest.mark.parametrize("lr", [0.03, 0.2, 0.39, 0.49])
def test_gd_steps_counts_the_steps_of_the_slowest_direction(lr):
    h, eps = np.array([4.0, 1.0, 0.1]), 1e-4
    slowest = np.argmax(abs(1 - lr * h))
    alone = gd_losses(h, lr, 5000, np.eye(3)[slowest])
    spread = gd_losses(h, lr, 5000, np.ones(3))
    predicted = math.ceil(theory.gd_steps(h, lr, eps))
    assert np.argmax(alone <= eps * alone[0]) == predicted
    assert np.argmax(spread <= eps * spread[0]) <= predicted


def test_gd_steps_at_its_edges():
    assert theory.gd_steps([4.0, 1.0], 0.5, 1e-3) == np.inf
    assert theory.gd_steps([2.0], 0.5, 1e-3) == 0  # one Newton step
    assert theory.gd_steps([1.0], 1e-12, 1e-3) == pytest.approx(np.log(1e3) / 2e-12, rel=1e-11)


# --- The laws of a batch gradient ------------------------------------------------------------------------------------


def skewed_set(r, n=60, d=5):
    """Gradients of n examples with a mean, unequal variances and a long tail."""
    return np.array([0.5, -0.2, 0.0, 0.1, 0.3]) + np.array([3, 1, 1, 0.5, 0.2]) * (r.exponential(size=(n, d)) - 1)


@pytest.mark.parametrize("batch_size", [1, 7, 59, 60])
@pytest.mark.parametrize("replace", [True, False])
def test_variance_and_squared_norm_of_a_batch_gradient(batch_size, replace):
    r = rng(11)
    g = skewed_set(r)
    mean, trace = g.mean(0), g.var(0).sum()
    draws = 24_000
    if replace:
        index = r.integers(0, 60, (draws, batch_size))
    else:
        index = r.permuted(np.tile(np.arange(60), (draws, 1)), axis=1)[:, :batch_size]
    batch = g[index].mean(1)
    population = None if replace else 60
    error = ((batch - mean) ** 2).sum(1)
    expected = theory.gradient_variance(trace, batch_size, population)
    if batch_size == 60 and not replace:
        assert expected == 0 and error.max() < 1e-25
        return
    within_three_errors(error, expected)
    squared = theory.gradient_squared_norm(mean @ mean, trace, batch_size, population)
    within_three_errors((batch**2).sum(1), squared)


@pytest.mark.parametrize("batch_size", [1, 8, 64, 512])
def test_cosine_of_a_batch_gradient_in_many_dimensions(batch_size):
    r = rng(12)
    g = r.normal(size=200) * 0.3
    batch = g + r.normal(size=(4000, 200)) / math.sqrt(batch_size)
    cosine = (batch @ g) / np.linalg.norm(batch, axis=1) / np.linalg.norm(g)
    assert cosine.mean() == pytest.approx(theory.gradient_cosine(200 / (g @ g), batch_size), rel=0.02)


def test_the_cosine_is_approximate_in_few_dimensions():
    """Two noisy directions: the formula is off by a few percent, which its docstring warns of."""
    r = rng(13)
    batch = np.array([1.0, 0.0]) + r.normal(size=(20_000, 2))
    measured = (batch[:, 0] / np.linalg.norm(batch, axis=1)).mean()
    assert 0.02 < abs(measured - theory.gradient_cosine(2.0, 1)) < 0.12


# --- Where SGD stays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0.1, 1.0, 1.7])
@pytest.mark.parametrize("population", [None, 10])
def test_mean_estimation(lr, population):
    r, chains, batch_size = rng(21), 20_000, 4
    data = r.exponential(size=10) - 1
    w = np.full(chains, data.mean())
    for _ in range(60 if lr == 0.1 else 30):
        index = (
            r.integers(0, 10, (chains, batch_size))
            if population is None
            else r.random((chains, 10)).argpartition(batch_size, axis=1)[:, :batch_size]
        )
        w = (1 - lr) * w + lr * data[index].mean(1)
    expected = theory.mean_estimation_variance(data.var(), lr, batch_size, population)
    within_three_errors((w - data.mean()) ** 2, expected)


@pytest.mark.parametrize("lr, momentum", [(0.1, 0.0), (0.1, 0.9), (1.5, 0.5), (2.9, 0.5)])
def test_heavy_ball(lr, momentum):
    r, chains, h, c, batch_size = rng(22), 20_000, 1.0, 2.0, 8
    w, v = np.zeros(chains), np.zeros(chains)
    for _ in range(200):
        v = momentum * v + h * w + math.sqrt(c / batch_size) * r.normal(size=chains)
        w = w - lr * v
    within_three_errors(w**2, theory.heavy_ball_variance(h, c, lr, momentum, batch_size))


def test_heavy_ball_without_momentum_is_mean_estimation_and_both_end_at_their_limits():
    assert theory.heavy_ball_variance(1.0, 3.0, 0.4, 0.0, 5) == pytest.approx(
        theory.mean_estimation_variance(3.0, 0.4, 5)
    )
    assert theory.mean_estimation_variance(1.0, 2.0, 1) == math.inf
    assert theory.heavy_ball_variance(2.0, 1.0, 1.5, 0.5, 1) == math.inf  # lr h = 2 (1 + mu)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("steps", [1, 10, 60])
def test_spread_on_a_saddle(batch_size, steps):
    r, chains, b, c, lr = rng(23), 20_000, 0.5, 2.0, 0.1
    y = np.zeros(chains)
    for _ in range(steps):
        y = (1 + lr * b) * y + lr * math.sqrt(c / batch_size) * r.normal(size=chains)
    expected = theory.saddle_spread(b, c, lr, batch_size, steps)
    within_three_errors(y**2, expected)
    assert theory.saddle_steps(b, c, lr, batch_size, math.sqrt(expected)) == pytest.approx(steps)


@pytest.mark.parametrize("lr, batch_size, beta1", [(0.002, 1, 0.9), (0.004, 4, 0.9), (0.002, 1, 0.0)])
def test_adam_floor(lr, batch_size, beta1):
    """Started in its floor; (0.002, 1) and (0.004, 4) have the same one: the square-root rule."""
    r, chains, h, c, beta2 = rng(24), 6000, 1.0, 1.0, 0.999
    expected = theory.adam_variance(h, c, lr, batch_size)
    w = math.sqrt(expected) * r.normal(size=chains)
    m, v = np.zeros(chains), np.full(chains, c / batch_size)
    for _ in range(2500):
        g = h * w + math.sqrt(c / batch_size) * r.normal(size=chains)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        w = w - lr * m / np.sqrt(v)
    assert (w**2).mean() == pytest.approx(expected, rel=3 * math.sqrt(2 / chains))


def test_article_004_progress_against_its_program():
    """Its loop, on inputs of covariance 1 and noiseless targets, 2,000 data sets at once."""
    r, sets, m = rng(25), 2000, 100
    x = r.normal(size=(sets, m, 2))
    for batch_size, tolerance in [(1, None), (10, 0.02), (100, 0.02)]:
        w = np.zeros((sets, 2))
        for i in range(m):
            xi = x[:, i : i + batch_size]
            residual = np.einsum("sij,sj->si", xi, w) - xi @ np.array([0.5, 0.5])
            w -= 0.01 * 2 / m * np.einsum("sij,si->sj", xi, residual)
        share = theory.article_004_progress(m, batch_size, 0.01)
        if tolerance is None:
            within_three_errors(w.mean(1) / 0.5, share)
        else:
            assert w.mean() / 0.5 == pytest.approx(share, rel=tolerance)


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: theory.gd_max_lr([]), "eigenvalues"),
        (lambda: theory.gd_max_lr([1.0, 0.0]), "eigenvalues"),
        (lambda: theory.gd_max_lr([1.0, -1.0]), "eigenvalues"),
        (lambda: theory.gd_max_lr([[1.0]]), "eigenvalues"),
        (lambda: theory.gd_risk([1.0], 0.0, 5, [1.0]), "lr"),
        (lambda: theory.gd_risk([1.0], 0.1, 2.5, [1.0]), "steps"),
        (lambda: theory.gd_risk([1.0], 0.1, 5, [1.0, 2.0]), "weights"),
        (lambda: theory.gd_steps([1.0], 0.1, 1.0), "eps"),
        (lambda: theory.sampling_factor(0, 10), "batch_size"),
        (lambda: theory.sampling_factor(11, 10), "batch_size"),
        (lambda: theory.sampling_factor(1, 1), "population"),
        (lambda: theory.gradient_variance(-1.0, 4), "trace"),
        (lambda: theory.gradient_variance(1.0, 0), "batch_size"),
        (lambda: theory.gradient_squared_norm(-1.0, 1.0, 4), "squared_norm"),
        (lambda: theory.gradient_cosine(math.nan, 4), "b_simple"),
        (lambda: theory.mean_estimation_variance(1.0, -0.1, 4), "lr"),
        (lambda: theory.heavy_ball_variance(1.0, 1.0, 0.1, 1.0, 4), "momentum"),
        (lambda: theory.heavy_ball_variance(0.0, 1.0, 0.1, 0.5, 4), "curvature"),
        (lambda: theory.saddle_spread(-1.0, 1.0, 0.1, 4, 5), "curvature"),
        (lambda: theory.saddle_steps(1.0, 1.0, 0.1, 4, 0.0), "distance"),
        (lambda: theory.adam_variance(1.0, -1.0, 0.1, 4), "variance"),
        (lambda: theory.article_004_progress(100, 0, 0.01), "batch_size"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        call()
