"""Does the noise scale of a run with momentum predict its critical batch size? Four problems that nothing else uses.

The functions, protocol and quantities are those of 07-critical-batch, whose rows raised the question; losses to reach
and seeds are new. Some three minutes on two idle cores.
"""

import batchlab as bl

COUNT, WATCH = range(1030, 1042), range(1050, 1054)
NETWORKS = {  # as in 07-critical-batch
    "digits to 0.3, momentum": ("digits", "momentum", 0.3, 0.4, 130, 9, 60),
    "MNIST to 0.15, momentum": ("mnist", "momentum", 0.15, 0.12, 180, 60, 100),
    "MNIST-1D to 1.5, momentum": ("signals-4000", "momentum", 1.5, 0.8, 457, 25, 250),
    "text to 2.9, momentum": ("text", "momentum", 2.9, 2.5, 325, 16, 170),
}


def rows(seeds=COUNT, watch=WATCH, problems=tuple(NETWORKS), cache=None):
    """One row a problem, quantity, batch size and seed; "lr" is the rate, "value" what was found."""
    first = bl.results.script("07-critical-batch")  # a module of our own, which nobody else sees
    first.NETWORKS.update(NETWORKS)
    return first.rows(seeds, watch, problems, cache=cache)
