"""`pointrend export`: write a trained model as a file that runs without this package.

    pointrend export --config-file output/my_run/config.yaml --format onnx --output model.onnx \
        --verify photographs MODEL.WEIGHTS output/my_run/model_final.pth

An exported file holds everything from the resized image to boxes and rendered masks, or labels, for
images of any size and in batches; it also holds the config, the names of the classes and the
limits. With --format folder the model itself is saved, as `Predictor.save_pretrained` does it.
`pointrend predict --model`, `pointrend evaluate --model` and `Predictor("model.onnx")` run it;
examples/run_onnx.py shows how to run it without PyTorch.

The file appears after it was loaded and run. With --verify its results are compared with those of
the model on images: boxes, scores, order and classes, and the pixels that are decided otherwise;
with --half and --int8 its accuracy on DATASETS.TEST. The exit code is 1, and there is no file, if
one of the differences is too large.
"""

import argparse
from collections.abc import Sequence

from point_rend import __version__
from point_rend.inference import options
from point_rend.utils import errors
from point_rend.utils.arguments import add_data_set_options

FORMATS = ("onnx", "torch-export", "torchscript", "folder")
PARTS = ("model", "mask-head")
SECTIONS = ("DATALOADER", "DATASETS", "INPUT", "MODEL", "SOLVER", "TEST")  # of a config


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = options.build_parser(
        "Write a trained model as a file that runs without this package.", threshold=None
    )
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="by default onnx")
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="name that ends in .onnx, .pt2 (torch-export) or .ts (torchscript), or a folder",
    )
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="model",
        help="the whole model (default), or the mask head alone, from features, boxes and classes "
        "of any detector to masks",
    )
    parser.add_argument(
        "--verify",
        nargs="+",
        default=[],
        metavar="IMAGES",
        help="compare the file with the model on images, folders or patterns in quotes",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--half",
        dest="precision",
        action="store_const",
        const="float16",
        help="backbone and box head in float16 (onnx); the rendering stays in float32",
    )
    precision.add_argument(
        "--int8",
        dest="precision",
        action="store_const",
        const="int8",
        help="the same in int8, with ranges of the values from --calibration",
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        default=[],
        metavar="IMAGES",
        help="typical images for --int8; a hundred are plenty",
    )
    parser.add_argument(
        "--max-ap-drop",
        type=float,
        metavar="AP",
        help="mask AP (or mIoU) in percent that --half and --int8 may cost on DATASETS.TEST "
        "(default 0.5)",
    )
    parser.add_argument(
        "--license", default="", metavar="ID", help="license for the card of a folder: apache-2.0"
    )
    parser.add_argument(
        "--metrics", metavar="FILE", help="metrics.json of a training, for the card of a folder"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the model in a folder that is not empty"
    )
    add_data_set_options(parser)
    parser.add_argument(
        "more_opts", nargs="*", metavar="KEY VALUE", help="the same as --opts, after all options"
    )
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; keys and values may follow the options, also those of many images."""
    args = build_parser().parse_args(argv)
    for images in (args.verify, args.calibration):
        first = next((i for i, word in enumerate(images) if is_key(word)), len(images))
        args.more_opts = [*args.more_opts, *images[first:]]
        del images[first:]
    args.opts = [*args.more_opts, *args.opts]
    return args


def is_key(word: str) -> bool:
    """Return whether a word is a config key, such as MODEL.WEIGHTS."""
    section, dot, _ = word.partition(".")
    return (section in SECTIONS and bool(dot)) or word in ("OUTPUT_DIR", "SEED")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 1 if the file is not equal enough, with code 2 after an error that the
            user can correct.
    """
    args = parse(argv)
    from point_rend.export.run import run

    with errors.user_errors():
        report = run(args, __version__)
        errors.print_result(report.text)
    if not report.written:
        raise SystemExit(errors.FAILED)
