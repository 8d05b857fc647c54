"""Lists of a large data set in compact form: the annotations of an image exist while they are read.

A Python dict of one annotation takes five times the memory of its pickled form, and processes that
share memory copy it when they count a reference to it.
"""

import contextlib
import pickle
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, overload

import numpy as np
import torch
from torch import Tensor

_is_lazy: ContextVar[bool] = ContextVar("_is_lazy", default=False)


@contextlib.contextmanager
def loading_lazily() -> Iterator[None]:
    """Let data sets be loaded with a :class:`LazyList` in place of the list of each image.

    Only for readers: what they would change is lost.
    """
    token = _is_lazy.set(True)
    try:
        yield
    finally:
        _is_lazy.reset(token)


class Lists(Protocol):
    """Lists by their index."""

    def __getitem__(self, index: int) -> Iterable[Any]:
        """Return the items of a list, which every call creates anew."""
        ...


class Packed:
    """Objects in one buffer, which forked and spawned processes share.

    Args:
        items: The first objects.
    """

    _data: bytearray | memoryview
    _ends: "array[int] | memoryview"

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._data, self._ends = bytearray(), array("q")
        self._shared: list[Tensor] | None = None
        for item in items:
            self.append(item)

    def append(self, item: Any) -> None:
        """Append an object; only in the process that created the buffer.

        Raises:
            RecursionError: If it is nested too deeply.
        """
        assert isinstance(self._data, bytearray)
        assert isinstance(self._ends, array)
        self._data += pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        start = self._ends[index - 1] if index else 0
        with memoryview(self._data) as view:
            return pickle.loads(view[start : self._ends[index]])

    def __getstate__(self) -> list[Tensor]:
        if self._shared is None:  # tensors reach spawned processes by shared memory
            self._share(
                [
                    torch.from_numpy(np.frombuffer(buffer, dtype=dtype).copy()).share_memory_()
                    for buffer, dtype in ((self._data, np.uint8), (self._ends, np.int64))
                ]
            )
        assert self._shared is not None
        return self._shared

    def __setstate__(self, state: list[Tensor]) -> None:
        self._share(state)

    def _share(self, buffers: list[Tensor]) -> None:
        self._shared = buffers
        self._data, self._ends = (buffer.numpy().data for buffer in buffers)


class GroupedLists:
    """Packed objects as lists by their owner.

    Args:
        packed: The objects.
        owners: Index of the owner of each object; those of one keep their order.
        number: Number of owners.

    Attributes:
        found: Indices of the lists in which a check has found faults, by what it has checked.
    """

    def __init__(self, packed: Packed, owners: np.ndarray, number: int) -> None:
        self.found: dict[Any, set[int]] = {}
        self._packed = packed
        self._order = np.argsort(owners, kind="stable")
        self._starts = np.searchsorted(owners[self._order], np.arange(number + 1))

    def __getitem__(self, index: int) -> Iterator[Any]:
        own = self._order[self._starts[index] : self._starts[index + 1]]
        return (self._packed[number] for number in own.tolist())


def list_of(lists: Lists, number: int) -> Sequence[Any]:
    """Return a list; within :func:`loading_lazily` one that is read when it is used."""
    return LazyList(lists, number) if _is_lazy.get() else [*lists[number]]


class LazyList(Sequence[Any]):
    """A list that is read when it is used; pickled or copied, it becomes a plain list.

    Attributes:
        lists: All lists of a data set.
        number: Its index among them.
    """

    __slots__ = ("lists", "number")

    def __init__(self, lists: Lists, number: int) -> None:
        self.lists = lists
        self.number = number

    def read(self) -> list[Any]:
        """Return the list."""
        return [*self.lists[self.number]]

    def __len__(self) -> int:
        return len(self.read())

    @overload
    def __getitem__(self, key: int) -> Any: ...
    @overload
    def __getitem__(self, key: slice) -> list[Any]: ...
    def __getitem__(self, key: int | slice) -> Any:
        return self.read()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.lists[self.number])

    def __eq__(self, other: object) -> bool:
        return self.read() == (other.read() if isinstance(other, LazyList) else other)

    __hash__ = None  # type: ignore[assignment]  # as of lists

    def __repr__(self) -> str:
        return repr(self.read())

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (self.read(),)
