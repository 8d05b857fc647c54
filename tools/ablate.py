#!/usr/bin/env python
"""The paper's ablations on any data set: Table 3, inference with more or fewer points and steps.

    python -m tools.ablate subdivision --output output/subdivision -- \
        --config-file output/demo/pointrend/config.yaml \
        --register-coco shapes_val output/demo/shapes/annotations/instances_val.json \
        output/demo/shapes/val MODEL.WEIGHTS output/demo/pointrend/model_final.pth

What stands behind `--` are options of train_net.py. Every cell of the table is one evaluation; its
figures are kept in a file of its own, so that an interrupted command goes on where it was. At the
end the table is written as Markdown and drawn.

Points that cover the whole grid of the last step are as good as any more: such cells share one
evaluation.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

import train_net
from point_rend.checkpoint import SafeDetectionCheckpointer
from point_rend.engine.processes import launch

SIDES = (28, 56, 112, 224)
POINT_SIDES = (14, 28, 56, 112)  # the numbers of points are their squares
HEAD = "PointRendMaskHead"

Figures = dict[str, float]


class Cell(NamedTuple):
    """One setting of the subdivision.

    Attributes:
        side: Of the rendered masks.
        points: That each step may recompute, at most ``side²``.
    """

    side: int
    points: int

    @classmethod
    def of(cls, side: int, points: int) -> "Cell":
        """Return the setting without points that no grid has cells for."""
        return cls(side, min(points, side**2))

    @property
    def name(self) -> str:
        """A name for files."""
        return f"side{self.side}_points{self.points}"


def steps_to(side: int, start_side: int) -> int:
    """Count the doublings from one side to another.

    Raises:
        ValueError: If no number of doublings leads there.
    """
    steps = int(math.log2(side // start_side)) if side >= start_side else -1
    if steps < 0 or start_side * 2**steps != side:
        raise ValueError(
            f"--sides: {side} is no power of two times {start_side} "
            "(MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION)"
        )
    return steps


def write_file(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file, complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    write(partial)
    partial.replace(file)


def read_cell(file: Path, options: Sequence[str]) -> Figures | None:
    """Read the figures of a finished cell; None if it is not finished.

    Args:
        file: Where they are kept.
        options: Of train_net.py, of this command.

    Raises:
        ValueError: If they have been measured with other options, or cannot be read.
    """
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if content["options"] != list(options):
        raise ValueError(
            f"{file} was measured with other options, {' '.join(content['options'])}: expected "
            "the same ones, or another --output"
        )
    return content["figures"]


def keep_cell(file: Path, options: Sequence[str], figures: Figures) -> None:
    """Write the figures of a finished cell, for :func:`read_cell`."""
    text = json.dumps({"options": list(options), "figures": figures}, indent=2)
    write_file(file, lambda partial: partial.write_text(text, encoding="utf-8"))


def evaluate_cells(
    args: argparse.Namespace,
    cfg: CfgNode,
    cells: Sequence[Cell],
    options: Sequence[str],
    output: Path,
) -> None:
    """Evaluate cells one after the other and keep the figures of each; all processes do this.

    Args:
        args: Options of train_net.py.
        cfg: The finished config, frozen.
        cells: The cells.
        options: The command line of ``args``.
        output: Folder of the cells.
    """
    train_net.register_datasets(args)
    default_setup(cfg, args)
    train_net.set_up_logger(cfg)
    for cell in cells:
        cell_cfg = cfg.clone()
        cell_cfg.defrost()
        start_side = cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION
        cell_cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS = steps_to(cell.side, start_side)
        cell_cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = cell.points
        cell_cfg.OUTPUT_DIR = str(output / cell.name)
        cell_cfg.freeze()
        with train_net.user_errors():
            model = train_net.Trainer.build_model(cell_cfg)
            checkpointer = SafeDetectionCheckpointer(
                model, allow_unsafe=args.allow_unsafe_checkpoint
            )
            checkpointer.load(cell_cfg.MODEL.WEIGHTS)
        results = train_net.Trainer.test(cell_cfg, model)
        if comm.is_main_process():
            keep_cell(output / f"{cell.name}.json", options, flatten_results_dict(results))


def subdivision(
    options: Sequence[str], output: Path, sides: Sequence[int], point_sides: Sequence[int]
) -> dict[Cell, Figures]:
    """Evaluate a model with all sides and numbers of points; what is finished is kept.

    Args:
        options: Of train_net.py.
        output: Folder for the figures.
        sides: Of the rendered masks.
        point_sides: Roots of the numbers of points.

    Returns:
        The figures of the cells, by task and metric (with several data sets also by data set).

    Raises:
        FileNotFoundError, ValueError: If options, config, machine or data do not fit together.
    """
    cells = list(dict.fromkeys(Cell.of(side, p**2) for side in sides for p in point_sides))
    args = train_net.build_parser().parse_args([*options, "OUTPUT_DIR", str(output)])
    args.eval_only = True
    if args.num_machines > 1:
        raise ValueError(f"--num-machines is {args.num_machines}: expected one machine")
    finished = {cell: read_cell(output / f"{cell.name}.json", options) for cell in cells}
    missing = [cell for cell in cells if finished[cell] is None]
    if missing:
        job = train_net.setup(args)
        head = job.cfg.MODEL.ROI_MASK_HEAD
        if "instances" not in train_net.model_outputs(job.cfg) or head.NAME != HEAD:
            raise ValueError(f"MODEL.ROI_MASK_HEAD.NAME is {head.NAME}: expected {HEAD}")
        for cell in missing:
            steps_to(cell.side, head.OUTPUT_SIDE_RESOLUTION)
        launch(
            evaluate_cells,
            (args, job.cfg, missing, list(options), output),
            device=job.cfg.MODEL.DEVICE,
            num_local=args.num_gpus,
        )
    measured = {cell: read_cell(output / f"{cell.name}.json", options) for cell in cells}
    return {cell: figures for cell, figures in measured.items() if figures is not None}


def metric_of(figures: Figures, metric: str) -> float:
    """Look up a metric.

    Raises:
        ValueError: If it was not measured.
    """
    if metric not in figures:
        raise ValueError(f"--metric {metric}: expected one of {', '.join(sorted(figures))}")
    return figures[metric]


def format_subdivision(
    results: Mapping[Cell, Figures], sides: Sequence[int], point_sides: Sequence[int], metric: str
) -> str:
    """Lay out a Markdown table, a line for each side and a column for each number of points."""
    header = " | ".join(f"{root}² points" for root in point_sides)
    lines = [f"| {metric} | {header} |", "|---|" + "---:|" * len(point_sides)]
    for side in sides:
        figures = [metric_of(results[Cell.of(side, root**2)], metric) for root in point_sides]
        lines.append(f"| {side}×{side} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    return "\n".join(lines)


def draw_subdivision(
    results: Mapping[Cell, Figures],
    sides: Sequence[int],
    point_sides: Sequence[int],
    metric: str,
    file: Path,
) -> None:
    """Draw a metric over the side, a line for each number of points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for root in point_sides:
        values = [metric_of(results[Cell.of(side, root**2)], metric) for side in sides]
        axes.plot(sides, values, marker="o", label=f"{root}² points")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sides, [f"{side}×{side}" for side in sides])
    axes.set_xlabel("output")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, format="png", dpi=120)


