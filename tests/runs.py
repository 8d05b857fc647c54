"""Helpers for tests that run a command line or a training step."""

import contextlib
import json
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from point_rend.cli import train
from point_rend.engine import arguments, run, setup


def set_up(argv: Sequence[str]) -> setup.Run:
    """Check a command line of train_net.py and build its config."""
    return setup.setup(arguments.build_parser().parse_args(argv))


def evaluate(argv: Sequence[str]) -> dict[str, Any]:
    """Run an evaluation in this process; return its results."""
    return run.run(*set_up(argv))


def refusal(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which train_net.py refuses a command."""
    with pytest.raises(SystemExit) as ended:
        train.main(argv)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train_net.py: error: ")
    return last


def metrics(output: Path) -> list[dict[str, float]]:
    """Read the log of a training, one entry per line."""
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Make writes beyond a file size fail in this process and its children, as on a full disk.

    Shared memory counts as a file.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_files(size)
    try:
        yield
    finally:
        limit_files(soft)


def limit_files(size: int) -> None:
    """Set the file size beyond which writes fail in this process and its children."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def instance_predictions(output: Path, name: str) -> list[dict[str, Any]]:
    """Read the predictions of an evaluation on a COCO set, one object per entry."""
    return _predictions(output, name, "coco_instances_results.json")


def semantic_predictions(output: Path, name: str) -> list[dict[str, Any]]:
    """Read the predictions of a semantic evaluation, one class of one image per entry."""
    return _predictions(output, name, "sem_seg_predictions.json")


def _predictions(output: Path, name: str, file: str) -> list[dict[str, Any]]:
    return json.loads((output / "inference" / name / file).read_text())


def without_finite_gradient(model: nn.Module) -> list[str]:
    """Return the names of trainable parameters without a finite gradient."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not torch.isfinite(parameter.grad.sum()))
    ]
