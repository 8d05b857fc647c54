"""Command-line options of the commands that run a model."""

import argparse
import os

from detectron2.config import CfgNode

from point_rend.checkpoint.class_metadata import read_metadata
from point_rend.config.tasks import model_outputs
from point_rend.data.datasets import classes
from point_rend.engine import setup
from point_rend.inference.classes import named_count, read_classes


# Options
def build_parser(description: str) -> argparse.ArgumentParser:
    """Make a parser of the options with which every tool that runs a model is told which."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="instances of a lower score do not count (default 0.5)",
    )
    parser.add_argument(
        "--classes",
        help="names of the classes: a COCO file, a file with one name per line, or the names with "
        "commas between them; by default those of the checkpoint, or else of the data sets of the "
        "config, if registered",
    )
    parser.add_argument(
        "--allow-unsafe-checkpoint",
        action="store_true",
        help="load a checkpoint even if that runs code out of the file; only for files you trust",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys that overrule the file, as MODEL.WEIGHTS; these come last",
    )
    return parser


def read_config(args: argparse.Namespace) -> CfgNode:
    """Read the config and adapt it to the options of :func:`build_parser`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if something does not fit.
    """
    if not 0 <= args.confidence_threshold <= 1:
        raise ValueError(
            "--confidence-threshold: expected a number from 0 to 1, got "
            f"{args.confidence_threshold}"
        )
    cfg = setup.read_config(args)
    if not cfg.MODEL.WEIGHTS:
        expected = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
        raise ValueError(f"MODEL.WEIGHTS is empty: expected a checkpoint, such as {expected}")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = args.confidence_threshold
    outputs = model_outputs(cfg)
    if "instances" in outputs and not cfg.MODEL.MASK_ON:
        raise ValueError("MODEL.MASK_ON is False: expected a model that segments")
    fill_class_counts(cfg, args, outputs)
    cfg.freeze()
    return cfg


def fill_class_counts(cfg: CfgNode, args: argparse.Namespace, outputs: frozenset[str]) -> None:
    """Take counts that nobody gives over from --classes, or else from the checkpoint.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file cannot be read.
    """
    unsaid = [
        count
        for count in classes.CLASS_COUNTS
        if count.output in outputs and not classes.says(args.config_file, args.opts, count.key)
    ]
    numbers: dict[str, int] = {}
    if args.classes is not None:
        numbers[named_count(outputs).key] = len(read_classes(args.classes)[0])
    elif unsaid:
        told = read_metadata(cfg.MODEL.WEIGHTS, allow_unsafe=args.allow_unsafe_checkpoint)
        numbers = {x.key: len(told[x.names]) for x in unsaid if x.names in told}
    for count in unsaid:
        if count.key in numbers:
            cfg.merge_from_list([count.key, numbers[count.key]])
