"""tools/dev/fuzz.py, on targets of its own."""

from pathlib import Path

import pytest

from tests.tiny_datasets import load_script

tool = load_script("tools/dev/fuzz.py")
TARGET = """
from hypothesis import given, strategies

@given(strategies.integers())
def test_reading(number):
    {body}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the targets."""
    monkeypatch.setattr(tool, "TARGETS", tmp_path)
    return tmp_path


def test_rounds_follow_until_the_time_is_over(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "test_good.py").write_text(TARGET.format(body="pass"))
    assert tool.main(["good", "--seconds", "0.1", "--seed", "7"]) == 0
    assert capsys.readouterr().out == "good: 1 rounds without a fault, seeds 7 to 7\n"


@pytest.mark.parametrize(
    ("body", "code", "shown"),
    [
        ("assert number < 1000", 1, "number=1000"),
        ("import os; os.abort()", -6, "test_reading"),
    ],
)
def test_a_fault_ends_the_rounds_with_the_input(
    body: str, code: int, shown: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "test_bad.py").write_text(TARGET.format(body=body))
    assert tool.main(["bad", "--seconds", "60"]) == code
    output = capsys.readouterr().out
    assert shown in output
    assert output.endswith("bad: a round failed; --seed 0 repeats it\n")


def test_without_a_target_all_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("b", "a"):
        (folder / f"test_{name}.py").write_text("")
    assert tool.main([]) == 0
    assert capsys.readouterr().out == "a\nb\n"
