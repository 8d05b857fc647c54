"""Unpickling of arrays and plain containers, and of nothing else."""

import math
import pickle
import re
import reprlib
from collections import OrderedDict
from typing import Any, BinaryIO, Literal

import numpy as np

_ADMITTED_GLOBALS = frozenset(
    {
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.core.numeric._frombuffer",
        "collections.OrderedDict",
        "builtins.bytes",
        "builtins.set",
        "builtins.frozenset",
        "_codecs.encode",
    }
)
_PLAIN_DTYPE = re.compile(r"[|<>=]?([biufcSU]\d+|\?)")  # numbers and strings, no objects


class RefusedError(Exception):
    """The file asks for something that is neither an array nor a plain container."""


class _Global:
    """A name in the file; a call of it is recorded, not executed."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> "_Call":
        return _Call(self.name, args)

    def __setstate__(self, state: Any) -> None:
        raise RefusedError(f"a change of {self.name}")


class _Call:
    """A recorded call, with the state and the items that its result is to get."""

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: tuple) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


def load_arrays(file: BinaryIO) -> Any:
    """Unpickle arrays and plain containers, also as Python 2 wrote them.

    Raises:
        RefusedError: If the file asks for anything else.
        Exception: Of many types, if the file is damaged.
    """
    return _make(_ArrayUnpickler(file, encoding="latin1").load(), {})


class _ArrayUnpickler(pickle.Unpickler):
    """Reads a pickle without importing, calling or changing anything that the file names."""

    def find_class(self, module: str, name: str) -> _Global:
        path = f"{module}.{name}"
        path = re.sub(r"^__builtin__\.", "builtins.", path)  # Python 2
        path = re.sub(r"^numpy\._core\.", "numpy.core.", path)  # NumPy 2
        if path not in _ADMITTED_GLOBALS:
            raise RefusedError(f"{module}.{name}")
        return _Global(path)


def _make(value: Any, made: dict[int, Any]) -> Any:
    """Make the arrays and containers of the recorded calls.

    Args:
        value: Result of the unpickler, or a part of it.
        made: Results of other parts by their ids, so that a shared part stays shared.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
        return value
    if id(value) not in made:
        new: Any
        match value:
            case dict():
                new = {_make(key, made): _make(item, made) for key, item in value.items()}
            case list() | tuple() | set() | frozenset():
                new = type(value)(_make(item, made) for item in value)
            case _Call():
                new = _carry_out(
                    value.name,
                    _make(value.args, made),
                    _make(value.state, made),
                    _make(value.items, made),
                )
            case _Global(name="numpy.ndarray"):
                new = np.ndarray
            case _:
                raise RefusedError(getattr(value, "name", type(value).__name__))
        made[id(value)] = new
    return made[id(value)]


def _carry_out(name: str, args: tuple, state: Any, items: dict) -> Any:
    """Make the array, type, scalar, container or string of one recorded call."""
    match name, args:
        case "numpy.dtype", (str(code), *_) if _PLAIN_DTYPE.fullmatch(code):
            dtype = np.dtype(code)
            return dtype.newbyteorder(state[1]) if state and state[1] != "|" else dtype
        case "numpy.core.multiarray._reconstruct", (kind, *_) if kind is np.ndarray:
            _version, shape, dtype, is_fortran, raw = state
            return _array(shape, dtype, raw, "F" if is_fortran else "C")
        case "numpy.core.multiarray.scalar", (dtype, raw):
            return _array((), dtype, raw, "C")[()]
        case "numpy.core.numeric._frombuffer", (raw, dtype, shape, order):
            return _array(shape, dtype, raw, order)
        case "collections.OrderedDict", _:
            ordered: OrderedDict = OrderedDict(*args)
            ordered.update(items)
            if state and "_metadata" in state:  # the modules' versions, in a state_dict()
                ordered._metadata = state["_metadata"]  # type: ignore[attr-defined]
            return ordered
        case "builtins.bytes", ():
            return b""
        case "builtins.set" | "builtins.frozenset", (list(members),):
            return set(members) if name == "builtins.set" else frozenset(members)
        case "_codecs.encode", (str(text), "latin1"):
            return text.encode("latin1")
    raise RefusedError(f"{name}{reprlib.repr(args)}")


def _array(
    shape: tuple[int, ...], dtype: np.dtype, raw: bytes | str, order: Literal["C", "F"]
) -> np.ndarray:
    if isinstance(raw, str):  # Python 2 had one kind of string; it is read as latin1
        raw = raw.encode("latin1")
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes for an array of shape {shape} and type {dtype}")
    # A copy: a view of the file's bytes could not be written to, nor could torch swap them.
    stored: np.ndarray = np.ndarray(shape, dtype, buffer=raw, order=order)
    return stored.astype(dtype.newbyteorder("="), order="K")
