"""Fixtures of the ablations' tests."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from point_rend.experiments.ablation import trainings as module
from tests.experiments.ablation.tiny import PlantedTrainings
from tests.tiny_datasets import process_state_restored


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PlantedTrainings]:
    def plant(**arguments: Any) -> PlantedTrainings:
        trainings = PlantedTrainings(**arguments)
        monkeypatch.setattr(module, "train", trainings)
        return trainings

    return plant
