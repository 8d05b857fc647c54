"""Writers of graphs: files that carry their description, complete or not at all."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from point_rend.export.graph import Graph
from point_rend.export.suppression import (
    nms_of_groups,
    nms_of_torchvision,
    translations_to_onnx,
)
from point_rend.runtime.description import KEY, Description
from point_rend.utils.files import atomic_file, atomic_path
from point_rend.utils.logs import only_errors

OPSET = 20


def write_onnx(graph: Graph, path: str | Path, description: Description) -> None:
    """Write a graph as one ONNX file, with its description in the metadata.

    Raises:
        ModuleNotFoundError: If the packages of the extra "onnx" are not installed.
        NotSavedError: If the file cannot be written.
    """
    with _quiet():
        program = torch.onnx.export(
            graph,
            graph.example(),
            dynamo=True,
            opset_version=OPSET,
            input_names=graph.input_names,
            output_names=graph.output_names,
            dynamic_shapes=graph.dynamic_shapes(),
            custom_translation_table=translations_to_onnx(),
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # lines of code, with folders of this machine
    program.model.metadata_props[KEY] = description.to_json()
    with atomic_path(path) as temporary:
        program.save(temporary, external_data=False)


def write_torch_export(graph: Graph, path: str | Path, description: Description) -> None:
    """Write a graph as a file of ``torch.export``, which needs torch and torchvision to run.

    Raises:
        NotSavedError: If the file cannot be written.
    """
    with _quiet(), torch.no_grad():
        shapes = graph.dynamic_shapes()
        program = torch.export.export(graph, graph.example(), dynamic_shapes=shapes)
        program = program.run_decompositions({nms_of_groups._opoverload: nms_of_torchvision})
        # The guards of an export compare sizes of this example, such as "no map is one row high",
        # that do not matter to any operator; the ranges of the sizes are checked all the same.
        program._guards_code = []
    content = io.BytesIO()  # PyTorch ends the process if it cannot write to a file
    with atomic_file(path) as file:
        torch.export.save(program, content, extra_files={KEY: description.to_json()})
        file.write(content.getbuffer())


def write_torchscript(graph: Graph, path: str | Path, description: Description) -> None:
    """Write a graph as a TorchScript file, which needs torch and torchvision to run.

    Raises:
        NotSavedError: If the file cannot be written.
    """
    with _quiet(), torch.no_grad():
        trace = torch.jit.trace(graph, graph.example(), check_trace=False)
    content = io.BytesIO()  # PyTorch ends the process if it cannot write to a file
    with _quiet(), atomic_file(path) as file:
        torch.jit.save(trace, content, _extra_files={KEY: description.to_json()})
        file.write(content.getbuffer())


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' warnings, which are about the code of PyTorch and Detectron2."""
    with warnings.catch_warnings(), only_errors("onnxscript"):
        warnings.simplefilter("ignore")
        yield
