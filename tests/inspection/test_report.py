"""The report of planted data sets, its suggestions and the command."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from point_rend.cli.inspect import main
from point_rend.config.checks import check_config
from point_rend.config.loading import load_config
from point_rend.data.checks.annotations import leave_out_impossible_annotations
from point_rend.data.datasets.coco import register_coco
from point_rend.inspection import suggestions
from point_rend.inspection.classes import compare_classes, count_objects
from point_rend.inspection.images import count_in_images
from point_rend.inspection.records import read_objects
from point_rend.inspection.settings import build_settings
from point_rend.inspection.suggestions import Advice, round_up, suggest, suggested_epochs
from tests.inspection.test_classes import PLANTED, objects_of
from tests.tiny_datasets import (
    HEIGHT,
    KINDS,
    POINTREND,
    WIDTH,
    CocoSet,
    process_state_restored,
    scene,
    write_coco,
)
from tests.tiny_semantic import CLASSES, IGNORED, write_sem_seg

PANOPTIC = "PanopticSegmentation/pointrend_panoptic_R_50_FPN_1x_coco.yaml"
SEMANTIC = "SemanticSegmentation/pointrend_semantic_R_50_FPN_80k_cityscapes.yaml"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with process_state_restored():
        yield


def report_of(folder: Path, config_file: str, words: list[str], *opts: str) -> dict[str, Any]:
    """Run the command; return its JSON."""
    file = folder / "report.json"
    main(["--config-file", config_file, *words, "--json", str(file), *opts])
    return json.loads(file.read_text())


def registered(train: CocoSet, test: CocoSet) -> list[str]:
    return [word for x in (("one", train), ("two", test)) for word in _words(*x)]


def _words(name: str, data: CocoSet) -> list[str]:
    return ["--register-coco", name, data.json_file, data.image_root]


SETS = ["DATASETS.TRAIN", "('one',)", "DATASETS.TEST", "('two',)"]


def spoil(data: CocoSet) -> None:
    """Give a set a crowd, an empty image, an impossible box, and a class without objects."""
    content = data.read()
    content["annotations"][0] |= {"iscrowd": 1}
    content["annotations"][1]["bbox"][2] = 0
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] != 3]
    content["categories"].append({"id": 99, "name": "ghost"})
    data.rewrite(content)


def test_a_planted_set_is_counted_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = (write_coco(tmp_path / name, images=n) for name, n in (("a", 4), ("b", 2)))
    spoil(train)
    content = test.read()
    content["categories"].append({"id": 99, "name": "ghost"})
    test.rewrite(content)
    cv2.imwrite(f"{test.image_root}/001.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    page = tmp_path / "page.html"
    found = report_of(tmp_path, POINTREND, [*registered(train, test), "--page", str(page)], *SETS)

    # Images 0, 1 and 3 have three shapes each; of image 0, one is a crowd and one impossible.
    assert found["train"]["images"] == 4
    counted = found["train"]["objects"]
    assert [counted[x] for x in ("annotations", "objects", "crowds", "impossible")] == [9, 7, 1, 1]
    assert [counted[x] for x in ("empty", "without_objects", "left_out")] == [1, 0, 1]
    (fault,) = found["train"]["faults"]
    assert (fault["kind"], fault["number"]) == ("bbox of size N x N", 1)
    assert found["classes"]["names"] == [*KINDS, "ghost"]
    assert found["classes"]["train"] == {"objects": [2, 2, 3, 0], "images": [2, 2, 3, 0]}
    assert found["classes"]["test"] == {"objects": [2, 2, 2, 0], "images": [2, 2, 2, 0]}
    assert found["classes"]["absent_train"] == ["ghost"]
    # Image 0 of both sets is the same; image 1 of the second one is black.
    assert found["copies"]["exact_between"] == 1
    assert found["copies"]["near_between"] == 0

    sizes = {x["stage"]: x for x in found["train"]["sizes"]}
    assert sizes["original"]["small"] == pytest.approx(
        np.mean([x["area"] < 32**2 for x in usable(train)])
    )
    roots = np.sqrt([x["area"] for x in usable(train)])
    assert sizes["original"]["percentiles"][3] == pytest.approx(np.median(roots), rel=0.05)
    assert sizes["test"]["percentiles"][3] == pytest.approx(
        np.median(roots) * 800 / HEIGHT, rel=0.05
    )

    text = capsys.readouterr().out
    for sentence in found["findings"]:
        assert sentence in text
        assert sentence in page_text(page)
    assert "1 images of evaluation have an exact copy in training" in text
    assert "1 annotations of training are impossible: bbox of size N x N (1)" in text
    assert "1 of 4 classes have no objects in training, so that they are never learned: ghost" in (
        text
    )


def usable(train: CocoSet) -> list[dict[str, Any]]:
    """Annotations of a spoiled set that a training uses."""
    return [x for x in train.read()["annotations"] if not x["iscrowd"] and x["bbox"][2] > 0]


def page_text(page: Path) -> str:
    content = re.sub(r"<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"<[^>]*>", "", content).replace("&gt;", ">").replace("&lt;", "<")


def test_the_page_is_one_file_without_scripts(tmp_path: Path) -> None:
    train, test = (write_coco(tmp_path / name) for name in ("a", "b"))
    content = train.read()
    content["categories"][0]["name"] = "<script>alert(1)</script>"
    content["categories"] += [{"id": 100 + k, "name": f"class {k}"} for k in range(50)]
    for data in (train, test):
        data.rewrite(content)
    page = tmp_path / "page.html"
    main(["--config-file", POINTREND, *registered(train, test), "--page", str(page), *SETS])
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:image/jpeg|#)", html)
    assert "<script></script>" in html
    assert "alert(1)</script>" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert html.count("data:image/jpeg") == 2 * 2  # the copies, as pictures
    assert "All 53 classes" in html


def test_the_records_are_those_that_the_training_reads(tmp_path: Path) -> None:
    """Of a file with everything that Detectron2's loader drops; RLE, polygons and crowds."""
    data = write_coco(tmp_path / "a", images=6)
    spoil(data)
    register_coco("one", data.json_file, data.image_root)
    objects = read_objects(["one"], masks=True)
    leave_out_impossible_annotations("one", masks=True)
    loaded = get_detection_dataset_dicts(["one"], filter_empty=False)
    assert [x["file_name"] for x in loaded] == objects.files
    rows = [
        (k, x["category_id"], x.get("iscrowd", 0), *x["bbox"][2:])
        for k, record in enumerate(loaded)
        for x in record["annotations"]
    ]
    kept = objects.kept
    ours = np.column_stack(
        [objects.image[kept], objects.label[kept], objects.crowd[kept], objects.sides[kept]]
    )
    np.testing.assert_allclose(ours, rows)


