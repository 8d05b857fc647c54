"""Peak memory of a function, memory that is still available, and the largest batch that fits.

On a GPU the caching allocator counts. On a CPU the peak is that of the process: memory that the C
allocator keeps from earlier runs is returned to the system (malloc_trim), the kernel's high-water
mark is reset (/proc/self/clear_refs) and read after the run (VmHWM). It therefore includes the
scratch memory of libraries, which a count of tensors would miss.
"""

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from point_rend.experiments.benchmark.case import Run

CGROUP = Path("/sys/fs/cgroup")  # of a container


def peak_memory(run: Run, device: str) -> int | None:
    """Run a function once and return the peak of its memory above what was held before, in bytes.

    Args:
        run: The function; its result counts. It has run before, since loading code takes memory.
        device: Device whose memory is measured.

    Returns:
        None where the system offers no such measurement.
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


def _process_memory(key: str) -> int:
    """Return an entry of /proc/self/status, given there in kB, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def available_memory(device: str) -> int:
    """Return the bytes that are still available on a device, within a container's limit."""
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
        usage = dict(x.split() for x in (CGROUP / "memory.stat").read_text().splitlines())
        # Cached files count as used, but are dropped when memory is needed.
        used -= sum(int(usage.get(key, 0)) for key in ("active_file", "inactive_file"))
        return min(available, max(0, limit - used))
    except (OSError, ValueError):  # no such file, or "max"
        return available


def largest_batch(step: Callable[[int], Any]) -> int:
    """Find the number of images that fit into a GPU's memory, by doubling and then bisection.

    Args:
        step: Processes a batch of that many images, or runs out of memory.

    Returns:
        0 if not even one image fits.
    """

    def fits(count: int) -> bool:
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without a GPU
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
