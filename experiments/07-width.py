"""Does a wider network have another critical batch size? Layers of 25, 100 and 200 units, one loss to reach.

The functions, protocol and quantities are those of 07-critical-batch, seeds are new. Some two minutes.
"""

import batchlab as bl

COUNT = range(1060, 1072)
WIDTHS = (25, 100, 200)
NETWORKS = {  # as in 07-critical-batch
    f"signals, width {width}": (f"signals-4000-{width}", "sgd", 1.3, 1.8, 90, few, 110)
    for width, few in zip(WIDTHS, (300, 110, 100), strict=True)
}
LAYERS = {f"signals-4000-{width}": (40, width, width, 10) for width in WIDTHS}


def rows(seeds=COUNT, problems=tuple(NETWORKS), cache=None):
    """One row a problem, batch size and seed; "lr" is the rate, "value" the steps to a validation loss of 1.3."""
    first = bl.results.script("07-critical-batch")  # a module of our own, which nobody else sees
    first.NETWORKS.update(NETWORKS)
    first.LAYERS.update(LAYERS)
    return first.rows(seeds, (), problems, cache=cache)
