"""Sweeps: every lane equals a lone ``fit``, whatever trains it and whoever shares its stack."""

import tempfile
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchlab import Run, data, fit, models, optim, outcomes, schedules
from batchlab.engine import choice, stacked
from batchlab.engine.plan import Lane, _alike, _one_by_one, plan
from batchlab.engine.sweep import sweep
from batchlab.training import step

SPIRALS = data.two_spirals(60, val=20, test=20)
WAVES = data.mnist1d(60, val=20, test=20, signals=True)
TEXT = data.documentation_text(8, tokens=480, val=160, test=160)
REGRESSION = data.gaussian_regression((1.0, 0.3), 0.1, examples=60, val=20, test=20)
NETWORKS = {  # data, model, loss
    "mlp": (SPIRALS, models.mlp((2, 17, 5, 2)), "cross_entropy"),
    "normed": (SPIRALS, models.mlp((2, 8, 2), norm="batch", dropout=0.2), "cross_entropy"),
    "linear": (REGRESSION, models.linear(2, 1), "mse"),
    "cnn": (WAVES, models.cnn((1, 40), 10, channels=(4, 4), norm="group"), "cross_entropy"),
    "residual": (WAVES, models.resnet((1, 40), 10, width=4, norm="ghost", ghost=8), "cross_entropy"),
    "transformer": (TEXT, models.transformer(TEXT.classes, 8, width=8, depth=1, dropout=0.1), "cross_entropy"),
}
OPTIMIZERS = [
    optim.sgd(), optim.momentum(weight_decay=0.01), optim.nesterov(), optim.adagrad(), optim.rmsprop(), optim.adam(),
    optim.adamw(), optim.lars(), optim.lamb(), optim.muon(),
]  # fmt: skip
SCHEDULES = [
    schedules.constant(), schedules.step(at=(100, 300), factor=0.3), schedules.cosine(500), schedules.warmup(200),
    schedules.inverse_sqrt(100), schedules.inverse_time(100), schedules.follow(0.5, base=10),
]  # fmt: skip
GROWING = schedules.stages(factors=(1, 2), at=(150,))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # these networks are too small to share among threads
    yield
    torch.set_num_threads(before)


def a_run(network="mlp", **changes):
    dataset, model, loss = NETWORKS[network]
    given = dict(data=dataset, model=model, loss=loss, optimizer=optim.momentum(), lr=0.1, batch_size=10, device="cpu")
    given |= dict(evaluate_every=170) | changes
    return Run(**given if {"epochs", "examples"} & set(given) else given | {"steps": given.get("steps", 50)})


def assert_close(got, want, run, rtol):
    """What was measured is equal up to rounding.

    In single precision an example whose two best scores nearly tie falls either way: an accuracy may differ by one
    example of its part, and the losses beside it say that it was no more than that.
    """
    for name in want:
        one = 0.0
        if name.endswith("_accuracy") and run.precision != "float64":
            one = 1.001 / getattr(run.data, name.removesuffix("_accuracy"))[1].numel()
        np.testing.assert_allclose(got[name], want[name], rtol=rtol, atol=rtol + one, err_msg=name)


def assert_equals_fit(lane, run, rtol):
    """A lane's rows are those of ``fit``: whole numbers exactly, losses up to rounding, accuracies to one example,
    since one whose two largest outputs tie within rounding may be called either way."""
    history = fit(run)
    want = history.table.rename(columns={"lr": "step_lr", "batch_size": "step_batch_size"})
    got = pandas.DataFrame(lane.rows)
    assert (lane.diverged, lane.reached) == (history.diverged, history.reached)
    assert list(got.columns) == list(want.columns)
    exact = ["step", "examples", "epoch", "step_lr", "step_batch_size"]
    pandas.testing.assert_frame_equal(got[exact], want[exact], check_exact=True)
    assert_close(got, want.drop(columns=[*exact, "seconds"]), run, rtol)


