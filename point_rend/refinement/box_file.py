"""Files of boxes in COCO's formats: a list of results, or the annotations of a data set.

A box is that of "bbox", or else the bounds of the mask in "segmentation".
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from point_rend.data.checks.boxes import seem_shares
from point_rend.data.checks.masks import measure_masks
from point_rend.data.datasets.coco_checks import MAX_COORDINATE, check_coco, crowd_flag
from point_rend.utils.files import atomic_file
from point_rend.utils.json_files import MAX_DATA_SET_BYTES, read_json, shown

EXPECTED = (
    "a list of results, each with image_id, category_id, score and bbox or segmentation, or an "
    "object with images, categories and annotations"
)
NO_BOX = [0, 0, 0, 0]  # of a record that is checked without its box

Record = dict[str, Any]
Size = tuple[int, int]


class BoxFile(NamedTuple):
    """The content of a file of boxes.

    Attributes:
        path: The file.
        content: All of it, of which the records are a part.
        records: The results or annotations.
        data_set: The images and categories of annotations, checked; None for a list of results.
    """

    path: Path
    content: Any
    records: list[Record]
    data_set: Mapping[str, Any] | None


class Box(NamedTuple):
    """The box of a record.

    Attributes:
        corners: x0, y0, x1, y1 in pixels; None if there is no usable box.
        fault: The reason, as the rest of a sentence.
        is_inside: Whether a part of it is in the image.
    """

    corners: tuple[float, float, float, float] | None
    fault: str = ""
    is_inside: bool = False


def read_box_file(path: Path) -> BoxFile:
    """Read a file of boxes; the boxes themselves are not checked.

    Raises:
        FileNotFoundError: If it does not exist.
        OSError: If it cannot be read.
        ValueError: If it is not JSON or of another form, if references to images or categories are
            broken, or if all boxes seem to be fractions of the image.
    """
    content = read_json(path, what="--boxes", max_bytes=MAX_DATA_SET_BYTES)
    if isinstance(content, list):
        for position, result in enumerate(content):
            fault = _form_fault(result)
            if fault:
                raise ValueError(f"{path}: result {position} {fault}: expected {EXPECTED}")
        file = BoxFile(path, content, content, None)
    elif isinstance(content, dict) and isinstance(content.get("annotations"), list):
        known = {**content, "annotations": [_without_shape(x) for x in content["annotations"]]}
        check_coco(known, str(path))
        file = BoxFile(path, content, content["annotations"], known)
    else:
        found = f"an object with {shown(sorted(content))}" if isinstance(content, dict) else None
        raise ValueError(f"{path}: expected {EXPECTED}; got {found or type(content).__name__}")
    _refuse_shares(file)
    return file


def _form_fault(result: Any) -> str | None:
    """Describe why a result cannot be assigned to an image and a class."""
    if not isinstance(result, dict):
        return f"is not an object: {shown(result)}"
    if type(result.get("image_id")) not in (int, str):
        return f"has the image_id {shown(result.get('image_id'))}"
    if type(result.get("category_id")) is not int:
        return f"has the category_id {shown(result.get('category_id'))}"
    return None


def _without_shape(annotation: Any) -> Any:
    """Return an annotation without its box and its mask, which are checked one by one later."""
    if not isinstance(annotation, dict):
        return annotation
    keys = ("id", "image_id", "category_id", "iscrowd")
    return {key: annotation[key] for key in keys if key in annotation} | {"bbox": NO_BOX}


def _refuse_shares(file: BoxFile) -> None:
    """Refuse a file whose boxes all lie within the first pixel."""
    boxes = [x["bbox"] for x in file.records if "bbox" in x and not _bbox_fault(x["bbox"])]
    sides = np.full((len(boxes), 2), np.nan)
    if boxes and np.any(boxes) and seem_shares(np.array(boxes, dtype=np.float64), sides):
        raise ValueError(
            f"{file.path}: no box is larger than a pixel, such as {shown(boxes[0])}: expected x, "
            "y, width, height in pixels; are they fractions of the image?"
        )


def is_crowd(record: Mapping[str, Any]) -> bool:
    """Return whether a record is a crowd, whose mask is of several objects."""
    return bool(crowd_flag(record.get("iscrowd", 0)))


def boxes_of(records: Sequence[Record], size: Size) -> list[Box]:
    """Return the boxes of the records of an image.

    The bounds of the mask count where "bbox" is missing or has no area in the image.

    Args:
        records: Results or annotations.
        size: Height and width of the image in pixels.
    """
    boxes = [_own_box(record.get("bbox"), size) for record in records]
    rest = [k for k, x in enumerate(boxes) if not x.is_inside and records[k].get("segmentation")]
    masks = [records[k]["segmentation"] for k in rest]
    for k, mask in zip(rest, measure_masks(masks, [size] * len(rest)), strict=True):
        if mask.box is not None:
            boxes[k] = Box(mask.box, is_inside=True)
        elif not records[k].get("bbox"):
            fault = mask.faults[0].text
            boxes[k] = Box(None, f"has no bbox, and the fault of its mask is: {fault}")
    return boxes


def _own_box(bbox: Any, size: Size) -> Box:
    if not bbox:
        return Box(None, "has neither a bbox nor a segmentation")
    fault = _bbox_fault(bbox)
    if fault:
        return Box(None, f"has the {fault}")
    x, y, width, height = bbox
    is_inside = width > 0 and height > 0 and -width < x < size[1] and -height < y < size[0]
    return Box((x, y, x + width, y + height), is_inside=is_inside)


def _bbox_fault(bbox: Any) -> str | None:
    """Describe why a value is no box as x, y, width, height."""
    if (
        not isinstance(bbox, list)
        or len(bbox) != 4
        or not {*map(type, bbox)} <= {int, float}
        or not all(-MAX_COORDINATE <= x <= MAX_COORDINATE for x in bbox)
    ):
        return f"bbox {shown(bbox)}, expected 4 numbers: x, y, width, height"
    if bbox[2] < 0 or bbox[3] < 0:
        return f"bbox {shown(bbox)}, whose width or height is negative"
    return None


def write_box_file(file: BoxFile, path: Path) -> None:
    """Write the content of a file of boxes, one record a line.

    Raises:
        NotSavedError: If it cannot be written.
    """
    with atomic_file(path) as binary:
        text = io.TextIOWrapper(binary, "utf-8")
        if file.data_set is None:
            _write_list(text, file.records)
        else:
            for number, (key, value) in enumerate(file.content.items()):
                text.write(f"{',' if number else '{'}\n{json.dumps(key)}: ")
                if key == "annotations":
                    _write_list(text, file.records)
                else:
                    text.write(json.dumps(value))
            text.write("\n}")
        text.write("\n")
        text.flush()
        text.detach()


def _write_list(text: io.TextIOWrapper, records: Sequence[Record]) -> None:
    text.write("[")
    for number, record in enumerate(records):
        text.write(f"{',' if number else ''}\n{json.dumps(record)}")
    text.write("\n]" if records else "]")
