"""File formats of other programs, brought into the form of Detectron2's checkpoints."""

import functools
import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import torch

from point_rend.checkpoint.array_pickle import load_arrays
from point_rend.checkpoint.foreign import find_parameters, looks_like, project_of
from point_rend.checkpoint.sealed_file import load_sealed, read_checkpoint


def read_torch_file(filename: str, *, allow_unsafe: bool) -> dict[str, Any]:
    """Read a file that `torch.save` has written."""
    return read_checkpoint(filename, functools.partial(load_sealed, allow_unsafe=allow_unsafe))


def read_pickle(filename: str, *, allow_unsafe: bool) -> dict[str, Any]:
    """Read a `.pkl` of the model zoo: of Detectron2, of Detectron, or bare ImageNet weights."""
    data = read_checkpoint(filename, _unpickle_anything if allow_unsafe else load_arrays)
    if "model" in data and "__author__" in data:  # Detectron2's
        return data
    blobs = _without(data.get("blobs", data), "_momentum")  # ImageNet weights are bare blobs
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


def read_pycls_file(filename: str, *, allow_unsafe: bool) -> dict[str, Any]:
    """Read a `.pyth` of pycls."""
    data = read_torch_file(filename, allow_unsafe=allow_unsafe)
    state = _without(data.get("model_state"), "num_batches_tracked")
    return {"model": state, "__author__": "pycls", "matching_heuristics": True}


def check_parameters(filename: str, model: Any) -> None:
    """Refuse a checkpoint whose model is anything but arrays and tensors by name.

    Raises:
        ValueError: If it is.
    """
    if not isinstance(model, dict) or not model:
        raise ValueError(f"{filename} holds no parameters of a model")
    name, nested = find_parameters(model)
    if nested:
        raise ValueError(
            f"{filename} holds its parameters under {name!r}: expected them under 'model', as "
            f"Detectron2 saves them{looks_like(project_of(nested))}"
        )
    for key, value in model.items():
        if not isinstance(key, str) or not isinstance(value, np.ndarray | torch.Tensor):
            raise ValueError(
                f"{filename}: the model's {key!r} must be an array or tensor, "
                f"not {type(value).__name__}"
            )


def _unpickle_anything(file: BinaryIO) -> Any:
    return pickle.load(file, encoding="latin1")


def _without(parameters: Any, ending: str) -> Any:
    if not isinstance(parameters, Mapping):
        return parameters
    return {key: value for key, value in parameters.items() if not str(key).endswith(ending)}
