"""Steps to nine targets at every power of two, the rate tuned at each: what B* = sqrt(K B_crit) is held against.

Two kinds of problem. Six networks, on seeds that nothing else uses: ``CHOOSE`` picks the rate, ``COUNT`` counts. Three
cases of least squares, where the fewest steps at any rate are known exactly (``theory.least_squares``): one row a
size, seed 0. No second occurs here: a knee is arithmetic on these counts. Some five minutes on two idle cores.
"""

import math

import numpy as np
import pandas as pd

import batchlab as bl
from batchlab.outcomes import best_lr, to_target

CHOOSE, COUNT = range(1000, 1004), range(1004, 1016)
SIZES = tuple(2**k for k in range(1, 12))
FACTORS = (0.4, 0.65, 1, 1.5, 2.2)  # of the guess, from trial runs on seeds 0 and 1
HIGHER = (3.3, 5)  # and for the digits, where small batches bear a wide range of rates

# Of each network: data, layers, optimizer, training loss to reach; the guessed rate top (1 - exp(-B / bend)); and the
# steps expected, few (1 + crit / B), which decide only how often to look (every 2 %) and when to give up (at twice).
MNIST, DIGITS = ("mnist1d", (40, 100, 100, 10)), ("digits", (64, 64, 10))
NETWORKS = {
    "MNIST-1D to 1.5": (*MNIST, "sgd", 1.5, 1.5, 75, 52, 75),
    "MNIST-1D to 1.0": (*MNIST, "sgd", 1.0, 1.8, 90, 120, 130),
    "MNIST-1D to 0.5": (*MNIST, "sgd", 0.5, 1.9, 117, 230, 190),
    "MNIST-1D to 1.0, momentum": (*MNIST, "momentum", 1.0, 0.8, 457, 48, 380),
    "digits to 0.3": (*DIGITS, "sgd", 0.3, 0.85, 24, 22, 50),
    "digits to 0.1": (*DIGITS, "sgd", 0.1, 0.95, 45, 40, 70),
}
LEAST_SQUARES = {  # eigenvalues, variance of the label noise; from weights of 1 down to a hundredth of the risk
    "least squares, 1/i": (1 / np.arange(1, 51), 0.0),
    "least squares, 1/i, label noise": (1 / np.arange(1, 51), 1.0),
    "least squares, isotropic": (np.ones(50), 0.0),
}


def rows(seeds=COUNT, problems=(*NETWORKS, *LEAST_SQUARES), sizes=SIZES, cache=None):
    """One row a problem, batch size and seed: "lr", chosen on ``CHOOSE``, and "steps" to the target."""
    tables = [
        network(name, seeds, sizes, cache) if name in NETWORKS else least_squares(name, sizes) for name in problems
    ]
    return pd.concat(tables, ignore_index=True)[["problem", "batch_size", "lr", "seed", "steps"]]


def network(name, seeds, sizes, cache=None):
    data, layers, optimizer, target, top, bend, few, crit = NETWORKS[name]
    data = bl.data.digits() if data == "digits" else bl.data.mnist1d(4000)
    counts = []
    for batch_size in sizes:
        if batch_size > len(data.train[0]):
            continue
        expected = few * (1 + crit / batch_size)
        run = bl.Run(
            data=data,
            model=bl.models.mlp(layers),
            optimizer=getattr(bl.optim, optimizer)(),
            lr=1.0,
            batch_size=batch_size,
            device="cpu",
            target=("train_loss", target),
            evaluate=("train",),
            examples=math.ceil(2 * expected) * batch_size,
            evaluate_every=max(1, round(0.02 * expected)) * batch_size,
        )
        guess = top * (1 - math.exp(-batch_size / bend))
        factors = FACTORS + HIGHER * (layers == DIGITS[1])
        lrs = [float(f"{guess * factor:.3g}") for factor in factors]
        tried = to_target(bl.sweep(run, lr=lrs, seed=CHOOSE, cache=cache), *run.target)
        (lr,) = best_lr(tried, "step").lr  # an error where the best is at an end
        counts.append(to_target(bl.sweep(run, lr=[lr], seed=seeds, cache=cache), *run.target))
    return pd.concat(counts).rename(columns={"step": "steps"}).assign(problem=name)


def least_squares(name, sizes):
    eigenvalues, noise = LEAST_SQUARES[name]
    weights = np.ones(len(eigenvalues))
    target = 0.01 * 0.5 * eigenvalues.sum()
    best = [bl.theory.least_squares.min_steps(eigenvalues, b, weights, target, noise) for b in sizes]
    steps, lrs = zip(*best, strict=True)
    return pd.DataFrame({"problem": name, "batch_size": sizes, "lr": lrs, "seed": 0, "steps": steps})
