"""Settings at another batch size: against theory that is solved exactly, and against simulation."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchlab as bl
from batchlab import least_squares, theory

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "ema": 0.999, "warmup_steps": 500, "total_examples": 10**6}
ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "evaluate_every_steps": 100}
CASES = [("sgd", SGD), ("adam", ADAM), ("adamw", ADAM)]
sizes = st.integers(8, 512)


@given(sizes, st.sampled_from(CASES), st.sampled_from([None, 50.0]))
def test_equal_sizes_change_nothing(size, case, noise_scale):
    optimizer, settings = case
    same = bl.rescale(settings, size, size, optimizer=optimizer, noise_scale=noise_scale, critical_batch=1)
    assert same.settings == settings and set(same.rules) == set(settings)


@given(sizes, sizes, st.sampled_from(CASES), st.sampled_from([None, 50.0]))
def test_there_and_back(a, b, case, noise_scale):
    optimizer, settings = case
    there = bl.rescale(settings, a, b, optimizer=optimizer, noise_scale=noise_scale).settings
    back = bl.rescale(there, b, a, optimizer=optimizer, noise_scale=noise_scale).settings
    assert back == pytest.approx(settings, rel=1e-9)


@given(sizes, sizes, sizes, st.sampled_from(CASES), st.sampled_from([None, 50.0]))
def test_two_moves_are_one(a, b, c, case, noise_scale):
    optimizer, settings = case
    options = dict(optimizer=optimizer, noise_scale=noise_scale)
    half = bl.rescale(settings, a, b, **options).settings
    assert bl.rescale(half, b, c, **options).settings == pytest.approx(bl.rescale(settings, a, c, **options).settings)


# --- Theory that is solved exactly ---------------------------------------------------------------------------------


@given(st.integers(1, 100), st.integers(1, 4096), st.integers(1, 4096))
def test_the_gain_is_the_exact_ratio_of_best_rates(dimension, a, b):
    # noiseless isotropic least squares: B / (B + d + 1), and its noise scale is d + 1 at every error
    best = [least_squares.isotropic_lr(dimension, size) for size in (a, b)]
    noise_scale = least_squares.noise_scales(np.ones(dimension), np.ones(dimension))[0]
    moved = bl.rescale({"lr": best[0]}, a, b, optimizer="sgd", noise_scale=noise_scale)
    assert moved.settings["lr"] == pytest.approx(best[1], rel=1e-12)


def test_the_gain_bends_from_the_linear_rule_to_none():
    def factor(a, b, optimizer="sgd"):
        return bl.rescale({"lr": 1.0}, a, b, optimizer=optimizer, noise_scale=1000).settings["lr"]

    assert factor(1, 2) == pytest.approx(2, rel=1e-2) and factor(10**6, 2 * 10**6) == pytest.approx(1, rel=1e-2)
    assert factor(1, 2, "adam") == pytest.approx(math.sqrt(2), rel=1e-2)
    # Johnson et al. 2020: (sigma^2 + |g|^2) / (sigma^2 / S + |g|^2), sigma^2 the variance of the smaller batch
    variance, squared_norm, scale = 3.0, 2.0, 8
    at_small = variance / squared_norm
    gain = (variance + squared_norm) / (variance / scale + squared_norm)
    moved = bl.rescale({"lr": 1.0}, 16, 16 * scale, optimizer="sgd", noise_scale=at_small * 16)
    assert moved.settings["lr"] == pytest.approx(gain, rel=1e-12)


@given(st.integers(1, 64), st.integers(1, 64))
def test_sgd_settles_at_the_same_floor(a, b):
    # the noise floor of heavy ball at small rates: (lr / (1 - momentum)) / B decides, whatever the momentum becomes
    old = {"lr": 1e-7, "momentum": 0.5}
    for keep in (None, ()):
        new = bl.rescale(old, a, b, optimizer="sgd", keep=keep).settings
        assert (new["momentum"] == 0.5) == (keep is None or a == b)
        before, after = (
            theory.heavy_ball_variance(1.0, 1.0, s["lr"], s["momentum"], size) for s, size in ((old, a), (new, b))
        )
        assert after == pytest.approx(before, rel=1e-4)


@given(st.integers(1, 64), st.integers(1, 64))
def test_adam_settles_at_the_same_floor(a, b):
    new = bl.rescale({"lr": 1e-3}, a, b, optimizer="adam").settings["lr"]
    floors = [theory.adam_variance(1.0, 1.0, lr, size) for lr, size in ((1e-3, a), (new, b))]
    assert floors[1] == pytest.approx(floors[0], rel=1e-12)


def adam_chains(settings, batch_size, examples, chains=4000):
    """The variance over chains of Adam on 1/2 w^2 under gradient noise of variance 1 / batch_size."""
    rng, (b1, b2) = np.random.default_rng(0), (settings["beta1"], settings["beta2"])
    w, m, v = np.zeros(chains), np.zeros(chains), np.zeros(chains)
    for t in range(1, examples // batch_size + 1):
        g = w + rng.normal(0, batch_size**-0.5, chains)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        w = w - settings["lr"] * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + settings["eps"])
    return w.var()


def test_adam_simulated_is_the_same_at_a_quarter_of_the_batch_and_not_without_the_rule():
    # far below the noise scale; an average over 4,000 chains has a standard error of 2.2%
    old = {"lr": 0.01, "beta1": 0.5, "beta2": 0.98, "eps": 1e-3}
    new = bl.rescale(old, 16, 4, optimizer="adam").settings
    before, after, unscaled = (adam_chains(s, b, 6400) for s, b in ((old, 16), (new, 4), (old, 4)))
    assert after == pytest.approx(before, rel=0.1)
    assert unscaled > 1.5 * before


def ema_variance(lr, noise, decay):
    """Stationary variance of a <- decay a + (1 - decay) w with w' = (1 - lr) w - lr noise: from both recursions."""
    rho, variance = 1 - lr, lr**2 * noise / (1 - (1 - lr) ** 2)
    shared = (1 - decay) * variance / (1 - decay * rho)  # E[a w]
    return ((1 - decay) ** 2 * variance + 2 * decay * (1 - decay) * rho * shared) / (1 - decay**2)


