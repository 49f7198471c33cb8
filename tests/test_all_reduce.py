"""The model of a data-parallel step: a ring played message by message; hand-made cases; bad input."""

import numpy as np
import pytest

from batchlab.theory import all_reduce


def played(values, latency, bandwidth):
    """Pass pieces round a ring: every worker's result, and the seconds until the last has it. Bytes: 8 a number."""
    size = len(values)
    pieces = [np.array_split(v.copy(), size) for v in values]
    clock = 0.0
    for turn in range(2 * (size - 1)):
        sent = [(rank - turn) % size for rank in range(size)]
        moving = [pieces[rank][sent[rank]].copy() for rank in range(size)]
        for rank in range(size):
            into = pieces[(rank + 1) % size]
            into[sent[rank]] = into[sent[rank]] + moving[rank] if turn < size - 1 else moving[rank]
        clock += latency + 8 * max(map(len, moving)) / bandwidth
    return [np.concatenate(p) for p in pieces], clock


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_a_ring_takes_what_the_formula_says(workers):
    values = np.random.default_rng(0).normal(size=(workers, 24 * workers))
    sums, seconds = played(values, latency=1e-3, bandwidth=1e5)
    np.testing.assert_allclose(sums, [values.sum(0)] * workers)
    assert all_reduce.ring_seconds(8 * 24 * workers, workers, 1e-3, 1e5) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("compute", "reduce", "overlap", "want"),
    [(0.3, 0.1, 2 / 3, 0.3), (0.3, 0.2, 2 / 3, 0.3), (0.3, 0.5, 2 / 3, 0.6), (0.3, 0.1, 0, 0.4), (0.3, 0.3, 1, 0.3)],
)
def test_a_step_hides_what_fits_under_its_backward_pass(compute, reduce, overlap, want):
    assert all_reduce.step_seconds(compute, reduce, overlap) == pytest.approx(want)


def test_the_law_of_the_steps():
    """At W b = B_crit twice the fewest steps; with few workers time falls as 1/W, with many it stays."""
    assert all_reduce.seconds_to_target(4, 8, 32, 100, 0.5) == pytest.approx(100)
    few = [all_reduce.seconds_to_target(w, 1, 1e6, 10, 1.0) for w in (1, 2)]
    many = [all_reduce.seconds_to_target(w, 1e9, 1e6, 10, 1.0) for w in (1, 2)]
    assert few[0] / few[1] == pytest.approx(2, rel=1e-5)
    assert many[0] / many[1] == pytest.approx(1, rel=2e-3)


@pytest.mark.parametrize(
    ("function", "good", "bad"),
    [
        (all_reduce.ring_seconds, dict(size=1.0, workers=2, latency=0.0, bandwidth=1.0),
         dict(size=-1, workers=0, latency=-1, bandwidth=0)),
        (all_reduce.step_seconds, dict(compute=1.0, reduce=0.0, overlap=0.5), dict(compute=0, reduce=-1, overlap=1.1)),
        (all_reduce.seconds_to_target, dict(workers=1, each=1, critical_batch=1, min_steps=1, step=1),
         dict(workers=1.5, each=0, critical_batch=-1, min_steps=0, step=0)),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(function, good, bad):
    function(**good)
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"^{name} = "):
            function(**{**good, name: value})
