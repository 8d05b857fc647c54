"""Fixtures of tests that run trainings in this process."""

from collections.abc import Iterator

import pytest

from tests.engine.killing import write_mixed
from tests.tiny_datasets import CocoSet, process_state_restored


@pytest.fixture
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a run leaves in the process; messages name `train_net.py`."""
    monkeypatch.setattr("sys.argv", ["train_net.py"])
    with process_state_restored():
        yield


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> CocoSet:
    return write_mixed(tmp_path_factory.mktemp("mixed") / "mixed")
