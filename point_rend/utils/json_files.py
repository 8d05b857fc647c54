"""Reading of JSON files that a user wrote: bounded in size, memory and depth.

Python's parser accepts more than JSON: NaN and infinities, which the readers of numbers have to
refuse, and repeated keys, which are refused here because all but the last value would be lost.
"""

import codecs
import contextlib
import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from point_rend.utils.reading import read_bytes

MAX_BYTES = 64 << 20  # of a file without a limit of its own
MAX_DATA_SET_BYTES = 4 << 30  # annotations of LVIS v1 have 1.1 GB
# Python's objects: a scalar takes up to 12 times its text, an empty list or object far more.
LIST_BYTES, OBJECT_BYTES = 64, 240
ALWAYS_AFFORDABLE = 1 << 30
MAX_GROWTH = 10  # memory of the lists and objects of a larger file, in sizes of the file
SHOWN = 80  # characters of a value in a message

BOM = "\ufeff"


def read_json(path: str | Path, *, what: str, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file in UTF-8.

    Args:
        path: A regular file.
        what: Its role for messages, such as "annotation file".
        max_bytes: Largest size that is read.

    Raises:
        OSError: As `read_bytes`.
        ValueError: As `read_bytes` and :func:`parse_json`.
    """
    return parse_json(read_bytes(path, what=what, max_bytes=max_bytes), f"{what} {path}")


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON in UTF-8.

    Args:
        data: The text.
        where: Its place for messages, such as "result file a.json".

    Raises:
        ValueError: If it is truncated, not JSON or not in UTF-8, if an object has a key twice, or
            if it is nested too deeply or made to exhaust the memory.
    """
    check_bytes([data], where)
    text = data.decode("utf-8")
    del data
    with parsing(where):
        return DECODER.decode(text)


def check_bytes(blocks: Iterable[bytes], where: str) -> None:
    """Check the bytes of a JSON text before it is parsed.

    Args:
        blocks: The text in parts.
        where: As of :func:`parse_json`.

    Raises:
        ValueError: If it has a byte order mark, is not in UTF-8, or is made to exhaust the memory.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")()
    size = lists = objects = 0
    wrong: str | None = None
    for block in blocks:
        if not size and block.startswith(BOM.encode()):
            raise ValueError(f"{where} begins with a byte order mark: save it as UTF-8 without one")
        wrong = wrong or _wrong_byte(utf8, block, size)
        size += len(block)
        lists += block.count(b"[")
        objects += block.count(b"{")
    wrong = wrong or _wrong_byte(utf8, b"", size)
    needed = LIST_BYTES * lists + OBJECT_BYTES * objects
    if needed > max(ALWAYS_AFFORDABLE, MAX_GROWTH * size):
        raise ValueError(
            f"{where}: its {lists + objects} lists and objects would take "
            f"{needed / 2**30:.1f} GiB of memory, expected records with content"
        )
    if wrong:
        raise ValueError(f"{where} is not in UTF-8: {wrong}")


def _wrong_byte(utf8: codecs.IncrementalDecoder, block: bytes, before: int) -> str | None:
    """Decode the next block, or the end if it is empty; describe the first byte that is wrong."""
    kept = len(utf8.getstate()[0])
    try:
        utf8.decode(block, final=not block)
    except UnicodeDecodeError as error:
        position = before - kept + error.start
        return f"byte {error.object[error.start]:#04x} at position {position}"
    return None


@contextlib.contextmanager
def parsing(where: str) -> Iterator[None]:
    """Turn the errors of :data:`DECODER` into those of :func:`parse_json`."""
    try:
        yield
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    except MemoryError:
        raise ValueError(f"{where}: the memory does not suffice to read it") from None
    except RepeatedKeyError as error:
        raise ValueError(f"{where}: an object has the key {error} twice") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is truncated or not JSON: {error}") from None
    except ValueError as error:  # an integer beyond sys.get_int_max_str_digits()
        raise ValueError(f"{where} has a number with too many digits: {error}") from None


class RepeatedKeyError(Exception):
    """An object of JSON has a key twice."""


def check_unique(keys: Sequence[str]) -> None:
    """Refuse the keys of an object if one is given twice.

    Raises:
        RepeatedKeyError: With the first such key, as it is shown.
    """
    if len({*keys}) != len(keys):
        counts = Counter(keys)
        raise RepeatedKeyError(shown(next(key for key in keys if counts[key] > 1)))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        check_unique([key for key, _ in pairs])
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_unique)


class _Short(reprlib.Repr):
    """A short text of any value that JSON can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring = 3, SHOWN

    def repr_int(self, value: int, _level: int) -> str:
        """Describe integers that Python refuses to print."""
        large = value.bit_length() > 4 * SHOWN
        return f"<integer of {value.bit_length()} bits>" if large else repr(value)


def shown(value: Any) -> str:
    """Return a value for a message: short, however large or deep it is."""
    text = _Short().repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
