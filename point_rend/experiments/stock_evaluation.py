"""Evaluation of one checkpoint with our heads and with those that Detectron2 ships.

Detectron2's semantic model takes no image sizes, so that its results also depend slightly on the
padding of the images.
"""

import argparse
import math
import os

from detectron2.config import CfgNode

from point_rend import stock_heads
from point_rend.config.defaults import STOCK_POINT_HEADS, value_of
from point_rend.config.tasks import model_outputs
from point_rend.engine.output_folder import output_errors
from point_rend.engine.run import load_evaluated_model
from point_rend.engine.setup import begin_run, setup, write_config
from point_rend.engine.trainer import Trainer
from point_rend.utils.errors import user_errors

# By data set, task and metric.
Results = dict[str, dict[str, dict[str, float]]]


def evaluate_both(args: argparse.Namespace) -> tuple[Results, Results]:
    """Evaluate a checkpoint with our heads, and then with the stock project's.

    Args:
        args: Parsed options of `pointrend train`, with --eval-only.

    Returns:
        Our results and the stock project's.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    with user_errors():
        job = setup(args)
        check_stock_config(job.cfg)
        begin_run(args, job.cfg)
        write_config(job.cfg, replace=False)
    ours = evaluate(args, job.cfg, "ours")
    with stock_heads():
        return ours, evaluate(args, job.cfg, "stock")


def check_stock_config(cfg: CfgNode) -> None:
    """Check that Detectron2's heads can hold the weights of a config's model.

    Raises:
        ValueError: If Detectron2 has no such point head, or if the coarse masks are class-agnostic,
            which its coarse head ignores.
    """
    for section in ("MODEL.POINT_HEAD", "MODEL.SEM_SEG_HEAD.POINT_HEAD"):
        name = value_of(cfg, f"{section}.NAME")
        if name and name not in STOCK_POINT_HEADS:
            raise ValueError(
                f"{section}.NAME is {name}: Detectron2 has no such point head, only "
                f"{' and '.join(STOCK_POINT_HEADS)}"
            )
    head, num_classes = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    instances = model_outputs(cfg) != {"sem_seg"} and head.NAME == "PointRendMaskHead"
    if instances and head.CLS_AGNOSTIC_MASK and num_classes > 1:
        raise ValueError(
            "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK is True: Detectron2's coarse head ignores this, "
            f"expects a mask for each of {num_classes} classes and cannot load the checkpoint"
        )


def evaluate(args: argparse.Namespace, cfg: CfgNode, heads: str) -> Results:
    """Evaluate with the heads that are registered at the moment.

    Args:
        args: Parsed options of `pointrend train`.
        cfg: Config of the checkpoint.
        heads: Name for the folder of the results, below OUTPUT_DIR.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, heads)
    cfg.freeze()
    with user_errors():
        model = Trainer.build_model(cfg)
        class_order = load_evaluated_model(args, cfg, model)
    with output_errors(cfg.OUTPUT_DIR):
        results = Trainer.test(cfg, model, class_order=class_order)
    return {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results


def compare_results(ours: Results, stock: Results) -> tuple[str, float]:
    """Compare two results metric by metric.

    Returns:
        A Markdown table, and the largest difference; infinite if a metric is NaN on one side only.
    """
    lines = [
        "| data set | task | metric | ours | stock | difference |",
        "|---|---|---|---|---|---|",
    ]
    largest = 0.0
    for dataset, tasks in ours.items():
        for task, metrics in tasks.items():
            for metric, value in metrics.items():
                other = stock[dataset][task][metric]
                both_undefined = math.isnan(value) and math.isnan(other)
                difference = 0.0 if both_undefined else value - other
                largest = max(largest, math.inf if math.isnan(difference) else abs(difference))
                numbers = f"{value:.3f} | {other:.3f} | {difference:+.3f}"
                lines.append(f"| {dataset} | {task} | {metric} | {numbers} |")
    return "\n".join(lines), largest
