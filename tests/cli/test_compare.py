"""`pointrend compare`: boxes of masks, names, and bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from point_rend.cli import compare
from point_rend.evaluation.comparison import box_corners
from tests.evaluation.oracles import encoded
from tests.planted_report import NAMES, SIDE, Planted


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def command(planted: Planted, output: str, *results: str) -> list[str]:
    words = ["--annotations", planted.annotations, "--image-root", planted.images]
    words += [word for result in results for word in ("--results", result)]
    return [*map(str, words), "--output", str(planted.folder / output)]


def pictures(planted: Planted, output: str, *results: str) -> dict[str, bytes]:
    """Compare results; return the pictures."""
    compare.main(command(planted, output, *results))
    return {file.name: file.read_bytes() for file in (planted.folder / output).iterdir()}


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        compare.main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def without_boxes(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: x[key] for key in x if key != "bbox"} for x in records]


def test_results_without_boxes_get_those_of_their_masks(planted: Planted) -> None:
    first = NAMES[0]
    bare = planted.write("bare.json", without_boxes(planted.results[0]))
    expected = pictures(planted, "whole", f"{first}={planted.folder / first}.json")
    assert len(expected) == 3
    assert pictures(planted, "bare", f"{first}={bare}") == expected


def test_masks_of_all_encodings_have_the_same_box() -> None:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[20:50, 10:40] = True
    runs = [10 * SIDE + 20, *[30, SIDE - 30] * 29, 30]
    runs.append(SIDE**2 - sum(runs))
    polygon = [[10, 20, 40, 20, 40, 50, 10, 50]]
    masks = [encoded(mask), {"size": [SIDE, SIDE], "counts": runs}, polygon]
    boxes = box_corners([{"segmentation": x} for x in masks], SIDE, SIDE)
    assert boxes.tolist() == [[10, 20, 40, 50]] * 3
    assert box_corners([], SIDE, SIDE).shape == (0, 4)


def test_two_results_of_one_name_are_refused(
    planted: Planted, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [planted.folder / f"{name}.json" for name in NAMES]
    error = refusal(command(planted, "output", *(f"x={file}" for file in files)), capsys)
    assert "--results: the name 'x' is given 2 times, expected once" in error
    assert not (planted.folder / "output").exists()


def test_a_file_needs_no_name(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    file = planted.write("lr=0.01.json", planted.results[0])
    pictures(planted, "output", str(file), f"a={file}")
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:4]]
    assert names == [str(file), "a"]


def test_a_missing_file_is_named(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(command(planted, "output", "a=nowhere.json"), capsys)
    assert "expected [NAME=]FILE with an existing file, got a=nowhere.json" in error


def test_an_output_that_is_a_file_is_named_before_the_work(
    planted: Planted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("point_rend.evaluation.coco_results.mask_metrics", None)
    file = planted.folder / f"{NAMES[0]}.json"
    error = refusal(command(planted, file.name, str(file)), capsys)
    assert f"--output {file} cannot be written: {file} is not a folder" in error
