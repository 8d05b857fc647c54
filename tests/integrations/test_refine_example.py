"""Masks of a real model for given detections: in Python, and by the example."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision as sv

from examples import refine_detections
from point_rend import Predictor, load_config
from point_rend.integrations.supervision import refine, to_detections
from tests.cli.test_predict import THREE_CLASSES, checkpoint_of
from tests.conftest import REPOSITORY
from tests.tiny_datasets import KINDS, POINTREND, TINY_MODEL, scene

BOXES = np.array([[4.0, 6.0, 40.0, 44.0], [20.5, 10.25, 60.0, 50.0]])


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    weights = checkpoint_of(tmp_path_factory.mktemp("model") / "m.pth", thing_classes=list(KINDS))
    return Predictor(load_config(POINTREND, [*TINY_MODEL, *THREE_CLASSES, *weights]))


def given(*names: str) -> sv.Detections:
    return sv.Detections(
        xyxy=BOXES.copy(), class_id=np.array([90, 17]), data={"class_name": np.array(names)}
    )


def test_refined_masks_are_those_of_the_model_for_these_boxes(predictor: Predictor) -> None:
    image = scene(0)[0]
    names = [KINDS[2], KINDS[0]]
    expected = predictor.masks_for(image, BOXES, [2, 0]).pred_masks.numpy()
    assert expected.any(axis=(1, 2)).all()
    mapped = refine(predictor, image, given("x", "y"), {"x": names[0], 17: 0})
    for refined in (refine(predictor, image, given(*names)), mapped):
        np.testing.assert_array_equal(refined.mask, expected)
        np.testing.assert_array_equal(refined.xyxy, BOXES)
        assert refined.class_id.tolist() == [90, 17]
    compact = refine(predictor, image, given(*names), compact=True).mask
    np.testing.assert_array_equal(compact.to_dense(), expected)
    empty = refine(predictor, image, sv.Detections.empty())
    assert empty.mask.shape == (0, *image.shape[:2])


def test_detections_of_the_model_itself_keep_their_masks(predictor: Predictor) -> None:
    image = scene(1)[0]
    own = to_detections(predictor(image), predictor.metadata)
    assert len(own) > 0
    assert set(own["class_name"]) <= set(KINDS)
    again = refine(predictor, image, own)
    assert (again.mask != own.mask).mean() < 1e-3  # up to rounding of the boxes
    np.testing.assert_array_equal(again.class_id, own.class_id)


def test_the_example_draws_a_mask_for_each_box(
    predictor: Predictor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda _: predictor)
    photo, boxes, output = (str(tmp_path / x) for x in ("photo.png", "boxes.json", "masks.png"))
    image = scene(0)[0]
    cv2.imwrite(photo, image)
    found = [
        {
            "name": name,
            "class": 5,
            "confidence": 0.75,
            "box": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
        }
        for name, box in zip(("thing", KINDS[0]), BOXES.tolist(), strict=True)
    ]
    Path(boxes).write_text(json.dumps(found), encoding="utf-8")
    detections = refine_detections.main("m.pth", photo, boxes, output, f"thing={KINDS[2]}")
    expected = predictor.masks_for(image, BOXES, [2, 0]).pred_masks.numpy()
    np.testing.assert_array_equal(detections.mask, expected)
    np.testing.assert_array_equal(detections.confidence, [0.75, 0.75])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"thing: {expected[0].sum()} pixels",
        f"{KINDS[0]}: {expected[1].sum()} pixels",
    ]
    changed = (cv2.imread(output) != image).any(axis=2)
    assert changed[expected.any(axis=0)].mean() > 0.95
    code = (REPOSITORY / "examples" / "refine_detections.py").read_text(encoding="utf-8")
    assert len(code.splitlines()) < 60
    Path(boxes).write_text("[]", encoding="utf-8")
    assert len(refine_detections.main("m.pth", photo, boxes, output)) == 0
