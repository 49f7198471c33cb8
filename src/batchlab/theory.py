"""Closed forms in float64 numpy: what the instruments and the trained models are held against.

Deterministic gradient descent, the noisy quadratic model, mean estimation and heavy ball, the laws of a
batch gradient, leaving a saddle, Adam's noise floor, the program of article 004. Gaussian least squares has
a file of its own, ``least_squares``.

Throughout, the loss is the mean over the examples of a batch, ``steps`` counts updates, a quadratic is
L(w) = 1/2 sum_i h_i w_i^2 with its minimum at 0 and value 0 there, ``eigenvalues`` are its curvatures
h_i > 0 (leave flat directions out: they change no loss), and ``weights`` is where it starts. Batches are
fresh draws unless ``population`` says they are drawn without replacement from that many examples.
"""

import math

import numpy as np

from ._check import array, count, fail, number


def positive(name, value):
    """Return ``value`` as a one-dimensional float64 array of numbers above 0, else raise ValueError.

    >>> positive("eigenvalues", [1, 0.5])
    array([1. , 0.5])
    """
    a = array(name, value, ndim=1)
    if (a <= 0).any():
        fail(name, value, "numbers above 0 only")
    return a


def not_negative(name, value, shape):
    """Return ``value`` as a float64 array of that shape and numbers of at least 0, else raise ValueError.

    >>> not_negative("variances", [1, 0], (2,))
    array([1., 0.])
    """
    a = array(name, value, shape=shape)
    if (a < 0).any():
        fail(name, value, "numbers of at least 0 only")
    return a


# --- Deterministic gradient descent on a quadratic -----------------------------------------------------


def gd_max_lr(eigenvalues):
    """Return the learning rate from which full-batch gradient descent no longer converges: 2 / max h_i.

    Each direction obeys w' = (1 - lr h) w, which shrinks iff |1 - lr h| < 1.

    >>> gd_max_lr([4.0, 1.0])
    0.5
    """
    return float(2 / positive("eigenvalues", eigenvalues).max())


def gd_risk(eigenvalues, lr, steps, weights):
    """Return the loss of full-batch gradient descent after 0, 1, ... ``steps`` updates, shape (steps + 1,).

    L(t) = 1/2 sum_i h_i (1 - lr h_i)^(2t) w_i^2, exact at every lr, also where it diverges.

    >>> gd_risk([4.0, 1.0], lr=0.25, steps=2, weights=[1.0, 1.0]).round(4)
    array([2.5   , 0.2812, 0.1582])
    """
    h = positive("eigenvalues", eigenvalues)
    lr, steps = number("lr", lr, above=0), count("steps", steps, at_least=0)
    w = array("weights", weights, shape=h.shape)
    with np.errstate(over="ignore"):  # a loss that grows without bound is rightly inf
        return (1 - lr * h) ** (2 * np.arange(steps + 1)[:, None]) @ (0.5 * h * w**2)


def gd_steps(eigenvalues, lr, eps):
    """Return how many updates of full-batch gradient descent multiply the loss by ``eps``, a real number.

    ln(1/eps) / (-2 ln max_i |1 - lr h_i|): exact (rounded up) where the error lies in the slowest direction,
    otherwise an upper bound. ``inf`` where gradient descent does not converge, from ``gd_max_lr`` on; 0 where
    one update is enough for any eps.

    >>> round(gd_steps([4.0, 1.0], lr=0.4, eps=1e-3), 2)
    6.76
    >>> gd_steps([4.0, 1.0], lr=0.5, eps=1e-3)
    inf
    """
    h, lr = positive("eigenvalues", eigenvalues), number("lr", lr, above=0)
    eps = number("eps", eps, above=0, below=1)
    x = lr * h
    with np.errstate(divide="ignore"):  # ln 0 = -inf: that direction is done in one update
        log_rate = np.where(x < 1, np.log1p(-np.minimum(x, 1)), np.log(np.abs(x - 1))).max()
    return math.inf if log_rate >= 0 else float(math.log(eps) / (2 * log_rate))


