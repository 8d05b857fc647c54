"""AP and boundary AP of LVIS, against a slow definition and LVIS's own summary."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from lvis import LVIS, LVISEval

from point_rend.data.checks.masks import compressed_rle
from point_rend.evaluation.coco_ap import METRICS
from point_rend.evaluation.lvis_ap import FREQUENCIES, complete_lvis, lvis_metrics
from tests.evaluation.oracles import SlowAP, random_set

Records = list[dict[str, Any]]


def federated_set(seed: int) -> tuple[dict[str, Any], Records]:
    """Draw annotations in which some classes of images are unknown, absent or not exhaustive."""
    content, results = random_set(seed, images=5, size=(150, 200))
    rng = np.random.default_rng(seed)
    ids = [category["id"] for category in content["categories"]]
    for category, frequency in zip(content["categories"], "rcff", strict=True):
        category["frequency"] = frequency
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    for image in content["images"]:
        image["neg_category_ids"] = [int(rng.choice(ids))]
        image["not_exhaustive_category_ids"] = [int(rng.choice(ids))]
    dropped = {(image["id"], int(rng.choice(ids))) for image in content["images"]}
    content["annotations"] = [
        x for x in content["annotations"] if (x["image_id"], x["category_id"]) not in dropped
    ]
    return content, results


def load(content: dict[str, Any], folder: Path) -> LVIS:
    path = folder / "lvis.json"
    path.write_text(json.dumps(content))
    return LVIS(str(path))


@pytest.mark.parametrize("task", ["segm", "boundary"])
@pytest.mark.parametrize("seed", [1, 2])
def test_metrics_follow_the_definition(task: str, seed: int, tmp_path: Path) -> None:
    content, results = federated_set(seed)
    slow = SlowAP(content, results, boundaries=task == "boundary", federated=True).metrics()
    metrics = lvis_metrics(load(content, tmp_path), results, task)
    assert list(metrics)[:9] == [*METRICS, *FREQUENCIES]
    by_frequency = {
        "APr": slow["AP-class 1"],
        "APc": slow["AP-class 2"],
        "APf": np.nanmean([slow["AP-class 3"], slow["AP-class 4"]]),
    }
    assert metrics == pytest.approx(slow | by_frequency, abs=1e-9, nan_ok=True)
    assert 5 < metrics["AP"] < 50


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_metrics_equal_those_of_lvis_itself(task: str, tmp_path: Path) -> None:
    content, results = federated_set(3)
    metrics = lvis_metrics(load(content, tmp_path), results, task)
    if task == "segm":
        results = [{key: x[key] for key in x if key != "bbox"} for x in results]
    official = LVISEval(load(content, tmp_path), results, task)
    official.run()
    expected = official.get_results()
    for name in (*METRICS, *FREQUENCIES):
        assert metrics[name] == pytest.approx(100 * expected[name])


def test_results_are_not_changed(tmp_path: Path) -> None:
    content, results = federated_set(1)
    before = repr(results)
    lvis_metrics(load(content, tmp_path), results, "boundary")
    assert repr(results) == before


def test_a_second_evaluation_on_the_same_annotations_gives_the_same(tmp_path: Path) -> None:
    content, results = federated_set(1)
    gt = load(content, tmp_path)
    first = lvis_metrics(gt, results, "boundary")
    assert lvis_metrics(gt, results, "boundary") == pytest.approx(first, nan_ok=True)


def test_areas_that_are_missing_are_those_of_the_masks(tmp_path: Path) -> None:
    content, results = federated_set(1)
    for annotation in content["annotations"]:
        mask = annotation["segmentation"]
        size = next(x for x in content["images"] if x["id"] == annotation["image_id"])
        rle = compressed_rle(mask, size["height"], size["width"])
        annotation["area"] = float(mask_util.area(rle))
    expected = lvis_metrics(load(content, tmp_path), results, "segm")
    del content["annotations"][0]["area"]
    content["annotations"][1]["area"] = None
    gt = load(content, tmp_path)
    complete_lvis(gt)
    assert lvis_metrics(gt, results, "segm") == pytest.approx(expected, nan_ok=True)


def test_without_results_all_metrics_are_nan(tmp_path: Path) -> None:
    metrics = lvis_metrics(load(federated_set(1)[0], tmp_path), [], "segm")
    assert list(metrics) == [*METRICS, *FREQUENCIES]
    assert all(math.isnan(figure) for figure in metrics.values())
