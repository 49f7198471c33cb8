"""What a dataset is, and the streams of indices that cut it into batches. The datasets themselves are in ``data``."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch

from batchlab._check import count, fail, one_of
from batchlab._seeds import generator

ORDERS = ("reshuffle", "replacement", "fixed")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three parts, each a pair of tensors (x, y), checked when made.

    x is float32 ``(N, ...)``, or int64 ``(N, T)`` where the inputs are tokens. y is int64 ``(N,)`` or ``(N, T)``
    holding labels in ``[0, classes)``, or float32 ``(N, outputs)`` for regression, where ``classes`` is None.
    ``real`` says whether the data was observed or made up; ``truth`` holds the true weights where they are known.

    Raises ValueError on an empty part, parts of different shapes, NaN or infinity, or a label out of range.

    >>> x, y = torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])
    >>> Dataset("four", False, (x, y), (x, y), (x, y), classes=2)
    Dataset('four', synthetic, train 4, val 4, test 4, inputs (2,), 2 classes)
    """

    name: str
    real: bool
    train: tuple
    val: tuple
    test: tuple
    classes: int | None = None
    truth: torch.Tensor | None = None

    def __post_init__(self):
        for part in ("train", "val", "test"):
            _check_part(part, getattr(self, part), self.train, self.classes)

    @property
    def tokens_per_example(self):
        """How many predictions the loss of one example averages: T where y is ``(N, T)``, else 1.

        What this package counts in examples (batch sizes, ``examples`` in tables, schedules, a noise scale) times this
        number is the same in tokens.

        >>> windows = torch.zeros(4, 16, dtype=torch.int64), torch.ones(4, 16, dtype=torch.int64)
        >>> Dataset("text", False, windows, windows, windows, classes=2).tokens_per_example
        16
        """
        y = self.train[1]
        return y.shape[1] if self.classes is not None and y.ndim == 2 else 1

    def __repr__(self):
        sizes = ", ".join(f"{part} {len(getattr(self, part)[0])}" for part in ("train", "val", "test"))
        outputs = f"{self.classes} classes" if self.classes else f"outputs {tuple(self.train[1].shape[1:])}"
        kind = "real" if self.real else "synthetic"
        return f"Dataset({self.name!r}, {kind}, {sizes}, inputs {tuple(self.train[0].shape[1:])}, {outputs})"


def _check_part(part, pair, train, classes):
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(t, torch.Tensor) for t in pair)):
        fail(part, type(pair).__name__, "a pair (x, y) of tensors")
    x, y = pair
    if x.ndim < 2 or len(x) == 0 or x.numel() == 0:
        fail(f"{part} x.shape", tuple(x.shape), "(N, ...) with at least one example and one feature")
    if len(x) != len(y):
        fail(f"{part} y.shape", tuple(y.shape), f"{len(x)} targets, one for each example")
    if x.dtype not in (torch.float32, torch.int64):
        fail(f"{part} x.dtype", x.dtype, "torch.float32, or torch.int64 for tokens")
    if not torch.isfinite(x).all():
        fail(f"{part} x", "NaN or infinity", "finite numbers only")
    if classes is None:
        if y.dtype != torch.float32 or y.ndim != 2:
            fail(
                f"{part} y",
                (y.dtype, tuple(y.shape)),
                "torch.float32 (N, outputs); a single output is (N, 1)",
            )
        if not torch.isfinite(y).all():
            fail(f"{part} y", "NaN or infinity", "finite numbers only")
    else:
        count("classes", classes, at_least=2)
        if y.dtype != torch.int64 or y.ndim not in (1, 2) or y.numel() == 0:
            fail(f"{part} y", (y.dtype, tuple(y.shape)), "torch.int64 labels (N,), or (N, T) for tokens")
        if y.min() < 0 or y.max() >= classes:
            fail(f"{part} labels", (int(y.min()), int(y.max())), f"labels from 0 to {classes - 1}")
    if (x.shape[1:], x.dtype, y.shape[1:]) != (train[0].shape[1:], train[0].dtype, train[1].shape[1:]):
        fail(f"{part} shapes", (tuple(x.shape), tuple(y.shape)), "those of the training part")


