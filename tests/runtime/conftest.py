"""Planted graphs in files, which the tests of a process share."""

from pathlib import Path

import pytest

from tests.runtime.planted import description, write_planted


@pytest.fixture(scope="session")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with planted.onnx, planted.pt2, planted.ts and labels.onnx."""
    folder = tmp_path_factory.mktemp("exported")
    for suffix in (".onnx", ".pt2", ".ts"):
        write_planted(folder / f"planted{suffix}")
    write_planted(folder / "labels.onnx", description("sem_seg"))
    return folder
