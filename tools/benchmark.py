#!/usr/bin/env python
"""Time, peak memory and agreement of these heads and of Detectron2's own, side by side.

    python tools/benchmark.py masks --boxes 100 --classes 80     # some of the mask head's cases
    python tools/benchmark.py all --threads 2 --output output/benchmark

Both sides of a case have the same weights and the same inputs, from a seed, and run in turn in one
process: ours, rival, ours, rival, … after a warm-up. In each turn a side runs for as long as one
run of the slower side takes: otherwise the faster one would only ever be seen in the wake of the
other. A turn's time is the median of its runs, a side's the median of its turns. The ratio is the
median of the rounds' ratios: what else a machine does, both sides of a round see alike. The rival
is the PointRend project that Detectron2 ships ("stock"), or Detectron2's convolutional mask head.

Weights and inputs are random, but so that agreement means something: features are noise of all
scales, weights keep the size of what passes through them, so that masks and label maps have large
parts and fine boundaries (the share of neighbouring pixels that differ stands in the JSON file).
Agreement is the share of decided pixels (probability above 0.5, or best class) that differ, and the
largest difference of a probability. Of training steps it is the largest relative difference of a
loss, or of the norm of a parameter's gradient.

Memory is the peak of one run over what was held before it, so beyond features and weights. On a GPU
the caching allocator counts it. On a CPU it is that of the process, measured in a run of its own:
what the C allocator keeps of earlier runs is given back to the system (malloc_trim), the kernel's
high-water mark is reset (/proc/self/clear_refs) and read after the run (VmHWM). So it holds scratch
memory of libraries, too, which counting tensors would miss; a planted allocation is seen to within
a few pages. Where the system offers none of this, no memory is told.

A case that the stock project would need more memory for than there is (it holds masks for every
class) is not run with it, and one that it fails in is not measured; ours is all the same. On a GPU
the largest batch of images that a training step has memory for is searched, for both sides.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2
import torch
from torch import nn

from point_rend.visualize import check_output, written_whole

# So that the folder of tools can be imported from a script that lies in it.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from tools.benchmark_cases import (
    AMP_TYPES,
    POINTREND,
    Agreement,
    Case,
    Contest,
    Run,
    Settings,
    conv_cases,
    implicit_cases,
    instance_config,
    masks_cases,
    model_cases,
    semantic_cases,
)
from tools.benchmark_training import train_cases

CASES: dict[str, Callable[[Settings], list[Case]]] = {
    "masks": masks_cases,
    "implicit": implicit_cases,
    "conv": conv_cases,
    "semantic": semantic_cases,
    "model": model_cases,
    "train": train_cases,
}

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


# Report


def machine(device: str) -> dict[str, Any]:
    """Name what the figures depend on."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cuda = torch.device(device).type == "cuda"
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
    }


def _figure(value: float, unit: str) -> str:
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _time(side: Measurement) -> str:
    return _figure(side.median * 1e3, "ms")


def _memory(side: Measurement) -> str:
    return "–" if side.peak_bytes is None else _figure(side.peak_bytes / 2**20, "MiB")


def _ratio(theirs: Sequence[float | None], ours: Sequence[float | None]) -> str:
    """Write the median of the ratios of one round after the other."""
    ratios = [their / our for their, our in zip(theirs, ours, strict=True) if their and our]
    return f"{statistics.median(ratios):.1f}" if ratios else "–"


HEADINGS = (
    *("case", "rival", "time ours", "time rival", "rival / ours"),
    *("memory ours", "memory rival", "rival / ours", "pixels that differ", "largest difference"),
    *("head's share ours", "head's share rival"),
)


def table_row(record: Record) -> list[str]:
    """Return the cells of a record, as many as there are headings."""
    ours, theirs, agreement = record.ours, record.theirs, record.agreement
    cells = [record.name, record.rival, _time(ours)]
    if theirs is None:
        failure = (record.rival_failure or "–").replace("|", "/")  # one cell of a table
        cells += [failure, "–", _memory(ours), "–", "–"]
    else:
        cells += [_time(theirs), _ratio(theirs.seconds, ours.seconds)]
        cells += [_memory(ours), _memory(theirs), _ratio([theirs.peak_bytes], [ours.peak_bytes])]
    agreements = [agreement.differing, agreement.largest] if agreement else [None, None]
    cells += ["–" if value is None else f"{value:.1e}" for value in agreements]
    shares = [side.head_share if side else None for side in (ours, theirs)]
    return cells + ["–" if share is None else f"{share:.0%}" for share in shares]


def markdown(records: Sequence[Record], where: Mapping[str, Any], settings: Settings) -> str:
    """Set the records out as a table in Markdown, below a line that names the machine."""
    hardware = where["gpu"] or f"{where['cpu']}, {where['threads']} thread(s)"
    notes = [hardware, f"torch {where['torch']}", f"Detectron2 {where['detectron2']}"]
    notes += [f"medians of {settings.repeat} turns", f"seed {settings.seed}"]
    if settings.amp != "none":
        notes.append(f"autocast {settings.amp}")
    if settings.opts:
        notes.append(f"ours with {' '.join(settings.opts)}")
    rows = [list(HEADINGS), ["---"] * len(HEADINGS), *map(table_row, records)]
    lines = [", ".join(notes), "", *(f"| {' | '.join(row)} |" for row in rows)]
    for record in records:
        if record.largest_batches:
            ours, theirs = record.largest_batches
            lines += ["", f"{record.name}: {ours} images fit, with {record.rival} {theirs}."]
    return "\n".join(lines)


