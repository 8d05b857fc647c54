"""Memory: the peak of a function, the available memory, the largest batch."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from point_rend.experiments.benchmark import memory
from point_rend.experiments.benchmark.case import Run
from tests.experiments.benchmark.planted import MIB


def peak_of_second_run(run: Run) -> int:
    """The first run loads code, whose pages count like any other memory."""
    run()
    peak = memory.peak_memory(run, "cpu")
    assert peak is not None
    return peak


def test_a_large_allocation_that_is_freed_before_the_end_counts() -> None:
    peak = peak_of_second_run(lambda: torch.ones(48 * MIB // 4).sum())
    assert abs(peak - 48 * MIB) < 2 * MIB


def test_small_allocations_count_that_the_allocator_could_serve_from_freed_memory() -> None:
    def many_small() -> list[torch.Tensor]:
        return [torch.ones(MIB // 16) for _ in range(160)]  # 40 MiB

    assert abs(peak_of_second_run(many_small) - 40 * MIB) < 2 * MIB


def test_memory_that_was_held_before_does_not_count() -> None:
    held = torch.ones(48 * MIB // 4)
    assert peak_of_second_run(lambda: held.add_(1)) < 2 * MIB


def test_a_system_without_the_files_of_linux_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert memory.peak_memory(lambda: None, "cpu") is None


def test_available_memory_is_part_of_the_machines() -> None:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.available_memory("cpu") <= pages


@pytest.mark.parametrize(("limit", "available"), [("90", 55), ("30", 0), ("max", None)])
def test_a_container_limits_the_available_memory_and_cached_files_are_available(
    limit: str, available: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = "anon 35\nactive_file 10\ninactive_file 15\nslab 0"
    for name, text in {"max": limit, "current": "60", "stat": stat}.items():
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    of_machine = memory.available_memory("cpu") > 90
    assert of_machine if available is None else memory.available_memory("cpu") == available


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 37, 64])
def test_the_largest_batch_is_the_last_that_does_not_run_out_of_memory(limit: int) -> None:
    tried = []

    def step(count: int) -> None:
        tried.append(count)
        if count > limit:
            raise torch.OutOfMemoryError("out of memory")

    assert memory.largest_batch(step) == limit
    assert len(tried) <= 2 * len(f"{limit:b}") + 1
    assert len(set(tried)) == len(tried)


def test_another_error_of_a_batch_is_not_a_lack_of_memory() -> None:
    def step(_: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        memory.largest_batch(step)
