"""The branch test on a problem of one's own: train on with larger batches, and see which of them keep the loss."""

import math

import numpy as np
import torch

from batchlab.advise._measured import Branch
from batchlab.advise._signal import draw, order
from batchlab.advise._steps import take
from batchlab.instruments._probe import preserved
from batchlab.stats import Interval, mean_interval

SEEDS = 4
TOLERANCE = 0.03  # of the loss


def branches(problem, pool, sizes, rates, examples, left, seed):
    """A ``Branch`` for each of ``sizes``, at the rate ``rates`` has for it, after Merrill et al. (2025).

    From the model as it is, ``SEEDS`` times: through ``examples`` examples at the problem's own batch size and rate,
    and at each other size. The loss is that of the pool's last quarter, which no branch trains on. Student's interval,
    paired by seed, 90 %: "kept" up to 3 % more loss, "lost" above, else "undecided". Sizes for which the time did not
    last are left out.
    """
    train = pool.size - pool.size // 4
    held = problem.sent(pool.fetch(np.arange(train, pool.size)[:2048]))
    sizes = [size for size in sizes if size <= min(train, examples)]
    losses = {problem.batch_size: []} | {size: [] for size in sizes}
    for number in range(SEEDS):
        for size in losses:
            losses[size].append(_after(problem, pool, train, size, rates.get(size), examples, held, (seed, number)))
            if left() <= 0:
                break
        if left() <= 0:
            break
    own = losses.pop(problem.batch_size)
    found = []
    for size in sizes:
        if len(losses[size]) < 2:
            continue
        pairs = list(zip(losses[size], own, strict=False))
        if not np.isfinite(pairs).all():
            excess, verdict = Interval(math.inf, math.inf, math.inf, 0.9), "lost"
        else:
            excess = mean_interval([(a - b) / abs(b) for a, b in pairs], level=0.9)
            verdict = "kept" if excess.high <= TOLERANCE else "lost" if excess.low > TOLERANCE else "undecided"
        found.append(Branch(size, rates[size], excess, verdict))
    return tuple(found)


def _after(problem, pool, train, size, lr, examples, held, key):
    seed, number = key
    with preserved(problem.model, problem.optimizer):
        torch.manual_seed(seed + number)
        first = problem.optimizer.param_groups[0]["lr"]
        for group in problem.optimizer.param_groups:
            group["lr"] = float(group["lr"]) * (1 if lr is None else lr / float(first))
        stream = (place for place in order(pool, seed, 2, number) if place < train)
        for _ in range(examples // size):
            take(problem, problem.sent(pool.fetch(draw(stream, size))))
        problem.model.eval()
        with torch.no_grad():
            return float(problem.value(held))
