"""Results of the models, their matches with the objects, and the orders of the gallery."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util

from point_rend.data.checks.masks import compress_masks
from point_rend.evaluation.coco_ap import CocoAP
from point_rend.evaluation.coco_results import has_masks, read_results
from point_rend.evaluation.limits import Limit, warn_of_limit
from point_rend.evaluation.matching import Match, match_objects

TASKS = ("segm", "boundary")
GROUND_TRUTH = "ground-truth"
GROUND_TRUTH_STYLE = "style-ground-truth"


class Result(NamedTuple):
    """The results of one model.

    Attributes:
        name: Name of the model.
        style: CSS class of its color and dashes.
        precision: For each of `TASKS`, (T, R, K, A) as `CocoAP.precision` returns it.
        records: Results above the minimum score of the gallery, with masks as compressed RLE.
        warnings: Sentences about its metrics.
    """

    name: str
    style: str
    precision: dict[str, np.ndarray]
    records: list[dict[str, Any]]
    warnings: list[str]


class Item(NamedTuple):
    """A ground-truth object with the match of each model.

    Attributes:
        annotation: The object, its mask as compressed RLE.
        matches: One per result.
    """

    annotation: dict[str, Any]
    matches: tuple[Match | None, ...]

    def gain(self, measure: str) -> float | None:
        """Return the gain of the last result over the first; None unless both have a match."""
        first, last = self.matches[0], self.matches[-1]
        if first is None or last is None:
            return None
        return getattr(last, measure) - getattr(first, measure)

    def quality(self, measure: str) -> float:
        """Return the quality of the last result's match, 0 without a match."""
        last = self.matches[-1]
        return 0.0 if last is None else getattr(last, measure)


class Order(NamedTuple):
    """A way to sort the gallery.

    Attributes:
        title: Description for the list of orders.
        ranking: Indices of the items, best rank first; may leave out items.
    """

    title: str
    ranking: list[int]


def read_result(
    name: str,
    style: str,
    file: Path,
    content: Mapping[str, Any],
    evaluation: CocoAP,
    min_score: float,
    limit: Limit,
) -> Result:
    """Read and evaluate a result file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it does not fit the annotations, or has no masks.
    """
    records = read_results(file, content)
    if not has_masks(records, file):
        raise ValueError(f"{file}: result 0 has no 'segmentation'; the page compares masks")
    warnings = warn_of_limit(content, records, limit, str(file))
    checked = evaluation.checked(records)
    confident = [record for record in checked if record["score"] >= min_score]
    precision = {task: evaluation.precision(checked, task) for task in TASKS}
    return Result(name, style, precision, confident, warnings)


def ground_truth_objects(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the ground-truth objects, without crowds, with masks as compressed RLE."""
    objects = [x for x in content["annotations"] if not x.get("iscrowd", 0)]
    return with_compressed_masks(objects, content)


def with_compressed_masks(
    records: Sequence[dict[str, Any]], content: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return copies of records, whose masks were checked, with masks as compressed RLE."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    of_records = [sizes[record["image_id"]] for record in records]
    masks = compress_masks([record["segmentation"] for record in records], of_records)
    return [record | {"segmentation": mask} for record, mask in zip(records, masks, strict=True)]


def match_items(objects: Sequence[dict[str, Any]], results: Sequence[Result]) -> list[Item]:
    """Match ground-truth objects with the results of each model."""
    matches = [match_objects(objects, result.records) for result in results]
    return [Item(*both) for both in zip(objects, zip(*matches, strict=True), strict=True)]


def gallery_orders(items: Sequence[Item], names: Sequence[str]) -> list[Order]:
    """Rank items by failure and, if there are two results, by gain; larger objects win ties."""
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


def select_items(rankings: Sequence[Sequence[int]], count: int) -> set[int]:
    """Select the first item of each ranking, then the second of each, up to a count."""
    selected: set[int] = set()
    for rank in range(max(map(len, rankings), default=0)):
        for ranking in rankings:
            if len(selected) < count and rank < len(ranking):
                selected.add(ranking[rank])
    return selected


def mask_area(item: Item) -> int:
    """Return the area of an object in pixels."""
    return int(mask_util.area(item.annotation["segmentation"]))