def _numbers(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}")
    return sorted({int(word) for word in words})


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 after an error that the user can put right.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    own, options = words, []
    if "--" in words:
        own, options = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(
        description="The paper's ablations.", epilog="-- and then the options of train_net.py"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    table_3 = commands.add_parser("subdivision", help="Table 3: sides and points at inference")
    table_3.add_argument("--output", type=Path, required=True, help="folder of the results")
    table_3.add_argument("--metric", default="segm/AP", help="shown (default %(default)s)")
    table_3.add_argument(
        "--sides", type=_numbers, default=SIDES, help="of the masks (default 28,56,112,224)"
    )
    table_3.add_argument(
        "--point-sides",
        type=_numbers,
        default=POINT_SIDES,
        help="roots of the numbers of points per step (default 14,28,56,112)",
    )
    args = parser.parse_args(own)
    if not options:
        parser.error("expected -- and options of train_net.py behind it")
    with train_net.user_errors():
        results = subdivision(options, args.output, args.sides, args.point_sides)
        table = format_subdivision(results, args.sides, args.point_sides, args.metric)
    print(f"\n{table}")
    write_file(args.output / "subdivision.md", lambda file: file.write_text(f"{table}\n"))
    write_file(
        args.output / "subdivision.png",
        lambda file: draw_subdivision(results, args.sides, args.point_sides, args.metric, file),
    )


if __name__ == "__main__":
    main()
