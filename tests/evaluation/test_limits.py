"""The number of results that count for AP, and the warnings about sets with more."""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.evaluation.lvis_evaluation import _evaluate_predictions_on_lvis
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from point_rend import load_config
from point_rend.config.checks import check_config
from point_rend.data.datasets.coco import register_coco
from point_rend.evaluation.build import build_evaluator
from point_rend.evaluation.coco_ap import METRICS, TASKS, CocoAP
from point_rend.evaluation.limits import coco_limit, limit_warnings, lvis_limit
from point_rend.evaluation.lvis_ap import lvis_metrics
from tests.evaluation.oracles import encoded, random_set
from tests.evaluation.test_evaluators import as_prediction
from tests.evaluation.test_lvis_ap import federated_set, load
from tests.tiny_datasets import POINTREND, process_state_restored, write_coco

DETECTION = "point_rend.evaluation.coco_ap.has_faster_coco_eval"
NAMES = {1: "cell", 2: "nerve"}


@pytest.fixture(params=["faster-coco-eval", "pycocotools"])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pycocotools":
        monkeypatch.setattr(DETECTION, lambda: False)
    return request.param


def grid(count: int, *, category: int = 1, image: int = 1) -> list[dict[str, Any]]:
    """Return squares of 4 pixels in an image of 128×128 pixels, as annotations."""
    squares = []
    for number in range(count):
        x, y = 6 * (number % 20), 6 * (number // 20)
        mask = np.zeros((128, 128), bool)
        mask[y : y + 4, x : x + 4] = True
        squares.append(
            {
                "id": number + 1,
                "image_id": image,
                "category_id": category,
                "iscrowd": 0,
                "bbox": [x, y, 4, 4],
                "area": 16,
                "segmentation": encoded(mask),
            }
        )
    return squares


def dataset(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": [{"id": k, "file_name": f"{k}.png", "height": 128, "width": 128} for k in (1, 2)],
        "categories": [{"id": k, "name": name} for k, name in NAMES.items()],
        "annotations": annotations,
    }


def found(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [x | {"score": 1 - 0.001 * k} for k, x in enumerate(annotations)]


def official(content: dict[str, Any], results: list[dict[str, Any]], task: str, max_dets: Any):
    """Compute the precision with pycocotools."""
    if task == "segm":
        results = [{k: v for k, v in x.items() if k != "bbox"} for x in results]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = content
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(results), task)
        if max_dets:
            evaluation.params.maxDets = max_dets
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("number", [1, 2, 3, 100, 1000])
def test_precision_equals_that_of_pycocotools_with_the_same_limit(task: str, number: int) -> None:
    content, results = random_set(seed=5, images=3, size=(60, 80))
    precision = CocoAP(content, max_dets=number).precision(results, task)
    expected = official(content, results, task, [number])
    np.testing.assert_allclose(precision, expected, rtol=0, atol=1e-6)


def test_by_default_precision_is_that_of_pycocotools_to_the_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DETECTION, lambda: False)
    content = dataset(grid(130))
    results = found(grid(130))[::-1]
    for task in ("bbox", "segm"):
        precision = CocoAP(content).precision(results, task)
        assert np.array_equal(precision, official(content, results, task, None))


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("task", TASKS)
def test_a_higher_limit_gives_perfect_results_of_crowded_images_an_ap_of_100(task: str) -> None:
    content, results = dataset(grid(225)), found(grid(225))
    low = CocoAP(content).metrics(results, task)["AP"]
    assert low == pytest.approx(100 * np.mean(np.linspace(0, 1, 101) <= 100 / 225))
    assert CocoAP(content, max_dets=225).metrics(results, task)["AP"] == pytest.approx(100)


@pytest.mark.parametrize("number", [2, 5, 300])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_metrics_of_lvis_equal_those_of_detectron2_with_the_same_limit(
    number: int, task: str, tmp_path: Path
) -> None:
    content, results = federated_set(4)
    gt = load(content, tmp_path)
    metrics = lvis_metrics(gt, results, task, max_dets=number)
    expected = _evaluate_predictions_on_lvis(
        load(content, tmp_path), results, task, max_dets_per_image=number
    )
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_sets_within_the_limit_cause_no_warning() -> None:
    objects = grid(100) + grid(100, category=2) + grid(100, image=2)
    assert limit_warnings(objects, found(objects), NAMES, coco_limit()) == []


