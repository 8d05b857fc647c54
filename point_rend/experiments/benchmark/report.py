"""Benchmark results as table, JSON and plot."""

import dataclasses
import json
import math
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch

from point_rend.experiments.benchmark.case import Settings
from point_rend.experiments.benchmark.measuring import Measurement, Record
from point_rend.utils.files import atomic_file, write_text


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
    with atomic_file(file) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)


def save_report(folder: Path, stem: str, records: Sequence[Record], text: str, data: str) -> None:
    """Write ``stem``.md, .json and .png into a folder, each complete or not at all."""
    write_text(folder / f"{stem}.md", text + "\n")
    write_text(folder / f"{stem}.json", data)
    save_plot(records, folder / f"{stem}.png")
