"""Stacked lanes: held while nobody asks, replayed on a GPU; and what is stacked at all."""

from dataclasses import replace

import pandas
import pytest
import torch
from test_sweep import GROWING, NETWORKS, a_run, assert_equals_fit
from torch import nn

from batchlab import data, fit, optim, schedules
from batchlab.engine import choice, graph, stacked
from batchlab.engine.plan import plan

RATES = (0.01, 0.3, 30.0, 1e4)  # the last two diverge, at different steps


@pytest.mark.parametrize("most", [2, 7, 1000])
@pytest.mark.parametrize("changes", [dict(), dict(optimizer=optim.adam(), ema=0.9), dict(batch_schedule=GROWING)])
def test_a_lane_that_diverged_is_held_until_somebody_asks(changes, most, monkeypatch):
    """A GPU is asked every 64 steps; here a CPU takes ``most`` steps unasked."""
    real = stacked._stretches
    monkeypatch.setattr(stacked, "_stretches", lambda stops, device, examples: real(stops, torch.device("meta"), 1))
    monkeypatch.setattr(stacked, "UNASKED", most)
    run = a_run(precision="float64", loss_bound=20.0, target=("val_accuracy", 0.95), **changes)
    runs = [replace(run, lr=lr, seed=seed) for lr in RATES for seed in (0, 1)]
    lanes = stacked.train(plan(run), runs)
    assert any(lane.diverged for lane in lanes) and not all(lane.diverged for lane in lanes)
    for lane, one in zip(lanes, runs, strict=True):
        assert_equals_fit(lane, one, 1e-8)


@pytest.mark.parametrize("network", list(NETWORKS))
def test_a_lane_without_a_stack_equals_fit(network):
    run = a_run(network, precision="float64", batch_size=20, micro_batch=10, seed=3)
    assert_equals_fit(stacked.train(plan(run), [run])[0], run, 1e-8)


def test_what_vmap_cannot_stack_is_found_before_it_is_tried_in_earnest():
    def dropped(seed):
        return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    assert choice.stackable(a_run()) and choice.stackable(a_run("normed", batch_size=20))
    assert not choice.stackable(a_run(precision="float16"))
    assert not choice.stackable(replace(a_run(), model=dropped))
    assert not choice.stackable(replace(a_run(), model=lambda seed: Branching(2, 2)))


def test_lanes_are_stacked_where_dispatching_is_what_costs():
    small = a_run("cnn", batch_size=10, precision="float64")  # which the kernel leaves to others
    large = replace(small, data=data.mnist1d(3000, val=20, test=20, signals=True), batch_size=2000)
    counted = choice.cost(small)
    assert 30 < counted.operations < 300 and counted.bytes > 10 * 4 * (40 + 20) * 4  # what the two layers put out
    assert choice.choose(small, "auto", 10, 50, 1, 2**30).engine == "stacked"
    assert choice.choose(large, "auto", 10, 50, 1, 2**30).engine == "loop"
    for memory, cores, together in [(2**30, 1, 10), (2**30, 4, 3), (3 * counted.bytes, 1, 3), (1, 1, 1)]:
        found = choice.choose(small, "auto", 10, 10**5, cores, memory)
        assert (found.engine, found.together) == ("stacked" if together > 1 else "loop", together)
    assert choice.choose(a_run("transformer", precision="float64"), "auto", 100, 10**6, 1, 2**30).engine == "compiled"
    assert choice.choose(small, "auto", 100, 10**6, 1, 2**30).engine == "stacked"  # convolutions gain nothing


def test_short_lone_lanes_share_a_unit_of_work():
    run, whole = a_run("cnn", batch_size=10), 2**30
    alone = [choice.choose(run, "loop", 64, steps, 2, whole) for steps in (1, 3000, 10**6)]
    assert [found.together for found in alone] == [8, min(8, int(2.0 / alone[1].seconds)), 1]
    assert choice.choose(run, "loop", 3, 1, 2, whole).together == 1  # else a core would have nothing to do


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("optimizer", [optim.momentum(), optim.adam(), optim.lamb(eps=0.01)], ids=lambda o: o.name)
def test_replayed_lanes_equal_fit(network, optimizer):
    """LAMB's own eps makes rounding grow: the bias before a batch norm has no gradient but rounding, which is divided
    by its own size, and weights that differ by 1e-15 at first give losses that differ by up to 4e-5, on a CPU too."""
    run = a_run(
        network, optimizer=optimizer, precision="float64", batch_size=20, loss_bound=20.0, steps=150,
        lr_schedule=schedules.cosine(3000), target=("val_loss", 0.3),
    )  # fmt: skip
    # the last rate diverges at once, and what it then comes to is decided by rounding
    runs = [replace(run, device="cuda", lr=lr, seed=seed) for lr in (0.003, 0.02, 1e6) for seed in (0, 1)]
    lanes = stacked.train(plan(runs[0]), runs)
    for lane, one in zip(lanes[:4], runs[:4], strict=True):
        assert_equals_fit(lane, replace(one, device="cpu"), 1e-6)
    for lane, one in zip(lanes[4:], runs[4:], strict=True) if network == "mlp" else ():
        alone = fit(replace(one, device="cpu"))
        assert lane.diverged and alone.diverged and lane.rows[-1]["step"] == alone.table.step.iloc[-1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_step_that_waits_for_the_gpu_is_not_replayed():
    one = torch.ones((), device="cuda")

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * one.item()

    run = replace(a_run(device="cuda", steps=20), loss=loss)
    with pytest.warns(UserWarning, match="cannot be replayed"):
        lanes = stacked.train(plan(run), [run, replace(run, seed=1)])
    pandas.testing.assert_series_equal(
        pandas.DataFrame(lanes[0].rows).val_loss, fit(replace(run, device="cpu")).table.val_loss, rtol=1e-3
    )


def test_the_leaves_of_a_carry_are_copied_in_order():
    tree = ([{"w": torch.ones(2)}, {}], torch.zeros(1))
    held = graph._copied(tree)
    graph._copy(held, ([{"w": torch.full((2,), 3.0)}, {}], torch.ones(1)))
    assert held[0][0]["w"].tolist() == [3, 3] and held[1].tolist() == [1] and tree[1].tolist() == [0]
    assert type(held) is tuple and len(tree) == 2
