"""Cards of the gallery: one object with the masks of each model."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import cv2
import numpy as np
import pycocotools.mask as mask_util

from point_rend.evaluation.boundary_iou import band_width, inner_band
from point_rend.evaluation.report.elements import NONE, element, table
from point_rend.evaluation.report.matched_items import (
    GROUND_TRUTH,
    GROUND_TRUTH_STYLE,
    Item,
    Result,
)
from point_rend.evaluation.report.outlines import outline_path
from point_rend.visualization.drawing import places_of_difference

PHOTOGRAPH_SIDE = 640  # pixels; larger crops are reduced
MARGIN = 0.15  # around an object, as a fraction of its longer side
MIN_SIDE = 24  # pixels; minimum side of a crop
ZOOM = 4
NUM_WINDOWS = 3  # zoom windows of a card
MIDDLE = "50"  # initial position of the slider
Box = tuple[float, float, float, float]  # x, y, width, height in pixels of the image


class Layer(NamedTuple):
    """A mask that a card can show.

    Attributes:
        key: The number of a result, or `GROUND_TRUTH`.
        style: CSS class of its color and dashes.
        mask: (H, W) bool.
    """

    key: str
    style: str
    mask: np.ndarray


def square_around(boxes: Sequence[Box], margin: float = 0.0, min_side: float = 0.0) -> Box:
    """Return the square, centered at boxes, that contains them and a margin."""
    x0, y0 = (min(box[k] for box in boxes) for k in (0, 1))
    x1, y1 = (max(box[k] + box[k + 2] for box in boxes) for k in (0, 1))
    side = max(min_side, math.ceil((1 + 2 * margin) * max(x1 - x0, y1 - y0)))
    return (math.floor((x0 + x1 - side) / 2), math.floor((y0 + y1 - side) / 2), side, side)


def zoom_windows(masks: Sequence[np.ndarray], view: Box) -> list[Box]:
    """Find the squares of a view in which the first two masks differ most.

    Args:
        masks: (H, W) bool; masks of the results, if any, followed by the ground truth.
        view: Visible part of the image.

    Returns:
        Squares. If the masks do not differ, they lie on the boundary of the ground truth.
    """
    x, y = (max(0, int(v)) for v in view[:2])
    right, bottom = (int(view[k] + view[k + 2]) for k in (0, 1))
    cuts = [mask[y:bottom, x:right] for mask in masks]
    height, width = masks[-1].shape
    band = inner_band(cuts[-1], band_width((height, width)))
    side = max(1, round(view[2] / ZOOM))
    one, other = cuts[:2] if len(cuts) > 1 else (band, np.zeros_like(band))
    if not (one != other).any():
        one, other = band, np.zeros_like(band)
    places = places_of_difference(one, other, side=side, count=NUM_WINDOWS)
    boxes = [(x + x0, y + y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in places]
    return [square_around([box], min_side=side) for box in boxes]


def photograph(image: np.ndarray, view: Box) -> Element:
    """Return the part of an image (H, W, 3) uint8 inside a view, as an SVG element."""
    height, width = image.shape[:2]
    x0, y0 = (max(0, int(v)) for v in view[:2])
    x1, y1 = min(width, int(view[0] + view[2])), min(height, int(view[1] + view[3]))
    part = image[y0:y1, x0:x1]
    scale = min(1.0, PHOTOGRAPH_SIDE / max(part.shape[:2]))
    if scale < 1:
        part = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    data = base64.b64encode(encoded.tobytes()).decode()
    place = {"x": f"{x0}", "y": f"{y0}", "width": f"{x1 - x0}", "height": f"{y1 - y0}"}
    return element(
        "image",
        place | {"preserveAspectRatio": "none", "href": f"data:image/jpeg;base64,{data}"},
    )


def box_text(box: Box) -> str:
    """Format a box as an SVG viewBox."""
    return " ".join(f"{v:g}" for v in box)


def outline(number: int, layer: str) -> Element:
    """Draw the outline of a mask defined on the card: a dark rim below a colored line."""
    link = {"href": f"#mask-{number}-{layer}"}
    return element(
        "g",
        {"class": "outline"},
        element("use", link | {"class": "rim"}),
        element("use", link | {"class": "edge"}),
    )


def stage(number: int, image: np.ndarray, masks: Sequence[Layer], view: Box, name: str) -> Element:
    """Draw the masks of a card over the photograph; page.js moves the clip paths.

    Args:
        number: Number of the card, for ids.
        image: (H, W, 3) uint8.
        masks: Masks of the results, followed by the ground truth.
        view: Visible part of the image.
        name: Accessible name of the picture.
    """
    x, y, side, _ = view
    half = side / 2
    halves = {"left": x, "right": x + half}
    clips = [
        element(
            "clipPath",
            {"id": f"{name_of_half}-{number}"},
            element(
                "rect",
                {"x": f"{start:g}", "y": f"{y:g}", "width": f"{half:g}", "height": f"{side:g}"},
            ),
        )
        for name_of_half, start in halves.items()
    ]
    paths = [
        element(
            "path",
            {
                "id": f"mask-{number}-{layer.key}",
                "d": outline_path(layer.mask),
                # CSS rules for a path do not apply to its copies by `use`; attributes do.
                "vector-effect": "non-scaling-stroke",
            },
        )
        for layer in masks
    ]
    layers = [
        element(
            "g",
            {"class": f"layer {layer.style}", "data-layer": layer.key},
            element("use", {"href": f"#mask-{number}-{layer.key}", "class": "fill"}),
            outline(number, layer.key),
        )
        for layer in masks
    ]
    windows = zoom_windows([layer.mask for layer in masks], view)
    marks = []
    for k, (left, top, width, height) in enumerate(windows, start=1):
        place = {"x": f"{left:g}", "y": f"{top:g}", "width": f"{width:g}", "height": f"{height:g}"}
        text = {"x": f"{left + side / 60:g}", "y": f"{top + side / 18:g}"}
        size = {"font-size": f"{side / 18:g}"}
        marks += [element("rect", place), element("text", text | size, str(k))]
    divider = {"x1": f"{x + half:g}", "x2": f"{x + half:g}", "y1": f"{y:g}", "y2": f"{y + side:g}"}
    buttons = []
    for k, box in enumerate([view, *windows]):
        pressed = "false" if k else "true"
        label = f"zoom {k}" if k else "whole"
        attributes = {"type": "button", "data-box": box_text(box), "aria-pressed": pressed}
        buttons.append(element("button", attributes, label))
    return element(
        "div",
        {"class": "view"},
        element(
            "div",
            {"class": "stage"},
            element(
                "svg",
                {"viewBox": box_text(view), "role": "img", "aria-label": name},
                element("defs", {}, *clips, *paths),
                photograph(image, view),
                *layers,
                element(
                    "g",
                    {"class": f"ground-truth-outline {GROUND_TRUTH_STYLE}"},
                    outline(number, GROUND_TRUTH),
                ),
                element("g", {"class": "marks", "aria-hidden": "true"}, *marks),
                element("line", divider | {"class": "divider"}),
            ),
            element("span", {"class": "side left", "aria-hidden": "true"}),
            element("span", {"class": "side right", "aria-hidden": "true"}),
        ),
        element(
            "input",
            {
                "type": "range",
                "min": "0",
                "max": "100",
                "value": MIDDLE,
                "autocomplete": "off",
                "aria-label": f"split, {name}",
            },
        ),
        element(
            "div",
            {"class": "zoom", "role": "group", "aria-label": f"enlarge, {name}"},
            *buttons,
        ),
    )


def card_table(item: Item, results: Sequence[Result], caption: str) -> Element:
    """Build the table of an object's IoUs."""
    rows = []
    for result, match in zip(results, item.matches, strict=True):
        texts = [NONE] * 3
        if match:
            score = result.records[match.result]["score"]
            texts = [f"{v:.3f}" for v in (score, match.iou, match.boundary_iou)]
        rows.append((result.name if match else f"{result.name}: no match", texts))
    gains = [item.gain(measure) for measure in ("iou", "boundary_iou")]
    if len(results) > 1 and None not in gains:
        signed = [f"{gain:+.3f}".replace("-", "−") for gain in gains]
        rows.append(("gain", [NONE, *signed]))
    return table(caption, ("", "score", "mask IoU", "Boundary IoU"), rows)