def test_the_average_of_weights_has_the_same_variance():
    old = {"lr": 1e-3, "ema": 0.9999}
    new = bl.rescale(old, 1, 64, optimizer="sgd").settings
    before = ema_variance(old["lr"], 1.0, old["ema"])
    assert ema_variance(new["lr"], 1 / 64, new["ema"]) == pytest.approx(before, rel=0.06)
    assert ema_variance(new["lr"], 1 / 64, old["ema"]) < 0.1 * before  # an average over 64 times the examples


@given(sizes, sizes)
def test_decays_forget_half_after_as_many_examples(a, b):
    new = bl.rescale({"lr": 1.0, "beta2": 0.95}, a, b, optimizer="adam").settings["beta2"]
    half_life = [math.log(0.5) / math.log(decay) * size for decay, size in ((0.95, a), (new, b))]
    assert half_life[1] == pytest.approx(half_life[0])


@given(sizes, sizes, st.sampled_from(["none", "sqrt", "linear"]))
def test_decoupled_decay_keeps_its_timescale_whatever_the_rate_does(a, b, rule):
    new = bl.rescale(ADAM, a, b, optimizer="adamw", rule=rule).settings
    timescale = [size / (s["lr"] * s["weight_decay"]) for s, size in ((ADAM, a), (new, b))]
    assert timescale[1] == pytest.approx(timescale[0])
    for optimizer, settings in CASES[:2]:  # part of the loss
        kept = bl.rescale(settings, a, b, optimizer=optimizer, rule=rule).settings
        assert kept["weight_decay"] == settings["weight_decay"]


# --- What is asked for, and how it prints ---------------------------------------------------------------------------


def test_settings_of_every_kind_four_times_the_batch():
    expected = {
        "lr": 0.4,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "ema": 0.999**4,
        "warmup_steps": 125,
        "total_examples": 10**6,
    }
    assert bl.rescale(SGD, 64, 256, optimizer="sgd").settings == pytest.approx(expected)
    moved = expected | {"lr": 0.4 * (1 - 0.9**4) / 0.1, "momentum": 0.9**4}
    assert bl.rescale(SGD, 64, 256, optimizer="sgd", keep=()).settings == pytest.approx(moved)
    new = bl.rescale(ADAM, 64, 256, optimizer="adamw").settings
    assert new == pytest.approx(
        {
            "lr": 2e-3,
            "beta1": 0.9**4,
            "beta2": 0.95**4,
            "eps": 5e-9,
            "weight_decay": 0.2,
            "evaluate_every_steps": 25,
        }
    )


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("sqrt", 2), ("linear", 4), ("gain", (1 + 2) / (1 + 0.5))])
def test_a_rule_that_is_asked_for(rule, factor):
    noise_scale = 128 if rule == "gain" else None
    moved = bl.rescale({"lr": 1.0}, 64, 256, optimizer="sgd", rule=rule, noise_scale=noise_scale)
    assert moved.settings["lr"] == pytest.approx(factor)


def test_kept_settings_are_left_alone_and_lr_knows():
    new = bl.rescale(SGD, 64, 256, optimizer="sgd", keep=("momentum", "ema"))
    assert (new.settings["momentum"], new.settings["ema"], new.settings["lr"]) == (0.9, 0.999, pytest.approx(0.4))
    new = bl.rescale(ADAM, 64, 256, optimizer="adamw", keep=("lr",))
    assert new.settings["lr"] == 1e-3 and new.settings["weight_decay"] == pytest.approx(0.4)  # Bergsma: in proportion


