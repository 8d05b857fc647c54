"""`pointrend refine`: masks for boxes of COCO files, on a tiny model with random weights."""

import copy
import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import CfgNode
from pycocotools.coco import COCO

from point_rend import Predictor, load_config
from point_rend.cli import refine, run_command, score
from point_rend.refinement import run as run_module
from tests.cli.test_predict import THREE_CLASSES, checkpoint_of
from tests.tiny_datasets import (
    HEIGHT,
    KINDS,
    POINTREND,
    TINY_MODEL,
    WIDTH,
    CocoSet,
    process_state_restored,
    write_coco,
)

IDS = {3: 0, 7: 1, 12: 2}  # of the categories of `write_coco`, with the model's classes
AGNOSTIC = (
    *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True"),
    *("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", "True"),
)
Record = dict[str, Any]


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["refine.py"])
    with process_state_restored():
        yield


@cache
def model(*opts: str) -> tuple[tuple[str, ...], Predictor]:
    """Return the options that name a model with the data set's classes, and its predictor."""
    weights = checkpoint_of(
        Path(mkdtemp()) / "m.pth",
        opts=[*THREE_CLASSES, *opts],
        thing_classes=list(KINDS),
        thing_dataset_id_to_contiguous_id=IDS,
    )
    words = (*TINY_MODEL, *THREE_CLASSES, *opts, *weights)
    return words, Predictor(load_config(POINTREND, list(words)), paste_masks=False)


