"""What several tests do with a command line or a trained step, written once."""

import contextlib
import json
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from point_rend.cli import train as train_net


def refusal(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line in which train_net.py refuses a command."""
    with pytest.raises(SystemExit) as ended:
        train_net.main(argv)
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train_net.py: error: ")
    return last


def metrics(output: Path) -> list[dict[str, float]]:
    """What a training in this folder has logged, an entry per line."""
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let writes of this process and its children fail beyond a size, as on a full disk.

    Shared memory counts as a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def instance_predictions(output: Path, name: str) -> list[dict[str, Any]]:
    """What an evaluation in this folder has found in a COCO set, an object per entry."""
    return _predictions(output, name, "coco_instances_results.json")


def semantic_predictions(output: Path, name: str) -> list[dict[str, Any]]:
    """What an evaluation in this folder has made of label maps, a class of an image per entry."""
    return _predictions(output, name, "sem_seg_predictions.json")


def _predictions(output: Path, name: str, file: str) -> list[dict[str, Any]]:
    return json.loads((output / "inference" / name / file).read_text())


def without_finite_gradient(model: nn.Module) -> list[str]:
    """Names of the parameters that a backward pass should have reached, and did not."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not torch.isfinite(parameter.grad.sum()))
    ]
