"""Training curves from metrics.json: losses, those on the test sets, metrics, and the best one."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from point_rend.config.checks import AVERAGED_RESULTS
from point_rend.evaluation.metric_names import TOTAL_LOSS, VALIDATION
from point_rend.evaluation.report.elements import Line, line_chart
from point_rend.utils.json_files import parse_json
from point_rend.utils.reading import read_bytes

MAX_BYTES = 1 << 30  # of metrics.json
LARGEST = 1e30
MAX_POINTS = 400  # maximum length of a curve; longer ones are averaged
METRICS = ("/AP", "/mIoU", "/PQ")  # endings of the metrics that are shown
BEST = "best/"  # begins the names of the values of a training that keeps its best weights
ITERATION, PATIENCE_LEFT = f"{BEST}iteration", f"{BEST}patience_left"

Points = Sequence[tuple[float, float]]  # iterations and values
Curves = Mapping[str, Points]  # by name of the metric


class BestPoint(NamedTuple):
    """The best evaluation of a training.

    Attributes:
        metric: Name of the metric that decided.
        value: Its value.
        iteration: Iteration after which it was measured.
    """

    metric: str
    value: float
    iteration: int


class TrainingCurves(NamedTuple):
    """The curves of a training, and its decisions.

    Attributes:
        curves: By name of the metric.
        best: The best evaluation, if the training keeps the best weights.
        stop: Iteration after which SOLVER.PATIENCE has ended the training, if it has.
    """

    curves: Curves
    best: BestPoint | None = None
    stop: int | None = None


def read_training(folder: Path) -> TrainingCurves:
    """Read the curves of a training: losses, point accuracy, metrics and the learning rate.

    Args:
        folder: OUTPUT_DIR of a run.

    Returns:
        The curves; none if the folder has no metrics.json. If an iteration was repeated after
        resuming, its last values count.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If a line is not JSON; the last line may be cut off.
    """
    values = _read_values(folder)
    best, stop = _decisions(values)
    shown = [key for key in values if is_shown(key) or (best and key == best.metric)]
    order = sorted(shown, key=lambda key: (TOTAL_LOSS not in key, "loss" not in key, key))
    curves = {key: averaged(sorted(values[key].items())) for key in order if len(values[key]) > 1}
    return TrainingCurves(curves, best, stop)


def _read_values(folder: Path) -> dict[str, dict[float, float]]:
    """Return the values of all metrics by iteration."""
    if not folder.is_dir():
        raise FileNotFoundError(f"run folder {folder} does not exist")
    file = folder / "metrics.json"
    content = b""
    if file.exists():
        content = read_bytes(file, what="metrics file", max_bytes=MAX_BYTES)
    lines = content.splitlines()
    values: dict[str, dict[float, float]] = {}
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
            if is_value(value):
                values.setdefault(key, {})[iteration] = value
    return values


def _decisions(values: Mapping[str, Mapping[float, float]]) -> tuple[BestPoint | None, int | None]:
    """Return the best evaluation, and the iteration at which no patience was left."""
    best = stop = None
    if values.get(ITERATION):
        last = max(values[ITERATION])
        for key in values.keys() - {ITERATION, PATIENCE_LEFT}:
            metric = key.removeprefix(BEST)
            if key != metric and last in values[key] and metric in values:
                best = BestPoint(metric, values[key][last], int(values[ITERATION][last]))
    left = values.get(PATIENCE_LEFT)
    if left and not left[max(left)] and max(left) == max(map(max, values.values())):
        stop = int(max(left))  # unless the training went on with more patience
    return best, stop


def is_value(value: Any) -> bool:
    """Return whether a value is a number that a chart can show; NaN is none."""
    return isinstance(value, int | float) and abs(value) < LARGEST


def is_shown(key: str) -> bool:
    """Return whether the page shows a metric."""
    key = key.removeprefix(f"{AVERAGED_RESULTS}/")
    return key in (TOTAL_LOSS, "point/accuracy", "lr") or (
        key.startswith(("loss_", f"{VALIDATION}/"))
        or (key.endswith(METRICS) and not key.startswith(BEST))
    )


def averaged(points: Points, max_points: int = MAX_POINTS) -> Points:
    """Shorten a curve to the means of equally long pieces; the last piece may be shorter."""
    length = math.ceil(len(points) / max_points)
    starts = range(0, len(points), length)
    means = [np.mean(points[start : start + length], axis=0) for start in starts]
    return [(float(x), float(y)) for x, y in means]


class Place(NamedTuple):
    """The place of a metric on the page.

    Attributes:
        chart: Title of its chart.
        words: Addition to the name of the training, such as ", validation".
        marker: Mark of its points.
    """

    chart: str
    words: str = ""
    marker: str = ""


def place_of(key: str) -> Place:
    """Return the place of a metric: losses on test sets and averaged weights join the others."""
    rest = key.removeprefix(f"{AVERAGED_RESULTS}/")
    words = ", averaged" if rest != key else ""
    marker = "ring" if rest != key else ""
    first, *middle, last = ["", *rest.split("/")] if "/" not in rest else rest.split("/")
    if first == VALIDATION and "loss" in last:
        name = "/".join(middle)
        on_set = f" on {name}" if name else ""
        return Place(last, f", validation{on_set}{words}", marker or "dot")
    return Place(rest, words, marker or ("dot" if key.endswith(METRICS) else ""))


def training_charts(
    trainings: Mapping[str, TrainingCurves], styles: Mapping[str, str]
) -> list[Element]:
    """Draw one chart for each metric that a training has logged, with its best point and its end.

    Args:
        trainings: The trainings by name.
        styles: CSS classes of their lines.
    """
    charts: dict[str, list[Line]] = {}
    ends: dict[str, dict[str, float]] = {}
    for name, training in trainings.items():
        for key, points in training.curves.items():
            place = place_of(key)
            best = training.best if training.best and training.best.metric == key else None
            line = Line(f"{name}{place.words}", styles[name], points, place.marker, _point(best))
            charts.setdefault(place.chart, []).append(line)
            if best and training.stop is not None:
                ends.setdefault(place.chart, {})[f"end of {name}"] = training.stop
    return [
        line_chart(chart, lines, labels=("iteration", chart), verticals=ends.get(chart, {}))
        for chart, lines in charts.items()
    ]


def _point(best: BestPoint | None) -> tuple[float, float] | None:
    return (best.iteration, best.value) if best else None


def decisions_of(name: str, training: TrainingCurves) -> str:
    """Describe the best evaluation of a training and its end; nothing if it kept no best weights.

    Args:
        name: Name of the training.
        training: The training.
    """
    best = training.best
    text = f"best {best.metric} {best.value:.4g} after iteration {best.iteration}" if best else ""
    if training.stop is not None:
        end = f"ended after iteration {training.stop}, out of patience"
        text = f"{text}; {end}" if text else end
    return f"{name}: {text}." if text else ""
