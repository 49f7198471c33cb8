"""Gradient noise against exact covariances, planted ones, float64 loops over autograd, and closed forms."""

import copy
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from threadpoolctl import threadpool_limits
from torch.nn import functional as F

from batchlab import least_squares, noise, theory
from batchlab.stats import Interval


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Thousands of tiny measurements: threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Planted(torch.nn.Module):
    """Output x.w: the gradient of the mean output in example i is x_i itself."""

    def __init__(self, size):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return x @ self.w


def mean_output(output, y):
    return output.mean()


def planted(b_simple, n, seed, decay=1.0, size=64):
    """n Gaussian gradients, tr Sigma = 1, eigenvalues ~ i^-decay, |G|^2 = 1 / b_simple in a random direction."""
    random = np.random.default_rng(np.random.SeedSequence(seed))
    eigenvalues = np.arange(1, size + 1) ** -float(decay)
    direction = random.standard_normal(size)
    mean = direction / np.linalg.norm(direction) / math.sqrt(b_simple)
    return mean + np.sqrt(eigenvalues / eigenvalues.sum()) * random.standard_normal((n, size))


def measure_planted(g, **options):
    x = torch.from_numpy(g).float()
    return noise.noise_scale(Planted(g.shape[1]), mean_output, x, torch.zeros(len(x)), **options)


def half_square(output, target):
    return 0.5 * ((output - target) ** 2).mean()


def regression(n, h, e, label_variance, seed):
    """A linear model at error ``e`` from the truth, n Gaussian examples, half-squared loss; float64."""
    h, e = torch.tensor(h, dtype=torch.float64), torch.tensor(e, dtype=torch.float64)
    x = torch.randn(n, len(h), generator=generator(seed), dtype=torch.float64) * h.sqrt()
    label_noise = math.sqrt(label_variance) * torch.randn(n, 1, generator=generator(seed + 1), dtype=torch.float64)
    model = torch.nn.Linear(len(h), 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    return model, x, -x @ e[:, None] + label_noise


def mlp(*sizes, seed=0):
    torch.manual_seed(seed)
    layers = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (torch.nn.Linear(a, b), torch.nn.Tanh())]
    return torch.nn.Sequential(*layers[:-1])


def by_hand(model, loss, x, y):
    """Per-example gradients one backward pass at a time, in float64."""
    model = copy.deepcopy(model).double()
    x = x.double() if x.is_floating_point() else x
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(loss(model(x[i : i + 1]), y[i : i + 1]), trained) for i in range(len(x))]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]).numpy()


# --- Gradients -------------------------------------------------------------------------------------------------------


