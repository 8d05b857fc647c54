"""A machine that reads pickles as data: it imports, calls and changes nothing that a file names.

Names become a :class:`Global`, and calls of them a :class:`Call`; whoever started the machine makes
something of them, or does not. Its work and its memory are bounded by the size of the file:

- nothing is read beyond the end, whatever size a file announces;
- the number of operations is bounded;
- keys of dicts are numbers and strings, whose hashes a file cannot choose to collide, and a few
  short tuples of them.
"""

import codecs
import pickle
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

MAX_LINE = 1000  # characters of a number or a name
MAX_LONG = 255  # bytes of an integer
MAX_TUPLE, MAX_TUPLES = 8, 1000  # members of a tuple that is a key, and number of such keys
LARGEST_KEY = 1 << 60  # integers below have different hashes
Key = str | bytes | int | float | bool | None
_KEYS = (str, bytes, int, float, bool, type(None))


class RefusedError(Exception):
    """A file asks for something that could run code."""


class FormatError(ValueError):
    """A file is not what it should be; the message is the whole reason."""


class Global:
    """A name in the file; a call of it is recorded, not executed."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Call:
    """A recorded call, with the state and the items that its result is to get."""

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: tuple) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] = {}


class Persistent(NamedTuple):
    """An object that lies outside of the pickle, such as a storage of torch."""

    id: Any


class Budget:
    """Operations that remain; larger steps of the work that follows are taken from it, too."""

    def __init__(self, operations: int) -> None:
        self.remaining = operations

    def spend(self, number: int) -> None:
        """Take from the budget.

        Raises:
            FormatError: If not enough remains.
        """
        self.remaining -= number
        if self.remaining < 0:
            raise FormatError("it asks for far more work than its size explains")


def check_key(key: Any) -> Any:
    """Return a key of a dict, or a member of a set, that costs no more than others.

    Raises:
        FormatError: If it is anything but a number or a string, or a large number.
    """
    if type(key) not in _KEYS:
        raise FormatError(f"a key of a dict is of type {type(key).__name__}, expected a string")
    if type(key) is int and not -LARGEST_KEY < key < LARGEST_KEY:
        raise FormatError("a key of a dict is a huge number, expected a string")
    return key


def run_pickle(
    file: BinaryIO, size: int, admit: Callable[[str, str], Global], budget: Budget
) -> Any:
    """Run a pickle to its end; the position is then behind it.

    Args:
        file: The file at the pickle's first byte.
        size: Number of bytes from there to the end of the file.
        admit: Returns what stands for a module and a name in it, or raises a RefusedError.
        budget: Operations that the pickle may use.

    Raises:
        RefusedError: As `admit` raises it, or if the pickle changes what a name stands for.
        FormatError: If the work is out of proportion.
        pickle.UnpicklingError: If the pickle is damaged.
    """
    machine = _Machine(file, size, admit)
    try:
        while True:
            code = machine.read(1)[0]
            if code == _STOP:
                return machine.stack.pop()
            budget.remaining -= 1
            if budget.remaining < 0:
                budget.spend(0)
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise pickle.UnpicklingError(
                    f"byte {code:#04x} is no operation of a pickle of data"
                )
            operation(machine)
    except FormatError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise pickle.UnpicklingError(f"damaged pickle: {type(error).__name__} {error}") from error


class _Machine:
    """State of a running pickle."""

    def __init__(self, file: BinaryIO, size: int, admit: Callable[[str, str], Global]) -> None:
        self._file = file
        self._left = size
        self.admit = admit
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.tuples = 0  # among the keys

    def read(self, number: int) -> bytes:
        """Read bytes, only if the file has as many."""
        if not 0 <= number <= self._left:
            raise pickle.UnpicklingError("it ends in the middle")
        data = self._file.read(number)
        if len(data) != number:
            raise pickle.UnpicklingError("it ends in the middle")
        self._left -= number
        return data

    def unpack(self, form: str) -> Any:
        """Read one number in a form of `struct`."""
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def line(self, longest: int | None = MAX_LINE) -> bytes:
        """Read up to the end of the line."""
        line = self._file.readline(-1 if longest is None else longest)
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise pickle.UnpicklingError("it ends in the middle of a line, or the line is too long")
        return line[:-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop_marked(self) -> list[Any]:
        """Take what lies above the last mark."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_marked()

    # Containers

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise pickle.UnpicklingError(f"an item for a {type(target).__name__}, not a list")
        target.extend(values)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Call:
            target = target.items
        if type(target) is not dict:
            name = getattr(target, "name", type(target).__name__)
            raise RefusedError(f"a change of {name}")
        if len(pairs) % 2:
            raise pickle.UnpicklingError("a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[key if type(key) is Call else self.key(key)] = value

    def key(self, key: Any) -> Any:
        """Check a key, which may also be one of a few short tuples."""
        if type(key) is not tuple or len(key) > MAX_TUPLE:
            return check_key(key)
        self.tuples += 1
        if self.tuples > MAX_TUPLES:
            raise FormatError(f"more than {MAX_TUPLES} keys of dicts are tuples, expected strings")
        return tuple(map(check_key, key))

    def make_dict(self) -> None:
        pairs = self.pop_marked()
        self.push({})
        self.set_items(pairs)

    def add_members(self) -> None:
        members = self.pop_marked()
        if type(self.stack[-1]) is not set:
            raise pickle.UnpicklingError("a member for something that is not a set")
        self.stack[-1].update(map(self.key, members))

    def pack(self, number: int) -> None:
        if len(self.stack) < number:
            raise pickle.UnpicklingError("a tuple of more values than there are")
        values = tuple(self.stack[-number:])
        del self.stack[-number:]
        self.push(values)

    # Numbers and strings

    def number_line(self, kind: Callable[[bytes], Any]) -> None:
        text = self.line()
        try:
            self.push(kind(text))
        except ValueError as error:
            raise pickle.UnpicklingError(f"{text[:20]!r} is no number") from error

    def long(self, length: int) -> None:
        if not 0 <= length <= MAX_LONG:
            raise FormatError(f"it holds an integer of {length} bytes, at most {MAX_LONG} are read")
        self.push(int.from_bytes(self.read(length), "little", signed=True))

    def quoted(self) -> None:
        text = self.line(None)
        if len(text) < 2 or text[:1] not in b"\"'" or text[:1] != text[-1:]:
            raise pickle.UnpicklingError("a string without quotes")
        try:
            self.push(codecs.escape_decode(text[1:-1])[0].decode("latin1"))
        except ValueError as error:
            raise pickle.UnpicklingError(f"a damaged string: {error}") from error

    def text(self, length: int) -> None:
        self.push(self.read(length).decode("utf-8", "surrogatepass"))

    # Memory

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    # Names and calls

    def name(self, module: str, name: str) -> None:
        if type(module) is not str or type(name) is not str:
            raise pickle.UnpicklingError("a name that is not a string")
        self.push(self.admit(module, name))

    def name_lines(self) -> None:
        self.name(self.line().decode(), self.line().decode())

    def call(self, function: Any, args: Any) -> None:
        if type(function) is not Global or type(args) is not tuple:
            raise RefusedError(f"a call of {getattr(function, 'name', type(function).__name__)}")
        self.push(Call(function.name, args))

    def instance(self) -> None:
        args = tuple(self.pop_marked())
        self.name_lines()
        self.call(self.stack.pop(), args)

    def called_object(self) -> None:
        function, *args = self.pop_marked()
        self.call(function, tuple(args))

    def reduce(self) -> None:
        args = self.stack.pop()
        self.call(self.stack.pop(), args)

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is not Call or target.state is not None:
            raise RefusedError(f"a change of {getattr(target, 'name', type(target).__name__)}")
        target.state = state


def _boolean_or_int(text: bytes) -> int:
    return {b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text)


def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(module, name)


_STOP = pickle.STOP[0]
_OPERATIONS: dict[int, Callable[[_Machine], Any]] = {
    code[0]: operation
    for code, operation in {
        pickle.PROTO: lambda m: m.read(1),
        pickle.FRAME: lambda m: m.read(8),
        pickle.MARK: _Machine.mark,
        pickle.POP: _Machine.pop,
        pickle.POP_MARK: _Machine.pop_marked,
        pickle.DUP: lambda m: m.push(m.stack[-1]),
        pickle.NONE: lambda m: m.push(None),
        pickle.NEWTRUE: lambda m: m.push(True),
        pickle.NEWFALSE: lambda m: m.push(False),
        pickle.INT: lambda m: m.number_line(_boolean_or_int),
        pickle.LONG: lambda m: m.number_line(lambda text: int(text.removesuffix(b"L"))),
        pickle.FLOAT: lambda m: m.number_line(float),
        pickle.BININT: lambda m: m.push(m.unpack("<i")),
        pickle.BININT1: lambda m: m.push(m.read(1)[0]),
        pickle.BININT2: lambda m: m.push(m.unpack("<H")),
        pickle.LONG1: lambda m: m.long(m.read(1)[0]),
        pickle.LONG4: lambda m: m.long(m.unpack("<i")),
        pickle.BINFLOAT: lambda m: m.push(m.unpack(">d")),
        # Python 2 had one kind of string; it is read as latin1.
        pickle.STRING: _Machine.quoted,
        pickle.BINSTRING: lambda m: m.push(m.read(m.unpack("<i")).decode("latin1")),
        pickle.SHORT_BINSTRING: lambda m: m.push(m.read(m.read(1)[0]).decode("latin1")),
        pickle.UNICODE: lambda m: m.push(m.line(None).decode("raw-unicode-escape")),
        pickle.BINUNICODE: lambda m: m.text(m.unpack("<I")),
        pickle.SHORT_BINUNICODE: lambda m: m.text(m.read(1)[0]),
        pickle.BINUNICODE8: lambda m: m.text(m.unpack("<Q")),
        pickle.BINBYTES: lambda m: m.push(m.read(m.unpack("<I"))),
        pickle.SHORT_BINBYTES: lambda m: m.push(m.read(m.read(1)[0])),
        pickle.BINBYTES8: lambda m: m.push(m.read(m.unpack("<Q"))),
        pickle.BYTEARRAY8: lambda m: m.push(bytearray(m.read(m.unpack("<Q")))),
        pickle.EMPTY_LIST: lambda m: m.push([]),
        pickle.LIST: lambda m: m.push(m.pop_marked()),
        pickle.APPEND: lambda m: m.append([m.stack.pop()]),
        pickle.APPENDS: lambda m: m.append(m.pop_marked()),
        pickle.EMPTY_TUPLE: lambda m: m.push(()),
        pickle.TUPLE: lambda m: m.push(tuple(m.pop_marked())),
        pickle.TUPLE1: lambda m: m.pack(1),
        pickle.TUPLE2: lambda m: m.pack(2),
        pickle.TUPLE3: lambda m: m.pack(3),
        pickle.EMPTY_DICT: lambda m: m.push({}),
        pickle.DICT: _Machine.make_dict,
        pickle.SETITEM: lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
        pickle.SETITEMS: lambda m: m.set_items(m.pop_marked()),
        pickle.EMPTY_SET: lambda m: m.push(set()),
        pickle.ADDITEMS: _Machine.add_members,
        pickle.FROZENSET: lambda m: m.push(frozenset(map(m.key, m.pop_marked()))),
        pickle.GET: lambda m: m.push(m.memo[int(m.line())]),
        pickle.BINGET: lambda m: m.push(m.memo[m.read(1)[0]]),
        pickle.LONG_BINGET: lambda m: m.push(m.memo[m.unpack("<I")]),
        pickle.PUT: lambda m: m.put(int(m.line())),
        pickle.BINPUT: lambda m: m.put(m.read(1)[0]),
        pickle.LONG_BINPUT: lambda m: m.put(m.unpack("<I")),
        pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
        pickle.GLOBAL: _Machine.name_lines,
        pickle.STACK_GLOBAL: _stack_global,
        pickle.INST: _Machine.instance,
        pickle.OBJ: _Machine.called_object,
        pickle.REDUCE: _Machine.reduce,
        pickle.BUILD: _Machine.build,
        pickle.BINPERSID: lambda m: m.push(Persistent(m.stack.pop())),
    }.items()
}