def test_crowds_are_no_objects() -> None:
    crowds = [x | {"iscrowd": 1} for x in grid(101)]
    assert limit_warnings(crowds, [], NAMES, coco_limit()) == []


def test_objects_beyond_the_limit_are_counted_by_image_and_class() -> None:
    objects = grid(102) + grid(101, image=2) + grid(90, category=2)
    (warning,) = limit_warnings(objects, [], NAMES, coco_limit())
    assert warning.startswith(
        "2 images have more than 100 objects of a class (the most are 102 of 'cell' in image 1)"
    )
    assert warning.endswith("raise TEST.MAX_DETS_PER_IMAGE")
    assert limit_warnings(objects, [], NAMES, coco_limit(102)) == []


def test_results_beyond_the_limit_are_counted() -> None:
    results = found(grid(102) + grid(103, category=2))
    (warning,) = limit_warnings([], results, NAMES, coco_limit(setting="--max-dets"))
    assert warning.startswith("1 image has more than 100 results of a class (the most are 103 of")
    assert warning.endswith("the other 5 are ignored; --max-dets sets this limit")


def test_for_lvis_the_objects_of_all_classes_count() -> None:
    objects = grid(151) + grid(151, category=2)
    (warning,) = limit_warnings(objects, [], NAMES, lvis_limit())
    assert warning.startswith("1 image has more than 300 objects (the most are 302 in image 1)")


def test_the_models_own_limit_is_named_if_an_image_has_more_objects() -> None:
    objects = grid(60) + grid(60, category=2)
    (warning,) = limit_warnings(objects, [], NAMES, coco_limit(of_model=100))
    assert "the model returns at most 100 results of an image" in warning
    assert warning.endswith("raise TEST.DETECTIONS_PER_IMAGE")
    assert limit_warnings(objects, [], NAMES, coco_limit(of_model=120)) == []


@pytest.mark.parametrize("value", ["0", "-2", "1000001"])
def test_an_impossible_limit_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=f"TEST.MAX_DETS_PER_IMAGE: expected 1 .* got {value}"):
        check_config(load_config(POINTREND, ["TEST.MAX_DETS_PER_IMAGE", value]), training=False)


def test_an_evaluation_warns_of_both_limits_and_the_config_raises_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with process_state_restored():
        register_coco("tiny_coco", *write_coco(tmp_path))
        (record, *_) = [x for x in DatasetCatalog.get("tiny_coco") if len(x["annotations"]) > 1]
        aps = []
        for limits in ((1, 1), (100, 100)):
            names = ("TEST.MAX_DETS_PER_IMAGE", "TEST.DETECTIONS_PER_IMAGE")
            opts = [word for pair in zip(names, map(str, limits), strict=True) for word in pair]
            cfg = load_config(POINTREND, ["OUTPUT_DIR", str(tmp_path / "output"), *opts])
            evaluator = build_evaluator(cfg, "tiny_coco")
            evaluator.reset()
            instances = as_prediction(record["annotations"] * 2)
            instances.scores = instances.scores.sort(descending=True).values
            evaluator.process([record], [{"instances": instances}])
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                aps.append(evaluator.evaluate()["segm"][METRICS[0]])
            text = " ".join(caplog.messages)
            assert ("raise TEST.DETECTIONS_PER_IMAGE" in text) is (limits == (1, 1))
            assert ("TEST.MAX_DETS_PER_IMAGE sets this limit" in text) is (limits == (1, 1))


def test_an_evaluation_without_results_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with process_state_restored():
        register_coco("tiny_coco", *write_coco(tmp_path))
        cfg = load_config(POINTREND, ["OUTPUT_DIR", str(tmp_path / "output")])
        evaluator = build_evaluator(cfg, "tiny_coco")
        evaluator.reset()
        record = DatasetCatalog.get("tiny_coco")[0]
        nothing = as_prediction(record["annotations"])[:0]
        evaluator.process([record], [{"instances": nothing}])
        with caplog.at_level(logging.WARNING):
            evaluator.evaluate()
    assert "tiny_coco: there are no results at all" in caplog.messages
