"""Metrics of result lists as tables: AP and boundary AP, and AP* on LVIS annotations."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from point_rend.data.checks.annotations import check_ground_truth
from point_rend.data.datasets.cocofied_lvis import read_lvis
from point_rend.evaluation.coco_ap import CocoAP
from point_rend.evaluation.coco_results import TASK_NAMES
from point_rend.evaluation.limits import Limit, warn_of_limit
from point_rend.utils.json_files import read_json, shown

ROW_NAMES = {name + star for name in TASK_NAMES.values() for star in ("", "*")}
Metrics = dict[str, float]
Results = Sequence[Mapping[str, Any]]


def coco_metrics(results: Results, tasks: Sequence[str], evaluation: CocoAP) -> dict[str, Metrics]:
    """Compute the metrics of COCO; one row per task."""
    if tasks != ("bbox",):
        results = evaluation.checked(results)
    return {TASK_NAMES[task]: evaluation.metrics(results, task) for task in tasks}


def ap_star_metrics(
    results: Results, tasks: Sequence[str], lvis_file: Path, limit: Limit
) -> dict[str, Metrics]:
    """Compute the metrics of LVIS on the images that LVIS annotates; one row per task."""
    from lvis import LVIS

    from point_rend.evaluation.lvis_ap import complete_lvis, lvis_metrics

    logging.getLogger("lvis").setLevel(logging.ERROR)  # it warns about every list of results
    ground_truth = LVIS(str(lvis_file))
    complete_lvis(ground_truth)
    annotated = [result for result in results if result["image_id"] in ground_truth.imgs]
    warn_of_limit(ground_truth.dataset, annotated, limit, str(lvis_file))
    return {
        f"{TASK_NAMES[task]}*": lvis_metrics(ground_truth, annotated, task, max_dets=limit.number)
        for task in tasks
    }


def check_lvis(lvis_file: Path, content: Mapping[str, Any], annotations: Path) -> None:
    """Refuse LVIS annotations of other classes or images than those of COCO annotations.

    Args:
        lvis_file: The LVIS annotations.
        content: The COCO annotations, as `read_coco` returns them.
        annotations: Their file, for the message.

    Raises:
        ValueError: If classes or images differ, or if lvis is not installed.
    """
    if importlib.util.find_spec("lvis") is None:
        raise ValueError("--lvis-annotations needs the package lvis: pip install lvis")
    lvis = read_lvis(str(lvis_file))
    check_ground_truth(lvis_file, lvis)
    names = {category["id"]: category["name"] for category in content["categories"]}
    for category in lvis["categories"]:
        if names.get(category["id"]) != category["name"]:
            raise ValueError(
                f"{lvis_file} has the category {category['id']} {category['name']!r}, which is "
                f"missing in {annotations}: `pointrend prepare-cocofied-lvis` makes a file of "
                "COCO's classes"
            )
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    common = [image for image in lvis["images"] if image["id"] in sizes]
    if not common:
        raise ValueError(f"{lvis_file} and {annotations} have no image in common")
    for image in common:
        size = (image["height"], image["width"])
        if size != sizes[image["id"]]:
            raise ValueError(
                f"{lvis_file}: image {shown(image['id'])} is of (height, width) {size}, in "
                f"{annotations} of {sizes[image['id']]}: expected the same images"
            )


def is_score_file(file: Path) -> bool:
    """Return whether a file holds metrics as `pointrend score --output` writes them."""
    try:
        scores = read_json(file, what="file of scores")
    except ValueError:
        return False
    return isinstance(scores, dict) and all(
        isinstance(rows, dict) and rows.keys() <= ROW_NAMES for rows in scores.values()
    )


def by_class(rows: Mapping[str, Metrics]) -> dict[str, Metrics]:
    """Rearrange the APs of single classes: one row per class."""
    keys = [key for key in next(iter(rows.values())) if key.startswith("AP-")]
    return {
        key.removeprefix("AP-"): {
            row: metrics.get(key, float("nan")) for row, metrics in rows.items()
        }
        for key in keys
    }
