"""File formats of other programs, brought into the form of Detectron2's checkpoints."""

import functools
import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from point_rend.checkpoint.array_pickle import load_arrays
from point_rend.checkpoint.foreign import find_parameters, looks_like, project_of
from point_rend.checkpoint.pickle_machine import FormatError
from point_rend.checkpoint.safetensors_file import load_metadata, load_safetensors
from point_rend.checkpoint.sealed_file import load_sealed, read_checkpoint
from point_rend.checkpoint.torch_file import ZIP

# Beyond those of any model; the work of matching names grows with them.
MAX_PARAMETERS, MAX_KEY = 20_000, 1000


def read_torch_file(filename: str, *, allow_unsafe: bool) -> dict[str, Any]:
    """Read a file that `torch.save` has written."""
    return read_checkpoint(filename, functools.partial(load_sealed, allow_unsafe=allow_unsafe))


def read_safetensors(filename: str, *, only_metadata: bool = False) -> dict[str, Any]:
    """Read a `.safetensors`, or of it only the classes and the config that it stores."""
    return read_checkpoint(filename, load_metadata if only_metadata else load_safetensors)


def read_pickle(filename: str, *, allow_unsafe: bool) -> dict[str, Any]:
    """Read a `.pkl` of the model zoo: of Detectron2, of Detectron, or bare ImageNet weights."""
    data = read_checkpoint(filename, _unpickle_anything if allow_unsafe else _load_arrays)
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
    if len(model) > MAX_PARAMETERS or any(len(str(key)) > MAX_KEY for key in model):
        raise ValueError(
            f"{filename} holds {len(model)} parameters, expected {MAX_PARAMETERS} at most, with "
            f"names of up to {MAX_KEY} characters"
        )
    name, nested = find_parameters(model)
    if nested:
        # Under "model" they are in a dict within another one, as that of a .pkl without an author.
        place = " at the top, in a .pkl next to '__author__'" if name == "model" else ""
        raise ValueError(
            f"{filename} holds its parameters under {name!r:.200}: expected them under 'model'"
            f"{place}, as Detectron2 saves them{looks_like(project_of(nested))}"
        )
    for key, value in model.items():
        if isinstance(key, str) and not key.isprintable():
            raise ValueError(f"{filename}: the model's {key!a:.200} is no name of a parameter")
        if not isinstance(key, str) or not isinstance(value, np.ndarray | Tensor):
            raise ValueError(
                f"{filename}: the model's {key!r:.200} must be an array or tensor, "
                f"not {type(value).__name__}"
            )
    versions = getattr(model, "_metadata", None)
    if versions is not None and not _are_versions(versions):
        raise ValueError(f"{filename}: the model's versions of modules (_metadata) are not sound")


def check_numbers(
    filename: str, model: Mapping[str, np.ndarray | Tensor], in_model: Mapping[str, Tensor]
) -> None:
    """Refuse arrays and tensors that are not dense numbers, of which a model consists.

    Args:
        filename: Name of the file for the message.
        model: Parameters of the file.
        in_model: Parameters of the model; complex numbers are for complex ones.

    Raises:
        ValueError: If there is one.
    """
    for key, value in model.items():
        if isinstance(value, Tensor):
            is_dense = value.layout == torch.strided and not (value.is_meta or value.is_quantized)
            is_complex, kind = value.is_complex(), f"{value.layout} {value.dtype} {value.device}"
        else:
            is_dense = value.dtype.kind in "biufc" and value.dtype.itemsize <= 16
            is_complex, kind = value.dtype.kind == "c", f"type {value.dtype}"
        if not is_dense or (is_complex and not (key in in_model and in_model[key].is_complex())):
            raise ValueError(
                f"{filename}: the model's {key!r:.200} must hold dense real numbers, not {kind}"
            )


def _are_versions(metadata: Any) -> bool:
    """Return whether a value is what `state_dict` stores of the versions of modules."""
    return isinstance(metadata, dict) and all(
        isinstance(name, str)
        and isinstance(of_module, dict)
        and isinstance(of_module.get("version"), int | None)
        for name, of_module in metadata.items()
    )


def _load_arrays(file: BinaryIO) -> Any:
    if file.read(4) == ZIP:
        raise FormatError("it is a zip archive, as torch.save writes it: name it .pth")
    file.seek(0)
    return load_arrays(file)


def _unpickle_anything(file: BinaryIO) -> Any:
    return pickle.load(file, encoding="latin1")


def _without(parameters: Any, ending: str) -> Any:
    if not isinstance(parameters, Mapping):
        return parameters
    return {key: value for key, value in parameters.items() if not str(key).endswith(ending)}
