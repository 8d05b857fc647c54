#!/usr/bin/env python
"""Execute a notebook and save it with its results.

    python tools/dev/run_notebook.py notebooks/tutorial.ipynb      # or: make notebook

The file is written only if every cell runs. Its metadata depend neither on the machine nor on the
time, and include the SHA-256 of the code of all cells, with which a test can detect results of
other code.

    python tools/dev/run_notebook.py notebooks/tutorial.ipynb --output x.ipynb --set ITERATIONS=4

executes it with other parameters, which are the variables of the cell with the tag `parameters`, as
in papermill.
"""

import argparse
import ast
import copy
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from point_rend.utils.errors import FAILED, user_errors
from point_rend.utils.files import check_output, write_text
from point_rend.utils.waiting import wait_passively

PARAMETERS = "parameters"
SOURCES = "sources_sha256"  # key in the metadata
MINUTES = 60


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is not a notebook.
    """
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no notebook {path}") from error
    # nbformat raises the last of them for JSON that is not an object.
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError) as error:
        raise ValueError(f"{path} is not a notebook: {error!s:.100}") from error


def sources_hash(notebook: nbformat.NotebookNode) -> str:
    """Return the SHA-256 of the code in the cells, on which the results depend."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def with_parameters(
    notebook: nbformat.NotebookNode, values: Mapping[str, Any]
) -> nbformat.NotebookNode:
    """Return the notebook with a cell after its parameters that changes some of them.

    Raises:
        ValueError: If it has no such parameter.
    """
    changed = copy.deepcopy(notebook)
    if not values:
        return changed
    tagged = [
        i for i, cell in enumerate(changed.cells) if PARAMETERS in cell.metadata.get("tags", [])
    ]
    known = [
        target.id
        for i in tagged
        for node in ast.parse(changed.cells[i].source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    for name in values:
        if name not in known:
            which = f"'s parameters are {', '.join(known)}" if known else " has no parameters"
            raise ValueError(f"--set {name}: the notebook{which}")
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    cell = nbformat.v4.new_code_cell("\n".join(lines), id="injected-parameters")
    changed.cells.insert(tagged[-1] + 1, cell)
    return changed


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run all cells in a new kernel of this Python.

    Args:
        notebook: The notebook.
        folder: Working directory of the kernel.

    Returns:
        The notebook with its results; its metadata depend neither on the machine nor on the time.

    Raises:
        CellExecutionError: If a cell does not run.
    """
    done = copy.deepcopy(notebook)
    with tempfile.TemporaryDirectory() as sockets:
        kernel = AsyncKernelManager(
            kernel_name="python3", transport="ipc", ip=os.path.join(sockets, "kernel")
        )
        client = NotebookClient(
            done,
            km=kernel,
            startup_timeout=10 * MINUTES,
            timeout=30 * MINUTES,  # of one cell
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(cleanup_kc=True)
    done.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            SOURCES: sources_hash(notebook),
        }
    )
    return done


def assignment(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE; the value is a Python literal, or else text."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 2 after an error that the user can correct, with code 1 if a cell
            does not run.
    """
    wait_passively()  # the kernel inherits it
    parser = argparse.ArgumentParser(description="Execute a notebook and save it with its results.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--output", type=Path, help="file to write; by default the notebook itself")
    parser.add_argument(
        "--set",
        dest="values",
        nargs="+",
        type=assignment,
        default=[],
        metavar="NAME=VALUE",
        help="parameters of the notebook to change",
    )
    args = parser.parse_args(argv)
    output = args.output or args.notebook
    with user_errors():
        notebook = with_parameters(read_notebook(args.notebook), dict(args.values))
        check_output(output)
    try:
        done = execute(notebook, args.notebook.resolve().parent)
    except CellExecutionError as error:
        print(f"{error}\n{parser.prog}: error: {args.notebook} does not run", file=sys.stderr)
        raise SystemExit(FAILED) from error
    write_text(output, nbformat.writes(done) + "\n")
    print(output)


if __name__ == "__main__":
    main()
