"""Sizes, times and memory of a training, from its parts and its first steps."""

import itertools
import math
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.evaluation import inference_context
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from point_rend.acceleration.prepare import prepared_for_inference
from point_rend.utils import progress
from point_rend.utils.seeding import seed_all

MOST_STEPS = 10
SECONDS = 5.0  # after which no further step begins, once there are enough
WARM_UP = 1  # steps and images that are not measured
TEST_IMAGES = 3  # of each test set


class Steps(NamedTuple):
    """The first steps of a training.

    Attributes:
        losses: The losses of each step, by name.
        seconds: Of each step, the first one included.
        waiting: Seconds of each step in which it waited for data.
        peak_bytes: Memory at the peak, the largest of all processes: on a GPU of its tensors, on a
            CPU of the process.
        reserved_bytes: Memory that PyTorch took from a GPU for them; None on a CPU.
    """

    losses: list[dict[str, float]]
    seconds: list[float]
    waiting: list[float]
    peak_bytes: int
    reserved_bytes: int | None

    @property
    def seconds_per_step(self) -> float:
        """Mean seconds of a step after the first one."""
        measured = self.seconds[WARM_UP:] or self.seconds
        return sum(measured) / len(measured)

    @property
    def waiting_per_step(self) -> float:
        """Mean seconds of waiting in a step after the first one."""
        measured = self.waiting[WARM_UP:] or self.waiting
        return sum(measured) / len(measured)


def take_steps(trainer: Any, count: int) -> Steps:
    """Take the first steps of a training as its loop takes them, without its other hooks.

    All processes of a run call this.

    Args:
        trainer: A trainer that is ready to train; afterwards it is that many steps on.
        count: Least number of steps, if the training has so many; more follow within seconds.

    Raises:
        TrainingStop: As the steps raise it.
    """
    device = next(trainer.model.parameters()).device
    losses: list[dict[str, float]] = []
    seconds: list[float] = []
    waiting: list[float] = []
    end = min(trainer.start_iter + max(count, MOST_STEPS), trainer.max_iter)
    with EventStorage(trainer.start_iter) as trainer.storage:
        began = time.perf_counter()
        for iteration in range(trainer.start_iter, end):
            enough = len(seconds) >= count and time.perf_counter() - began > SECONDS
            if comm.get_world_size() > 1:
                enough = any(comm.all_gather(enough))
            if enough:
                break
            trainer.iter = trainer.storage.iter = iteration
            seed_all(trainer.data_loader.seed, iteration, comm.get_rank())
            start = time.perf_counter()
            trainer.run_step()
            if trainer.average is not None:
                trainer.average.update()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
            trainer.scheduler.step()
            latest = {
                name: value
                for name, (value, when) in trainer.storage.latest().items()
                if when == iteration
            }
            waiting.append(latest.get("data_time", 0.0))
            losses.append({name: x for name, x in latest.items() if "loss" in name})
    peak, reserved = peak_memory(device)
    if comm.get_world_size() > 1:
        peaks, all_reserved = zip(*comm.all_gather((peak, reserved)), strict=True)
        peak = max(peaks)
        reserved = None if reserved is None else max(all_reserved)
    return Steps(losses, seconds, waiting, peak, reserved)


def peak_memory(device: torch.device) -> tuple[int, int | None]:
    """Return the bytes at the peak so far, and those that PyTorch reserved on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, None


def seconds_of_inference(model: nn.Module, loader: Any) -> float:
    """Estimate the seconds in which a model sees all images of a test set, without metrics.

    Args:
        model: The model, on one device; its mode is kept.
        loader: Batches of this process, with a length.
    """
    times = []
    device = next(model.parameters()).device
    with inference_context(model), torch.no_grad(), prepared_for_inference(model):
        batches = iter(loader)
        start = time.perf_counter()
        for batch in itertools.islice(batches, TEST_IMAGES):
            progress.note(progress.EVALUATING)
            model(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
    measured = times[WARM_UP:] or times
    return len(loader) * sum(measured) / max(len(measured), 1)


def count_parameters(model: nn.Module) -> dict[str, Any]:
    """Count the parameters of a model: all, those that are trained, and all by part."""
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parts[part] = parts.get(part, 0) + parameter.numel()
    return {
        "total": sum(parts.values()),
        "trained": sum(x.numel() for x in model.parameters() if x.requires_grad),
        "parts": parts,
    }


def part_of(name: str) -> str:
    """Return the part of a model to which a parameter belongs, such as `roi_heads.mask_head`."""
    words = name.split(".")
    return ".".join(words[: 2 if words[0] == "roi_heads" and len(words) > 2 else 1])


def bytes_of(state: Any) -> int:
    """Return the bytes of all tensors in a nested state, as a checkpoint holds them."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(map(bytes_of, state.values()))
    if isinstance(state, Sequence) and not isinstance(state, str | bytes):
        return sum(map(bytes_of, state))
    return 0


def number_of_checkpoints(start: int, end: int, period: int) -> int:
    """Return how many checkpoints a training keeps: one in each period, and the last one."""
    return end // period - start // period + 1 if end > start else 0


def free_bytes(folder: str) -> int:
    """Return the free bytes of the disk on which a folder is or will be."""
    path = Path(folder).absolute()
    nearest = next(x for x in (path, *path.parents) if x.exists())
    return shutil.disk_usage(nearest).free


def learning_rates(
    optimizer: torch.optim.Optimizer, scheduler: Any, moments: Sequence[int]
) -> list[tuple[int, float]]:
    """Return the largest learning rate of the groups at some iterations.

    Args:
        optimizer: An optimizer without gradients, whose weights nobody needs.
        scheduler: Its scheduler, before the first step; afterwards at the last moment.
        moments: Iterations in ascending order.
    """
    rates = []
    optimizer.step()  # else torch warns of the order
    for moment in moments:
        if isinstance(scheduler, LRMultiplier) and moment > scheduler.last_epoch:
            scheduler.last_epoch = moment - 1  # its rates follow from the iteration alone
        while scheduler.last_epoch < moment:
            scheduler.step()
        rates.append((moment, max(group["lr"] for group in optimizer.param_groups)))
    return rates


def format_bytes(count: float) -> str:
    """Return a number of bytes in words: `340 MiB`."""
    power = 0 if count < 1 else min(int(math.log2(count) // 10), 4)
    number = count / 1024**power
    digits = 0 if number >= 10 or power == 0 else 1
    return f"{number:.{digits}f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def format_seconds(seconds: float) -> str:
    """Return a duration in words: `4 min 40 s`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 10:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    hours = minutes / 60
    if hours < 1:
        return f"{minutes} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def format_count(count: int) -> str:
    """Return a number of parameters in words: `44.4 M`."""
    if count < 1000:
        return str(count)
    return f"{count / 1e3:.1f} k" if count < 1e6 else f"{count / 1e6:.1f} M"
