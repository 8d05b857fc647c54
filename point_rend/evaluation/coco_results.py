"""COCO result files: reading, checking and evaluating them, and printing tables of metrics."""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from point_rend.data.checks.annotations import check_ground_truth
from point_rend.data.checks.boxes import beyond_images, seem_shares
from point_rend.data.checks.masks import measure_masks
from point_rend.data.datasets.coco import read_coco
from point_rend.evaluation.coco_ap import CocoAP
from point_rend.evaluation.limits import Limit, coco_limit, warn_of_limit
from point_rend.evaluation.pairing import EXPECTED, paired_dataset, paired_list
from point_rend.utils.json_files import MAX_DATA_SET_BYTES, read_json, shown

logger = logging.getLogger(__name__)
LARGEST = 1e300  # of all numbers
NUMBERS_AND_VALUES = re.compile(r"-?\d[\d.e+,]*|'[^']*'")  # in the fault of a mask
TASK_NAMES = {"bbox": "box AP", "segm": "AP", "boundary": "boundary AP"}  # titles of table rows

Record = dict[str, Any]
Results = list[Record]
Size = tuple[int, int]


class Fault(NamedTuple):
    """A reason why a result cannot be scored.

    Attributes:
        kind: The same for all results that are counted together.
        text: What is wrong, as the rest of a sentence.
    """

    kind: str
    text: str


def average_precision(
    json_file: Path, results_file: Path, limit: Limit | None = None
) -> dict[str, float]:
    """Compute mask AP and boundary AP of a result file.

    Args:
        json_file: COCO annotations.
        results_file: COCO results with masks, such as ``coco_instances_results.json``.
        limit: Number of results of an image and class that count; that of COCO by default.

    Returns:
        AP, AP50, AP75 and boundary AP in percent; 0 if there are no detections.

    Raises:
        ValueError: As in `read_results`, or if results or annotations have no masks.
    """
    content = read_coco(str(json_file))
    check_ground_truth(json_file, content)
    limit = limit or coco_limit()
    evaluation = CocoAP(content, max_dets=limit.number)
    results = read_mask_results(results_file, content)
    warn_of_limit(content, results, limit, str(results_file))
    return mask_metrics(results, evaluation)


def mask_metrics(results: Results, evaluation: CocoAP) -> dict[str, float]:
    """Compute AP, AP50, AP75 and boundary AP of results in percent."""
    results = evaluation.checked(results)
    metrics = evaluation.metrics(results, "segm")
    selected = {name: metrics[name] for name in ("AP", "AP50", "AP75")}
    return selected | {"boundary AP": evaluation.metrics(results, "boundary")["AP"]}


def read_mask_results(results_file: Path, content: Mapping[str, Any]) -> Results:
    """Read a file as :func:`read_results` does, and refuse results without masks."""
    results = read_results(results_file, content)
    if not has_masks(results, results_file):
        raise ValueError(f"{results_file}: result 0 has no 'segmentation', expected masks")
    return results


def read_results(results_file: Path, content: Mapping[str, Any]) -> Results:
    """Read a file of results and check it against a data set.

    Images and classes are paired by their names where the file has names, otherwise by their ids.
    A segmentation that is null or an empty list counts as none.

    Args:
        results_file: A list in COCO's result format, written by any framework, or the
            `instances.json` of `pointrend predict`.
        content: The annotations of the data set, as `read_coco` returns them.

    Returns:
        The results. Segmentations are polygons or RLE of the size of their image.

    Raises:
        FileNotFoundError: If the file does not exist.
        OSError: If it cannot be read.
        ValueError: If it is not JSON or has no results, or if some of them refer to unknown images
            or categories or have invalid scores, boxes or masks. Each kind of fault is counted.
    """
    found = read_json(results_file, what="result file", max_bytes=MAX_DATA_SET_BYTES)
    return check_results(found, content, results_file)


def check_results(found: Any, content: Mapping[str, Any], results_file: Path) -> Results:
    """Check the content of a file of results, as :func:`read_results` does."""
    if isinstance(found, dict):
        results = paired_dataset(found, content, results_file)
    elif isinstance(found, list):
        results = paired_list(found, content, results_file)
        if results and all(isinstance(x, dict) and "id" in x for x in results):
            logger.warning(
                "%s: its results have ids, like the annotations of a data set, and their image_id "
                "and category_id are taken as those of these annotations; pass the whole data set "
                "to pair images and classes by name",
                results_file,
            )
    else:
        raise ValueError(f"{results_file}: expected {EXPECTED}; got {type(found).__name__}")
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    faults = {
        number: fault
        for number, result in enumerate(results)
        if (fault := _fault(result, sizes, categories))
    }
    if not faults:
        results = [_without_empty_fields(result) for result in results]
        faults = _mask_faults(results, sizes, results_file)
    if not faults and results and not any("segmentation" in result for result in results):
        faults = _box_faults(results, sizes, results_file)
    if faults:
        raise ValueError(f"{results_file}: {_list_faults(faults, len(results))}")
    _warn_of_repetitions(results, results_file)
    return results


def has_masks(results: list[dict[str, Any]], results_file: Path) -> bool:
    """Return whether results have masks.

    Raises:
        ValueError: If only some of them do.
    """
    without = [number for number, result in enumerate(results) if "segmentation" not in result]
    if without and len(without) < len(results):
        raise ValueError(
            f"{results_file}: {len(without)} of {len(results)} results have no 'segmentation', the "
            f"first of them is result {without[0]}"
        )
    return not without


