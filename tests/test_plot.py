"""The figures draw the data they are given, all of it and nothing else."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from batchlab import plot


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
