"""``decide`` is arithmetic: where the laws hold exactly, its answers are theirs."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchlab as bl
from batchlab.advise import Measured, decide
from batchlab.advise._cost import knee_of, step_seconds
from batchlab.advise._critical import CRITICAL, critical_batch
from batchlab.advise._decide import candidates, relative_times
from batchlab.advise._measured import Branch, Look, RateRange
from batchlab.stats import Interval
from batchlab.theory import all_reduce

TAU = 1e-4


def exact(value):
    return Interval(value, value, value)


def line(knee, sizes=range(12), tau=TAU):
    return tuple((2**k, exact(tau * (knee + 2**k))) for k in sizes)


def measured(knee=32, noise=128, family="sgd", batch_size=16, **more):
    looks = (Look(100, exact(noise), "test"),) if noise else ()
    settings = (
        ({"lr": 0.1},) if family in ("sgd", "momentum", "other") else ({"lr": 1e-3, "beta1": 0.9, "beta2": 0.99},)
    )
    return Measured(batch_size, family, settings, timings=line(knee), looks=looks, **more)


@given(st.floats(1, 2000), st.floats(2, 5000), st.sampled_from(["sgd", "momentum", "adam", "adamw"]))
def test_the_fastest_size_is_the_geometric_mean(knee, noise, family):
    """sqrt(K B_crit), chapter 4: to the grid, and to the bias of a mean over a wide distribution of B_crit."""
    found = decide(measured(knee, noise, family))
    critical = noise * CRITICAL[family][0]
    assert found.knee == pytest.approx(knee, rel=1e-3)
    assert found.critical.estimate == pytest.approx(critical, rel=1e-9)
    assert found.low <= found.batch_size <= found.high
    best = min(max(math.sqrt(knee * critical), 1), 8 * 2048)
    assert 1 / 1.45 <= found.batch_size / best <= 1.45
    # and in time, which is what counts: within 2 % of the least of the grid, at the median of B_crit
    times = {int(b): (1 + critical / b) * (knee + b) for b in candidates(measured(knee))}
    assert times[found.batch_size] <= 1.02 * min(times.values())


def test_least_compute_takes_a_fifth_more_examples_at_most():
    for noise in (50, 500, 5000):
        found = decide(measured(knee=2000, noise=noise), "compute")
        examples = 1 + found.batch_size / noise  # E(B) / E_min
        assert examples <= 1.2 * 1.25  # the grid: the size nearest to the median of the allowed ones
        assert found.batch_size <= decide(measured(knee=2000, noise=noise)).batch_size


def test_a_deadline_takes_the_smallest_size_that_ends_in_time():
    problem, examples, critical = measured(knee=64, noise=256), 1e6, 256
    sizes = candidates(problem)
    took = {int(b): examples * (b + critical) / (16 + critical) / b * TAU * (64 + b) for b in sizes}  # by hand
    for deadline in (1000, 300, 215):
        found = decide(problem, "deadline", deadline=deadline, examples=examples)
        assert (found.met, found.batch_size) == (True, min(b for b in took if took[b] <= deadline))
        assert found.total == pytest.approx(took[found.batch_size], rel=1e-6)
        assert found.before == pytest.approx(took[16], rel=1e-6)
    late = decide(problem, "deadline", deadline=1, examples=examples)
    assert (late.met, late.batch_size) == (False, min(took, key=took.get))


def test_a_batch_that_does_not_fit_is_accumulated():
    """It saves no time on one device, where a piece costs what a step does: the advice stays at what fits."""
    found = decide(measured(knee=500, noise=5000, largest=256, bounded=False))
    assert (found.batch_size, found.micro_batch, found.pieces) == (256, 256, 1)
    dear = decide(measured(knee=500, noise=5000, largest=100, bounded=False, load=(5000 * TAU, 0.0)), "compute")
    assert dear.micro_batch * dear.pieces >= dear.batch_size and dear.micro_batch <= 100
    seconds = step_seconds(measured(knee=500, largest=256, bounded=False))
    assert seconds(1024) == pytest.approx(4 * TAU * (500 + 256))  # pieces cost their fixed part each
    assert decide(measured(knee=500, noise=5000, largest=256, bounded=True)).pieces == 1  # only not tried


def test_the_longest_examples_decide_what_fits():
    found = decide(measured(knee=500, noise=5000, largest=1024, largest_longest=64, bounded=False))
    assert found.micro_batch <= 64


def test_loading_moves_the_best_size():
    plain = decide(measured()).batch_size
    # before each step, seconds an example: the knee falls; seconds a batch: it rises
    assert decide(measured(load=(0.0, 15 * TAU))).knee == pytest.approx(32 / 16, rel=0.01)
    assert decide(measured(load=(0.0, 15 * TAU))).batch_size < plain
    assert decide(measured(load=(320 * TAU, 0.0))).batch_size > plain
    # while a step runs: nothing as long as it is faster, everything where it is slower
    assert decide(measured(load=(0.0, 0.5 * TAU), overlapped=True)).batch_size == plain
    assert step_seconds(measured(load=(0.0, 5 * TAU), overlapped=True))(2048) == pytest.approx(2048 * 5 * TAU)


def test_steps_are_timed_between_and_beyond_the_sizes():
    seconds = step_seconds(measured(knee=32))
    assert seconds(2048) == pytest.approx(TAU * 2080) and seconds(10_000) == pytest.approx(TAU * 10_032)
    noisy = replace(measured(), timings=tuple((b, Interval(t.estimate * (1.5 if b == 64 else 1), t.low / 2, t.high * 2))
                                              for b, t in line(32)))  # fmt: skip
    assert step_seconds(noisy)(64) == pytest.approx(TAU * 96, rel=0.1)  # drawn to the line, if loose
    odd = replace(measured(), timings=((1, exact(2.0)), (2, exact(1.0)), (4, exact(3.0))))
    assert step_seconds(odd)(1) == step_seconds(odd)(2) == pytest.approx(1.5)  # a larger batch costs no less


def test_the_noise_scale_leaves_out_the_start_of_a_fresh_run():
    looks = (Look(0, exact(10_000), "t"), Look(100, exact(100), "t"), Look(200, exact(400), "t"))
    fresh, later = (replace(measured(noise=None), looks=looks, fresh=fresh) for fresh in (True, False))
    assert critical_batch(fresh, 32)[2] == pytest.approx(200)  # the geometric mean
    assert critical_batch(later, 32)[2] == pytest.approx((10_000 * 100 * 400) ** (1 / 3))
    assert critical_batch(replace(fresh, looks=looks[1:2]), 32)[2] == pytest.approx(100)  # there is no other
    loose = replace(fresh, looks=(looks[0], looks[1], Look(200, Interval(400, 4, math.inf), "t")))
    middle, spread, noise = critical_batch(loose, 32)
    assert 100 < noise < 120 and spread > CRITICAL["sgd"][1]  # the exact look weighs more


@pytest.mark.parametrize("looks", [(), (Look(50, Interval(math.nan, 0.0, math.inf), "t"),)])
def test_without_a_noise_scale_the_knee_is_taken_and_said_to_be_a_guess(looks):
    found = decide(replace(measured(knee=64, noise=None), looks=looks))
    assert found.noise is None and 64 / 1.5 <= found.batch_size <= 64 * 1.5
    assert found.confidence != "sure" and found.high / found.low > 4
    # twice the best time at most, by the laws (chapter 4), wherever B_crit lies
    sizes, critical = candidates(measured()), np.geomspace(0.1, 1e6, 50)
    times = relative_times(np.array([64, *sizes]), critical, TAU * (64 + np.array([64.0, *sizes])))
    assert (times[0] <= 2 * times.min(0)).all()


def test_a_noise_scale_with_a_lower_end_only_raises_the_guess():
    unknown = replace(measured(knee=64), looks=(Look(50, Interval(math.nan, 4000.0, math.inf), "t"),))
    assert decide(unknown).batch_size > 4 * decide(replace(unknown, looks=())).batch_size


@pytest.mark.parametrize("family", ["sgd", "momentum", "adam", "adamw"])
def test_the_settings_are_those_of_rescale(family):
    problem = measured(family=family, batch_size=32)
    found = decide(problem)
    optimizer = "sgd" if family in ("sgd", "momentum") else family
    far = found.batch_size / 32 > 4
    keep = ("beta1", "beta2") if far and "beta1" in problem.settings[0] else None
    assert found.noise == pytest.approx(128) and found.settings[0] == bl.rescale(
        problem.settings[0], 32, found.batch_size, optimizer=optimizer, noise_scale=found.critical.estimate, keep=keep
    )


def test_betas_stay_where_the_batch_moves_more_than_fourfold():
    problem = measured(knee=500, noise=5000, family="adam", batch_size=8)
    assert decide(problem).settings[0].settings["beta2"] == 0.99
    assert decide(replace(problem, batch_size=decide(problem).batch_size // 2)).settings[0].settings["beta2"] < 0.99


def test_every_parameter_group_is_moved():
    groups = ({"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.01})
    found = decide(replace(measured(), settings=groups)).settings
    assert [s.before for s in found] == list(groups)
    assert found[0].settings["lr"] / found[1].settings["lr"] == pytest.approx(10)


def test_an_unknown_optimizer_gets_a_batch_size_and_no_settings():
    found = decide(measured(family="other"))
    assert found.settings is None and found.notes[0][0] == "settings"


def test_a_rate_that_a_range_does_not_bear_is_lowered():
    plain = decide(measured(batch_size=8))
    lr = plain.settings[0].settings["lr"]

    def ranged(diverges, size=plain.batch_size):
        return decide(measured(batch_size=8, ranges=(RateRange(size, (0.1,), (1.0,), 0.1, diverges),)))

    for found in (ranged(3 * lr), ranged(None), ranged(lr / 10, size=3)):
        assert (found.settings, found.capped) == (plain.settings, None)
    lowered = ranged(lr)
    assert lowered.settings[0].settings["lr"] == pytest.approx(lr / 2) and lowered.capped == lr
    assert "lowered" in lowered.settings[0].rules["lr"]


def test_what_being_off_costs():
    found = decide(measured(knee=64, noise=64))
    assert found.batch_size == 64
    for factor, size, middle, low, high in found.off_by:
        assert size == 64 * factor
        assert middle == pytest.approx((1 + 64 / size) * (64 + size) / 256, rel=0.02)  # chapter 4: 9/8 at a factor of 2
        assert low <= middle <= high


def test_confidence_follows_the_exactness():
    assert decide(measured(knee=64, noise=64)).confidence == "sure"
    loose = replace(measured(knee=64), looks=(Look(9, Interval(64, 1, math.inf), "t"),), family="other")
    assert decide(loose).worst > decide(measured(knee=64, noise=64)).worst
    shaky = replace(measured(knee=64, noise=64), timings=tuple((b, Interval(t.estimate, t.estimate / 3, 3 * t.estimate))
                                                               for b, t in line(64)))  # fmt: skip
    assert decide(shaky).confidence != "sure"


def test_devices_are_priced_by_the_function_given():
    """Data parallel without communication: n devices are one with a knee n times as large."""
    problem = measured(knee=32, noise=512)
    found = decide(problem, devices=(1, 4), device_seconds=lambda compute, n: compute).devices
    assert found[0][0] == 1 and found[0][2] == pytest.approx(1, rel=0.05)
    best = (math.sqrt(32) + math.sqrt(512)) ** 2  # T* / (S_min tau), chapter 4
    many = (math.sqrt(32) + math.sqrt(512 / 4)) ** 2
    assert found[1][2] == pytest.approx(best / many, rel=0.05)
    assert found[1][1] == pytest.approx(math.sqrt(4 * 32 * 512), rel=0.45)
    dear = decide(problem, devices=(4,), device_seconds=lambda compute, n: compute + 1e3 * TAU).devices[0]
    assert dear[1] > found[1][1] and dear[2] < 1  # a slow link: larger batches, and worse than one device


def test_the_cost_model_of_theory_fits_in():
    """One ring of four over a link: each size's time by hand, without overlap."""
    problem, bits = measured(knee=32, noise=512), dict(size=4e6, latency=1e-5, bandwidth=1e9)

    def cost(compute, n):
        return all_reduce.step_seconds(compute, all_reduce.ring_seconds(workers=n, **bits), overlap=0)

    _, size, times = decide(problem, devices=(4,), device_seconds=cost).devices[0]
    link = 2 * 3 * (1e-5 + 4e6 / 4 / 1e9)
    took = {b: (1 + 512 / b) * (TAU * (32 + b / 4) + link) for b in (2**k for k in range(2, 14))}
    best = min(took.values())
    assert took.get(size, best) <= 1.02 * best
    alone = decide(problem).batch_size
    assert times == pytest.approx((1 + 512 / alone) * TAU * (32 + alone) / best, rel=0.03)


