"""Datasets as in-memory tensors, every one of them available without a network but ``openml``.

Real: ``digits``, ``documentation_text``, ``openml``. Synthetic: ``mnist1d``, ``gaussian_regression``, ``line``,
``two_spirals``. Wrappers spoil the training part only: ``with_label_noise``, ``with_class_imbalance``.
"""

import random
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import torch

from batchlab._check import array, count, fail, number
from batchlab._seeds import generator, whole
from batchlab.training.dataset import ORDERS, Dataset, epoch_order, fingerprint, index_stream

__all__ = [
    "ORDERS",
    "Dataset",
    "digits",
    "documentation_text",
    "epoch_order",
    "fingerprint",
    "gaussian_regression",
    "index_stream",
    "line",
    "mnist1d",
    "openml",
    "two_spirals",
    "with_class_imbalance",
    "with_label_noise",
]


# --- Making parts ------------------------------------------------------------------------------------------------


def _split(seed, x, y, val, test):
    """Shuffle the examples and cut them into train, val and test."""
    order = generator(seed, "data").permutation(len(x))
    cuts = [len(x) - val - test, len(x) - test]
    return [(x[i], y[i]) for i in np.split(order, cuts)]


def _standardised(parts, each_feature=False):
    """Subtract the training mean and divide by the training standard deviation.

    One mean and deviation for all inputs, so that an image stays an image; ``each_feature`` gives each column
    its own (a constant column is only centred).
    """
    x = parts[0][0].astype(np.float64)
    mean, sd = x.mean(axis=0 if each_feature else None), x.std(axis=0 if each_feature else None)
    sd = np.where(sd > 0, sd, 1.0)
    return [((x - mean) / sd, y) for x, y in parts]


def _tensors(parts, labels):
    def pair(x, y):
        x = torch.tensor(np.asarray(x), dtype=torch.float32)
        return x, torch.tensor(np.asarray(y), dtype=torch.int64 if labels else torch.float32)

    train, val, test = (pair(x, y) for x, y in parts)
    return {"train": train, "val": val, "test": test}


# --- Real data ---------------------------------------------------------------------------------------------------


def digits(seed=0, *, val=180, test=180, images=False):
    """scikit-learn's handwritten digits (Alpaydin & Kaynak 1998): 1,797 real 8 x 8 images in 10 classes.

    Inputs ``(N, 64)``, or ``(N, 1, 8, 8)`` with ``images=True``, standardised by the mean and deviation of all
    training pixels. ``seed`` draws the split; 1,437 training examples unless ``val`` or ``test`` say otherwise.

    >>> digits()
    Dataset('digits', real, train 1437, val 180, test 180, inputs (64,), 10 classes)
    """
    from sklearn.datasets import load_digits

    count("val", val, at_most=1795)
    count("test", test, at_most=1796 - val)
    x, y = load_digits(return_X_y=True)
    parts = _standardised(_split(seed, x.reshape(-1, 1, 8, 8) if images else x, y, val, test))
    return Dataset("digits", True, **_tensors(parts, labels=True), classes=10)


