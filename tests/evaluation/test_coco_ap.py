"""AP and boundary AP by COCO's rule, against a slow definition, pycocotools and other oracles."""

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from point_rend.evaluation.coco_ap import FIGURES, KINDS, InstanceScores, has_faster_coco_eval
from tests.evaluation.oracles import SlowAP, random_set

HIDDEN = "point_rend.evaluation.instance_scores.has_faster_coco_eval"


@pytest.fixture(params=["faster-coco-eval", "pycocotools"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the packages that compute."""
    if request.param == "pycocotools":
        monkeypatch.setattr(HIDDEN, lambda: False)
    return request.param


def without_boxes(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in x.items() if key != "bbox"} for x in results]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("kind", ["segm", "boundary"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_figures_are_those_of_the_definition(kind: str, seed: int) -> None:
    content, results = random_set(seed, size=(150, 200))
    expected = SlowAP(content, results, boundaries=kind == "boundary").figures()
    figures = InstanceScores(content).figures(results, kind)
    assert list(figures)[:6] == list(FIGURES)
    assert figures.keys() == expected.keys()
    assert figures == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert math.isnan(figures["AP-class 4"])
    assert 5 < figures["AP"] < 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_both_engines_agree_to_a_millionth(
    kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_faster_coco_eval()
    content, results = random_set(seed, images=6, classes=4, size=(60, 80))
    scores = InstanceScores(content)
    faster = scores.precision(results, kind)
    monkeypatch.setattr(HIDDEN, lambda: False)
    slower = scores.precision(results, kind)
    assert faster.shape == slower.shape == (10, 101, 5, 4)
    np.testing.assert_allclose(faster, slower, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_figures_are_those_of_pycocotools_used_as_its_authors_do(kind: str) -> None:
    content, results = random_set(seed=7, size=(150, 200))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        found = truth.loadRes(results if kind == "bbox" else without_boxes(results))
        official = COCOeval(truth, found, kind)
        official.evaluate()
        official.accumulate()
        official.summarize()
    figures = InstanceScores(content).figures(results, kind)
    assert (official.stats[:6] > 0.01).all()
    expected = 100 * official.stats[:6]
    np.testing.assert_allclose([figures[name] for name in FIGURES], expected, atol=1e-6)


def test_boundary_ap_is_that_of_faster_coco_eval_which_finds_boundaries_itself() -> None:
    import faster_coco_eval

    content, results = random_set(seed=3, size=(150, 200))
    figures = InstanceScores(content).figures(results, "boundary")
    truth = faster_coco_eval.COCO(content)
    found = truth.loadRes(without_boxes(results))
    theirs = faster_coco_eval.COCOeval_faster(
        truth, found, "boundary", boundary_dilation_ratio=0.02
    )
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    np.testing.assert_allclose([figures[x] for x in FIGURES], 100 * theirs.stats[:6], atol=1e-6)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new_id", [str, lambda id_: f"image {id_:03}", lambda id_: id_ - 100])
def test_ids_of_images_may_be_anything(kind: str, new_id: Callable[[int], int | str]) -> None:
    content, results = random_set(seed=4, images=6, size=(60, 80))
    renamed = {
        "images": [image | {"id": new_id(image["id"])} for image in content["images"]],
        "annotations": [x | {"image_id": new_id(x["image_id"])} for x in content["annotations"]],
        "categories": content["categories"],
    }
    found = [result | {"image_id": new_id(result["image_id"])} for result in results]
    figures = InstanceScores(content).figures(results, kind)
    assert InstanceScores(renamed).figures(found, kind) == pytest.approx(figures, nan_ok=True)


@pytest.mark.usefixtures("engine")
def test_a_shifted_square_is_found_up_to_the_iou_of_its_frame() -> None:
    """In 60×80 pixels bands are 2 wide; squares of 20, one moved by 2.

    Masks: 20·18 of 20·22 pixels in common, IoU 0.818: 7 thresholds. Bands: 144 pixels each. In
    common are the 2·2 rows of 18, and of the 16 rows between them nothing but the columns at which
    a left side meets none of the other: 72 of 216 pixels, IoU 1/3.
    """
    square = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    truth = square | {"id": 1, "bbox": [10, 10, 20, 20], "area": 400}
    truth["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30]]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [truth],
    }
    moved = square | {"score": 0.5, "segmentation": [[12, 10, 32, 10, 32, 30, 12, 30]]}
    scores = InstanceScores(content)
    assert scores.figures([moved], "segm")["AP"] == pytest.approx(70)
    assert scores.figures([moved], "boundary")["AP"] == 0


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("kind", KINDS)
def test_without_results_nothing_is_found(kind: str) -> None:
    content, _ = random_set(seed=0)
    figures = InstanceScores(content).figures([], kind)
    assert figures["AP"] == figures["AP-class 1"] == 0
    assert math.isnan(figures["AP-class 4"])


@pytest.mark.usefixtures("engine")
def test_without_objects_nothing_is_a_number() -> None:
    content, results = random_set(seed=0)
    figures = InstanceScores(content | {"annotations": []}).figures(results, "segm")
    assert all(math.isnan(figure) for figure in figures.values())


@pytest.mark.usefixtures("engine")
def test_all_encodings_of_a_mask_are_the_same_mask() -> None:
    content, results = random_set(seed=5)
    scores = InstanceScores(content)
    runs = [x | {"segmentation": uncompressed(x["segmentation"])} for x in results]
    assert scores.figures(runs, "boundary") == pytest.approx(
        scores.figures(results, "boundary"), nan_ok=True
    )


def uncompressed(rle: dict[str, Any]) -> dict[str, Any]:
    import pycocotools.mask as mask_util

    pixels = mask_util.decode(rle).ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *edges, pixels.size]).tolist()
    return {"size": list(rle["size"]), "counts": [0, *runs] if pixels[0] else runs}


@pytest.mark.usefixtures("engine")
def test_neither_annotations_nor_results_are_changed() -> None:
    content, results = random_set(seed=2)
    before, results_before = repr(content), repr(results)
    scores = InstanceScores(content)
    for kind in KINDS:
        scores.figures(results, kind)
    assert repr(content) == before
    assert repr(results) == results_before


@pytest.mark.usefixtures("engine")
def test_annotations_may_lack_area_and_crowd_flag_and_have_the_id_0() -> None:
    content, results = random_set(seed=4)
    annotations = [x | {"iscrowd": 0} for x in content["annotations"]]
    expected = InstanceScores(content | {"annotations": annotations}).figures(results, "segm")
    bare = [
        {key: value for key, value in x.items() if key not in ("area", "iscrowd")} | {"id": k}
        for k, x in enumerate(annotations)
    ]
    figures = InstanceScores(content | {"annotations": bare}).figures(results, "segm")
    assert figures == pytest.approx(expected, nan_ok=True)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="bbox, segm, boundary, got 'masks'"):
        InstanceScores(random_set(seed=0)[0]).figures([], "masks")
