"""The branch test against exact least squares, where the loss of every branch is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import batchlab as bl
from batchlab.engine import branch

SEEDS = range(8)
H, NOISE, START, SPAN, LR = np.array([1.0, 0.5, 0.25, 0.125] * 3), 0.5, 512, 2048, 0.04  # of torch's mse: half


@pytest.fixture(scope="module")
def regression():
    return bl.Run(
        data=bl.data.gaussian_regression(H, NOISE, examples=16_384, val=16_384, test=8),
        model=bl.models.linear(len(H), 1, bias=False),
        optimizer=bl.optim.sgd(),
        lr=LR / 2,
        loss="mse",
        batch_size=8,
        epochs=1,
        device="cpu",
        evaluate=("val",),
    )


def exact_excess(run, factor, exponent):
    """Expected mean squared error of a branch, over that of the one that goes on as before, less 1."""
    starts = [bl.models.build(run.model, seed)[0].weight.detach().numpy()[0] for seed in SEEDS]
    m = ((np.array(starts) - run.data.truth.numpy()[:, 0]) ** 2).mean(0)

    def further(m, lr, batch_size, examples):
        for _ in range(examples // batch_size):
            m = (1 - lr * H) ** 2 * m + lr**2 / batch_size * (H**2 * m + H * (H @ m) + NOISE**2 * H)
        return m

    trunk = further(m, LR, 8, START)
    losses = [H @ further(trunk, LR * k**exponent, 8 * k, SPAN) + NOISE**2 for k in (1, factor)]
    return losses[1] / losses[0] - 1


def test_the_recursion_of_this_file_is_that_of_the_theory():
    m, lr, w = np.ones(len(H)), 0.1, np.ones(len(H))
    for _ in range(5):
        m = (1 - lr * H) ** 2 * m + lr**2 / 8 * (H**2 * m + H * (H @ m) + NOISE**2 * H)
    assert np.isclose(0.5 * H @ m, bl.least_squares.risk(H, lr, 8, 5, w, NOISE**2)[-1], rtol=1e-12)


@pytest.mark.parametrize(("exponent", "largest"), [(1.0, 64), (0.0, 8)])
def test_the_largest_batch_that_keeps_the_loss_is_that_of_the_exact_solution(regression, exponent, largest):
    factors = (2, 8, 64)
    exact = {k: exact_excess(regression, k, exponent) for k in factors}
    found = bl.branch_test(
        regression, START, SPAN, factors, lr_exponent=exponent, tolerance=0.01, seeds=SEEDS
    )  # fmt: skip
    assert found.largest == largest == max([8, *(8 * k for k in factors if exact[k] < 0.01)])
    for k, row in zip(factors, found.table.itertuples(), strict=True):
        if row.excess < 10:  # beyond, the expectation is carried by rare runs
            assert abs(row.excess - exact[k]) <= 2 * (row.high - row.low) + 0.002, (k, row, exact[k])
        assert row.batch_size == 8 * k


@pytest.mark.parametrize(
    ("verdicts", "largest"),
    [(("kept", "kept"), 32), (("kept", "lost"), 16), (("lost", "kept"), 8), (("undecided", "kept"), 8)],
)
def test_a_size_counts_only_if_all_smaller_ones_are_kept(verdicts, largest):
    assert branch._largest(pd.DataFrame({"batch_size": [16, 32], "verdict": verdicts}), 8) == largest


def test_a_branch_that_diverges_is_lost_and_a_trunk_that_does_is_refused(regression):
    found = bl.branch_test(regression, 64, 2048, (256,), seeds=range(2), lr_exponent=2.0)
    assert found.largest == 8
    assert found.table.verdict.tolist() == ["lost"]
    with pytest.raises(ValueError, match=r"run\.lr = 50"):
        bl.branch_test(replace(regression, lr=50.0), 64, 8192, (2,), seeds=range(2))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"run": "a run"}, "run"),
        ({"at": 60}, "at"),
        ({"at": 0}, "at"),
        ({"span": 8}, "span"),
        ({"factors": ()}, "factors"),
        ({"factors": (4, 2)}, "factors"),
        ({"factors": (1, 2)}, "factors"),
        ({"factors": (2.5,)}, "factors"),
        ({"factors": (4096,), "span": 32_768}, "factors"),
        ({"tolerance": 0}, "tolerance"),
        ({"lr_exponent": float("nan")}, "lr_exponent"),
        ({"metric": "test_loss"}, "metric"),
        ({"metric": "train_loss"}, "metric"),
        ({"seeds": [0]}, "seeds"),
    ],
)
def test_bad_arguments_are_named(regression, change, named):
    arguments = {"run": regression, "at": 64, "span": 128, "factors": (2,), **change}
    with pytest.raises(ValueError, match=f"^{named}"):
        bl.branch_test(**arguments)


def test_a_run_whose_batch_grows_by_itself_is_refused(regression):
    growing = replace(regression, batch_schedule=bl.schedules.stages((1, 2), (64,)))
    with pytest.raises(ValueError, match=r"run\.batch_schedule"):
        bl.branch_test(growing, 64, 128, (2,))
