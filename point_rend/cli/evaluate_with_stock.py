"""Evaluate one checkpoint through our heads and through those that Detectron2 ships.

    python tools/evaluate_with_stock.py --config-file output/my_run/config.yaml \
        --register-coco NAME JSON IMAGE_ROOT MODEL.WEIGHTS output/my_run/model_final.pth

takes the options of train_net.py, evaluates on DATASETS.TEST and prints what both reach, and the
differences. Detectron2's own project knows no class count but an explicit one, so it is given one,
and no image sizes, so that its semantic results also depend a little on the padding of images.
"""

import argparse
import math
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.engine import default_setup

from point_rend import stock_heads
from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.config.tasks import model_outputs
from point_rend.engine.arguments import build_parser
from point_rend.engine.setup import setup
from point_rend.engine.trainer import Trainer
from point_rend.utils import errors

STOCK = "stock"
# By data set, task and metric.
Results = dict[str, dict[str, dict[str, float]]]


def check_stock_config(cfg: CfgNode) -> None:
    """Check that Detectron2's heads can hold the weights of a config's model.

    Raises:
        ValueError: If the coarse masks are class-agnostic, which Detectron2's coarse head ignores.
    """
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
        args: The parsed command line.
        cfg: The config of the checkpoint.
        heads: Name for the folder of the results, below OUTPUT_DIR.

    Returns:
        The results.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, heads)
    semantic = model_outputs(cfg) == {"sem_seg"}
    user = cfg.MODEL.SEM_SEG_HEAD if semantic else cfg.MODEL.ROI_HEADS
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = user.NUM_CLASSES
    if heads == STOCK and semantic:
        cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.freeze()
    with errors.user_errors():
        model = Trainer.build_model(cfg)
        checkpointer = SafeDetectionCheckpointer(model, allow_unsafe=args.allow_unsafe_checkpoint)
        checkpointer.load(cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    return {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results


def compare(ours: Results, stock: Results) -> tuple[str, float]:
    """Set two results side by side.

    Returns:
        A table in Markdown, and the largest difference.
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


def main(argv: Sequence[str] | None = None) -> float:
    """Run the command line.

    Args:
        argv: The arguments; those of the process if not given.

    Returns:
        The largest difference of any metric.

    Raises:
        SystemExit: With code 2 after an error that the user can put right.
    """
    args = build_parser().parse_args(argv)
    args.eval_only = True
    with errors.user_errors():
        job = setup(args)
        check_stock_config(job.cfg)
    default_setup(job.cfg, args)
    ours = evaluate(args, job.cfg, "ours")
    with stock_heads():
        stock = evaluate(args, job.cfg, STOCK)
    table, largest = compare(ours, stock)
    print(f"\n{table}\n\nlargest difference: {largest:.6f}")
    return largest
