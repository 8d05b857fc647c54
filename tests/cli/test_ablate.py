"""`pointrend ablate`: errors of its own options."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.ablation.tiny import refusal


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["subdivision"], "expected -- and then options of `pointrend train`"),
        (["subdivision", "--sides", "28,x"], "expected numbers separated by commas, got '28,x'"),
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


@pytest.mark.parametrize("command", ["subdivision", "sampling"])
def test_help_needs_no_torch(command: str):
    code = "import sys; sys.modules['torch'] = None; from point_rend.cli import ablate; "
    words = [sys.executable, "-c", f"{code} ablate.main(['{command}', '--help'])"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "folder of the results" in shown
