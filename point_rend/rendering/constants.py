"""Tensors that do not depend on data, made once on each accelerator.

On an accelerator every operation is a launch, and a copy from the host may wait. Both cost more
than the few numbers in such a tensor.
"""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

MAX_KEPT = 64  # tensors of each function


def is_tracing() -> bool:
    """Return whether torch traces or exports: a graph serves any size and number of regions."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()  # type: ignore[attr-defined]


def kept(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a function return the same tensor whenever its arguments are the same.

    The tensors must not be modified. Those that belong to a graph are not kept: the graph of a
    trace, of ``torch.compile`` or of a CUDA-graph capture owns what is made in it. Render once
    before a capture, as PyTorch demands anyway, and the capture contains the kept tensors.
    """
    tensors: dict[tuple, Tensor] = {}

    @wraps(make)
    def get(*key: object) -> Tensor:
        if is_tracing() or torch.compiler.is_compiling():
            return make(*key)
        found = tensors.get(key)
        if found is not None:
            return found
        with torch.inference_mode(False):  # training may use it, too
            tensor = make(*key)
        if not isinstance(tensor, FakeTensor) and not _is_capturing():
            while len(tensors) >= MAX_KEPT:
                del tensors[next(iter(tensors))]
            tensors[key] = tensor
        return tensor

    return get


def _is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


@kept
def numbers(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return a few numbers as a float32 vector, which is filled on the device."""
    parts = [torch.full((1,), value, dtype=torch.float32, device=device) for value in values]
    return torch.cat(parts)
