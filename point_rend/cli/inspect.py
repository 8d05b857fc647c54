"""`pointrend inspect`: the data of a config: sizes, classes, copies, faults, and settings that fit.

    pointrend inspect --config-file InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml \
        --register-coco my_train train.json images/train \
        --register-coco my_val val.json images/val \
        --page report.html DATASETS.TRAIN "('my_train',)" DATASETS.TEST "('my_val',)"

It reads what `pointrend train` with the same options would read, before anything is trained; it
needs no GPU and no weights. Every image is read once, to find broken and duplicate files;
--no-images leaves that out, which takes seconds where reading takes minutes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from point_rend.config.files import config_file_option
from point_rend.utils.arguments import add_data_set_options, add_settings
from point_rend.utils.errors import print_result, user_errors
from point_rend.utils.files import check_output, write_bytes, write_text
from point_rend.utils.program import program


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program(),
        description="Report on the data of a config, and suggest settings that fit them.",
    )
    parser.add_argument(
        "--config-file",
        type=config_file_option,
        required=True,
        metavar="FILE",
        help="path, or name of a config of this package",
    )
    add_data_set_options(parser)
    # A run of the same options: a config file, no exported model.
    parser.set_defaults(model=None, backend=None, resume=False)
    parser.add_argument("--json", type=Path, metavar="FILE", help="JSON file of all numbers")
    parser.add_argument("--page", type=Path, metavar="FILE", help="the report as one HTML page")
    parser.add_argument(
        "--no-images",
        action="store_true",
        help="do not open the image files: no broken files, no copies (label maps are read)",
    )
    add_settings(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 2 after an error that the user can correct: of the options, or of an
            annotation file that cannot be read. What is wrong with images and annotations is a part
            of the report.
    """
    args = build_parser().parse_args(argv)
    with user_errors():
        from point_rend.engine.setup import read_config_of_data
        from point_rend.inspection.page import format_page, is_page
        from point_rend.inspection.report import as_plain, inspect_data, is_json_report
        from point_rend.inspection.settings import build_settings
        from point_rend.inspection.text import format_text

        inputs = [args.config_file, *(x[1] for x in args.register_coco)]
        if args.json and args.page and args.json.absolute() == args.page.absolute():
            raise ValueError(f"--json and --page name the same file, {args.page}")
        if args.json:
            check_output(args.json, flag="--json", inputs=inputs, may_replace=is_json_report)
        if args.page:
            check_output(args.page, flag="--page", inputs=inputs, may_replace=is_page)
        cfg, _ = read_config_of_data(args, training=True)
        report = inspect_data(
            build_settings(cfg), args.config_file, reads_images=not args.no_images
        )
        if args.json:
            write_text(args.json, json.dumps(as_plain(report), indent=1))
        if args.page:
            write_bytes(args.page, format_page(report).encode("utf-8", errors="replace"))
        print_result(format_text(report))
        written = [str(path) for path in (args.json, args.page) if path]
        if written:
            print_result("\n" + "\n".join(written))
