"""What the pieces compute in a browser, in numpy: the same formulas, and the same random numbers.

The generator is Philox4x32-10 (Salmon et al., 2011): a number follows from its seed and its place alone, so that
JavaScript and Python draw the same ones without taking turns.
"""

import math
import warnings

import numpy as np

from batchlab._check import count
from batchlab.playground._piece import pieces, settled
from batchlab.rescale import rescale
from batchlab.theory import gradient_cosine, gradient_squared_norm, gradient_variance, heavy_ball_variance

DRAWS, EXAMPLES = 200, 1437  # of the piece Noise
DECAYS = ("momentum", "beta1", "beta2", "ema")  # of the piece Change B
NAMES = ("lr", "momentum", "beta1", "beta2", "eps", "weight_decay", "ema", "warmup_steps")
SURFACES = {  # of the piece Descent: loss, slope, start, curvatures at a minimum
    "bowl": (lambda x, y: (x**2 + y**2) / 2, lambda x, y: (x, y), (-2.4, 1.6), (1, 1)),
    "valley": (lambda x, y: (x**2 / 20 + y**2) / 2, lambda x, y: (x / 20, y), (-2.4, 1.6), (1 / 20, 1)),
    "saddle": (
        lambda x, y: x**2 / 2 + (y**2 - 1) ** 2 / 4, lambda x, y: (x, y * (y**2 - 1)), (-2.4, 0.0), (1, 2),
    ),
}  # fmt: skip


