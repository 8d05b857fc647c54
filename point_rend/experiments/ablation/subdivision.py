"""Table 3 of the paper: inference with more or fewer points and steps (see tools/ablate.py).

Points that cover the whole grid of the last step are as good as any more: such cells share one
evaluation.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.config.tasks import model_outputs
from point_rend.engine.arguments import build_parser
from point_rend.engine.launch import launch
from point_rend.engine.setup import register_datasets, set_up_logger, setup
from point_rend.engine.trainer import Trainer
from point_rend.experiments.ablation.results import (
    Figures,
    Origin,
    draw_panels,
    keep_cell,
    metric_of,
    origin_of,
    read_cell,
)
from point_rend.utils import errors

SIDES = (28, 56, 112, 224)
POINT_SIDES = (14, 28, 56, 112)  # the numbers of points are their squares
HEAD = "PointRendMaskHead"


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


def evaluate_cells(
    args: argparse.Namespace,
    cfg: CfgNode,
    cells: Sequence[Cell],
    origin: Origin,
    output: Path,
) -> None:
    """Evaluate cells one after the other and keep the figures of each; all processes do this.

    Args:
        args: Options of train_net.py.
        cfg: The finished config, frozen.
        cells: The cells.
        origin: What their figures follow from.
        output: Folder of the cells.
    """
    register_datasets(args)
    default_setup(cfg, args)
    set_up_logger(cfg)
    for cell in cells:
        cell_cfg = cfg.clone()
        cell_cfg.defrost()
        start_side = cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION
        cell_cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS = steps_to(cell.side, start_side)
        cell_cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = cell.points
        cell_cfg.OUTPUT_DIR = str(output / cell.name)
        cell_cfg.freeze()
        with errors.user_errors():
            model = Trainer.build_model(cell_cfg)
            checkpointer = SafeDetectionCheckpointer(
                model, allow_unsafe=args.allow_unsafe_checkpoint
            )
            checkpointer.load(cell_cfg.MODEL.WEIGHTS)
        results = Trainer.test(cell_cfg, model)
        if comm.is_main_process():
            keep_cell(output / f"{cell.name}.json", origin, flatten_results_dict(results))


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
    args = build_parser().parse_args([*options, "OUTPUT_DIR", str(output)])
    args.eval_only = True
    if args.num_machines > 1:
        raise ValueError(f"--num-machines is {args.num_machines}: expected one machine")
    origin = origin_of(options, training=False)
    finished = {cell: read_cell(output / f"{cell.name}.json", origin) for cell in cells}
    missing = [cell for cell in cells if finished[cell] is None]
    if missing:
        job = setup(args)
        head = job.cfg.MODEL.ROI_MASK_HEAD
        if "instances" not in model_outputs(job.cfg) or head.NAME != HEAD:
            raise ValueError(f"MODEL.ROI_MASK_HEAD.NAME is {head.NAME}: expected {HEAD}")
        for cell in missing:
            steps_to(cell.side, head.OUTPUT_SIDE_RESOLUTION)
        launch(
            evaluate_cells,
            (args, job.cfg, missing, origin, output),
            device=job.cfg.MODEL.DEVICE,
            num_local=args.num_gpus,
        )
    measured = {cell: read_cell(output / f"{cell.name}.json", origin) for cell in cells}
    return {cell: figures for cell, figures in measured.items() if figures is not None}


def format_subdivision(
    results: Mapping[Cell, Figures],
    sides: Sequence[int],
    point_sides: Sequence[int],
    metrics: Sequence[str],
) -> str:
    """Lay out Markdown tables, a line for each side and a column for each number of points."""
    tables = []
    for metric in metrics:
        header = " | ".join(f"{root}² points" for root in point_sides)
        lines = [f"| {metric} | {header} |", "|---|" + "---:|" * len(point_sides)]
        for side in sides:
            values = [metric_of(results[Cell.of(side, root**2)], metric) for root in point_sides]
            lines.append(f"| {side}×{side} | {' | '.join(f'{value:.2f}' for value in values)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def draw_subdivision(
    results: Mapping[Cell, Figures],
    sides: Sequence[int],
    point_sides: Sequence[int],
    metrics: Sequence[str],
    file: Path,
) -> None:
    """Draw metrics over the side, a line for each number of points."""

    def draw(axes: Any, metric: str) -> None:
        for root in point_sides:
            values = [metric_of(results[Cell.of(side, root**2)], metric) for side in sides]
            axes.plot(sides, values, marker="o", label=f"{root}² points")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sides, [f"{side}×{side}" for side in sides])
        axes.set_xlabel("output")
        axes.legend()

    draw_panels(metrics, draw, file)
