"""What stands or falls together: rows that share a class or a data set are one unit, not many."""

import numpy as np

from batchlab._check import fail


def unit_numbers(clusters, rows):
    """For each of so many rows the number of its cluster, 0, 1, ...; without clusters each row is its own.

    >>> unit_numbers(["cat", "dog", "cat"], 3).tolist()
    [0, 1, 0]
    """
    if clusters is None:
        return np.arange(rows)
    labels = np.asarray(clusters)
    if labels.shape != (rows,):
        fail("clusters.shape", labels.shape, f"({rows},): one label a row")
    if labels.dtype.kind not in "biuUSf" or (labels.dtype.kind == "f" and not np.isfinite(labels).all()):
        fail("clusters", clusters, "whole numbers or strings, none missing")
    names, numbers = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        fail("clusters", clusters, "at least two different labels")
    return numbers


def unit_means(values, clusters):
    """The mean of each cluster's rows, ``(clusters, ...)``; without clusters ``values`` as they are.

    >>> unit_means(np.array([1.0, 5.0, 3.0]), ["cat", "dog", "cat"]).tolist()
    [2.0, 5.0]
    """
    if clusters is None:
        return values
    numbers = unit_numbers(clusters, len(values))
    return np.stack([values[numbers == unit].mean(0) for unit in range(numbers.max() + 1)])
