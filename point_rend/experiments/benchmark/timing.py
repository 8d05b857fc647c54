"""Timing of functions that run in turn, and of a module inside a model; times are in seconds."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from point_rend.experiments.benchmark.case import Run


def synchronize(device: str) -> None:
    """Wait until a GPU has finished its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleaved_seconds(
    runs: Sequence[Run], repeat: int, device: str, *, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, ...]]:
    """Time several functions in turn: the first, the second, …, the first again.

    In each round each function runs, once or more, for as long as one run of the slowest takes.

    Args:
        runs: The functions. A first round is not timed; it shows which of them is the slowest.
        repeat: Number of timed rounds.
        device: Device on which they work.
        clock: Returns seconds.

    Returns:
        For each function its time in each round: the median where it ran more than once.
    """

    def time_of(run: Run) -> float:
        synchronize(device)
        start = clock()
        run()
        synchronize(device)
        return clock() - start

    longest = max(time_of(run) for run in runs)
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeat):
        for run, medians in zip(runs, seconds, strict=True):
            times = [time_of(run)]
            while 0 < times[-1] <= longest - sum(times):  # there is time for another run
                times.append(time_of(run))
            medians.append(statistics.median(times))
    return [tuple(medians) for medians in seconds]


def share_of_time(
    run: Run,
    module: nn.Module,
    repeat: int,
    device: str,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the share of a run, from 0 to 1, that a module takes: the median of several runs."""
    marks: list[float] = []

    def mark(*_: object) -> None:
        synchronize(device)
        marks.append(clock())

    hooks = [module.register_forward_pre_hook(mark), module.register_forward_hook(mark)]
    shares = []
    for _ in range(repeat):
        marks.clear()
        mark()
        run()
        mark()
        start, entered, left, end = marks
        shares.append((left - entered) / (end - start))
    for hook in hooks:
        hook.remove()
    return statistics.median(shares)
