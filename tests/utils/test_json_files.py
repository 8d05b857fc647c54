"""Reading of JSON: what is refused, in one line and at little cost."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from point_rend.utils import json_files
from point_rend.utils.json_files import SHOWN, parse_json, read_json, shown

RUN_LENGTHS = "".join(map(chr, range(48, 112)))  # every character of the encoding, brackets too


def read(folder: Path, content: bytes, **limits: int) -> Any:
    file = folder / "a.json"
    file.write_bytes(content)
    return read_json(file, what="result file", **limits)


@pytest.mark.parametrize(
    "value", [None, [], {}, {"a": [1, -2.5, "ü", True, None]}, [[1]] * 50, 2**200]
)
def test_a_value_is_read_as_it_was_written(tmp_path: Path, value: Any) -> None:
    for ascii_only in (True, False):
        content = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert read(tmp_path, content) == value


def test_the_numbers_that_python_writes_are_read(tmp_path: Path) -> None:
    nan, infinite = read(tmp_path, b"[NaN, -Infinity]")
    assert math.isnan(nan)
    assert infinite == -math.inf


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is truncated or not JSON: Expecting value"),
        (b'{"a": [1, 2', "is truncated or not JSON"),
        (b"[1] [2]", "is truncated or not JSON: Extra data"),
        (b"\xef\xbb\xbf[]", "begins with a byte order mark"),
        ('["é"]'.encode("latin-1"), "is not in UTF-8: byte 0xe9 at position 2"),
        ("[]".encode("utf-16"), "is not in UTF-8: byte 0xff at position 0"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "an object has the key 'b' twice"),
        pytest.param(b"[" * 10**6, "is nested too deeply", id="lists"),
        pytest.param(b'{"a":' * 10**6, "is nested too deeply", id="objects"),
        pytest.param(b"[" * 10**5 + b"]" * 10**5, "is nested too deeply", id="closed lists"),
        pytest.param(b"1" * 5000, "has a number with too many digits", id="digits"),
        (b"\x00" * 10, "is truncated or not JSON"),
    ],
)
def test_what_is_not_json_is_named_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"result file {tmp_path}/a.json")
    assert len(message.removeprefix(f"result file {tmp_path}")) < 200


def test_a_file_is_not_read_beyond_its_limit(tmp_path: Path) -> None:
    assert read(tmp_path, b"[1]", max_bytes=3) == [1]
    with pytest.raises(ValueError, match="expected at most 3"):
        read(tmp_path, b"[11]", max_bytes=3)
    with open(tmp_path / "sparse.json", "wb") as file:
        file.truncate(10 << 40)
    with pytest.raises(ValueError, match="expected at most"):
        read_json(tmp_path / "sparse.json", what="result file")


@pytest.mark.parametrize("piece", ["[]", "{}", "[{}]", "[[0]]"])
def test_objects_without_content_may_not_fill_the_memory(
    piece: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = f"[{','.join([piece] * 1000)}]".encode()
    assert len(parse_json(content, "a file")) == 1000
    monkeypatch.setattr(json_files, "ALWAYS_AFFORDABLE", 100)
    with pytest.raises(ValueError, match=r"a file: its \d+ lists and objects would take"):
        parse_json(content, "a file")


def test_records_with_content_are_read_in_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "ALWAYS_AFFORDABLE", 100)
    record = {"id": 1, "image_id": 2, "bbox": [1, 2, 3, 4], "segmentation": [[1.5, 2, 3, 4, 5, 6]]}
    counts = {"id": 1, "image_id": 2, "segmentation": {"size": [9, 9], "counts": RUN_LENGTHS}}
    for records in ([record] * 100, [counts] * 100):
        assert parse_json(json.dumps(records).encode(), "a file") == records


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def test_any_value_is_short_in_a_message() -> None:
    for value in (None, math.nan, "x" * 10**6, "\ud800", {"a" * 10**5: 1}, [[0]] * 10**5):
        assert 0 < len(shown(value).encode()) <= SHOWN
    for value in (10**5000, -(10**5000), [10**5000], nested(10**5)):
        assert 0 < len(shown(value).encode()) <= SHOWN


def test_short_values_are_shown_unchanged() -> None:
    for value in (3, -2.5, "text", [1, 2, 3], None, {"a": 1}, 2**64):
        assert shown(value) == repr(value)


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="an older Python")
def test_the_limit_of_digits_is_pythons_own() -> None:
    assert parse_json(b"1" * 4300, "a file") == int("1" * 4300)
