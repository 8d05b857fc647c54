"""Values that no training leaves in a checkpoint: NaN, integer weights, negative variances."""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from point_rend.utils.errors import shorten

_WHOLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # types with all operations


def check_finite(
    parameters: Mapping[str, Tensor], *, of: str = "the model", floating: Collection[str] = ()
) -> None:
    """Refuse parameters that are not finite, and variances of a normalization below 0.

    Args:
        parameters: Tensors by name.
        of: Their owner, for the message.
        floating: Names of those that must have a floating point type.

    Raises:
        ValueError: If there are any; it names the first.
    """
    faulty = {
        key: fault
        for key, value in parameters.items()
        if (fault := _fault(key, value, must_be_floating=key in floating))
    }
    if faulty:
        key, fault = next(iter(faulty.items()))
        raise ValueError(
            f"{len(faulty)} of the {len(parameters)} tensors of {of} cannot be used, "
            f"the first is {shorten(key)} with {fault}: the training that wrote the file had "
            "diverged, or the file was changed; expected an earlier checkpoint"
        )


def check_finite_state(state: Any) -> None:
    """Refuse the state of an optimizer with a tensor or number that is not finite.

    Args:
        state: Nested containers.

    Raises:
        ValueError: If there is any; it names the first.
    """
    check_finite(dict(_tensors(state)), of="the optimizer")


def _fault(key: str, value: Tensor, *, must_be_floating: bool) -> str:
    if must_be_floating and not value.is_floating_point():
        return f"values of type {str(value.dtype).removeprefix('torch.')}"
    if value.is_meta or not (value.is_floating_point() or value.is_complex()):
        return ""
    if value.is_floating_point() and value.dtype not in _WHOLE:
        value = value.float()
    finite = torch.isfinite(value)
    if not finite.all():
        return f"{int((~finite).sum())} of {value.numel()} values NaN or infinite"
    if key.endswith("running_var") and (negative := value < 0).any():
        return f"{int(negative.sum())} of {value.numel()} variances below 0"
    return ""


def _tensors(state: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors and numbers in nested containers with their paths."""
    stack: list[tuple[str, Any]] = [("", state)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, Tensor):
            yield path, value
        elif isinstance(value, float) and not math.isfinite(value):
            yield path, torch.tensor(value)
        elif isinstance(value, Mapping | list | tuple):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            stack += reversed([(f"{path}.{key}".lstrip("."), item) for key, item in items])
