"""The conditions of acceleration, and values that are derived from weights once."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from point_rend.rendering.constants import is_tracing

Value = TypeVar("Value")

_kept: WeakKeyDictionary[nn.Module, tuple[Any, Any]] = WeakKeyDictionary()


def is_accelerated(module: nn.Module, x: Tensor) -> bool:
    """Return whether a module may process an input in its faster way.

    That is inference in float32 on a CPU. Training, gradients, accelerators, mixed precision and
    graphs, which are traced or exported, take the original way.
    """
    return not (
        module.training
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or is_tracing()
        or torch.compiler.is_compiling()
    )


def has_hooks(module: nn.Module) -> bool:
    """Return whether somebody wants to see or change what a module computes."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def derived(
    module: nn.Module, sources: Sequence[Tensor | float | None], make: Callable[[], Value]
) -> Value:
    """Return a value that is computed from weights of a module, and keep it until they change.

    A change is seen in the weights themselves: counters of versions miss those through `.data` or
    NumPy, those of fused optimizers, and the statistics that a batch norm collects in training.

    Args:
        module: The module, which has one such value. Neither its state dict nor its copies have it.
        sources: All weights, buffers and numbers that it depends on.
        make: Computes it.
    """
    states = tuple(map(_state, sources))
    found = _kept.get(module)
    if found is None or found[0] != states:
        with torch.inference_mode(False), torch.no_grad():
            found = _kept[module] = (states, make())
    return found[1]


def forget_derived(module: nn.Module) -> None:
    """Drop what :func:`derived` has kept of a module."""
    _kept.pop(module, None)


def _state(source: Tensor | float | None) -> Any:
    """Return what changes with a tensor."""
    if not isinstance(source, Tensor):
        return source
    version = -1 if source.is_inference() else source._version
    return source.data_ptr(), version, source.shape, source.dtype, _checksum(source.detach())


def _checksum(source: Tensor) -> int:
    """Add up the bits of a tensor, in words that a processor adds fast."""
    flat = source.flatten()
    if flat.dtype != torch.float32:
        flat = flat.float()
    is_even = flat.numel() % 2 == 0 and flat.storage_offset() % 2 == 0
    return int(flat.view(torch.int64 if is_even else torch.int32).sum())
