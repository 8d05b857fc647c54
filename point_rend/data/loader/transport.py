"""Samples packed for the way from worker to trainer."""

import io
import pickle
from typing import Any, NamedTuple

import torch


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
