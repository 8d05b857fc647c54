"""Settings and fixtures that every test shares."""

from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng

REPOSITORY = Path(__file__).resolve().parents[1]

# On small tensors one thread is fastest, and the processes of a parallel run share the cores.
torch.set_num_threads(1)
# The first backward pass of a process starts a thread for every kind of device that torch knows by
# then, and torch.compile makes more of them known. Behind that no fork could train any more.
torch.ones((), requires_grad=True).backward()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let no test, nor any of its fixtures, depend on which ran before it in the same process."""
    seed_all_rng(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with data sets too large for the repository; skips the test where there is none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets of {folder}")
    return folder
