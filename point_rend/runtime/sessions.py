"""Sessions: an exported file, loaded by one of the runtimes that can execute it.

Letters in shapes: B images of height H and width W, M boxes, K classes, S side of a mask.
"""

import io
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from point_rend.runtime.description import INSTANCES, MASK_HEAD, SEM_SEG, Description
from point_rend.runtime.files import ONNX, TORCHSCRIPT, read_description
from point_rend.utils.errors import shorten
from point_rend.utils.imports import not_installed
from point_rend.utils.reading import open_regular_file

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
Content = str | bytes  # of a file: its path, or what it contains
Loader = Callable[[Content, Sequence[str], int], Compute]  # also names of the outputs, threads


class Origin(NamedTuple):
    """The file of a session as it was loaded; after a pickle, with its content."""

    size: int  # bytes
    modified: int  # nanoseconds
    threads: int
    content: bytes | None = None

    @classmethod
    def of(cls, descriptor: int | str, threads: int) -> "Origin":
        """Look a file up, by its path or an open one."""
        status = os.stat(descriptor)
        return cls(status.st_size, status.st_mtime_ns, threads)


class Session:
    """An exported file, ready to run on the CPU.

    A session that is pickled carries the file, so that another machine can run it.

    Args:
        path, description, runtime: See the attributes.
        compute: Runs the graph.
        origin: The file; without one, the session cannot be pickled.

    Attributes:
        path: The file.
        description: Its description.
        runtime: Name of the library that runs it.
    """

    def __init__(
        self,
        path: str,
        description: Description,
        runtime: str,
        compute: Compute,
        origin: Origin | None = None,
    ) -> None:
        self.path = path
        self.description = description
        self.runtime = runtime
        self._compute = compute
        self._origin = origin

    def __reduce__(self) -> tuple[Callable[..., "Session"], tuple[Any, ...]]:
        if self._origin is None:
            raise pickle.PicklingError(f"{self.path} is not in a file")
        origin = self._origin
        if origin.content is None:
            with open_regular_file(self.path, what="model") as file:
                if Origin.of(file.fileno(), origin.threads) != origin:
                    raise pickle.PicklingError(f"{self.path} has changed since it was loaded")
                origin = origin._replace(content=file.read())
        return _load, (self.path, self.description, self.runtime, origin)

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Run the graph.

        Args:
            inputs: Of a whole model images (B, C, H, W) of type float32 and sizes (B, 2) int64;
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
    runtime = PYTORCH
    if suffix == ONNX:
        runtime = backend or ONNXRUNTIME
    else:
        if backend is not None:
            raise ValueError(f"--backend {backend} runs ONNX files, but {path} is run by PyTorch")
        if not allow_unsafe:
            raise ValueError(
                f"{path} is refused: PyTorch executes what such a file contains. If you trust its "
                "origin, load it with allow_unsafe=True (--allow-unsafe-checkpoint on the command "
                "line); ONNX files are safe"
            )
    return _load(path, description, runtime, Origin.of(path, threads))


def _load(path: str, description: Description, runtime: str, origin: Origin) -> Session:
    """Load a file, or its content that came with a pickle, by the runtime of this name."""
    by_torch = _load_torchscript if Path(path).suffix.lower() == TORCHSCRIPT else _load_torch_export
    load = {ONNXRUNTIME: _load_onnxruntime, OPENVINO: _load_openvino, PYTORCH: by_torch}[runtime]
    try:
        compute = load(origin.content or path, OUTPUTS[description.task], origin.threads)
    except ImportError as error:
        raise not_installed(runtime, EXTRAS[runtime]) from error
    except Exception as error:
        raise ValueError(f"{path} cannot be loaded by {runtime}: {_reason(error)}") from error
    return Session(path, description, runtime, compute, origin)


def _reason(error: Exception) -> str:
    return shorten(" ".join(str(error).split()), LONGEST_REASON)


def _load_onnxruntime(content: Content, outputs: Sequence[str], threads: int) -> Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised as well
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def compute(inputs: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(list(outputs), feed)]

    return compute


def _load_openvino(content: Content, outputs: Sequence[str], threads: int) -> Compute:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = str(threads)
    core = openvino.Core()
    model = core.compile_model(core.read_model(content), "CPU", options)
    results = [model.output(name) for name in outputs]

    def compute(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = model([value.numpy() for value in inputs])
        # The arrays are views of memory that the next run overwrites.
        return [torch.from_numpy(found[result].copy()) for result in results]

    return compute


def _load_torch_export(content: Content, _outputs: Sequence[str], _threads: int) -> Compute:
    # The guards also exclude images so small that a map is one cell, which the graph serves.
    graph = torch.export.load(_file(content)).module(check_guards=False)
    return lambda inputs: graph(*inputs)


def _load_torchscript(content: Content, _outputs: Sequence[str], _threads: int) -> Compute:
    graph = torch.jit.load(_file(content), map_location="cpu")
    return lambda inputs: graph(*inputs)


def _file(content: Content) -> str | io.BytesIO:
    return io.BytesIO(content) if isinstance(content, bytes) else content
