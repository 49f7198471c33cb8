"""Local steps: what do fewer sums cost?

MNIST-1D, layers 40-100-100-10, four workers of 32 examples, 512 steps of plain SGD each, played one after another in
one process. After every 1, 16 or 64 steps the workers' weights are averaged (local SGD), or the mean change is given
to Nesterov's momentum, 0.7 and 0.9 (DiLoCo's outer step, with SGD inside, not AdamW). The rate is the best of ``LRS``
on ``CHOOSE``; "loss" is the training loss at the end. A minute on one idle core.
"""

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import batchlab as bl

CHOOSE, COUNT = range(1300, 1302), range(1302, 1307)
LRS = (0.125, 0.25, 0.5, 1.0, 2.0)
CASES = {  # steps between sums, rate and momentum outside
    "one batch": (1, 1.0, 0.0),
    "average, 16": (16, 1.0, 0.0),
    "average, 64": (64, 1.0, 0.0),
    "DiLoCo, 16": (16, 0.7, 0.9),
    "DiLoCo, 64": (64, 0.7, 0.9),
}


def rows(seeds=COUNT, cases=tuple(CASES), cache=None):
    """One row a case and seed: "lr", the best on ``CHOOSE``, and "loss"."""
    found = []
    for case in cases:
        tried = [np.mean([train(seed, lr, *CASES[case]) for seed in CHOOSE]) for lr in LRS]
        lr = LRS[int(np.nanargmin(tried))]
        if lr in (LRS[0], LRS[-1]):
            raise ValueError(f"{case}: the best rate {lr} is at an end of {LRS}")
        found += [(case, lr, seed, train(seed, lr, *CASES[case])) for seed in seeds]
    return pd.DataFrame(found, columns=["case", "lr", "seed", "loss"])


def train(seed, lr, every, outer_lr, momentum, workers=4, each=32, steps=512):
    x, y = bl.data.mnist1d(4000).train
    model = bl.models.build(bl.models.mlp((40, 100, 100, 10)), seed)
    kept = parameters_to_vector(model.parameters()).detach().clone().requires_grad_()
    outer = torch.optim.SGD([kept], lr=outer_lr, momentum=momentum, nesterov=momentum > 0)
    stream = bl.data.index_stream(len(x), workers * each, seed=seed, drop_last=True)
    for _ in range(steps // every):
        batches = [next(stream).reshape(workers, each) for _ in range(every)]
        ends = []
        for rank in range(workers):
            vector_to_parameters(kept.detach().clone(), model.parameters())
            for batch in batches:
                loss = cross_entropy(model(x[batch[rank]]), y[batch[rank]])
                grads = torch.autograd.grad(loss, list(model.parameters()))
                with torch.no_grad():
                    for p, g in zip(model.parameters(), grads, strict=True):
                        p -= lr * g
            ends.append(parameters_to_vector(model.parameters()).detach())
        kept.grad = kept.detach() - torch.stack(ends).mean(0)
        outer.step()
    vector_to_parameters(kept.detach(), model.parameters())
    with torch.no_grad():
        return float(cross_entropy(model(x), y))
