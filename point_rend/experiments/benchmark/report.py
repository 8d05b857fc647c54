"""Benchmark results as a Markdown table, JSON and a plot.

Keys of the JSON file are stable: ``rival`` and ``theirs`` stand for the baseline there.
"""

import dataclasses
import json
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch

from point_rend.experiments.benchmark.measuring import Measurement, Record
from point_rend.experiments.benchmark.settings import Settings
from point_rend.experiments.plots import plot_panels
from point_rend.utils.files import write_text
from point_rend.utils.waiting import describe_wait

HEADINGS = (
    *("case", "baseline", "time ours", "time baseline", "baseline / ours"),
    *("memory ours", "memory baseline", "baseline / ours"),
    *("pixels that differ", "largest difference"),
    *("head's share ours", "head's share baseline"),
)


def describe_machine(device: str) -> dict[str, Any]:
    """Name the hardware and software on which the measurements depend."""
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
        "wait": describe_wait(),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
    }


def format_markdown(
    records: Sequence[Record], machine: Mapping[str, Any], settings: Settings
) -> str:
    """Lay out the records as a Markdown table, below a line that names the machine."""
    hardware = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} thread(s)"
    notes = [
        hardware,
        machine["wait"],
        f"torch {machine['torch']}",
        f"Detectron2 {machine['detectron2']}",
    ]
    rounds = f"medians of {settings.repeat} rounds"
    if settings.repeat > 1:
        rounds += " (the smallest and the largest ratio)"
    notes += [rounds, f"seed {settings.seed}"]
    if settings.busy_processes:
        notes.append(f"alongside {settings.busy_processes} busy process(es)")
    if settings.amp != "none":
        notes.append(f"autocast {settings.amp}")
    if settings.opts:
        notes.append(f"ours with {' '.join(settings.opts)}")
    rows = [list(HEADINGS), ["---"] * len(HEADINGS), *map(table_row, records)]
    lines = [", ".join(notes), "", *(f"| {' | '.join(row)} |" for row in rows)]
    for record in records:
        if record.largest_batches:
            ours, baseline = record.largest_batches
            lines += [
                "",
                f"{record.name}: {ours} images fit, with {record.baseline_name} {baseline}.",
            ]
    return "\n".join(lines)


def table_row(record: Record) -> list[str]:
    """Return the cells of a record, one for each heading."""
    ours, baseline, agreement = record.ours, record.baseline, record.agreement
    cells = [record.name, record.baseline_name, _time(ours)]
    if baseline is None:
        failure = (record.baseline_failure or "–").replace("|", "/")  # one cell of a table
        cells += [failure, "–", _memory(ours), "–", "–"]
    else:
        cells += [_time(baseline), _ratio(baseline.seconds, ours.seconds)]
        cells += [_memory(ours), _memory(baseline)]
        cells += [_ratio([baseline.peak_bytes], [ours.peak_bytes])]
    agreements = [agreement.differing, agreement.largest] if agreement else [None, None]
    cells += ["–" if value is None else f"{value:.1e}" for value in agreements]
    shares = [side.head_share if side else None for side in (ours, baseline)]
    return cells + ["–" if share is None else f"{share:.0%}" for share in shares]


def _time(side: Measurement) -> str:
    return _with_unit(side.median * 1e3, "ms")


def _memory(side: Measurement) -> str:
    return "–" if side.peak_bytes is None else _with_unit(side.peak_bytes / 2**20, "MiB")


def _with_unit(value: float, unit: str) -> str:
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _ratio(baseline: Sequence[float | None], ours: Sequence[float | None]) -> str:
    """Write the median of the ratios of all rounds and, of several, the smallest and largest."""
    ratios = _ratios(baseline, ours)
    if not ratios:
        return "–"
    spread = f" ({min(ratios):.1f}–{max(ratios):.1f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.1f}{spread}"


