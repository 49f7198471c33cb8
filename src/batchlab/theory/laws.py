"""Closed forms in float64 numpy: what the instruments and the trained models are held against.

Deterministic gradient descent, the laws of a batch gradient, mean estimation and heavy ball, leaving a saddle, Adam's
noise floor, the program of article 004. ``noisy_quadratic`` and ``least_squares`` have files of their own.

Throughout, the loss is the mean over the examples of a batch, ``steps`` counts updates, a quadratic is
L(w) = 1/2 sum_i h_i w_i^2 with its minimum at 0 and value 0 there, ``eigenvalues`` are its curvatures
h_i > 0 (leave flat directions out: they change no loss), and ``weights`` is where it starts. Batches are
fresh draws unless ``population`` says they are drawn without replacement from that many examples.
"""

import math

import numpy as np

from batchlab._check import array, count, number

# --- Deterministic gradient descent on a quadratic -------------------------------------------------------------------


def gd_max_lr(eigenvalues):
    """Return the learning rate from which full-batch gradient descent no longer converges: 2 / max h_i.

    Each direction obeys w' = (1 - lr h) w, which shrinks iff |1 - lr h| < 1.

    >>> gd_max_lr([4.0, 1.0])
    0.5
    """
    return float(2 / array("eigenvalues", eigenvalues, ndim=1, above=0).max())


def gd_risk(eigenvalues, lr, steps, weights):
    """Return the loss of full-batch gradient descent after 0, 1, ... ``steps`` updates, shape (steps + 1,).

    L(t) = 1/2 sum_i h_i (1 - lr h_i)^(2t) w_i^2, exact at every lr, also where it diverges.

    >>> gd_risk([4.0, 1.0], lr=0.25, steps=2, weights=[1.0, 1.0]).round(4)
    array([2.5   , 0.2812, 0.1582])
    """
    h = array("eigenvalues", eigenvalues, ndim=1, above=0)
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
    h, lr = array("eigenvalues", eigenvalues, ndim=1, above=0), number("lr", lr, above=0)
    eps = number("eps", eps, above=0, below=1)
    x = lr * h
    with np.errstate(divide="ignore"):  # ln 0 = -inf: that direction is done in one update
        log_rate = np.where(x < 1, np.log1p(-np.minimum(x, 1)), np.log(np.abs(x - 1))).max()
    return math.inf if log_rate >= 0 else float(math.log(eps) / (2 * log_rate))


# --- Batches from a finite set; the laws of a batch gradient ---------------------------------------------------------


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
    trace, batch_size = number("trace", trace, at_least=0), count("batch_size", batch_size)
    return trace / batch_size * sampling_factor(batch_size, population)


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


# --- Leaving a saddle; Adam's noise floor; article 004 ---------------------------------------------------------------


def saddle_spread(curvature, variance, lr, batch_size, steps):
    """Return E[y_t^2] of SGD started on the ridge y = 0 of -1/2 k y^2, for t = ``steps``.

    (lr^2 s / B) ((1 + lr k)^(2t) - 1) / ((1 + lr k)^2 - 1), from y' = (1 + lr k) y + lr noise; ``curvature`` is
    k > 0, ``variance`` s that of one example's gradient.

    >>> round(saddle_spread(curvature=1.0, variance=1.0, lr=0.1, batch_size=1, steps=2), 6)
    0.0221
    """
    k, s = number("curvature", curvature, above=0), number("variance", variance, above=0)
    lr, batch_size = number("lr", lr, above=0), count("batch_size", batch_size)
    log_growth = 2 * math.log1p(lr * k)
    return lr**2 * s / batch_size * math.expm1(count("steps", steps, at_least=0) * log_growth) / math.expm1(log_growth)


def saddle_steps(curvature, variance, lr, batch_size, distance):
    """Return the t at which ``saddle_spread`` reaches distance^2, a real number.

    It grows with ln B / (2 ln(1 + lr k)): a larger batch leaves a saddle only logarithmically later. This is when
    the mean square gets there, not the mean or median time of getting there.

    >>> late = saddle_steps(1.0, 1.0, 0.1, 256, distance=1.0) - saddle_steps(1.0, 1.0, 0.1, 16, distance=1.0)
    >>> round(late, 2)
    14.53
    """
    k, s = number("curvature", curvature, above=0), number("variance", variance, above=0)
    lr, batch_size = number("lr", lr, above=0), count("batch_size", batch_size)
    distance = number("distance", distance, above=0)
    log_growth = 2 * math.log1p(lr * k)
    return math.log1p(distance**2 * batch_size * math.expm1(log_growth) / (lr**2 * s)) / log_growth


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
    [0.02, 0.174, 0.638]
    """
    m = count("examples", examples)
    window = np.minimum(count("batch_size", batch_size), m - np.arange(m))
    return float(1 - np.prod(1 - 2 * number("lr", lr, above=0) * window / m))
