"""Does the noise scale of a run with Adam predict its critical batch size, in the l2 norm or in the l1 norm?

The functions and protocol for the steps are those of 07-critical-batch, seeds are new. "noise k/4" is B_simple, and
"l1 noise k/4" the same ratio in the l1 norm, (sum of standard deviations / sum of |G|)^2, over all training examples
after k quarters of the mean steps of batches of 64. Some two minutes on two idle cores. (A first
run, on other seeds, asked MNIST-1D for 1.2, which Adam with large batches does not always reach.)
"""

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import batchlab as bl

COUNT, WATCH = range(1100, 1112), range(1116, 1118)
NETWORKS = {  # as in 07-critical-batch
    "digits to 0.1, Adam": ("digits", "adam", 0.1, 0.03, 38, 13, 135),
    "MNIST to 0.3, Adam": ("mnist", "adam", 0.3, 0.012, 45, 18, 150),
    "MNIST-1D to 1.5, Adam": ("signals-4000", "adam", 1.5, 0.005, 11, 60, 100),
    "text to 2.6, Adam": ("text", "adam", 2.6, 0.05, 65, 12, 320),
}
QUARTERS, AT, CHUNK = 4, 64, 1000


def rows(seeds=COUNT, watch=WATCH, problems=tuple(NETWORKS), cache=None):
    """One row a problem, quantity, batch size and seed; "lr" is the rate, "value" what was found."""
    first = bl.results.script("07-critical-batch")  # a module of our own, which nobody else sees
    first.NETWORKS.update(NETWORKS)
    first.noise = lambda *which: noise(first, *which)
    return first.rows(seeds, watch, problems, cache=cache)


def noise(first, name, lr, last, seed):
    task = NETWORKS[name][0]
    x, y = first.dataset(task).train
    model = bl.models.build(bl.models.mlp(first.LAYERS.get(task, (40, 100, 100, 10))), seed)
    rule = torch.optim.Adam(model.parameters(), lr=lr)
    looks, found = {round(k * last / QUARTERS): k for k in range(QUARTERS + 1)}, []
    for step, index in enumerate(bl.data.index_stream(len(x), AT, seed=seed)):
        if step in looks:
            for kind, value in zip(("noise", "l1 noise"), both_scales(model, x, y), strict=True):
                quantity = f"{kind} {looks[step]}/{QUARTERS}"
                found.append(dict(problem=name, quantity=quantity, batch_size=AT, lr=lr, seed=seed, value=value))
        if step == last:
            return found
        rule.zero_grad()
        cross_entropy(model(x[index]), y[index]).backward()
        rule.step()
    raise ValueError("the stream of batches has ended")


def both_scales(model, x, y):
    """tr Sigma / |G|^2, and (sum of standard deviations / sum of |G|)^2, exactly for training on these examples."""
    total = squares = 0.0
    for start in range(0, len(x), CHUNK):
        g = bl.noise.per_example_gradients(model, cross_entropy, x[start : start + CHUNK], y[start : start + CHUNK])
        total, squares = total + g.sum(0).double(), squares + g.square().sum(0).double()
    mean = (total / len(x)).numpy()
    variance = np.maximum((squares / len(x)).numpy() - mean**2, 0)
    return float(variance.sum() / (mean @ mean)), float((np.sqrt(variance).sum() / np.abs(mean).sum()) ** 2)
