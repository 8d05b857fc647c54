"""User errors and exit codes."""

import io
import os
import signal
import subprocess
import sys

import pytest

from point_rend.utils import errors


def test_exit_codes_are_those_of_the_documents():
    assert (errors.FAILED, errors.USER_ERROR, errors.DIVERGED) == (1, 2, 3)
    assert errors.INTERRUPTED == errors.signal_exit_code(signal.SIGINT) == 130
    assert errors.signal_exit_code(signal.SIGTERM) == 143


@pytest.mark.parametrize("error", [ValueError("no\n  such key"), FileNotFoundError(2, "no", "x")])
def test_a_user_error_is_one_line_with_the_program(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["/usr/bin/pointrend", "predict", "--input"])
    with pytest.raises(SystemExit) as ended, errors.user_errors():
        raise error
    assert ended.value.code == errors.USER_ERROR
    said = capsys.readouterr().err
    assert said.startswith("pointrend predict: error: ")
    assert said.count("\n") == 1


def test_a_line_is_bounded_and_moves_no_cursor(capsys: pytest.CaptureFixture[str]):
    errors.say_error("no file \x1b[2J" + "x" * 10**6)
    said = capsys.readouterr().err
    assert len(said) < 5000
    assert "no file" in said
    assert "\x1b" not in said


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError), errors.user_errors():
        raise KeyError("bug")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("MODEL.MASK_NO", "; did you mean MODEL.MASK_ON?"), ("x", "")],
)
def test_the_nearest_known_name_is_suggested(name: str, nearest: str):
    assert errors.did_you_mean(name, ["MODEL.MASK_ON", "INPUT.FORMAT"]) == nearest


@pytest.mark.parametrize(
    ("encoding", "text", "printed"),
    [("utf-8", "é \udcff", "é \\udcff"), ("ascii", "é 汽", "\\xe9 \\u6c7d")],
)
def test_a_result_that_cannot_be_encoded_is_printed_with_escapes(
    encoding: str, text: str, printed: str, monkeypatch: pytest.MonkeyPatch
):
    output = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", output)
    errors.print_result(text)
    assert output.buffer.getvalue().decode(encoding) == f"{printed}\n"


def test_a_result_whose_reader_has_ended_ends_in_one_line():
    program = (
        "from point_rend.utils.errors import print_result, user_errors\n"
        "with user_errors():\n"
        "    print_result('a')\n"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == 2
    assert done.stderr.endswith(": error: standard output cannot be written: Broken pipe\n")
    assert done.stderr.count("\n") == 1
