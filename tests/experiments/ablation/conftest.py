"""Fixtures of the ablations' tests."""

from collections.abc import Iterator

import pytest

from tests.tiny_datasets import process_state_restored


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield
