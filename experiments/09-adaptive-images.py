"""Do batches that follow the noise scale, or the norm test, gain on images? 09-adaptive-second on fresh seeds.

There it was asked whether they gain less than a point over fixed batches of as many updates; they gained about one.
This asks whether they gain at all, and whether they gain a point over schedules. Seeds 1340 to 1359. Half a minute on
two idle cores.
"""

import batchlab as bl

SEEDS = range(1340, 1360)


def rows(seeds=SEEDS, arms=("fixed", "schedule", "noise", "norm"), cache=None):
    """As 09-adaptive-second has them."""
    first = bl.results.script("09-adaptive-second")  # a module of our own, which nobody else sees
    first.FIXED, first.SCHEDULED = (128, 256), (64, 128)
    return first.rows(seeds, arms, (1.0, 2.0), cache)
