"""Unpickling of arrays and plain containers, and of nothing else."""

import math
import os
import re
import reprlib
from collections import OrderedDict
from typing import Any, BinaryIO, Literal

import numpy as np

from point_rend.checkpoint.pickle_machine import (
    Budget,
    Call,
    FormatError,
    Global,
    RefusedError,
    check_key,
    run_pickle,
)

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
        "detectron2.structures.boxes.BoxMode",
    }
)
_PLAIN_DTYPE = re.compile(r"[|<>=]?([biufcSU][1-9]\d{0,8}|\?)")  # numbers and strings, no objects
MAX_DIMENSIONS = 32  # of the arrays of all versions of NumPy
# Operations of a pickle: some for small files, and one per so many bytes. Arrays have few.
SMALL, BYTES_PER_OPERATION = 1_000_000, 32


def load_arrays(file: BinaryIO) -> Any:
    """Unpickle arrays and plain containers, also as Python 2 wrote them.

    Time and memory are in proportion to the size of the file.

    Raises:
        RefusedError: If the file asks for anything else.
        Exception: Of many types, if the file is damaged.
    """
    start = file.tell()
    size = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    budget = Budget(SMALL + size // BYTES_PER_OPERATION)
    recorded = run_pickle(file, size, _admit, budget)
    return _Maker(budget, size).make(recorded)


def _admit(module: str, name: str) -> Global:
    path = f"{module}.{name}"
    path = re.sub(r"^__builtin__\.", "builtins.", path)  # Python 2
    path = re.sub(r"^numpy\._core\.", "numpy.core.", path)  # NumPy 2
    if path not in _ADMITTED_GLOBALS:
        raise RefusedError(f"{module}.{name}")
    return Global(path)


class _Maker:
    """Makes the arrays and containers of the recorded calls.

    Args:
        budget: Bounds the members that calls copy.
        size: Bounds the bytes of all arrays, which the file has to contain.
    """

    def __init__(self, budget: Budget, size: int) -> None:
        self.budget = budget
        self.bytes = Budget(2 * size)  # bytes may be made of text, and arrays of the bytes
        self.made: dict[int, Any] = {}  # results by the ids of the values: shared parts stay shared

    def make(self, value: Any) -> Any:
        """Make the result of a value.

        Args:
            value: Result of the machine.

        Raises:
            RefusedError: If it is more than arrays and containers.
            ValueError: If it is nested too deeply or within itself, or arrays have too few bytes.
        """
        try:
            return self._make(value)
        except RecursionError as error:
            raise FormatError("its lists are nested too deeply, or within themselves") from error

    def _make(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
            return value
        if id(value) not in self.made:
            new: Any
            match value:
                case dict():
                    new = {
                        key if type(key) is tuple else self._make_key(key): self._make(item)
                        for key, item in value.items()
                    }
                case list() | tuple():
                    new = type(value)([self._make(item) for item in value])
                case set() | frozenset():
                    new = type(value)(value)
                case Call():
                    args, state, items = map(self._make, (value.args, value.state, value.items))
                    new = self._carry_out(value.name, args, state, items)
                case Global(name="numpy.ndarray"):
                    new = np.ndarray
                case _:
                    raise RefusedError(getattr(value, "name", type(value).__name__))
            self.made[id(value)] = new
        return self.made[id(value)]

    def _make_key(self, key: Any) -> Any:
        made = self._make(key)
        if isinstance(made, np.generic):  # numbers of NumPy equal those of Python
            made = made.item()
        return check_key(made)

    def _carry_out(self, name: str, args: tuple, state: Any, items: dict) -> Any:
        """Make the array, type, scalar, container or string of one recorded call."""
        match name, args:
            case "numpy.dtype", (str(code), *_) if _PLAIN_DTYPE.fullmatch(code):
                dtype = np.dtype(code)
                order: Any = state[1] if state else "|"
                return dtype if order == "|" else dtype.newbyteorder(order)
            case "numpy.core.multiarray._reconstruct", (kind, *_) if kind is np.ndarray:
                _version, shape, dtype, is_fortran, raw = state
                return self._array(shape, dtype, raw, "F" if is_fortran else "C")
            case "numpy.core.multiarray.scalar", (dtype, raw):
                return self._array((), dtype, raw, "C")[()]
            case "numpy.core.numeric._frombuffer", (raw, dtype, shape, order):
                return self._array(shape, dtype, raw, order)
            case "collections.OrderedDict", () | (list() | dict(),):
                ordered: OrderedDict = OrderedDict()
                self.budget.spend(sum(map(len, args)))
                for given in (*args, items):
                    if isinstance(given, list):
                        given = [(check_key(key), item) for key, item in given]
                    ordered.update(given)
                if state and "_metadata" in state:  # the modules' versions, in a state_dict()
                    ordered._metadata = state["_metadata"]  # type: ignore[attr-defined]
                return ordered
            case "builtins.bytes", ():
                return b""
            case "builtins.set" | "builtins.frozenset", (list(members),):
                self.budget.spend(len(members))
                keys = map(check_key, members)
                return set(keys) if name == "builtins.set" else frozenset(keys)
            case "detectron2.structures.boxes.BoxMode", (int(mode),):
                return mode  # of proposals; the mode is an IntEnum
            case "_codecs.encode", (str(text), "latin1"):
                self.bytes.spend(len(text))
                return text.encode("latin1")
        raise RefusedError(f"{name}{reprlib.repr(args)}")

    def _array(
        self, shape: tuple[int, ...], dtype: np.dtype, raw: bytes | str, order: Literal["C", "F"]
    ) -> np.ndarray:
        if len(shape) > MAX_DIMENSIONS or not all(0 <= side < 1 << 62 for side in shape):
            raise ValueError(f"an array of shape {reprlib.repr(shape)}")
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(raw)} bytes for an array of shape {shape} and type {dtype}")
        self.bytes.spend(len(raw))
        if isinstance(raw, str):  # Python 2 had one kind of string; it is read as latin1
            raw = raw.encode("latin1")
        # A copy: a view of the file's bytes could not be written to, nor could torch swap them.
        stored: np.ndarray = np.ndarray(shape, dtype, buffer=raw, order=order)
        return stored.astype(dtype.newbyteorder("="), order="K")
