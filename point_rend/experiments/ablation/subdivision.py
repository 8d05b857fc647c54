"""Table 3 of the paper: inference with more or fewer points and subdivision steps.

Once the points cover the whole grid of the last step, more points change nothing: such settings
share one evaluation.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from point_rend.config.tasks import model_outputs
from point_rend.engine.arguments import build_parser
from point_rend.engine.launch import launch
from point_rend.engine.output_folder import output_errors
from point_rend.engine.run import load_evaluated_model
from point_rend.engine.setup import begin_run, register_datasets, setup, write_config
from point_rend.engine.trainer import Trainer
from point_rend.experiments.ablation.results import (
    Metrics,
    Provenance,
    load_metrics,
    metric_of,
    provenance_of,
    save_metrics,
)
from point_rend.experiments.plots import plot_panels
from point_rend.utils.errors import user_errors

MASK_HEAD = "PointRendMaskHead"


class SubdivisionSetting(NamedTuple):
    """A setting of the subdivision at inference.

    Attributes:
        side: Side of the rendered masks.
        points: Points per step, at most ``side²``.
    """

    side: int
    points: int

    @classmethod
    def of(cls, side: int, points: int) -> "SubdivisionSetting":
        """Return the setting without the points that exceed the grid."""
        return cls(side, min(points, side**2))

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"side{self.side}_points{self.points}"


def subdivision_ablation(
    options: Sequence[str], output: Path, sides: Sequence[int], point_sides: Sequence[int]
) -> dict[SubdivisionSetting, Metrics]:
    """Evaluate a model with all sides and numbers of points, except for the finished settings.

    Args:
        options: Options of `pointrend train`.
        output: Folder for the metrics.
        sides: Sides of the rendered masks.
        point_sides: Square roots of the points per step.

    Returns:
        The metrics of the settings, by task and metric (with several data sets also by data set).

    Raises:
        FileNotFoundError, ValueError: If options, config, machine or data do not fit together.
    """
    settings = list(
        dict.fromkeys(SubdivisionSetting.of(side, p**2) for side in sides for p in point_sides)
    )
    files = {setting: output / f"{setting.name}.json" for setting in settings}
    args = build_parser().parse_args([*options, "OUTPUT_DIR", str(output)])
    args.eval_only = True
    if args.num_machines > 1:
        raise ValueError(f"--num-machines is {args.num_machines}: expected one machine")
    provenance = provenance_of(options, training=False)
    missing = [x for x in settings if load_metrics(files[x], provenance) is None]
    if missing:
        job = setup(args)
        head = job.cfg.MODEL.ROI_MASK_HEAD
        if "instances" not in model_outputs(job.cfg) or head.NAME != MASK_HEAD:
            raise ValueError(f"MODEL.ROI_MASK_HEAD.NAME is {head.NAME}: expected {MASK_HEAD}")
        for setting in missing:
            steps_to(setting.side, head.OUTPUT_SIDE_RESOLUTION)
        launch(
            evaluate_settings,
            (args, job.cfg, missing, provenance, output),
            device=job.cfg.MODEL.DEVICE,
            num_local=args.num_gpus,
        )
    measured = {setting: load_metrics(files[setting], provenance) for setting in settings}
    return {setting: metrics for setting, metrics in measured.items() if metrics is not None}


def steps_to(side: int, start_side: int) -> int:
    """Return the number of doublings from one side to another.

    Raises:
        ValueError: If no number of doublings leads there.
    """
    steps = int(math.log2(side // start_side)) if side >= start_side else -1
    if steps < 0 or start_side * 2**steps != side:
        raise ValueError(
            f"--sides: {side} is not {start_side} (MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION) "
            "times a power of two"
        )
    return steps


def evaluate_settings(
    args: argparse.Namespace,
    cfg: CfgNode,
    settings: Sequence[SubdivisionSetting],
    provenance: Provenance,
    output: Path,
) -> None:
    """Evaluate settings one after the other and save the metrics of each; all processes do this.

    Args:
        args: Parsed options of `pointrend train`.
        cfg: The final config, frozen.
        settings: The settings.
        provenance: Provenance of their metrics.
        output: Folder of their files.
    """
    register_datasets(args)
    with user_errors():
        begin_run(args, cfg)
        write_config(cfg, replace=False)
    for setting in settings:
        own_cfg = cfg.clone()
        own_cfg.defrost()
        start_side = cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION
        own_cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS = steps_to(setting.side, start_side)
        own_cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS = setting.points
        own_cfg.OUTPUT_DIR = str(output / setting.name)
        own_cfg.freeze()
        with user_errors():
            model = Trainer.build_model(own_cfg)
            class_order = load_evaluated_model(args, own_cfg, model)
        with output_errors(str(output)):
            results = Trainer.test(own_cfg, model, class_order=class_order)
            if comm.is_main_process():
                metrics = flatten_results_dict(results)
                save_metrics(output / f"{setting.name}.json", provenance, metrics)


def format_subdivision(
    results: Mapping[SubdivisionSetting, Metrics],
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
            settings = [SubdivisionSetting.of(side, root**2) for root in point_sides]
            values = [f"{metric_of(results[setting], metric):.2f}" for setting in settings]
            lines.append(f"| {side}×{side} | {' | '.join(values)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def plot_subdivision(
    results: Mapping[SubdivisionSetting, Metrics],
    sides: Sequence[int],
    point_sides: Sequence[int],
    metrics: Sequence[str],
    file: Path,
) -> None:
    """Plot metrics over the side, a line for each number of points."""

    def plot(axes: Any, metric: str) -> None:
        for root in point_sides:
            settings = [SubdivisionSetting.of(side, root**2) for side in sides]
            values = [metric_of(results[setting], metric) for setting in settings]
            axes.plot(sides, values, marker="o", label=f"{root}² points")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sides, [f"{side}×{side}" for side in sides])
        axes.set_xlabel("output")
        axes.legend()

    plot_panels(metrics, plot, file)
