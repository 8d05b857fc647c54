"""Table 3 of the paper: inference with more or fewer points and subdivision steps.

Once the points cover the whole grid of the last step, more points change nothing: such settings
share one evaluation.

The maps of a semantic model always have the size of their image. Without any points they show what
the coarse head has learned, and with all pixels what the point head has learned.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from point_rend.config.defaults import semantic_point_head_section
from point_rend.config.tasks import model_outputs
from point_rend.engine.arguments import build_parser
from point_rend.engine.launch import launch
from point_rend.engine.output_folder import output_errors
from point_rend.engine.run import load_evaluated_model
from point_rend.engine.setup import (
    begin_run,
    read_config,
    register_datasets,
    setup,
    write_config,
)
from point_rend.engine.trainer import Trainer
from point_rend.experiments.ablation.results import (
    Metrics,
    Provenance,
    check_metrics,
    load_metrics,
    metric_of,
    provenance_of,
    save_metrics,
)
from point_rend.experiments.ablation.settings import ALL_PIXELS, as_options
from point_rend.experiments.plots import plot_panels
from point_rend.utils.errors import user_errors

MASK_HEAD, SEMANTIC_HEAD = "PointRendMaskHead", "PointRendSemSegHead"


class SubdivisionSetting(NamedTuple):
    """A setting of the subdivision at inference.

    Attributes:
        side: Side of the rendered masks; None for maps, which have the size of their image.
        points: Points per step, at most ``side²``. 0 leaves the bilinear coarse logits of maps.
    """

    side: int | None
    points: int

    @classmethod
    def of(cls, side: int, points: int) -> "SubdivisionSetting":
        """Return the setting of masks without the points that exceed the grid."""
        return cls(side, min(points, side**2))

    @property
    def name(self) -> str:
        """Name of its files."""
        return ("" if self.side is None else f"side{self.side}_") + f"points{self.points}"


def subdivision_ablation(
    options: Sequence[str],
    output: Path,
    settings: Sequence[SubdivisionSetting],
    *,
    metrics: Sequence[str] = (),
) -> dict[SubdivisionSetting, Metrics]:
    """Evaluate a model with all settings, except for the finished ones.

    Args:
        options: Options of `pointrend train`.
        output: Folder for the metrics.
        settings: Settings, all of masks or all of maps; repeated ones are evaluated once.
        metrics: Names of metrics that the evaluation has to give.

    Returns:
        The metrics of the settings, by task and metric (with several data sets also by data set).

    Raises:
        FileNotFoundError, ValueError: If options, config, machine or data do not fit together, or
            the model has no such subdivision.
    """
    files = {setting: output / f"{setting.name}.json" for setting in settings}
    args = build_parser().parse_args([*options, "OUTPUT_DIR", str(output)])
    args.eval_only = True
    if args.num_machines > 1:
        raise ValueError(f"--num-machines is {args.num_machines}: expected one machine")
    provenance = provenance_of(options, training=False)
    missing = [x for x in files if load_metrics(files[x], provenance) is None]
    if missing:
        job = setup(args)
        check_metrics(job.cfg, metrics)
        for setting in missing:
            subdivision_values(job.cfg, setting)
        launch(
            evaluate_settings,
            (args, job.cfg, missing, provenance, output),
            device=job.cfg.MODEL.DEVICE,
            num_local=args.num_gpus,
        )
    measured = {setting: load_metrics(files[setting], provenance) for setting in files}
    return {setting: metrics for setting, metrics in measured.items() if metrics is not None}


def renders_maps(options: Sequence[str]) -> bool:
    """Return whether a model renders the maps of semantic segmentation and no masks.

    Args:
        options: Options of `pointrend train`.

    Raises:
        FileNotFoundError, ValueError: If there is no such config, or the model renders neither.
    """
    cfg = read_config(build_parser().parse_args(options))
    outputs, head = model_outputs(cfg), cfg.MODEL.ROI_MASK_HEAD
    if "instances" in outputs and cfg.MODEL.MASK_ON and head.NAME == MASK_HEAD:
        return False
    if "sem_seg" in outputs and cfg.MODEL.SEM_SEG_HEAD.NAME == SEMANTIC_HEAD:
        return True
    raise ValueError(
        f"MODEL.ROI_MASK_HEAD.NAME is {head.NAME}: expected {MASK_HEAD}, or a model with "
        f"MODEL.SEM_SEG_HEAD.NAME {SEMANTIC_HEAD}"
    )


def subdivision_values(cfg: CfgNode, setting: SubdivisionSetting) -> dict[str, int]:
    """Return the values of the config, by dotted key, that make a model render with a setting.

    Raises:
        ValueError: If no number of doublings leads to the side.
    """
    if setting.side is None:
        section = semantic_point_head_section(cfg)
        return {f"{section}.SUBDIVISION_NUM_POINTS": max(setting.points, 1)}
    steps = steps_to(setting.side, cfg.MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION)
    return {
        "MODEL.POINT_HEAD.SUBDIVISION_STEPS": steps,
        "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": setting.points,
    }


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
        own_cfg.merge_from_list(as_options(subdivision_values(cfg, setting)))
        own_cfg.OUTPUT_DIR = str(output / setting.name)
        own_cfg.freeze()
        with user_errors():
            model = Trainer.build_model(own_cfg)
            class_order = load_evaluated_model(args, own_cfg, model)
        if setting.points == 0:
            model.sem_seg_head.points_per_step = 0  # no config has a head without points
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


def format_map_points(results: Mapping[SubdivisionSetting, Metrics], metrics: Sequence[str]) -> str:
    """Lay out a Markdown table of maps, a line for each number of points."""
    lines = [f"| points per step | {' | '.join(metrics)} |", "|---|" + "---:|" * len(metrics)]
    for setting, measured in results.items():
        values = [f"{metric_of(measured, metric):.2f}" for metric in metrics]
        lines.append(f"| {' | '.join([points_title(setting.points), *values])} |")
    return "\n".join(lines)


def points_title(points: int) -> str:
    """Return the title of a number of points in a map."""
    return {0: "none: coarse logits", ALL_PIXELS: "all pixels"}.get(points, str(points))


def plot_map_points(
    results: Mapping[SubdivisionSetting, Metrics], metrics: Sequence[str], file: Path
) -> None:
    """Plot metrics of maps over the number of points."""
    titles = [points_title(setting.points).replace(": ", "\n") for setting in results]

    def plot(axes: Any, metric: str) -> None:
        values = [metric_of(measured, metric) for measured in results.values()]
        axes.plot(range(len(values)), values, marker="o")
        axes.set_xticks(range(len(values)), titles)
        axes.set_xlabel("points per step")

    plot_panels(metrics, plot, file)
