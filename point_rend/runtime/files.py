"""Descriptions of exported files, read before any runtime sees the file.

ONNX is a protocol buffer, whose fields are skipped but for the metadata; the files of PyTorch are
zip archives with the description as an extra file.
"""

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from point_rend.checkpoint.pickle_machine import FormatError
from point_rend.checkpoint.torch_file import check_number_of_members
from point_rend.runtime.description import KEY, Description
from point_rend.utils.reading import open_regular_file

ONNX, TORCH_EXPORT, TORCHSCRIPT = ".onnx", ".pt2", ".ts"
SUFFIXES = (ONNX, TORCH_EXPORT, TORCHSCRIPT)

MAX_TEXT = 1 << 20  # bytes of a description; a config has 15 KB
MAX_FIELDS = 10_000  # of a model's outermost message: the graph, metadata and operator sets
_METADATA_PROPS, _KEY_FIELD, _VALUE_FIELD = 14, 1, 2  # numbers of fields in onnx.proto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Return whether a file name is one of an exported model: .onnx, .pt2 or .ts."""
    return Path(path).suffix.lower() in SUFFIXES


def exported_file(model: str | None) -> str | None:
    """Return a `--model` if it is a file; None if it is a folder, a repository or not given."""
    is_file = model is not None and (is_exported(model) or os.path.isfile(model))
    return model if is_file else None


def read_description(path: str | os.PathLike[str]) -> Description:
    """Read the description of an exported file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If `pointrend export` has not written it, or the description is damaged.
        OSError: If it cannot be read.
    """
    path = os.fspath(path)
    if not is_exported(path):
        raise ValueError(f"{path} is no exported model: expected a file {', '.join(SUFFIXES)}")
    read = _text_in_onnx if Path(path).suffix.lower() == ONNX else _text_in_archive
    with open_regular_file(path, what="model") as file:
        try:
            text = read(file)
        except Exception:  # of any damage: the file is none of ours
            text = None
    return Description.from_json(text, path)


def _text_in_archive(file: BinaryIO) -> str | None:
    """Return the extra file of a zip archive; None if there is none."""
    check_number_of_members(file, os.fstat(file.fileno()).st_size)
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            stored = member.compress_type == zipfile.ZIP_STORED and member.file_size <= MAX_TEXT
            if stored and member.filename.endswith(f"/extra/{KEY}"):
                member.CRC = None  # type: ignore[assignment]  # torch may leave checksums out
                with archive.open(member) as content:
                    return content.read(MAX_TEXT).decode(errors="replace")
    return None


def _text_in_onnx(file: BinaryIO) -> str | None:
    """Return the value of the metadata of an ONNX model; None if there is none."""
    for number, content in _fields(file, os.fstat(file.fileno()).st_size, {_METADATA_PROPS}):
        entry = dict(_fields_of_text(content)) if number == _METADATA_PROPS else {}
        if entry.get(_KEY_FIELD) == KEY.encode():
            return entry.get(_VALUE_FIELD, b"").decode(errors="replace")
    return None


def _fields_of_text(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the fields of an entry of the metadata."""
    return _fields(io.BytesIO(data), len(data), {_KEY_FIELD, _VALUE_FIELD})


def _fields(file: BinaryIO, size: int, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of the wanted fields of a message that have bytes.

    Raises:
        FormatError: If it is no message, or has too many fields.
    """
    file.seek(0)
    for _ in range(MAX_FIELDS):
        if file.tell() >= size:
            return
        tag = _varint(file)
        number, wire = tag >> 3, tag & 7
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
        if wire == _VARINT:
            _varint(file)
        elif wire == _BYTES:
            length = _varint(file)
        elif wire not in (_FIXED64, _FIXED32):
            raise FormatError(f"a field of the unknown wire type {wire}")
        end = file.tell() + length
        if end > size:
            raise FormatError("a field goes beyond the end")
        if wire == _BYTES and number in wanted and length <= MAX_TEXT:
            yield number, file.read(length)
        file.seek(end)
    raise FormatError(f"more than {MAX_FIELDS} fields")


def _varint(file: BinaryIO) -> int:
    """Read a number of up to 64 bits, seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise FormatError("it ends within a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise FormatError("a number of more than 64 bits")