# --- The noisy quadratic model (Zhang et al., 2019) ----------------------------------------------------


def nqm_risk(eigenvalues, variances, lr, batch_size, steps, weights):
    """Return the expected loss of SGD on the noisy quadratic model after 0, ... ``steps`` updates.

    The gradient along direction i is h_i w_i plus noise of variance c_i / batch_size; ``variances`` are the
    c_i, of one example. The second moment obeys m' = (1 - lr h)^2 m + lr^2 c / B and the loss is
    1/2 sum h_i m_i (Zhang et al., 2019). The starting weights are fixed. Any lr; shape (steps + 1,).

    >>> nqm_risk([1.0], [1.0], lr=0.5, batch_size=4, steps=2, weights=[1.0]).round(5)
    array([0.5    , 0.15625, 0.07031])
    """
    h, c, w = _nqm_arguments(eigenvalues, variances, weights)
    lr, batch_size = number("lr", lr, above=0), number("batch_size", batch_size, above=0)
    m, risks = w**2, []
    with np.errstate(over="ignore"):
        for _ in range(count("steps", steps, at_least=0) + 1):
            risks.append(0.5 * h @ m)
            m = (1 - lr * h) ** 2 * m + lr**2 * c / batch_size
    return np.array(risks)


def nqm_floor(eigenvalues, variances, lr, batch_size):
    """Return the expected loss at which SGD on the noisy quadratic model stays: sum lr c_i / (2B (2 - lr h_i)).

    ``inf`` from ``gd_max_lr`` on. At small lr it is proportional to lr / batch_size (Zhang et al., 2019).

    >>> nqm_floor([1.0], [1.0], lr=0.5, batch_size=4)
    0.041666666666666664
    """
    h, c, _ = _nqm_arguments(eigenvalues, variances, None)
    lr, batch_size = number("lr", lr, above=0), number("batch_size", batch_size, above=0)
    return math.inf if lr * h.max() >= 2 else float((lr * c / (2 * batch_size * (2 - lr * h))).sum())


def nqm_steps(eigenvalues, variances, lr, batch_size, weights, target):
    """Return after how many updates the expected loss first reaches ``target``, a real number; inf if never.

    From E l_i(t) = f_i + (l_i(0) - f_i) (1 - lr h_i)^(2t), with f_i the floor of direction i, which
    interpolates ``nqm_risk`` between whole steps.

    >>> round(nqm_steps([1.0], [1.0], lr=0.5, batch_size=4, weights=[1.0], target=0.0703125), 6)
    2.0
    """
    h, c, w = _nqm_arguments(eigenvalues, variances, weights)
    lr, batch_size = number("lr", lr, above=0), number("batch_size", batch_size, above=0)
    return first_hit(*_nqm_modes(h, c, w, lr, batch_size), number("target", target, above=0))


def nqm_min_steps(eigenvalues, variances, batch_size, weights, target):
    """Return (steps, lr): the fewest updates to an expected loss of ``target`` over constant lr, and that lr.

    The curve S(B) of the noisy quadratic model, with no simulation and no fit. ``batch_size`` may be any
    number above 0, and ``math.inf`` for noiseless gradient descent.

    >>> steps, lr = nqm_min_steps([1.0, 0.1], [1.0, 0.1], 16, [1.0, 1.0], target=0.01)
    >>> round(steps, 1), round(lr, 3)
    (40.2, 0.346)
    """
    h, c, w = _nqm_arguments(eigenvalues, variances, weights)
    if batch_size != math.inf:
        batch_size = number("batch_size", batch_size, above=0)
    target = number("target", target, above=0)
    return fewest_steps(lambda lr: first_hit(*_nqm_modes(h, c, w, lr, batch_size), target), 2 / h.max())