def item_layers(item: Item, results: Sequence[Result]) -> list[Layer]:
    """Return the masks of an object: those of the matching results and the ground truth."""
    pairs = zip(results, item.matches, strict=True)
    layers = [
        Layer(str(k), result.style, decode_mask(result.records[match.result]))
        for k, (result, match) in enumerate(pairs)
        if match
    ]
    return [*layers, Layer(GROUND_TRUTH, GROUND_TRUTH_STYLE, decode_mask(item.annotation))]


def decode_mask(record: Mapping[str, Any]) -> np.ndarray:
    """Return the mask (H, W) bool of a record."""
    return mask_util.decode(record["segmentation"]).astype(bool)


def bounding_box(mask: np.ndarray) -> Box:
    """Return the bounding box of a mask (H, W) bool."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return x, y, width, height


def card(
    number: int,
    item: Item,
    ranks: Sequence[int],
    results: Sequence[Result],
    names: Mapping[int, str],
    file_name: str,
    image: np.ndarray,
) -> Element:
    """Build the card of one object: masks with a slider between them, zoom windows, and IoUs.

    Args:
        number: Number of the card.
        item: The object.
        ranks: Its rank in each order.
        results: Results of the models.
        names: Class names by id.
        file_name: File name of the image.
        image: (H, W, 3) uint8.
    """
    annotation = item.annotation
    layers = item_layers(item, results)
    view = square_around([bounding_box(layer.mask) for layer in layers], MARGIN, MIN_SIDE)
    name = f"{names[annotation['category_id']]} in {file_name}, object {annotation['id']}"
    return element(
        "li",
        {
            "class": "card",
            "data-class": str(annotation["category_id"]),
            "data-matched": "".join(str(int(match is not None)) for match in item.matches),
            "data-ranks": " ".join(map(str, ranks)),
        },
        element(
            "h3",
            {},
            names[annotation["category_id"]],
            element("small", {}, f"{file_name}, object {annotation['id']}"),
        ),
        stage(number, image, layers, view, name),
        card_table(item, results, f"metrics of {name}"),
    )
