"""Short problems are tried: whole runs at several sizes and rates, which then decide; and an advised rate must hold."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_advise import FOREVER, QUICK, X, drawn, problem, sgd, state
from test_decide import exact, measured
from torch import nn
from torch.nn.functional import mse_loss

import batchlab as bl
from batchlab.advise import decide
from batchlab.advise._critical import critical_batch, critical_of_runs
from batchlab.advise._measured import Look, Measured, WholeRuns
from batchlab.advise._runs import RUNS, whole_runs

SIZES = (8, 16, 32, 64, 128, 256)


def law(critical, sizes=SIZES, lr=0.1):
    return tuple(WholeRuns(b, lr * (b / 8) ** 0.5, (100 * (1 + critical / b),)) for b in sizes)


def line():
    """A regression of three curvatures, its labels without noise."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1, bias=False), drawn(1024, 3)
    nn.init.zeros_(model.weight)
    x = x * torch.tensor([1.0, 0.5, 0.25])
    return problem(model, mse_loss, (x, x @ torch.ones(3, 1)), sgd(model, 0.1), batch_size=16)


def tried(p, examples=4096, seconds=lambda size: 1e-4, near=32, largest=256, left=FOREVER, seed=0):
    first = p.optimizer.param_groups[0]["lr"]
    rates = lambda size: float(first) * (size / p.batch_size) ** 0.5  # noqa: E731
    return whole_runs(p, p.pool(), examples, seconds, rates, near, largest, left, seed)


@given(st.floats(2, 800))  # it is sought up to eight times the largest size
def test_runs_that_follow_the_law_tell_its_critical_batch(critical):
    middle, spread = critical_of_runs(law(critical))
    assert middle == pytest.approx(critical, rel=0.25)
    assert abs(math.log(middle / critical)) < 1.5 * spread


def test_few_or_scattered_runs_say_that_they_know_less():
    few, many = critical_of_runs(law(64, SIZES[2:5]))[1], critical_of_runs(law(64))[1]
    odd = [replace(r, steps=(r.steps[0] * f,)) for r, f in zip(law(64), (1, 1.5, 0.7, 1.4, 0.8, 1.2), strict=True)]
    assert few > many and critical_of_runs(odd)[1] > many
    flat = [WholeRuns(b, 0.1, (100.0,)) for b in SIZES]  # the batch saves no step
    steep = [WholeRuns(b, 0.1, (6400 / b,)) for b in SIZES]  # and as many as it has examples
    assert critical_of_runs(flat)[0] < 4 and critical_of_runs(steep)[0] > 512


def test_runs_decide_over_looks_and_bring_their_rate():
    looks = (Look(100, exact(5000.0), "t"),)
    misled = measured(knee=64, noise=5000)
    told = replace(misled, looks=looks, runs=law(16))
    assert critical_batch(told, 64)[2] == pytest.approx(5000)  # the noise scale is still told
    before, after = decide(misled), decide(told)
    assert before.batch_size >= 512 and 24 <= after.batch_size <= 48  # sqrt(64 x 16)
    lr = after.settings[0].settings["lr"]
    near = min(told.runs, key=lambda r: abs(math.log(r.batch_size / after.batch_size)))
    assert lr == pytest.approx(near.lr, rel=0.5) and "whole runs" in after.settings[0].rules["lr"]
    other = replace(told, runs=tuple(replace(r, lr=3 * r.lr) for r in told.runs))
    assert decide(other).settings[0].settings["lr"] == pytest.approx(3 * lr)


def test_groups_keep_the_ratio_of_their_rates():
    told = replace(measured(runs=law(16)), settings=({"lr": 0.1}, {"lr": 0.01}))
    first, second = (f.settings["lr"] for f in decide(told).settings)
    assert first == pytest.approx(10 * second)


def test_whole_runs_search_to_both_sides_and_leave_all_as_it_was():
    p = line()
    before = state(p)
    runs, notes = tried(p)
    assert state(p) == before and not notes
    by_size = [r.batch_size for r in runs]
    assert by_size == sorted(by_size) and len(by_size) >= 3
    assert min(by_size) < 32 < max(by_size)
    assert critical_of_runs(runs)[0] < 16  # labels without noise: a batch of tr H / max h = 1.3 is as good as any
    again, _ = tried(p)
    assert again == runs  # the same seed, the same runs
    dear, _ = tried(p, seconds=lambda size: 1e-4 * size)  # where each example costs the same, small sizes are tried
    assert dear[0].batch_size == 1


