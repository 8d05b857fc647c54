"""Costs of heads as Markdown tables and as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from point_rend.experiments.costs import Cost
from point_rend.experiments.part_costs import Part

UNITS = ((9, "G"), (6, "M"), (3, "k"))
COLUMNS = ("head", "output", "FLOPs", "activations", "at once", "parameters", "points")


def format_markdown(report: Mapping[str, Any]) -> str:
    """Write a report of :func:`point_rend.experiments.costs.analyze` as Markdown."""
    height, width = report["image"]
    lines = [
        f"Image {height}×{width} in the model, {with_unit(report['parameters'])} parameters, "
        f"{report['points_per_image']} points evaluated per image"
        + (f" with {report['boxes']} boxes." if report["per_box"] else ".")
    ]
    lines += ["", "Parts of the model, per image:", "", format_parts(report["parts"])]
    for key, title in (("per_box", "Mask heads, per box"), ("per_image", "Semantic, per image")):
        if report[key]:
            lines += ["", f"{title}:", "", format_costs(report[key])]
    return "\n".join(lines)


def format_json(report: Mapping[str, Any]) -> str:
    """Write a report of :func:`point_rend.experiments.costs.analyze` as JSON."""
    tables = {key: list(map(asdict, report[key])) for key in ("parts", "per_box", "per_image")}
    return json.dumps({**report, **tables}, indent=2)


def format_parts(parts: Sequence[Part]) -> str:
    """Lay out a Markdown table of the parts of a model, with their sum."""

    def numbers(part: Part) -> tuple[int, int, int]:
        return part.multiply_adds, part.activations, part.parameters

    lines = ["| part | FLOPs | activations | parameters |", "|---|" + "---:|" * 3]
    total = Part("all", *(sum(column) for column in zip(*map(numbers, parts), strict=True)))
    for part in [*parts, total]:
        lines.append(f"| {' | '.join([part.part, *map(with_unit, numbers(part))])} |")
    return "\n".join(lines)


def format_costs(costs: Sequence[Cost]) -> str:
    """Lay out a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    for cost in costs:
        numbers = (cost.multiply_adds, cost.activations, cost.activations_at_once, cost.parameters)
        cells = [cost.head, "×".join(map(str, cost.output)), *map(with_unit, numbers)]
        lines.append(f"| {' | '.join([*cells, str(cost.points or '–')])} |")
    return "\n".join(lines)


def with_unit(number: int | None) -> str:
    """Write a number with three digits and a unit of thousands: 923400000 is 923 M."""
    if number is None:
        return "–"
    size, unit = next(
        ((10**digits, unit) for digits, unit in UNITS if number >= 10**digits), (1, "")
    )
    scaled = number / size
    decimals = 0 if size == 1 else max(0, 2 - int(math.log10(scaled)))
    return f"{scaled:.{decimals}f} {unit}".rstrip()