def as_json(records: Sequence[Record], where: Mapping[str, Any], settings: Settings) -> str:
    """Write everything that was measured as JSON; all times are there, and their medians."""
    entries = []
    for record in records:
        entry = dataclasses.asdict(record)
        for key in ("ours", "theirs"):
            side = getattr(record, key)
            if side is not None:
                entry[key]["median"] = side.median
        entries.append(entry)
    content = {"machine": where, "settings": dataclasses.asdict(settings), "records": entries}
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    """Replace what JSON has no number for, infinite or not a number, by None."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def save_plot(records: Sequence[Record], file: Path) -> None:
    """Draw times and peak memory of both sides, a pair of bars for each record."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.5 + 0.5 * len(records)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    quantities: list[tuple[str, Callable[[Measurement], float]]] = [
        ("time, ms", lambda side: side.median * 1e3),
        ("peak memory, MiB", lambda side: (side.peak_bytes or 0) / 2**20),
    ]
    for panel, (title, quantity) in zip(panels, quantities, strict=True):
        for label, offset, sides in (
            ("ours", -0.2, [record.ours for record in records]),
            ("rival", 0.2, [record.theirs for record in records]),
        ):
            values = [quantity(side) if side else 0 for side in sides]
            panel.barh([i + offset for i in range(len(sides))], values, height=0.4, label=label)
        if panel.dataLim.minposx < math.inf:  # a logarithmic axis needs a positive value
            panel.set_xscale("log")
        panel.set_xlabel(title)
        panel.grid(axis="x", alpha=0.3)
        panel.legend()
    panels[0].set_yticks(range(len(records)), [f"{x.name}, {x.rival}" for x in records])
    panels[0].invert_yaxis()
    figure.savefig(file, format="png", dpi=120)


def save_report(folder: Path, stem: str, records: Sequence[Record], text: str, data: str) -> None:
    """Write ``stem``.md, .json and .png into a folder, each complete or not at all."""
    for suffix, write in (
        ("md", lambda file: file.write_text(text + "\n", encoding="utf-8")),
        ("json", lambda file: file.write_text(data, encoding="utf-8")),
        ("png", lambda file: save_plot(records, file)),
    ):
        with written_whole(folder / f"{stem}.{suffix}") as unfinished:
            write(unfinished)


# Command line


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Measure these heads and Detectron2's own side by side."
    )
    kinds = [
        f"{name}: {make.__doc__.split('.')[0]}" for name, make in CASES.items() if make.__doc__
    ]
    parser.add_argument("cases", nargs="+", choices=[*CASES, "all"], help="; ".join(kinds))
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--threads", type=_positive, help="of the CPU; default: torch's own number")
    parser.add_argument("--repeat", type=_positive, default=5, help="timed turns of each side")
    parser.add_argument(
        "--boxes", type=_positive, nargs="+", default=[], help="instead of a case's own"
    )
    parser.add_argument("--classes", type=_positive, nargs="+", default=[], help="likewise")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")
    parser.add_argument("--amp", choices=AMP_TYPES, default="none", help="autocast, on both sides")
    parser.add_argument("--output", type=Path, help="folder for JSON, a plot and the table")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config of our side only"
    )
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    """Take the settings from the arguments; ValueError if this machine or a config refuses them."""
    try:
        kind = torch.device(args.device).type
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"--device {args.device}: expected cpu or cuda ({message})") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: torch finds no GPU here")
    settings = Settings(
        device=args.device,
        repeat=args.repeat,
        seed=args.seed,
        boxes=tuple(args.boxes),
        classes=tuple(args.classes),
        amp=args.amp,
        opts=tuple(args.opts),
    )
    instance_config(POINTREND, 1, settings.opts)
    return settings


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the command line.

    Args:
        argv: the arguments; those of the process if not given.

    Returns:
        What was measured.

    Raises:
        SystemExit: with code 2 after an error that the user can put right.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    names = list(CASES) if "all" in args.cases else list(dict.fromkeys(args.cases))
    records = []
    try:
        settings = _settings(args)
        cases = [case for name in names for case in CASES[name](settings)]
        if args.output:
            check_output(args.output, folder=True)
    except ValueError as error:
        parser.error(str(error))
    try:
        for case in cases:
            torch.manual_seed(settings.seed)
            try:
                contest = case.build(settings)
            except ValueError as error:
                parser.error(str(error))
            records.append(measure(case, contest, settings))
            del contest
            print(" | ".join(table_row(records[-1])), file=sys.stderr, flush=True)
    finally:
        if records:  # what was measured is told, whatever a later case ran into
            stem = "benchmark" if "all" in args.cases else "benchmark_" + "_".join(names)
            _report(records, settings, args.output, stem)
    return records


def _report(records: Sequence[Record], settings: Settings, folder: Path | None, stem: str) -> None:
    """Print the table and, if there is a folder, write the report into it."""
    where = machine(settings.device)
    table = markdown(records, where, settings)
    print(f"\n{table}")
    if folder:
        save_report(folder, stem, records, table, as_json(records, where, settings))


if __name__ == "__main__":
    main()
