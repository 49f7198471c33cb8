"""Every closed form against a simulation or a direct computation that does not use it."""

import numpy as np
import pytest

from batchlab import theory


def gd_losses(h, lr, steps, w):
    losses = [0.5 * np.sum(h * w**2)]
    for _ in range(steps):
        w = w - lr * h * w
        losses.append(0.5 * np.sum(h * w**2))
    return np.array(losses)


@pytest.mark.parametrize("lr", [0.05, 0.4, 0.5, 0.51])
def test_gd_risk_is_gradient_descent(lr):
    h, w = np.array([4.0, 1.0, 0.1]), np.array([1.0, -2.0, 3.0])
    np.testing.assert_allclose(theory.gd_risk(h, lr, 50, w), gd_losses(h, lr, 50, w), rtol=1e-11)


def test_gd_converges_below_the_limit_and_not_at_it():
    h, w = np.array([4.0, 1.0, 0.1]), np.ones(3)
    limit = theory.gd_max_lr(h)
    below, at, above = (gd_losses(h, f * limit, 3000, w) for f in (0.99, 1.0, 1.01))
    assert below[-1] < 1e-9 * below[0]
    assert at[-1] == pytest.approx(0.5 * 4.0)  # the stiffest direction swings for ever
    assert above[-1] > 1e9 * above[0]


@pytest.mark.parametrize("lr", [0.03, 0.2, 0.39, 0.49])
def test_gd_steps_counts_the_steps_of_the_slowest_direction(lr):
    h, eps = np.array([4.0, 1.0, 0.1]), 1e-4
    slowest = np.argmax(abs(1 - lr * h))
    alone = gd_losses(h, lr, 5000, np.eye(3)[slowest])
    spread = gd_losses(h, lr, 5000, np.ones(3))
    predicted = int(np.ceil(theory.gd_steps(h, lr, eps)))
    assert np.argmax(alone <= eps * alone[0]) == predicted
    assert np.argmax(spread <= eps * spread[0]) <= predicted


def test_gd_steps_at_its_edges():
    assert theory.gd_steps([4.0, 1.0], 0.5, 1e-3) == np.inf
    assert theory.gd_steps([2.0], 0.5, 1e-3) == 0  # one Newton step
    assert theory.gd_steps([1.0], 1e-12, 1e-3) == pytest.approx(np.log(1e3) / 2e-12, rel=1e-11)
