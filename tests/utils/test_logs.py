"""Messages that are expected."""

import logging

import pytest

from point_rend.utils.logs import only_errors


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
