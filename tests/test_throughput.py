"""Throughput with a clock and steps of known cost: nothing here is timed on the machine."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from batchlab import throughput
from batchlab.throughput import fit_step_law, measure_throughput, measure_training, median_interval


class Machine:
    """A clock that only its own steps move: ``cost(batch_size, call)`` seconds at a size's call-th call."""

    def __init__(self, cost):
        self.now, self.cost, self.calls, self.order = 0.0, cost, {}, []

    def clock(self):
        return self.now

    def prepare(self, batch_size):
        self.calls[batch_size] = 0

        def step():
            self.now += self.cost(batch_size, self.calls[batch_size])
            self.calls[batch_size] += 1
            self.order.append(batch_size)

        return step

    def measure(self, sizes=(1, 4, 16, 64), **settings):
        return measure_throughput(self.prepare, sizes, clock=self.clock, **settings)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-5, 1), st.floats(1e-7, 1e-2), st.floats(0.1, 0.95))
def test_a_known_cost_is_recovered_exactly(a, b, fraction):
    found = Machine(lambda size, call: a + b * size).measure(fraction=fraction, seconds=1e6)
    law = found.law
    (found_a, _), (found_b, _), (knee, _) = law.fixed, law.per_example, law.knee
    assert found_a == pytest.approx(a, rel=1e-6) and found_b == pytest.approx(b, rel=1e-6)
    assert knee / (a / b + knee) == pytest.approx(fraction, rel=1e-6)  # the rate there, over the peak
    assert law.misfit < 1e-9 and law.fraction == fraction
    for value, (low, high) in (law.fixed, law.per_example, law.knee):
        assert low == pytest.approx(value, rel=1e-6) and high == pytest.approx(value, rel=1e-6)
    for timing in found.timings:
        assert timing.tight and timing.seconds.estimate == pytest.approx(a + b * timing.batch_size)


@pytest.mark.parametrize("slow", [1, 2, 5])
def test_slow_first_calls_never_enter_a_sample(slow):
    # 100 s on each of the first `slow` calls at every size, as when code is loaded on first use.
    machine = Machine(lambda size, call: 100.0 if call < slow else 0.001 + 0.001 * size)
    for timing in machine.measure().timings:
        assert max(timing.samples) == pytest.approx(0.001 + 0.001 * timing.batch_size)


def test_without_warm_up_the_same_step_would_be_mistimed():
    machine = Machine(lambda size, call: 100.0 if call < 5 else 0.001)
    assert max(max(t.samples) for t in machine.measure(warmup=1).timings) > 10


def test_a_rare_hiccup_later_on_does_not_move_the_median():
    machine = Machine(lambda size, call: 0.02 + 0.001 * size + (5.0 if call == 7 else 0.0))
    for timing in machine.measure(seconds=100).timings:
        assert timing.seconds.estimate == pytest.approx(0.02 + 0.001 * timing.batch_size) and timing.tight


def test_sampling_goes_on_until_tight_and_stops_at_the_limit():
    def noisy(size, call):
        return 0.05 * (1 + 0.2 * math.sin(12.9898 * call))

    patient, hurried = (Machine(noisy).measure((1, 2), seconds=s, precision=0.05) for s in (1e6, 1.0))
    for timing in patient.timings:
        middle, (low, high) = timing.seconds
        assert timing.tight and max(high - middle, middle - low) <= 0.05 * middle
    assert all(len(t.samples) > throughput.SMALLEST for t in patient.timings)
    assert not any(t.tight for t in hurried.timings)
    assert all(len(t.samples) >= throughput.SMALLEST for t in hurried.timings)


def test_sizes_take_turns_and_short_steps_are_timed_in_blocks():
    machine = Machine(lambda size, call: 0.001)
    machine.measure((8, 2), block=0.003)
    warm, blocks = machine.order[:12], machine.order[12:]
    assert warm == [2] * 5 + [8] * 5 + [2, 8]
    assert blocks == ([2] * 3 + [8] * 3) * throughput.SMALLEST


def test_the_device_is_waited_for_before_the_clock_is_read(monkeypatch):
    log = []
    monkeypatch.setattr(throughput, "synchronise", lambda device: log.append(device))
    machine = Machine(lambda size, call: 0.01)
    real = machine.clock
    machine.clock = lambda: log.append("clock") or real()
    measure_throughput(machine.prepare, [1, 2], device="cuda:1", clock=machine.clock)
    timed = [(a, b) for a, b in zip(log, log[1:], strict=False) if a == "cuda:1"]
    assert all(pair == ("cuda:1", "clock") for pair in timed) and len(timed) >= 2 * 2 * 2


def test_median_interval_covers_at_least_95_percent_whatever_the_distribution():
    rng = np.random.default_rng(0)
    for n in (6, 9, 30):
        draws = np.exp(2 * rng.standard_normal((4000, n)))  # heavily skewed, median 1
        cover = np.mean([low <= 1 <= high for _, (low, high) in map(median_interval, draws)])
        assert 0.945 <= cover <= 0.99


@pytest.mark.parametrize("n", [6, 7, 10, 25, 100, 1001])
def test_median_interval_is_scipys_quantile_test(n):
    rng = np.random.default_rng(n)
    for values in (rng.lognormal(size=n), rng.integers(0, 5, n)):  # with ties, too
        found, theirs = median_interval(values), stats.quantile_test(values).confidence_interval(0.95)
        assert (found.low, found.high) == (theirs.low, theirs.high)