def test_a_dataclass_comes_back_as_one():
    @dataclass(frozen=True)
    class Settings:
        lr: float
        momentum: float | None = None
        warmup_steps: int = 0

    given = Settings(lr=0.1, warmup_steps=100)
    new = bl.rescale(given, 32, 64, optimizer="sgd")
    assert new.settings == replace(given, lr=0.2, warmup_steps=50) and "momentum" not in new.rules
    assert given == Settings(0.1, None, 100) and str(new).count("\n") == 2


def test_the_table():
    assert str(bl.rescale(ADAM, 512, 128, optimizer="adamw")) == (
        "                      B = 512  B = 128   rule\n"
        "lr                    0.001    0.0005    square root (Malladi 2022, Hilton 2022)\n"
        "beta1                 0.9      0.974004  power r (Malladi 2022, to first order)\n"
        "beta2                 0.95     0.987259  power r: half-life in examples (Marek 2025)\n"
        "eps                   1e-08    2e-08     / sqrt(r) (Malladi 2022)\n"
        "weight_decay          0.1      0.05      timescale in examples (Wang & Aitchison 2025, Bergsma 2025)\n"
        "evaluate_every_steps  100      400       / r: as many examples"
    )


def test_past_the_critical_batch():
    for a, b in ((64, 256), (256, 64)):
        with pytest.raises(ValueError, match="batch_size = 256: expected at most critical_batch = 128"):
            bl.rescale({"lr": 0.1}, a, b, optimizer="sgd", critical_batch=128)
        with pytest.warns(UserWarning, match="batch_size = 256 is above critical_batch = 128") as caught:
            moved = bl.rescale({"lr": 0.1}, a, b, optimizer="sgd", critical_batch=128, past_critical="warn")
        assert moved.settings["lr"] == pytest.approx(0.1 * b / a) and caught[0].filename == __file__
    assert bl.rescale({"lr": 0.1}, 64, 128, optimizer="sgd", critical_batch=128).settings["lr"] == 0.2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(settings=[0.1]), "settings = .* a mapping or a dataclass"),
        (dict(settings={"momentum": 0.9}), "an lr among them"),
        (dict(settings={"lr": 0.1, "beta2": 0.9}), "settings = 'beta2': expected of 'sgd' lr, momentum"),
        (dict(settings={"lr": 0.1, "warmup": 9}), "settings = 'warmup': .* \\*_steps or \\*_examples"),
        (dict(settings={"lr": 0.1, 3: 9}), "settings = 3: expected"),
        (dict(settings={"lr": 0.0}), "lr = 0.0: expected a finite number, above 0"),
        (dict(settings={"lr": math.nan}), "lr = nan"),
        (dict(settings={"lr": "0.1"}), "lr = '0.1'"),
        (dict(settings={"lr": 0.1, "momentum": 1.0}), "momentum = 1.0: .* below 1"),
        (dict(settings={"lr": 0.1, "ema": -0.1}), "ema = -0.1"),
        (dict(settings={"lr": 0.1, "weight_decay": -1}), "weight_decay = -1"),
        (dict(settings={"lr": 0.1, "warmup_steps": math.inf}), "warmup_steps = inf"),
        (dict(settings={"lr": 0.1, "eps": 0}, optimizer="adam"), "eps = 0"),
        (dict(batch_size=0), "batch_size = 0: expected a whole number, at least 1"),
        (dict(batch_size=32.0), "batch_size = 32.0"),
        (dict(new_batch_size=True), "new_batch_size = True"),
        (dict(optimizer="lamb"), "optimizer = 'lamb': expected one of 'sgd', 'adam', 'adamw'"),
        (dict(rule="square root"), "rule = 'square root': expected one of"),
        (dict(rule="gain"), "noise_scale = None: expected a number of examples"),
        (dict(rule="linear", noise_scale=9), "noise_scale = 9: expected None with rule='linear'"),
        (dict(noise_scale=0), "noise_scale = 0: expected a finite number, above 0"),
        (dict(critical_batch=-5), "critical_batch = -5"),
        (dict(past_critical="ignore"), "past_critical = 'ignore'"),
        (dict(keep="lr"), "keep = 'lr': expected a tuple of names from the settings: lr"),
        (dict(keep=("momentum",)), "keep = \\('momentum',\\)"),
    ],
)
def test_bad_input(change, says):
    good = dict(settings={"lr": 0.1}, batch_size=32, new_batch_size=64, optimizer="sgd")
    with pytest.raises(ValueError, match=says):
        bl.rescale(**good | change)