def _ratios(baseline: Sequence[float | None], ours: Sequence[float | None]) -> list[float]:
    return [b / a for b, a in zip(baseline, ours, strict=True) if b and a]


def format_json(records: Sequence[Record], machine: Mapping[str, Any], settings: Settings) -> str:
    """Write all measurements as JSON: every time, the medians, the machine and the settings."""
    content = {
        "machine": machine,
        "settings": dataclasses.asdict(settings),
        "records": [_json_record(record) for record in records],
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json_record(record: Record) -> dict[str, Any]:
    def side(measurement: Measurement | None) -> dict[str, Any] | None:
        if measurement is None:
            return None
        return {**dataclasses.asdict(measurement), "median": measurement.median}

    return {
        "name": record.name,
        "parameters": dict(record.parameters),
        "rival": record.baseline_name,
        "ours": side(record.ours),
        "theirs": side(record.baseline),
        "rival_bytes_estimated": record.baseline_bytes_estimated,
        "agreement": record.agreement and dataclasses.asdict(record.agreement),
        "largest_batches": record.largest_batches,
        "rival_failure": record.baseline_failure,
    }


def _finite(content: Any) -> Any:
    """Replace infinite numbers and NaN, which JSON cannot express, by None."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def save_plot(records: Sequence[Record], file: Path) -> None:
    """Plot how many times as fast as the baseline each case is, and the memory of both sides.

    A bar of errors reaches from the smallest ratio of a round to the largest. The memory of a
    baseline that does not fit is the estimated one.
    """
    from matplotlib.ticker import LogLocator

    speed, memory = "time of the baseline / ours", "peak memory, MiB"
    if not all(record.baseline for record in records):
        memory += " (hatched: estimated)"
    rows = range(len(records))

    def plot_speed(axes: Any) -> None:
        axes.axvline(1, color="gray", linewidth=1)
        for row, record in enumerate(records):
            if record.baseline is None:
                axes.annotate("no baseline", (1, row), va="center", bbox={"fc": "w", "ec": "none"})
            elif ratios := _ratios(record.baseline.seconds, record.ours.seconds):
                median = statistics.median(ratios)
                errors = [[median - min(ratios)], [max(ratios) - median]]
                axes.errorbar(median, row, xerr=errors, fmt="o", capsize=4, color="C0")

    def plot_memory(axes: Any) -> None:
        sizes = [[_baseline_bytes(x) for x in records], [x.ours.peak_bytes for x in records]]
        bars = zip(("baseline", "ours"), (0.2, -0.2), ("C1", "C0"), sizes, strict=True)
        for label, offset, color, values in bars:
            mebibytes = [(value or 0) / 2**20 for value in values]
            places = [row + offset for row in rows]
            drawn = axes.barh(places, mebibytes, height=0.4, color=color, label=label)
            for bar, record in zip(drawn, records, strict=True):
                if label == "baseline" and record.baseline is None:
                    bar.set(hatch="///", alpha=0.5)
        axes.legend(loc="lower right")

    def plot(axes: Any, title: str) -> None:
        (plot_speed if title == speed else plot_memory)(axes)
        if axes.dataLim.minposx < math.inf:  # a logarithmic axis needs a positive value
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if title == speed else (1,)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.set_yticks(rows, [f"{x.name}, {x.baseline_name}" for x in records])

    height = 1.5 + 0.5 * len(records)
    plot_panels((speed, memory), plot, file, width=7, height=height, values="x")


def _baseline_bytes(record: Record) -> int | None:
    return record.baseline.peak_bytes if record.baseline else record.baseline_bytes_estimated


def save_report(folder: Path, stem: str, records: Sequence[Record], text: str, data: str) -> None:
    """Write ``stem``.md, .json and .png into a folder, each complete or not at all."""
    write_text(folder / f"{stem}.md", text + "\n")
    write_text(folder / f"{stem}.json", data)
    save_plot(records, folder / f"{stem}.png")
