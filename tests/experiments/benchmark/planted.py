"""Planted cases and records, and settings that make every case tiny."""

from dataclasses import replace
from typing import Any

import torch

from point_rend.experiments.benchmark.case import Agreement, Case, Comparison, mask_agreement
from point_rend.experiments.benchmark.measuring import Measurement, Record
from point_rend.experiments.benchmark.settings import Settings, Sizes
from tests.tiny_datasets import TINY_MODEL

MIB = 2**20
MACHINE = {
    "cpu": "a CPU",
    "threads": 2,
    "wait": "passive wait",
    "gpu": None,
    "torch": "1",
    "detectron2": "0",
    "python": "3",
}

TINY = Settings(
    repeat=1,
    shared_opts=tuple(TINY_MODEL),
    sizes=Sizes(
        instance_image=(64, 96),
        pasted_image=(60, 90),
        semantic_image=(64, 128),
        training_image=(64, 96),
        objects=3,
        proposals=40,
        pyramid_channels=16,
    ),
)
TINY_SEMANTIC = replace(
    TINY,
    shared_opts=(
        *TINY_MODEL,
        *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "256"),
    ),
)


def comparison(**changes: Any) -> Comparison:
    """A comparison of equal, empty masks."""
    equal = {"ours": lambda: torch.zeros(1, 1, 4, 4), "baseline": lambda: torch.zeros(1, 1, 4, 4)}
    return Comparison(**{**equal, "compare": mask_agreement, **changes})


def case(name: str = "planted", baseline_bytes: int = 0, **changes: Any) -> Case:
    """A case of such a comparison."""
    return Case(name, {"boxes": 1}, "stock", lambda _: comparison(**changes), baseline_bytes)


def record(ours: float, baseline: float | None) -> Record:
    """A record of so many seconds and MiB on each side."""
    sides = [
        None if seconds is None else Measurement((seconds,) * 3, int(seconds * MIB))
        for seconds in (ours, baseline)
    ]
    assert sides[0] is not None
    agreement = Agreement(differing=1e-6, largest=0.25, boundary=0.1)
    return Record("a head", {"boxes": 2}, "stock", sides[0], sides[1], 5, agreement)
