"""Bad boxes, images, classes and outputs of `pointrend refine`."""

import json
import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2

from point_rend.refinement import run as run_module
from tests.robustness.harness import Row, run_row, table
from tests.robustness.test_results_files import prepare, results, truth, write
from tests.tiny_datasets import POINTREND, TINY_MODEL


def plant() -> None:
    """Replace the model by one that leaves all masks as they are."""
    run_module.Predictor = lambda *_, **__: run_module  # type: ignore[misc, assignment]
    run_module.cfg = run_module.model = None  # type: ignore[attr-defined]
    run_module.check_given_boxes = lambda *_: None  # type: ignore[assignment]
    run_module._render_all = lambda *_: None  # type: ignore[assignment]


def full_disk() -> None:
    """Make every file end at 4 kB."""
    plant()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))


def on(
    boxes: Any, *words: str | Path, make: Callable[[Path], object] = lambda _: None
) -> Callable[[Path], Sequence[str | Path]]:
    """Prepare a folder with two pictures, a file of boxes and whatever `make` adds."""

    def build(folder: Path) -> list[str | Path]:
        prepare(folder, "score", [])
        make(folder)
        command = ["refine", "--config-file", POINTREND, "--classes", "square,disc"]
        command += ["--boxes", write(folder / "boxes.json", boxes), "--images", folder]
        command += ["--output", folder / "out.json", *words]
        opts = [*TINY_MODEL, "MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.WEIGHTS", "planted.pkl"]
        return [*command, "--opts", *opts]

    return build


def changed(**fields: Any) -> list[dict[str, Any]]:
    first, second = results()
    return [first, second | fields]


def annotated(**fields: Any) -> dict[str, Any]:
    """Return annotations of which the second one is changed."""
    content = truth()
    content["annotations"][1] |= fields
    return content


def file(name: str, content: Any) -> Callable[[Path], object]:
    return lambda folder: write(folder / name, content)


def nothing_written(folder: Path) -> None:
    assert not (folder / "out.json").exists()
    assert not [name for name in os.listdir(folder) if ".tmp" in name]


def mine_is_kept(folder: Path) -> None:
    assert (folder / "out.json").read_text() == "mine"


def is_a_picture(folder: Path) -> None:
    assert cv2.imread(str(folder / "1.png")) is not None


def stays_as_it_is(folder: Path) -> None:
    assert json.loads((folder / "out.json").read_text()) == annotated()


BOXES: list[tuple[str, Any, str]] = [
    ("empty", "", "boxes.json is truncated or not JSON"),
    ("many lists", "[" + "[]," * 20_000_000 + "[]]", "would take .* GiB of memory"),
    ("number", "5", "boxes.json: expected a list of results, .*; got int"),
    ("object", {"boxes": []}, r"boxes.json: expected .*; got an object with \['boxes'\]"),
    ("annotations null", {"annotations": None}, r"got an object with \['annotations'\]"),
    ("no images", {"annotations": []}, "boxes.json is not in COCO's instances format"),
    ("list of numbers", [1], "result 0 is not an object: 1: expected a list of results"),
    ("an image's boxes", [{"xyxy": [1, 2, 3, 4]}], "result 0 has the image_id None: expected a li"),
    ("image as list", changed(image_id=[1]), r"result 1 has the image_id \[1\]: expected"),
    ("class as text", changed(category_id="1"), "result 1 has the category_id '1': expected"),
    ("class unknown", changed(category_id=9), r"1 categories have no .* category 9 \(1\); the mod"),
    (
        "images unknown",
        [x | {"image_id": "x"} for x in results()],
        "none of its 1 images is in --i",
    ),
    ("shares", [x | {"bbox": [0.1, 0.1, 0.5, 0.5]} for x in results()], "no box is larger than a"),
    ("lost image", annotated(image_id=9), "annotation 2 refers to image 9, which the file does n"),
    ("lost class", annotated(category_id=9), "annotation 2 refers to category 9, which the file"),
    ("crowd as text", annotated(iscrowd="no"), "annotation 2 of image 2: iscrowd must be 0 or 1"),
    (
        "huge image",
        truth() | {"images": [x | {"width": 10**9} for x in truth()["images"]]},
        "has a size of",
    ),
]
FLAGS = [
    Row("no folder", on(results(), "--images", "nowhere"), "--images: there is no folder nowhere"),
    Row(
        "a pipe",
        on(results(), "--boxes", "pipe", make=lambda folder: os.mkfifo(folder / "pipe")),
        "--boxes pipe: a pipe, expected a file",
    ),
    Row(
        "no truth", on(results(), "--annotations", "no.json"), "annotation file no.json does not e"
    ),
    Row(
        "truth without objects",
        on(
            results(), "--annotations", "t.json", make=file("t.json", truth() | {"annotations": []})
        ),
        "t.json has no annotations: expected ground truth",
    ),
    Row("no results count", on(results(), "--max-dets", "0"), "--max-dets"),
    Row(
        "map of lists",
        on(results(), "--class-map", "m.json", make=file("m.json", {"1": ["disc"]})),
        "--class-map m.json: expected an object of names",
    ),
    Row("map to nothing", on(results(), "--class-map", "1=cube"), "1 is mapped to 'cube', but the"),
    Row(
        "output exists",
        on(results(), make=file("out.json", "mine")),
        "out.json exists: choose another name, or pass --overwrite to replace it",
        then=mine_is_kept,
    ),
    Row(
        "output is a folder",
        on(results(), "--output", "."),
        "--output . cannot be written: it is a",
    ),
    Row(
        "output is the input",
        on(results(), "--output", "boxes.json", "--overwrite"),
        "boxes.json is the input .*boxes.json, which would be overwritten",
    ),
    Row(
        "output is an image",
        on(results(), "--output", "1.png", "--overwrite"),
        "--output: 1.png is the input .*1.png, which would be overwritten",
        then=is_a_picture,
    ),
    Row(
        "output is the checkpoint",
        on(results(), "--output", "planted.pkl", "--overwrite", make=file("planted.pkl", "mine")),
        "--output: planted.pkl is the input planted.pkl, which would be overwritten",
    ),
    Row(
        "a full disk",
        on(truth() | {"info": "x" * 5000}),
        "out.json could not be saved .File too large.: free some space",
        first=full_disk,
        then=nothing_written,
    ),
    Row(
        "nothing to render",
        on(annotated()),
        "out.json: 0 of 2 boxes in 0 images have new masks",
        exit_code=0,
        first=plant,
        then=stays_as_it_is,
    ),
]


@table([Row(name, on(boxes), line, then=nothing_written) for name, boxes, line in BOXES] + FLAGS)
def test_bad_input_of_refine_is_one_line(row: Row, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run_row(row, folder)
