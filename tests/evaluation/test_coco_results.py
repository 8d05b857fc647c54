"""Metrics of result files, and `pointrend compare`."""

import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest

from point_rend.cli import compare
from point_rend.data.shapes.coco import Split, generate
from point_rend.evaluation.coco_results import average_precision
from point_rend.evaluation.comparison import PANEL_HEIGHT


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    folder = tmp_path_factory.mktemp("demo") / "shapes"
    return generate(folder, num_train=1, num_val=4, image_size=(128, 128), seed=1)["val"]


def results_of(split: Split, path: Path, *, thicker: int = 0) -> Path:
    """Write the ground truth as results, optionally with some pixels added all around."""
    content = json.loads(split.json_file.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    results = []
    for annotation in content["annotations"]:
        rle = annotation["segmentation"]
        if isinstance(rle, list):
            rle = mask_util.merge(mask_util.frPyObjects(rle, *sizes[annotation["image_id"]]))
        mask = cv2.dilate(mask_util.decode(rle), np.ones((3, 3), np.uint8), iterations=thicker)
        rle = mask_util.encode(np.asfortranarray(mask))
        rle["counts"] = rle["counts"].decode()
        result = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        results.append(result | {"segmentation": rle, "score": 0.9})
    path.write_text(json.dumps(results))
    return path


def test_the_ground_truth_has_an_ap_of_100_and_empty_results_of_0(
    split: Split, tmp_path: Path
) -> None:
    perfect = average_precision(split.json_file, results_of(split, tmp_path / "perfect.json"))
    assert perfect == pytest.approx({"AP": 100, "AP50": 100, "AP75": 100, "boundary AP": 100})
    (tmp_path / "empty.json").write_text("[]")
    nothing = average_precision(split.json_file, tmp_path / "empty.json")
    assert nothing == {"AP": 0, "AP50": 0, "AP75": 0, "boundary AP": 0}


def test_blurred_outlines_cost_boundary_ap_more_than_ap(split: Split, tmp_path: Path) -> None:
    thick = results_of(split, tmp_path / "thick.json", thicker=1)
    scores = average_precision(split.json_file, thick)
    assert scores["boundary AP"] < scores["AP"] < 100


def test_results_are_compared_in_a_table_and_in_one_picture_per_image(
    split: Split, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    perfect = results_of(split, tmp_path / "perfect.json")
    thick = results_of(split, tmp_path / "thick.json", thicker=1)
    compare.main(
        [
            *("--annotations", str(split.json_file), "--image-root", str(split.image_root)),
            *("--results", f"thick={thick}", "--results", f"perfect={perfect}"),
            *("--output", str(tmp_path / "pictures"), "--num-images", "2"),
        ]
    )
    table = capsys.readouterr().out
    assert "perfect         100.0         100.0         100.0         100.0" in table
    files = sorted((tmp_path / "pictures").iterdir())
    assert [file.name for file in files] == ["01.jpg", "02.jpg"]
    picture = cv2.imread(str(files[0]))
    panels = np.array_split(picture[-PANEL_HEIGHT:], 4, axis=1)
    error = [np.abs(panel[:, 20:-20].astype(int) - panels[3][:, 20:-20]).mean() for panel in panels]
    # JPEG and the gap between panels cost a little; a mask one pixel thicker costs more.
    assert error[2] < error[1] < error[0]


def test_a_missing_result_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    with pytest.raises(SystemExit) as stop:
        compare.main(["--results", f"a={missing}"])
    assert stop.value.code == 2


def test_invalid_annotations_and_images_are_named(
    split: Split, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results = results_of(split, tmp_path / "results.json")
    (tmp_path / "cut.json").write_text("{")
    cases = [
        (tmp_path / "cut.json", split.image_root, "cut.json is truncated or not JSON"),
        (split.json_file, tmp_path, "there is no image"),
    ]
    for annotations, images, message in cases:
        command = ["--annotations", annotations, "--image-root", images]
        command += ["--results", f"a={results}", "--output", tmp_path / "out"]
        with pytest.raises(SystemExit) as stop:
            compare.main(list(map(str, command)))
        assert stop.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
