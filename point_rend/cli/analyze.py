"""`pointrend analyze`: the paper's Table 2 for any config, instance or semantic.

    pointrend analyze --config-file InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml

FLOPs are multiply-adds, as in the paper and in fvcore, of convolutions, matrix products and linear
interpolation; normalization and other elementwise operations are free. Activations are the outputs
of convolutions and matrix products. Mask heads are counted per box, with the classes of the config,
semantic heads per image; "at once" omits all steps of PointRend but the largest one.

PointRend is counted twice. "All layers at every point" is its definition, the whole point head with
all classes at each of the points; this is the number to compare with the paper's. "As rendered" is
what this package executes for the same masks: one class per box, and layers that are applied to a
feature map before it is sampled, where that is less work. It therefore depends on the number of
boxes, and counts the parts of a layer's output as activations of their own. No box stops early.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from point_rend.utils.errors import user_errors
from point_rend.utils.files import check_output, write_text
from point_rend.utils.program import program


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program(),
        description="Count FLOPs, activations, parameters and points of a config's heads.",
    )
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument(
        "--image",
        nargs=2,
        type=int,
        default=(480, 640),
        metavar=("HEIGHT", "WIDTH"),
        help="size of an image before resizing (default %(default)s)",
    )
    parser.add_argument("--boxes", type=int, help="per image (default: TEST.DETECTIONS_PER_IMAGE)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="options of the config")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    args = build_parser().parse_args(argv)
    with user_errors():
        if args.output:
            check_output(args.output)

        from point_rend.experiments.cost_report import format_json, format_markdown
        from point_rend.experiments.costs import analyze

        report = analyze(args.config_file, args.opts, tuple(args.image), args.boxes)
        print(format_markdown(report))
        if args.output:
            write_text(args.output, format_json(report))
