"""Multiply-adds and activations of operations, counted as they are executed.

Tracing, by which fvcore counts, would change which layers are applied to a map before it is
sampled. Here each operation is counted when it is dispatched, also on tensors without content.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from fvcore.nn import parameter_count
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
MULTIPLY_ADDS_OF_BILINEAR = 4  # per output, as in fvcore

# Maps the arguments of an operation and its output to a number of multiply-adds.
Operation = Callable[[Sequence[Any], Tensor], int]


class Count(NamedTuple):
    """Multiply-adds and activations of a computation."""

    multiply_adds: int
    activations: int

    def __add__(self, other: tuple) -> "Count":
        return Count(*map(sum, zip(self, other, strict=True)))


def _convolution(args: Sequence[Any], output: Tensor) -> int:
    data, weight, transposed = args[0], args[1], args[6]
    return (data if transposed else output).numel() * math.prod(weight.shape[1:])


def _bilinear(_: Sequence[Any], output: Tensor) -> int:
    return output.numel() * MULTIPLY_ADDS_OF_BILINEAR


def _gathered(args: Sequence[Any], _: Tensor) -> int:
    table, indices = args[:2]
    return indices.numel() * table.shape[1]


def _attention(args: Sequence[Any], output: Tensor) -> int:
    query, key = args[:2]
    return (query.numel() + output.numel()) * key.shape[-2]


LAYERS: dict[Any, Operation] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten.convolution: _convolution,
    aten.mm: lambda args, output: output.numel() * args[0].shape[-1],
    aten.bmm: lambda args, output: output.numel() * args[0].shape[-1],
    aten.addmm: lambda args, output: output.numel() * args[1].shape[-1],
    aten.addmm_: lambda args, output: output.numel() * args[1].shape[-1],
    aten.baddbmm: lambda args, output: output.numel() * args[1].shape[-1],
    # Outputs of a layer on a map, interpolated: they stand for its outputs at points.
    aten._embedding_bag: _gathered,
    aten._embedding_bag_forward_only: _gathered,
}
INTERPOLATIONS: dict[Any, Operation] = {
    aten.grid_sampler_2d: _bilinear,
    aten.upsample_bilinear2d: _bilinear,
}


class OperationCounter(TorchDispatchMode):
    """Context that counts the operations executed inside it.

    Attributes:
        multiply_adds: Multiply-adds by the name of the operation.
        activations: Activations by the name of the operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds: Counter[str] = Counter()
        self.activations: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Execute one operation and count it."""
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        output = result[0] if isinstance(result, tuple) else result
        if operation in LAYERS:
            self.multiply_adds[operation.__name__] += LAYERS[operation](args, output)
            self.activations[operation.__name__] += output.numel()
        elif operation in INTERPOLATIONS:
            self.multiply_adds[operation.__name__] += INTERPOLATIONS[operation](args, output)
        return result

    @property
    def total(self) -> Count:
        """Sum over all operations."""
        return Count(self.multiply_adds.total(), self.activations.total())


def count(function: Callable[..., Any], *inputs: Any) -> Count:
    """Count one call of a function."""
    with OperationCounter() as counter:
        function(*inputs)
    return counter.total


def count_parameters(module: nn.Module) -> int:
    """Count the parameters of a module."""
    return parameter_count(module)[""]
