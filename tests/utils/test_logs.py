"""Messages that are expected; logs that cannot be written."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from point_rend.utils.files import NotSavedError
from point_rend.utils.logs import only_errors, report_write_errors


def test_nothing_below_an_error_is_logged_while_the_context_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected, other = logging.getLogger("test_logs.expected"), logging.getLogger("test_logs.other")

    def work() -> None:
        with only_errors("test_logs.expected"):
            expected.warning("dropped")
            expected.error("an error")
            other.warning("another logger")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        work()
    expected.warning("afterwards")
    assert caplog.messages == ["an error", "another logger", "afterwards"]
    assert expected.level == logging.NOTSET


@pytest.fixture
def to_full_disk(tmp_path: Path) -> Iterator[logging.Logger]:
    """A logger with a handler whose stream is full, and one that collects."""
    logger = logging.getLogger("of a full disk")
    logger.propagate = False
    stream = open("/dev/full", "w")  # noqa: SIM115
    logger.handlers = [logging.StreamHandler(stream), logging.FileHandler(tmp_path / "log")]
    yield logger
    for handler in logger.handlers:
        handler.close()


def test_a_log_that_cannot_be_written_raises_once_by_name_and_other_handlers_go_on(
    to_full_disk: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    report_write_errors(to_full_disk.name)
    with pytest.raises(NotSavedError, match="/dev/full could not be saved"):
        to_full_disk.error("first")
    to_full_disk.error("second")
    assert (tmp_path / "log").read_text() == "second\n"
    assert capsys.readouterr().err == ""


def test_a_reader_that_is_gone_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    reader, writer = os.pipe()
    os.close(reader)
    logger = logging.getLogger("without a reader")
    logger.propagate = False
    with contextlib.suppress(BrokenPipeError), open(writer, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        logger.handlers = [logging.StreamHandler(stream), logging.FileHandler(tmp_path / "log")]
        report_write_errors(logger.name)
        logger.error("first")
        logger.error("second")
    logger.handlers[0].close()
    assert (tmp_path / "log").read_text() == "first\nsecond\n"
    assert capsys.readouterr().err == ""


def test_a_mistake_in_a_message_stays_visible(capsys: pytest.CaptureFixture[str]):
    logger = logging.getLogger("with a mistake")
    logger.propagate = False
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    report_write_errors(logger.name)
    logger.error("%d", "text")
    assert "Logging error" in capsys.readouterr().err
