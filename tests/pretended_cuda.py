"""Pretended CUDA tensors: a record of what a computation would do on a GPU, without one.

A pretended tensor claims to be on `cuda:0` and holds its values on the CPU. Operations compute with
these values, so that the results are the CPU's, but they obey the rules of CUDA: tensors on
different devices cannot be mixed, and NumPy cannot read them. Recorded are, by line of the package:

- waits: calls that return only when the device has finished, such as `item()`, `nonzero()` or a
  copy to the device that is not `non_blocking`;
- copies to and from the device, with whether they were non-blocking and from pinned memory;
- operations, each about one kernel launch. Views, allocations and copies are not among them.

Example::

    with pretended_cuda() as record:
        head, features = head.to("cuda"), features.to("cuda")
        record.clear()
        masks = head(features)
        assert record.num_waits == 0, record
    expected == masks.cpu()

The fixture `cuda` of `tests/conftest.py` is such a record, in a context of its own.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, META = torch.device("cuda:0"), torch.device("meta")
REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = str(REPOSITORY / "point_rend")
AUTOCAST = torch._C.DispatchKey.AutocastCUDA
SET_AUTOCAST_ENABLED = torch.set_autocast_enabled

# Operations whose result, or whose size of the result, the host has to know.
WAITING = {
    *("_local_scalar_dense", "_assert_scalar", "equal", "is_nonzero", "nonzero", "masked_select"),
    *("_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount"),
    *("histc", "nms"),
}
INDEXING = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}
# A scalar on the CPU can be an operand of most operations on the device, but not of these.
WITHOUT_SCALARS = {
    "cat",
    "stack",
    "gather",
    "index_select",
    "scatter",
    "scatter_",
    "_foreach_copy_",
}
# No kernel runs for these, nor for views and copies.
ALLOCATING = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"),
    *("_unsafe_view", "is_pinned", "_pin_memory", "_has_compatible_shallow_copy_type"),
}


class DeviceMixUpError(RuntimeError):
    """An operation that CUDA would refuse: its tensors are on different devices."""


class Copy(NamedTuple):
    """A copy between the host and the device.

    Attributes:
        line: Line of the package, or of its caller.
        to_device: Whether it goes to the device.
        non_blocking: Whether the host goes on at once.
        pinned: Whether it reads pinned memory of the host; otherwise a non-blocking copy to the
            device may wait, too.
    """

    line: str
    to_device: bool
    non_blocking: bool
    pinned: bool


class Wait(NamedTuple):
    """A call that returns only when the device has finished: its line, and its operation."""

    line: str
    kind: str


class Record:
    """What a computation did with a pretended device.

    Attributes:
        waits: Number of waits.
        copies: Number of copies; the blocking ones are among the waits, too.
        operations: Number of operations by line.
        names: Number of operations by name.
    """

    def __init__(self) -> None:
        self.waits: Counter[Wait] = Counter()
        self.copies: Counter[Copy] = Counter()
        self.operations: Counter[str] = Counter()
        self.names: Counter[str] = Counter()

    def clear(self) -> None:
        """Forget everything so far."""
        for counter in (self.waits, self.copies, self.operations, self.names):
            counter.clear()

    @property
    def num_waits(self) -> int:
        """Number of waits for the device."""
        return self.waits.total()

    @property
    def num_operations(self) -> int:
        """Number of operations on the device, about the number of kernel launches."""
        return self.operations.total()

    def __str__(self) -> str:
        lines = [f"{self.num_waits} waits, {self.num_operations} operations"]
        lines += [f"{n:5d} × {wait.kind:24} {wait.line}" for wait, n in sorted(self.waits.items())]
        lines += [f"{n:5d} operations {line}" for line, n in self.operations.most_common()]
        return "\n".join(lines)

    def wait(self, kind: str) -> None:
        """Write down a wait of the current line."""
        self.waits[Wait(current_line(), kind)] += 1

    def copy(self, to_device: bool, non_blocking: bool, pinned: bool) -> None:
        """Write down a copy of the current line."""
        self.copies[Copy(current_line(), to_device, non_blocking, pinned)] += 1
        if not non_blocking:
            self.wait("copy to the device" if to_device else "copy to the host")


def current_line() -> str:
    """Return the innermost line of the package, and of the library that it calls.

    Without the package it is the innermost line of any module but torch and this one.
    """
    caller = ""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            line = _name_line(file.removeprefix(f"{REPOSITORY}/"), frame)
            return f"{line} > {caller}" if caller else line
        if not caller and file != __file__ and "/torch/" not in file and file[0] == "/":
            name = file.removeprefix(f"{REPOSITORY}/").rpartition("site-packages/")[2]
            caller = _name_line(name, frame)
        frame = frame.f_back
    return caller


def _name_line(file: str, frame: FrameType) -> str:
    return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"


class PretendedTensor(Tensor):
    """A tensor that claims to be on the device. Its values are on the CPU.

    It claims this to Python. Torch's own code hears that the tensor is a meta tensor, because the
    backward pass would use the threads of a real GPU; see :meth:`_Pretending._device_for_torch`.
    """

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "PretendedTensor":
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=CUDA,
            dispatch_device=True,
        )
        wrapper.values = values
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda _: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda _: True)
    is_cpu = is_meta = property(lambda _: False)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation outside the context, for example to print a result."""
        return _Pretending(Record()).__torch_dispatch__(func, types, args, kwargs)

    def __repr__(self, **_: Any) -> str:
        return f"PretendedTensor({self.values!r})"

    def unsqueeze_(self, dim: int) -> Tensor:
        """Return a view: a wrapper cannot change its shape. Detectron2 goes on with the result."""
        return self.unsqueeze(dim)

    def tolist(self) -> Any:
        """Copy to the host, then make a list."""
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        """Fail as on a GPU."""
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Save the values; a file of tensors is loaded on the CPU first."""
        return self.values.detach().__reduce_ex__(protocol)


class _Pretending(TorchDispatchMode):
    """Runs every operation with the rules of CUDA and writes it down."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record
        self.pinned: dict[int, Any] = {}  # storages by address; kept, so that none is reused
        self.autocast = False
        self.accumulators: dict[int, Any] = {}  # of gradients, by parameter
        self.without_history: set[int] = set()  # results that the autograd engine has not seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return self._device_for_torch(*args)
        self.without_history.clear()
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_device = [x for x in tensors if isinstance(x, PretendedTensor)]
        on_host = [x for x in tensors if not isinstance(x, PretendedTensor)]
        if name == "is_pinned":
            return not on_device and self._is_pinned(on_host[0])
        if name == "_pin_memory":
            return self._pin(*on_host)
        device = kwargs.get("device")
        if device == META:  # torch's own code asks a pretended tensor for its device
            kwargs["device"] = device = CUDA
        to_device = device is not None and device.type == "cuda"
        if to_device and device.index not in (None, 0):
            raise RuntimeError(f"CUDA error: invalid device ordinal: {device} of 1 pretended GPU")
        if on_device or to_device:
            self._apply_rules(func, name, args, kwargs, on_device, on_host, device)
        if to_device:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        result = func(*_for_the_cpu(name, tree_map(_values, args)), **tree_map(_values, kwargs))
        if name == "copy_":
            return args[0]
        is_copy_to_host = device is not None and device.type == "cpu"
        if not to_device and (not on_device or is_copy_to_host):
            return result
        known = {id(x.values): x for x in on_device} | {id(x): x for x in on_host}
        result = tree_map(lambda x: _pretend(x, known, func), result)
        if any(x.requires_grad for x in on_device) and _is_differentiable(func):
            self.without_history = {id(x) for x in tree_leaves(result)}
        return result

    def set_autocast_enabled(self, device_type: str, enabled: bool) -> None:
        """Enable or disable autocast, and remember it."""
        SET_AUTOCAST_ENABLED(device_type, enabled)
        if device_type == "cuda":
            self.autocast = enabled

    def _device_for_torch(self, tensor: PretendedTensor) -> torch.device:
        """Return the device of a tensor for torch's own code.

        Two parts of torch ask for it. The autograd engine keeps the device of every result and
        parameter, and would run the backward pass of a CUDA tensor in a thread of its GPU; a meta
        tensor's runs in the thread of the CPU. Autocast asks for the device of the arguments, and
        casts only those on CUDA.
        """
        if (
            not self.autocast
            or not torch._C._dispatch_tls_is_dispatch_key_excluded(AUTOCAST)  # not in its code
            or id(tensor) in self.without_history
            or torch._C._current_graph_task_id() != -1  # in a backward pass
        ):
            return META
        if tensor.requires_grad and tensor.is_leaf and id(tensor) not in self.accumulators:
            self.autocast = False  # the engine asks now, once for all
            self.accumulators[id(tensor)] = torch.autograd.graph.get_gradient_edge(tensor), tensor
            self.autocast = True
        return CUDA

    def _apply_rules(
        self,
        func: Any,
        name: str,
        args: tuple,
        kwargs: dict[str, Any],
        on_device: Sequence[PretendedTensor],
        on_host: Sequence[Tensor],
        device: torch.device | None,
    ) -> None:
        """Raise an error for a mix-up of devices; write down waits, copies and the operation."""
        if name == "_to_copy" and device is not None:
            crosses = bool(on_host) if device.type == "cuda" else bool(on_device)
            if crosses:
                self._copy(not on_device, bool(kwargs.get("non_blocking")), on_host)
                return
        elif name == "copy_" and on_host:
            target_is_device = isinstance(args[0], PretendedTensor)
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            self._copy(target_is_device, bool(non_blocking), on_host)
            return
        elif name in INDEXING:
            self._index(func, args, on_device, on_host)
        elif on_device and any(x.dim() or name in WITHOUT_SCALARS for x in on_host):
            self._mix_up(func, on_device, on_host)
        if name in WAITING:
            self.record.wait(name)
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.record.wait("repeat_interleave without output_size")
        if name not in ALLOCATING and not _returns_view(func):
            self.record.operations[current_line()] += 1
            self.record.names[name] += 1

    def _index(
        self,
        func: Any,
        args: tuple,
        on_device: Sequence[PretendedTensor],
        on_host: Sequence[Tensor],
    ) -> None:
        """Apply the rules of ``x[i]`` and ``x[i] = y``: indices may be on the CPU, y may not."""
        indexed, indices = args[0], [x for x in args[1] if x is not None]
        value = args[2] if len(args) > 2 else None
        if not isinstance(indexed, PretendedTensor) or (
            value is not None and not isinstance(value, PretendedTensor) and value.dim()
        ):
            self._mix_up(func, on_device, on_host)
        fills = value is not None and value.numel() == 1 and not (len(args) > 3 and args[3])
        for index in indices:
            if not isinstance(index, PretendedTensor):
                self._copy(True, False, [index])
            elif index.dtype in (torch.bool, torch.uint8) and not fills:
                self.record.wait("boolean index")

    def _copy(self, to_device: bool, non_blocking: bool, on_host: Sequence[Tensor]) -> None:
        pinned = to_device and all(map(self._is_pinned, on_host))
        self.record.copy(to_device, non_blocking, pinned)

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def _pin(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        self.pinned[copy.untyped_storage().data_ptr()] = copy.untyped_storage()
        return copy

    def _mix_up(
        self, func: Any, on_device: Sequence[PretendedTensor], on_host: Sequence[Tensor]
    ) -> None:
        shapes = [
            f"{device} {', '.join(str(tuple(x.shape)) for x in tensors)}"
            for device, tensors in (("cuda:0", on_device), ("cpu", on_host))
        ]
        raise DeviceMixUpError(
            f"{func} in {current_line()}: expected all tensors on the same device, found "
            + " and ".join(shapes)
        )


def _is_differentiable(func: Any) -> bool:
    name = func._schema.name.partition("::")[2]
    return name != "detach" and not name.startswith("new_") and not name.endswith("_like")


def _returns_view(func: Any) -> bool:
    aliases = [x.alias_info for x in func._schema.returns if x.alias_info is not None]
    return bool(aliases) and not any(x.is_write for x in aliases)


def _values(x: Any) -> Any:
    return x.values if isinstance(x, PretendedTensor) else x


def _for_the_cpu(name: str, args: tuple) -> tuple:
    """Replace arguments that only a device takes."""
    if name in ("_softmax", "_log_softmax") and args[2]:  # of float16, as float32
        return args[0].float(), args[1], False
    return args


def _pretend(result: Any, known: dict[int, Tensor], func: Any) -> Any:
    """Wrap a result, unless it is an argument, changed in place."""
    if not isinstance(result, Tensor) or isinstance(result, PretendedTensor):
        return result
    argument = known.get(id(result))
    if argument is None:
        return PretendedTensor(result)
    if argument.shape != result.shape:
        raise NotImplementedError(f"{func} changes the shape of a pretended tensor in place")
    return argument


@contextlib.contextmanager
def pretended_cuda() -> Iterator[Record]:
    """Make torch believe in one GPU, `cuda:0`.

    Yields:
        The record of what is done with it.
    """
    if torch.cuda.is_available():
        pytest.skip("CUDA is pretended only where there is none")
    record = Record()
    mode = _Pretending(record)
    replaced = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda *_: "pretended GPU",
        "get_device_capability": lambda *_: (8, 0),
        "synchronize": lambda *_: record.wait("synchronize"),
        "_lazy_init": lambda: None,
    }
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._ensureCUDADeviceGuardSet()
    with contextlib.ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        for patch in (
            mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
            mock.patch("torch.set_autocast_enabled", mode.set_autocast_enabled),
        ):
            stack.enter_context(patch)
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(mode)
        yield record
