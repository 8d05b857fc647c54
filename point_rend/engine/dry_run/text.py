"""The findings of a dry run as lines of text."""

from collections.abc import Mapping
from typing import Any

from point_rend.engine.dry_run.measuring import format_bytes, format_count, format_seconds

LABEL = 10  # width of the first column
MOST_PARTS = 3  # of a list


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """Return the findings as text, as :func:`check_training` collects them."""
    rows = {
        "weights": _weights(found["weights"]),
        "model": _model(found["parameters"]),
        "data": _data(found["data"]),
        "length": _length(found["length"]),
        "rate": _rates(found["learning_rate"]),
    }
    if found["losses"]:
        rows["losses"] = _losses(found["losses"], found["length"]["start"])
    if found["memory"]:
        rows["memory"] = _memory(found["memory"])
    if found["time"]:
        rows["time"] = _time(found["time"])
    rows["disk"] = _disk(found["disk"])
    if found["picture"]:
        rows["picture"] = found["picture"]
    return [f"{label:{LABEL}}{text}" for label, text in rows.items()]


def _weights(weights: Mapping[str, Any]) -> str:
    if not weights["source"]:
        return "random: MODEL.WEIGHTS is empty"
    text = f"{weights['source']}: {weights['loaded']} of {weights['total']} tensors"
    for words, names in (("from scratch", weights["initial"]), ("unused", weights["unused"])):
        if names:
            text += f"; {words}: {_few(names)}"
    return text


def _few(counts: Mapping[str, int]) -> str:
    largest = sorted(counts, key=lambda name: -counts[name])
    text = ", ".join(f"{name} ({counts[name]})" for name in largest[:MOST_PARTS])
    more = len(largest) - MOST_PARTS
    return text + (f" and {more} more parts" if more > 0 else "")


def _model(parameters: Mapping[str, Any]) -> str:
    parts = " · ".join(f"{name} {format_count(x)}" for name, x in parameters["parts"].items())
    return (
        f"{format_count(parameters['total'])} parameters, {format_count(parameters['trained'])} "
        f"of them trained: {parts}"
    )


def _data(data: Mapping[str, Any]) -> str:
    images = "" if data["images"] is None else f", {data['images']} images"
    factors = [f"{data['images_per_process']} per process"]
    if data["processes"] > 1:
        factors.append(f"{data['processes']} processes")
    if data["accumulation_steps"] > 1:
        factors.append(f"{data['accumulation_steps']} batches accumulated")
    return (
        f"{', '.join(data['sets'])}{images}; {' × '.join(factors)} = "
        f"{data['images_per_iteration']} images an iteration"
    )


def _length(length: Mapping[str, Any]) -> str:
    text = f"{length['iterations']} iterations"
    if length["epochs"] is not None:
        text += f", {length['epochs']:.1f} epochs"
    left = length["iterations"] - length["start"]
    if not length["start"]:
        return text
    return f"{text}; it goes on after {length['start']}, {max(left, 0)} are left"


def _rates(rates: Mapping[str, Any]) -> str:
    moments = " · ".join(f"{x['iteration']}: {x['rate']:.3g}" for x in rates["moments"])
    return f"{rates['schedule']}, at iteration {moments}"


def _losses(losses: list[dict[str, float]], start: int) -> str:
    first, last = losses[0], losses[-1]
    parts = ", ".join(f"{k} {v:.3g}" for k, v in first.items() if k != "total_loss")
    text = f"{first.get('total_loss', sum(first.values())):.3g} in iteration {start} ({parts})"
    if len(losses) > 1:
        text += f"; {last.get('total_loss', sum(last.values())):.3g} in {start + len(losses) - 1}"
    return text


def _memory(memory: Mapping[str, Any]) -> str:
    peak = format_bytes(memory["peak_bytes"])
    if memory["reserved_bytes"] is None:
        return f"{peak} of a process at the peak of these steps, without those that read data"
    return (
        f"{peak} on the GPU at the peak of these steps, {format_bytes(memory['reserved_bytes'])} "
        f"with PyTorch's cache, of {format_bytes(memory['device_bytes'])}; larger images need more"
    )


def _time(time: Mapping[str, Any]) -> str:
    text = (
        f"about {format_seconds(time['total_seconds'])}: {format_seconds(time['step_seconds'])} an "
        f"iteration, {format_seconds(time['waiting_seconds'])} of it waiting for data"
    )
    if time["evaluations"]:
        text += (
            f"; {time['evaluations']} evaluation{'s' if time['evaluations'] > 1 else ''} of "
            f"{format_seconds(time['evaluation_seconds'])} without metrics and validation losses"
        )
    return f"{text} (estimated from {time['steps']} iterations)"


def _disk(disk: Mapping[str, Any]) -> str:
    return (
        f"checkpoints: {disk['checkpoints']} of {format_bytes(disk['checkpoint_bytes'])} = "
        f"{format_bytes(disk['needed_bytes'])}; {format_bytes(disk['free_bytes'])} are free"
    )