def nqm_critical_batch(eigenvalues, variances, weights, target):
    """Return the batch size at which ``nqm_min_steps`` is twice its noiseless limit S(inf).

    In the law S = S_min (1 + B_crit / B) of McCandlish et al. (2018) that size is B_crit; here it needs
    no fit, and holds where the law does not.

    >>> round(nqm_critical_batch([1.0, 0.1], [1.0, 0.1], [1.0, 1.0], target=0.01), 1)
    10.9
    """

    def steps(batch_size):
        return nqm_min_steps(eigenvalues, variances, batch_size, weights, target)[0]

    return batch_at_steps(steps, 2 * steps(math.inf))


def _nqm_arguments(eigenvalues, variances, weights):
    h = positive("eigenvalues", eigenvalues)
    c = not_negative("variances", variances, h.shape)
    return h, c, None if weights is None else array("weights", weights, shape=h.shape)


def _nqm_modes(h, c, w, lr, batch_size):
    """(rates, start, floor) of risk(t) = sum_i start_i rate_i^t + floor_i (1 - rate_i^t)."""
    floor = lr * c / (2 * batch_size * (2 - lr * h)) if lr * h.max() < 2 else np.full(len(h), math.inf)
    return (1 - lr * h) ** 2, 0.5 * h * w**2, floor


# --- What S(B) is computed with, also by least_squares -------------------------------------------------


def first_hit(rates, start, floor, target):
    """Return the smallest real t >= 0 with sum_i start_i rates_i^t + floor_i (1 - rates_i^t) <= target.

    ``inf`` if there is none, or if a mode does not decay.

    >>> round(first_hit(np.array([0.5]), np.array([1.0]), np.array([0.0]), 0.125), 6)
    3.0
    """
    if rates.max() >= 1 or not np.isfinite(floor).all():
        return math.inf
    if start.sum() <= target:
        return 0.0
    log_rates = np.log(np.maximum(rates, 1e-300))

    def reached(t):
        exponent = np.multiply.outer(t, log_rates)
        return np.exp(exponent) @ start - np.expm1(exponent) @ floor <= target

    # By `longest` every mode has died out to rounding. A mode that starts below its floor rises, so the loss
    # need not fall monotonically: look for the first crossing on a grid, then bisect it.
    longest = 40 / -max(log_rates.max(), -40)
    grid = np.concatenate([[0.0], np.geomspace(1e-3 * longest, longest, 100)])
    below = np.flatnonzero(reached(grid))
    if len(below) == 0:
        return math.inf
    low, high = grid[below[0] - 1], grid[below[0]]
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if reached(middle) else (middle, high)
    return float(high)


def fewest_steps(steps, max_lr):
    """Return (steps, lr), the least ``steps(lr)`` for lr in (0, max_lr); (inf, nan) where all are inf.

    >>> fewest, lr = fewest_steps(lambda lr: 1 + (lr - 0.3) ** 2, 2.0)
    >>> round(lr, 3)
    0.3
    """
    grid = max_lr * np.concatenate([np.geomspace(1e-7, 0.5, 60), 1 - np.geomspace(0.45, 1e-6, 30)])
    for _ in range(5):  # a logarithmic grid, then four times a finer one around its best point
        values = [steps(lr) for lr in grid]
        best = int(np.argmin(values))
        fewest, lr = float(values[best]), float(grid[best])
        grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 13)
    return (fewest, lr) if math.isfinite(fewest) else (math.inf, math.nan)


def batch_at_steps(steps, wanted):
    """Return the batch size at which the falling function ``steps`` equals ``wanted``; nan if none is found.

    Looked for from 2^-20 to 2^40, to a relative 1e-4.

    >>> round(batch_at_steps(lambda b: 5 * (1 + 12 / b), 10.0), 2)
    12.0
    """
    low, high = -20.0, 40.0
    if not steps(2**high) <= wanted < steps(2**low):
        return math.nan
    while high - low > 1e-4:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if steps(2**middle) <= wanted else (middle, high)
    return 2 ** (0.5 * (low + high))


