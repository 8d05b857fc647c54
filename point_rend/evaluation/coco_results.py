"""COCO result files: reading, checking and evaluating them, and printing tables of metrics."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from point_rend.data.checks.rle import rle_fault
from point_rend.data.datasets.coco import read_coco
from point_rend.evaluation.coco_ap import CocoAP
from point_rend.evaluation.limits import Limit, coco_limit, warn_of_limit

TASK_NAMES = {"bbox": "box AP", "segm": "AP", "boundary": "boundary AP"}  # titles of table rows


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
    check_ground_truth_masks(json_file, content)
    results = read_results(results_file, content)
    if not has_masks(results, results_file):
        raise ValueError(f"{results_file}: result 0 has no 'segmentation'")
    limit = limit or coco_limit()
    warn_of_limit(content, results, limit, str(results_file))
    evaluation = CocoAP(content, max_dets=limit.number)
    metrics = evaluation.metrics(results, "segm")
    selected = {name: metrics[name] for name in ("AP", "AP50", "AP75")}
    return selected | {"boundary AP": evaluation.metrics(results, "boundary")["AP"]}


def read_results(results_file: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read a file in COCO's result format and check it against a data set.

    Args:
        results_file: The file, written by any framework.
        content: The annotations of the data set, as `read_coco` returns them.

    Returns:
        The results. Segmentations are polygons or RLE of the size of their image.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not JSON or not a list of results, or if a result refers to an unknown
            image or category or has an invalid score, box or mask.
    """
    try:
        results = json.loads(results_file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"result file {results_file} does not exist") from error
    except ValueError as error:
        raise ValueError(f"result file {results_file} is truncated or not JSON: {error}") from error
    if not isinstance(results, list):
        raise ValueError(
            f"{results_file}: expected a list of results, each with image_id, category_id, score "
            f"and segmentation or bbox; got {type(results).__name__}"
        )
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for number, result in enumerate(results):
        fault = _fault(result, sizes, categories)
        if fault:
            raise ValueError(f"{results_file}: result {number} {fault}")
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


def check_ground_truth_masks(json_file: Path, content: Mapping[str, Any]) -> None:
    """Refuse annotations without valid masks.

    Args:
        json_file: The annotation file, for the message.
        content: Its content, as `read_coco` returns it.

    Raises:
        ValueError: If an annotation has no mask, or one that does not fit its image.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        mask, size = annotation.get("segmentation"), sizes[annotation["image_id"]]
        fault = None if mask else "no segmentation"
        if isinstance(mask, dict):
            fault = _run_length_fault(mask, size)
        if fault:
            raise ValueError(
                f"{json_file}: annotation {annotation['id']!r} of image {annotation['image_id']!r} "
                f"has {fault}: expected a mask to compare the results with"
            )


def _run_length_fault(mask: Mapping[str, Any], size: tuple[int, int]) -> str | None:
    """Describe why a run-length encoding cannot be decoded; an empty mask is valid."""
    reason = rle_fault(mask, *size)
    return reason.text if reason and reason.fatal else None


def _fault(result: Any, sizes: Mapping[int | str, list[int]], categories: set[int]) -> str | None:
    """Describe what is wrong with a result."""
    if not isinstance(result, dict):
        return f"is not an object: {result!r:.80}"
    for key in ("image_id", "category_id", "score"):
        if key not in result:
            return f"has no {key!r}: it has {', '.join(result) or 'nothing'}"
    image_id, category, score = result["image_id"], result["category_id"], result["score"]
    if not isinstance(image_id, int | str) or image_id not in sizes:
        return f"is about image {image_id!r}, which the annotations do not have"
    if not isinstance(category, int) or category not in categories:
        return f"is of category {category!r}, expected one of the annotations: {_few(categories)}"
    if not _is_number(score):
        return f"has the score {score!r}, expected a number"
    if "bbox" not in result and "segmentation" not in result:
        return "has neither 'segmentation' nor 'bbox'"
    box = result.get("bbox", [0, 0, 0, 0])
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return f"has the bbox {box!r:.80}, expected 4 numbers: x, y, width, height"
    if "segmentation" in result:
        return _mask_fault(result["segmentation"], sizes[image_id])
    return None


def _mask_fault(mask: Any, size: list[int]) -> str | None:
    if isinstance(mask, list):
        is_valid = mask and all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and all(map(_is_number, polygon))
            for polygon in mask
        )
        return None if is_valid else f"has the polygons {mask!r:.80}, expected lists of x and y"
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str | list):
        return f"has the segmentation {mask!r:.80}, expected polygons or an RLE"
    if mask.get("size") != size:
        return (
            f"has a mask of (height, width) {mask.get('size')}, but its image is {size}: expected "
            "a mask of the size of the image"
        )
    counts = mask["counts"]
    if isinstance(counts, list) and not all(isinstance(count, int) for count in counts):
        return f"has the run lengths {counts!r:.80}, expected integers"
    fault = _run_length_fault(mask, (size[0], size[1]))
    return f"has an {fault}" if fault else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _few(ids: set[int]) -> str:
    shown = sorted(ids)[:5]
    return ", ".join(map(str, shown)) + (", ..." if len(ids) > len(shown) else "")


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Format metrics as a table with one row per name; all rows have the same columns."""
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{column:>14}" for column in columns)]
    for name, metrics in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{metrics[column]:14.1f}" for column in columns))
    return "\n".join(lines)
