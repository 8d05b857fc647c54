"""What several tests do with a command line or a trained step, written once."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import train_net


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


def without_finite_gradient(model: nn.Module) -> list[str]:
    """Names of the parameters that a backward pass should have reached, and did not."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not torch.isfinite(parameter.grad.sum()))
    ]