# --- Batches from a finite set; the laws of a batch gradient -------------------------------------------


def sampling_factor(batch_size, population=None):
    """Return what the variance of a batch mean is multiplied by when its examples are drawn without replacement.

    (N - B) / (N - 1), with the variance over the N examples taken with 1/N (Cochran, 1977); 1 where
    ``population`` is None: drawn with replacement, or fresh.

    >>> sampling_factor(256, population=1024).__round__(4)
    0.7507
    """
    if population is None:
        return 1.0
    population = count("population", population, at_least=2)
    return (population - count("batch_size", batch_size, at_most=population)) / (population - 1)


def gradient_variance(trace, batch_size, population=None):
    """Return E|g_B - G|^2 = tr Sigma / B x ``sampling_factor``: the expected squared error of a batch gradient.

    ``trace`` is the trace of the covariance of one example's gradient.

    >>> gradient_variance(trace=8.0, batch_size=4)
    2.0
    """
    return number("trace", trace, at_least=0) / count("batch_size", batch_size) * sampling_factor(batch_size, population)


def gradient_squared_norm(squared_norm, trace, batch_size, population=None):
    """Return E|g_B|^2 = |G|^2 + tr Sigma / B x ``sampling_factor``; ``squared_norm`` is |G|^2.

    A small batch's gradient is longer than the full one's: the excess is noise (McCandlish et al., 2018).

    >>> gradient_squared_norm(squared_norm=1.0, trace=8.0, batch_size=4)
    3.0
    """
    return number("squared_norm", squared_norm, at_least=0) + gradient_variance(trace, batch_size, population)


def gradient_cosine(b_simple, batch_size, population=None):
    """Return about the expected cosine between a batch gradient and the full one, (1 + B_simple f / B)^(-1/2).

    f is the ``sampling_factor``, B_simple = tr Sigma / |G|^2. Not exact: it takes the noise to be perpendicular
    to G and of fixed length, which many noisy directions of similar variance come close to.

    >>> round(gradient_cosine(b_simple=24.0, batch_size=8), 3)
    0.5
    """
    share = number("b_simple", b_simple, at_least=0) / count("batch_size", batch_size)
    return (1 + share * sampling_factor(batch_size, population)) ** -0.5


def mean_estimation_variance(variance, lr, batch_size, population=None):
    """Return the variance at which SGD stays when it estimates a mean: lr / (2 - lr) x variance / B x factor.

    The loss is 1/2 (w - x)^2 averaged over a batch, so w' = (1 - lr) w + lr mean(x); ``variance`` is that of x,
    the factor ``sampling_factor``: each batch is drawn without replacement, anew at every step. (Reshuffled epochs
    are not that: their batches are correlated.) ``inf`` from lr = 2 on.

    >>> mean_estimation_variance(variance=1.0, lr=1.0, batch_size=10)
    0.1
    """
    lr = number("lr", lr, above=0)
    noise = gradient_variance(number("variance", variance, at_least=0), batch_size, population)
    return math.inf if lr >= 2 else lr / (2 - lr) * noise


def heavy_ball_variance(curvature, variance, lr, momentum, batch_size):
    """Return the variance at which SGD with heavy-ball momentum stays on 1/2 h w^2 with noisy gradients.

    (lr c / B) (1 + mu) / (h (1 - mu) (2 (1 + mu) - lr h)), c = ``variance`` of one example's gradient
    (Liu, Ziyin and Ueda, 2021). Momentum as torch.optim.SGD has it, v' = mu v + g and w' = w - lr v', with no
    dampening. ``inf`` from lr h = 2 (1 + mu) on.

    >>> heavy_ball_variance(curvature=1.0, variance=1.0, lr=0.1, momentum=0.9, batch_size=10).__round__(4)
    0.0514
    """
    h, c = number("curvature", curvature, above=0), number("variance", variance, at_least=0)
    lr, mu = number("lr", lr, above=0), number("momentum", momentum, at_least=0, below=1)
    room = 2 * (1 + mu) - lr * h
    return math.inf if room <= 0 else lr * c / count("batch_size", batch_size) * (1 + mu) / (h * (1 - mu) * room)


