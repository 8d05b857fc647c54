"""Training curves from metrics.json."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from point_rend.evaluation.report.elements import Line, line_chart
from point_rend.utils.json_files import parse_json
from point_rend.utils.reading import read_bytes

MAX_BYTES = 1 << 30  # of metrics.json
LARGEST = 1e30
MAX_POINTS = 400  # maximum length of a curve; longer ones are averaged

Points = Sequence[tuple[float, float]]  # iterations and values
Curves = Mapping[str, Points]  # by name of the metric


def read_metrics(folder: Path) -> dict[str, Points]:
    """Read the curves of a training: losses, point accuracy, AP and the learning rate.

    Args:
        folder: OUTPUT_DIR of a run.

    Returns:
        The curves; none if the folder has no metrics.json. If an iteration was repeated after
        resuming, its last values count.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If a line is not JSON; the last line may be cut off.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"run folder {folder} does not exist")
    file = folder / "metrics.json"
    content = b""
    if file.exists():
        content = read_bytes(file, what="metrics file", max_bytes=MAX_BYTES)
    lines = content.splitlines()
    curves: dict[str, dict[float, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line, f"{file}: line {number}")
            iteration = record.pop("iteration")
            if not is_value(iteration):
                raise ValueError
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{file}: line {number} is not a JSON object with an iteration: "
                f"{line[:60].decode(errors='replace')}"
            ) from error
        for key, value in record.items():
            if is_shown(key) and is_value(value):
                curves.setdefault(key, {})[iteration] = value
    order = sorted(curves, key=lambda key: (key != "total_loss", "loss" not in key, key))
    return {key: averaged(sorted(curves[key].items())) for key in order if len(curves[key]) > 1}


def is_value(value: Any) -> bool:
    """Return whether a value is a number that a chart can show; NaN is none."""
    return isinstance(value, int | float) and abs(value) < LARGEST


def is_shown(key: str) -> bool:
    """Return whether the page shows a metric."""
    return key in ("total_loss", "point/accuracy", "lr") or (
        key.startswith("loss_") or key.endswith("/AP")
    )


def averaged(points: Points, max_points: int = MAX_POINTS) -> Points:
    """Shorten a curve to the means of equally long pieces; the last piece may be shorter."""
    length = math.ceil(len(points) / max_points)
    starts = range(0, len(points), length)
    means = [np.mean(points[start : start + length], axis=0) for start in starts]
    return [(float(x), float(y)) for x, y in means]


def training_charts(runs: Mapping[str, Curves], styles: Mapping[str, str]) -> list[Element]:
    """Draw one chart for each metric that a run has logged."""
    keys = dict.fromkeys(key for curves in runs.values() for key in curves)
    charts = []
    for key in keys:
        lines = [Line(n, styles[n], curves[key]) for n, curves in runs.items() if key in curves]
        charts.append(line_chart(key, lines, labels=("iteration", key)))
    return charts
