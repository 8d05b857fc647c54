"""Reading of JSON files that a user wrote: bounded in size, memory and depth.

Python's parser accepts more than JSON: NaN and infinities, which the readers of numbers have to
refuse, and repeated keys, which are refused here because all but the last value would be lost.
"""

import json
import reprlib
from pathlib import Path
from typing import Any, NoReturn

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
    if data.startswith(BOM.encode()):
        raise ValueError(with_bom(where))
    needed = LIST_BYTES * data.count(b"[") + OBJECT_BYTES * data.count(b"{")
    if needed > max(ALWAYS_AFFORDABLE, MAX_GROWTH * len(data)):
        raise ValueError(
            f"{where}: its {data.count(b'[') + data.count(b'{')} lists and objects would take "
            f"{needed / 2**30:.1f} GiB of memory, expected records with content"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not in UTF-8: byte {data[error.start]:#04x} at position {error.start}"
        ) from None
    del data
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    except MemoryError:
        raise ValueError(f"{where}: the memory does not suffice to read it") from None
    except _RepeatedKeyError as error:
        raise ValueError(f"{where}: an object has the key {error} twice") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is truncated or not JSON: {error}") from None
    except ValueError as error:  # an integer beyond sys.get_int_max_str_digits()
        raise ValueError(f"{where} has a number with too many digits: {error}") from None


def with_bom(where: str) -> str:
    """Describe the fault of a file with a byte order mark."""
    return f"{where} begins with a byte order mark: save it as UTF-8 without one"


class _RepeatedKeyError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse_repetition(pairs)
    return found


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> NoReturn:
    keys = [key for key, _ in pairs]
    repeated = next(key for key in keys if keys.count(key) > 1)
    raise _RepeatedKeyError(shown(repeated))


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
