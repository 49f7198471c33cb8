"""What a solution looks like from inside: sharpness by two measures, and how far the weights have gone, at four sizes.

One rate for all batch sizes and equal steps (1,024), so that nothing but the batch differs; the MLP of 11-protocols on
MNIST-1D and on digits (momentum, 1/32, a constant rate), the CNN on digits (AdamW, 1/64; 8 and 128 only). "keskar":
Keskar's sharpness, in percent, in a box of 0.001; "adaptive": adaptive sharpness, in nats, in a box of 1 % of every
weight; on all training examples (512 of MNIST-1D). "distance": of the weights from their start, after powers of two of
steps, in units of the start's norm. Seeds 1700 to 1705 (CNN: to 1703). Some minute on two idle cores.
"""

import numpy as np
import pandas as pd
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

import batchlab as bl

SEEDS = range(1700, 1706)
SIZES = {"MLP, MNIST-1D": (8, 32, 128, 512), "MLP, digits": (8, 32, 128, 512), "CNN, digits": (8, 128)}
RATE = {"MLP": 2.0**-5, "CNN": 2.0**-6}
STEPS, MEASURED = 1024, 512
protocols = bl.results.script("11-protocols")


def solution(task, batch_size, seed, steps=STEPS):
    """The network after so many steps."""
    run = bl.Run(
        data=protocols.dataset(task),
        model=protocols.model(task),
        optimizer=protocols.optimizer(task, 0.0),
        lr=RATE[task[:3]],
        batch_size=batch_size,
        steps=steps,
        seed=int(seed),
        evaluate=("train", "test"),
        evaluate_every=steps * batch_size,
        device="cpu",
    )
    return bl.fit(run)


def rows(seeds=SEEDS, tasks=tuple(SIZES), cache=None):
    """One row a task, batch size, quantity, number of steps and seed."""
    found = []
    for task in tasks:
        for batch_size in SIZES[task]:
            for seed in seeds if task.startswith("MLP") else seeds[:4]:
                name = dict(task=task, batch_size=batch_size, seed=seed)
                history = solution(task, batch_size, seed)
                end, network = history.table.iloc[-1], history.model()
                x, y = (part[:MEASURED] for part in protocols.dataset(task).train)
                values = {part: end[part] for part in ("train_loss", "test_loss", "test_accuracy")}
                for kind, radius in (("keskar", 1e-3), ("adaptive", 1e-2)):
                    given = dict(kind=kind, radius=radius, starts=1, seed=seed)
                    values[kind] = bl.curvature.sharpness(network, cross_entropy, x, y, **given).value
                found += [name | dict(quantity=key, steps=STEPS, value=value) for key, value in values.items()]
                if task.startswith("MLP") and batch_size in (8, 512):
                    found += [
                        name | dict(quantity="distance", steps=steps, value=distance(task, batch_size, seed, steps))
                        for steps in 2 ** np.arange(0, 11)
                    ]
    return pd.DataFrame(found).round({"value": 6})


def distance(task, batch_size, seed, steps):
    start = parameters_to_vector(bl.models.build(protocols.model(task), seed).parameters())
    after = parameters_to_vector(solution(task, batch_size, seed, int(steps)).model().parameters())
    return float((after - start).norm() / start.norm())
