"""Measuring of time and peak memory."""

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from point_rend.experiments.benchmark.case import Agreement, Case, Contest, Run, Settings

CGROUP = Path("/sys/fs/cgroup")  # of the container, if this is one


# Share of the available memory that a run may take.
MEMORY_MARGIN = 0.8


@dataclass(frozen=True)
class Measurement:
    """One side of a case.

    Args:
        seconds: of each timed run.
        peak_bytes: of memory, if it can be measured.
        head_share: of the time that the head of a whole model takes.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None
    head_share: float | None = None

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Record:
    """What was measured of a case; ``theirs`` is None where the rival was not, and why."""

    name: str
    parameters: Mapping[str, int]
    rival: str
    ours: Measurement
    theirs: Measurement | None
    rival_bytes_estimated: int
    agreement: Agreement | None
    largest_batches: tuple[int, int] | None = None  # images that fit into a GPU: ours, the rival's
    rival_failure: str | None = None


# Measuring
def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleaved_seconds(
    runs: Sequence[Run], repeat: int, device: str, *, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, ...]]:
    """Time several functions in turn: the first, the second, …, the first again.

    In each round each function runs, once or more, for as long as the slowest takes for one run.

    Args:
        runs: the functions; a first round of them is not timed, but tells which is the slowest.
        repeat: number of timed rounds.
        device: on which they work.
        clock: returns seconds.

    Returns:
        Per function its seconds in each round, the median where it ran more than once.
    """

    def time_of(run: Run) -> float:
        synchronize(device)
        start = clock()
        run()
        synchronize(device)
        return clock() - start

    turn = max(time_of(run) for run in runs)
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeat):
        for run, its_seconds in zip(runs, seconds, strict=True):
            times = [time_of(run)]
            while 0 < times[-1] <= turn - sum(times):  # there is time for another run
                times.append(time_of(run))
            its_seconds.append(statistics.median(times))
    return [tuple(its_seconds) for its_seconds in seconds]


def share_of_time(run: Run, head: nn.Module, repeat: int, device: str) -> float:
    """Return the share of a run that passes in a module, 0 to 1: the median of several runs."""
    marks: list[float] = []

    def mark(*_: object) -> None:
        synchronize(device)
        marks.append(time.perf_counter())

    hooks = [head.register_forward_pre_hook(mark), head.register_forward_hook(mark)]
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


def _process_memory(key: str) -> int:
    """Return a line of /proc/self/status that is in kB, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def peak_memory(run: Run, device: str) -> int | None:
    """Run a function once and return the peak of its memory over what was held before, in bytes.

    Args:
        run: the function; what it returns counts. It has run before: loading code takes memory.
        device: whose memory is meant.

    Returns:
        None where the system cannot tell.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _process_memory("VmRSS")
        run()
        return max(0, _process_memory("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def largest_batch(step: Callable[[int], Any]) -> int:
    """Find how many images fit into a GPU's memory, by doubling and then halving the interval.

    Args:
        step: does its work with so many images, or runs out of memory.

    Returns:
        0 if not even one fits.
    """

    def fits(count: int) -> bool:
        gc.collect()
        torch.cuda.empty_cache()  # nothing where there is no GPU
        try:
            step(count)
        except torch.OutOfMemoryError:
            return False
        return True

    fitting, beyond = 0, 1
    while fits(beyond):
        fitting, beyond = beyond, 2 * beyond
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        if fits(middle):
            fitting = middle
        else:
            beyond = middle
    return fitting


def available_memory(device: str) -> int:
    """Return the bytes that can still be taken on a device, a container's limit included."""
    if torch.device(device).type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
        available = kilobytes * 1024
    except OSError:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (int((CGROUP / f"memory.{x}").read_text()) for x in ("max", "current"))
        shares = dict(x.split() for x in (CGROUP / "memory.stat").read_text().splitlines())
        # Cached files count as used, and give way to what is needed.
        used -= sum(int(shares.get(key, 0)) for key in ("active_file", "inactive_file"))
        return min(available, max(0, limit - used))
    except (OSError, ValueError):  # no such file, or "max"
        return available


def as_asked(run: Run, settings: Settings, *, training: bool) -> Run:
    """Run with gradients, or without as Detectron2's evaluation does; under autocast if asked.

    Each run enters autocast anew, as each batch of an evaluation does: within, weights are
    converted once.
    """

    def in_context() -> Any:
        precision = nullcontext() if training else settings.autocast()
        with torch.set_grad_enabled(training), precision:
            return run()

    return in_context


def measure(case: Case, contest: Contest, settings: Settings) -> Record:
    """Measure both sides of a case; the rival only if it can do it in the memory that there is."""
    ours, theirs = (
        as_asked(run, settings, training=contest.training) for run in (contest.ours, contest.rival)
    )
    failure, agreement, fails = None, None, False
    if case.rival_bytes > MEMORY_MARGIN * available_memory(settings.device):
        failure = f"does not fit (≈ {case.rival_bytes / 2**30:.1f} GiB)"
    our_output = ours()
    if failure is None:
        try:
            their_output = theirs()
        except torch.OutOfMemoryError:
            failure = "does not fit"
        except RuntimeError as error:  # e.g. under autocast
            failure, fails = f"fails: {str(error).splitlines()[0]}", True
        else:
            if contest.compare is not None:
                agreement = contest.compare(our_output, their_output)
            del their_output
    del our_output
    runs = [ours] if failure else [ours, theirs]
    shares: list[float | None] = [None] * len(runs)
    batches = None
    peaks = [peak_memory(run, settings.device) for run in runs]
    seconds = interleaved_seconds(runs, settings.repeat, settings.device)
    if contest.heads is not None:
        shares = [
            share_of_time(run, head, settings.repeat, settings.device)
            for run, head in zip(runs, contest.heads, strict=False)
        ]
    if contest.of_images and not fails and torch.device(settings.device).type == "cuda":
        batches = (largest_batch(contest.of_images[0]), largest_batch(contest.of_images[1]))
    sides = [Measurement(*side) for side in zip(seconds, peaks, shares, strict=True)]
    return Record(
        name=case.name,
        parameters=case.parameters,
        rival=case.rival,
        ours=sides[0],
        theirs=None if failure else sides[1],
        rival_bytes_estimated=case.rival_bytes,
        agreement=agreement,
        largest_batches=batches,
        rival_failure=failure,
    )
