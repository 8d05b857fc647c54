"""The gallery: selection of objects, its controls and its cards."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from point_rend.evaluation.matching import MIN_IOU
from point_rend.evaluation.photographs import read_photograph
from point_rend.evaluation.report.cards import card
from point_rend.evaluation.report.elements import element, legend
from point_rend.evaluation.report.matched_items import (
    GROUND_TRUTH,
    GROUND_TRUTH_STYLE,
    Item,
    Order,
    Result,
    gallery_orders,
    select_items,
)

MATCHING_NOTE = (
    "Objects are matched one to one with results of the same class and a score of at least "
    "{min_score:g}, in order of falling mask IoU, down to an IoU of {min_iou:g}. Boundary IoU is "
    "the IoU of the inner bands along the boundaries. An object without a match counts as a "
    "failure of IoU 0, but not as a gain or a loss."
)


def select_box(label: str, name: str, options: Mapping[str, str], selected: str = "") -> Element:
    """Build a labeled list of options.

    Args:
        label: Label of the list.
        name: Id of the list.
        options: Texts by value.
        selected: Value of the option that is selected at first.
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
    """Build the form that filters and sorts the gallery and selects the masks to compare."""
    counts = Counter(item.annotation["category_id"] for item in shown)
    classes = {str(key): f"{names[key]} ({counts[key]})" for key in names if key in counts}
    if len(results) > 1:
        first, last = (result.name for result in results)
        matched = {"11": "both", "10": f"{first} only", "01": f"{last} only", "00": "neither"}
    else:
        matched = {"1": results[0].name, "0": "nothing"}
    layers = {str(k): result.name for k, result in enumerate(results)}
    layers[GROUND_TRUTH] = "ground truth"
    left, right = list(layers)[:2]
    sorts = {str(k): order.title for k, order in enumerate(orders)}
    box = {"type": "checkbox", "id": "outline", "checked": "", "autocomplete": "off"}
    return element(
        "form",
        {"class": "controls", "aria-label": "gallery"},
        select_box("Class", "class", {"": "all"} | classes),
        select_box("Matched by", "matched", {"": "any"} | matched),
        select_box("Sort", "sort", sorts, "0"),
        select_box("Left", "left", layers, left),
        select_box("Right", "right", layers, right),
        element("label", {"class": "check"}, element("input", box), "ground-truth outline"),
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
    """Build the gallery of the objects that rank first in the orders.

    Args:
        content: The annotations.
        items: All objects.
        results: Results of the models.
        image_root: Folder of the images.
        count: Maximum number of objects to show.
        min_score: Minimum score of the results' records, for the note.
        without_photographs: Show plain gray in place of the images.

    Raises:
        FileNotFoundError: If an image is missing.
        ValueError: As :func:`read_photograph`.
    """
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = {image["id"]: image for image in content["images"]}
    orders = gallery_orders(items, [result.name for result in results])
    selected = select_items([order.ranking for order in orders], count)
    positions = [{item: rank for rank, item in enumerate(order.ranking)} for order in orders]
    ranks = {item: [position.get(item, len(items)) for position in positions] for item in selected}
    cards = []
    for number, index in enumerate(sorted(selected, key=ranks.__getitem__)):
        record = images[items[index].annotation["image_id"]]
        image = read_photograph(image_root, record, without_photographs=without_photographs)
        cards.append(
            card(number, items[index], ranks[index], results, names, record["file_name"], image)
        )
    lines = {result.name: result.style for result in results} | {"ground truth": GROUND_TRUTH_STYLE}
    left_out = len(items) - len(cards)
    note = f"{len(cards)} of {len(items)} objects are on this page"
    if left_out:
        note += (
            f": at least the first {count // len(orders)} of each order; {left_out} are left out "
            "(--items)"
        )
    matching_note = MATCHING_NOTE.format(min_score=min_score, min_iou=MIN_IOU)
    return [
        element("p", {}, f"{note}. ", matching_note),
        legend(lines, "keys"),
        controls([items[index] for index in selected], orders, results, names),
        element("p", {"id": "status", "role": "status"}),
        element("ol", {"id": "cards", "class": "cards"}, *cards),
    ]
