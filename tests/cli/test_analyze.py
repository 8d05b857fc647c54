"""`pointrend analyze`: the printed table, the JSON file, errors."""

import json
from pathlib import Path

import pytest

from point_rend import get_config_file
from point_rend.cli import analyze
from point_rend.experiments.cost_report import with_unit

INSTANCE = get_config_file("InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml")


def test_the_costs_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "new" / "cost.json"
    analyze.main(["--config-file", INSTANCE, "--boxes", "2", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "| 4×conv | 28×28 | 530 M | 464 k | 464 k |" in printed
    written = json.loads(output.read_text())
    assert written["boxes"] == 2
    assert [row["points"] for row in written["per_box"]] == [0, 0, 0, 3136, 3136]
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "–"), (7, "7"), (923_400_000, "923 M"), (33_900_000_000, "33.9 G"), (1000, "1.00 k")],
)
def test_numbers_have_three_digits_and_a_unit(number: int | None, text: str):
    assert with_unit(number) == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--boxes", "0"], "--boxes: expected 1 or more, got 0"),
        (["--image", "480", "0"], "--image: expected a height and a width of 1 or more, got (480,"),
        (["--boxes", "1", "--output", f"{__file__}/cost.json"], "cannot be written: "),
        (["--image", "0", "0", "--output", str(Path(__file__).parent)], "it is a folder, expected"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        analyze.main(["--config-file", INSTANCE, *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