def test_their_steps_are_those_that_the_rate_needs():
    """Without noise two modes shrink by 1 - lr h a step: as many steps as that takes, whatever the size."""
    h = torch.tensor([1.0, 0.01])
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    loss = lambda model, batch: 0.5 * (h * model.weight**2).sum() + 0 * batch[:, 0].mean()  # noqa: E731

    def losses(lr, steps):
        return 0.5 * ((1 - lr * h.numpy()) ** (2 * np.arange(steps + 1)[:, None]) * h.numpy()).sum(1)

    runs, _ = tried(problem(model, loss, X, sgd(model, 0.1), batch_size=2), examples=2000, near=2, largest=16)
    target = losses(0.1, 1000)[-1]
    assert len(runs) >= 3
    for r in runs:
        assert 0.8 < r.lr < 2 / 1.0  # found, though each search began at 0.1 to 0.3
        assert r.steps == pytest.approx([(losses(r.lr, 1000) > target).sum()] * 8, rel=0.05)


@pytest.mark.parametrize(("more", "says"), [
    (dict(left=lambda: 0.0), f"not tried: {RUNS} of the planned length"),
    (dict(seconds=lambda size: 1e9), "would take about"),
    (dict(largest=2, near=2), "sizes in the time: too few"),
])  # fmt: skip
def test_what_was_not_tried_is_said(more, says):
    runs, ((name, sentence),) = tried(line(), **more)
    assert runs == () and name == "whole runs" and says in sentence


def test_a_run_that_learns_nothing_is_no_target():
    p = line()
    p.optimizer.param_groups[0]["lr"] = 10.0  # leaves
    runs, ((_, sentence),) = tried(p)
    assert runs == () and "never lower than it began" in sentence


def test_where_the_time_ends_between_steps_the_sizes_that_were_ready_count():
    p, steps = line(), [3000]
    before = state(p)

    def left():
        steps[0] -= 1
        return steps[0] * 1.0 if steps[0] > 0 else 0.0

    for ready in (2_000, 20_000):
        steps[0] = ready
        runs, notes = tried(p, seconds=lambda size: 1e-9, left=left)
        assert (len(runs) >= 3) != bool(notes) and state(p) == before


def test_ctrl_c_in_a_whole_run_leaves_all_as_it_was():
    p, calls = line(), [0]
    before = state(p)

    def left():
        calls[0] += 1
        if calls[0] > 700:
            raise KeyboardInterrupt
        return math.inf

    with pytest.raises(KeyboardInterrupt):
        tried(p, left=left)
    assert state(p) == before and calls[0] == 701


def test_advice_with_its_examples_is_tried_and_without_them_not():
    p = line()
    with_them = bl.advise(p, examples=4096, **{**QUICK, "most": 256})
    without = bl.advise(p, **{**QUICK, "most": 256})
    assert len(with_them.measured.runs) >= 3 and without.measured.runs == ()
    assert Measured.read(with_them.measured.json()) == with_them.measured
    text = str(with_them)
    assert (
        all(f"whole runs with {r.batch_size}" in text for r in with_them.measured.runs)
        and "from the steps of whole runs" in text
        and "whole runs with" not in str(without)
    )
    assert "whole runs with" in with_them.html()


def test_an_advised_rate_that_a_short_run_does_not_bear_is_lowered():
    """1/2 (w - x)^2 in the mean: stable below a rate of 2."""
    torch.manual_seed(0)
    model, x = nn.Linear(1, 1, bias=False), drawn(1024, 1)
    nn.init.constant_(model.weight, 3.0)
    loss = lambda model, batch: 0.5 * (model.weight - batch[0]).square().mean()  # noqa: E731
    p = problem(model, loss, (x, x), sgd(model, 1.2), batch_size=4)
    found = bl.advise(p, **{**QUICK, "most": 256})
    lr = found.advice.settings[0].settings["lr"]
    assert lr < 2
    for size, rate in found.measured.left:
        assert size == found.batch_size and rate > 1.9
    plain = measured(batch_size=8)
    size, lr = decide(plain).batch_size, decide(plain).settings[0].settings["lr"]
    lowered = decide(replace(plain, left=((size, lr), (size, lr / 2))))
    assert lowered.settings[0].settings["lr"] == pytest.approx(lr / 4) and lowered.capped == lr
    assert "a short run left" in lowered.settings[0].rules["lr"]
    assert decide(replace(plain, left=((size + 1, lr / 9),))).settings == decide(plain).settings