def _fault(result: Any, sizes: Mapping[Any, Size], categories: set[int]) -> Fault | None:
    """Describe what is wrong with a result, except for its mask."""
    if not isinstance(result, dict):
        return Fault("form", f"is not an object: {shown(result)}")
    for key in ("image_id", "category_id", "score"):
        if key not in result:
            return Fault(key, f"has no {key!r}: it has {', '.join(result)[:80] or 'nothing'}")
    image_id, category, score = result["image_id"], result["category_id"], result["score"]
    if not _is_id(image_id, str) or image_id not in sizes:
        return Fault(
            "image",
            f"is about image {shown(image_id)}, which the annotations do not have: expected one of "
            f"theirs, {_few(sizes)}",
        )
    if not _is_id(category) or category not in categories:
        return Fault(
            "category",
            f"is of category {shown(category)}, expected one of the annotations: "
            f"{_few(sorted(categories))}",
        )
    if not is_number(score):
        return Fault("score", f"has the score {shown(score)}, expected a number")
    box, mask = result.get("bbox"), result.get("segmentation")
    if box is None and not mask:
        other = " (keypoints are not scored)" if "keypoints" in result else ""
        return Fault("content", f"has neither 'segmentation' nor 'bbox'{other}")
    if box is not None and not (
        isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
    ):
        return Fault("bbox", f"has the bbox {shown(box)}, expected 4 numbers: x, y, width, height")
    return None


def _without_empty_fields(result: Record) -> Record:
    """Return a result without a box that is null, and without a mask that is null or empty."""
    if result.get("segmentation", True) and result.get("bbox", True) is not None:
        return result
    return {
        key: value
        for key, value in result.items()
        if (value if key == "segmentation" else key != "bbox" or value is not None)
    }


def _mask_faults(results: Results, sizes: Mapping[Any, Size], file: Path) -> dict[int, Fault]:
    """Describe what is wrong with the masks of results, and warn of coordinates in shares."""
    numbers = [number for number, result in enumerate(results) if "segmentation" in result]
    masks = [results[number]["segmentation"] for number in numbers]
    of_images = [sizes[results[number]["image_id"]] for number in numbers]
    faults: dict[int, Fault] = {}
    boxes, of_boxes = [], []
    for number, mask in zip(numbers, measure_masks(masks, of_images), strict=True):
        text = next((fault.text for fault in mask.faults if fault.fatal), None)
        if text:
            kind = NUMBERS_AND_VALUES.sub("", text)
            article = {"R": "an", "s": "the"}.get(text[0], "a mask whose")
            faults[number] = Fault(kind, f"has {article} {text}")
        if mask.box is not None:
            boxes.append(mask.box)
            of_boxes.append(results[number])
    if boxes and seem_shares(np.array(boxes), _sides(of_boxes, sizes)):
        logger.warning(
            "%s: no mask reaches beyond the first pixel: expected coordinates in pixels; are they "
            "fractions of the image?",
            file,
        )
    return faults


def _box_faults(results: Results, sizes: Mapping[Any, Size], file: Path) -> dict[int, Fault]:
    """Describe impossible boxes, and warn of boxes that look like another format."""
    faults = {}
    for number, result in enumerate(results):
        _, _, width, height = result["bbox"]
        if width < 0 or height < 0:
            text = f"has the bbox {shown(result['bbox'])}, expected x, y, width, height"
            faults[number] = Fault("bbox", text)
    boxes = np.array([result["bbox"] for result in results], dtype=np.float64)
    sides = _sides(results, sizes)
    beyond = beyond_images(boxes, sides).tolist()
    if beyond:
        logger.warning(
            "%s: %d of %d boxes reach beyond their images, such as %s of result %d: expected x, y, "
            "width, height; are they corners?",
            file,
            len(beyond),
            len(results),
            shown(results[beyond[0]]["bbox"]),
            beyond[0],
        )
    if seem_shares(boxes, sides):
        logger.warning(
            "%s: no box is larger than a pixel: expected pixels; are they fractions of the image?",
            file,
        )
    return faults


def _sides(results: Results, sizes: Mapping[Any, Size]) -> np.ndarray:
    """Return the width and height of the image of each result."""
    return np.array([sizes[result["image_id"]][::-1] for result in results], dtype=np.float64)


def _warn_of_repetitions(results: Results, file: Path) -> None:
    """Warn of results that are given twice, as by two processes that ran on the same image."""
    keys = Counter(
        (x["image_id"], x["category_id"], x["score"], repr(x.get("segmentation", x.get("bbox"))))
        for x in results
    )
    if len(keys) < len(results):
        image_id, *_ = keys.most_common(1)[0][0]
        logger.warning(
            "%s: %d of %d results repeat another one, such as in image %r; they count as wrong",
            file,
            len(results) - len(keys),
            len(results),
            image_id,
        )


def _list_faults(faults: Mapping[int, Fault], total: int) -> str:
    """Describe the first fault of each kind, and count the others."""
    of_kind: dict[str, list[int]] = {}
    for number, fault in faults.items():
        of_kind.setdefault(fault.kind, []).append(number)
    parts = []
    for numbers in of_kind.values():
        count = f" ({len(numbers)} of {total} results)" if len(numbers) > 1 else ""
        parts.append(f"result {numbers[0]} {faults[numbers[0]].text}{count}")
    return "; ".join(parts)


def _is_id(value: Any, *others: type) -> bool:
    return isinstance(value, (int, *others)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a number that a float can hold; NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _few(ids: Collection[Any]) -> str:
    return ", ".join(map(shown, itertools.islice(ids, 5))) + (", ..." if len(ids) > 5 else "")


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Format metrics as a table with one row per name; all rows have the same columns."""
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{column:>14}" for column in columns)]
    for name, metrics in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{metrics[column]:14.1f}" for column in columns))
    return "\n".join(lines)
