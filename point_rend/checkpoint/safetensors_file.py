"""Files of Hugging Face's safetensors format, read and written as data.

A file is the length of its header (8 bytes, little endian), a header in JSON that gives type, shape
and place of each tensor, and the bytes of the tensors. Nothing in it can be executed. It is read
here, and not by the library of that name, so that a header costs no more than its size, and every
fault is one line.

Beyond the tensors, a file stores in its ``__metadata__``, a dict of texts:

- ``format``: "pt", as all programs expect of a model of PyTorch;
- ``point_rend``: in JSON, the classes and the config of the model and the versions of its modules,
  as a `.pth` stores them, and the SHA-256 of all bytes after the header;
- the name of a parameter that is the same tensor as another one, and the name of that one.
"""

import hashlib
import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from point_rend.checkpoint.pickle_machine import FormatError
from point_rend.checkpoint.torch_file import ZIP
from point_rend.utils.json_files import parse_json, shown

SUFFIX = ".safetensors"
OWN = "point_rend"  # key of what this package adds to the metadata
MAX_HEADER = 16 << 20  # bytes; the names, types and shapes of 100,000 tensors
MAX_DIMENSIONS = 64
ALIGNMENT = 8  # of the first tensor in the file

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_RESERVED = ("__metadata__", "format", OWN)  # names that no parameter can have
_INTEGER_KEY = re.compile(r"-?\d{1,18}")


class _Entry(NamedTuple):
    """A tensor as the header describes it; `start` and `end` count from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class _Header(NamedTuple):
    """A checked header.

    Attributes:
        entries: Tensors by name, in the order of the file's header.
        texts: The file's ``__metadata__``.
        own: What this package added to it.
    """

    entries: dict[str, _Entry]
    texts: dict[str, str]
    own: dict[str, Any]


# Reading


def load_safetensors(file: BinaryIO) -> dict[str, Any]:
    """Read a file into the form of a checkpoint: `model`, and `metadata` if the file has any.

    Raises:
        FormatError: If the file is damaged or of another format.
    """
    header = _read_header(file)
    digest = hashlib.sha256()
    tensors: dict[str, Tensor] = {}
    for name, entry in sorted(header.entries.items(), key=lambda item: item[1].start):
        content = bytearray(entry.end - entry.start)
        if file.readinto(content) != len(content):  # type: ignore[attr-defined]
            raise FormatError("it ends before its tensors do")
        digest.update(content)
        tensors[name] = _tensor(name, entry, content)
    if header.own.get("sha256", digest.hexdigest()) != digest.hexdigest():
        raise FormatError("its tensors are not those of its checksum")
    model = OrderedDict((name, tensors[name]) for name in header.entries)
    for name, other in header.texts.items():
        if other in tensors and name not in (*_RESERVED, *tensors):
            model[name] = tensors[other]
    if "versions" in header.own:
        model._metadata = header.own["versions"]  # type: ignore[attr-defined]
    return {"model": model, **_metadata(header)}


def load_metadata(file: BinaryIO) -> dict[str, Any]:
    """Read the classes and the config alone, as `metadata`; an empty dict if there are none."""
    return _metadata(_read_header(file))


def _metadata(header: _Header) -> dict[str, Any]:
    if "metadata" not in header.own:
        return {}
    return {"metadata": _with_integer_keys(header.own["metadata"])}


def _read_header(file: BinaryIO) -> _Header:
    """Read and check the header; the file's position is then that of the first tensor."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(8)
    if start.startswith(ZIP):
        raise FormatError("it is a zip archive, as torch.save writes it: name it .pth")
    length = int.from_bytes(start, "little")
    if size < 8 or length > size - 8:
        raise FormatError("its header is longer than the file")
    if length > MAX_HEADER:
        raise FormatError(f"its header has {length} bytes, expected {MAX_HEADER} at most")
    fields = _parse(file.read(length), "its header")
    if not isinstance(fields, dict):
        raise FormatError(f"its header is {shown(fields)}, expected a JSON object")
    texts = fields.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise FormatError("its __metadata__ is not a dict of texts")
    entries = {name: _entry(name, value) for name, value in fields.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != end:
            raise FormatError(f"its tensor {name!r:.80} overlaps another or leaves a gap")
        end = entry.end
    if end != size - 8 - length:
        raise FormatError(f"its tensors have {end} bytes, but it holds {size - 8 - length}")
    own = _parse(texts.get(OWN, "{}").encode("utf-8", "replace"), f"its {OWN}")
    if not isinstance(own, dict):
        raise FormatError(f"its {OWN} is {shown(own)}, expected a JSON object")
    return _Header(entries, texts, own)


def _parse(data: bytes, where: str) -> Any:
    """Parse JSON; every error is a :class:`FormatError`."""
    try:
        return parse_json(data, where)
    except ValueError as error:
        raise FormatError(str(error)) from error


def _entry(name: str, value: Any) -> _Entry:
    """Check the description of a tensor."""
    match value:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [start, end]} if (
            len(value) == 3
        ):
            pass
        case _:
            raise FormatError(f"its tensor {name!r:.80} is described by {shown(value)}")
    if kind not in _DTYPES:
        raise FormatError(
            f"its tensor {name!r:.80} has type {kind!r:.20}, expected one of {', '.join(_DTYPES)}"
        )
    sides = [*shape, start, end]
    if len(shape) > MAX_DIMENSIONS or not all(
        type(side) is int and 0 <= side < 1 << 62 for side in sides
    ):
        raise FormatError(f"its tensor {name!r:.80} has an impossible shape or place")
    needed = math.prod(shape) * _DTYPES[kind].itemsize
    if needed != end - start:
        raise FormatError(
            f"its tensor {name!r:.80} of shape {shown(shape)} has {end - start} bytes, expected "
            f"{needed if needed < 1 << 62 else 'far more'}"
        )
    return _Entry(_DTYPES[kind], tuple(shape), start, end)


