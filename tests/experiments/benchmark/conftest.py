"""Fixtures of the benchmark's tests."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _frozen_objects() -> Iterator[None]:
    """Let the garbage collections of a measurement visit the objects of the test only."""
    gc.freeze()
    yield
    gc.unfreeze()
