"""The conditions of acceleration, and values that are derived from weights once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from point_rend.rendering.constants import is_tracing

_DERIVED = "_derived"  # attribute of a module; no part of its state dict


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


def derived(
    module: nn.Module, name: str, sources: Sequence[Tensor | None], make: Callable[..., Any]
) -> Any:
    """Return a value that is computed from weights of a module, and keep it until they change.

    Args:
        module: The module, which keeps the value outside of its state dict.
        name: Name of the value.
        sources: All weights and buffers that it depends on.
        make: Computes it.
    """
    kept: dict[str, tuple[Any, ...]] = module.__dict__.setdefault(_DERIVED, {})
    found = kept.get(name)
    if found is not None and _are_unchanged(sources, *found[:2]):
        return found[2]
    with torch.inference_mode(False), torch.no_grad():
        value = make()
    kept[name] = (tuple(sources), tuple(map(_version, sources)), value)
    return value


def forget_derived(module: nn.Module) -> None:
    """Drop what :func:`derived` has kept in a module."""
    module.__dict__.pop(_DERIVED, None)


def _are_unchanged(
    sources: Sequence[Tensor | None], kept: Sequence[Tensor | None], versions: Sequence[Any]
) -> bool:
    same = all(x is y for x, y in zip(sources, kept, strict=True))
    return same and all(_version(x) == y for x, y in zip(sources, versions, strict=True))


def _version(source: Tensor | None) -> tuple[int, int] | None:
    if source is None:
        return None
    # A tensor that was made in inference mode does not count its changes.
    return source.data_ptr(), -1 if source.is_inference() else source._version
