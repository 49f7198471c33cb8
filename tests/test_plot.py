"""The figures draw the data they are given, all of it and nothing else."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from batchlab import plot, stats
from batchlab.curvature import Line
from batchlab.stats import Interval
from batchlab.throughput import StepLaw, Throughput, Timing


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_against_law_draws_points_law_and_intervals():
    ax = plot.against_law([4, 1, 2], [5, 1, 3], law=[4, 1, 2], low=[4, 0, 2], high=[7, 2, 4])
    law = ax.get_lines()[0]
    assert law.get_xdata().tolist() == [1, 2, 4]
    assert law.get_ydata().tolist() == [1, 2, 4]
    (bars,) = ax.containers
    assert bars.lines[0].get_ydata().tolist() == [5, 1, 3]
    segments = sorted(s[:, 1].tolist() for s in bars.lines[2][0].get_segments())
    assert segments == [[0, 2], [2, 4], [4, 7]]


def test_seed_band_is_the_median_and_the_range_of_the_seeds():
    values = np.random.default_rng(0).normal(size=(11, 5))
    values[3, 2] = np.nan  # one diverged seed leaves the other ten
    ax = plot.seed_band(range(5), values, label="loss")
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), np.nanmedian(values, axis=0))
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == np.nanmin(values)
    assert band.max() == np.nanmax(values)


SIZES = [1, 4, 16, 64]
STEPS = np.array([[1700, 500, 200, 125], [1650, 520, 190, 130]], dtype=float)


def timing(batch_size, seconds, low, high):
    return Timing(batch_size, Interval(seconds, low, high), (seconds,), True)


LAW = StepLaw(Interval(1e-3, 1e-3, 1e-3), Interval(1e-5, 1e-5, 1e-5), Interval(100.0, 90.0, 110.0), 0.5, 0.0)


def test_lr_ridge_colours_what_converged_hatches_what_did_not_and_marks_the_best():
    values = np.array([[0.5, 0.6, np.inf], [0.7, 0.4, 0.9]])
    ax = plot.lr_ridge([8, 64], [0.1, 0.2, 0.4], values, best=[0.1, 0.2])
    drawn = ax.get_images()[0].get_array()
    assert drawn.mask.T.tolist() == [[False, False, True], [False, False, False]]
    np.testing.assert_array_equal(drawn.T.compressed(), values[np.isfinite(values)])
    (hatched,) = ax.patches
    assert hatched.get_xy() == (-0.5, 1.5)
    assert ax.get_lines()[0].get_ydata().tolist() == [0, 1]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0.1", "0.2", "0.4"]


def test_steps_to_target_draws_the_seeds_the_law_and_perfect_scaling():
    fit = stats.fit_steps_to_target(SIZES, STEPS)
    ax = plot.steps_to_target(SIZES, STEPS, fit)
    law, perfect, *_ = ax.get_lines()
    assert law.get_label() == r"$S_{\min}\,(1 + B_{\mathrm{crit}} / B)$"  # the book's symbol, see notation.md
    x = law.get_xdata()
    np.testing.assert_allclose(law.get_ydata(), fit.s_min.estimate * (1 + fit.b_c.estimate / x))
    np.testing.assert_allclose(perfect.get_ydata(), fit.s_min.estimate * fit.b_c.estimate / x)
    (bars,) = ax.containers
    np.testing.assert_allclose(bars.lines[0].get_ydata(), np.exp(np.log(STEPS).mean(0)))
    segments = np.sort([s[:, 1] for s in bars.lines[2][0].get_segments()], axis=1)
    np.testing.assert_allclose(segments, np.sort(STEPS, axis=0).T)


def test_throughput_draws_rates_with_their_intervals_and_the_knee():
    measured = Throughput((timing(1, 1e-3, 0.5e-3, 2e-3), timing(100, 2e-3, 2e-3, 4e-3)), LAW)
    ax = plot.throughput(measured)
    (bars,) = ax.containers
    np.testing.assert_allclose(bars.lines[0].get_ydata(), [1000, 50_000])
    segments = [s[:, 1].tolist() for s in bars.lines[2][0].get_segments()]
    np.testing.assert_allclose(segments, [[500, 2000], [25_000, 50_000]])
    knee = ax.patches[0]
    assert (knee.get_x(), knee.get_width()) == (90, 20)


def test_along_training_leaves_out_what_the_data_do_not_say():
    nan = np.nan
    ax = plot.along_training([1, 10, 100], [20, nan, 40], [10, nan, -5], [30, nan, 80])
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [20, nan, 40])
    edges = {v for p in ax.collections[0].get_paths() for v in p.vertices[:, 1].round(6)}
    floor, ceiling = ax.get_ylim()
    assert edges == {10, 30, 80, round(floor, 6), round(ceiling, 6)}


def test_spectrum_and_line_draw_what_they_are_given():
    ax = plot.spectrum([0.5, 3, -1, 2])
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[3, 2, 0.5], [1]]
    ax = plot.loss_along_line(Line(np.array([0, 0.5, 1]), np.array([1.0, 3.0, 2.0])))
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[1, 3, 2], [1, 2]]


def test_functions_draw_on_the_axes_given_and_change_no_global_state():
    before = dict(matplotlib.rcParams)
    _, (left, right) = plt.subplots(1, 2)
    assert plot.seed_band([0, 1], np.ones((3, 2)), ax=right) is right
    assert not left.get_lines()
    assert dict(matplotlib.rcParams) == before


def test_the_style_file_loads():
    with plt.style.context(plot.STYLE):
        assert plt.rcParams["axes.spines.top"] is False


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: plot.against_law([], [], []), "x"),
        (lambda: plot.against_law([1, 2], [1], [1, 2]), "measured"),
        (lambda: plot.against_law([1, 2], [1, np.nan], [1, 2]), "measured"),
        (lambda: plot.against_law([1, 2], [1, 2], [1, 2], low=[0, 0]), "low, high"),
        (lambda: plot.against_law([1, 2], [1, 2], [1, 2], low=[2, 0], high=[3, 3]), "low, high"),
        (lambda: plot.seed_band([1, 2], [[1, 2]]), "values.shape"),
        (lambda: plot.seed_band([1, 2], [[1, 2, 3], [1, 2, 3]]), "values.shape"),
        (lambda: plot.seed_band([1, 2], [[1, np.inf], [1, 2]]), "values"),
        (lambda: plot.seed_band([1, 2], [[1, 2], [1, 2]], coverage=0), "coverage"),
        (lambda: plot.lr_ridge([8, 4], [0.1, 0.2], np.ones((2, 2))), "batch_sizes"),
        (lambda: plot.lr_ridge([4, 8], [0.0, 0.2], np.ones((2, 2))), "lrs"),
        (lambda: plot.lr_ridge([4, 8], [0.1, 0.2], np.ones((2, 3))), "values.shape"),
        (lambda: plot.lr_ridge([4, 8], [0.1, 0.2], np.ones((2, 2)), best=[0.1, 0.3]), "best"),
        (lambda: plot.steps_to_target(SIZES, STEPS[:, 1:], stats.fit_steps_to_target(SIZES, STEPS)), "steps"),
        (lambda: plot.steps_to_target(SIZES, -STEPS, stats.fit_steps_to_target(SIZES, STEPS)), "steps"),
        (
            lambda: plot.steps_to_target(SIZES, STEPS, stats.fit_steps_to_target(SIZES, np.ones((2, 4)))),
            "fit",
        ),
        (lambda: plot.along_training([0, 1], [1, 1], [1, 1], [1, 1]), "examples"),
        (lambda: plot.along_training([1, 2], [1, 1], [1], [1, 1]), "shapes"),
        (lambda: plot.along_training([1, 2], [1, 1], [2, 1], [3, 1]), "low, high"),
        (lambda: plot.spectrum([]), "eigenvalues"),
        (lambda: plot.spectrum([1, np.nan]), "eigenvalues"),
        (lambda: plot.loss_along_line(Line(np.array([0.0]), np.array([np.nan]))), "line.loss"),
    ],
)
def test_bad_input_is_refused_by_name(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_memory_stack_draws_each_kind_on_top_of_those_below():
    parts = {"weights": [3_000, 3_000, 3_000], "activations": [500, 1_000, 2_000], "batch": [0, 10, 20]}
    ax = plot.memory_stack([1, 2, 4], parts, unit="kB")
    bottom = np.zeros(3)
    for area, layer in zip(ax.collections, parts.values(), strict=True):
        (path,) = area.get_paths()
        drawn = {(x, round(y, 9)) for x, y in path.vertices}
        top = bottom + np.array(layer) / 1000
        for edge in (bottom, top):
            assert {(x, round(y, 9)) for x, y in zip([1, 2, 4], edge, strict=True)} <= drawn
        bottom = top
    assert ax.get_legend_handles_labels()[1] == list(parts)
    assert len({area.get_hatch() for area in ax.collections}) == len(parts)  # readable without colour
    assert ax.get_ylabel() == "memory (kB)"


@pytest.mark.parametrize(
    ("sizes", "parts", "unit", "named"),
    [
        ([1], {"a": [1]}, "kB", "sizes"),
        ([2, 1], {"a": [1, 1]}, "kB", "sizes"),
        ([1, 2], {}, "kB", "parts"),
        ([1, 2], [[1, 2]], "kB", "parts"),
        ([1, 2], {str(i): [1, 1] for i in range(7)}, "kB", "parts"),
        ([1, 2], {"a": [1, 2, 3]}, "kB", "parts"),
        ([1, 2], {"a": [1, -1]}, "kB", "parts"),
        ([1, 2], {"a": [1, 2]}, "KiB", "unit"),
    ],
)
def test_memory_stack_refuses_bad_input_by_name(sizes, parts, unit, named):
    with pytest.raises(ValueError, match=named):
        plot.memory_stack(sizes, parts, unit=unit)