def _tensor(name: str, entry: _Entry, content: bytearray) -> Tensor:
    if not content:
        return torch.empty(entry.shape, dtype=entry.dtype)
    if entry.dtype is torch.bool and max(content) > 1:
        raise FormatError(f"its tensor {name!r:.80} has truth values other than 0 and 1")
    return torch.frombuffer(content, dtype=entry.dtype).reshape(entry.shape)


def _with_integer_keys(metadata: Any) -> Any:
    """Undo in the maps of the metadata that keys of JSON are texts."""
    if not isinstance(metadata, dict):
        return metadata
    return {
        field: {int(key) if _INTEGER_KEY.fullmatch(key) else key: x for key, x in value.items()}
        if isinstance(value, dict)
        else value
        for field, value in metadata.items()
    }


# Writing


def save_safetensors(
    state_dict: Mapping[str, Tensor], file: BinaryIO, *, metadata: Mapping[str, Any] | None = None
) -> str:
    """Write a model; the same model always gives the same bytes.

    Args:
        state_dict: Parameters by name. Those that are the same tensor are written once.
        file: Open for writing.
        metadata: Classes and config, as :class:`SafeDetectionCheckpointer` stores them.

    Returns:
        The SHA-256 of the file, in hexadecimal digits.

    Raises:
        ValueError: If a parameter is no dense tensor of a type that the format has, or a name is
            reserved.
        OSError: If the file cannot be written.
    """
    stored, texts = _without_repetitions(state_dict)
    # Wide types first: every tensor is aligned to its own type.
    by_width = sorted(stored, key=lambda name: -stored[name].element_size())
    places: dict[str, list[int]] = {}
    digest, end = hashlib.sha256(), 0
    for name in by_width:
        start, end = end, end + stored[name].numel() * stored[name].element_size()
        places[name] = [start, end]
        digest.update(_content(stored[name]))
    own: dict[str, Any] = {"sha256": digest.hexdigest()}
    if metadata:
        own["metadata"] = dict(metadata)
    if versions := getattr(state_dict, "_metadata", None):
        own["versions"] = versions
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", OWN: json.dumps(own, ensure_ascii=False), **texts}
    }
    for name, tensor in stored.items():
        kind = _NAMES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": [*tensor.shape], "data_offsets": places[name]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    whole = hashlib.sha256()
    for part in _parts(text, [stored[name] for name in by_width]):
        whole.update(part)
        file.write(part)
    return whole.hexdigest()


def _parts(header: bytes, tensors: list[Tensor]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little")
    yield header
    for tensor in tensors:
        yield _content(tensor)


def _without_repetitions(
    state_dict: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to write, and the names of repeated ones with those of the first."""
    stored: dict[str, Tensor] = {}
    repeated: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in state_dict.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _NAMES:
            raise ValueError(
                f"{name!r:.80} is a tensor of {tensor.dtype} and {tensor.layout}: expected dense "
                f"values of {', '.join(_DTYPES)}"
            )
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            repeated[name] = first[place]
        else:
            first[place] = name
            stored[name] = tensor.detach()
    for name in _RESERVED:
        if name in state_dict:
            raise ValueError(f"no parameter can have the name {name!r} in a file of safetensors")
    return stored, repeated


def _content(tensor: Tensor) -> memoryview | bytes:
    """Return the bytes of a tensor, in the order of its indices."""
    if not tensor.numel():
        return b""
    flat = tensor.cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
