"""`pointrend score`: metrics of result files, and bad input."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from point_rend.cli import score
from point_rend.data.datasets.cocofied_lvis import COCO_CLASSES, cocofy
from point_rend.evaluation.coco_ap import METRICS, CocoAP
from point_rend.utils import arguments
from tests.evaluation.oracles import decode, encoded
from tests.tiny_lvis import HEIGHT, WIDTH, write_lvis_v1

Records = list[dict[str, Any]]
KEYS = ("id", "image_id", "category_id", "bbox", "area", "segmentation")


class Files:
    """COCO and LVIS annotations of the same images, and results for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        cocofied = cocofy(str(write_lvis_v1(folder))).content
        images = [
            {"id": number, "file_name": f"{number:012d}.jpg", "height": HEIGHT, "width": WIDTH}
            for number in (7, 9, 11)
        ]
        annotations = [
            {key: x[key] for key in KEYS} | {"iscrowd": 0} for x in cocofied["annotations"]
        ]
        # In COCO the book is missing; it has a cup in an image that LVIS does not contain.
        del annotations[2]
        annotations.append(annotations[0] | {"id": 9, "image_id": 11, "category_id": 47})
        categories = [{"id": k, "name": name} for k, name in COCO_CLASSES.items()]
        self.content = {"images": images, "annotations": annotations, "categories": categories}
        self.coco = self.write("coco.json", self.content)
        self.lvis = self.write("lvis.json", cocofied)
        self.gt = [*cocofied["annotations"], annotations[-1]]

    def write(self, name: str, content: Any) -> Path:
        path = self.folder / name
        path.write_text(json.dumps(content))
        return path

    def results(self, *, shift: int = 0) -> Records:
        size = {"height": HEIGHT, "width": WIDTH}
        masks = [np.roll(decode(x["segmentation"], size), shift, axis=1) for x in self.gt]
        return [
            {
                "image_id": x["image_id"],
                "category_id": x["category_id"],
                "score": 0.9 - 0.1 * k,
                "bbox": x["bbox"],
                "segmentation": encoded(mask),
            }
            for k, (x, mask) in enumerate(zip(self.gt, masks, strict=True))
        ]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def run(files: Files, *options: str, **results: Any) -> dict[str, Any]:
    """Run the command on results; return the metrics that it writes."""
    named = [f"{name}={files.write(f'{name}.json', content)}" for name, content in results.items()]
    output = files.folder / "scores.json"
    flags = [word for name in named for word in ("--results", name)]
    command = ["--annotations", str(files.coco), *flags, "--output", str(output), *options]
    score.main(command)
    return json.loads(output.read_text())


def refusal(files: Files, capsys: pytest.CaptureFixture, *options: str, **results: Any) -> str:
    with pytest.raises(SystemExit) as stop:
        run(files, *options, **results)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert ": error: " in error
    assert error.count("\n") == 1
    return error


def test_ap_ap_star_and_their_boundary_variants_are_computed(
    files: Files, capsys: pytest.CaptureFixture
) -> None:
    options = ("--lvis-annotations", str(files.lvis))
    scores = run(files, *options, exact=files.results(), moved=files.results(shift=1))
    rows = ["AP", "boundary AP", "AP*", "boundary AP*"]
    assert list(scores) == ["exact", "moved"]
    assert list(scores["exact"]) == list(scores["moved"]) == rows
    assert [scores["exact"][row]["AP"] for row in rows] == pytest.approx([100] * 4)
    moved = [scores["moved"][row]["AP"] for row in rows]
    assert moved[1] < moved[0] < 100
    assert moved[3] < moved[2] < 100
    output = capsys.readouterr().out
    assert "moved: 4 results" in output
    for name in METRICS:
        assert name in output


def test_metrics_equal_those_of_the_evaluation(files: Files) -> None:
    results = files.results(shift=2)
    scores = run(files, moved=results)["moved"]
    evaluation = CocoAP(files.content)
    assert scores["AP"] == pytest.approx(evaluation.metrics(results, "segm"), nan_ok=True)
    assert scores["boundary AP"] == pytest.approx(
        evaluation.metrics(results, "boundary"), nan_ok=True
    )


