"""Training curves from metrics.json."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from point_rend.evaluation.report.elements import Line, line_chart

MAX_POINTS = 400  # of a training curve; longer ones are averaged


def read_metrics(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Read the curves of a training: losses, the points' accuracy, AP and the learning rate.

    Args:
        folder: OUTPUT_DIR of a run.

    Returns:
        Iterations and values by name; nothing if the folder has no metrics.json. Of an iteration
        that was done twice, after a resumption, the last counts.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a line is not JSON, other than the last one, which may be cut.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"run folder {folder} does not exist")
    file = folder / "metrics.json"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    curves: dict[str, dict[float, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            iteration = record.pop("iteration")
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{file}: line {number} is no JSON object with an iteration: {line:.60}"
            ) from error
        for key, value in record.items():
            if is_shown(key) and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(key, {})[iteration] = value
    order = sorted(curves, key=lambda key: (key != "total_loss", "loss" not in key, key))
    return {key: averaged(sorted(curves[key].items())) for key in order if len(curves[key]) > 1}


def is_shown(key: str) -> bool:
    """Tell whether a metric is worth a curve."""
    return key in ("total_loss", "point/accuracy", "lr") or (
        key.startswith("loss_") or key.endswith("/AP")
    )


def averaged(
    points: Sequence[tuple[float, float]], most: int = MAX_POINTS
) -> list[tuple[float, float]]:
    """Shorten a curve to means of equally many points in a row, the last perhaps of fewer."""
    length = math.ceil(len(points) / most)
    starts = range(0, len(points), length)
    means = [np.mean(points[start : start + length], axis=0) for start in starts]
    return [(float(x), float(y)) for x, y in means]


def training_charts(
    runs: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], styles: Mapping[str, str]
) -> list[Element]:
    """Draw what runs have logged, a chart for each metric."""
    keys = dict.fromkeys(key for curves in runs.values() for key in curves)
    charts = []
    for key in keys:
        lines = [Line(n, styles[n], curves[key]) for n, curves in runs.items() if key in curves]
        charts.append(line_chart(key, lines, labels=("iteration", key)))
    return charts
