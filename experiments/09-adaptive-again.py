"""Following the noise scale, or the norm test, against fixed batches of as many updates: 09-adaptive on fresh seeds.

There a gain of a point was asked for, and the adaptive batches were behind. This asks the opposite, with both at their
full noise scale, the rate following. Seeds 1200 to 1219. Half a minute on two idle cores.
"""

import batchlab as bl

SEEDS = range(1200, 1220)


def rows(seeds=SEEDS, cache=None):
    """As 09-adaptive has them."""
    first = bl.results.script("09-adaptive")  # a module of our own, which nobody else sees
    first.FIXED, first.ADAPTIVE = (128, 256, 512), {"noise": (1.0,), "norm": (1.0,)}
    return first.rows(seeds, ("fixed", "noise", "norm"), (0.5, 1.0, 2.0), cache)