def test_annotated_points_take_the_place_of_masks_in_training(tmp_path: Path) -> None:
    train, test = (write_coco(tmp_path / name) for name in ("a", "b"))
    content = train.read()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
        x, y, width, height = annotation["bbox"]
        annotation["point_coords"] = [[x + width / 2, y + height / 2]]
        annotation["point_labels"] = [1]
    del content["annotations"][0]["point_labels"]
    train.rewrite(content)
    words = [*registered(train, test), "--no-images"]
    found = report_of(tmp_path, POINTREND, words, *SETS, "INPUT.POINT_SUP", "True")
    assert found["train"]["objects"]["objects"] == 5
    assert found["test"]["objects"]["objects"] == 6
    # Areas of boxes are not compared with those of masks.
    assert not [text for text in found["findings"] if "after the resize in tests, but" in text]
    found = report_of(tmp_path, POINTREND, words, *SETS)
    assert found["train"]["objects"]["objects"] == 0
    assert "There is no object in the sets of training." in found["findings"]


def test_label_maps_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = (write_sem_seg(tmp_path / name) for name in ("a", "b"))
    words = [*("--register-sem-seg", "one", *train), *("--register-sem-seg", "two", *test)]
    opts = [*SETS, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"]
    page = tmp_path / "page.html"
    found = report_of(tmp_path, SEMANTIC, [*words, "--page", str(page)], *opts)
    assert found["classes"] is None
    assert found["semantic"]["names"] == [*CLASSES]
    assert "files" not in found["semantic"]["train"]
    assert found["copies"]["exact_between"] == 2
    assert found["train"]["shapes"]["common"] == [[WIDTH, HEIGHT, 2]]
    assert "Pixels by class" in page_text(page)
    # 1024 pixels from 64: enlarging such images shows nothing.
    assert "Size of the input" in [x["title"] for x in found["suggestions"]]
    assert "ignored pixels of training" in capsys.readouterr().out


def test_a_panoptic_set_gets_both_reports(tmp_path: Path) -> None:
    coco, maps = write_coco(tmp_path / "coco"), write_sem_seg(tmp_path / "maps")
    register_coco("things", *coco)
    records = DatasetCatalog.get("things")
    for number, record in enumerate(records):
        record["sem_seg_file_name"] = str(maps.label(number))
    known = MetadataCatalog.get("things").as_dict() | {"name": "both"}
    known |= {"evaluator_type": "coco_panoptic_seg", "ignore_label": IGNORED}
    DatasetCatalog.register("both", lambda: records)
    MetadataCatalog.get("both").set(**known, stuff_classes=list(CLASSES))
    names = ["DATASETS.TRAIN", "('both',)", "DATASETS.TEST", "()"]
    page = tmp_path / "page.html"
    opts = [*names, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"]
    found = report_of(tmp_path, PANOPTIC, ["--page", str(page)], *opts)
    assert found["classes"]["train"] == {"objects": [2, 2, 2], "images": [2, 2, 2]}
    assert found["semantic"]["train"]["images"] == [2, 2, 2, 2]
    assert found["train"]["broken"] == []
    assert found["test"] is None
    text = page_text(page)
    assert "Classes of instances" in text
    assert "Classes of label maps" in text


def test_without_images_no_file_is_opened(tmp_path: Path) -> None:
    train, test = (write_coco(tmp_path / name) for name in ("a", "b"))
    for data in (train, test):
        for file in Path(data.image_root).iterdir():
            file.write_bytes(b"")
    found = report_of(tmp_path, POINTREND, [*registered(train, test), "--no-images"], *SETS)
    assert found["copies"] is None
    assert found["train"]["broken"] == []
    found = report_of(tmp_path, POINTREND, registered(train, test), *SETS)
    assert len(found["train"]["broken"]) == 2
    assert all("is empty (0 bytes)" in text for text in found["train"]["broken"])


def test_a_set_on_both_sides_is_named(tmp_path: Path) -> None:
    data = write_coco(tmp_path / "a")
    both = ["DATASETS.TRAIN", "('one',)", "DATASETS.TEST", "('one',)"]
    found = report_of(tmp_path, POINTREND, _words("one", data), *both)
    assert found["findings"][0].startswith("one is both trained on and evaluated")


def test_names_reach_the_terminal_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_coco(tmp_path / "a")
    content = data.read()
    content["categories"].append({"id": 99, "name": "\x1b[31mred\n" + 300 * "x"})
    content["images"][0]["file_name"] = "a\n\x1b[2Jb.png"
    data.rewrite(content)
    only_trained = ["DATASETS.TRAIN", "('one',)", "DATASETS.TEST", "()"]
    report_of(tmp_path, POINTREND, _words("one", data), *only_trained)
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "/a??[2Jb.png does not exist" in text
    assert "they are never learned: ?[31mred?xxx" in text
    assert 101 * "x" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "DATASETS.TRAIN is empty"),
        (["--json", "{json}"], "--json: {json} exists, and this command has not written it"),
        (["--json", "{annotations}"], "--json: {annotations} is the input {annotations}"),
        (["--page", "{folder}"], "--page {folder} cannot be written: it is a folder"),
        (["--page", "new", "--json", "./new"], "--json and --page name the same file, new"),
    ],
)
def test_errors_of_the_user_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_coco(tmp_path / "a")
    other = tmp_path / "other.json"
    other.write_text('{"my": "results"}')
    places = {"json": other, "annotations": data.json_file, "folder": tmp_path}
    options = [word.format(**places) for word in words]
    opts = [*SETS] if words else ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    with pytest.raises(SystemExit) as end:
        main(["--config-file", POINTREND, *registered(data, data), *options, *opts])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message.format(**places) in error
    assert error.count("\n") == 1
    assert other.read_text() == '{"my": "results"}'


