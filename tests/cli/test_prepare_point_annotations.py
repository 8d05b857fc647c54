"""`pointrend prepare-point-annotations`."""

import json
from pathlib import Path

import pytest

from point_rend.cli import prepare_point_annotations
from tests.tiny_datasets import CocoSet, write_coco


@pytest.fixture
def masks(tmp_path: Path) -> CocoSet:
    return write_coco(tmp_path / "data")


def run(source: str, target: Path, *opts: str) -> None:
    prepare_point_annotations.main([source, str(target), *opts])


def test_points_replace_masks_and_the_line_counts_them(
    masks: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "points.json"
    run(masks.json_file, target, "--points", "4", "--seed", "3")
    assert capsys.readouterr().out == f"{target}: 4 points for each of 6 objects\n"
    found = json.loads(target.read_text())["annotations"]
    assert all(len(x["point_coords"]) == 4 and "segmentation" not in x for x in found)
    del (content := masks.read())["annotations"][0]["segmentation"]
    masks.rewrite(content)
    run(masks.json_file, target, "--overwrite")
    assert "of 5 objects; 1 are left out, such as annotation 1: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "text"), [("{", "is truncated or not JSON"), (None, "does not exist")]
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, text: str
) -> None:
    source = tmp_path / "masks.json"
    if content is not None:
        source.write_text(content)
    with pytest.raises(SystemExit) as ended:
        run(str(source), tmp_path / "points.json")
    assert ended.value.code == 2
    assert text in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "points.json").exists()