def documentation_text(context=32, *, seed=0, windows=8192, val=1024, test=1024):
    """English prose for a causal language model: the manual of Python itself, which every Python carries.

    The topics of ``pydoc_data.topics`` in an order drawn from ``seed``, as characters: x int64 ``(N, context)``, y
    the same windows one character later. Windows do not overlap, and each part is one stretch of the text. Classes
    0 to 94 are the printable characters from space to ~, 95 is the line end; any other character is left out. The
    text differs a little from one version of Python to the next.

    Raises ValueError if the manual is too short for that many windows.

    >>> documentation_text(16, windows=100, val=10, test=10)
    Dataset('documentation_text', real, train 100, val 10, test 10, inputs (16,), 96 classes)
    """
    from pydoc_data.topics import topics

    count("context", context)
    parts = [count(name, n) for name, n in (("windows", windows), ("val", val), ("test", test))]
    names = sorted(topics)
    text = "\n".join(topics[names[i]] for i in generator(seed, "data").permutation(len(names)))
    codes = np.frombuffer(text.encode("ascii", "ignore"), dtype=np.uint8).astype(np.int64)
    codes = codes[((codes >= 32) & (codes < 127)) | (codes == 10)]
    tokens = torch.from_numpy(np.where(codes == 10, 95, codes - 32))
    most = (len(tokens) - 1) // context
    if sum(parts) > most:
        fail("windows + val + test", sum(parts), f"at most {most}, all there is of {context} characters each")
    x = tokens[: most * context].reshape(most, context)
    y = tokens[1 : most * context + 1].reshape(most, context)
    cuts = [0, parts[0], parts[0] + parts[1], sum(parts)]
    train, val, test = ((x[a:b], y[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True))
    return Dataset("documentation_text", True, train, val, test, classes=96)


def openml(name, *, version=1, seed=0, val=0.1, test=0.2, cache=None):
    """A classification set from OpenML (Vanschoren et al. 2014), by name: "Fashion-MNIST", "mnist_784", "credit-g".

    Downloaded once by scikit-learn's ``fetch_openml`` and kept in ``cache`` (by default scikit-learn's own data
    folder). Categories become 0/1 columns; columns are standardised each by its own training mean and deviation,
    or, where every column is a pixel from 0 to 255, all together. ``val`` and ``test`` are shares of the examples.

    Raises ConnectionError without a network where the set is not in the cache, and ValueError on missing values.
    """
    from sklearn.datasets import fetch_openml

    number("val", val, above=0, below=1)
    number("test", test, above=0, below=1 - val)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Invalid cache|A network error")  # said once, below
            x, y = fetch_openml(name, version=version, return_X_y=True, as_frame=True, data_home=cache, parser="auto")
    except OSError as error:  # urllib's URLError is one
        raise ConnectionError(
            f"openml({name!r}) needs a network the first time, and could not reach OpenML ({error}). "
            "data.digits() and data.mnist1d() need none."
        ) from error
    if x.isna().any(axis=None) or y.isna().any():
        fail("data", name, "a set without missing values")
    numeric = x.select_dtypes("number").to_numpy(np.float64)
    pixels = numeric.shape[1] == x.shape[1] > 1 and numeric.min() >= 0 and numeric.max() == 255
    x = numeric if pixels else pd.get_dummies(x, dtype=float).to_numpy(np.float64)
    names, labels = np.unique(y.astype(str).to_numpy(), return_inverse=True)
    sizes = max(1, round(val * len(x))), max(1, round(test * len(x)))
    parts = _standardised(_split(seed, x, labels, *sizes), each_feature=not pixels)
    return Dataset(name, True, **_tensors(parts, labels=True), classes=len(names))


# --- Synthetic data ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def mnist1d(examples=4000, seed=0, *, val=2000, test=10_000, signals=False):
    """MNIST-1D (Greydanus & Kobak 2024): synthetic signals of 40 points in 10 classes, as many as asked for.

    Generated by the ``mnist1d`` package with its own settings; ``seed`` draws all of it. Inputs ``(N, 40)``, or
    ``(N, 1, 40)`` with ``signals=True``, standardised by the mean and deviation of all training points. With 10,000
    test examples the sampling error of an accuracy is at most 0.5 percentage points. About 0.3 ms an example; the
    last few sets are kept in memory.

    >>> mnist1d(80, val=10, test=10)
    Dataset('mnist1d', synthetic, train 80, val 10, test 10, inputs (40,), 10 classes)
    """
    total = count("examples", examples) + count("val", val) + count("test", test)
    with _global_numpy_and_random_kept():
        from mnist1d.data import get_dataset_args, make_dataset

        args = get_dataset_args()
        args.num_samples, args.train_split = -(-total // 10) * 10, 1.0  # it makes as many of each class
        args.seed = whole(seed, "data") % 2**32
        made = make_dataset(args)
    x = made["x"].reshape(-1, 1, 40) if signals else made["x"]
    parts = _standardised(_split(seed, x[:total], made["y"][:total], val, test))
    return Dataset("mnist1d", False, **_tensors(parts, labels=True), classes=10)


@contextmanager
def _global_numpy_and_random_kept():
    """mnist1d seeds the global generators; put them back as they were."""
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002


def gaussian_regression(eigenvalues, noise, *, examples=4096, seed=0, val=1024, test=1024):
    """Linear regression whose truth is known: x ~ N(0, diag(eigenvalues)), y = x . w + noise * N(0, 1).

    The true weights w, in ``truth`` as ``(d, 1)``, are drawn from N(0, 1). ``noise`` is the standard deviation of
    the label noise; the least reachable mean squared error is its square. Nothing is standardised: the spectrum is
    the point.

    >>> gaussian_regression([1, 0.5], noise=0.1, examples=8)
    Dataset('gaussian_regression', synthetic, train 8, val 1024, test 1024, inputs (2,), outputs (1,))
    """
    eigenvalues = array("eigenvalues", eigenvalues, ndim=1)
    if (eigenvalues < 0).any():
        fail("eigenvalues", eigenvalues, "numbers of at least 0")
    noise = number("noise", noise, at_least=0)
    sizes = [count(name, n) for name, n in (("examples", examples), ("val", val), ("test", test))]
    rng = generator(seed, "data")
    w = rng.standard_normal((len(eigenvalues), 1))
    parts = []
    for n in sizes:
        x = rng.standard_normal((n, len(eigenvalues))) * np.sqrt(eigenvalues)
        parts.append((x, x @ w + noise * rng.standard_normal((n, 1))))
    truth = torch.tensor(w, dtype=torch.float32)
    return Dataset("gaussian_regression", False, **_tensors(parts, labels=False), truth=truth)


def line(examples=100, *, seed=0, val=100, test=1000):
    """Article 001's line: x ~ U(0, 1), y = 3x + 2 + U(0, 1), so slope 3, intercept 2.5 and noise variance 1/12.

    >>> line()
    Dataset('line', synthetic, train 100, val 100, test 1000, inputs (1,), outputs (1,))
    """
    sizes = [count(name, n) for name, n in (("examples", examples), ("val", val), ("test", test))]
    rng = generator(seed, "data")
    parts = [(x := rng.random((n, 1)), 3 * x + 2 + rng.random((n, 1))) for n in sizes]
    return Dataset("line", False, **_tensors(parts, labels=False), truth=torch.tensor([[3.0], [2.5]]))


def two_spirals(examples=1000, *, noise=0.1, turns=1.5, seed=0, val=500, test=2000):
    """Two spirals in the plane, wound into each other (after Lang & Witbrock 1988): inputs ``(N, 2)``, 2 classes.

    A point lies at angle a, uniform in [0, 2 pi turns], and radius a, on one arm or the one opposite; ``noise`` is
    the standard deviation added to both coordinates, in radians of that radius. Standardised together.

    >>> two_spirals(10)
    Dataset('two_spirals', synthetic, train 10, val 500, test 2000, inputs (2,), 2 classes)
    """
    sizes = [count(name, n) for name, n in (("examples", examples), ("val", val), ("test", test))]
    number("noise", noise, at_least=0)
    number("turns", turns, above=0)
    rng = generator(seed, "data")
    parts = []
    for n in sizes:
        label, angle = rng.integers(2, size=n), 2 * np.pi * turns * np.sqrt(rng.random(n))
        x = angle * np.stack([np.cos(angle + np.pi * label), np.sin(angle + np.pi * label)])
        parts.append((x.T + noise * rng.standard_normal((n, 2)), label))
    return Dataset("two_spirals", False, **_tensors(_standardised(parts), labels=True), classes=2)


# --- Spoiling the training part ----------------------------------------------------------------------------------


def with_label_noise(data, fraction, seed=0):
    """Give a fraction of the training examples a wrong label, drawn evenly from the other classes.

    Exactly round(fraction * N) labels change; validation and test labels stay true.

    >>> clean = digits()
    >>> int((with_label_noise(clean, 0.2).train[1] != clean.train[1]).sum()), round(0.2 * 1437)
    (287, 287)
    """
    _check_labels(data)
    fraction = number("fraction", fraction, at_least=0, at_most=1)
    rng = generator(seed, "noise")
    x, y = data.train
    hit = torch.from_numpy(rng.permutation(len(y))[: round(fraction * len(y))])
    y = y.clone()
    y[hit] = (y[hit] + torch.from_numpy(rng.integers(1, data.classes, size=len(hit)))) % data.classes
    return replace(data, name=f"{data.name} + {fraction:g} label noise", train=(x, y))


def with_class_imbalance(data, keep, seed=0):
    """Keep only a share of the training examples of some classes: ``keep={7: 0.02}`` makes sevens rare.

    Of each class named, round(share * its examples), at least one, stay, drawn at random; their order does not
    change. Validation and test parts stay whole, so that the rare class can be measured there.

    >>> rare = with_class_imbalance(digits(), {7: 0.02})
    >>> int((rare.train[1] == 7).sum())
    3
    """
    _check_labels(data)
    if not isinstance(keep, dict) or not keep:
        fail("keep", keep, "a dict class -> share kept, such as {7: 0.02}")
    rng = generator(seed, "noise")
    x, y = data.train
    stays = np.ones(len(y), dtype=bool)
    for label, share in keep.items():
        count("keep class", label, at_least=0, at_most=data.classes - 1)
        number("keep share", share, above=0, at_most=1)
        members = rng.permutation(np.flatnonzero(y.numpy() == label))
        stays[members[max(1, round(share * len(members))) :]] = False
    stays = torch.from_numpy(stays)
    return replace(data, name=f"{data.name} keeping {keep}", train=(x[stays], y[stays]))


def _check_labels(data):
    if not isinstance(data, Dataset) or data.classes is None or data.train[1].ndim != 1:
        fail("data", data, "a Dataset with one label an example")
