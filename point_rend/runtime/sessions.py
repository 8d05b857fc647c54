"""Sessions: an exported file, loaded by one of the runtimes that can execute it.

Letters in shapes: B images of height H and width W, M boxes, K classes, S side of a mask.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from point_rend.runtime.description import INSTANCES, MASK_HEAD, SEM_SEG, Description
from point_rend.runtime.files import ONNX, TORCHSCRIPT, read_description
from point_rend.utils.errors import shorten
from point_rend.utils.imports import not_installed

ONNXRUNTIME, OPENVINO, PYTORCH = "onnxruntime", "openvino", "PyTorch"
BACKENDS = (ONNXRUNTIME, OPENVINO)
EXTRAS = {ONNXRUNTIME: "onnx", OPENVINO: "openvino"}
LONGEST_REASON = 300  # characters of a runtime's message

# Names of a graph's outputs, in order.
OUTPUTS = {
    INSTANCES: ("boxes", "scores", "classes", "image", "masks"),
    SEM_SEG: ("logits", "labels"),
    MASK_HEAD: ("masks",),
}
RANKS = {"boxes": 2, "scores": 1, "classes": 1, "image": 1, "masks": 4, "logits": 4, "labels": 3}

Compute = Callable[[Sequence[Tensor]], Sequence[Tensor] | Tensor]
Loader = Callable[[str, Sequence[str], int], Compute]  # path, names of the outputs, threads


class Session:
    """An exported file, ready to run on the CPU.

    Attributes:
        path: The file.
        description: Its description.
        runtime: Name of the library that runs it.
    """

    def __init__(self, path: str, description: Description, runtime: str, compute: Compute) -> None:
        self.path = path
        self.description = description
        self.runtime = runtime
        self._compute = compute

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            inputs: Of a whole model images (B, 3, H, W) of type float32 and sizes (B, 2) int64;
                of a mask head its feature maps, boxes, classes and image numbers.

        Returns:
            The outputs by name: boxes (M, 4), scores (M,), classes (M,), image (M,) and
            masks (M, 1, S, S); or logits (B, K, H, W) and labels (B, H, W); or masks alone.

        Raises:
            ValueError: If the runtime fails, or the outputs are not those of such a graph.
        """
        try:
            values = self._compute(inputs)
        except Exception as error:
            raise ValueError(f"{self.path} failed in {self.runtime}: {_reason(error)}") from error
        values = (values,) if isinstance(values, Tensor) else values  # a graph of one output
        outputs = dict(zip(OUTPUTS[self.description.task], values, strict=True))
        for name, value in outputs.items():
            if value.dim() != RANKS[name]:
                shape = tuple(value.shape)
                raise ValueError(f"{self.path} is damaged: its output {name} has shape {shape}")
        return outputs


def open_session(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    threads: int = 0,
    allow_unsafe: bool = False,
) -> Session:
    """Load an exported file.

    Args:
        path: A file .onnx, .pt2 (torch.export) or .ts (TorchScript) of `pointrend export`.
        backend: "onnxruntime" (default) or "openvino" for ONNX; None for the others, which PyTorch
            runs.
        threads: Number of threads of one run; 0 leaves it to the runtime. PyTorch has a setting of
            its own for the whole process.
        allow_unsafe: Whether to load a .pt2 or .ts file, which can execute code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no model of `pointrend export` or damaged, the runtime is not
            installed, or the file could execute code and that is not allowed.
        OSError: If it cannot be read.
    """
    path = os.fspath(path)
    description = read_description(path)
    suffix = Path(path).suffix.lower()
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"--backend: expected {' or '.join(BACKENDS)}, got {backend!r}")
    load: Loader
    if suffix == ONNX:
        runtime = backend or ONNXRUNTIME
        load = _load_onnxruntime if runtime == ONNXRUNTIME else _load_openvino
    else:
        runtime = PYTORCH
        load = _load_torchscript if suffix == TORCHSCRIPT else _load_torch_export
        if backend is not None:
            raise ValueError(f"--backend {backend} runs ONNX files, but {path} is run by PyTorch")
        if not allow_unsafe:
            raise ValueError(
                f"{path} is refused: PyTorch executes what such a file contains. If you trust its "
                "origin, load it with allow_unsafe=True (--allow-unsafe-checkpoint on the command "
                "line); ONNX files are safe"
            )
    try:
        compute = load(path, OUTPUTS[description.task], threads)
    except ImportError as error:
        raise not_installed(runtime, EXTRAS[runtime]) from error
    except Exception as error:
        raise ValueError(f"{path} cannot be loaded by {runtime}: {_reason(error)}") from error
    return Session(path, description, runtime, compute)


def _reason(error: Exception) -> str:
    return shorten(" ".join(str(error).split()), LONGEST_REASON)


def _load_onnxruntime(path: str, outputs: Sequence[str], threads: int) -> Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised as well
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def compute(inputs: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(list(outputs), feed)]

    return compute


def _load_openvino(path: str, outputs: Sequence[str], threads: int) -> Compute:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = str(threads)
    model = openvino.Core().compile_model(path, "CPU", options)
    results = [model.output(name) for name in outputs]

    def compute(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = model([value.numpy() for value in inputs])
        # The arrays are views of memory that the next run overwrites.
        return [torch.from_numpy(found[result].copy()) for result in results]

    return compute


def _load_torch_export(path: str, _outputs: Sequence[str], _threads: int) -> Compute:
    # The guards also exclude images so small that a map is one cell, which the graph serves.
    graph = torch.export.load(path).module(check_guards=False)
    return lambda inputs: graph(*inputs)


def _load_torchscript(path: str, _outputs: Sequence[str], _threads: int) -> Compute:
    graph = torch.jit.load(path, map_location="cpu")
    return lambda inputs: graph(*inputs)
