"""Settings and fixtures shared by all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from tests.pretended_cuda import Record, pretended_cuda

REPOSITORY = Path(__file__).resolve().parents[1]

# One thread is fastest on small tensors, and the processes of a parallel run share the cores.
torch.set_num_threads(1)
# The first backward pass of a process starts a thread for every known kind of device, and
# torch.compile makes more kinds known. After that, a forked process could not train any more.
torch.ones((), requires_grad=True).backward()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests with a Ray last: its threads stay in the process, and others fork."""
    items.sort(key=lambda item: item.path.name == "test_ray.py")


def pytest_runtest_setup() -> None:
    """Seed every test and its fixtures, whatever ran before in the same process."""
    seed_all_rng(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of data sets that are too large for the repository; without it, skip the test."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets of {folder}")
    return folder


@pytest.fixture
def cuda() -> Iterator[Record]:
    """Pretend that there is a GPU; yields the record of what is done with it."""
    with pretended_cuda() as record:
        yield record
