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

import numpy as np
import torch

from batchlab._check import array, count, fail, one_of
from batchlab._seeds import generator
from batchlab.instruments._flat import AT_ONCE, at_least_single, at_once, checked, gradients, products
from batchlab.instruments._probe import check_batch, check_deterministic, first_odd
from batchlab.instruments._ratio import Estimate, Parts, bootstrapped, estimates, fieller, ratio, student_t


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
    objective, w = checked(model, loss, x, y)
    out = w.new_empty(len(x), len(w))
    for start, g in gradients(objective, w, x, y, memory):
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
    objective, w = checked(model, loss, x, y)
    one_of("replacement", replacement, (True, False))
    batch_size = count("batch_size", batch_size, at_most=None if replacement else len(x))
    draws, seed = count("draws", draws), count("seed", seed, at_least=0)
    random = np.random.default_rng(np.random.SeedSequence(seed))
    together = max(1, min(at_once(w, memory), AT_ONCE * 4 // batch_size))
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
    objective, w = checked(model, loss, x, y)
    full = sum(part.sum(0).cpu().double() for _, part in gradients(objective, w, x, y, memory))
    g = g.cpu().double()
    cosine = (g @ full / (g.norm(dim=1) * full.norm())).numpy()
    mean, half = cosine.mean(), student_t(draws - 1) * cosine.std(ddof=1) / math.sqrt(draws)
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
    spot is a gradient that lies wholly along the noisiest direction and can barely be told from zero: 88%. That of
    B_noise errs on the wide side at the usual ``probes``.

    Raises ValueError as ``per_example_gradients`` does, and for fewer than 4 examples.

    >>> model = torch.nn.Linear(3, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    >>> found = noise_scale(model, torch.nn.functional.mse_loss, x, x.sum(1, keepdim=True)).b_simple
    >>> found.low < 4.0 < found.high  # least_squares.noise_scales([1, 1, 1], [1, 1, 1])
    True
    """
    objective, w = checked(model, loss, x, y)
    n = len(x)
    if n < 4:
        fail("len(x)", n, "at least 4 examples")
    population = math.inf if population is None else count("population", population, at_least=n)
    one_of("curvature", curvature, (True, False))
    probes = min(count("probes", probes, at_least=3), n - 1)
    wide = torch.float32 if w.device.type == "mps" else torch.float64
    mix = torch.from_numpy(_mixing(n, probes, count("seed", seed, at_least=0))).to(w.device, wide)

    mixed, squares, shift = torch.zeros(probes + 1, len(w), device=w.device, dtype=wide), [], None
    for start, g in gradients(objective, w, x, y, memory):
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
    parts = Parts(gram, n, left, trace, left * np.mean(moves**2) / n, covariance)
    size = 1 - 1 / population  # Sigma divides by the population, the unbiased trace by one less
    b_noise = None
    if curvature:
        b_noise = _b_noise(mixed, *products(objective, w, x, y, mixed, seed), parts, size)
    return NoiseScale(*estimates(parts, size), b_noise)


def _mixing(n, probes, seed):
    """(probes + 1, n) orthonormal rows, the first constant, the others random: N(G, Sigma) gradients mixed by them are
    sqrt(n) times the mean, and ``probes`` independent draws from N(0, Sigma)."""
    random = np.random.default_rng(np.random.SeedSequence(seed)).standard_normal((n, probes + 1))
    random[:, 0] = 1
    rows = np.linalg.qr(random)[0].T
    return rows * np.sign(rows[0, 0])


def _b_noise(mixed, bent, forms, parts, size):
    """B_noise: as B_simple, with u'Hv in the place of u'v. tr(H Sigma) is the mean over the probes of u'Hu.

    tr Sigma is known without probes, so how far the probes miss it tells how far they miss tr(H Sigma): a control
    variate, which for H = I leaves no error of probing. H is estimated too: ``forms`` (pieces, probes + 1) are the u'Hu
    of pieces of the data. The interval leaves out what the control variate gains, to make up for the correlation of
    the errors of H and of the gradients, which is left out as well: it errs on the wide side.
    """
    gram = (mixed @ bent.T).cpu().numpy()
    gram = (gram + gram.T) / 2
    own, plain = np.diag(gram)[1:], np.diag(parts.gram)[1:]
    slope = np.cov(own, plain)[0, 1] / plain.var(ddof=1) if plain.var() > 0 else 0.0
    trace = own.mean() - slope * (plain.mean() - parts.trace)
    probing = own.var(ddof=1) / len(own)
    # What sampling adds to the error of probing is taken in proportion to its part in tr Sigma and |G|^2.
    share = trace / parts.trace if parts.trace > 0 else 0.0
    stretch = gram[0, 0] / parts.gram[0, 0] if parts.gram[0, 0] > 0 else 0.0
    traces = forms[:, 1:].mean(1)
    hessian = parts.left * np.cov(traces, (forms[:, 0] - parts.left * traces) / parts.n) / len(forms)
    variance = probing + parts.trace_variance * share**2 + hessian[0, 0]
    covariance = parts.covariance * share * stretch + hessian[0, 1]
    along = Parts(gram, parts.n, parts.left, trace, variance, covariance, hessian[1, 1])
    if trace <= 0 or gram[0, 0] <= 0:  # a Hessian that curves downwards along the noise or the gradient
        norm = along.squared_norm()
        return Estimate(float(size * trace / norm) if norm > 0 else math.nan, -math.inf, math.inf)
    return ratio(along).times(size)


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
        g = at_least_single(torch.cat([piece.reshape(-1) for piece in pieces]))
        total, small = total + g, small + g.dot(g)
    parts = examples // micro_batch
    small, big = float(small / parts), float(total.dot(total) / parts**2)
    if not math.isfinite(small):
        fail("the squared norm of a gradient", small, "a finite number")
    return small, big


def two_batch(small_squared, big_squared, micro_batch, batch_size, population=None, interval="fieller", seed=0):
    """Estimate |G|^2, tr Sigma and B_simple from squared norms of gradients at two batch sizes, one pair a step.

    ``small_squared`` and ``big_squared`` (steps,): |g|^2 of a batch of ``micro_batch`` (or the mean over several) and
    of ``batch_size``, at the same weights; the small one may be part of the big one. From E|g_B|^2 = |G|^2 + a_B tr
    Sigma with a_B = 1/B, every step gives unbiased estimates (McCandlish et al., 2018):

        tr Sigma = (small - big) / (a_small - a_big),  |G|^2 = (big a_small - small a_big) / (a_small - a_big).

    With ``population`` the batches are drawn without replacement from that many examples and
    a_B = (population - B) / (B (population - 1)); leaving that out biases |G|^2 by -tr Sigma / (population - 1).

    B_simple is the ratio of the means over the steps, never the mean of ratios, for the average |G|^2 and tr Sigma of
    the window: keep it short enough that they are of one order. Intervals: Student's, and for the ratio ``interval``:
    "fieller" (1954), or "bootstrap", the percentiles over 2,000 resamplings of the steps, drawn from ``seed``. Both
    count on steps being independent given the weights, which fresh draws are. With 60 steps both covered in 93 to 99%
    of 400 trials, as B_simple and the spectrum varied; with 10 steps Fieller's in 92 to 99%, the bootstrap in 85 to
    98% (benchmarks/instruments.py).

    Raises ValueError for arrays of unlike or too small size (2 steps), negative or non-finite norms, batch sizes not
    in order, and another ``interval``.

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
    one_of("interval", interval, ("fieller", "bootstrap"))

    def share(size):  # E|g_B|^2 = |G|^2 + share tr Sigma
        return 1 / size if population is None else (population - size) / (size * (population - 1))

    apart = share(micro_batch) - share(batch_size)
    trace = (small - big) / apart
    norm = (big * share(micro_batch) - small * share(batch_size)) / apart
    t, steps = student_t(len(small) - 1), len(small)
    covariance = np.cov(np.stack([trace, norm])) / steps
    mean_trace, mean_norm = trace.mean(), norm.mean()
    half_trace, half_norm = t * np.sqrt(np.diag(covariance))
    return NoiseScale(
        Estimate(float(mean_norm), float(mean_norm - half_norm), float(mean_norm + half_norm)),
        Estimate(float(mean_trace), float(mean_trace - half_trace), float(mean_trace + half_trace)),
        fieller(mean_trace, mean_norm, covariance, t)
        if interval == "fieller"
        else bootstrapped(trace, norm, generator(seed, "noise")),
    )
