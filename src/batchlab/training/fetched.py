"""Data that a network brings, once: each loader downloads its set the first time, and then finds it in a folder."""

import hashlib
import http.client
import io
import urllib.request
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from batchlab._check import count, fail, number
from batchlab.training._parts import global_generators_kept, split, standardised, tensors
from batchlab.training.dataset import Dataset

UNREACHED = OSError, http.client.HTTPException  # urllib's URLError and a time-out are OSErrors


def openml(name, *, version=1, seed=0, val=0.1, test=0.2, cache=None):
    """A classification set from OpenML (Vanschoren et al. 2014), by name: "Fashion-MNIST", "mnist_784", "credit-g".

    Downloaded once by scikit-learn's ``fetch_openml`` and kept in ``cache`` (by default scikit-learn's own data
    folder). Categories become 0/1 columns; columns are standardised each by its own training mean and deviation,
    or, where every column is a pixel from 0 to 255, all together. ``val`` and ``test`` are shares of the examples.

    Raises ConnectionError without a network where the set is not in the cache, and ValueError on missing values.
    """
    with global_generators_kept():  # as in ``digits``
        from sklearn.datasets import fetch_openml

    number("val", val, above=0, below=1)
    number("test", test, above=0, below=1 - val)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Invalid cache|A network error")  # said once, below
            x, y = fetch_openml(name, version=version, return_X_y=True, as_frame=True, data_home=cache, parser="auto")
    except UNREACHED as error:
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
    parts = standardised(split(seed, x, labels, *sizes), each_feature=not pixels)
    return Dataset(name, True, **tensors(parts, labels=True), classes=len(names))


MOVIELENS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
MOVIELENS_MD5 = "0e33842e24a9c977be4e0107933c0723"  # as GroupLens publishes it, in ml-100k.zip.md5
MOVIELENS_SIZE = 100_000, 943, 1682  # ratings, users, films: its README


def movielens(users=943, films=1682, *, seed=0, val=0.1, test=0.2, cache=None):
    """MovieLens 100K: 100,000 ratings of 1,682 films by 943 people, one to five stars (Harper & Konstan 2015).

    x is int64 ``(N, 2)``, the numbers of user and film, each from 0; y float32 ``(N, 1)``, the stars. With fewer
    ``users`` those with the most ratings are kept, and then the ``films`` that those rated most, numbered anew in that
    order. ``val`` and ``test`` are shares of the ratings, which ``seed`` deals out, so that a film of the test part may
    have no rating in the training part.

    Downloaded once from GroupLens (5 MB), held to the MD5 sum that they publish, and kept in ``cache`` (by default
    ``movielens`` in scikit-learn's data folder). GroupLens allow research, ask to be cited, and forbid to pass the data
    on, or to use them commercially, without their permission: so they aren't part of this package, and no test reads
    them. The file's ``ml-100k/README`` has the terms.

    Raises ConnectionError without a network where the file is not in the cache, and ValueError where what came, or what
    lies there, is not that file: each names the address or the file, and what to do.
    """
    ratings, people, titles = MOVIELENS_SIZE
    count("users", users, at_most=people)
    count("films", films, at_most=titles)
    number("val", val, above=0, below=1)
    number("test", test, above=0, below=1 - val)
    table = _stars(*_movielens_file(cache))
    kept = _densest(_densest(table, 0, users), 1, films)
    sizes = max(1, round(val * len(kept))), max(1, round(test * len(kept)))
    if sum(sizes) >= len(kept):
        fail("users, films", (users, films), f"enough of both for three parts: they share {len(kept)} ratings")
    parts = split(seed, kept[:, :2], kept[:, 2:].astype(np.float32), *sizes)
    train, val, test = ((torch.tensor(x), torch.tensor(y)) for x, y in parts)
    return Dataset("movielens", True, train, val, test)


def _movielens_file(cache):
    """The zip's bytes, and where they lie; fetched and kept if they lie nowhere yet."""
    if cache is None:
        with global_generators_kept():  # as in ``digits``
            from sklearn.datasets import get_data_home
        cache = Path(get_data_home()) / "movielens"
    path = Path(cache) / "ml-100k.zip"
    if path.exists():
        zipped, what, mend = path.read_bytes(), str(path), "delete it, and it is downloaded anew"
    else:
        what, mend = f"what {MOVIELENS} sent", f"try again later, or download it by hand to {path}"
        try:
            with urllib.request.urlopen(MOVIELENS, timeout=60) as answer:
                zipped = answer.read()
        except UNREACHED as error:
            raise ConnectionError(
                f"movielens() needs a network the first time, and could not fetch {MOVIELENS} ({error!r}). Put that "
                f"file at {path} by hand; or see experiments/13-domains.py, whose ratings are made up and need none."
            ) from error
    found = hashlib.md5(zipped, usedforsecurity=False).hexdigest()
    if found != MOVIELENS_MD5:
        raise ValueError(
            f"{what} is not MovieLens 100K: {len(zipped):,} bytes that begin with {zipped[:15]!r}, MD5 {found} "
            f"instead of {MOVIELENS_MD5}. It may be cut short, or an error page: {mend}."
        )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(zipped)
        part.replace(path)  # whole or not at all
    return zipped, path


def _stars(zipped, path):
    """(ratings, 3): user, film, stars, numbered from 0. Held to what the README promises of ``u.data``."""
    try:
        with zipfile.ZipFile(io.BytesIO(zipped)) as folder:
            table = pd.read_csv(folder.open("ml-100k/u.data"), sep="\t", header=None).to_numpy()
    except (zipfile.BadZipFile, KeyError, ValueError) as error:  # pandas' ParserError is a ValueError
        raise ValueError(f"{path}: expected a zip with a table ml-100k/u.data, got {error!r}") from error
    promised = f"{path}: ml-100k/u.data: expected the four columns user, film, stars (1 to 5), time, "
    ratings, people, titles = MOVIELENS_SIZE
    promised += f"{ratings:,} rows, users 1 to {people:,} and films 1 to {titles:,}"
    if table.shape != (ratings, 4) or table.dtype != np.int64:
        raise ValueError(f"{promised}, got a table {table.shape} of {table.dtype}")
    for column, last in ((0, people), (1, titles), (2, 5)):
        seen = np.unique(table[:, column])
        if not np.array_equal(seen, np.arange(1, last + 1)):
            raise ValueError(f"{promised}, got {len(seen)} values from {seen[0]} to {seen[-1]} in column {column + 1}")
    return table[:, :3] - [1, 1, 0]


def _densest(table, column, keep):
    """Rows of the ``keep`` values that occur most in this column, numbered anew from 0, the most frequent first."""
    values, often = np.unique(table[:, column], return_counts=True)
    chosen = values[np.argsort(-often, kind="stable")][:keep]
    rank = np.full(values.max() + 1, -1)
    rank[chosen] = np.arange(len(chosen))
    ranked = table.copy()
    ranked[:, column] = rank[table[:, column]]
    return ranked[ranked[:, column] >= 0]