class Files:
    """A data set, and files of boxes for it."""

    def __init__(self, folder: Path, dataset: CocoSet) -> None:
        self.folder = folder
        self.root = Path(dataset.image_root)
        self.truth = Path(dataset.json_file)
        self.content = dataset.read()
        for image in self.content["images"]:  # so that names and ids agree
            name = f"{image['id']:03d}.jpg"
            os.rename(self.root / image["file_name"], self.root / f"new_{name}")
            image["file_name"] = name
        for image in self.content["images"]:
            name = image["file_name"]
            os.rename(self.root / f"new_{name}", self.root / name)
        dataset.rewrite(self.content)

    def results(self) -> list[Record]:
        """Return a result for each object, with a field that no format has."""
        return [
            {
                "image_id": x["image_id"],
                "category_id": x["category_id"],
                "bbox": x["bbox"],
                "score": round(0.9 - 0.05 * k, 2),
                "track": f"t{k}",
            }
            for k, x in enumerate(self.content["annotations"])
        ]

    def image(self, image_id: int) -> Path:
        names = {x["id"]: x["file_name"] for x in self.content["images"]}
        return self.root / names[image_id]

    def refine(self, boxes: Any, *words: str | Path, opts: Sequence[str] = ()) -> Any:
        """Run the command on a file of boxes; return what it writes."""
        path = self.folder / "boxes.json"
        path.write_text(json.dumps(boxes))
        output = self.folder / "refined.json"
        command = ["--config-file", POINTREND, "--boxes", path, "--images", self.root]
        command += ["--output", output, *words, "--opts", *model(*opts)[0]]
        refine.main([str(word) for word in command])
        return json.loads(output.read_text())

    def expected(self, record: Record, category: int, opts: Sequence[str] = ()) -> Record:
        """Return the mask of one record, alone in its image."""
        x, y, width, height = record["bbox"]
        found = model(*opts)[1].masks_for(
            self.image(record["image_id"]), [[x, y, x + width, y + height]], [category]
        )
        (rle,) = found.pred_masks.rles()
        return rle | {"counts": rle["counts"].decode()}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Return the files of a data set; the command takes the model that is loaded already."""

    def loaded(cfg: CfgNode, **_: Any) -> Predictor:
        known = model(*(AGNOSTIC if cfg.MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK else ()))
        assert cfg.MODEL.WEIGHTS in known[0]
        return known[1]

    monkeypatch.setattr(run_module, "Predictor", loaded)
    return Files(tmp_path, write_coco(tmp_path / "set", suffix=".jpg"))


def refused(files: Files, capsys: pytest.CaptureFixture[str], boxes: Any, *words: Any) -> str:
    """Return the line with which the command refuses its input; it writes nothing."""
    with pytest.raises(SystemExit) as end:
        files.refine(boxes, *words)
    assert end.value.code == 2
    assert not (files.folder / "refined.json").exists()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("refine.py: error: ")
    return line


def failed(files: Files, capsys: pytest.CaptureFixture[str], boxes: Any, *words: Any) -> str:
    """Return the lines of a run in which some boxes have no new masks."""
    with pytest.raises(SystemExit) as end:
        files.refine(boxes, *words)
    assert end.value.code == 1
    return capsys.readouterr().err


def written(files: Files) -> Any:
    return json.loads((files.folder / "refined.json").read_text())


def without_mask(record: Record) -> Record:
    return {key: x for key, x in record.items() if key not in ("segmentation", "area")}


# Both forms of files


def test_results_get_the_masks_of_the_model_and_keep_everything_else(files: Files) -> None:
    results = files.results()
    refined = files.refine(results)
    assert [without_mask(x) for x in refined] == results
    for record, result in zip(refined, results, strict=True):
        assert record["segmentation"] == files.expected(result, IDS[result["category_id"]])
        assert "area" not in record
    loaded = COCO(str(files.truth)).loadRes(str(files.folder / "refined.json"))
    assert len(loaded.anns) == len(results)


def test_annotations_keep_their_shape_and_all_other_fields(files: Files) -> None:
    content = copy.deepcopy(files.content)
    content |= {"info": {"année": 2026, "url": None}, "licenses": [{"id": 1}]}
    content["annotations"][1] |= {"attributes": {"occluded": True}, "score": 0.25}
    content["annotations"][2]["iscrowd"] = 1
    content["images"][0]["license"] = 1
    refined = files.refine(content)
    assert list(refined) == list(content)
    for key in ("info", "licenses", "images", "categories"):
        assert refined[key] == content[key]
    pairs = list(zip(refined["annotations"], content["annotations"], strict=True))
    for record, annotation in pairs:
        assert list(record) == list(annotation)
        assert without_mask(record) == without_mask(annotation)
        if annotation["iscrowd"]:
            assert record == annotation
        else:
            category = IDS[annotation["category_id"]]
            assert record["segmentation"] == files.expected(annotation, category)
            assert record["area"] == mask_util.area(record["segmentation"])


def test_a_box_that_is_missing_is_that_of_the_mask(files: Files) -> None:
    content = copy.deepcopy(files.content)
    missing: list[Any] = [None, [], [0, 0, 0, 0], "absent", [WIDTH, 0, 5, 5], None]
    for annotation, bbox in zip(content["annotations"], missing, strict=True):
        annotation["bbox"] = bbox
        if bbox == "absent":
            del annotation["bbox"]
    refined = files.refine(content)
    for record, own in zip(refined["annotations"], files.content["annotations"], strict=True):
        mask = own["segmentation"]
        if isinstance(mask, list):
            (x0, y0), (x1, y1) = np.reshape(mask, (-1, 2)).min(0), np.reshape(mask, (-1, 2)).max(0)
        else:
            runs = (
                mask
                if isinstance(mask["counts"], str)
                else mask_util.frPyObjects(mask, HEIGHT, WIDTH)
            )
            x0, y0, width, height = mask_util.toBbox(runs)
            x1, y1 = x0 + width, y0 + height
        bounds = {"image_id": own["image_id"], "bbox": [x0, y0, x1 - x0, y1 - y0]}
        expected = files.expected(bounds, IDS[own["category_id"]])
        assert record["segmentation"] == expected
    assert "bbox" not in refined["annotations"][3]


def test_the_command_runs_a_model_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = Files(tmp_path, write_coco(tmp_path / "set", suffix=".jpg"))
    refined = files.refine(files.results(), "--annotations", files.truth)
    assert refined[0]["segmentation"] == files.expected(files.results()[0], 0)
    output = capsys.readouterr().out.splitlines()
    assert output[0].endswith("refined.json: 6 of 6 boxes in 2 images have new masks")
    assert output[2].split() == ["AP", "AP50", "AP75", "boundary", "AP"]
    assert output[3].startswith("refined ")


def test_a_folder_of_save_pretrained_is_a_model(files: Files) -> None:
    folder = model()[1].save_pretrained(files.folder / "model")
    boxes, output = files.folder / "boxes.json", files.folder / "refined.json"
    boxes.write_text(json.dumps(files.results()))
    words = ["--model", folder, "--boxes", boxes, "--images", files.root, "--output", output]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "Predictor", lambda *_, **__: model()[1])
        refine.main([str(word) for word in words])
    assert written(files)[0]["segmentation"] == files.expected(files.results()[0], 0)


# Images


def yolo(files: Files, *, text: bool = False) -> list[Record]:
    """Return the boxes as Ultralytics writes them: images by stem, categories from 1."""
    stems = {x["id"]: Path(x["file_name"]).stem for x in files.content["images"]}
    return [
        {
            "image_id": stems[x["image_id"]] if text else int(stems[x["image_id"]]),
            "category_id": IDS[x["category_id"]] + 1,
            "bbox": x["bbox"],
            "score": x["score"],
        }
        for x in files.results()
    ]


@pytest.mark.parametrize(("text", "with_truth"), [(True, False), (False, True)])
def test_predictions_of_yolo_are_found_by_the_names_of_files(
    text: bool, with_truth: bool, files: Files
) -> None:
    expected = [x["segmentation"] for x in files.refine(files.results())]
    words = ["--class-map", "1=disc,2=box,3=triangle", "--overwrite"]
    words += ["--annotations", str(files.truth)] if with_truth else []
    boxes = yolo(files, text=text)
    for image in files.content["images"]:  # other ids than the numbers in the names
        image["id"] += 500
    for annotation in files.content["annotations"]:
        annotation["image_id"] += 500
    files.truth.write_text(json.dumps(files.content))
    refined = files.refine(boxes, *words)
    assert [without_mask(x) for x in refined] == boxes
    assert [x["segmentation"] for x in refined] == expected


def test_numbers_that_may_be_ids_are_pointed_out(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.refine(files.results())
    note = "image 1 is the file 001.jpg, by its name; if these are ids of a data set, pass its"
    assert note in capsys.readouterr().err
    files.refine(files.results(), "--annotations", files.truth, "--overwrite")
    assert note not in capsys.readouterr().err


def test_file_names_in_results_count_first(files: Files) -> None:
    expected = [x["segmentation"] for x in files.refine(files.results())]
    boxes = [
        x | {"image_id": 3 - x["image_id"], "file_name": files.image(x["image_id"]).name}
        for x in files.results()
    ]
    refined = files.refine(boxes, "--annotations", files.truth, "--overwrite")
    assert [x["segmentation"] for x in refined] == expected


def test_a_name_of_several_files_is_refused(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (files.root / name).mkdir()
        os.link(files.image(1), files.root / name / "x.png")
    boxes = [x | {"image_id": "x"} for x in files.results()]
    assert "the image 'x' fits 2 images of --images" in refused(files, capsys, boxes)
    content = copy.deepcopy(files.content)
    content["images"][0]["file_name"] = "x.png"
    assert "the image 'x.png' fits 2 images of --images" in refused(files, capsys, content)


def test_images_that_cannot_be_read_are_named_and_their_boxes_stay(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(files.content)
    files.image(1).write_bytes(b"no picture")
    error = failed(files, capsys, content)
    assert "1 images failed, and their boxes stay as they are:" in error
    assert f"{files.image(1)} is not an image" in error
    first, second = (
        [x for x in written(files)["annotations"] if x["image_id"] == k] for k in (1, 2)
    )
    assert first == [x for x in content["annotations"] if x["image_id"] == 1]
    assert second[0]["segmentation"] == files.expected(second[0], 0)
    files.image(1).unlink()
    error = failed(files, capsys, content, "--overwrite")
    assert f"{files.image(1).name}: there is no such image in --images" in error


def test_results_of_unknown_images_are_named_and_stay(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = files.results()
    boxes[0]["image_id"] = 77
    error = failed(files, capsys, boxes, "--annotations", files.truth)
    assert "image 77: there is no such image in --images" in error
    assert "5 of 6 boxes that are compared" not in error
    assert written(files)[0] == boxes[0]
    assert "segmentation" in written(files)[1]


def test_without_any_image_nothing_is_written(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(files.content)
    files.image(1).unlink()
    files.image(2).unlink()
    assert "none of its 2 images is in --images" in refused(files, capsys, content)
    for k in (1, 2):
        files.image(k).write_bytes(b"")
    line = refused(files, capsys, content)
    assert "no image could be used, so nothing is written, such as" in line


# Sizes


def test_boxes_and_masks_have_the_size_in_the_file_if_the_image_has_the_same_shape(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(files.content)
    small = files.refine(content)
    large = copy.deepcopy(content)
    for image in large["images"]:
        image |= {"height": 3 * HEIGHT, "width": 3 * WIDTH}
    for annotation in large["annotations"]:
        annotation["bbox"] = [3 * x for x in annotation["bbox"]]
    refined = files.refine(large, "--overwrite")
    error = capsys.readouterr().err
    assert "2 images are of another size than in --boxes or --annotations, with the same" in error
    for own, other in zip(refined["annotations"], small["annotations"], strict=True):
        assert own["segmentation"]["size"] == [3 * HEIGHT, 3 * WIDTH]
        mask, shrunk = (mask_util.decode(x["segmentation"]) for x in (other, own))
        assert (mask != shrunk[1::3, 1::3]).mean() < 0.002  # the centers of the same pixels


def test_an_image_of_another_shape_is_refused_by_name(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(files.content)
    content["images"][0] |= {"height": WIDTH, "width": HEIGHT}
    error = failed(files, capsys, content)
    size = f"(height, width) {(HEIGHT, WIDTH)}, expected {(WIDTH, HEIGHT)}"
    assert f"{files.image(1)} is of {size}" in error
    assert written(files)["annotations"][0] == content["annotations"][0]


# Boxes


def test_boxes_that_cannot_be_used_are_named_and_stay_as_they_are(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    results = files.results()
    bad: list[Any] = [[1, 2, float("nan"), 4], [9, 9, -3, 5], [1, 2, 3], "box", None]
    for result, bbox in zip(results, bad, strict=False):
        result["bbox"] = bbox
    del results[4]["bbox"]
    error = failed(files, capsys, results)
    assert "5 boxes cannot be used and stay as they are:" in error
    assert "result 0 of 001.jpg has the bbox [1, 2, nan, 4], expected 4 numbers" in error
    assert "result 1 of 001.jpg has the bbox [9, 9, -3, 5], whose width or height is neg" in error
    assert "result 2 of 001.jpg has the bbox [1, 2, 3], expected 4 numbers" in error
    assert "result 3 of 002.jpg has the bbox 'box', expected 4 numbers" in error
    assert "result 4 of 002.jpg has neither a bbox nor a segmentation" in error
    refined = written(files)
    assert repr(refined[:5]) == repr(results[:5])
    assert refined[5]["segmentation"] == files.expected(results[5], 2)


def test_boxes_beyond_their_image_are_counted_and_rendered_inside(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    results = files.results()
    results[0]["bbox"] = [-10, -10, 50, 50]
    results[1]["bbox"] = [10, 10, 0.5, 20]
    results[2]["bbox"] = [WIDTH + 5, 0, 4, 4]
    results[3]["bbox"] = [3, 3, 0, 9]
    refined = files.refine(results)
    error = capsys.readouterr().err
    assert "1 boxes reach beyond their images: their masks are rendered inside" in error
    assert "2 boxes have no area in their images: their masks are empty" in error
    assert "1 boxes are smaller than a pixel" in error
    inside = files.expected(results[0] | {"bbox": [0, 0, 40, 40]}, 0)
    assert refined[0]["segmentation"] == inside
    for k in (2, 3):
        assert mask_util.area(refined[k]["segmentation"]) == 0
    assert [without_mask(x) for x in refined] == results


def test_corners_in_place_of_width_and_height_are_suspected(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    results = files.results()
    for result in results:
        x, y, width, height = result["bbox"]
        result["bbox"] = [x, y, x + width, y + height]
    files.refine(results)
    assert "expected x, y, width, height; are they corners?" in capsys.readouterr().err


def test_boxes_in_fractions_of_the_image_are_refused(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    results = files.results()
    for result in results:
        result["bbox"] = [0.1, 0.2, 0.5, 0.25]
    line = refused(files, capsys, results)
    assert "no box is larger than a pixel, such as [0.1, 0.2, 0.5, 0.25]" in line


def test_thousands_of_boxes_in_an_image_are_rendered_in_chunks(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three boxes at a time for speed; every box has the mask that it has alone."""
    monkeypatch.setattr("point_rend.inference.given_boxes.BOXES_AT_ONCE", 3)
    sizes: list[int] = []
    heads = model()[1].model.roi_heads
    render = heads.forward_with_given_boxes
    monkeypatch.setattr(
        heads,
        "forward_with_given_boxes",
        lambda x, found: sizes.append(len(found[0])) or render(x, found),
    )
    results = [x | {"image_id": 1} for x in files.results()] * 2
    refined = files.refine(results)
    assert max(sizes) == 3
    for record, result in zip(refined[:6], results[:6], strict=True):
        assert record["segmentation"] == files.expected(result, IDS[result["category_id"]])