def philox(counter, key):
    """Return four random uint32 for each counter: ``counter`` is (4, ...), ``key`` (2,), the result (4, ...).

    >>> [f"{word:08x}" for word in philox([0, 0, 0, 0], [0, 0])]  # as the authors published it
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c = [np.asarray(word, np.uint64) for word in counter]
    k = [np.uint64(word) for word in key]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        left, right = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(right >> np.uint64(32)) ^ c[1] ^ k[0], right & low, (left >> np.uint64(32)) ^ c[3] ^ k[1], left & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return np.array(c).astype(np.uint32)


def normals(seed, purpose, i, j):
    """Return four standard normal numbers for each pair of i and j, (4, ...), by Box and Muller.

    >>> normals(0, 0, np.arange(3), 7).shape
    (4, 3)
    """
    i, j = np.broadcast_arrays(i, j)
    u = philox([i, j, np.full(i.shape, purpose), np.zeros(i.shape)], [seed, 0]).astype(float)
    radius, angle = np.sqrt(-2 * np.log((u[::2] + 0.5) / 2**32)), 2 * np.pi * u[1::2] / 2**32
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)  # (2, 2, ...)
    return pairs.reshape(4, *i.shape)


def walk(steps, **settings):
    """Return where the particles of *Descent* are after 0, 1, ... ``steps`` steps: (steps + 1, particles, 2).

    >>> walk(10, batch_size=4, lr=0.1).shape
    (11, 100, 2)
    """
    s, steps = settled("descent", settings), count("steps", steps, at_least=0)
    _, slope, start, _ = SURFACES[s["surface"]]
    w = np.tile(np.array(start, float), (s["particles"], 1))  # (particles, 2)
    v, path = np.zeros_like(w), [w]
    with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges may do so
        for step in range(steps):
            z = normals(s["seed"], 0, np.arange(s["particles"]), step)[:2].T
            v = s["momentum"] * v + np.stack(slope(*w.T), 1) + math.sqrt(1 / s["batch_size"]) * z
            w = w - s["lr"] * v
            path.append(w)
    return np.array(path)


def mean_loss(path, surface):
    """Return the mean loss of the particles of ``walk`` at every step, (steps + 1,)."""
    return SURFACES[surface][0](path[..., 0], path[..., 1]).mean(-1)


def floor(**settings):
    """Return where the expected loss of *Descent* settles: h / 2 times ``theory.heavy_ball_variance`` on both axes.

    On the saddle it is that of the parabola at a minimum, which the noise of a large batch hardly leaves.

    >>> round(floor(surface="bowl", batch_size=1, lr=0.1), 6)
    0.052632
    """
    s = settled("descent", settings)
    return sum(
        h / 2 * heavy_ball_variance(h, 1.0, s["lr"], s["momentum"], s["batch_size"])
        for h in SURFACES[s["surface"]][3]
    )  # fmt: skip


def scatter(**settings):
    """Return the batch gradients of *Noise* over |g|: (200, 2), along g and across it.

    The noise has one variance in each of the ``directions``; with more than two, what is drawn across g is its length
    in all directions but the first, with the sign of the second.
    """
    s = settled("noise", settings)
    blocks = np.arange(-(-s["directions"] // 4))
    z = normals(s["seed"], 1, np.arange(DRAWS)[:, None], blocks)  # (4, draws, blocks)
    z = z.transpose(1, 2, 0).reshape(DRAWS, -1)[:, : s["directions"]]
    z = z * math.sqrt(laws(**s)["miss"] / s["directions"])
    across = np.sqrt((z[:, 1:] ** 2).sum(1)) * np.where(z[:, 1] < 0, -1, 1)
    return np.stack([1 + z[:, 0], across], 1)


def laws(**settings):
    """Return what *Noise* expects, over |g|^2: {"miss": E|g_B - g|^2, "length": E|g_B|^2, "cosine": about E cos}.

    >>> laws(batch_size=8, noise_scale=24.0)
    {'miss': 3.0, 'length': 4.0, 'cosine': 0.5}
    """
    s = settled("noise", settings)
    scale, batch_size = s["noise_scale"], s["batch_size"]
    population = EXAMPLES if s["drawn"] == "without" else None
    return {
        "miss": gradient_variance(scale, batch_size, population),
        "length": gradient_squared_norm(1.0, scale, batch_size, population),
        "cosine": gradient_cosine(scale, batch_size, population),
    }


def plan(batch=None, **settings):
    """Return what *Time to target* says of a batch size, by default the one set: {"steps", "step", "seconds", ...}.

    Steps S_min (1 + B_crit / B) (McCandlish et al., 2018) times a step's fixed time (1 + B / (knee x devices)), plus
    the communication where there are two devices or more. "step" and "seconds" are in seconds, "cost" is in the price's
    money.

    >>> round(plan(preset="large-gpu", batch_size=512)["seconds"], 3)
    0.124
    """
    s = settled("target", settings)
    B = s["batch_size"] if batch is None else batch
    steps = s["s_min"] * (1 + s["critical_batch"] / B)
    step = s["fixed_ms"] * (1 + B / (s["knee"] * s["devices"])) + (s["devices"] > 1) * s["communication_ms"]
    seconds = steps * step / 1000
    cost = seconds * s["devices"] * s["price"] / 3600
    return {"steps": steps, "step": step / 1000, "seconds": seconds, "examples": steps * B, "cost": cost}


def best_batch(**settings):
    """Return the batch size of the least time: sqrt(B_crit x knee x devices), at least one example a device.

    The communication of a step counts as fixed time, and so multiplies the knee by (fixed + communication) / fixed.

    >>> round(best_batch(preset="large-gpu"))  # chapter 4: 530
    532
    """
    s = settled("target", settings)
    wait = s["fixed_ms"] + (s["devices"] > 1) * s["communication_ms"]
    star = math.sqrt(s["critical_batch"] * s["knee"] * s["devices"] * wait / s["fixed_ms"])
    return max(star, float(s["devices"]))


def rescaled(**settings):
    """Return what *Change B* shows, from ``batchlab.rescale``: (settings after, rules, settings before).

    >>> after, rules, before = rescaled(batch_size=256, new_batch_size=64)
    >>> before["lr"], after["lr"], rules["lr"]
    (0.1, 0.025, 'linear (Goyal 2017)')
    """
    s, specs = settled("change", settings), pieces()["change"]["settings"]
    before = {k: s[k] for k in NAMES if s[k] is not None and s["optimizer"] in specs[k].get("of", [s["optimizer"]])}
    keep = {"advised": None, "none": (), "decays": tuple(k for k in DECAYS if k in before)}[s["keep"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # past the critical batch size: the piece says so itself
        found = rescale(
            before, s["batch_size"], s["new_batch_size"], optimizer=s["optimizer"], rule=s["rule"], keep=keep,
            noise_scale=s["noise_scale"], critical_batch=s["critical_batch"], past_critical="warn",
        )  # fmt: skip
    return found.settings, found.rules, before
