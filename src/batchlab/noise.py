"""How noisy a batch gradient is: per-example gradients, gradient noise scales, and what a batch's gradient points at.

Everywhere the loss is L(w) = (1/N) sum_i loss(model(x_i), y_i), a mean over examples, g_i (P,) is the gradient of
example i's own loss and w holds the parameters that require a gradient, flattened in the order of
``model.named_parameters()``. G is the mean of the g_i and Sigma their covariance:

    B_simple = tr Sigma / |G|^2        B_noise = tr(H Sigma) / (G' H G)        (McCandlish et al., 2018)

with H the Hessian. Gradients are those of the loss alone: before clipping, unscaled, without weight decay. Any
``torch.nn.Module`` on any device, in its own precision; it is never changed. Layers that tie the examples of a batch
together (BatchNorm on batch statistics) have no per-example gradient and are refused, and so is dropout: call
``model.eval()``.

Where the data cannot tell G from zero, the upper end of a noise scale's interval is infinite, and where the estimate of
|G|^2 falls below zero the estimate is NaN. Nothing is clamped.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import special, stats

from batchlab._check import array, count, fail, number, one_of
from batchlab._probe import check_batch, check_deterministic, check_mean_loss, check_model, first_odd

AT_ONCE = 1024  # examples whose gradients are held at once, where memory allows more


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class NoiseScale:
    """What ``noise_scale`` and ``two_batch`` return.

    ``squared_norm`` |G|^2, ``trace`` tr Sigma, ``b_simple`` their ratio in examples, ``b_noise`` in examples (None
    unless asked for).
    """

    squared_norm: Estimate
    trace: Estimate
    b_simple: Estimate
    b_noise: Estimate | None = None


# --- Gradients -------------------------------------------------------------------------------------------------------


def per_example_gradients(model, loss, x, y, memory=2**28):
    """Return the gradient of each example's own loss, a tensor (N, P) on the model's device.

    ``loss(model(x), y)`` is a mean over examples; ``x`` (N, ...), ``y`` (N, ...). ``memory`` in bytes bounds what is
    held besides the result (and besides activations). ``noise_scale`` does not need this matrix.

    Raises ValueError for empty data, a loss that is not a mean over independent examples, a model on batch statistics
    or with dropout on, gradients that are not finite, and a ``memory`` too small for one gradient.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> mse = torch.nn.functional.mse_loss
    >>> per_example_gradients(model, mse, torch.tensor([[1.0, 2.0], [4.0, 1.0]]), torch.tensor([[1.0], [3.0]]))
    tensor([[ -2.,  -4.],
            [-24.,  -6.]])
    """
    objective, w = _objective(model, loss, x, y)
    out = w.new_empty(len(x), len(w))
    for start, g in _gradients(objective, w, x, y, memory):
        out[start : start + len(g)] = g
    return out


def batch_gradients(model, loss, x, y, batch_size, draws, seed=0, replacement=True, memory=2**28):
    """Return the gradients of ``draws`` batches drawn from the N examples at random, a tensor (draws, P).

    With ``replacement`` every example of a batch is an independent draw; without, a batch holds no example twice, and
    each is drawn anew from all N. Raises ValueError as ``per_example_gradients`` does, and for a batch larger than N
    without replacement.

    >>> model = torch.nn.Linear(2, 1)
    >>> x, y = torch.randn(10, 2), torch.randn(10, 1)
    >>> g = batch_gradients(model, torch.nn.functional.mse_loss, x, y, batch_size=10, draws=2, replacement=False)
    >>> bool(torch.allclose(g[0], g[1], atol=1e-6))
    True
    """
    objective, w = _objective(model, loss, x, y)
    one_of("replacement", replacement, (True, False))
    batch_size = count("batch_size", batch_size, at_most=None if replacement else len(x))
    draws, seed = count("draws", draws), count("seed", seed, at_least=0)
    random = np.random.default_rng(np.random.SeedSequence(seed))
    together = max(1, min(_at_once(w, memory), AT_ONCE * 4 // batch_size))
    gradient = torch.func.vmap(torch.func.grad(objective), (None, 0, 0))
    out = w.new_empty(draws, len(w))
    for start in range(0, draws, together):
        rows = min(together, draws - start)
        if replacement:
            index = random.integers(0, len(x), (rows, batch_size))
        else:
            index = np.stack([random.permutation(len(x))[:batch_size] for _ in range(rows)])
        index = torch.from_numpy(index).to(x.device)
        out[start : start + rows] = gradient(w, x[index], y[index]).detach()
    if not torch.isfinite(out).all():
        fail("the gradient of a batch", first_odd(out), "finite numbers only (no NaN, no infinity)")
    return out


def cosine_to_full(model, loss, x, y, batch_size, draws=200, seed=0, replacement=True, memory=2**28):
    """Return the mean cosine between a batch's gradient and the gradient of all N examples, an ``Estimate``.

    About (1 + B_simple / batch_size)^(-1/2), see ``theory.gradient_cosine``. The interval is Student's, over the draws.
    NaN where the full gradient is zero. Arguments and errors as for ``batch_gradients``; at least 2 draws.

    >>> model = torch.nn.Linear(2, 1)
    >>> x, y = torch.randn(10, 2), torch.randn(10, 1)
    >>> full = cosine_to_full(model, torch.nn.functional.mse_loss, x, y, batch_size=10, draws=4, replacement=False)
    >>> round(full.estimate, 5)
    1.0
    """
    count("draws", draws, at_least=2)
    g = batch_gradients(model, loss, x, y, batch_size, draws, seed, replacement, memory)
    objective, w = _objective(model, loss, x, y)
    full = sum(part.double().sum(0) for _, part in _gradients(objective, w, x, y, memory))
    cosine = (g.double() @ full / (g.double().norm(dim=1) * full.norm())).cpu().numpy()
    mean, half = cosine.mean(), _t(draws - 1) * cosine.std(ddof=1) / math.sqrt(draws)
    return Estimate(float(mean), float(mean - half), float(mean + half))


# --- Noise scales from the gradients of single examples --------------------------------------------------------------


def noise_scale(model, loss, x, y, population=None, curvature=False, probes=64, seed=0, memory=2**28):
    """Measure |G|^2, tr Sigma and B_simple (and B_noise with ``curvature``) at the model's parameters.

    ``population``: of how many examples the N in ``x`` are a random sample without replacement. None is endless supply:
    the N are themselves a sample and the intervals say how far from the truth that leaves us. ``population=len(x)``
    says that they are all there is: the numbers are exact, up to rounding, for training on these N.

    |G|^2 is estimated by |g|^2 - tr Sigma / N (times 1 - N/population), without bias; B_simple is a ratio of unbiased
    estimates. No gradient but a running few is stored: ``probes`` + 1 random combinations of all gradients carry
    the interval (and the estimate of tr(H Sigma), at ``probes`` Hessian-vector products), (probes + 1) P numbers.
    The interval holds the ratios that a test does not reject, after Fieller (1954), with the skewness of the estimate
    taken into account. For planted covariances of many shapes and B_simple from 1 to 10^4 it covers 93 to 98%; its weak
    spot is a gradient that lies wholly along the noisiest direction and can barely be told from zero: 88%.

    Raises ValueError as ``per_example_gradients`` does, and for fewer than 4 examples.

    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    >>> found = noise_scale(model, torch.nn.functional.mse_loss, x, x.sum(1, keepdim=True)).b_simple
    >>> found.low < 4.0 < found.high  # least_squares.noise_scales([1, 1, 1], [1, 1, 1])
    True
    """
    objective, w = _objective(model, loss, x, y)
    n = len(x)
    if n < 4:
        fail("len(x)", n, "at least 4 examples")
    population = math.inf if population is None else count("population", population, at_least=n)
    one_of("curvature", curvature, (True, False))
    probes = min(count("probes", probes, at_least=3), n - 1)
    wide = torch.float32 if w.device.type == "mps" else torch.float64
    mix = torch.from_numpy(_mixing(n, probes, count("seed", seed, at_least=0))).to(w.device, wide)

    mixed, squares, shift = torch.zeros(probes + 1, len(w), device=w.device, dtype=wide), [], None
    for start, g in _gradients(objective, w, x, y, memory):
        # Around a point near the mean, so that a covariance far smaller than the mean survives rounding.
        shift = g.mean(0) if shift is None else shift
        g -= shift
        squares.append(torch.linalg.vector_norm(g, dim=1).to(wide).square())
        mixed += mix[:, start : start + len(g)].to(g.dtype) @ g
    squares = torch.cat(squares)
    own = mixed[0] / math.sqrt(n)  # the mean, seen from the shift
    trace = float((squares.sum() - n * own @ own) / (n - 1))
    trace_moves = mix[1:] @ squares - 2 * mixed[1:] @ own  # how |g_i - G|^2 varies, along the probes
    mixed[0] += math.sqrt(n) * shift

    gram = (mixed @ mixed.T).cpu().numpy()
    moves = trace_moves.cpu().numpy()
    left = 1 - n / population
    covariance = left * 2 * np.mean(moves * gram[0, 1:]) / n**1.5
    parts = _Parts(gram, n, left, trace, left * np.mean(moves**2) / n, covariance)
    size = 1 - 1 / population  # Sigma divides by the population, the unbiased trace by one less
    b_noise = None
    if curvature:
        b_noise = _b_noise(mixed, _products(objective, w, x, y, mixed, memory), parts, size)
    return NoiseScale(*_estimates(parts, size), b_noise)


@dataclass(frozen=True)
class _Parts:
    """What an interval is made of: the Gram matrix of sqrt(n) x the mean (row 0) and of probes of Sigma (other rows),
    n, the share of the variance that sampling leaves, tr Sigma, its estimate's variance and covariance with |G|^2's."""

    gram: np.ndarray
    n: int
    left: float
    trace: float
    trace_variance: float
    covariance: float

    def squared_norm(self):
        return (self.gram[0, 0] / self.n) - self.left * self.trace / self.n


def _mixing(n, probes, seed):
    """(probes + 1, n) orthonormal rows, the first constant, the others random: N(G, Sigma) gradients mixed by them are
    sqrt(n) times the mean, and ``probes`` independent draws from N(0, Sigma)."""
    random = np.random.default_rng(np.random.SeedSequence(seed)).standard_normal((n, probes + 1))
    random[:, 0] = 1
    rows = np.linalg.qr(random)[0].T
    return rows * np.sign(rows[0, 0])


def _estimates(parts, size):
    """(|G|^2, tr Sigma, B_simple) as ``Estimate``s."""
    norm = parts.squared_norm()
    half_norm = _t(len(parts.gram) - 1) * math.sqrt(_spread(parts)[0](max(norm, 0.0)))
    half_trace = _t(len(parts.gram) - 1) * math.sqrt(parts.trace_variance)
    ratio = _ratio(parts)
    return (
        Estimate(float(norm), float(norm - half_norm), float(norm + half_norm)),
        *(
            Estimate(*(float(size * v) for v in three))
            for three in ((parts.trace, parts.trace - half_trace, parts.trace + half_trace), ratio)
        ),
    )


def _spread(parts):
    """Two functions of |G|^2: the variance of its estimate, and its third cumulant.

    With z ~ N(0, Sigma / n) the estimate is |G|^2 + 2 G'z + |z|^2 - E|z|^2: its variance is 4 G'Sigma G / n +
    2 tr Sigma^2 / n^2 and its third cumulant 24 G'Sigma^2 G / n^2 + 8 tr Sigma^3 / n^3. The variance along G is taken
    along its estimate.
    """
    n, f, d = parts.n, parts.left, len(parts.gram) - 1
    pairs = parts.gram[1:, 1:] * (1 - np.eye(d))
    square = (pairs**2).sum() / (d * (d - 1))
    cube = max(np.einsum("ij,ji->", pairs @ pairs, pairs) / (d * (d - 1) * (d - 2)), 0.0)
    along = np.mean(parts.gram[0, 1:] ** 2) / parts.gram[0, 0] if parts.gram[0, 0] > 0 else 0.0

    def variance(norm):
        return f * 4 * norm * along / n + f**2 * 2 * square / n**2

    def third(norm):
        return f**2 * 24 * norm * along**2 / n**2 + f**3 * 8 * cube / n**3

    return variance, third


def _ratio(parts):
    """(estimate, low, high) of trace / |G|^2: the ratios 1 / share at which norm - share * trace is not far from 0."""
    norm, trace = parts.squared_norm(), parts.trace
    variance, third = _spread(parts)
    tail = special.ndtr(-_t(len(parts.gram) - 1))

    def below(share):
        """The probability of a smaller value of norm - share * trace, where |G|^2 is share * trace."""
        v = variance(share * trace)
        bound = math.sqrt(v * parts.trace_variance)
        covariance = min(max(parts.covariance, -bound), bound)
        v = v - 2 * share * covariance + share**2 * parts.trace_variance
        gap = norm - share * trace
        return float(gap >= 0) if v <= 0 else _skewed_cdf(gap / math.sqrt(v), third(share * trace) / v**1.5)

    estimate = trace / norm if norm > 0 else math.nan
    if parts.left == 0 and parts.trace_variance == 0:  # all there is was measured
        return (estimate, estimate, estimate) if norm > 0 else (math.nan, 0.0, math.inf)
    at_infinity = below(0.0)
    if at_infinity < tail:  # further below zero than any |G|^2 explains: the data say nothing
        return estimate, 0.0, math.inf
    high = math.inf if at_infinity < 1 - tail else 1 / _falls_to(below, 1 - tail, norm / trace)
    return estimate, 1 / _falls_to(below, tail, abs(norm) / trace), high


def _falls_to(function, level, start):
    """The argument at which a falling function of a positive number is ``level``, found by bisection from ``start``."""
    low = high = start if start > 0 else 1.0
    while function(low) < level and low > 1e-300:
        low /= 4
    while function(high) > level and high < 1e300:
        high *= 4
    for _ in range(60):
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (middle, high) if function(middle) > level else (low, middle)
    return high


def _skewed_cdf(z, skewness):
    """P(Z <= z) of a gamma variable shifted and scaled to mean 0, variance 1 and this skewness >= 0 (Pearson III)."""
    if skewness < 1e-3:
        return float(special.ndtr(z))
    shape = 4 / skewness**2
    return float(special.gammainc(shape, max(shape + z * math.sqrt(shape), 0.0)))


def _b_noise(mixed, products, parts, size):
    """B_noise: as B_simple, with u'Hv in the place of u'v. tr(H Sigma) is the mean over the probes of u'Hu."""
    gram = (mixed @ products.T).cpu().numpy()
    gram = (gram + gram.T) / 2
    own = np.diag(gram)[1:]
    trace, d = own.mean(), len(own)
    # Finite probes leave an error whatever was sampled; sampling adds its own, taken as for tr Sigma.
    sampled = parts.trace_variance * (trace / parts.trace) ** 2 if parts.trace > 0 else 0.0
    along = _Parts(gram, parts.n, parts.left, trace, own.var(ddof=1) / d + sampled, 0.0)
    if trace <= 0 or gram[0, 0] <= 0:  # a Hessian that curves downwards along the noise or the gradient
        norm = along.squared_norm()
        return Estimate(float(size * trace / norm) if norm > 0 else math.nan, -math.inf, math.inf)
    return Estimate(*(float(size * v) for v in _ratio(along)))


