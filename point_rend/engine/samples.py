"""From a turn in the stream to a sample, the same in every process and for every worker count."""

import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from .data_order import Turn
from .randomness import random_numbers_of

Record = dict[str, Any]


class Sample(NamedTuple):
    """What has become of a turn.

    Attributes:
        turn: The turn.
        data: What the mapper made of its record or, if that could not be used, of a later one;
            None if no attempt succeeded.
        faults: Why records could not be used, one line each.
    """

    turn: Turn
    data: Record | None
    faults: tuple[str, ...] = ()


class Samples(Dataset[Sample]):
    """Maps turns to samples; every turn has random numbers of its own.

    Args:
        records: The data set, by index.
        mapper: Makes a sample of a record; it raises a ValueError that names the file if it cannot.
        seed: Seed of the training.
        attempts: How many records are tried for a turn: its own, and those that follow it in the
            data set.
    """

    def __init__(
        self,
        records: Dataset[Record],
        mapper: Callable[[Record], Record],
        *,
        seed: int,
        attempts: int = 1,
    ) -> None:
        self.records = records
        self.mapper = mapper
        self.seed = seed
        self.attempts = attempts

    def __getitem__(self, turn: Turn) -> Sample:
        faults: list[str] = []
        size = len(self.records)  # type: ignore[arg-type]
        with random_numbers_of(self.seed, turn.position):
            for attempt in range(self.attempts):
                try:
                    data = self.mapper(self.records[(turn.record + attempt) % size])
                except ValueError as error:
                    faults.append(str(error))
                else:
                    return Sample(turn, data, tuple(faults))
        return Sample(turn, None, tuple(faults))


class Parcel(NamedTuple):
    """Something that leaves a worker process.

    Attributes:
        content: Its pickle without the tensors.
        tensors: The tensors, in shared memory.
    """

    content: bytes
    tensors: list[torch.Tensor]


def packed(content: Any) -> Parcel | bytes:
    """Make something ready to leave a worker process, with or without shared memory.

    torch hands tensors over in shared memory, of which containers often have 64 MiB. When it is
    exhausted, torch's queue only prints a traceback, and the training waits forever. What is packed
    needs no more of it on its way.

    Args:
        content: Anything that can be pickled; its tensors are moved to shared memory.

    Returns:
        A parcel, or the whole pickle if there is no room for the tensors: :func:`unpacked` takes
        both.
    """
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(content)
    try:
        for tensor in packer.tensors:
            tensor.share_memory_()
    except RuntimeError:
        return pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    return Parcel(file.getvalue(), packer.tensors)


def unpacked(content: Any) -> Any:
    """Undo :func:`packed` in the process that has received it; other content stays as it is."""
    if isinstance(content, Parcel):
        return _Unpacker(content).load()
    return pickle.loads(content) if isinstance(content, bytes) else content


class _Packer(pickle.Pickler):
    """Leaves the tensors out of a pickle, however deep, those too that only pickling makes."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        self.tensors.append(obj)
        return len(self.tensors) - 1


class _Unpacker(pickle.Unpickler):
    """Puts the tensors of a parcel in again."""

    def __init__(self, parcel: Parcel) -> None:
        super().__init__(io.BytesIO(parcel.content))
        self.tensors = parcel.tensors

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self.tensors[pid]
