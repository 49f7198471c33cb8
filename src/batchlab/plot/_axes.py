"""What the figures share."""

import matplotlib.pyplot as plt


def axes(ax):
    """``ax``, or that of a new figure."""
    return plt.subplots()[1] if ax is None else ax


def points(ax, x, y, low, high, color, label):
    """Draw hollow points in a line's colour, each with its interval [low, high]."""
    ends = [y - low, high - y]
    ax.errorbar(x, y, yerr=ends, fmt="o", color=color, markerfacecolor="white", capsize=3, label=label)
