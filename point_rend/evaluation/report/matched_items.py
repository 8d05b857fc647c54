"""Objects matched with the results of every model, and the orders of the gallery."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util

from point_rend.evaluation.matching import Match, match_objects

TRUTH = "truth"
TRUTH_STYLE = "style-truth"


class Result(NamedTuple):
    """What one model has found, and how it scores.

    Attributes:
        name: Of the model.
        style: Class of its color and dashes.
        precision: For each of `KINDS`, (T, R, K, A) as `InstanceScores.precision` returns it.
        records: The results that the gallery looks at, masks in compressed encoding.
    """

    name: str
    style: str
    precision: dict[str, np.ndarray]
    records: list[dict[str, Any]]


class Item(NamedTuple):
    """An object of the truth and what the models have made of it.

    Attributes:
        annotation: Of the object, its mask in compressed encoding.
        matches: One per result.
    """

    annotation: dict[str, Any]
    matches: tuple[Match | None, ...]

    def gain(self, measure: str) -> float | None:
        """Return by how much the last result is better than the first, if both have the object."""
        first, last = self.matches[0], self.matches[-1]
        if first is None or last is None:
            return None
        return getattr(last, measure) - getattr(first, measure)

    def quality(self, measure: str) -> float:
        """Return how good the last result is, 0 without one."""
        last = self.matches[-1]
        return 0.0 if last is None else getattr(last, measure)


class Order(NamedTuple):
    """A way to sort the gallery.

    Attributes:
        title: What comes first.
        ranking: Indices of the items that it ranks, in order.
    """

    title: str
    ranking: list[int]


def items_of(objects: Sequence[dict[str, Any]], results: Sequence[Result]) -> list[Item]:
    """Pair objects of the truth with the results."""
    matches = [match_objects(objects, result.records) for result in results]
    return [Item(*both) for both in zip(objects, zip(*matches, strict=True), strict=True)]


def orders_of(items: Sequence[Item], names: Sequence[str]) -> list[Order]:
    """Rank items by gain, if there are two results, and by failure; of equals the larger first."""
    by_area = sorted(range(len(items)), key=lambda i: -mask_area(items[i]))
    measures = {"boundary_iou": "Boundary IoU", "iou": "mask IoU"}
    orders = []
    if len(names) > 1:
        for sign, word in ((-1, "gain"), (1, "loss")):
            for measure, title in measures.items():
                gains = {i: items[i].gain(measure) for i in by_area}
                known = {i: sign * gain for i, gain in gains.items() if gain is not None}
                ranking = sorted(known, key=known.__getitem__)
                orders.append(Order(f"largest {word} in {title} first", ranking))
    for measure, title in measures.items():
        ranking = sorted(by_area, key=lambda i: items[i].quality(measure))
        orders.append(Order(f"failures of {names[-1]}: lowest {title} first", ranking))
    return orders


def chosen(rankings: Sequence[Sequence[int]], count: int) -> set[int]:
    """Take the first of every ranking in turn, then the second, until there are enough."""
    taken: set[int] = set()
    for place in range(max(map(len, rankings), default=0)):
        for ranking in rankings:
            if len(taken) < count and place < len(ranking):
                taken.add(ranking[place])
    return taken


def mask_area(item: Item) -> int:
    """Return the area of an object in pixels."""
    return int(mask_util.area(item.annotation["segmentation"]))
