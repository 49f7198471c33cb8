"""What data-parallel training takes, as a model: a ring all-reduce under a backward pass, and the law of the steps.

The alpha-beta model: a message of n bytes takes alpha + n beta seconds, whatever else the network does. ``latency`` is
alpha (s a message), ``bandwidth`` 1/beta (bytes a second each way on each worker's link). No link is shared, no worker
is late, no time goes by in the processor that adds. So it says what a network allows, not what a program reaches.
"""

from batchlab._check import count, number


def ring_seconds(size, workers, latency, bandwidth):
    """Return the seconds of a ring all-reduce of ``size`` bytes: 2 (W - 1) (alpha + (size / W) beta).

    The vector is cut into W pieces. W - 1 messages of one piece each leave every worker with the sum of one piece, and
    W - 1 more bring it round (Patarasuk and Yuan, 2009). Each worker sends 2 (W - 1) / W times the vector: nearly
    twice, however many take part, which no algorithm betters; but the messages grow with W. 0 for one worker.

    >>> round(1e3 * ring_seconds(100e6, workers=2, latency=0, bandwidth=1e9), 1)
    100.0
    >>> round(1e3 * ring_seconds(100e6, workers=1000, latency=0, bandwidth=1e9), 1)
    199.8
    """
    size, workers = number("size", size, at_least=0), count("workers", workers)
    latency, bandwidth = number("latency", latency, at_least=0), number("bandwidth", bandwidth, above=0)
    return 2 * (workers - 1) * (latency + size / workers / bandwidth)


def step_seconds(compute, reduce, overlap=2 / 3):
    """Return the seconds of a step: compute + what of the all-reduce the backward pass does not hide.

    Layers are reduced as soon as the backward pass has their gradients, so up to ``overlap`` of ``compute`` (s) goes by
    at the same time: the backward pass is about two thirds of a step. max(compute, (1 - overlap) compute + reduce).

    >>> step_seconds(compute=0.3, reduce=0.1), step_seconds(compute=0.3, reduce=0.1, overlap=0)
    (0.3, 0.4)
    """
    compute, reduce = number("compute", compute, above=0), number("reduce", reduce, at_least=0)
    overlap = number("overlap", overlap, at_least=0, at_most=1)
    return max(compute, (1 - overlap) * compute + reduce)


def seconds_to_target(workers, each, critical_batch, min_steps, step):
    """Return the seconds to a target: S_min (1 + B_crit / (W b)) steps of ``step`` seconds each.

    Each of W ``workers`` takes ``each`` = b examples of every batch, any number above 0; times W it is the price.
    The law is that of McCandlish et al. (2018), the rate tuned at each batch size. With b kept, past W b = B_crit
    twice the workers save hardly a step. That is a wall which no link moves.

    >>> one, many = (seconds_to_target(w, 32, critical_batch=8192, min_steps=1e4, step=0.1) for w in (1, 4096))
    >>> round(one / many)  # what 4,096 workers are worth
    242
    """
    workers, each = count("workers", workers), number("each", each, above=0)
    critical_batch, min_steps = (
        number("critical_batch", critical_batch, at_least=0),
        number("min_steps", min_steps, above=0),
    )
    return number("step", step, above=0) * min_steps * (1 + critical_batch / (workers * each))
