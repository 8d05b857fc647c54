"""Class names in a text file or on the command line."""

import codecs
import os
import re
from collections import defaultdict
from pathlib import Path

from point_rend.utils.errors import shorten
from point_rend.utils.reading import read_bytes

WHAT = "the file of the class names"
MAX_BYTES = 1 << 20
SHOWN = 5  # names or lines in a message
MAX_LENGTH = 200  # characters of a name
MAX_LABELS = 255  # classes of a label map of 8 bits, whose value 255 is ignored
ENDINGS = (".txt", ".names")
OTHER_ENDINGS = (".json", ".yaml", ".yml", ".xml", ".toml")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_class_names(classes: str, *, at_most: int | None = MAX_LABELS) -> list[str]:
    """Read class names from a text file, one per line, or from a list with commas.

    Args:
        classes: The file or the list. Empty lines and spaces around names are ignored. The text is
            UTF-8, or UTF-16 with a byte order mark.
        at_most: Largest number of names, if there is one.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If there is no name, if a name occurs twice, or if the file is of another kind.
    """
    if os.path.isfile(classes) or os.sep in classes or classes.lower().endswith(ENDINGS):
        lines = _read_lines(classes)
    else:
        lines = dict(enumerate(classes.split(","), start=1))
    lines = {number: line.strip() for number, line in lines.items() if line.strip()}
    names = list(lines.values())
    places = defaultdict(list)
    for number, name in lines.items():
        places[name].append(str(number))
    twice = [
        f"{shorten(name)} more than once ({' and '.join(numbers[:SHOWN])})"
        for name, numbers in sorted(places.items())
        if len(numbers) > 1
    ][:SHOWN]
    if not names or twice or (at_most is not None and len(names) > at_most):
        expected = f"1 to {at_most}" if at_most is not None else "1 or more"
        raise ValueError(
            f"class names of {shorten(classes, 200)!r}: expected {expected} different names, got "
            f"{len(names)}" + (f", of which {', '.join(twice)}" if twice else "")
        )
    return names


def _read_lines(file: str) -> dict[int, str]:
    """Read the lines of a text file by their numbers, from 1.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not text with one name per line; it names the line.
    """
    expected = "expected text in UTF-8, one name per line"
    if Path(file).suffix.lower() in OTHER_ENDINGS:
        raise ValueError(f"{WHAT} {file}: {expected}, not {Path(file).suffix}")
    data = read_bytes(file, what=WHAT, max_bytes=MAX_BYTES)
    encoding = "utf-16" if data.startswith(_UTF_16) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        number = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        raise ValueError(
            f"{WHAT} {file}, line {number}: {expected}, but it has the byte "
            f"0x{data[error.start]:02x}; save it as UTF-8"
        ) from error
    lines = dict(enumerate(re.split(r"\r\n|\r|\n", text), start=1))
    for number, line in lines.items():
        if not line.replace("\t", "").isprintable():
            raise ValueError(
                f"{WHAT} {file}, line {number}: {expected}, got {line!r:.80} with a character that "
                "cannot be shown"
            )
        if len(line) > MAX_LENGTH:
            raise ValueError(
                f"{WHAT} {file}, line {number}: {expected}, got a line of {len(line)} characters"
            )
    return lines
