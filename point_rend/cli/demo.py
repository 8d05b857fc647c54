"""`pointrend demo`: draw data, train PointRend, evaluate it and compare its masks.

It runs on the GPU, if there is one, or on the CPU, in minutes.

Every step is a command that a user could type; it is printed before it runs. The results are
pictures of the input, the coarse 7×7 masks, PointRend's masks and the ground truth, side by side,
and report.html: metrics, curves and single objects on one page.

Existing results are kept: an interrupted training continues from its last checkpoint, and a
finished one is only evaluated again. To start afresh, delete the folder.

    pointrend demo --serve

opens a page in the browser at which the trained model segments any picture: the coarse and the
rendered masks, the points of each step, the score and the classes to show. If there is no trained
model yet, the demo runs first. Other models are named as for `pointrend predict`:

    pointrend demo --serve --config-file output/my_run/config.yaml \
        --opts MODEL.WEIGHTS output/my_run/model_final.pth

Only this machine can reach the page, unless --host names another of its addresses, such as 0.0.0.0.
Ctrl-C ends it with exit code 130.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from point_rend.experiments.demo import steps
from point_rend.inference import options
from point_rend.utils import errors

CONFIG = "Demo/pointrend_shapes.yaml"
COARSE = ("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False")
IMAGE_SIDE = 192
NUM_TRAIN, NUM_VAL = 600, 60
PAGE_OPTIONS = (
    *("host", "port", "examples", "config_file", "model", "backend", "confidence_threshold"),
    *("classes", "ignore_class_names", "allow_unsafe_checkpoint", "opts"),
)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = steps.build_parser(
        "Train a small PointRend on drawn shapes and compare masks; try it, or any model, on a "
        "page in the browser.",
        "demo",
    )
    page = parser.add_argument_group("page")
    page.add_argument(
        "--serve",
        action="store_true",
        help="serve a page to try the model, after the demo if it has not been trained yet",
    )
    page.add_argument(
        "--host",
        help="address of this machine to listen at; by default 127.0.0.1, which only this machine "
        "can reach; 0.0.0.0 is all",
    )
    page.add_argument("--port", type=int, help="port (default 7860; 0 for any that is free)")
    page.add_argument(
        "--examples",
        type=Path,
        metavar="FOLDER",
        help="pictures to click; by default those of the demo for its model",
    )
    options.add_model_options(page, required=False, exported=True)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo, or serve the page.

    Raises:
        SystemExit: With code 2 if --output cannot be written or the page cannot be served, else
            with that of a failed step.
    """
    parser = build_parser()
    args = steps.read_arguments(parser, argv)
    named = args.config_file is not None or args.model is not None
    unused = [name for name in PAGE_OPTIONS if getattr(args, name) != parser.get_default(name)]
    if not args.serve and unused:
        parser.error(f"--{unused[0].replace('_', '-')} needs --serve")
    if not named and (args.opts or args.classes):
        parser.error("--opts and --classes need --config-file or --model")
    if args.serve:
        from point_rend.playground import serving

        with errors.user_errors():
            serving.check(args)
    weights = args.output / "pointrend" / "model_final.pth"
    if not args.serve or not (named or weights.is_file()):
        steps.check_folder(parser, args.output)
        run(args.output, quick=args.quick)
    if not args.serve:
        return
    if not named:
        args.config_file = str(weights.with_name("config.yaml"))
        args.opts = ["MODEL.WEIGHTS", str(weights), *steps.device_options()]
        args.examples = args.examples or args.output / "shapes" / "val"
    with errors.user_errors():
        serving.serve(args)


def run(output: Path, *, quick: bool) -> None:
    """Run the steps of the demo.

    Args:
        output: Folder of the results.
        quick: Whether a few images and iterations suffice.

    Raises:
        SystemExit: If a step fails, with its code.
    """
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