# ---------------------------------------------------------------- lanes equal fit


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    network=st.sampled_from(list(NETWORKS)),
    optimizer=st.sampled_from(OPTIMIZERS),
    lr_schedule=st.sampled_from(SCHEDULES),
    batch_schedule=st.sampled_from([schedules.constant(), GROWING]),
    order=st.sampled_from(["reshuffle", "replacement", "fixed"]),
    batch_size=st.integers(2, 30),
    micro=st.booleans(),
    extra=st.sampled_from([{}, {"l1": 1e-3}, {"ema": 0.9}, {"drop_last": True}]),
    grid=st.lists(
        st.tuples(st.sampled_from([0.003, 0.01, 0.1]), st.integers(0, 5)), min_size=1, max_size=4, unique=True
    ),
)
def test_a_lane_equals_fit_whoever_shares_its_stack(
    network, optimizer, lr_schedule, batch_schedule, order, batch_size, micro, extra, grid
):
    if network in ("normed", "residual"):  # BatchNorm refuses batches of one: 60 = 3 * 20
        order, batch_size, batch_schedule = "fixed", 20, schedules.constant()
    run = a_run(
        network, optimizer=optimizer, lr_schedule=lr_schedule, batch_schedule=batch_schedule, order=order,
        batch_size=batch_size, micro_batch=batch_size // 2 if micro and batch_size % 2 == 0 else None,
        precision="float64", **extra,
    )  # fmt: skip
    runs = [replace(run, lr=lr, seed=seed) for lr, seed in grid]
    results = stacked.train(plan(run), runs)
    assert_equals_fit(results[-1], runs[-1], 1e-8)
    alone = stacked.train(plan(run), runs[-1:])[0]
    pandas.testing.assert_frame_equal(
        pandas.DataFrame(alone.rows).drop(columns="seconds"), pandas.DataFrame(results[-1].rows).drop(columns="seconds")
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_every_optimizer_stacks(network, optimizer):
    run = a_run(network, optimizer=optimizer, precision="float64", lr=0.01)
    runs = [replace(run, lr=lr, seed=seed) for lr in (0.01, 0.1) for seed in (0, 1)]
    assert_equals_fit(stacked.train(plan(run), runs)[1], runs[1], 1e-8)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_stacks(network):
    run = a_run(network, batch_size=20, precision="float64", steps=20)
    runs = [replace(run, lr=lr, seed=seed) for lr, seed in ((0.01, 0), (0.1, 1))]
    for lane, alone in zip(stacked.train(plan(run), runs), runs, strict=True):
        assert_equals_fit(lane, alone, 1e-8)


@pytest.mark.parametrize("engine", ["native", "stacked", "loop"])
def test_divergence_and_targets_end_a_lane_as_in_fit(engine):
    run = a_run(steps=60, target=("val_loss", 0.6), loss_bound=50.0, evaluate_every=30, optimizer=optim.sgd())
    table = sweep(run, lr=[0.003, 1.0, 3000.0], seed=[0, 3], engine=engine)
    ended = set()
    for (lr, seed), rows in table.groupby(["lr", "seed"]):
        rows = rows.drop(columns=["batch_size", "lr", "seed"]).reset_index(drop=True)
        lane = Lane(rows.drop(columns=["diverged", "reached"]).to_dict("records"), rows.diverged[0], rows.reached[0])
        assert_equals_fit(lane, replace(run, lr=lr, seed=seed), 1e-4)
        ended.add((bool(lane.diverged), bool(lane.reached), len(rows) < 21))
    assert {(True, False, True), (False, True, True), (False, False, False)} <= ended


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler uses what PyTorch deprecates
def test_compiled_lanes_equal_stacked_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = a_run("linear", precision="float64", steps=5)
    got = sweep(run, lr=[0.01, 0.1], seed=[0, 1], engine="compiled").drop(columns="seconds")
    want = sweep(run, lr=[0.01, 0.1], seed=[0, 1], engine="stacked").drop(columns="seconds")
    pandas.testing.assert_frame_equal(got, want, rtol=1e-10)
    assert not list(tmp_path.glob("torchinductor*"))  # nothing is kept where others could plant what is unpickled


# ---------------------------------------------------------------- what trains, and how much at once


def test_the_engine_follows_the_run():
    def chosen(run):
        return choice.choose(run, "auto", 8, 50, 1, 2**30).engine

    assert {chosen(a_run(name, batch_size=20)) for name in NETWORKS} == {"native"}
    assert chosen(a_run("normed", batch_size=20, optimizer=optim.muon())) == "stacked"
    assert chosen(a_run("normed", batch_size=20, optimizer=optim.muon(), checkpoint_segments=2)) == "loop"


def test_stacks_are_cut_to_the_memory_given():
    run = a_run("cnn", precision="float64")  # in which no score ties so nearly that an accuracy would tell
    whole = sweep(run, lr=[0.1], seed=[0, 1, 2], engine="stacked")
    cut = sweep(run, lr=[0.1], seed=[0, 1, 2], engine="stacked", memory=1)
    pandas.testing.assert_frame_equal(cut.drop(columns="seconds"), whole.drop(columns="seconds"), rtol=1e-8)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    batch_size=st.integers(1, 60),
    order=st.sampled_from(["reshuffle", "fixed"]),
    drop_last=st.booleans(),
    length=st.tuples(st.sampled_from(["epochs", "steps", "examples"]), st.integers(1, 200)),
)
def test_a_plan_of_epochs_alike_is_that_of_steps_one_by_one(batch_size, order, drop_last, length):
    run = a_run(batch_size=batch_size, order=order, drop_last=drop_last, **dict([length]))
    run = replace(run, steps=run.steps if length[0] == "steps" else None)
    made, used = _alike(run)
    want, want_used = _one_by_one(run)
    assert (list(made), used) == (want, want_used)
    seen = np.cumsum([0, *want])
    due = [s for s in range(1, len(seen)) if step.due(run, seen[s - 1], seen[s])]
    assert plan(run).stops == (*due, *([len(want)] if len(want) not in due else []))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("batch_size", [[0], [-1], [1.5], [61], [True], ["8"], [], 8, "8", [8, 8], None.__class__])