class Attention(torch.nn.Module):
    """A token model with tied weights, LayerNorm and attention."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.block = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.block(self.embed(x)).mean(1) @ self.embed.weight.T


def cnn():
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 5)
    ).eval()


CASES = {
    "mlp": lambda: (mlp(4, 6, 3), F.cross_entropy, torch.randn(9, 4), torch.arange(9) % 3),
    "cnn with BatchNorm in evaluation": lambda: (cnn(), F.cross_entropy, torch.randn(9, 1, 6, 6), torch.arange(9) % 5),
    "transformer": lambda: (Attention(), F.cross_entropy, torch.randint(0, 11, (9, 7)), torch.arange(9) % 11),
    "regression": lambda: (mlp(4, 3, 2), F.mse_loss, torch.randn(9, 4), torch.randn(9, 2)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", CASES)
def test_per_example_gradients_are_those_of_single_backward_passes(name):
    torch.manual_seed(3)
    model, loss, x, y = CASES[name]()
    before = copy.deepcopy(model.state_dict())
    expected = by_hand(model, loss, x, y)
    size = expected.shape[1]
    for memory in (2**28, 8 * size, 24 * size):  # all at once, one at a time, three at a time
        g = noise.per_example_gradients(model, loss, x, y, memory=memory)
        np.testing.assert_allclose(g.numpy(), expected, atol=2e-6)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_frozen_parameters_are_left_out_and_unused_ones_have_gradient_zero():
    model = mlp(4, 6, 3)
    model[0].bias.requires_grad_(False)
    model.spare = torch.nn.Parameter(torch.ones(2))
    model.forward = lambda x: model[2](model[1](model[0](x)))
    x, y = torch.randn(5, 4), torch.arange(5) % 3
    g = noise.per_example_gradients(model, F.cross_entropy, x, y)
    assert g.shape == (5, 24 + 18 + 3 + 2)
    assert (g == 0).all(0).sum() == 2
    small, big = noise.norm_pair(model, F.cross_entropy, x[:4], y[:4], 1)
    assert small == pytest.approx(float(g[:4].square().sum(1).mean()), rel=1e-5)
    assert big == pytest.approx(float(g[:4].mean(0).square().sum()), rel=1e-5)


@pytest.mark.parametrize("replacement", [True, False])
def test_batch_gradients_follow_the_variance_laws(replacement):
    model, x, y = regression(40, [1.0, 0.5, 0.2], [1.0, 1.0, 1.0], 1.0, seed=5)
    g = noise.per_example_gradients(model, half_square, x, y).numpy()
    full, trace = g.mean(0), g.var(0).sum()
    draws = noise.batch_gradients(model, half_square, x, y, 10, 6000, seed=1, replacement=replacement).numpy()
    error = ((draws - full) ** 2).sum(1)
    expected = theory.gradient_variance(trace, 10, None if replacement else 40)
    assert abs(error.mean() - expected) < 3 * error.std() / math.sqrt(6000)
    centre = np.abs(draws.mean(0) - full) / (draws.std(0) / math.sqrt(6000))
    assert centre.max() < 3.5  # unbiased, at any batch size


def test_batch_gradients_depend_on_their_seed_only():
    model, x, y = regression(40, [1.0, 0.5], [1.0, 1.0], 1.0, seed=5)
    one, same, other = (noise.batch_gradients(model, half_square, x, y, 7, 20, seed=s) for s in (1, 1, 2))
    few = noise.batch_gradients(model, half_square, x, y, 7, 20, seed=1, memory=100)
    assert torch.equal(one, same) and not torch.equal(one, other)
    torch.testing.assert_close(one, few)


@pytest.mark.parametrize("batch_size", [1, 16, 256])
def test_cosine_to_full(batch_size):
    """In 64 dimensions the closed form is good to 2%."""
    x = torch.from_numpy(planted(30.0, 2000, seed=8, decay=0.0)).float()
    found = noise.cosine_to_full(
        Planted(64), mean_output, x, torch.zeros(2000), batch_size, draws=400 + 20_000 // batch_size
    )
    g = x.double().numpy()
    b_simple = g.var(0).sum() / (g.mean(0) @ g.mean(0))
    assert found.estimate == pytest.approx(theory.gradient_cosine(b_simple, batch_size), rel=0.02)
    assert found.low < found.estimate < found.high


def test_cosine_to_a_gradient_of_zero_is_nan():
    x = torch.tensor([[1.0], [-1.0]])
    assert math.isnan(noise.cosine_to_full(Planted(1), mean_output, x, torch.zeros(2), 1, draws=5).estimate)


# --- Exact values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label_variance, h", [(0.0, [1.0] * 10), (1.0, list(1 / np.arange(1.0, 21.0)))])
def test_least_squares_within_3_percent_of_the_closed_form(label_variance, h):
    e = [1.0] * len(h)
    model, x, y = regression(60_000, h, e, label_variance, seed=6)
    found = noise.noise_scale(model, half_square, x, y)
    simple, _ = least_squares.noise_scales(h, e, label_variance)
    assert found.b_simple.estimate == pytest.approx(simple, rel=0.03)
    assert found.b_simple.low < simple < found.b_simple.high
    assert found.b_simple.high / found.b_simple.low < 1.1
    assert found.squared_norm.estimate == pytest.approx((np.array(h) ** 2).sum(), rel=0.03)


def test_a_whole_population_is_measured_exactly():
    """Against the covariance of the gradients written out, in float64."""
    model = mlp(4, 6, 3).double()
    x, y = torch.randn(70, 4, generator=generator(1), dtype=torch.float64), torch.arange(70) % 3
    g = by_hand(model, F.cross_entropy, x, y)
    found = noise.noise_scale(model, F.cross_entropy, x, y, population=70)
    squared, trace = g.mean(0) @ g.mean(0), g.var(0).sum()
    assert found.squared_norm.low == found.squared_norm.high == pytest.approx(squared, rel=1e-10)
    assert found.trace.estimate == pytest.approx(trace, rel=1e-10)
    assert found.b_simple.low == found.b_simple.high == pytest.approx(trace / squared, rel=1e-10)


def test_a_covariance_far_smaller_than_the_mean_survives_float32():
    g = 100.0 + planted(1.0, 500, seed=9)
    found = measure_planted(g, population=500)
    assert found.trace.estimate == pytest.approx(g.astype(np.float32).astype(float).var(0).sum(), rel=1e-3)


@pytest.mark.parametrize("curvature_of", ["least squares", "network"])
def test_b_noise_against_the_hessian_written_out(curvature_of):
    if curvature_of == "least squares":
        model, x, y = regression(400, [2.0, 1.0, 0.5, 0.25], [0.5, -1.0, 1.0, 2.0], 0.5, seed=7)
        loss = half_square
    else:
        model, loss = mlp(3, 4, 2).double(), F.mse_loss
        x = torch.randn(400, 3, generator=generator(2), dtype=torch.float64)
        y = torch.stack([x[:, 0] * x[:, 1], x.sum(1)], 1)
    g = by_hand(model, loss, x, y)
    names, values = zip(*model.named_parameters(), strict=True)

    def flat(w):
        split = w.split([v.numel() for v in values])
        parts = {name: part.view_as(v) for name, part, v in zip(names, split, values, strict=True)}
        return loss(torch.func.functional_call(model, parts, (x,)), y)

    h = torch.autograd.functional.hessian(flat, torch.cat([v.detach().reshape(-1) for v in values])).numpy()
    mean, covariance = g.mean(0), np.cov(g.T, bias=True)
    exact = np.trace(h @ covariance) / (mean @ h @ mean)
    found = noise.noise_scale(model, loss, x, y, population=400, curvature=True, probes=399).b_noise
    assert found.estimate == pytest.approx(exact, rel=1e-8)  # with as many probes as there are directions of data
    hits = 0
    for seed in range(40):  # the data are fixed, the probes are not
        found = noise.noise_scale(model, loss, x, y, population=400, curvature=True, probes=30, seed=seed).b_noise
        hits += found.low <= exact <= found.high
    assert hits >= 34  # 95% of 40 is 38; fewer than 34 has probability 0.003


def test_b_noise_of_least_squares_is_the_closed_form():
    h, e = [2.0, 1.0, 0.5, 0.25], [0.5, -1.0, 1.0, 2.0]
    model, x, y = regression(4000, h, e, 0.5, seed=12)
    found = noise.noise_scale(model, half_square, x, y, curvature=True, probes=200).b_noise
    assert found.low < least_squares.noise_scales(h, e, 0.5)[1] < found.high
    assert found.high / found.low < 1.8


def test_b_noise_where_the_loss_curves_downwards_is_nan_and_says_nothing():
    model, x, y = regression(100, [1.0, 0.5], [1.0, 1.0], 0.1, seed=3)
    found = noise.noise_scale(model, lambda o, t: -half_square(o, t), x, y, curvature=True).b_noise
    assert math.isnan(found.estimate) and found.low == -math.inf and found.high == math.inf


# --- Intervals -------------------------------------------------------------------------------------------------------

LEVELS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
SEEDS = 200


def covered(interval, truth):
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("decay, levels", [(1.0, LEVELS), (0.0, (1.0, 100.0, 10_000.0))])
def test_noise_scale_intervals_cover(decay, levels):
    """200 seeds at each of the planted B_simple, from 1 to 10^4: 95% intervals hold the truth in 93 to 97% of them."""
    hits = np.array(
        [
            [covered(measure_planted(planted(b, 256, [50, i, s], decay), probes=32).b_simple, b) for s in range(SEEDS)]
            for i, b in enumerate(levels)
        ]
    )
    assert 0.93 <= hits.mean() <= 0.97, hits.mean(1)


def pairs(b_simple, steps, micro_batch, parts, seed, size=64):
    """Squared norms of gradients at two batch sizes, of planted Gaussian gradients with eigenvalues ~ 1/i."""
    random = np.random.default_rng(np.random.SeedSequence(seed))
    eigenvalues = 1 / np.arange(1, size + 1)
    mean = random.standard_normal(size)
    mean /= np.linalg.norm(mean) * math.sqrt(b_simple)
    spread = np.sqrt(eigenvalues / eigenvalues.sum() / micro_batch)
    g = mean + spread * random.standard_normal((steps, parts, size))
    return (g**2).sum(2).mean(1), (g.mean(1) ** 2).sum(1)


@pytest.mark.parametrize("interval", ["fieller", "bootstrap"])
def test_two_batch_intervals_cover(interval):
    def hit(b, seed):
        found = noise.two_batch(*pairs(b, 60, 8, 4, seed), 8, 32, interval=interval, seed=seed[-1])
        return covered(found.b_simple, b)

    hits = np.array([[hit(b, [60, i, s]) for s in range(SEEDS)] for i, b in enumerate(LEVELS)])
    assert 0.93 <= hits.mean() <= 0.97, hits.mean(1)


def test_intervals_cover_on_gradients_that_are_not_gaussian():
    """Least squares: products of Gaussians, long-tailed."""
    h, e = list(1 / np.arange(1.0, 11.0)), [1.0] * 10
    truth = least_squares.noise_scales(h, e, 1.0)[0]
    hits = [
        covered(noise.noise_scale(*_regression_arguments(300, h, e, 1.0, 1000 + s)).b_simple, truth)
        for s in range(0, 400, 2)
    ]
    assert 0.91 <= np.mean(hits) <= 0.985  # 200 draws: 95% within three standard errors of the mean, and a little more


def _regression_arguments(*arguments):
    model, x, y = regression(*arguments)
    return model, half_square, x, y


def test_a_part_of_a_population_covers_the_populations_value():
    """200 of 400 without replacement: without the correction the intervals would be 1.4 times too wide."""
    g = planted(20.0, 400, seed=70)
    truth = g.var(0).sum() / (g.mean(0) @ g.mean(0))
    random = np.random.default_rng(np.random.SeedSequence(71))
    found = [measure_planted(g[random.permutation(400)[:200]], population=400).b_simple for _ in range(SEEDS)]
    assert 0.91 <= np.mean([covered(f, truth) for f in found]) <= 0.985
    wider = measure_planted(g[:200]).b_simple
    assert wider.high - wider.low > 1.2 * np.median([f.high - f.low for f in found])


def test_where_the_data_say_nothing_the_interval_says_so():
    """No gradient at all, only noise: in half the cases the estimate of |G|^2 is negative."""
    found = [measure_planted(planted(1e12, 100, [80, s])).b_simple for s in range(100)]
    nan = [math.isnan(f.estimate) for f in found]
    assert 30 <= sum(nan) <= 75
    assert all(math.isinf(f.high) for f, missing in zip(found, nan, strict=True) if missing)
    assert np.mean([math.isinf(f.high) for f in found]) > 0.9
    assert all(f.low >= 0 for f in found)


def test_an_outlier_among_few_examples_leaves_the_trace_unknown_but_the_interval_whole():
    """Where tr Sigma cannot be told from 0 either, the interval begins at 0."""
    found = []
    for n in (4, 5, 6):
        for seed in range(60):
            random = np.random.default_rng([n, seed])
            found.append(measure_planted(1 + random.standard_cauchy((n, 3)) ** 3).b_simple)
    assert sum(f.low == 0 for f in found) > 5
    assert all(0 <= f.low <= f.high for f in found)


def test_gradients_that_are_all_alike_have_noise_scale_zero():
    found = measure_planted(np.ones((20, 3)))
    assert found.b_simple == Interval(0.0, 0.0, 0.0)
    assert found.squared_norm.estimate == pytest.approx(3.0)
    nothing = measure_planted(np.zeros((20, 3))).b_simple
    assert math.isnan(nothing.estimate) and nothing.low == 0 and math.isinf(nothing.high)


def test_a_gradient_along_the_noisiest_direction_is_the_known_weak_spot():
    """What the docstring warns of, held so that the warning stays true."""
    eigenvalues = 1 / np.arange(1, 65)
    eigenvalues /= eigenvalues.sum()
    hits = []
    for s in range(SEEDS):
        random = np.random.default_rng(np.random.SeedSequence([90, s]))
        g = np.sqrt(eigenvalues) * random.standard_normal((256, 64))
        g[:, 0] += math.sqrt(1 / 250)
        hits.append(covered(measure_planted(g).b_simple, 250.0))
    assert 0.80 <= np.mean(hits) <= 0.95


def test_noise_scale_does_not_depend_on_the_order_of_the_examples():
    """Sorted data, the worst case for block means: estimates equal, intervals alike."""
    g = planted(10.0, 300, seed=5)
    found, ordered = measure_planted(g), measure_planted(g[np.argsort(g[:, 0])])
    assert ordered.b_simple.estimate == pytest.approx(found.b_simple.estimate, rel=1e-5)
    width, sorted_width = (f.b_simple.high - f.b_simple.low for f in (found, ordered))
    assert sorted_width == pytest.approx(width, rel=0.5)


# --- Two batch sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("population", [None, 200])
def test_two_batch_is_unbiased_and_without_the_correction_would_not_be(population):
    random = np.random.default_rng(np.random.SeedSequence(100))
    g = planted(60.0, 200, seed=101)
    squared, trace, steps = g.mean(0) @ g.mean(0), g.var(0).sum(), 20_000
    if population is None:
        index = random.integers(0, 200, (steps, 50))
    else:
        index = np.argpartition(random.random((steps, 200)), 50, axis=1)[:, :50]
        index = random.permuted(index, axis=1)
    batch = g[index]
    small, big = (batch[:, :10].mean(1) ** 2).sum(1), (batch.mean(1) ** 2).sum(1)
    found = noise.two_batch(small, big, 10, 50, population)
    for estimate, truth in [(found.squared_norm, squared), (found.trace, trace)]:
        error = (estimate.high - estimate.low) / 2 / 1.96
        assert abs(estimate.estimate - truth) < 3 * error
        assert error < 0.05 * truth
    assert found.b_simple.estimate == pytest.approx(trace / squared, rel=0.1)
    if population:
        naive = noise.two_batch(small, big, 10, 50).squared_norm
        assert naive.estimate - squared == pytest.approx(-trace / 199, rel=0.2)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(1, 50), st.integers(2, 10))
def test_two_batch_inverts_the_law_of_the_squared_norm(squared, trace, micro_batch, parts):
    """Fed the expectations themselves, with and without replacement, it returns what they were made of."""
    big = micro_batch * parts
    for population in (None, 3 * big):
        pair = [theory.gradient_squared_norm(squared, trace, b, population) for b in (micro_batch, big)]
        found = noise.two_batch([pair[0]] * 2, [pair[1]] * 2, micro_batch, big, population)
        scale = squared + trace / micro_batch
        assert found.squared_norm.estimate == pytest.approx(squared, abs=1e-9 * scale * parts)
        assert found.trace.estimate == pytest.approx(trace, abs=1e-9 * scale * big * 3)


def test_two_batch_takes_the_ratio_of_means():
    small, big = np.array([5.0, 3.0, 4.0]), np.array([2.0, 1.5, 0.5])
    norm, trace = (big * 8 - small) / 7, (small - big) / (1 - 1 / 8)
    assert noise.two_batch(small, big, 1, 8).b_simple.estimate == pytest.approx(trace.sum() / norm.sum())


def test_the_bootstrap_resamples_steps_and_comes_from_its_seed():
    small, big = pairs(10.0, 30, 8, 4, seed=1)
    trace, norm = (small - big) / (1 / 8 - 1 / 32), (big / 8 - small / 32) / (1 / 8 - 1 / 32)
    found = [noise.two_batch(small, big, 8, 32, interval="bootstrap", seed=s).b_simple for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    oracle = scipy_stats.bootstrap(
        (trace, norm), lambda a, b, axis: a.mean(axis) / b.mean(axis), paired=True, method="percentile", random_state=0
    ).confidence_interval
    assert found[0].estimate == noise.two_batch(small, big, 8, 32).b_simple.estimate
    assert (found[0].low, found[0].high) == pytest.approx((oracle.low, oracle.high), rel=0.05)


@pytest.mark.parametrize("interval", ["fieller", "bootstrap"])
def test_two_batch_where_nothing_can_be_told(interval):
    small, big = pairs(1e9, 40, 8, 4, seed=4)
    found = noise.two_batch(small, big, 8, 32, interval=interval)
    assert math.isinf(found.b_simple.high)
    bad = [1.0, 1.01, 0.99], [0.01, 0.011, 0.009]
    reversed_ = noise.two_batch(*bad, 1, 2, interval=interval)  # |G|^2 comes out surely negative
    assert math.isnan(reversed_.b_simple.estimate)
    assert (reversed_.b_simple.low, reversed_.b_simple.high) == (0.0, math.inf)


def test_norm_pair_is_the_squared_norms_of_autograd_gradients():
    model = mlp(4, 6, 3)
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    g = by_hand(model, F.cross_entropy, x, y)
    small, big = noise.norm_pair(model, F.cross_entropy, x, y, 3)
    assert small == pytest.approx((g.reshape(4, 3, -1).mean(1) ** 2).sum(1).mean(), rel=1e-5)
    assert big == pytest.approx((g.mean(0) ** 2).sum(), rel=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_measuring_every_25th_step_costs_under_a_tenth_of_a_run():
    """Steps and measurements take turns, so that whatever else the machine does meets both."""
    model = mlp(40, 128, 100, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = torch.randn(128, 40), torch.randint(0, 10, (128,))

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    def pair():
        noise.norm_pair(model, F.cross_entropy, x, y, 64)

    seconds = {step: math.inf, pair: math.inf}
    for _ in range(200):
        for work in seconds:
            start = time.perf_counter()
            work()
            seconds[work] = min(seconds[work], time.perf_counter() - start)
    assert seconds[pair] / (25 * seconds[step]) < 0.10


def test_the_noise_scale_grows_along_training():
    """B_simple of a run, measured as it goes, agrees with the direct measurement on a population at both ends."""
    x = torch.randn(1000, 5, generator=generator(3))
    y = x @ torch.ones(5, 1) + 0.5 * torch.randn(1000, 1, generator=generator(4))
    model = torch.nn.Linear(5, 1)
    random = np.random.default_rng(5)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    ends = []
    for lr in (0.0, 0.05, 0.0):
        small_big = []
        for _ in range(300):
            index = torch.from_numpy(random.integers(0, 1000, 32))
            small_big.append(noise.norm_pair(model, F.mse_loss, x[index], y[index], 8))
            with torch.no_grad():
                grads = torch.autograd.grad(_enabled(model, x[index], y[index]), list(model.parameters()))
                for p, g in zip(model.parameters(), grads, strict=True):
                    p -= lr * g
            if lr and noise.noise_scale(model, F.mse_loss, x, y, population=1000).b_simple.estimate > 60:
                break
        if not lr:
            exact = noise.noise_scale(model, F.mse_loss, x, y, population=1000).b_simple.estimate
            found = noise.two_batch(*np.array(small_big).T, 8, 32).b_simple
            assert found.low < exact < found.high
            ends.append(exact)
    assert ends[1] > 5 * ends[0]


def _enabled(model, x, y):
    with torch.enable_grad():
        return F.mse_loss(model(x), y)


# --- Bad input -------------------------------------------------------------------------------------------------------


def arguments(**changed):
    usual = {"model": mlp(4, 6, 3), "loss": F.cross_entropy, "x": torch.randn(8, 4), "y": torch.arange(8) % 3}
    return {**usual, **changed}


def broken(value):
    model = mlp(4, 6, 3)
    with torch.no_grad():
        model[0].weight[0, 0] = value
    return model


def root_loss(output, y):
    """Infinite slope where the output is 0."""
    return output.abs().sqrt().mean()


BAD = {
    "no examples": (arguments(x=torch.zeros(0, 4), y=torch.zeros(0, dtype=torch.long)), r"^x\.shape"),
    "unlike lengths": (arguments(y=torch.arange(7) % 3), r"^len\(y\)"),
    "NaN in the data": (arguments(x=torch.full((8, 4), math.nan)), "^x = nan"),
    "no tensor": (arguments(x=np.zeros((8, 4))), "^x = 'ndarray'"),
    "no module": (arguments(model=lambda x: x), "^model"),
    "nothing to train": (arguments(model=torch.nn.ReLU()), "^model"),
    "NaN in the weights": (arguments(model=broken(math.nan)), r"^model\.0\.weight"),
    "a sum": (arguments(loss=lambda o, t: F.cross_entropy(o, t, reduction="sum")), "^loss"),
    "no reduction": (arguments(loss=lambda o, t: F.cross_entropy(o, t, reduction="none")), "^loss"),
    "BatchNorm in training": (
        arguments(model=torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))),
        r"^model\.1 = 'BatchNorm1d'.*model\.eval",
    ),
    "dropout in training": (
        arguments(model=torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))),
        r"^model\.1 = 'Dropout'",
    ),
    "an infinite gradient": (arguments(model=Planted(4), loss=root_loss), "^the gradient of example 0"),
    "no memory": (arguments(memory=10), "^memory"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_every_measurement(name):
    given, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        noise.per_example_gradients(**given)
    with pytest.raises(ValueError, match=message):
        noise.noise_scale(**given)
    with pytest.raises(ValueError, match=message.replace("example 0", "a batch")):
        noise.batch_gradients(**given, batch_size=2, draws=3)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda a: noise.noise_scale(**{**a, "x": a["x"][:3], "y": a["y"][:3]}), r"len\(x\)"),
        (lambda a: noise.noise_scale(**a, population=7), "population"),
        (lambda a: noise.noise_scale(**a, curvature="yes"), "curvature"),
        (lambda a: noise.noise_scale(**a, probes=2), "probes"),
        (lambda a: noise.noise_scale(**a, seed=-1), "seed"),
        (lambda a: noise.batch_gradients(**a, batch_size=0, draws=3), "batch_size"),
        (lambda a: noise.batch_gradients(**a, batch_size=9, draws=3, replacement=False), "batch_size"),
        (lambda a: noise.batch_gradients(**a, batch_size=2, draws=0), "draws"),
        (lambda a: noise.batch_gradients(**a, batch_size=2, draws=2, replacement="no"), "replacement"),
        (lambda a: noise.cosine_to_full(**a, batch_size=2, draws=1), "draws"),
        (lambda a: noise.norm_pair(**a, micro_batch=3), "micro_batch"),
        (lambda a: noise.norm_pair(**a, micro_batch=8), "micro_batch"),
        (lambda a: noise.norm_pair(**{**a, "model": broken(math.nan)}, micro_batch=4), r"model\.0\.weight"),
        (lambda a: noise.norm_pair(**{**a, "loss": lambda o, t: o.mean() * math.nan}, micro_batch=4), "the squared"),
        (lambda a: noise.two_batch([1.0], [1.0], 1, 2), r"len\(small_squared\)"),
        (lambda a: noise.two_batch([1.0, 2.0], [1.0], 1, 2), "big_squared"),
        (lambda a: noise.two_batch([1.0, math.nan], [1.0, 1.0], 1, 2), "small_squared"),
        (lambda a: noise.two_batch([1.0, -1.0], [1.0, 1.0], 1, 2), "small_squared"),
        (lambda a: noise.two_batch([1.0, 2.0], [1.0, 1.0], 2, 2), "batch_size"),
        (lambda a: noise.two_batch([1.0, 2.0], [1.0, 1.0], 1, 4, population=3), "population"),
        (lambda a: noise.two_batch([1.0, 2.0], [1.0, 1.0], 1, 4, interval="t"), "interval"),
    ],
)
def test_a_bad_number_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        call(arguments())
