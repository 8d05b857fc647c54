"""The way of samples from a worker to the trainer and to its device."""

import io
import pickle
from typing import Any, NamedTuple

import torch
from detectron2.structures import BitMasks, Boxes, Instances

from point_rend.ground_truth.shared_masks import SharedMasks


class PackedSample(NamedTuple):
    """A sample on its way out of a worker process.

    Attributes:
        content: Its pickle without the tensors.
        tensors: The tensors, in shared memory.
    """

    content: bytes
    tensors: list[torch.Tensor]


def pack(content: Any) -> PackedSample | bytes:
    """Pack a sample for its way out of a worker process, with or without shared memory.

    torch passes tensors in shared memory, of which containers often have 64 MiB. When it is
    exhausted, torch's queue only prints a traceback, and the training waits forever. A packed
    sample needs no more shared memory.

    Args:
        content: Any object that can be pickled; its tensors are moved to shared memory.

    Returns:
        A packed sample, or the whole pickle if there is no room for the tensors.
    """
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(content)
    try:
        for tensor in packer.tensors:
            tensor.share_memory_()
    except RuntimeError:
        return pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    return PackedSample(file.getvalue(), packer.tensors)


def unpack(content: Any) -> Any:
    """Undo :func:`pack` in the receiving process; other content is returned unchanged."""
    if isinstance(content, PackedSample):
        return _Unpacker(content).load()
    return pickle.loads(content) if isinstance(content, bytes) else content


class _Packer(pickle.Pickler):
    """Leaves all tensors out of a pickle, including those that only pickling creates."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        self.tensors.append(obj)
        return len(self.tensors) - 1


class _Unpacker(pickle.Unpickler):
    """Puts the tensors of a packed sample back."""

    def __init__(self, sample: PackedSample) -> None:
        super().__init__(io.BytesIO(sample.content))
        self.tensors = sample.tensors

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self.tensors[pid]


def to_device(content: Any, device: torch.device) -> Any:
    """Copy a batch, with its tensors on a device.

    On CUDA the copies leave from pinned memory and nobody waits for them. Values that know no
    device, and all of them on a CPU, are returned as they are.

    Args:
        content: Samples of Detectron2: nested lists and dicts of tensors, instances and others.
        device: The device.
    """
    if device.type == "cpu":
        return content
    if isinstance(content, dict):
        return {key: to_device(value, device) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(to_device(value, device) for value in content)
    if isinstance(content, Instances):
        fields = to_device(content.get_fields(), device)
        return Instances(content.image_size, **fields)
    if type(content) in (Boxes, BitMasks):
        return type(content)(to_device(content.tensor, device))
    if isinstance(content, torch.Tensor | SharedMasks):
        if device.type == "cuda" and content.device.type == "cpu":
            content = content.pin_memory()
        return content.to(device, non_blocking=True)
    return content.to(device) if hasattr(content, "to") else content