def test_intervals_of_the_fit_cover_the_truth():
    rng, sizes, hits = np.random.default_rng(0), np.array([1, 4, 16, 64, 256]), []
    for _ in range(300):
        truth = 0.01 + 0.0005 * sizes
        samples = [t * np.exp(0.05 * rng.standard_normal(25)) for t in truth]
        law = fit_step_law(sizes, samples, resamples=200)
        hits.append([i.low <= v <= i.high for v, i in ((0.01, law.fixed), (0.0005, law.per_example), (20.0, law.knee))])
    assert ((0.90 < np.mean(hits, axis=0)) & (np.mean(hits, axis=0) < 0.99)).all()


def test_fit_is_weighted_least_squares():
    sizes, times = np.array([1.0, 3, 10, 50]), np.array([1.1, 1.6, 2.2, 9.0])
    b, a = np.polyfit(sizes, times, 1, w=1 / times)
    law = fit_step_law(sizes, [[t] for t in times])
    assert (law.fixed.estimate, law.per_example.estimate) == (pytest.approx(a), pytest.approx(b))
    assert law.misfit == pytest.approx(np.max(np.abs(times - a - b * sizes) / times))


def test_nothing_is_clamped():
    flat = fit_step_law([1, 2, 4], [[1.0]] * 3)
    assert flat.per_example.estimate == pytest.approx(0, abs=1e-12)
    falling = fit_step_law([1, 2], [[2.0], [1.0]])
    assert falling.per_example.estimate == pytest.approx(-1) and falling.knee.estimate == math.inf
    convex = fit_step_law([1, 2], [[1.0], [3.0]])
    assert convex.fixed.estimate == pytest.approx(-1) and convex.knee.estimate == pytest.approx(-0.5)


def model_and_co():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(), torch.nn.Linear(4, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    return model, torch.nn.functional.mse_loss, optimizer, lambda b: (torch.randn(b, 3), torch.randn(b, 1))


def test_measuring_training_changes_nothing():
    model, loss, optimizer, make_batch = model_and_co()
    loss(model(torch.ones(4, 3)), torch.ones(4, 1)).backward()
    optimizer.step()
    before = [t.clone() for t in [*model.state_dict().values(), *(p.grad for p in model.parameters())]]
    state = {k: {n: v.clone() for n, v in s.items()} for k, s in optimizer.state_dict()["state"].items()}
    rng = torch.get_rng_state()
    found = measure_training(model, loss, optimizer, make_batch, [2, 8], seconds=0.05, block=1e-4)
    after = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    now = optimizer.state_dict()["state"]
    assert all(torch.equal(state[k][n], now[k][n]) for k in state for n in state[k]) and state.keys() == now.keys()
    assert torch.equal(rng, torch.get_rng_state())
    table = found.table()
    assert table["batch_size"].tolist() == [2, 8] and (table["low"] <= table["seconds"]).all()
    np.testing.assert_allclose(table["examples_per_second"], table["batch_size"] / table["seconds"])


def test_a_step_trains():
    model, loss, _, make_batch = model_and_co()
    x, y = make_batch(4)  # of equal rows BatchNorm would leave rounding errors, or nothing
    sgd = torch.optim.SGD(model[3:].parameters(), lr=0.1)
    weight = model[3].weight.detach().clone()
    throughput.training_step(model, loss, sgd, lambda b: (x, y))(4)()
    assert torch.allclose(model[3].weight, weight - 0.1 * model[3].weight.grad) and model[3].weight.grad.any()


def one_example(batch_size):
    return torch.ones(1, 3), torch.ones(1, 1)


def good(size, call):
    return 0.01


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sizes": [0, 1]}, "batch_sizes = 0"),
        ({"sizes": [1, 2.5]}, "batch_sizes = 2.5"),
        ({"sizes": [4, 4]}, "batch_sizes.*two different"),
        ({"sizes": []}, "batch_sizes"),
        ({"precision": 0}, "precision"),
        ({"seconds": 0}, "seconds"),
        ({"warmup": 0}, "warmup"),
        ({"block": -1}, "block"),
        ({"fraction": 1}, "fraction"),
    ],
)
def test_refuses(settings, words):
    with pytest.raises(ValueError, match=words):
        Machine(good).measure(**settings)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: measure_throughput(3, [1, 2]), "prepare"),
        (lambda: Machine(lambda size, call: 0.0).measure(), "clock"),
        (lambda: median_interval([1.0] * 5), "len\\(values\\) = 5"),
        (lambda: median_interval([1.0] * 6 + [math.nan]), "values"),
        (lambda: fit_step_law([1, 1], [[1], [1]]), "batch_sizes"),
        (lambda: fit_step_law([1, 2], [[1]]), "samples"),
        (lambda: fit_step_law([1, 2], [[1], [0]]), "samples"),
        (lambda: fit_step_law([1, 2], [[1], []]), "samples"),
        (lambda: throughput.training_step(*model_and_co()[:3], one_example)(2), "make_batch"),
        (lambda: throughput.training_step(*model_and_co()[:2], "adam", one_example), "optimizer = 'str'"),
        (lambda: measure_training(*model_and_co()[:2], None, one_example, [1, 2]), "optimizer = 'NoneType'"),
        (lambda: measure_training("model", *model_and_co()[1:], [1, 2]), "model = 'str'"),
    ],
)  # fmt: skip
def test_refuses_calls(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_what_the_step_raises_is_passed_on():
    def broken(size, call):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Machine(broken).measure()


@pytest.mark.gpu
def test_on_cuda_a_large_matrix_takes_longer_than_its_launch():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def prepare(batch_size):
        a = torch.ones(4096 * batch_size, 4096, device="cuda")
        return lambda: a @ a[:4096]

    found = measure_throughput(prepare, [1, 2, 4, 8], device="cuda", seconds=5)
    # 2 * 4096^3 operations an example cannot run at a petaflop a second; unsynchronised they would seem to.
    assert found.law.per_example.estimate > 2 * 4096**3 / 1e15
