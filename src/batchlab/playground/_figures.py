"""The plain figures of the pieces, where nothing can move: what a piece shows before it is touched, drawn once."""

import io

import numpy as np

from batchlab.playground import twin
from batchlab.playground._piece import pieces

STEPS = 400  # of Descent


def png(name, settings):
    """Return the figure of a piece as the bytes of a PNG."""
    import matplotlib.style
    from matplotlib.figure import Figure

    from batchlab.plot import STYLE

    file = io.BytesIO()
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(7.6, 3.5 if name != "change" else 2.8))
        DRAWING[name](figure, settings)
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _descent(figure, s):
    loss = twin.SURFACES[s["surface"]][0]
    path = twin.walk(STEPS, **s)
    plane, curve = figure.subplots(1, 2)
    x, y = np.meshgrid(np.linspace(-3, 3, 121), np.linspace(-2.1, 2.1, 85))
    plane.contour(x, y, loss(x, y), levels=0.05 * 2.0 ** np.arange(8), colors="0.75", linewidths=0.8)
    plane.plot(*path[:, 0].T, linestyle="-", linewidth=0.8)
    plane.plot(*path[-1].T, "o", markersize=3, alpha=0.7)
    plane.grid(False)
    plane.set(xlim=(-3, 3), ylim=(-2.1, 2.1), xlabel="x", ylabel="y", title=f"after {STEPS} steps")
    curve.plot(twin.mean_loss(path, s["surface"]), label=f"mean of {s['particles']} runs")
    curve.axhline(twin.floor(**s), color="0.3", linestyle="--", label="noise floor")
    curve.set(yscale="log", xlabel="steps", ylabel="loss above the minimum")
    curve.legend()


def _noise(figure, s):
    points, laws = twin.scatter(**s), twin.laws(**s)
    ax = figure.subplots()
    ax.plot(*points.T, "o", color="C0", markersize=3, alpha=0.6, label="200 batches")
    angle, miss = np.linspace(0, 2 * np.pi, 200), np.sqrt(laws["miss"])
    ax.plot(1 + miss * np.cos(angle), miss * np.sin(angle), "--", color="0.3", label="their typical distance")
    ax.annotate("", (1, 0), (0, 0), arrowprops={"arrowstyle": "-|>", "linewidth": 2, "color": "C1"})
    ax.set(xlabel="along the true gradient (its length = 1)", ylabel="across it", aspect="equal")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _target(figure, s):
    star = twin.best_batch(**s)
    sizes = np.geomspace(max(s["devices"], star / 64), star * 64, 200)
    ax = figure.subplots()
    ax.plot(sizes, [twin.plan(size, **s)["seconds"] for size in sizes])
    ax.plot(star, twin.plan(star, **s)["seconds"], "D", color="C1", label=f"fastest: {star:.0f}")
    yours = {"color": "black", "markerfacecolor": "white", "label": f"yours: {s['batch_size']}"}
    ax.plot(s["batch_size"], twin.plan(**s)["seconds"], "o", **yours)
    for x, name in ((s["critical_batch"], "critical"), (s["knee"] * s["devices"], "knee")):
        ax.axvline(x, color="0.5", linestyle=":")
        ax.annotate(f" {name}", (x, 0.95), xycoords=("data", "axes fraction"), va="top")
    ax.set(xscale="log", yscale="log", xlabel="batch size (examples)", ylabel="seconds to the target")
    ax.legend()


def _change(figure, s):
    new, rules, old = twin.rescaled(**s)
    rows = [[name, f"{old[name]:.6g}", f"{new[name]:.6g}", rules[name]] for name in old]
    ax = figure.subplots()
    ax.set_axis_off()
    heads = ["setting", f"B = {s['batch_size']}", f"B = {s['new_batch_size']}", "rule"]
    grid = ax.table(rows, colLabels=heads, loc="center", cellLoc="left", colWidths=[0.2, 0.14, 0.14, 0.52])
    grid.scale(1, 1.6)
    ax.set_title(pieces()["change"]["title"])


DRAWING = {"descent": _descent, "noise": _noise, "target": _target, "change": _change}
