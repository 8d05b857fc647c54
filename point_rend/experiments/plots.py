"""Plots of measurements as PNG files, a panel for each quantity."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from point_rend.utils.files import atomic_file


def plot_panels(
    titles: Sequence[str],
    plot: Callable[[Any, str], object],
    file: Path,
    *,
    width: float = 6.0,
    height: float = 4.0,
    values: str = "y",
) -> None:
    """Plot a panel for each quantity, next to each other.

    Args:
        titles: Titles of the quantities, which label the axes of their values.
        plot: Plots a quantity on the axes of its panel.
        file: PNG file.
        width, height: Size of a panel in inches.
        values: Axis of the values, x or y. With x, all panels share their rows, from top to bottom.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * len(titles), height), layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False, sharey=values == "x")[0]
    for axes, title in zip(panels, titles, strict=True):
        plot(axes, title)
        axes.set(**{f"{values}label": title})
        axes.grid(axis="both" if values == "y" else "x", alpha=0.3)
    if values == "x":
        panels[0].invert_yaxis()
    with atomic_file(file) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)
