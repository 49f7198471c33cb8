"""Networks that the C kernel trains as a tape: every lane equals a lone ``fit``, whatever the layers and their shapes.

Batch norm and ReLU's kink let rounding grow, in any program: an entry within rounding of 0 is let through by one and
not by the other. So long runs are held to float64, over seeds: a lane must be as near to it as ``fit`` in float32 is.
"""

import ctypes
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import COMPILED_FOR, RULES, a_lane, rows_of, take_the_kernel_for
from test_sweep import GROWING, SCHEDULES, SPIRALS, a_run, assert_equals_fit, one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F

from batchlab import data, fit, models, optim, schedules, sweep
from batchlab.engine import choice, kernel, native, structures, tape
from batchlab.engine.plan import plan
from batchlab.training import layers

WAVES = data.mnist1d(300, val=130, test=1, signals=True)
TEXT = data.documentation_text(12, tokens=1200, val=240, test=120)
LONG = data.documentation_text(40, tokens=2000, val=400, test=120)  # more places than a vector has lanes, twice
WORDS = TEXT.classes


def images(channels, height, width, examples=60):
    """Noise with a class in its mean, of a shape that nobody would choose."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(examples) % 3
    x = torch.randn(examples, channels, height, width, generator=rng) + 0.5 * y[:, None, None, None]
    few = x[:20], y[:20]
    return data.Dataset("noise", True, (x, y), few, few, classes=3)


def two_eps(seed):
    first, second = nn.LayerNorm(3), nn.LayerNorm(3, eps=0.1)
    return nn.Sequential(nn.Linear(2, 3), first, nn.ReLU(), nn.Linear(3, 3), second, nn.ReLU(), nn.Linear(3, 2))


def two_rates(seed):
    drops = [models.Dropout(rate, seed, i) for i, rate in enumerate((0.1, 0.2))]
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), drops[0], nn.Linear(3, 3), nn.Tanh(), drops[1], nn.Linear(3, 2))


def unusual(seed):
    """Every setting of a norm another than the default."""
    conv = nn.Conv1d(1, 6, 3, padding=1), nn.BatchNorm1d(6, eps=0.3, momentum=0.4), nn.ReLU()
    middle = nn.Conv1d(6, 6, 4, stride=3), nn.GroupNorm(2, 6, eps=0.2), layers.MeanOverPositions()
    return nn.Sequential(*conv, *middle, nn.LayerNorm(6, eps=0.1), nn.Linear(6, 10))


def bare(seed):
    """Blocks without norms, whose ReLU must not reach what goes around them."""
    block = [layers.Residual(nn.Conv1d, 4, 4, 1, lambda width: [nn.Identity()], 1.0) for _ in range(2)]
    return nn.Sequential(nn.Conv1d(1, 4, 3), *block, layers.MeanOverPositions(), nn.Linear(4, 10))


def odd_chain(seed):
    norm = nn.LayerNorm(20)
    return nn.Sequential(
        nn.Linear(2, 20), nn.GELU(), norm, nn.Linear(20, 20), nn.Linear(20, 5), nn.Tanh(), nn.Linear(5, 2)
    )


NETWORKS = {  # data, model
    "cnn": (WAVES, models.cnn((1, 40), 10)),
    "cnn, odd": (WAVES, models.cnn((1, 40), 10, channels=(5, 7, 17), kernel=5, dropout=0.3)),
    "cnn, batch norm": (WAVES, models.cnn((1, 40), 10, norm="batch")),
    "cnn, group norm": (WAVES, models.cnn((1, 40), 10, channels=(6, 36), norm="group", groups=3)),
    "cnn, layer norm": (images(3, 5, 7), models.cnn((3, 5, 7), 3, norm="layer")),
    "residual, ghost": (WAVES, models.resnet((1, 40), 10, width=5, norm="ghost", ghost=9)),  # 49 = 9 + 8 + ...
    "residual, group norm": (WAVES, models.resnet((1, 40), 10, width=6, norm="group", groups=3)),
    "residual, bare": (WAVES, bare),
    "unusual": (WAVES, unusual),
    "mlp, group norm": (SPIRALS, models.mlp((2, 32, 40, 2), norm="group")),
    "cnn, images": (images(3, 5, 7), models.cnn((3, 5, 7), 3, channels=(4, 20))),
    "residual": (WAVES, models.resnet((1, 40), 10, width=8)),
    "residual, batch norm, images": (images(1, 9, 6), models.resnet((1, 9, 6), 3, width=17, norm="batch")),
    "mlp, batch norm": (SPIRALS, models.mlp((2, 17, 5, 2), norm="batch", dropout=0.1)),
    "transformer": (TEXT, models.transformer(WORDS, 12)),
    "transformer, odd": (LONG, models.transformer(LONG.classes, 50, width=21, heads=3, norm="none", dropout=0.2)),
    "sixteen bits at first": (WAVES, lambda seed: models.cnn((1, 40), 10)(seed).bfloat16()),
    "two eps": (SPIRALS, two_eps),
    "two rates": (SPIRALS, two_rates),
    "odd chain": (SPIRALS, odd_chain),
    "17 layers": (SPIRALS, models.mlp((2, *[5] * 16, 2), activation="tanh")),
}  # fmt: skip


def of(name, **changes):
    dataset, model = NETWORKS[name]
    given = dict(data=dataset, model=model, batch_size=21, steps=12, lr=0.01, evaluate=("train", "val"))
    return a_run("mlp", **given | dict(evaluate_every=150) | changes)


# ---------------------------------------------------------------- lanes equal fit


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_equals_fit(name):
    """Batches of several pieces, the last of an epoch smaller; the average of the weights, and what l1 adds."""
    run = of(name, batch_size=49, l1=1e-4, ema=0.9)
    assert_equals_fit(a_lane(run), run, 3e-5)


@pytest.mark.parametrize("name", ["cnn, batch norm", "transformer"])
@pytest.mark.parametrize("optimizer", RULES, ids=str)
def test_every_rule_ends_where_fit_does(optimizer, name):
    """Lanes that diverge, that meet their target, and that do neither."""
    base = of(name, optimizer=optimizer, lr=0.002)
    first, last = (fit(base).table.train_loss.iloc[k] for k in (0, -1))
    for changes in ({}, {"target": ("train_loss", (first + last) / 2)}, {"lr": 1e4, "loss_bound": 50.0}):
        run = replace(base, **changes)
        lane = a_lane(run)
        assert_equals_fit(lane, run, 1e-4)
        assert lane.reached == ("target" in changes)


@pytest.mark.parametrize("name", ["cnn, group norm", "residual, ghost", "mlp, batch norm", "transformer"])
@pytest.mark.parametrize("optimizer", [optim.momentum(), optim.adam()], ids=str)
def test_long_runs_err_as_float32_does(name, optimizer):
    errors = []
    for seed in range(7):
        run = of(name, optimizer=optimizer, steps=60, evaluate_every=10**6, seed=seed, lr=0.003)
        truth = fit(replace(run, precision="float64")).table[["train_loss", "val_loss"]].iloc[-1]
        found = a_lane(run).rows[-1], fit(run).table.iloc[-1]
        errors.append([[abs(row[part] / truth[part] - 1) for part in ("train_loss", "val_loss")] for row in found])
    of_kernel, of_fit = np.median(errors, axis=0)
    assert (of_kernel < 4 * of_fit + 1e-6).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sides=st.tuples(st.integers(1, 9), st.integers(1, 19)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 33)),
    kernels=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padded=st.tuples(st.integers(0, 3), st.integers(0, 4)),
    norm=st.booleans(),
    batch_size=st.integers(2, 30),  # which a schedule may double
    seed=st.integers(0, 2**40),
    order=st.sampled_from(["reshuffle", "replacement", "fixed"]),
    lr_schedule=st.sampled_from(SCHEDULES[:-1]),
    batch_schedule=st.sampled_from([schedules.constant(), GROWING]),
)
def test_convolutions_of_any_shape_equal_fit(
    sides, channels, kernels, strides, padded, norm, batch_size, seed, order, lr_schedule, batch_schedule
):
    """Kernels and strides that differ down and across, and padding on either side up to less than the kernel."""
    kernels = tuple(min(k, side + 2 * min(p, k - 1)) for k, side, p in zip(kernels, sides, padded, strict=True))
    padded = tuple(min(p, k - 1) for p, k in zip(padded, kernels, strict=True))

    def model(seed):
        norms = [nn.BatchNorm2d(channels[1])] if norm else []
        second = nn.Conv2d(channels[1], channels[2], 3, stride=2, padding=1)
        first = nn.Conv2d(channels[0], channels[1], kernels, strides, padded)
        return nn.Sequential(first, *norms, nn.Tanh(), second, layers.MeanOverPositions(), nn.Linear(channels[2], 3))

    run = a_run(
        "mlp", data=images(channels[0], *sides), model=model, batch_size=batch_size, steps=5, lr=0.01, seed=seed,
        order=order, lr_schedule=lr_schedule, batch_schedule=batch_schedule, evaluate=("train",), evaluate_every=60,
        drop_last=norm,
    )  # fmt: skip
    assert_equals_fit(a_lane(run), run, 1e-4 if norm else 3e-5)


def test_regression_by_a_tape_equals_fit():
    rng = torch.Generator().manual_seed(0)
    x, w = torch.randn(100, 3, generator=rng), torch.randn(3, 4, generator=rng)
    part = x, (x @ w).sin()
    four = data.Dataset("four", True, part, part, part, classes=None)
    run = a_run("linear", data=four, model=models.mlp((3, 9, 4), norm="batch"), batch_size=30)
    assert_equals_fit(a_lane(run), run, 3e-5)


def other_order(t):
    """The same numbers, the last dimension's far apart in memory."""
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