def test_a_report_may_be_written_again(tmp_path: Path) -> None:
    train, test = (write_coco(tmp_path / name) for name in ("a", "b"))
    page = ["--page", str(tmp_path / "page.html")]
    first = report_of(tmp_path, POINTREND, [*registered(train, test), *page], *SETS)
    assert report_of(tmp_path, POINTREND, [*registered(train, test), *page], *SETS) == first


# --- suggestions ----------------------------------------------------------------------------------


def config(*opts: object) -> CfgNode:
    return load_config(POINTREND, ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", *map(str, opts)])


def advice(cfg: CfgNode, images: int = 117_266, **measured: Any) -> Advice:
    return suggest(build_settings(cfg), images=images, **measured)


def options_of(found: Advice) -> dict[str, str]:
    words = [word for x in found.suggestions for word in shlex.split(x.options)]
    return dict(zip(words[::2], words[1::2], strict=True))


def test_the_published_recipes_fit_the_sets_that_they_are_for() -> None:
    assert not advice(config()).suggestions
    cityscapes = load_config("InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_cityscapes.yaml", [])
    cityscapes.DATASETS.TRAIN = cityscapes.DATASETS.TEST = ()
    assert not advice(cityscapes, 2965).suggestions
    assert suggested_epochs(117_266, semantic=False) == 12
    assert suggested_epochs(2965, semantic=False) == pytest.approx(65, rel=0.2)
    assert suggested_epochs(20_210, semantic=True) == 127


def test_a_small_set_gets_fewer_iterations_with_their_steps() -> None:
    found = options_of(advice(config(), images=800))
    assert found["SOLVER.MAX_ITER"] == "5000"  # 100 epochs of 800 images, 16 at a time
    assert found["SOLVER.STEPS"] == "(3333,4444,)"
    assert found["SOLVER.WARMUP_ITERS"] == "500"


def test_accumulated_batches_count_as_one() -> None:
    whole = advice(config("SOLVER.IMS_PER_BATCH", 16), images=800)
    parts = config("SOLVER.IMS_PER_BATCH", 2, "SOLVER.ACCUMULATION_STEPS", 8)
    assert advice(parts, images=800) == whole


@pytest.mark.parametrize(
    ("batch", "rate", "expected"),
    [(16, 0.02, None), (2, 0.02, "0.0025"), (2, 0.0025, None), (64, 0.02, "0.08")],
)
def test_the_rate_follows_the_batch(batch: int, rate: float, expected: str | None) -> None:
    cfg = config("SOLVER.IMS_PER_BATCH", batch, "SOLVER.BASE_LR", rate)
    assert options_of(advice(cfg)).get("SOLVER.BASE_LR") == expected


def test_every_suggestion_can_be_pasted_and_then_disappears(tmp_path: Path) -> None:
    """A set of many small thin objects of unequal classes, in large images."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for k in range(30):
        cv2.imwrite(str(folder / "images" / f"{k}.png"), scene(k)[0])
        images.append({"id": k, "file_name": f"{k}.png", "width": WIDTH, "height": HEIGHT})
        for n in range(0 if k % 5 == 0 else 120):
            x, y = rng.uniform(0, (80, 30)).tolist()
            w, h = 0.5, float(rng.uniform(1.9, 2.1))
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": k,
                    "category_id": int(n == 0 and k == 1) + 1,
                    "bbox": [x, y, w, h],
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    categories = [{"id": k + 1, "name": f"class {k}"} for k in range(2)]
    data = CocoSet(str(folder / "x.json"), str(folder / "images"))
    data.rewrite({"images": images, "annotations": annotations, "categories": categories})
    opts = [*SETS, "SOLVER.IMS_PER_BATCH", "2"]
    words = registered(data, data)
    found = report_of(tmp_path, POINTREND, words, *opts)
    titles = [x["title"] for x in found["suggestions"]]
    assert titles == [
        *("Iterations", "Learning rate", "Rare classes", "Images without objects"),
        *("Objects per image", "Small objects", "Anchors"),
    ]
    pasted = [word for x in found["suggestions"] for word in shlex.split(x["options"])]
    cfg = load_config(POINTREND, pasted)
    check_config(cfg, training=True)
    again = report_of(tmp_path, POINTREND, words, *opts, *pasted)
    left = [x["title"] for x in again["suggestions"]]
    assert left == []


def test_images_whose_objects_cannot_be_used_are_no_background() -> None:
    planted = objects_of(PLANTED)
    found = count_in_images(planted, detections=5, filters_empty=True)
    classes = compare_classes(["a", "b", "c"], count_objects(planted, 3), None)

    def is_suggested(empty: int, without_objects: int) -> bool:
        images = found._replace(empty=empty, without_objects=without_objects)
        advised = advice(config(), objects=planted, classes=classes, in_train=images)
        return "Images without objects" in [x.title for x in advised.suggestions]

    assert is_suggested(empty=1, without_objects=1)
    assert not is_suggested(empty=0, without_objects=2)


def test_classes_with_few_objects_share_one_mask() -> None:
    images = [[(k % 7, "")] for k in range(70)]
    objects = objects_of(images)
    classes = compare_classes("abcdefg", count_objects(objects, 7), None)
    measured = {
        "objects": objects,
        "classes": classes,
        "in_train": count_in_images(objects, detections=100, filters_empty=True),
    }
    found = options_of(advice(config(), **measured))
    assert found["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"] == "True"
    assert found["MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK"] == "True"
    agnostic = [x for key in found if "AGNOSTIC" in key for x in (key, "True")]
    assert not any("AGNOSTIC" in key for key in options_of(advice(config(*agnostic), **measured)))


def test_a_repeat_threshold_is_lvis_s_for_a_set_of_its_size_and_checked_if_it_is_set() -> None:
    frequent, rare = 100_000, 40
    number = frequent + rare
    label = np.arange(number) // frequent
    objects = objects_of([])._replace(
        files=[""] * frequent,
        image=np.arange(number) % frequent,
        label=label,
        crowd=np.zeros(number, bool),
        kept=np.ones(number, bool),
        **{x: np.ones(number, int) for x in ("parts", "corners", "has_hole")},
    )
    measured = {
        "objects": objects,
        "classes": compare_classes("ab", count_objects(objects, 2), None),
        "in_train": count_in_images(objects, detections=100, filters_empty=True),
    }
    found = options_of(advice(config(), **measured))
    assert float(found["DATALOADER.REPEAT_THRESHOLD"]) == 0.001
    repeating = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"]
    fine = advice(config(*repeating, "DATALOADER.REPEAT_THRESHOLD", 0.001), **measured)
    assert "DATALOADER.REPEAT_THRESHOLD" not in options_of(fine)
    assert any("shows 40 of 100000 images more than once" in text for text in fine.fitting)
    useless = advice(config(*repeating, "DATALOADER.REPEAT_THRESHOLD", 0.0001), **measured)
    assert float(options_of(useless)["DATALOADER.REPEAT_THRESHOLD"]) == 0.001


@pytest.mark.parametrize(("number", "expected"), [(1, 1), (9.2, 10), (381.25, 390), (4999, 5000)])
def test_numbers_are_rounded_up_to_two_digits(number: float, expected: int) -> None:
    assert round_up(number) == expected
    assert suggestions.round_up(expected) == expected
