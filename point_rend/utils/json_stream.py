"""Reading of the records in a large JSON file one by one, in bounded memory."""

import codecs
import json
import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from point_rend.utils.json_files import BOM, shown, with_bom
from point_rend.utils.reading import open_regular_file

BLOCK = 1 << 20  # bytes
LONGEST_VALUE = 16 << 20  # characters of one record
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def iterate_list(path: str | Path, key: str, *, what: str) -> Iterator[Any]:
    """Yield the items of one list in the object that a JSON file holds; skip all else.

    Args:
        path: A regular file in UTF-8.
        key: Key of the list in the outermost object.
        what: Role of the file for messages, such as "annotation file".

    Raises:
        FileNotFoundError, OSError: If the file cannot be opened.
        ValueError: If it is truncated, not JSON or no object, if it lacks the list or has it twice,
            or if one value in it is longer than `LONGEST_VALUE`.
    """
    with open_regular_file(path, what=what) as file:
        text = _Text(file, f"{what} {path}")
        if text.peek() == BOM:
            raise ValueError(with_bom(text.where))
        if text.peek() != "{":
            raise ValueError(f"{text.where}: expected an object with the list {key!r}")
        found = False
        for name in text.items("{", "}"):
            if not isinstance(name, str):
                raise text.fault("a key is no text")
            text.take(":")
            if name != key:
                text.skip_value()
                continue
            if found:
                raise ValueError(f"{text.where}: an object has the key {shown(name)} twice")
            found = True
            if text.peek() != "[":
                raise ValueError(f"{text.where}: {key!r} must be a list")
            yield from text.items("[", "]")
        if text.peek():
            raise text.fault("there is more after its end")
        if not found:
            raise ValueError(f"{text.where}: expected an object with the list {key!r}")


class _Text:
    """The text of a file, of which a window is in memory."""

    def __init__(self, file: BufferedReader, where: str) -> None:
        self.where = where
        self._file = file
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._buffer = ""
        self._position = 0
        self._is_whole = False

    def items(self, first: str, last: str) -> Iterator[Any]:
        """Yield the values between two brackets; of an object its keys, each before its colon."""
        self.take(first)
        if self.peek() == last:
            self.take(last)
            return
        while True:
            yield self._value()
            if self.peek() == last:
                self.take(last)
                return
            self.take(",")

    def skip_value(self) -> None:
        """Pass over a value; a list item by item."""
        if self.peek() != "[":
            self._value()
            return
        for _ in self.items("[", "]"):
            pass

    def take(self, expected: str) -> None:
        """Pass over one character."""
        found = self.peek()
        if found != expected:
            raise self.fault(
                f"expected {expected!r}, found {found!r}" if found else "it ends early"
            )
        self._position += 1

    def peek(self) -> str:
        """Return the next character that is no space; at the end of the file nothing."""
        while True:
            space = _SPACE.match(self._buffer, self._position)
            assert space is not None
            self._position = space.end()
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._read_more():
                return ""

    def fault(self, reason: object) -> ValueError:
        """Return an error about the syntax."""
        return ValueError(f"{self.where} is truncated or not JSON: {reason}")

    def _value(self) -> Any:
        self.peek()
        while True:
            error = None
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._position)
                # A number may go on in the next block.
                is_number = type(value) in (int, float)
                may_go_on = end == len(self._buffer) or (is_number and self._buffer[end] in ".eE")
                if not may_go_on or self._is_whole:
                    self._position = end
                    return value
            except json.JSONDecodeError as e:
                error = e
            except RecursionError:
                raise ValueError(f"{self.where} is nested too deeply") from None
            except ValueError as e:  # an integer beyond sys.get_int_max_str_digits()
                raise ValueError(f"{self.where} has a number with too many digits: {e}") from None
            if len(self._buffer) - self._position > LONGEST_VALUE:
                raise self.fault(error.msg if error else f"a value has over {LONGEST_VALUE} bytes")
            if not self._read_more() and error is not None:
                raise self.fault(error.msg) from error

    def _read_more(self) -> bool:
        """Append to the window at least as much as it holds; return whether there was more."""
        rest = self._buffer[self._position :]
        data = self._file.read(max(BLOCK, len(rest)))
        self._is_whole = not data
        try:
            self._buffer = rest + self._utf8.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.where} is not in UTF-8: {error.reason}") from None
        self._position = 0
        return bool(data)