def test_bad_batch_sizes_are_refused(batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        sweep(a_run(), batch_size=batch_size)


@pytest.mark.parametrize(
    "lr", [[0.0], [-0.1], [float("nan")], [float("inf")], [], 0.1, ["0.1"], [0.1, 0.1], lambda b: []]
)
def test_bad_learning_rates_are_refused(lr):
    with pytest.raises(ValueError, match="lr"):
        sweep(a_run(), lr=lr)


@pytest.mark.parametrize("seed", [[0, 0], [-1], [0.5], [], 3, [True], "12"])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        sweep(a_run(), seed=seed)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(engine="gpu"), "engine"),
        (dict(engine=None), "engine"),
        (dict(memory=0), "memory"),
        (dict(batch_size=[20, 59], run=a_run("normed", batch_size=20)), "batch_size"),  # 60 = 59 + 1
        (dict(engine="native", run=a_run("cnn", precision="float64")), "engine"),
        (dict(engine="stacked", run=a_run(checkpoint_segments=2)), "engine"),
        (dict(run="digits"), "run"),
    ],
)
def test_other_bad_arguments_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        sweep(change.pop("run", a_run()), seed=[0], **change)


# ---------------------------------------------------------------- reading the table


def made(values, metric="val_accuracy", **more):
    """A table from {(batch_size, lr, seed): value of the metric, or None where the lane diverged}."""
    rows = [
        {"batch_size": b, "lr": lr, "seed": s, "diverged": v is None, "step": 9, metric: v if v is not None else 0.99}
        for (b, lr, s), v in values.items()
    ]
    return pandas.DataFrame(rows).assign(**more)


def test_best_lr_is_by_the_mean_and_divergence_is_failure():
    table = made({
        (8, 0.1, 0): 0.5, (8, 0.1, 1): 0.5, (8, 0.2, 0): 0.7, (8, 0.2, 1): 0.6, (8, 0.4, 0): 0.99, (8, 0.4, 1): None,
        (8, 0.8, 0): None, (8, 0.8, 1): None,
    })  # fmt: skip
    best = outcomes.best_lr(table, "val_accuracy")
    assert best.lr.tolist() == [0.2] and best.val_accuracy.tolist() == [pytest.approx(0.65)]
    losses = made({(8, 0.1, 0): 1.0, (8, 0.2, 0): 0.5, (8, 0.4, 0): None}, "val_loss")
    assert outcomes.best_lr(losses).lr.tolist() == [0.2]


@pytest.mark.parametrize(("values", "edge"), [((3, 2, 1), 0.1), ((1, 2, 3), 0.4)])
def test_a_best_lr_at_the_edge_is_an_error(values, edge):
    table = made({(64, lr, 0): v for lr, v in zip((0.1, 0.2, 0.4), values, strict=True)})
    with pytest.raises(ValueError, match=f"{edge:g} for batch size 64.*widen"):
        outcomes.best_lr(table, "val_accuracy")
    flagged = outcomes.best_lr(table, "val_accuracy", edge="flag")
    assert flagged.at_edge.tolist() == [True] and flagged.lr.tolist() == [edge]


def test_the_test_part_is_not_for_choosing():
    with pytest.raises(ValueError, match="validation"):
        outcomes.best_lr(made({(8, 0.1, 0): 1.0}, "test_accuracy"), "test_accuracy")


def test_steps_to_a_target_come_from_the_first_row_that_meets_it():
    run = a_run(steps=60, evaluate_every=30, optimizer=optim.sgd(), loss_bound=50.0)
    table = sweep(run, lr=[0.003, 1.0, 3000.0], seed=[0, 3])
    got = outcomes.to_target(table, "val_loss", 0.6).set_index(["lr", "seed"])
    stopped = sweep(replace(run, target=("val_loss", 0.6)), lr=[0.003, 1.0, 3000.0], seed=[0, 3])
    for (lr, seed), end in outcomes.ends(stopped).groupby(["lr", "seed"]):
        found = got.loc[lr, seed]
        if end.reached.item():
            assert (found.step, found.examples) == (end.step.item(), end.examples.item())
        else:
            assert found.step == found.seconds == np.inf
    assert np.isfinite(got.step).any() and np.isinf(got.step).any()


def test_pairs_need_the_same_seeds_on_both_sides():
    table = made({(8, 0.1, 0): 0.5, (8, 0.1, 1): 0.6, (64, 0.3, 1): 0.4, (64, 0.3, 0): 0.1})
    assert outcomes.paired(table, "val_accuracy", 8, 64).difference.tolist() == pytest.approx([0.4, 0.2])
    with pytest.raises(ValueError, match="seeds"):
        outcomes.paired(table[:-1], "val_accuracy", 8, 64)
    with pytest.raises(ValueError, match="batch size 8"):
        outcomes.paired(pandas.concat([table, table[:1]]), "val_accuracy", 8, 64)
    with pytest.raises(ValueError, match="metric"):
        outcomes.paired(table, "accuracy", 8, 64)
