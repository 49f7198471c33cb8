"""The C kernel: every lane equals a lone ``fit``, whatever the rule, the network and the processor.

A rule that divides by sqrt(v) + eps makes a step of full length from a gradient of nearly zero, and so a large
difference from rounding, in any program. Two kinds of tests hold such rules all the same. With eps = 0.01 no rounding
is amplified, and lanes must equal ``fit``. With the usual eps, a lane must be as near to ``fit`` in float64 as ``fit``
in float32 is, over many seeds. For the same reason l1 is small: its sign(w) jumps where weights gather, at 0.
And so is the rate where everything is drawn at random: a lane on the way to divergence amplifies rounding too.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sweep import GROWING, SCHEDULES, a_run, assert_equals_fit, one_thread  # noqa: F401
from torch import nn

from batchlab import Run, data, fit, models, optim, schedules
from batchlab.engine import kernel, native
from batchlab.engine.plan import plan

SIGNALS = data.mnist1d(400, val=130, test=1)
LINE = data.gaussian_regression((1.0, 0.3, 0.1), 0.1, examples=400, val=130, test=1)
RULES = [
    optim.sgd(weight_decay=0.1), optim.momentum(), optim.momentum(0.5, weight_decay=0.1), optim.nesterov(0.8),
    optim.nesterov(weight_decay=0.01), optim.adagrad(eps=0.01, weight_decay=0.1), optim.rmsprop(0.9, eps=0.01),
    optim.rmsprop(eps=0.01, weight_decay=0.1), optim.adam(eps=0.01), optim.adam((0.5, 0.9), eps=0.01, weight_decay=0.1),
    optim.adam((0.0, 0.0), eps=0.01), optim.adamw(eps=0.01, weight_decay=0.5), optim.lars(trust=0.1, weight_decay=0.1),
    optim.lamb(eps=0.01, weight_decay=0.1),
]  # fmt: skip
COMPILED_FOR = [(), *([("-mavx2", "-mfma")] if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else [])]


def a_lane(run):
    assert native.suits(run)
    return native.train(plan(run), [run], 1)[0]


def rows_of(lane):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in lane.rows]


# ---------------------------------------------------------------- lanes equal fit


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    widths=st.lists(st.integers(1, 70) | st.sampled_from([16, 64]), max_size=3),
    regression=st.booleans(),
    between=st.tuples(st.sampled_from(["none", "layer"]), st.sampled_from(["relu", "tanh"])),
    optimizer=st.sampled_from(RULES),
    l1=st.sampled_from([0.0, 5e-4]),
    ema=st.sampled_from([None, 0.9]),
    lr_schedule=st.sampled_from(SCHEDULES),
    batch_schedule=st.sampled_from([schedules.constant(), GROWING]),
    order=st.sampled_from(["reshuffle", "replacement", "fixed"]),
    batch_size=st.integers(1, 200),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**40),
    dropout=st.sampled_from([0.0, 0.3]),
)
def test_the_kernel_equals_fit(
    widths, regression, between, optimizer, l1, ema, lr_schedule, batch_schedule, order, batch_size, drop_last, seed,
    dropout,
):  # fmt: skip
    norm, activation = between
    dropout = dropout if activation == "relu" else 0.0
    lr, steps = 0.005, 50
    if norm == "layer":  # of two numbers it is nearly their order: +1 and -1, and a jump where they cross
        widths = [max(8, width) for width in widths]
        lr, steps = 0.002, 15  # differences grow little: narrow normalized layers are the most unstable of networks
        lr_schedule = schedules.follow(0.5, base=200) if lr_schedule == SCHEDULES[-1] else lr_schedule
    dataset, inputs, outputs, loss = (LINE, 3, 1, "mse") if regression else (SIGNALS, 40, 10, "cross_entropy")
    run = Run(
        data=dataset, loss=loss, optimizer=optimizer, lr=lr,
        model=models.mlp((inputs, *widths, outputs), activation=activation, norm=norm, dropout=dropout),
        batch_size=batch_size, l1=l1, ema=ema, seed=seed,
        lr_schedule=lr_schedule, batch_schedule=batch_schedule, order=order, drop_last=drop_last, steps=steps,
        device="cpu", evaluate=("train", "val"), evaluate_every=1000,
    )  # fmt: skip
    assert_equals_fit(a_lane(run), run, 3e-5)


@pytest.mark.parametrize(("activation", "norm"), [("relu", "none"), ("tanh", "none"), ("relu", "layer")])
@pytest.mark.parametrize("optimizer", RULES, ids=str)
def test_every_rule_ends_where_fit_does(optimizer, activation, norm):
    """Lanes that diverge, that meet their target, and that do neither."""
    model = models.mlp((40, 33, 17, 10), activation=activation, norm=norm)
    lr, steps = (0.02, 30) if norm == "none" else (0.005, 20)  # normalized layers let rounding grow
    base = a_run(
        "cnn", data=SIGNALS, model=model, optimizer=optimizer, batch_size=70, steps=steps, lr=lr, evaluate_every=210
    )
    first, last = (fit(base).table.train_loss.iloc[k] for k in (0, -1))
    for changes in ({}, {"target": ("train_loss", (first + last) / 2)}, {"lr": 1e4, "loss_bound": 50.0}):
        run = replace(base, **changes)
        lane = a_lane(run)
        assert_equals_fit(lane, run, 1e-4)
        assert lane.reached == ("target" in changes) and lane.diverged == ("loss_bound" in changes)


@pytest.mark.parametrize(
    "optimizer", [optim.adagrad(), optim.rmsprop(), optim.adam(), optim.adamw(), optim.lamb()], ids=str
)
def test_with_the_usual_eps_the_kernel_errs_as_float32_does(optimizer):
    errors = []
    for activation, seed in itertools.product(["relu", "tanh"], range(5)):
        run = a_run(
            "cnn", data=SIGNALS, model=models.mlp((40, 20, 10), activation=activation), optimizer=optimizer, lr=0.003,
            batch_size=20, steps=50, evaluate=("train",), evaluate_every=2000, seed=seed,
        )  # fmt: skip
        truth = fit(replace(run, precision="float64")).table.train_loss.iloc[-1]
        found = a_lane(run).rows[-1]["train_loss"], fit(run).table.train_loss.iloc[-1]
        errors.append(np.abs(np.array(found) / truth - 1))
    of_kernel, of_fit = np.median(errors, axis=0)
    assert of_kernel < 4 * of_fit + 1e-7


def test_divergence_shows_for_nan_too():
    run = a_run("linear", optimizer=optim.sgd(), lr=1e30, loss_bound=float(np.finfo(np.float64).max))
    lane = a_lane(run)
    assert lane.diverged and not np.isfinite(lane.rows[-1]["batch_loss"])
    assert fit(run).diverged


# ---------------------------------------------------------------- whatever the processor, the threads and the calls


def take_the_kernel_for(monkeypatch, flags):
    """A vector has 4 lanes on any x86-64 or ARM, 8 with AVX2; the layout of weights depends on that."""
    monkeypatch.setattr(kernel, "PROCESSORS", (list(flags),))
    other = kernel.library.__wrapped__()
    assert other.vector_length() == (8 if flags else 4)
    monkeypatch.setattr(native, "library", lambda: other)


@pytest.mark.parametrize("flags", COMPILED_FOR, ids=str)
def test_the_kernel_for_another_processor_equals_fit(monkeypatch, flags):
    take_the_kernel_for(monkeypatch, flags)
    for sizes, batch_size, rule in itertools.product(
        [(40, 10), (40, 33, 16, 10)], [1, 3, 37, 150], [optim.momentum(), optim.adam(eps=0.01), optim.lamb(eps=0.01)]
    ):
        activation = "tanh" if batch_size % 2 else "relu"
        model = models.mlp(sizes, activation=activation, norm="layer" if batch_size > 9 else "none")
        run = a_run("cnn", data=SIGNALS, model=model, batch_size=batch_size, optimizer=rule, lr=0.003, l1=5e-4, ema=0.9)
        assert_equals_fit(a_lane(run), run, 3e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads):
    runs = [replace(a_run(), lr=lr, seed=seed) for lr in (0.01, 0.1) for seed in (0, 1, 2)]
    want = [rows_of(a_lane(run)) for run in runs]
    got = [rows_of(lane) for lane in native.train(plan(runs[0]), runs, threads)]
    np.testing.assert_equal(got, want)


def test_a_network_goes_on_from_where_it_stands():
    run = a_run(optimizer=optim.adam(), order="fixed", epochs=1, evaluate_every=60, ema=0.9)
    standing = native.networks(plan(run), [run])
    calls = [native.advance(plan(run), [run], standing, 1)[0] for _ in range(3)]
    whole = a_lane(replace(run, epochs=3))
    losses = [row["val_loss"] for row in (calls[0].rows[0], *(lane.rows[-1] for lane in calls))]
    assert losses == [row["val_loss"] for row in whole.rows]  # the same code on the same numbers
    assert len(set(losses)) == 4


# ---------------------------------------------------------------- what the kernel leaves to others


def tied(seed):
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


def hooked(seed):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    return model


UNSUITABLE = {
    "batch norm in pieces": dict(model=models.mlp((2, 8, 2), norm="batch"), batch_size=20, micro_batch=10),
    "no eps": dict(model=lambda seed: nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8, 0), nn.ReLU(), nn.Linear(8, 2))),
    "dropout in pieces": dict(model=models.mlp((2, 8, 2), dropout=0.1), batch_size=20, micro_batch=10),
    "torch's dropout": dict(model=lambda s: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Dropout(), nn.Linear(3, 2))),
    "no bias": dict(model=models.linear(2, 2, bias=False)),
    "shared weights": dict(model=tied),
    "a hook": dict(model=hooked),
    "float64": dict(precision="float64"),
    "bfloat16": dict(precision="bfloat16"),
    "a loss of one's own": dict(loss=lambda outputs, y: outputs.square().mean()),
}


@pytest.mark.parametrize("changes", UNSUITABLE.values(), ids=UNSUITABLE)
def test_what_the_kernel_does_not_compute_does_not_suit(changes):
    assert native.suits(a_run())
    assert not native.suits(a_run(**changes))


def test_a_layer_norm_of_torch_is_one_too():
    def model(seed):
        return nn.Sequential(nn.Linear(2, 20), nn.LayerNorm(20, eps=0.1), nn.Tanh(), nn.Linear(20, 2))

    run = a_run(model=model, optimizer=optim.lars(trust=0.1, weight_decay=0.1))
    assert_equals_fit(a_lane(run), run, 3e-5)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.9])
def test_dropout_drops_what_fit_drops(rate):
    """Batches of more than a chunk, and a smaller last one; the same lane in two calls."""
    model = models.mlp((40, 33, 17, 10), dropout=rate) if rate else lambda seed: without_rate(seed)
    run = a_run("cnn", data=SIGNALS, model=model, optimizer=optim.momentum(), batch_size=150, epochs=4, lr=0.02)
    assert_equals_fit(a_lane(run), run, 3e-5)


def without_rate(seed):
    return nn.Sequential(nn.Linear(40, 9), nn.ReLU(), models.Dropout(0.0, seed, 0), nn.Linear(9, 10))


def test_the_deepest_network_that_suits_equals_fit():
    run = a_run(model=models.mlp((2, *[5] * 15, 2), activation="tanh"))
    assert_equals_fit(a_lane(run), run, 3e-5)
