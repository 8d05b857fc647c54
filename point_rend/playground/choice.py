"""The choices of a user on the page, and the pictures that they select."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from point_rend.playground.scenes import LAST, Layer, Row

Pair = tuple[np.ndarray, np.ndarray]  # after a step, and rendered


class Choice(NamedTuple):
    """The state of the controls.

    Attributes:
        layer: Name of a layer; of the first one if there is no such layer.
        step: Index of a step.
        threshold: Lowest score of an instance.
        classes: Names of the classes to show; all of them if there are none.
        points: Whether to draw the points of the step.
        key: Of the segment to enlarge; the first one if it is not shown.
    """

    layer: str = ""
    step: int = 0
    threshold: float = 0.5
    classes: Sequence[str] = ()
    points: bool = True
    key: int | None = None


class Shown(NamedTuple):
    """The pictures and tables for a choice.

    Attributes:
        whole: The whole picture, (H, W, 3) uint8 BGR.
        closeup: The enlarged segment; None if there is none.
        rows: The segments.
        enlarged: The one that is enlarged.
        hidden: Number of segments that the choice leaves out.
        step: Index of the step.
        steps: Descriptions of all steps.
    """

    whole: Pair
    closeup: Pair | None
    rows: list[Row]
    enlarged: Row | None
    hidden: int
    step: int
    steps: list[str]


def show(layers: Mapping[str, Layer], choice: Choice) -> Shown:
    """Draw what a choice selects of a segmented picture."""
    layer = layers.get(choice.layer) or next(iter(layers.values()))
    rows = layer.rows(choice.threshold, choice.classes)
    keys = [row.key for row in rows]
    steps = layer.steps
    step = max(0, min(choice.step, len(steps) - 1))
    whole = (
        layer.whole(step, keys, points=choice.points),
        layer.whole(LAST, keys),
    )
    enlarged = next((row for row in rows if row.key == choice.key), rows[0] if rows else None)
    closeup = None
    if enlarged is not None:
        closeup = (
            layer.closeup(step, enlarged.key, points=choice.points),
            layer.closeup(LAST, enlarged.key),
        )
    return Shown(whole, closeup, rows, enlarged, len(layer.rows()) - len(rows), step, steps)