def test_images_missing_in_lvis_do_not_count_for_ap_star(files: Files) -> None:
    results = files.results()[:3]
    scores = run(files, "--lvis-annotations", str(files.lvis), some=results)["some"]
    assert scores["AP"]["AP"] == pytest.approx(100 * 2 / 3)
    assert scores["AP*"]["AP"] == pytest.approx(100)


def test_by_class_shows_all_classes(files: Files, capsys: pytest.CaptureFixture) -> None:
    run(files, "--by-class", exact=files.results())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cow", "100.0", "100.0"] in lines
    assert ["zebra", "nan", "nan"] in lines


def test_a_single_class_is_not_shown_separately(
    files: Files, capsys: pytest.CaptureFixture
) -> None:
    files.coco = files.write(
        "one_class.json",
        files.content | {"categories": [{"id": 21, "name": "cow"}], "annotations": [files.gt[0]]},
    )
    scores = run(files, "--by-class", exact=files.results()[:1])
    assert scores["exact"]["AP"]["AP"] == pytest.approx(100)
    assert capsys.readouterr().out.count("boundary AP") == 1


def test_two_files_of_one_name_are_refused(files: Files, capsys: pytest.CaptureFixture) -> None:
    twin = files.write("twin.json", [])
    error = refusal(files, capsys, "--results", f"exact={twin}", exact=files.results())
    assert "--results: the name 'exact' is given 2 times, expected once" in error


@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        (None, "no segmentation"),
        ([], "no segmentation"),
        ({"size": [HEIGHT, WIDTH], "counts": [9]}, "RLE of 9 pixels, its size"),
    ],
)
def test_annotations_without_masks_give_box_ap_only(
    files: Files, capsys: pytest.CaptureFixture, mask: Any, fault: str
) -> None:
    annotations = [x | {"segmentation": mask} for x in files.content["annotations"]]
    for annotation in annotations:
        del annotation["area"]
    files.coco = files.write("truth.json", files.content | {"annotations": annotations})
    error = refusal(files, capsys, masks=files.results())
    first = annotations[0]
    assert f"truth.json: {len(annotations)} annotations cannot be compared with results" in error
    where = rf"annotation {first['id']} of image {first['image_id']} \(\S+\): {fault}"
    assert re.search(where, error)
    boxes = [{k: v for k, v in x.items() if k != "segmentation"} for x in files.results()]
    if not mask:
        scores = run(files, boxes=boxes)["boxes"]
        assert scores["box AP"]["AP"] == pytest.approx(100)


def test_results_without_masks_have_a_box_ap(files: Files) -> None:
    boxes = [{k: v for k, v in x.items() if k != "segmentation"} for x in files.results()]
    scores = run(files, "--lvis-annotations", str(files.lvis), boxes=boxes)["boxes"]
    assert list(scores) == ["box AP", "box AP*"]
    assert [row["AP"] for row in scores.values()] == pytest.approx([100, 100])


def test_polygons_are_accepted_as_masks(files: Files) -> None:
    results = [
        x | {"segmentation": gt["segmentation"]}
        for x, gt in zip(files.results(), files.gt, strict=True)
    ]
    scores = run(files, "--lvis-annotations", str(files.lvis), polygons=results)["polygons"]
    assert [row["AP"] for row in scores.values()] == pytest.approx([100] * 4)


def test_a_file_needs_no_name(files: Files) -> None:
    path = files.write("mine.json", files.results())
    output = files.folder / "scores.json"
    command = ["--annotations", files.coco, "--results", path, "--output", output]
    score.main([*map(str, command)])
    assert list(json.loads(output.read_text())) == [str(path)]


@pytest.mark.parametrize(
    ("text", "name", "file"),
    [
        ("PointRend=a.json", "PointRend", "a.json"),
        ("PointRend=lr=0.01/a.json", "PointRend", "lr=0.01/a.json"),
        ("=a.json", "a.json", "a.json"),
        ("a.json", "a.json", "a.json"),
        ("lr=0.01/a.json", "lr", "0.01/a.json"),
    ],
)
def test_a_name_ends_at_the_first_equals_sign(text: str, name: str, file: str) -> None:
    assert arguments.named_file(text) == (name, Path(file))


