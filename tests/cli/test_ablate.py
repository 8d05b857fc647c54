"""`pointrend ablate`: errors of its own options."""

from pathlib import Path

import pytest

from tests.experiments.ablation.tiny import refusal


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["subdivision"], "expected -- and then options of `pointrend train`"),
        (
            ["subdivision", "--sides", "28,x"],
            "expected numbers from 1, separated by commas, got '28,x'",
        ),
        (
            ["sampling", "--settings", "mild,wild", "--", "x"],
            "expected some of regular, uniform, mild, heavy, separated by commas, got 'mild,wild'",
        ),
    ],
)
def test_a_wrong_option_is_refused(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert message in refusal([words[0], "--output", str(tmp_path), *words[1:]], capsys)


def test_an_output_that_is_a_file_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "file"
    file.touch()
    message = refusal(["subdivision", "--output", str(file), "--", "x"], capsys)
    assert f"--output {file} cannot be written: {file} is " in message