@pytest.mark.parametrize("name", ["cnn, images", "transformer", "mlp, batch norm", "17 layers"])
def test_data_in_another_order_of_memory_is_the_same_data(name):
    run = of(name)
    parts = {part: tuple(map(other_order, getattr(run.data, part))) for part in ("train", "val", "test")}
    assert not parts["train"][0].is_contiguous()
    turned = replace(run, data=data.Dataset("turned", True, **parts, classes=run.data.classes))
    np.testing.assert_equal(rows_of(a_lane(turned)), rows_of(a_lane(run)))


def test_a_chain_reads_data_in_another_order_of_memory():
    run = a_run("mlp")
    parts = {part: tuple(map(other_order, getattr(run.data, part))) for part in ("train", "val", "test")}
    turned = replace(run, data=data.Dataset("turned", True, **parts, classes=2))
    np.testing.assert_equal(rows_of(a_lane(turned)), rows_of(a_lane(run)))


@pytest.mark.parametrize("threads", [1, 2])
def test_scratch_is_that_of_a_thread_not_of_a_lane(threads, monkeypatch):
    """And a lane that diverged leaves nothing behind in it."""
    made, scratch = [], native._scratch

    def counted(network, of_thread):
        made.append(scratch(network, of_thread))
        return made[-1]

    monkeypatch.setattr(native, "_scratch", counted)
    base = of("cnn, batch norm", lr=0.01, loss_bound=float(np.finfo(np.float64).max))
    runs = [replace(base, seed=seed, lr=lr) for lr in (1e30, 0.01) for seed in (0, 1, 2)]
    lanes = native.train(plan(base), runs, threads)
    assert len(made) == 6 and len(set(made)) <= threads
    for run, lane in zip(runs[3:], lanes[3:], strict=True):
        np.testing.assert_equal(rows_of(lane), rows_of(a_lane(run)))


