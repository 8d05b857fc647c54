"""Checkpoint files sealed by a checksum.

The comment with which a zip archive, such as torch's files are, may end is the SHA-256 of all bytes
before it. Other programs read the file as any other; torch itself notices hardly any changed bit.
"""

import hashlib
import os
import re
from collections.abc import Callable
from typing import Any, BinaryIO
from urllib.parse import urlparse

import torch

from point_rend.checkpoint.foreign import kind_of_file, looks_like, project_of_global
from point_rend.checkpoint.pickle_machine import FormatError, RefusedError
from point_rend.checkpoint.torch_file import check_torch_file
from point_rend.utils.reading import open_regular_file


class DamagedError(ValueError):
    """A file is damaged, or is not a checkpoint at all."""


def load_sealed(file: BinaryIO, *, allow_unsafe: bool) -> Any:
    """Load a file of torch after checking its checksum, if it has one, and its declarations."""
    _check_seal(file)
    if not allow_unsafe:
        check_torch_file(file)
    return torch.load(file, map_location="cpu", weights_only=not allow_unsafe)


def read_checkpoint(
    filename: str, reader: Callable[[BinaryIO], Any], *, what: str = "checkpoint"
) -> dict[str, Any]:
    """Read a checkpoint, or another pickled dict, with `reader` and name the file in every error.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedError: If the file is damaged.
        ValueError: If the file would execute code, or does not hold a dict.
    """
    with open_regular_file(filename, what=what) as file:
        try:
            data = reader(file)
        except Exception as error:
            refused = re.search(r"GLOBAL (\S+)", str(error))
            if isinstance(error, RefusedError) or refused:
                asked = _printable(refused[1] if refused else str(error))
                advice = ""
                if what == "checkpoint":
                    advice = (
                        ". If you trust the origin of the file, load it with allow_unsafe=True "
                        "(--allow-unsafe-checkpoint on the command line)"
                    )
                raise ValueError(
                    f"{filename} is refused: it asks for {asked}, and anything but arrays and "
                    f"plain containers could run code{advice}"
                    f"{looks_like(project_of_global(asked))}"
                ) from error
            reason = str(error).rpartition("WeightsUnpickler error: ")[2].split("\n")[0]
            if not isinstance(error, FormatError):
                reason = f"{type(error).__name__}: {reason}"
            file.seek(0)
            kind = kind_of_file(file.read(512), os.path.splitext(filename)[1])
            raise DamagedError(
                f"{filename} cannot be read, it is damaged or no {what}"
                f"{f'; it looks like {kind}' if kind else f' ({_printable(reason)})'}"
            ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{filename} must hold a dict, not {type(data).__name__}")
    return data


def _printable(text: str) -> str:
    """Shorten a text from a file, and replace what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:300])


def without_query(path: str) -> str:
    """Remove the options of Detectron2's checkpointer, such as ``?matching_heuristics=True``."""
    return urlparse(path)._replace(query="").geturl() if "?" in path else path


_END_OF_ZIP = b"PK\x05\x06"  # begins the last record of a zip archive
_LENGTH_AT = 20  # offset in it of the length of the comment, two bytes; the comment follows
_SEAL = b"point_rend sha256 "  # begins the comment
_SEAL_LENGTH = len(_SEAL) + 64
_BLOCK = 1 << 20  # bytes read at a time


def save_sealed(data: dict[str, Any], file: BinaryIO) -> None:
    """Save data with torch and end the file with its checksum."""
    writer = _ErrorKeeper(file)
    try:
        torch.save(data, writer)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise (writer.error or error) from error
    file.seek(-2, os.SEEK_END)
    file.write(_SEAL_LENGTH.to_bytes(2, "little") + _SEAL)
    digest = _digest(file, file.tell())
    file.write(digest)


class _ErrorKeeper:
    """Keeps the error of a write, which torch replaces by an uninformative one of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _digest(file: BinaryIO, length: int) -> bytes:
    """Return the checksum of the first bytes of a file; the position is then behind them."""
    file.seek(0)
    digest = hashlib.sha256()
    while length:
        block = file.read(min(length, _BLOCK))
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def _check_seal(file: BinaryIO) -> None:
    """Check a file against its checksum, if it has one, and rewind it.

    Raises:
        ValueError: If the checksum differs or is incomplete.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LENGTH_AT - 2 - _SEAL_LENGTH))
    _, end, last_record = file.read().rpartition(_END_OF_ZIP)
    length = last_record[_LENGTH_AT - len(end) :][:2]
    comment = last_record[_LENGTH_AT - len(end) + 2 :]
    sealed_length = _SEAL_LENGTH.to_bytes(2, "little")
    if end and (length == sealed_length or comment.startswith(_SEAL)):
        complete = length == sealed_length and len(comment) == _SEAL_LENGTH
        if not (complete and _SEAL + _digest(file, size - 64) == comment):
            raise ValueError("its checksum is that of other content")
    file.seek(0)