# Classes


def test_classes_are_matched_by_name_also_if_spelled_differently(files: Files) -> None:
    expected = files.refine(files.content)["annotations"]
    content = copy.deepcopy(files.content)
    for category, name in zip(content["categories"], ("DISC", "b_ox", "tri angle"), strict=True):
        category |= {"name": name, "id": category["id"] + 50}
    for annotation in content["annotations"]:
        annotation["category_id"] += 50
    refined = files.refine(content, "--overwrite")["annotations"]
    assert [x["segmentation"] for x in refined] == [x["segmentation"] for x in expected]


def test_results_with_names_of_categories_need_no_ids(files: Files) -> None:
    expected = files.refine(files.results())
    results = [
        x | {"category_id": 0, "category_name": KINDS[IDS[x["category_id"]]]}
        for x in files.results()
    ]
    refined = files.refine(results, "--overwrite")
    assert [x["segmentation"] for x in refined] == [x["segmentation"] for x in expected]


def test_a_class_map_maps_names_and_ids(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    content = copy.deepcopy(files.content)
    content["categories"][0]["name"] = "ball, red"
    mapping = files.folder / "map.json"
    mapping.write_text(json.dumps({"ball, red": "box", "7": "triangle"}))
    refined = files.refine(content, "--class-map", mapping)["annotations"]
    assert "classes: ball, red -> box, box -> triangle" in capsys.readouterr().err
    for record, index in zip(refined, (1, 2, 2, 1, 2, 2), strict=True):
        assert record["segmentation"] == files.expected(record, index)


def test_a_category_without_a_class_is_an_error_that_lists_both_sides(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(files.content)
    content["categories"][1]["name"] = "cube"
    line = refused(files, capsys, content)
    assert (
        "1 categories have no class in the model, with the numbers of their boxes cube (2)" in line
    )
    assert "the model's classes are 3 (disc, box, triangle): map them with --class-map" in line
    results = [x | {"category_id": x["category_id"] - 3} for x in files.results()]
    assert "category 0 (2), category 4 (2), category 9 (2)" in refused(files, capsys, results)


def test_boxes_of_categories_without_a_class_can_stay(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(files.content)
    content["categories"][1]["name"] = "cube"
    refined = files.refine(content, "--unmapped", "keep")["annotations"]
    assert "2 boxes are of categories without a class, and stay as they are" in (
        capsys.readouterr().err
    )
    for record, annotation in zip(refined, content["annotations"], strict=True):
        if annotation["category_id"] == 7:
            assert record == annotation
        else:
            assert record["segmentation"] == files.expected(record, IDS[record["category_id"]])


def test_a_class_agnostic_model_takes_any_category(files: Files) -> None:
    results = [x | {"category_id": 90} for x in files.results()]
    refined = files.refine(results, opts=AGNOSTIC)
    for record in refined:
        assert record["segmentation"] == files.expected(record, 2, AGNOSTIC)


def test_a_class_map_that_does_not_fit_is_refused(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(files, capsys, files.results(), "--class-map", "cube=bux")
    assert "cube is mapped to 'bux', but the model's classes are 3 (disc, box, triangle)" in line


# Scores


def test_ap_before_and_after_are_those_of_score(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [
        result | {"segmentation": x["segmentation"]}
        for result, x in zip(files.results(), files.content["annotations"], strict=True)
    ]
    files.refine(results, "--annotations", files.truth)
    before, after = capsys.readouterr().out.splitlines()[-2:]
    for name, row in (("boxes.json", before), ("refined.json", after)):
        output = files.folder / "scores.json"
        words = ["--annotations", files.truth, "--results", f"x={files.folder / name}"]
        score.main([str(word) for word in (*words, "--output", output)])
        scores = json.loads(output.read_text())["x"]
        metrics = [scores["AP"][key] for key in ("AP", "AP50", "AP75")]
        metrics.append(scores["boundary AP"]["AP"])
        assert row.split()[1:] == [f"{value:.1f}" for value in metrics]
    assert before.split() == ["before", "100.0", "100.0", "100.0", "100.0"]
    assert after.split()[0] == "refined"


def test_annotations_without_scores_can_be_compared(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(files.content)
    content["annotations"][0]["iscrowd"] = 1
    truth = files.folder / "truth.json"
    truth.write_text(json.dumps(content))
    files.refine(content, "--annotations", truth)
    output = capsys.readouterr().out
    assert "before          100.0         100.0" in output
    assert "5 of 6 boxes in 2 images" in output


def test_ap_needs_scores_of_results(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    results = files.results()
    del results[2]["score"]
    line = refused(files, capsys, results, "--annotations", files.truth)
    assert "result 2 has the score None, expected a number, which AP with --annotations" in line


# Files


def test_an_output_is_replaced_only_on_request_and_never_an_input(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    output = files.folder / "refined.json"
    output.write_text("mine")
    with pytest.raises(SystemExit):
        files.refine(files.results())
    assert (
        "refined.json exists: choose another name, or pass --overwrite" in capsys.readouterr().err
    )
    assert output.read_text() == "mine"
    assert len(files.refine(files.results(), "--overwrite")) == 6
    output.unlink()
    os.link(files.truth, output)
    before = files.truth.read_bytes()
    with pytest.raises(SystemExit):
        files.refine(files.results(), "--annotations", files.truth, "--overwrite")
    assert "is the input" in capsys.readouterr().err
    assert files.truth.read_bytes() == before


def test_an_interrupted_run_says_so_and_leaves_nothing(
    files: Files, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[Path] = []

    def interrupted(_: Any, image: Any, *__: Any) -> None:
        if rendered:
            raise KeyboardInterrupt
        rendered.append(image.file)

    monkeypatch.setattr(run_module, "_render", interrupted)
    boxes = files.folder / "boxes.json"
    boxes.write_text(json.dumps(files.results()))
    words = ["--config-file", POINTREND, "--boxes", boxes, "--images", files.root]
    words += ["--output", files.folder / "refined.json", "--opts", *model()[0]]
    with pytest.raises(SystemExit) as end:
        run_command("refine", [str(word) for word in words])
    assert end.value.code == 130
    assert "1 of 2 images were finished; nothing is written" in capfd.readouterr().err
    assert sorted(x.name for x in files.folder.iterdir()) == ["boxes.json", "set"]


def test_an_empty_list_stays_empty(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.refine([]) == []
    assert "0 of 0 boxes in 0 images have new masks" in capsys.readouterr().out


def test_an_image_whose_boxes_all_stay_is_not_read(files: Files) -> None:
    content = copy.deepcopy(files.content)
    for annotation in content["annotations"][:3]:
        annotation["iscrowd"] = 1
    files.image(1).write_bytes(b"no picture")
    assert files.refine(content)["annotations"][:3] == content["annotations"][:3]
