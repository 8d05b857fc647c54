"""AP and boundary AP of COCO, against a slow definition, pycocotools and other oracles."""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from point_rend.evaluation.coco_ap import METRICS, TASKS, CocoAP, has_faster_coco_eval
from tests.evaluation.oracles import SlowAP, random_set

DETECTION = "point_rend.evaluation.coco_ap.has_faster_coco_eval"


@pytest.fixture(params=["faster-coco-eval", "pycocotools"])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Select one of the two packages that compute AP."""
    if request.param == "pycocotools":
        monkeypatch.setattr(DETECTION, lambda: False)
    return request.param


def without_boxes(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in x.items() if key != "bbox"} for x in results]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("task", ["segm", "boundary"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_metrics_follow_the_definition(task: str, seed: int) -> None:
    content, results = random_set(seed, size=(150, 200))
    expected = SlowAP(content, results, boundaries=task == "boundary").metrics()
    metrics = CocoAP(content).metrics(results, task)
    assert list(metrics)[:6] == list(METRICS)
    assert metrics.keys() == expected.keys()
    assert metrics == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert math.isnan(metrics["AP-class 4"])
    assert 5 < metrics["AP"] < 50


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(5))
def test_both_packages_agree_to_a_millionth(
    task: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_faster_coco_eval()
    content, results = random_set(seed, images=6, classes=4, size=(60, 80))
    scores = CocoAP(content)
    faster = scores.precision(results, task)
    monkeypatch.setattr(DETECTION, lambda: False)
    slower = scores.precision(results, task)
    assert faster.shape == slower.shape == (10, 101, 5, 4)
    np.testing.assert_allclose(faster, slower, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_metrics_equal_those_of_pycocotools_as_its_authors_use_it(task: str) -> None:
    content, results = random_set(seed=7, size=(150, 200))
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = content
        gt.createIndex()
        found = gt.loadRes(results if task == "bbox" else without_boxes(results))
        official = COCOeval(gt, found, task)
        official.evaluate()
        official.accumulate()
        official.summarize()
    metrics = CocoAP(content).metrics(results, task)
    assert (official.stats[:6] > 0.01).all()
    expected = 100 * official.stats[:6]
    np.testing.assert_allclose([metrics[name] for name in METRICS], expected, atol=1e-6)


def test_boundary_ap_equals_that_of_faster_coco_eval() -> None:
    import faster_coco_eval

    content, results = random_set(seed=3, size=(150, 200))
    metrics = CocoAP(content).metrics(results, "boundary")
    gt = faster_coco_eval.COCO(content)
    found = gt.loadRes(without_boxes(results))
    theirs = faster_coco_eval.COCOeval_faster(gt, found, "boundary", boundary_dilation_ratio=0.02)
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    np.testing.assert_allclose([metrics[x] for x in METRICS], 100 * theirs.stats[:6], atol=1e-6)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("new_id", [str, lambda id_: f"image {id_:03}", lambda id_: id_ - 100])
def test_ids_of_images_may_be_anything(task: str, new_id: Callable[[int], int | str]) -> None:
    content, results = random_set(seed=4, images=6, size=(60, 80))
    renamed = {
        "images": [image | {"id": new_id(image["id"])} for image in content["images"]],
        "annotations": [x | {"image_id": new_id(x["image_id"])} for x in content["annotations"]],
        "categories": content["categories"],
    }
    found = [result | {"image_id": new_id(result["image_id"])} for result in results]
    metrics = CocoAP(content).metrics(results, task)
    assert CocoAP(renamed).metrics(found, task) == pytest.approx(metrics, nan_ok=True)


@pytest.mark.usefixtures("package")
def test_a_shifted_square_has_the_ap_derived_by_hand() -> None:
    """In 60×80 pixels the bands are 2 pixels wide; one of two squares of 20 is shifted by 2.

    Masks: they share 20·18 of 20·22 pixels, IoU 0.818: 7 thresholds. Bands: 144 pixels each. They
    share 2·2 rows of 18 pixels and nothing in the 16 rows between: 72 of 216 pixels, IoU 1/3.
    """
    square = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    gt = square | {"id": 1, "bbox": [10, 10, 20, 20], "area": 400}
    gt["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30]]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [gt],
    }
    moved = square | {"score": 0.5, "segmentation": [[12, 10, 32, 10, 32, 30, 12, 30]]}
    scores = CocoAP(content)
    assert scores.metrics([moved], "segm")["AP"] == pytest.approx(70)
    assert scores.metrics([moved], "boundary")["AP"] == 0


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("task", TASKS)
def test_without_results_ap_is_0(task: str) -> None:
    content, _ = random_set(seed=0)
    metrics = CocoAP(content).metrics([], task)
    assert metrics["AP"] == metrics["AP-class 1"] == 0
    assert math.isnan(metrics["AP-class 4"])


@pytest.mark.usefixtures("package")
def test_without_objects_all_metrics_are_nan() -> None:
    content, results = random_set(seed=0)
    metrics = CocoAP(content | {"annotations": []}).metrics(results, "segm")
    assert all(math.isnan(figure) for figure in metrics.values())


@pytest.mark.usefixtures("package")
def test_all_encodings_of_a_mask_are_equivalent() -> None:
    content, results = random_set(seed=5)
    scores = CocoAP(content)
    runs = [x | {"segmentation": uncompressed(x["segmentation"])} for x in results]
    assert scores.metrics(runs, "boundary") == pytest.approx(
        scores.metrics(results, "boundary"), nan_ok=True
    )


def uncompressed(rle: dict[str, Any]) -> dict[str, Any]:
    import pycocotools.mask as mask_util

    pixels = mask_util.decode(rle).ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *edges, pixels.size]).tolist()
    return {"size": list(rle["size"]), "counts": [0, *runs] if pixels[0] else runs}


@pytest.mark.usefixtures("package")
def test_neither_annotations_nor_results_are_changed() -> None:
    content, results = random_set(seed=2)
    before, results_before = repr(content), repr(results)
    scores = CocoAP(content)
    for task in TASKS:
        scores.metrics(results, task)
    assert repr(content) == before
    assert repr(results) == results_before


@pytest.mark.usefixtures("package")
def test_annotations_may_lack_area_and_crowd_flag_and_have_the_id_0() -> None:
    content, results = random_set(seed=4)
    annotations = [x | {"iscrowd": 0} for x in content["annotations"]]
    expected = CocoAP(content | {"annotations": annotations}).metrics(results, "segm")
    bare = [
        {key: value for key, value in x.items() if key not in ("area", "iscrowd")} | {"id": k}
        for k, x in enumerate(annotations)
    ]
    metrics = CocoAP(content | {"annotations": bare}).metrics(results, "segm")
    assert metrics == pytest.approx(expected, nan_ok=True)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("area", [None, "12", [12], math.nan, -1])
def test_an_area_that_is_none_is_that_of_the_mask(area: Any) -> None:
    content, results = random_set(seed=4)
    annotations = [{k: v for k, v in x.items() if k != "area"} for x in content["annotations"]]
    expected = CocoAP(content | {"annotations": annotations}).metrics(results, "segm")
    spoiled = [x | {"area": area} for x in annotations]
    metrics = CocoAP(content | {"annotations": spoiled}).metrics(results, "segm")
    assert metrics == pytest.approx(expected, nan_ok=True)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("word", "number"), [(None, 0), ("0", 0), ("1", 1), (True, 1)])
def test_a_crowd_flag_may_be_a_word(word: Any, number: int) -> None:
    content, results = random_set(seed=4)
    first, *others = content["annotations"]
    metrics = [
        CocoAP(content | {"annotations": [first | {"iscrowd": x}, *others]}).metrics(
            results, "segm"
        )
        for x in (number, word)
    ]
    assert metrics[0] == pytest.approx(metrics[1], nan_ok=True)


def test_masks_that_cannot_be_read_are_named_where_masks_are_compared() -> None:
    content, results = random_set(seed=4)
    boxes = CocoAP(content).metrics(results, "bbox")
    first, *others = content["annotations"]
    far = first | {"segmentation": [[2.1e8, 1, 5, 5, 9, 1]]}
    spoiled = CocoAP(content | {"annotations": [far, *others]})
    assert spoiled.metrics(results, "bbox") == pytest.approx(boxes, nan_ok=True)
    with pytest.raises(
        ValueError, match=r"ground truth has no valid mask: annotation 1: polygon 1"
    ):
        spoiled.metrics(results, "segm")
    results[2] |= {"segmentation": {"size": [5, 5], "counts": "0"}}
    with pytest.raises(ValueError, match="result 2 has no valid mask: RLE of size"):
        CocoAP(content).metrics(results, "segm")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("task", TASKS)
def test_ids_of_classes_may_be_anything_and_most_classes_without_objects(task: str) -> None:
    content, results = random_set(seed=4)
    expected = CocoAP(content).precision(results, task)
    new = {x["id"]: k * 2**40 - 2**42 for k, x in enumerate(content["categories"])}
    more = [{"id": k * 2**40 + 1, "name": f"more {k}"} for k in range(-4, 300)]
    for records in (content["annotations"], results):
        for record in records:
            record["category_id"] = new[record["category_id"]]
    results += [results[0] | {"category_id": more[7]["id"]}]
    content["categories"] = [x | {"id": new[x["id"]]} for x in content["categories"]] + more
    evaluation = CocoAP(content)
    precision = evaluation.precision(results, task)
    columns = [k for k, x in enumerate(evaluation.categories) if x["id"] in new.values()]
    assert precision.shape == (10, 101, len(new) + len(more), 4)
    np.testing.assert_array_equal(precision[:, :, columns], expected)
    assert (np.delete(precision, columns, axis=2) == -1).all()


def test_classes_of_one_name_keep_their_own_ap() -> None:
    content, results = random_set(seed=4)
    by_name = CocoAP(content).metrics(results, "segm")
    first, second, *others = content["categories"]
    twins = [first, second | {"name": first["name"]}, *others]
    metrics = CocoAP(content | {"categories": twins}).metrics(results, "segm")
    assert list(metrics.values()) == pytest.approx(list(by_name.values()), nan_ok=True)
    for category in (first, second):
        assert f"AP-{first['name']} (id {category['id']})" in metrics


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="bbox, segm, boundary, got 'masks'"):
        CocoAP(random_set(seed=0)[0]).metrics([], "masks")


@pytest.mark.parametrize("task", TASKS)
def test_results_that_are_checked_once_have_the_same_precision(task: str) -> None:
    content, results = random_set(seed=8, size=(60, 80))
    evaluation = CocoAP(content)
    checked = evaluation.checked(results)
    assert np.array_equal(
        evaluation.precision(checked, task), CocoAP(content).precision(results, task)
    )


def test_a_mask_that_cannot_be_read_is_named_with_its_result() -> None:
    content, results = random_set(seed=8, size=(60, 80))
    broken = [*results[:2], results[2] | {"segmentation": {"size": [60, 80], "counts": [1]}}]
    with pytest.raises(ValueError, match="result 2 has no valid mask: RLE of 1 pixels"):
        CocoAP(content).precision(broken, "segm")