# --- Leaving a saddle; Adam's noise floor; article 004 -------------------------------------------------


def saddle_spread(curvature, variance, lr, batch_size, steps):
    """Return E[y_t^2] of SGD started on the ridge y = 0 of -1/2 b y^2, for t = ``steps``.

    (lr^2 c / B) ((1 + lr b)^(2t) - 1) / ((1 + lr b)^2 - 1), from y' = (1 + lr b) y + lr noise; ``curvature`` is
    b > 0, ``variance`` c that of one example's gradient.

    >>> round(saddle_spread(curvature=1.0, variance=1.0, lr=0.1, batch_size=1, steps=2), 6)
    0.0221
    """
    b, c = number("curvature", curvature, above=0), number("variance", variance, above=0)
    lr, batch_size = number("lr", lr, above=0), count("batch_size", batch_size)
    log_growth = 2 * math.log1p(lr * b)
    return lr**2 * c / batch_size * math.expm1(count("steps", steps, at_least=0) * log_growth) / math.expm1(log_growth)


def saddle_steps(curvature, variance, lr, batch_size, distance):
    """Return the t at which ``saddle_spread`` reaches distance^2, a real number.

    It grows with ln B / (2 ln(1 + lr b)): a larger batch leaves a saddle only logarithmically later. This is when
    the mean square gets there, not the mean or median time of getting there.

    >>> late = saddle_steps(1.0, 1.0, 0.1, 256, distance=1.0) - saddle_steps(1.0, 1.0, 0.1, 16, distance=1.0)
    >>> round(late, 2)
    14.53
    """
    b, c = number("curvature", curvature, above=0), number("variance", variance, above=0)
    lr, batch_size = number("lr", lr, above=0), count("batch_size", batch_size)
    distance = number("distance", distance, above=0)
    log_growth = 2 * math.log1p(lr * b)
    return math.log1p(distance**2 * batch_size * math.expm1(log_growth) / (lr**2 * c)) / log_growth


def adam_variance(curvature, variance, lr, batch_size):
    """Return about the variance at which Adam stays on 1/2 h w^2 when noise dominates: lr sqrt(c / B) / (2 h).

    Adam then divides by sqrt(c / B), the noise's size, and is SGD of learning rate lr sqrt(B / c): the floor stays
    where it is if lr goes with sqrt(B), the square-root rule of Malladi et al. (2022). Holds for
    lr h sqrt(B / c) << 1 and beta_2 close to 1, whatever beta_1; it takes sqrt(c / B) / (lr h) steps to get there.

    >>> round(adam_variance(curvature=1.0, variance=1.0, lr=0.01, batch_size=4), 6)
    0.0025
    """
    h, c = number("curvature", curvature, above=0), number("variance", variance, at_least=0)
    return number("lr", lr, above=0) * math.sqrt(c / count("batch_size", batch_size)) / (2 * h)


def article_004_progress(examples, batch_size, lr):
    """Return the expected share of the way from 0 to the true weights that the program of article 004 covers.

    Its loop makes one update for every row i of the data, whatever the batch size, from the rows i to
    i + batch_size - 1, and divides the sum of their gradients by all the rows: n_i = min(batch_size, m - i) rows
    move the weights by 2 lr n_i / m. So the share is 1 - prod_i (1 - 2 lr n_i / m) for inputs of covariance 1:
    exact for batch_size 1, a mean-field value otherwise, since successive windows overlap.

    >>> [round(article_004_progress(100, b, lr=0.01), 3) for b in (1, 10, 100)]
    [0.02, 0.174, 0.637]
    """
    m = count("examples", examples)
    window = np.minimum(count("batch_size", batch_size), m - np.arange(m))
    return float(1 - np.prod(1 - 2 * number("lr", lr, above=0) * window / m))