def test_gelu_is_as_exact_as_torch():
    """A network that computes GELU of its input, whose mean square shows the error."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.linspace(-1e-3, 1e-3, 101)])[:, None]
    part = x, torch.zeros(len(x), 1)

    def model(seed):
        network = nn.Sequential(nn.Linear(1, 1), nn.GELU(), nn.Linear(1, 1))
        for p in network.parameters():
            p.data = torch.ones_like(p) if p.ndim == 2 else torch.zeros_like(p)
        return network

    for k in range(0, len(x), 97):  # one at a time: large ones would hide the small
        one = tuple(t[k : k + 1] for t in part)
        run = a_run(
            "linear", data=data.Dataset("x", True, one, one, one, classes=None), model=model, steps=1, batch_size=1
        )
        found = a_lane(replace(run, evaluate=("train",))).rows[0]["train_loss"]
        assert found**0.5 == pytest.approx(abs(F.gelu(one[0].double()).item()), rel=1e-6, abs=5e-7)


# ---------------------------------------------------------------- whatever the processor, the threads and the calls


@pytest.mark.parametrize("flags", COMPILED_FOR, ids=str)
def test_the_tape_for_another_processor_equals_fit(monkeypatch, flags):
    take_the_kernel_for(monkeypatch, flags)
    for name, optimizer in itertools.product(NETWORKS, [optim.momentum(), optim.lamb(eps=0.01)]):
        run = of(name, optimizer=optimizer, lr=0.003)
        assert_equals_fit(a_lane(run), run, 5e-5)


@pytest.mark.parametrize("name", ["residual, batch norm, images", "transformer"])
def test_threads_change_nothing(name):
    runs = [of(name, lr=lr, seed=seed) for lr in (0.01, 0.1) for seed in (0, 1, 2)]
    want = [rows_of(a_lane(run)) for run in runs]
    got = [rows_of(lane) for lane in native.train(plan(runs[0]), runs, 3)]
    np.testing.assert_equal(got, want)


def test_a_network_goes_on_from_where_it_stands():
    run = of("mlp, batch norm", optimizer=optim.adam(), order="fixed", steps=None, epochs=1, ema=0.9)
    standing = native.networks(plan(run), [run])
    calls = [native.advance(plan(run), [run], standing, 1)[0] for _ in range(3)]
    whole = a_lane(replace(run, epochs=3, evaluate_every=60))
    losses = [row["val_loss"] for row in (calls[0].rows[0], *(lane.rows[-1] for lane in calls))]
    assert losses == [row["val_loss"] for row in whole.rows]  # the same code on the same numbers
    assert len(set(losses)) == 4


def test_a_sweep_takes_the_kernel_for_a_cnn():
    run = of("cnn", steps=3)
    assert choice.choose(run, "auto", 4, 3, 2, 2**30).engine == "native"
    table = sweep(run, lr=[0.01, 0.1], seed=[0, 1])
    lane = table[(table.lr == 0.1) & (table.seed == 1)]
    assert lane.val_loss.iloc[-1] == pytest.approx(fit(replace(run, lr=0.1, seed=1)).table.val_loss.iloc[-1], rel=1e-5)


# ---------------------------------------------------------------- what the kernel leaves to others


def shared(seed):
    layer = nn.Conv1d(3, 3, 3, padding=1)
    return nn.Sequential(nn.Conv1d(1, 3, 3), layer, nn.ReLU(), layer, layers.MeanOverPositions(), nn.Linear(3, 10))


def altered(how):
    def factory(seed):
        model = models.cnn((1, 40), 10, norm="batch")(seed)
        how(model)
        return model

    return factory


def its_own_forward(model):
    forward = model[0].forward
    model[0].forward = lambda x: 2 * forward(x)


def stays_as_it_is(model):
    model[1].eval()
    model[1].train = lambda mode=True: model[1]


def one_pair_of_statistics(seed):
    norms = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    norms[1].running_mean = norms[0].running_mean
    return convolved(norms[0], nn.Tanh(), norms[1])(seed)


def twice_and_two_left(seed):
    """As many parameters as are used, counted with repetition."""
    unused = nn.Identity()
    unused.a, unused.b = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    layer = nn.Conv1d(4, 4, 1)
    return convolved(layer, nn.Tanh(), layer, unused)(seed)


def convolved(*middle, **changes):
    given = dict(in_channels=1, out_channels=4, kernel_size=3) | changes
    after = nn.Sequential(*middle, layers.MeanOverPositions(), nn.Linear(4, 10))
    return lambda seed: nn.Sequential(nn.Conv1d(**given), *after)


UNSUITABLE = {
    "a group norm without weights": dict(model=convolved(nn.GroupNorm(2, 4, affine=False))),
    "shared weights": dict(model=shared),
    "a hook": dict(model=altered(lambda m: m[0].register_forward_hook(lambda module, inputs, outputs: 2 * outputs))),
    "a hook of the way back": dict(model=altered(lambda m: m[2].register_full_backward_hook(lambda m, x, y: x))),
    "another on the way back": dict(model=altered(lambda m: m[2].register_full_backward_pre_hook(lambda m, y: y))),
    "a forward of its own": dict(model=altered(its_own_forward)),
    "a norm that stays in evaluation": dict(model=altered(stays_as_it_is)),
    "one pair of statistics": dict(model=one_pair_of_statistics),
    "a layer twice, two parameters left": dict(model=twice_and_two_left),
    "a parametrization": dict(model=altered(lambda m: nn.utils.parametrizations.weight_norm(m[0]))),
    "no eps to speak of": dict(model=convolved(nn.BatchNorm1d(4, eps=1e-40))),
    "nor in the rule": dict(optimizer=optim.adagrad(eps=1e-40)),
    "dropout in pieces": dict(model=models.cnn((1, 40), 10, dropout=0.1), batch_size=20, micro_batch=10),
    "no bias": dict(model=convolved(bias=False)),
    "dilation": dict(model=convolved(dilation=2)),
    "another padding": dict(model=convolved(padding=1, padding_mode="circular")),
    "padding by name": dict(model=convolved(padding="same")),
    "padded by more than it sees": dict(model=convolved(padding=3)),
    "batch norm without weights": dict(model=convolved(nn.BatchNorm1d(4, affine=False))),
    "batch norm without statistics": dict(model=convolved(nn.BatchNorm1d(4, track_running_stats=False))),
    "a cumulative average": dict(model=convolved(nn.BatchNorm1d(4, momentum=None))),
    "a norm across positions": dict(model=convolved(nn.LayerNorm(38))),
    "a linear layer across positions": dict(model=convolved(nn.Linear(38, 38))),
    "another GELU": dict(model=convolved(nn.GELU("tanh"))),
    "pooling": dict(model=convolved(nn.MaxPool1d(2))),
    "dropout of positions": dict(model=lambda seed: convolved(models.Dropout(0.1, seed, 0))(seed)),
    "torch's dropout": dict(model=convolved(nn.Dropout())),
    "batch norm in pieces": dict(model=models.cnn((1, 40), 10, norm="batch"), batch_size=20, micro_batch=10),
    "muon": dict(model=models.cnn((1, 40), 10), optimizer=optim.muon()),
    "float64": dict(model=models.cnn((1, 40), 10), precision="float64"),
}


def of_text(**changes):
    """The parts of a transformer, one of them another."""
    block = layers.Block(0, 0, 8, 2, "layer", 0.0)
    parts = {"first": layers.Embedding(WORDS, 12, 8), "block": block, "then": nn.Identity()} | changes
    return lambda seed: nn.Sequential(*parts.values(), nn.Linear(8, WORDS))


class SeesAll(layers.Attention):
    def forward(self, x):
        return x.mean(1, keepdim=True) + 0 * super().forward(x)


def attending_to_all():
    block = layers.Block(0, 0, 8, 2, "layer", 0.0)
    block.attention = SeesAll(8, 2)
    return block


def embedding_with(**rules):
    first = layers.Embedding(WORDS, 12, 8)
    first.token = nn.Embedding(WORDS, 8, **rules)
    return first


OF_TEXT = {
    "attention to all": dict(block=attending_to_all()),
    "a padding token": dict(first=embedding_with(padding_idx=0)),
    "a bound on the norm": dict(first=embedding_with(max_norm=1.0)),
    "gradients by frequency": dict(first=embedding_with(scale_grad_by_freq=True)),
    "a norm over places and channels": dict(then=nn.LayerNorm((12, 8))),
    "a group norm, whose channels are the places": dict(then=nn.GroupNorm(1, 12)),
    "a batch norm, whose channels are the places": dict(then=nn.BatchNorm1d(12)),
    "a convolution, whose channels are the places": dict(then=nn.Conv1d(12, 12, 1)),
}


@pytest.mark.parametrize("changes", OF_TEXT.values(), ids=OF_TEXT)
def test_what_a_tape_cannot_say_of_a_text_does_not_suit(changes):
    assert native.suits(of("transformer", model=of_text()))
    run = of("transformer", model=of_text(**changes))
    fit(replace(run, steps=1))
    assert not native.suits(run)


def test_a_mean_over_channels_does_not_suit():
    x = torch.arange(60).reshape(10, 6) % 7
    part = x, x[:, :1].float()
    text = data.Dataset("text", True, part, part, part, classes=None)
    mean = nn.Sequential(layers.Embedding(7, 6, 6), layers.MeanOverPositions(), nn.Linear(6, 1))
    assert not native.suits(a_run("linear", data=text, model=lambda seed: mean))


def test_a_token_outside_of_the_vocabulary_is_an_error_and_not_read():
    x, y = (t.clone() for t in TEXT.train)
    x[40, 3] = WORDS
    run = of(
        "transformer", data=data.Dataset("text", True, (x, y), TEXT.val, TEXT.test, classes=WORDS), epochs=2, steps=None
    )
    assert not native.suits(run)
    with pytest.raises(IndexError):
        sweep(run, seed=[0])


def test_a_hook_for_all_modules_is_seen():
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, outputs: None)
    try:
        assert not native.suits(of("cnn")) and not native.suits(a_run("mlp"))
    finally:
        handle.remove()
    assert native.suits(of("cnn")) and native.suits(a_run("mlp"))


def test_what_is_asked_for_and_cannot_be_says_why():
    with pytest.raises(ValueError, match="the C kernel does not know a weight shared or not used"):
        sweep(of("cnn", model=shared), engine="native")


def test_structures_are_as_large_as_the_kernel_has_them():
    """A field that only one side knows would shift all that follow."""
    ours = [getattr(structures, name) for name in ("Settings", "Data", "Chain", "Op", "Shape", "Matrix", "Tape")]
    theirs = (ctypes.c_int * len(ours)).in_dll(kernel.library(), "sizes")
    assert list(theirs) == [ctypes.sizeof(structure) for structure in ours]


@pytest.mark.parametrize("changes", UNSUITABLE.values(), ids=UNSUITABLE)
def test_what_a_tape_cannot_say_does_not_suit(changes):
    assert native.suits(of("cnn"))
    run = of("cnn", **changes)
    fit(replace(run, steps=1))  # it can be trained
    assert not native.suits(run)


def test_a_tape_says_what_it_is():
    reading = tape.Reading(models.resnet((1, 8, 8), 10, norm="batch")(0), (1, 8, 8), tokens=False, vector=16)
    kinds = [op["kind"] for op in reading.ops]
    assert kinds.count(tape.CONVOLVE) == 7 and kinds.count(tape.BATCH_NORM) == 5 and kinds.count(tape.ADD) == 2
    assert len(reading.running) == 5 and reading.shapes[-1] == (10, 1, 1)