def test_an_existing_path_with_an_equals_sign_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.01").mkdir()
    Path("lr=0.01/a.json").touch()
    for text in ("lr=0.01", "lr=0.01/a.json"):
        assert arguments.named_file(text) == (text, Path(text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 5}, "result 1 is about image 5, which the annotations do not have"),
        (
            {"category_id": 12},
            r"result 1 is of category 12, expected one of .*: 1, 2, 3, 4, 5, ...",
        ),
        ({"score": None}, "result 1 has the score None, expected a number"),
        ({"bbox": [1, 2, 3]}, r"result 1 has the bbox \[1, 2, 3\], expected 4 numbers"),
        (
            {"segmentation": {"size": [28, 28], "counts": "x"}},
            r"RLE of size \(28, 28\), the image has",
        ),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 7]}},
            f"result 1 has an RLE of 12 pixels, its size .* has {HEIGHT * WIDTH}",
        ),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "!"}},
            "result 1 has an RLE that does not decode",
        ),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, "7"]}},
            "result 1 has an RLE with the run length '7', expected integers",
        ),
        ({"segmentation": "x"}, "result 1 has the segmentation 'x', expected polygons or an RLE"),
        ({"segmentation": [[1, 2, 3]]}, "result 1 has a mask whose polygon 1 of 1 has 3 numbers"),
    ],
)
def test_an_invalid_result_is_named(
    change: dict[str, Any], message: str, files: Files, capsys: pytest.CaptureFixture
) -> None:
    results = files.results()
    results[1] |= change
    error = refusal(files, capsys, bad=results)
    assert "bad.json: " in error
    assert re.search(message, error)


def test_an_incomplete_result_is_named(files: Files, capsys: pytest.CaptureFixture) -> None:
    results = files.results()
    del results[2]["score"]
    assert "result 2 has no 'score': it has image_id, cat" in refusal(files, capsys, bad=results)
    results = files.results()
    del results[3]["segmentation"]
    assert "1 of 4 results have no 'segm" in refusal(files, capsys, bad=results)
    del results[3]["bbox"]
    assert "result 3 has neither" in refusal(files, capsys, bad=results)


def test_a_file_that_is_not_a_list_of_results_is_named(
    files: Files, capsys: pytest.CaptureFixture
) -> None:
    assert "expected a list of results" in refusal(files, capsys, bad={"annotations": []})
    assert "result 0 is not an object: 5" in refusal(files, capsys, bad=[5])
    (files.folder / "cut.json").write_text("[{")
    with pytest.raises(SystemExit):
        score.main(["--annotations", str(files.coco), "--results", str(files.folder / "cut.json")])
    assert "cut.json is truncated or not JSON" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        score.main(["--annotations", str(files.coco), "--results", "nowhere.json"])
    assert "result file does not exist: 'nowhere.json'" in capsys.readouterr().err


def test_lvis_annotations_of_other_classes_are_refused(
    files: Files, capsys: pytest.CaptureFixture
) -> None:
    whole = str(files.folder / "lvis_v1_val.json")
    error = refusal(files, capsys, "--lvis-annotations", whole, exact=files.results())
    assert "prepare-cocofied-lvis` makes a file of COCO's classes" in error


def test_a_missing_lvis_is_named(
    files: Files, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    error = refusal(files, capsys, "--lvis-annotations", str(files.lvis), exact=files.results())
    assert "needs the package lvis: pip install lvis" in error


@pytest.mark.parametrize("name", ["file/scores.json", "folder"])
def test_an_output_that_cannot_be_written_is_named_before_the_work(
    files: Files, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (files.folder / "file").touch()
    (files.folder / "folder").mkdir()
    monkeypatch.setattr("point_rend.evaluation.coco_ap.CocoAP", None)
    output = str(files.folder / name)
    error = refusal(files, capsys, "--output", output, exact=files.results())
    assert f"--output {output} cannot be written: " in error
