"""Reading of a large JSON file piece by piece, in bounded memory.

The pieces and the errors are those of :func:`point_rend.utils.json_files.read_json`.
"""

import codecs
import enum
import json
import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from point_rend.utils.json_files import DECODER, check_bytes, check_unique, parsing
from point_rend.utils.reading import check_size, open_regular_file

BLOCK = CHECKED_BLOCK = 1 << 20  # bytes
LONGEST_VALUE = 16 << 20  # characters of one record
CUT = 16  # characters of a literal, an escape or the begin of a number that the window may end in
_SPACE = re.compile(r"[ \t\n\r]*")


class Kind(enum.Enum):
    """Kind of a piece: the begin of the object or of a list, an item of it, or any other value."""

    OBJECT = enum.auto()
    LIST = enum.auto()
    ITEM = enum.auto()
    VALUE = enum.auto()


class Piece(NamedTuple):
    """A piece of the outermost value of a file.

    Attributes:
        kind: Its kind.
        key: Key of the value to which it belongs; None if the outermost value is no object.
        value: The item or value; None at a begin.
    """

    kind: Kind
    key: str | None
    value: Any


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
    found = False
    for kind, name, value in iterate_pieces(path, what=what, longest=LONGEST_VALUE):
        if name != key:
            continue
        if kind is Kind.VALUE:
            raise ValueError(f"{what} {path}: {key!r} must be a list")
        found = True
        if kind is Kind.ITEM:
            yield value
    if not found:
        raise ValueError(f"{what} {path}: expected an object with the list {key!r}")


def iterate_pieces(
    path: str | Path, *, what: str, max_bytes: int | None = None, longest: int | None = None
) -> Iterator[Piece]:
    """Yield the values of the outermost object in a JSON file; of lists the items, one by one.

    Errors of syntax may come after pieces: only a file that is read to its end is valid.

    Args:
        path: A regular file in UTF-8.
        what: Role of the file for messages, such as "annotation file".
        max_bytes: Largest size that is read; any by default.
        longest: Most characters of one piece; any number by default.

    Raises:
        FileNotFoundError, OSError: If the file cannot be opened.
        ValueError: As `read_json`.
    """
    where = f"{what} {path}"
    with open_regular_file(path, what=what) as file:
        if max_bytes is not None:
            check_size(file, where, max_bytes)
        check_bytes(iter(lambda: file.read(CHECKED_BLOCK), b""), where)
        file.seek(0)
        with parsing(where):
            yield from _Text(file, longest).pieces()


class _Text:
    """The text of a file, of which a window is in memory."""

    def __init__(self, file: BufferedReader, longest: int | None) -> None:
        self._file = file
        self._longest = longest
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._window = ""
        self._position = 0  # in the window
        self._is_whole = False
        # Before the window, in characters: its length, its lines and the begin of the last one.
        self._before = self._lines = self._line = 0
        self._comma = 0

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces of the outermost value."""
        first = self._peek()
        if first == "{":
            yield Piece(Kind.OBJECT, None, None)
            keys: list[str] = []
            for key in self._items("{", "}"):
                keys.append(key)
                if self._peek() != ":":
                    self._fail('{""')
                self._position += 1
                yield from self._pieces_of(key)
            check_unique(keys)
        else:
            yield from self._pieces_of(None)
        if self._peek():
            self._fail("{}")

    def _pieces_of(self, key: str | None) -> Iterator[Piece]:
        if self._peek() != "[":
            yield Piece(Kind.VALUE, key, self._value())
            return
        yield Piece(Kind.LIST, key, None)
        for item in self._items("[", "]"):
            yield Piece(Kind.ITEM, key, item)

    def _items(self, first: str, last: str) -> Iterator[Any]:
        """Yield the items of a list, or the keys of an object, each before its colon."""
        is_list = first == "["
        self._position += 1
        if self._peek() == last:
            self._position += 1
            return
        before = first
        while True:
            if not is_list and self._peek() != '"':
                self._fail(before)
            yield self._value()
            found = self._peek()
            if found == last:
                self._position += 1
                return
            if found != ",":
                self._fail("[null" if is_list else '{"":null')
            self._comma = self._before + self._position
            self._position += 1
            before = "[null," if is_list else '{"":null,'
            if self._peek() == last:
                self._fail(before)

    def _peek(self) -> str:
        """Return the next character that is no space; at the end of the file nothing."""
        while True:
            space = _SPACE.match(self._window, self._position)
            assert space is not None
            self._position = space.end()
            if self._position < len(self._window):
                return self._window[self._position]
            if not self._read_more():
                return ""

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._window, self._position)
            except json.JSONDecodeError as error:
                is_cut = error.pos + CUT > len(self._window) or error.msg.startswith("Unterminated")
                if self._is_whole or not is_cut:
                    self._raise(error.msg, self._before + error.pos)
            else:
                # A number may go on in the next block.
                is_number = type(value) in (int, float)
                may_go_on = end == len(self._window) or (is_number and self._window[end] in ".eE")
                if not may_go_on or self._is_whole:
                    self._position = end
                    return value
            if self._longest is not None and len(self._window) - self._position > self._longest:
                self._raise(f"a value of over {self._longest} characters", self._before)
            self._read_more()

    def _read_more(self) -> bool:
        """Append to the window at least as much as it holds; return whether there was more."""
        rest = self._window[self._position :]
        newline = self._window.rfind("\n", 0, self._position)
        if newline >= 0:
            self._lines += self._window.count("\n", 0, self._position)
            self._line = self._before + newline + 1
        self._before += self._position
        data = self._file.read(max(BLOCK, len(rest)))
        self._is_whole = not data
        self._window = rest + self._utf8.decode(data, final=not data)
        self._position = 0
        return bool(data)

    def _fail(self, before: str) -> NoReturn:
        """Raise the error of Python's parser for the rest of the text.

        Args:
            before: A short text after which the parser is in the same state as here.
        """
        try:
            DECODER.decode(before + self._window[self._position :])
        except json.JSONDecodeError as error:
            ahead = error.pos - len(before)
            if ahead < 0:  # newer parsers name a comma before a bracket
                self._raise(error.msg, self._comma)
            self._raise(error.msg, self._before + self._position + ahead)
        raise AssertionError("the text is valid")

    def _raise(self, reason: str, position: int) -> NoReturn:
        """Raise an error of Python's parser.

        Args:
            reason: Its message.
            position: In the text of the whole file, in characters.
        """
        text = self._window[: max(0, position - self._before)]
        newline = text.rfind("\n")
        line = self._before + newline + 1 if newline >= 0 else self._line
        error = json.JSONDecodeError(reason, "", 0)
        error.args = (
            f"{reason}: line {1 + self._lines + text.count(chr(10))} "
            f"column {position - line + 1} (char {position})",
        )
        raise error
