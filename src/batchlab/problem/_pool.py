"""Examples taken once from whatever holds them, and batches of any size made of those."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from batchlab._check import fail
from batchlab._seeds import generator
from batchlab.problem._trees import joined, leaves, mapped, row, rows


@dataclass(frozen=True, eq=False)
class Pool:
    """``size`` examples drawn at random, and ``fetch(indices)``, which makes a batch of some of them.

    ``population``: of how many they are a sample, None where that is not known. ``lengths`` (size,): how many numbers
    each holds, None where all are alike. ``taken``: how many batches were taken from an iterator, which cannot give
    them again. ``seconds``: what reading one example took.
    """

    fetch: Callable
    size: int
    population: int | None
    lengths: np.ndarray | None = None
    taken: int = 0
    seconds: float = 0.0

    def batch(self, size, start=0, longest=False):
        """A batch of ``size`` examples from place ``start`` of the pool on, going round; the longest ones if asked."""
        order = np.arange(self.size)
        if longest and self.lengths is not None:
            order = np.argsort(-self.lengths, kind="stable")
        return self.fetch(order[np.arange(start, start + size) % self.size])


def kind_of(data):
    """Say "tensors", "dataset" or "batches": in which way examples are taken from ``data``."""
    if isinstance(data, (torch.Tensor, tuple, Mapping)):
        return "tensors"
    if isinstance(data, DataLoader):
        whole = isinstance(data.dataset, IterableDataset) or data.batch_size is None and data.batch_sampler is None
        return "batches" if whole else "dataset"
    if isinstance(data, IterableDataset) or isinstance(data, list):
        return "batches"
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return "dataset"
    if isinstance(data, Iterable):
        return "batches"
    return fail(
        "data",
        type(data).__name__,
        "tensors in a tuple or mapping, a Dataset, a DataLoader, or an iterable (a list, say) of batches",
    )


def pooled(data, most, seed, left):
    """The ``Pool`` of at most ``most`` examples of ``data``; reading ends where ``left()`` is not above 0."""
    begin = time.perf_counter()
    kind = kind_of(data)
    if kind == "tensors":
        return _of_tensors(data, most, seed)
    if kind == "dataset":
        return _of_dataset(data, most, seed, begin, left)
    return _of_batches(data, most, left)


def _of_tensors(data, most, seed):
    n = rows(data)
    chosen = generator(seed, "batches").permutation(n)[:most]

    def fetch(places):
        index = torch.from_numpy(chosen[places])
        return mapped(lambda t: t[index.to(t.device)], data)

    return Pool(fetch, len(chosen), n)


def _of_dataset(data, most, seed, begin, left):
    source = data.dataset if isinstance(data, DataLoader) else data
    collate = data.collate_fn if isinstance(data, DataLoader) else default_collate
    n = len(source)
    if n == 0:
        fail("data", f"an empty {type(source).__name__}", "at least one example")
    examples = []
    for place in generator(seed, "batches").permutation(n)[:most]:
        examples.append(source[int(place)])
        if left() <= 0 and len(examples) >= 4:
            break
    seconds = (time.perf_counter() - begin) / len(examples)
    collate = joined if collate is default_collate and _unlike(examples) else collate

    def fetch(places):
        batch = collate([examples[i] for i in places])
        if rows(batch, "collate_fn") != len(places):
            fail("collate_fn", f"{rows(batch)} examples of {len(places)}", "a batch with one row an example")
        return batch

    return Pool(fetch, len(examples), n, _lengths(examples), 0, seconds)


def _of_batches(data, most, left):
    examples, taken, whole, source, seconds = [], 0, False, iter(data), 0.0
    while len(examples) < most:
        start = time.perf_counter()
        batch = next(source, None)
        seconds += time.perf_counter() - start
        if batch is None:
            whole = True
            break
        taken += 1
        examples += [row(batch, i) for i in range(rows(batch, f"batch {taken - 1} of data"))]
        if left() <= 0 and len(examples) >= 4:
            break
    if not examples:
        fail("data", f"an empty {type(data).__name__}", "an iterable that gives at least one batch")
    unlike = {tuple((path, t.dtype, t.ndim) for path, t in leaves(e)) for e in examples}
    if len(unlike) > 1:
        fail("data", f"a {type(data).__name__} of batches of {len(unlike)} kinds", "batches of one structure; "
             "inputs and targets together are a tuple (x, y), a list is taken for an iterable of batches")  # fmt: skip
    size, seconds = len(examples), seconds / len(examples)
    examples = examples[:most]

    def fetch(places):
        return joined([examples[i] for i in places])

    once = isinstance(data, Iterator)
    return Pool(fetch, len(examples), size if whole else None, _lengths(examples), taken if once else 0, seconds)


def _sizes(example):
    if isinstance(example, (Mapping, tuple, list)):
        parts = example.values() if isinstance(example, Mapping) else example
        return sum(_sizes(part) for part in parts)
    if isinstance(example, (torch.Tensor, np.ndarray)):
        return example.numel() if isinstance(example, torch.Tensor) else example.size
    return len(example) if isinstance(example, str) else 1


def _lengths(examples):
    sizes = np.array([_sizes(example) for example in examples])
    return sizes if len(np.unique(sizes)) > 1 else None


def _unlike(examples):
    """Whether the examples are tensors of unlike shapes, which default_collate cannot stack."""
    return len({tuple(t.shape for _, t in leaves(example)) for example in examples}) > 1
