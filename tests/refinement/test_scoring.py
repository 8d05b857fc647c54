"""AP of refined masks: the order of annotations without scores."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest

from point_rend.evaluation.limits import coco_limit
from point_rend.refinement.box_file import BoxFile
from point_rend.refinement.scoring import MaskScores

SIDE = 64
CATEGORY = (1, "thing")
WIDTHS = (20, 9, 16, 13)  # of masks whose objects have a width of 20


def rectangle(row: int, width: int) -> dict[str, Any]:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    mask[16 * row : 16 * row + 10, :width] = 1
    rle = mask_util.encode(mask)
    return rle | {"counts": rle["counts"].decode()}


def annotation(row: int, width: int) -> dict[str, Any]:
    mask = rectangle(row, width)
    return {
        "id": row + 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [0, 16 * row, width, 10],
        "area": 10 * width,
        "segmentation": mask,
    }


def data_set(widths: tuple[int, ...]) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": SIDE, "width": SIDE}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [annotation(row, width) for row, width in enumerate(widths)],
    }


def ap(scores: tuple[float, ...] | None) -> dict[str, float]:
    found, truth = data_set(WIDTHS), data_set((20,) * len(WIDTHS))
    for record, score in zip(found["annotations"], scores or (), strict=False):
        record["score"] = score
    records = found["annotations"]
    file = BoxFile(Path("boxes.json"), found, records, found)
    count = len(records)
    measured = MaskScores(file, truth, [1] * count, [CATEGORY] * count, coco_limit(100, "--max"))
    return measured.metrics(measured.with_masks())


def test_annotations_without_scores_have_the_ap_of_the_best_order() -> None:
    of_orders = [ap(order) for order in itertools.permutations((0.2, 0.4, 0.6, 0.8))]
    best = max(metrics["AP"] for metrics in of_orders)
    assert ap(None)["AP"] == pytest.approx(best, abs=1e-9)
    assert min(metrics["AP"] for metrics in of_orders) < best - 5


def test_where_one_annotation_has_a_score_the_others_have_the_score_one() -> None:
    assert ap((0.1,)) == ap((0.1, 1.0, 1.0, 1.0))
    assert ap((0.1,))["AP"] < ap(None)["AP"]  # the best mask comes last
