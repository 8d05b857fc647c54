"""Checks of files of `torch.save` before torch reads them: what they declare, they must contain.

The pickle in such a file is run as data (:mod:`point_rend.checkpoint.pickle_machine`), and every
storage and tensor that it names is compared with the bytes of the file. Afterwards torch can read
the file in time and memory that are in proportion to its size.
"""

import io
import math
import os
import re
import struct
import zipfile
from typing import Any, BinaryIO

import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from point_rend.checkpoint.pickle_machine import (
    Budget,
    Call,
    FormatError,
    Global,
    Persistent,
    RefusedError,
    check_key,
    run_pickle,
)

OPERATIONS = 1_500_000  # of the pickles of a file; a tensor takes about 25
MAX_PICKLE = 64 << 20  # bytes of the pickle in an archive, which describes the tensors
MAX_MEMBERS = 100_000  # of an archive: one per storage
MAX_DIMENSIONS = 64
ZIP, OTHER_ZIPS = b"PK\x03\x04", (b"PK\x05\x06", b"PK\x07\x08")
VIEWS = 16  # times the size of a file that its tensors may have in all: parameters may be shared
SMALL = 64 << 20  # bytes that they may have in any case: some repeat a number

_FUNCTIONS = {
    "collections.OrderedDict",
    "collections.Counter",
    "builtins.set",
    "builtins.bytearray",
    "builtins.complex",
    "_codecs.encode",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2",
}
_VALUES = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.serialization._get_layout"}
_EXOTIC = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (meta)",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of another class",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
_STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w*)Storage")
# Bytes of an element by the name of the storage's class, without the part common to all.
_ELEMENTS = {
    **dict.fromkeys(("Bool", "Byte", "Char", "Untyped"), 1),
    **dict.fromkeys(("Short", "Half", "BFloat16"), 2),
    **dict.fromkeys(("Int", "Float"), 4),
    **dict.fromkeys(("Long", "Double", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}


def check_torch_file(file: BinaryIO) -> None:
    """Check a file that torch is about to read, and rewind it.

    Raises:
        RefusedError: If it asks for anything but tensors and plain containers.
        FormatError: If it declares more than it contains.
        Exception: Of other types, if it is damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(4)
    file.seek(0)
    if head.startswith(ZIP):
        _check_archive(file, size)
    elif head.startswith(OTHER_ZIPS):
        raise FormatError("it is an empty or divided zip archive")
    else:
        _check_legacy(file, size)
    file.seek(0)


# Archives, of PyTorch 1.6 and later


def _check_archive(file: BinaryIO, size: int) -> None:
    check_number_of_members(file, size)
    sizes: dict[str, int] = {}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        folder = members[0].filename.partition("/")[0] if members else ""
        if any(member.filename == f"{folder}/constants.pkl" for member in members):
            raise FormatError("it is a TorchScript program: expected a state_dict()")
        for member in members:
            name = member.filename
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise FormatError(f"its member {name!r:.80} is compressed or encrypted")
            if name in sizes or ".." in re.split(r"[/\\]", name) or name[:1] in ("/", "\\"):
                raise FormatError(f"its member {name!r:.80} is there twice or leads elsewhere")
            sizes[name] = member.file_size
        if sum(sizes.values()) > size:
            raise FormatError("its members are larger than the file")
        described = sizes.get(f"{folder}/data.pkl")
        if described is None:
            raise FormatError("it is a zip archive, but not one of torch.save")
        if described > MAX_PICKLE:
            raise FormatError(f"its data.pkl has {described} bytes, expected {MAX_PICKLE} at most")
        member = archive.getinfo(f"{folder}/data.pkl")
        member.CRC = None  # type: ignore[assignment]  # torch can be told not to write checksums
        content = archive.read(member)
    check = _Check(Budget(OPERATIONS), size)
    check.run(io.BytesIO(content), len(content))
    for key, (_, numel, width) in check.storages.items():
        stored = sizes.get(f"{folder}/data/{key}", -1)
        if numel * width > stored:
            raise _shortage(key, numel * width)


def check_number_of_members(file: BinaryIO, size: int) -> None:
    """Bound it before the list of members is read, which takes time and memory for each of them.

    Args:
        file: A zip archive, which is rewound.
        size: Its number of bytes.

    Raises:
        FormatError: If it has too many members, or no end.
    """
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise FormatError("it is a zip archive without an end, as of an incomplete download")
    number, directory = struct.unpack_from("<HI", tail, end + 10)
    of_zip64 = end - 76  # its records have fixed sizes and end here
    if of_zip64 >= 0 and tail.startswith(b"PK\x06\x06", of_zip64):
        number, directory = struct.unpack_from("<QQ", tail, of_zip64 + 32)
    if number > MAX_MEMBERS or directory > MAX_MEMBERS * 400:
        raise FormatError(
            f"it is a zip archive of {number} members, at most {MAX_MEMBERS} are read"
        )
    file.seek(0)


# Files of PyTorch before 1.6: pickles, then the storages


def _check_legacy(file: BinaryIO, size: int) -> None:
    check = _Check(Budget(OPERATIONS), size)

    def run() -> Any:
        return check.run(file, size - file.tell())

    first = run()
    if first != MAGIC_NUMBER:
        raise FormatError("it is a pickle, but not one of torch.save; is it a .pkl file?")
    if run() != PROTOCOL_VERSION:
        raise FormatError("it is of an unknown version of torch.save")
    run()  # the machine that saved it
    run()
    keys = run()
    if type(keys) is not list or not all(isinstance(key, str | int) for key in keys):
        raise FormatError("its list of storages is damaged")
    if sorted(map(str, keys)) != sorted(map(str, check.storages)):
        raise FormatError("its list of storages is not that of its tensors")
    for key in keys:
        _, numel, width = check.storages[key]
        stored = file.read(8)
        end = file.tell() + numel * width
        if len(stored) != 8 or int.from_bytes(stored, "little") != numel or end > size:
            raise FormatError(
                f"it declares {numel * width} bytes for storage {key!r:.80}, but has fewer"
            )
        file.seek(end)


class _Check:
    """Compares what pickles of torch declare with each other and with the size of the file.

    Attributes:
        storages: Class, number of elements and bytes per element of each storage, by its key.
    """

    def __init__(self, budget: Budget, size: int) -> None:
        self.budget = budget
        self.size = size
        self.views = Budget(max(VIEWS * size, SMALL))
        self.storages: dict[Any, tuple[str, int, int]] = {}
        self.seen: dict[int, Any] = {}  # checked values by id, kept so that an id is not used again

    def run(self, file: BinaryIO, size: int) -> Any:
        """Run a pickle and check all of it."""
        value = run_pickle(file, size, _admit, self.budget)
        waiting = [value]
        while waiting:
            part = waiting.pop()
            if isinstance(part, dict | list | tuple | set | frozenset | Call):
                if id(part) in self.seen:
                    continue
                self.seen[id(part)] = part
            waiting.extend(self._parts(part))
        return value

    def _parts(self, value: Any) -> list[Any]:
        """Check a value and return its parts."""
        match value:
            case dict():
                if any(type(key) is Call for key in value):
                    raise FormatError("a key of a dict is the result of a call")
                return list(value.values())
            case Persistent():
                self._storage(value)
                return []
            case list() | tuple():
                return list(value)
            case Call():
                self._call(value.name, value.args)
                self._state(value)
                return [*value.args, value.state, value.items]
        return []

    def _state(self, call: Call) -> None:
        is_ordered = call.name == "collections.OrderedDict"
        names = call.state if isinstance(call.state, dict) else () if call.state is None else None
        if names is None or (names and not (is_ordered and set(names) <= {"_metadata"})):
            raise RefusedError(f"a change of {call.name}")
        if call.items and not call.name.startswith("collections."):
            raise RefusedError(f"a change of {call.name}")

    def _call(self, name: str, args: tuple) -> None:
        """Check a call by its arguments.

        Raises:
            FormatError: If its result would be larger than what the file contains.
        """
        match name, args:
            case (("collections.OrderedDict" | "collections.Counter"), () | (dict(),)):
                self.budget.spend(sum(map(len, args)))
            case "collections.OrderedDict", (list(pairs),):
                self.budget.spend(len(pairs))
                for pair in pairs:
                    if not isinstance(pair, list | tuple) or len(pair) != 2:
                        raise FormatError("an OrderedDict of anything but pairs")
                    check_key(pair[0])
            case "builtins.set", () | (list(),):
                for members in args:
                    self.budget.spend(len(members))
                    for member in members:
                        check_key(member)
            case "builtins.bytearray", () | (bytes() | bytearray(),) | (str(), str()):
                self.views.spend(sum(map(len, args)))
            case "builtins.complex", (float(), float()):
                pass
            case "_codecs.encode", (str(text), "latin1"):
                self.views.spend(len(text))
            case "torch.Size", (tuple() | list() as shape,):
                _check_shape(shape)
            case "torch.device", (str(),) | (str(), int()):
                pass
            case (
                ("torch._utils._rebuild_tensor", (storage, offset, shape, stride))
                | ("torch._utils._rebuild_tensor_v2", (storage, offset, shape, stride, _, _))
                | ("torch._utils._rebuild_tensor_v2", (storage, offset, shape, stride, _, _, _))
                | ("torch._utils._rebuild_tensor_v3", (storage, offset, shape, stride, _, _, _))
                | ("torch._utils._rebuild_tensor_v3", (storage, offset, shape, stride, _, _, _, _))
            ):
                width = _width(args[6]) if name.endswith("v3") else 0
                self._tensor(storage, offset, shape, stride, width)
            case ("torch._utils._rebuild_parameter", (Call(), bool(), _)) | (
                "torch._utils._rebuild_parameter_with_state",
                (Call(), bool(), _, _),
            ):
                if not args[0].name.startswith("torch._"):
                    raise FormatError("a parameter of anything but a tensor")
            case (
                "torch._tensor._rebuild_from_type_v2",
                (Global(name=function), Global(), tuple(inner), _),
            ):
                if not function.startswith("torch._utils."):
                    raise FormatError("a tensor of anything but a storage")
                self._call(function, inner)
            case _:
                raise FormatError(f"a call of {name} that torch.save does not write")

    def _storage(self, value: Persistent) -> tuple[str, int, int]:
        """Check a storage and return its class, number of elements and bytes per element."""
        match value.id:
            case (
                "storage",
                Global(name=kind),
                str() | int() as key,
                str(place),
                int(numel),
                *view,
            ):
                width = _storage_width(kind)
                if not 0 <= numel * width <= self.size:
                    raise _shortage(key, numel * width)
                if place == "meta":
                    raise FormatError("it holds tensors without values (meta)")
                declared = kind, numel, width
                if self.storages.setdefault(key, declared) != declared:
                    raise FormatError(f"it declares storage {key!r:.80} in two ways")
                match view:
                    case [] | [None]:
                        return declared
                    case [(_, int(offset), int(length))]:
                        if not 0 <= offset <= offset + length <= numel:
                            raise FormatError("it holds a view beyond the end of a storage")
                        return kind, length, width
        raise FormatError("it holds an object from elsewhere that is no storage")

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, width: int) -> None:
        """Check that a tensor lies in its storage, and that all together are not too large."""
        if not isinstance(storage, Persistent):
            raise FormatError("a tensor of anything but a storage")
        _, numel, stored_width = self._storage(storage)
        width = width or stored_width
        shape, stride = _check_shape(shape), _check_shape(stride)
        if len(shape) != len(stride) or type(offset) is not int or offset < 0:
            raise FormatError("a tensor has an impossible offset or stride")
        elements = math.prod(shape)
        last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        if elements and (last + 1) * width > numel * stored_width:
            raise FormatError(f"a tensor of shape {shape} reaches beyond the end of its storage")
        self.views.spend(elements * width)


def _shortage(key: Any, declared: int) -> FormatError:
    return FormatError(f"it declares {declared} bytes for storage {key!r:.80}, but has fewer")


def _admit(module: str, name: str) -> Global:
    path = re.sub(r"^__builtin__\.", "builtins.", f"{module}.{name}")  # Python 2
    if path in _EXOTIC:
        raise FormatError(f"it holds {_EXOTIC[path]}, expected dense ones")
    storage = _STORAGE.fullmatch(path)
    is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
    if not (path in _FUNCTIONS or path in _VALUES or storage or is_dtype):
        raise RefusedError(path)
    return Global(path)


def _storage_width(name: str) -> int:
    found = _STORAGE.fullmatch(name)
    if not found or found[1] not in _ELEMENTS:
        raise FormatError(f"it holds a {name}, expected storages of plain numbers")
    return _ELEMENTS[found[1]]


def _width(dtype: Any) -> int:
    found = getattr(torch, getattr(dtype, "name", "").rpartition(".")[2], None)
    if not isinstance(found, torch.dtype):
        raise FormatError("a tensor has an impossible type")
    return found.itemsize


def _check_shape(shape: Any) -> tuple[int, ...]:
    """Return a shape or stride as a tuple of small numbers."""
    if isinstance(shape, Call) and shape.name == "torch.Size" and len(shape.args) == 1:
        shape = shape.args[0]
    sound = isinstance(shape, tuple | list) and len(shape) <= MAX_DIMENSIONS
    if not sound or not all(type(side) is int and 0 <= side < 1 << 62 for side in shape):
        raise FormatError("a tensor has an impossible shape or stride")
    return tuple(shape)