def fingerprint(data):
    """SHA-256 of a dataset's name, parts and classes, as hexadecimal: equal datasets have equal fingerprints.

    >>> def two(labels):
    ...     part = torch.zeros(2, 1), torch.tensor(labels)
    ...     return Dataset("two", False, part, part, part, classes=2)
    >>> fingerprint(two([0, 1])) == fingerprint(two([0, 1])) != fingerprint(two([1, 1]))
    True
    """
    digest = sha256(repr((data.name, data.real, data.classes)).encode())
    for part in (data.train, data.val, data.test):
        for tensor in part:
            digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- Which examples make a batch ---------------------------------------------------------------------------------


def epoch_order(examples, seed, epoch, order="reshuffle"):
    """The order in which one epoch visits the examples: an int64 array ``(examples,)``.

    ``"reshuffle"``: a new permutation each epoch. ``"replacement"``: independent draws, so some examples come
    twice and some not at all. ``"fixed"``: 0, 1, 2, ... every time. With a tuple of seeds, one row a seed.
    The result depends on these arguments only.

    >>> epoch_order(5, seed=0, epoch=0, order="fixed")
    array([0, 1, 2, 3, 4])
    >>> sorted(int(i) for i in epoch_order(5, seed=0, epoch=7))
    [0, 1, 2, 3, 4]
    """
    if isinstance(seed, tuple):
        return np.stack([epoch_order(examples, s, epoch, order) for s in seed])
    if order == "fixed":
        return np.arange(examples)
    rng = generator(seed, "order", epoch)
    return rng.permutation(examples) if order == "reshuffle" else rng.integers(examples, size=examples)


def index_stream(examples, batch_size, seed, order="reshuffle", drop_last=False, epochs=None):
    """Yield one int64 array of indices a step: ``(b,)``, or ``(seeds, b)`` where ``seed`` is a tuple of seeds.

    ``batch_size`` is a whole number up to ``examples``, or a function of the examples seen that returns one.
    In the orders "reshuffle" and "fixed" no batch spans two epochs: the last batch of an epoch is smaller where
    the size does not divide ``examples``, or is skipped under ``drop_last=True``. With "replacement" every
    batch is full. The stream is endless, or ends after ``epochs`` epochs (with replacement: with the first
    batch that brings the examples seen to ``epochs * examples``). A seed's indices are the same alone or in a tuple.

    Raises ValueError on a batch size that is not a whole number from 1 to ``examples``, or an unknown order.

    >>> [batch.tolist() for batch in index_stream(5, 2, seed=0, order="fixed", epochs=1)]
    [[0, 1], [2, 3], [4]]
    >>> [batch.tolist() for batch in index_stream(5, 2, seed=0, order="fixed", drop_last=True, epochs=1)]
    [[0, 1], [2, 3]]
    """
    count("examples", examples)
    one_of("order", order, ORDERS)
    if epochs is not None:
        count("epochs", epochs)
    size_at = batch_size if callable(batch_size) else lambda seen: batch_size
    count("batch_size", size_at(0), at_most=examples)
    return _index_stream(examples, size_at, seed, order, drop_last, epochs)


def _index_stream(examples, size_at, seed, order, drop_last, epochs):
    rest = epoch_order(examples, seed, 0, order)
    epoch, seen = 1, 0
    while True:
        size = count("batch_size", size_at(seen), at_most=examples)
        left = rest.shape[-1]
        if order == "replacement":
            if epochs is not None and seen >= epochs * examples:
                return
            if left < size:
                rest = np.concatenate([rest, epoch_order(examples, seed, epoch, order)], axis=-1)
                epoch += 1
        elif left == 0 or (drop_last and left < size):
            if epoch == epochs:
                return
            rest = epoch_order(examples, seed, epoch, order)
            epoch += 1
        batch, rest = rest[..., :size], rest[..., size:]
        seen += batch.shape[-1]
        yield batch