def test_nothing_larger_than_the_data_or_than_asked_for_is_advised():
    assert decide(measured(knee=2000, noise=50_000, population=300)).batch_size <= 300
    assert decide(measured(knee=2000, noise=50_000, most=100)).batch_size <= 100
    assert "for most" in str(decide(measured(knee=2000, noise=50_000, most=100)).notes)
    assert "for the training set" in str(decide(measured(knee=2000, noise=50_000, population=300)).notes)
    assert decide(measured()).notes == ()
    assert max(size for _, size, *_ in decide(measured(knee=2000, noise=50_000, population=300)).off_by) <= 300


def test_it_is_a_pure_function_of_what_json_keeps():
    problem = measured(
        load=(1e-5, 1e-6), largest=64, bounded=False, population=5000, layers={"0": exact(3.0)},
        ranges=(RateRange(64, (0.1, 0.2), (1.0, 0.5), 0.2, None),), notes=(("a", "b"),),
        branches=(Branch(64, 0.1, Interval(0.1, 0.0, math.inf, 0.9), "undecided"),),
    )  # fmt: skip
    again = Measured.read(problem.json())
    assert again == problem and decide(again) == decide(problem) == decide(problem)


BAD = {
    "no measurements": (lambda: decide(None), "measured = None"),
    "no timings": (lambda: decide(Measured(8, "sgd", ({"lr": 0.1},))), "measured = ()"),
    "another objective": (lambda: decide(measured(), "loss"), "objective = 'loss'"),
    "a deadline for another objective": (lambda: decide(measured(), deadline=3), "deadline = 3"),
    "no deadline": (lambda: decide(measured(), "deadline", examples=9), "deadline = None"),
    "a deadline without examples": (lambda: decide(measured(), "deadline", deadline=9), "examples = None"),
    "a deadline of 0": (lambda: decide(measured(), "deadline", deadline=0, examples=9), "deadline = 0"),
    "no examples": (lambda: decide(measured(), examples=0), "examples = 0"),
    "devices without a cost": (lambda: decide(measured(), devices=(2,)), "device_seconds = None"),
    "a cost of 0": (
        lambda: decide(measured(), devices=(2,), device_seconds=lambda compute, n: 0.0),
        "device_seconds = 0.0",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_are_refused_by_name(bad):
    make, named = BAD[bad]
    with pytest.raises(ValueError) as refused:
        make()
    assert named in str(refused.value)


def test_the_knee_of_a_step_that_costs_nothing_more():
    assert knee_of(replace(measured(), timings=((1, exact(1.0)), (2, exact(1.0))))) > 1e9
    assert knee_of(replace(measured(), timings=((1, exact(1.0)), (2, exact(2.0))))) == pytest.approx(0, abs=1e-9)
