"""Checkpoint files sealed by a checksum."""

import hashlib
import os
import re
from collections.abc import Callable
from typing import Any, BinaryIO
from urllib.parse import urlparse

import torch

from point_rend.checkpoint.array_pickle import _RefusedError


class DamagedError(ValueError):
    """A file is not what was saved, or no checkpoint at all."""


def _load_sealed(file: BinaryIO, *, allow_unsafe: bool) -> Any:
    _check_seal(file)
    return torch.load(file, map_location="cpu", weights_only=not allow_unsafe)


def _read(filename: str, reader: Callable[[BinaryIO], Any]) -> dict[str, Any]:
    with open(filename, "rb") as file:
        try:
            data = reader(file)
        except Exception as error:
            refused = re.search(r"GLOBAL (\S+)", str(error))
            if isinstance(error, _RefusedError) or refused:
                raise ValueError(
                    f"{filename} is refused: it asks for {refused[1] if refused else error}, and "
                    "whatever is neither an array nor a plain container could run code. If you "
                    "trust who made the file, load it with allow_unsafe=True "
                    "(train_net.py --allow-unsafe-checkpoint)"
                ) from error
            reason = str(error).rpartition("WeightsUnpickler error: ")[2].split("\n")[0]
            raise DamagedError(
                f"{filename} cannot be read, it is damaged or no checkpoint "
                f"({type(error).__name__}: {reason})"
            ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{filename} must hold a dict, not {type(data).__name__}")
    return data


def without_query(path: str) -> str:
    """Cut off what Detectron2's checkpointer takes for options, as ``?matching_heuristics``."""
    return urlparse(path)._replace(query="").geturl()


_END_OF_ZIP = b"PK\x05\x06"  # begins the last record of a zip archive, of which the last field is
_LENGTH_AT = 20  # the length of the comment, of two bytes; the comment follows
_SEAL = b"point_rend sha256 "  # begins the comment
_SEAL_LENGTH = len(_SEAL) + 64
_BLOCK = 1 << 20  # bytes read at a time


def _save_and_seal(data: dict[str, Any], file: BinaryIO) -> None:
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
    """Keeps the error of a write, for which torch raises one of its own that says nothing."""

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
    """Return the checksum of the first bytes of a file, and leave it behind them."""
    file.seek(0)
    digest = hashlib.sha256()
    while length:
        block = file.read(min(length, _BLOCK))
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def _check_seal(file: BinaryIO) -> None:
    """Check a file against its checksum, if it has one, and go back to its begin.

    Raises:
        ValueError: if it has another one, or only a part of one.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LENGTH_AT - 2 - _SEAL_LENGTH))
    _, end, last_record = file.read().rpartition(_END_OF_ZIP)
    length = last_record[_LENGTH_AT - len(end) :][:2]
    comment = last_record[_LENGTH_AT - len(end) + 2 :]
    sealed_length = _SEAL_LENGTH.to_bytes(2, "little")
    if end and (length == sealed_length or comment.startswith(_SEAL)):
        whole = length == sealed_length and len(comment) == _SEAL_LENGTH
        if not (whole and _SEAL + _digest(file, size - 64) == comment):
            raise ValueError("its checksum is that of other content")
    file.seek(0)
