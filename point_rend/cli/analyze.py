"""What the heads of a config cost: Table 2 of the paper for any config, instance or semantic.

    python tools/analyze.py \
        --config-file configs/InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml

FLOPs are multiply-adds, as in the paper and in fvcore: of convolutions, matrix products and linear
interpolation; normalization and other elementwise work is free. Activations are the outputs of
convolutions and matrix products. Mask heads are counted per box, with the classes of the config,
semantic heads per image; "at once" leaves all steps of PointRend out but the largest one.

PointRend is counted twice. "All layers at every point" is its definition, the whole point head with
all classes at each of the points; this is the figure to compare with the paper's. "As rendered" is
what this package executes for the same masks: one class per box, and layers that are applied to a
map before it is read, where that is less work. It therefore depends on the number of boxes, and
counts the parts of a layer's output as activations of their own. Tracing, by which fvcore counts,
would change it, so that operations are counted as they are executed, on tensors without content. No
box stops early.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from point_rend.experiments.costs import Cost, analyze
from point_rend.utils.files import check_output, write_text

UNITS = ((9, "G"), (6, "M"), (3, "k"))
COLUMNS = ("head", "output", "FLOPs", "activations", "at once", "parameters", "points")


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


def format_costs(costs: Sequence[Cost]) -> str:
    """Lay out a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    for cost in costs:
        figures = (cost.multiply_adds, cost.activations, cost.activations_at_once, cost.parameters)
        cells = [cost.head, "×".join(map(str, cost.output)), *map(with_unit, figures)]
        lines.append(f"| {' | '.join([*cells, str(cost.points or '–')])} |")
    return "\n".join(lines)


def format_report(report: Mapping[str, Any]) -> str:
    """Write what :func:`analyze` returns as Markdown."""
    height, width = report["image"]
    lines = [
        f"Image {height}×{width} in the model, {with_unit(report['parameters'])} parameters, "
        f"{report['points_per_image']} points evaluated per image"
        + (f" with {report['boxes']} boxes." if report["per_box"] else ".")
    ]
    for key, title in (("per_box", "Mask heads, per box"), ("per_image", "Semantic, per image")):
        if report[key]:
            lines += ["", f"{title}:", "", format_costs(report[key])]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 after an error that the user can put right.
    """
    parser = argparse.ArgumentParser(description="Count what the heads of a config cost.")
    parser.add_argument("--config-file", required=True, help="the config")
    parser.add_argument(
        "--image",
        nargs=2,
        type=int,
        default=(480, 640),
        metavar=("HEIGHT", "WIDTH"),
        help="size of an image before resizing (default %(default)s)",
    )
    parser.add_argument("--boxes", type=int, help="per image (default: TEST.DETECTIONS_PER_IMAGE)")
    parser.add_argument("--output", type=Path, help="also write the figures here, as JSON")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrules the config")
    args = parser.parse_args(argv)
    try:
        if args.output:
            check_output(args.output)
        report = analyze(args.config_file, args.opts, tuple(args.image), args.boxes)
        print(format_report(report))
        if args.output:
            tables = {key: list(map(asdict, report[key])) for key in ("per_box", "per_image")}
            write_text(args.output, json.dumps(report | tables, indent=2))
    except (ValueError, OSError) as error:
        parser.error(str(error))