# --- Noise scales from the squared norms of two batch sizes ----------------------------------------------------------


def norm_pair(model, loss, x, y, micro_batch):
    """Return (mean |g_small|^2, |g_big|^2) of one batch: its gradient's squared norm, and that of its micro-batches.

    The batch ``x``, ``y`` is cut into equal micro-batches, so ``micro_batch`` divides its size and is smaller. Costs
    about one gradient of the batch, or a step for each micro-batch where steps are too small to keep the machine busy:
    in halves, at every 25th step, it takes less than 10% of a run. Call it with the batch of the step, before the step,
    collect the pairs, and give them to ``two_batch``. To be cheap it does not check that the loss is a mean; try
    ``noise_scale`` once on the same model and loss. Where gradients are accumulated or sharded the pieces are there
    anyway, and their norms cost nothing.

    >>> model = torch.nn.Linear(2, 1)
    >>> small, big = norm_pair(model, torch.nn.functional.mse_loss, torch.randn(8, 2), torch.randn(8, 1), micro_batch=2)
    >>> small > big
    True
    """
    examples, micro_batch = check_batch(x, y), count("micro_batch", micro_batch)
    if examples % micro_batch or micro_batch == examples:
        fail("micro_batch", micro_batch, f"a divisor of the batch's {examples} examples, smaller than it")
    check_deterministic(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    total, small = 0.0, 0.0
    for xb, yb in zip(x.split(micro_batch), y.split(micro_batch), strict=True):
        # Plain autograd: for a few large pieces it is several times faster than vmap.
        pieces = torch.autograd.grad(loss(model(xb), yb), trained, materialize_grads=True)
        g = _at_least_single(torch.cat([piece.reshape(-1) for piece in pieces]))
        total, small = total + g, small + g.dot(g)
    parts = examples // micro_batch
    small, big = float(small / parts), float(total.dot(total) / parts**2)
    if not math.isfinite(small):
        fail("the squared norm of a gradient", small, "a finite number")
    return small, big


def two_batch(small_squared, big_squared, micro_batch, batch_size, population=None):
    """Estimate |G|^2, tr Sigma and B_simple from squared norms of gradients at two batch sizes, one pair a step.

    ``small_squared`` and ``big_squared`` (steps,): |g|^2 of a batch of ``micro_batch`` (or the mean over several) and
    of ``batch_size``, at the same weights; the small one may be part of the big one. From E|g_B|^2 = |G|^2 + a_B tr
    Sigma with a_B = 1/B, every step gives unbiased estimates (McCandlish et al., 2018):

        tr Sigma = (small - big) / (a_small - a_big),  |G|^2 = (big a_small - small a_big) / (a_small - a_big).

    With ``population`` the batches are drawn without replacement from that many examples and
    a_B = (population - B) / (B (population - 1)); leaving that out biases |G|^2 by -tr Sigma / (population - 1).

    B_simple is the ratio of the means over the steps, never the mean of ratios, for the average |G|^2 and tr Sigma of
    the window: keep it short enough that they are of one order. Intervals: Student's, and Fieller's (1954) for the
    ratio. They count on steps being independent given the weights, which fresh draws are.

    Raises ValueError for arrays of unlike or too small size (2 steps), negative or non-finite norms, and
    batch sizes not in order.

    >>> r = np.random.default_rng(0)
    >>> g = 1.0 + 3.0 * r.standard_normal((500, 8, 4))  # |G|^2 = 4, tr Sigma = 36: 8 micro-batches of 1 in a batch
    >>> found = two_batch((g**2).sum(2).mean(1), (g.mean(1) ** 2).sum(1), micro_batch=1, batch_size=8)
    >>> found.b_simple.low < 9.0 < found.b_simple.high
    True
    """
    small = array("small_squared", small_squared, ndim=1, at_least=0)
    big = array("big_squared", big_squared, shape=small.shape, at_least=0)
    if len(small) < 2:
        fail("len(small_squared)", len(small), "at least 2 steps")
    micro_batch = count("micro_batch", micro_batch)
    batch_size = count("batch_size", batch_size, at_least=micro_batch + 1)
    if population is not None:
        population = count("population", population, at_least=batch_size)

    def share(size):  # E|g_B|^2 = |G|^2 + share tr Sigma
        return 1 / size if population is None else (population - size) / (size * (population - 1))

    apart = share(micro_batch) - share(batch_size)
    trace = (small - big) / apart
    norm = (big * share(micro_batch) - small * share(batch_size)) / apart
    t, steps = _t(len(small) - 1), len(small)
    covariance = np.cov(np.stack([trace, norm])) / steps
    mean_trace, mean_norm = trace.mean(), norm.mean()
    half_trace, half_norm = t * np.sqrt(np.diag(covariance))
    return NoiseScale(
        Estimate(float(mean_norm), float(mean_norm - half_norm), float(mean_norm + half_norm)),
        Estimate(float(mean_trace), float(mean_trace - half_trace), float(mean_trace + half_trace)),
        Estimate(*_fieller(mean_trace, mean_norm, covariance, t)),
    )


def _fieller(top, bottom, covariance, t):
    """(top / bottom, low, high): the ratios r >= 0 with (top - r bottom)^2 <= t^2 var(top - r bottom) (Fieller, 1954).

    NaN where ``bottom`` is not above 0, and an infinite end where it cannot be told from 0.
    """
    estimate = float(top / bottom) if bottom > 0 else math.nan
    a = bottom**2 - t**2 * covariance[1, 1]
    b = top * bottom - t**2 * covariance[0, 1]
    c = top**2 - t**2 * covariance[0, 0]
    if a > 0 and bottom < 0 or c < 0 and a < 0:  # bottom surely below 0, or neither can be told from 0
        return estimate, 0.0, math.inf
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0:
        return estimate, float((b - root) / a), float((b + root) / a)
    if a == 0:
        return estimate, float(c / (2 * b)) if b > 0 else 0.0, math.inf
    return estimate, float(max((b - root) / a, (b + root) / a)), math.inf


# --- What both stand on ----------------------------------------------------------------------------------------------


@cache
def _t(degrees):
    return float(stats.t.ppf(0.975, degrees))


def _flat(model, loss):
    """(f, w) with f(w, x, y) the loss of the model at the flat parameters w; nothing of the model is changed."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    held = {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()] if n not in trained}
    w = torch.cat([p.reshape(-1) for p in trained.values()])
    sizes, shapes = [p.numel() for p in trained.values()], [p.shape for p in trained.values()]

    def objective(w, x, y):
        parts = {n: part.view(s) for n, part, s in zip(trained, w.split(sizes), shapes, strict=True)}
        return loss(torch.func.functional_call(model, {**parts, **held}, (x,)), y)

    return objective, w


def _objective(model, loss, x, y):
    check_model(model, loss)
    check_batch(x, y)
    check_deterministic(model)
    objective, w = _flat(model, loss)
    check_mean_loss(lambda xb, yb: objective(w, xb, yb), x, y)
    return objective, w


def _at_once(w, memory):
    """How many gradients fit in half of ``memory``; the other half is for what computes them."""
    one = 2 * w.numel() * w.element_size()
    if number("memory", memory, above=0) < one:
        fail("memory", memory, f"at least {one} bytes, for one gradient of {w.numel()} parameters and its workings")
    return int(memory // one)


def _at_least_single(g):
    """Half-precision gradients as float32: sums of their squares need the digits."""
    return g.to(torch.promote_types(g.dtype, torch.float32))


def _gradients(objective, w, x, y, memory):
    """Yield (start, g) with g (n, P) the gradients of the examples from ``start`` on, a chunk at a time."""
    together = min(_at_once(w, memory), AT_ONCE)
    gradient = torch.func.vmap(torch.func.grad(lambda w, x, y: objective(w, x[None], y[None])), (None, 0, 0))
    for start in range(0, len(x), together):
        g = _at_least_single(gradient(w, x[start : start + together], y[start : start + together]).detach())
        if not torch.isfinite(g.sum()) and not torch.isfinite(g).all():  # the sum is one cheap pass
            row = int((~torch.isfinite(g)).any(1).nonzero()[0, 0])
            fail(f"the gradient of example {start + row}", first_odd(g[row]), "finite numbers only")
        yield start, g


def _products(objective, w, x, y, vectors, memory):
    """H v for each row v of ``vectors`` (k, P), H the Hessian of the mean loss over all examples."""
    out = torch.zeros_like(vectors)
    for xb, yb in zip(x.split(2 * AT_ONCE), y.split(2 * AT_ONCE), strict=True):
        pull = torch.func.vjp(torch.func.grad(lambda u: objective(u, xb, yb)), w)[1]  # noqa: B023
        for i, v in enumerate(vectors):
            out[i] += len(xb) / len(x) * pull(v.to(w.dtype))[0].detach()
    if not torch.isfinite(out).all():
        fail("H v", first_odd(out), "finite numbers only: the loss has no second derivative here")
    return out
