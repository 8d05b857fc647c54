"""`pointrend demo`: draw data, train PointRend, evaluate it and compare its masks.

It runs on the GPU, if there is one, or on the CPU, in minutes.

Every step is a command that a user could type; it is printed before it runs. The results are
pictures of the input, the coarse 7×7 masks, PointRend's masks and the ground truth, side by side,
and report.html: metrics, curves and single objects on one page.

Existing results are kept: an interrupted training continues from its last checkpoint, and a
finished one is only evaluated again. To start afresh, delete the folder.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from point_rend.experiments.demo import steps

CONFIG = "Demo/pointrend_shapes.yaml"
COARSE = ("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False")
IMAGE_SIDE = 192
NUM_TRAIN, NUM_VAL = 600, 60


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    return steps.build_parser("Train a small PointRend on drawn shapes and compare masks.", "demo")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo.

    Raises:
        SystemExit: With code 2 if --output cannot be written, else with that of a failed step.
    """
    output, quick = steps.read_arguments(build_parser(), argv)
    num_train, num_val, opts = (8, 4, steps.QUICK) if quick else (NUM_TRAIN, NUM_VAL, ())
    start = time.monotonic()
    device = steps.device_options()
    opts = (*opts, *device)

    data = output / "shapes"
    sizes = ("--train", num_train, "--val", num_val, "--size", IMAGE_SIDE)
    steps.run_step(
        "Draw the data set", ["python", "-m", "point_rend.data.shapes", "--output", data, *sizes]
    )
    annotations = data / "annotations" / "instances_val.json"
    val = ("--register-coco", "shapes_val", annotations, data / "val")
    train_annotations = annotations.with_name("instances_train.json")
    train = ("--register-coco", "shapes_train", train_annotations, data / "train")

    fine, coarse = output / "pointrend", output / "coarse"
    weights = fine / "model_final.pth"
    steps.run_step(
        "Train PointRend and evaluate it",
        [
            *("pointrend", "train", "--resume", "--config-file", CONFIG),
            *(*train, *val, "OUTPUT_DIR", fine, *opts),
        ],
    )
    steps.run_step(
        "Evaluate the coarse masks of the same model",
        [
            *("pointrend", "evaluate", "--config-file", CONFIG, *val),
            *("MODEL.WEIGHTS", weights, *COARSE, *opts, "OUTPUT_DIR", coarse),
        ],
    )

    compared = time.monotonic()
    print("\n=== Compare\n", flush=True)
    results = Path("inference") / "shapes_val" / "coco_instances_results.json"
    from point_rend.evaluation.coco_results import average_precision, format_table
    from point_rend.experiments.demo.instances import draw_pictures

    table = {
        "coarse 7×7 masks": average_precision(annotations, coarse / results),
        "PointRend": average_precision(annotations, fine / results),
    }
    print(f"\n{format_table(table)}")
    files = draw_pictures(
        CONFIG,
        weights,
        annotations,
        data / "val",
        fine / results,
        output / "pictures",
        opts=device,
        coarse_opts=COARSE,
    )
    steps.print_time(compared)
    page = output / "report.html"
    steps.run_step(
        "Write one page with all results",
        [
            *("pointrend", "report", "--annotations", annotations, "--image-root", data / "val"),
            *("--output", page, "--run", f"PointRend={fine}"),
            *("--results", f"coarse 7×7={coarse / results}"),
            *("--results", f"PointRend={fine / results}"),
        ],
    )
    steps.print_end(start, [page, *files[::-1]], output)
