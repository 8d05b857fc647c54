"""`pointrend demo-semantic`: the demo for semantic segmentation, on drawn street scenes.

It runs on the GPU, if there is one, or on the CPU, in minutes.

The scenes have the layout of Cityscapes, and the Cityscapes scripts compute the mIoU after the
training. Every step is a command that a user could type; it is printed before it runs. The last
step evaluates the trained model three times (its coarse logits upsampled with nearest and with
bilinear interpolation, and rendered by PointRend) and draws the three label maps between the input
and the ground truth.

Existing results are kept: an interrupted training continues from its last checkpoint, and a
finished one is only evaluated again. To start afresh, delete the folder.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from point_rend.experiments.demo import steps

CONFIG = "Demo/pointrend_semantic_streets.yaml"
IMAGE_SIZE = (128, 256)
NUM_TRAIN, NUM_VAL = 400, 50


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    return steps.build_parser(
        "Train a small semantic PointRend on drawn street scenes and compare label maps.",
        "demo-semantic",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo.

    Raises:
        SystemExit: With code 2 if --output cannot be written, else with that of a failed step.
    """
    parser = build_parser()
    args = steps.read_arguments(parser, argv)
    output: Path = args.output
    steps.check_folder(parser, output)
    num_train, num_val, opts = (8, 2, steps.QUICK) if args.quick else (NUM_TRAIN, NUM_VAL, ())
    start = time.monotonic()
    device = steps.device_options()
    opts = (*opts, *device)

    data, results = output / "cityscapes", output / "pointrend"
    sizes = ("--train", num_train, "--val", num_val, "--size", *IMAGE_SIZE)
    layout = ("--layout", "cityscapes", "--output", data)
    steps.run_step("Draw the data set", ["python", "-m", "point_rend.data.shapes", *layout, *sizes])
    steps.run_step(
        "Train PointRend and evaluate it",
        [
            *("pointrend", "train", "--resume", "--config-file", CONFIG),
            *("OUTPUT_DIR", results, *opts),
        ],
        DETECTRON2_DATASETS=output,  # Detectron2 looks for cityscapes/ there
    )

    compared = time.monotonic()
    print("\n=== Compare\n", flush=True)
    from point_rend.evaluation.coco_results import format_table
    from point_rend.experiments.demo.semantic import evaluate

    pictures = output / "pictures"
    weights = results / "model_final.pth"
    print(format_table(evaluate(CONFIG, weights, data, pictures, opts=device)))
    steps.print_time(compared)
    steps.print_end(start, [pictures / "images.png", pictures / "closeups.png"], output)
