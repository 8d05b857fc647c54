"""Cells of an ablation: the figures of each in a file of its own (see tools/ablate.py)."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from point_rend.visualize import written_whole

Figures = dict[str, float]


def read_cell(file: Path, options: Sequence[str]) -> Figures | None:
    """Read the figures of a finished cell; None if it is not finished.

    Args:
        file: Where they are kept.
        options: Of train_net.py, of this command.

    Raises:
        ValueError: If it was begun with other options, or the file cannot be read.
    """
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if content["options"] != list(options):
        raise ValueError(
            f"{file} was measured with other options, {' '.join(content['options'])}: expected "
            "the same ones, or another --output"
        )
    return content["figures"]


def keep_cell(file: Path, options: Sequence[str], figures: Figures | None) -> None:
    """Write for :func:`read_cell` the figures of a finished cell, or None for one that is begun."""
    text = json.dumps({"options": list(options), "figures": figures}, indent=2)
    with written_whole(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def metric_of(figures: Figures, metric: str) -> float:
    """Look up a metric.

    Raises:
        ValueError: If it was not measured.
    """
    if metric not in figures:
        raise ValueError(f"--metric {metric}: expected one of {', '.join(sorted(figures))}")
    return figures[metric]


def draw_panels(
    metrics: Sequence[str], draw: Callable[[Any, str], object], file: Path, *, width: float = 6.0
) -> None:
    """Draw a panel for each metric.

    Args:
        metrics: Their names stand at the axes.
        draw: Takes the axes of a panel and the metric, and draws what is in it.
        file: A PNG.
        width: Of a panel, in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * len(metrics), 4), layout="constrained")
    for axes, metric in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        draw(axes, metric)
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
    with written_whole(file) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)
