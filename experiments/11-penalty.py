"""The implicit penalty of small batches, added by hand to the full batch: how much of the difference does it explain?

Plain SGD, 512 steps, one rate that falls along half a cosine, on batches of 8 and on all 512 examples; then on all
examples with Smith's penalty, lr/4 (mean |g_k|^2 - |g|^2), g_k the gradients of a random cut into batches of 8. Small
MLPs on MNIST-1D (40-32-10) and digits (64-32-10). Rates were placed by trial runs on seed 0. Seeds 1800 to 1805. Some
minute on two idle cores.
"""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

import batchlab as bl

SEEDS = range(1800, 1806)
TASKS = {"MNIST-1D": ("MLP, MNIST-1D", (40, 32, 10), 0.2), "digits": ("MLP, digits", (64, 32, 10), 0.1)}
SMALL, ALL, STEPS = 8, 512, 512
ARMS = {"batches of 8": None, "full": 0.0, "full, penalty": 1.0}
protocols = bl.results.script("11-protocols")


def rows(seeds=SEEDS, tasks=tuple(TASKS), steps=STEPS, cache=None):
    """One row a task, arm and seed: losses at the end."""
    found = []
    for task in tasks:
        of, layers, lr = TASKS[task]
        data = protocols.dataset(of)
        data = replace(data, train=tuple(part[:ALL] for part in data.train))
        for seed in seeds:
            for arm, strength in ARMS.items():
                network = bl.models.build(bl.models.mlp(layers), int(seed))
                weights = descend(network, data.train, lr, strength, int(seed), steps)
                row = dict(task=task, arm=arm, seed=seed)
                for part in ("train", "test"):
                    x, y = getattr(data, part)
                    with torch.no_grad():
                        out = functional_call(network, weights, (x,))
                    row[f"{part}_loss"] = float(cross_entropy(out, y))
                    row[f"{part}_accuracy"] = float((out.argmax(1) == y).double().mean())
                found.append(row)
    return pd.DataFrame(found).round(6)


def descend(network, train, lr, strength, seed, steps):
    """SGD on batches of 8 (``strength`` None), or descent on all examples with the penalty times ``strength``."""
    x, y = train
    weights = {name: w.detach().clone().requires_grad_() for name, w in network.named_parameters()}
    names = list(weights)

    def loss(w, x, y):
        return cross_entropy(functional_call(network, w, (x,)), y)

    each = vmap(grad(loss), (None, 0, 0))
    batches = bl.data.index_stream(len(x), SMALL, seed=seed)
    cuts = np.random.default_rng(np.random.SeedSequence(seed))
    for step in range(steps):
        rate = lr * (1 + math.cos(math.pi * step / steps)) / 2
        if strength is None:
            batch = torch.from_numpy(next(batches))
            objective = loss(weights, x[batch], y[batch])
        else:
            objective = loss(weights, x, y)
        if strength:
            cut = torch.from_numpy(cuts.permutation(len(x))).view(-1, SMALL)  # (batches, 8)
            of_batches = each(weights, x[cut], y[cut])  # name -> (batches, ...)
            squares = sum((g**2).sum() / len(cut) - (g.mean(0) ** 2).sum() for g in of_batches.values())
            objective = objective + strength * rate / 4 * squares
        slopes = torch.autograd.grad(objective, [weights[name] for name in names])
        with torch.no_grad():
            for name, g in zip(names, slopes, strict=True):
                weights[name] -= rate * g
    return {name: w.detach() for name, w in weights.items()}
