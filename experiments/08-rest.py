"""What 08-optimisers left out: Muon's whole curve, and rates below the grid where the one tuned at 64 is kept at 512.

Same tasks, targets, grids and seeds. Muon at 8 and 64 on all ten seeds, at 512 and 2,048 on the four that it had not
been run on; at 512 four lower rates, for Muon on signals and momentum on text. Where to look at 8 and 64 was seen in
trial runs on seeds 0 and 1. Some two minutes on two idle cores.
"""

import pandas as pd

import batchlab as bl

SEEDS = range(1300, 1310)
PARTS = ("small", "more seeds", "lower rates")
LOWER = {("signals", "muon"): -3, ("text", "momentum"): 1}  # the middle of the first grid at 512


def rows(seeds=SEEDS, parts=PARTS, cache=None):
    """As 08-optimisers has them, none of them twice."""
    first, tables = bl.results.script("08-optimisers"), []  # a module of our own, which nobody else sees
    first.MUON_SIZES, left = (8, 64, 512, 2048), [seed for seed in seeds if seed >= SEEDS[first.MUON_SEEDS]]
    first.MUON_SEEDS = len(SEEDS)
    for task, sizes in first.SIZES.items():
        if "small" in parts:
            tables.append(first.rows(seeds, ((task, "muon"),), sizes[:2], cache))
        if "more seeds" in parts and left:
            tables.append(first.rows(left, ((task, "muon"),), sizes[2:], cache))
    if "lower rates" in parts:
        for cell, middle in LOWER.items():
            middles, few, crit = first.MIDDLE[cell]
            first.MIDDLE[cell] = (middles[:2] + (middle - 4,), few, crit)
            lower = first.rows(seeds, (cell,), (512,), cache)
            tables.append(lower[lower.lr < 2.0 ** (middle - 2)])
    return pd.concat(tables, ignore_index=True)
