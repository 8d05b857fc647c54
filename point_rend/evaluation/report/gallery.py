"""The gallery of `report.py`: which objects it shows, in which orders, and how."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from detectron2.data.detection_utils import read_image

from point_rend.evaluation.matching import MIN_IOU
from point_rend.evaluation.report.cards import card
from point_rend.evaluation.report.elements import element, legend
from point_rend.evaluation.report.matched_items import (
    TRUTH,
    TRUTH_STYLE,
    Item,
    Order,
    Result,
    chosen,
    orders_of,
)

MATCHING = (
    "Objects and results of one class, with a score of {min_score:g} or more, are paired one to "
    "one, the best mask IoU first, from {min_iou:g} on. Boundary IoU is the IoU of the inner bands "
    "along the boundaries. What has no match counts as a failure of IoU 0, and not as a gain or a "
    "loss."
)


def picker(label: str, name: str, options: Mapping[str, str], selected: str = "") -> Element:
    """Make a labeled list of choices.

    Args:
        label: What is chosen.
        name: Id of the list.
        options: Their texts by their values.
        selected: Value of the one that is chosen first.
    """
    entries = [
        element("option", {"value": value} | ({"selected": ""} if value == selected else {}), text)
        for value, text in options.items()
    ]
    return element(
        "label",
        {},
        element("span", {}, label),
        element("select", {"id": name, "autocomplete": "off"}, *entries),
    )


def controls(
    shown: Sequence[Item],
    orders: Sequence[Order],
    results: Sequence[Result],
    names: Mapping[int, str],
) -> Element:
    """Make what sorts and filters the gallery and chooses what its cards compare."""
    counts = Counter(item.annotation["category_id"] for item in shown)
    classes = {str(key): f"{names[key]} ({counts[key]})" for key in names if key in counts}
    if len(results) > 1:
        first, last = (result.name for result in results)
        matched = {"11": "both", "10": f"{first} only", "01": f"{last} only", "00": "neither"}
    else:
        matched = {"1": results[0].name, "0": "nothing"}
    layers = {str(k): result.name for k, result in enumerate(results)} | {TRUTH: "ground truth"}
    left, right = list(layers)[:2]
    sorts = {str(k): order.title for k, order in enumerate(orders)}
    box = {"type": "checkbox", "id": "outline", "checked": "", "autocomplete": "off"}
    return element(
        "form",
        {"class": "controls", "aria-label": "gallery"},
        picker("Class", "class", {"": "all"} | classes),
        picker("Matched by", "matched", {"": "any"} | matched),
        picker("Sort", "sort", sorts, "0"),
        picker("Left", "left", layers, left),
        picker("Right", "right", layers, right),
        element("label", {"class": "check"}, element("input", box), "outline of the truth"),
    )


def gallery(
    content: Mapping[str, Any],
    items: Sequence[Item],
    results: Sequence[Result],
    image_root: Path,
    count: int,
    *,
    min_score: float,
    without_photographs: bool = False,
) -> list[Element]:
    """Show the objects that matter most.

    Args:
        content: The annotations.
        items: All objects.
        results: Of the models.
        image_root: Folder of the images.
        count: So many objects are shown at most.
        min_score: Of the results' records.
        without_photographs: Show plain gray in place of the images.

    Raises:
        OSError: If an image is missing or cannot be read.
        ValueError: If an image has not the size that the annotations say.
    """
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = {image["id"]: image for image in content["images"]}
    orders = orders_of(items, [result.name for result in results])
    picked = chosen([order.ranking for order in orders], count)
    places = [{item: rank for rank, item in enumerate(order.ranking)} for order in orders]
    ranks = {item: [place.get(item, len(items)) for place in places] for item in picked}
    cards = []
    for number, index in enumerate(sorted(picked, key=ranks.__getitem__)):
        record = images[items[index].annotation["image_id"]]
        if without_photographs:
            image = np.full((record["height"], record["width"], 3), 80, np.uint8)
        else:
            image = read_photograph(image_root / record["file_name"], record)
        words = names, record["file_name"], image
        cards.append(card(number, items[index], ranks[index], results, *words))
    lines = {result.name: result.style for result in results} | {"ground truth": TRUTH_STYLE}
    left_out = len(items) - len(cards)
    note = f"{len(cards)} of {len(items)} objects are on this page"
    if left_out:
        note += (
            f", the first of every order in turn: at least the first {count // len(orders)} of "
            f"each; {left_out} are left out (--items)"
        )
    return [
        element("p", {}, f"{note}. ", MATCHING.format(min_score=min_score, min_iou=MIN_IOU)),
        legend(lines, "keys"),
        controls([items[index] for index in picked], orders, results, names),
        element("p", {"id": "status", "role": "status"}),
        element("ol", {"id": "cards", "class": "cards"}, *cards),
    ]


def read_photograph(file: Path, record: Mapping[str, Any]) -> np.ndarray:
    """Read an image (H, W, 3) uint8, BGR, of the size that its record says.

    Raises:
        OSError: If it is missing or cannot be read.
        ValueError: If it has another size.
    """
    if not file.exists():
        raise FileNotFoundError(f"image {file} does not exist")
    image = read_image(str(file), "BGR")
    expected = (record["height"], record["width"])
    if image.shape[:2] != expected:
        raise ValueError(
            f"image {file} is of (height, width) {image.shape[:2]}, but the annotations say "
            f"{expected}"
        )
    return image
