"""The paper's ablations on any data set, Tables 3 and 4, each with one command.

    python -m tools.ablate subdivision --output output/subdivision -- \
        --config-file output/demo/pointrend/config.yaml \
        --register-coco shapes_val output/demo/shapes/annotations/instances_val.json \
        output/demo/shapes/val MODEL.WEIGHTS output/demo/pointrend/model_final.pth

evaluates a model with more or fewer points and steps; nothing is trained.

    python -m tools.ablate sampling --output output/sampling --seeds 1,2,3 -- \
        --config-file configs/Demo/pointrend_shapes.yaml \
        --register-coco shapes_train output/demo/shapes/annotations/instances_train.json \
        output/demo/shapes/train --register-coco shapes_val \
        output/demo/shapes/annotations/instances_val.json output/demo/shapes/val

trains one with every choice of the training points and every seed.

What stands behind `--` are options of train_net.py; those of a cell of the table overrule them. The
figures of a cell are kept in a file of its own, and a training has its checkpoints, so that an
interrupted command goes on where it was when it is given again; but not after a change of the
config, the weights or the annotations. At the end the table is written as Markdown and drawn.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from point_rend.experiments.ablation.results import Figures
from point_rend.experiments.ablation.sampling import (
    SEEDS,
    SETTINGS,
    draw_sampling,
    format_sampling,
    sampling,
)
from point_rend.experiments.ablation.subdivision import (
    POINT_SIDES,
    SIDES,
    draw_subdivision,
    format_subdivision,
    subdivision,
)
from point_rend.utils.errors import user_errors
from point_rend.utils.files import check_output, write_text

METRICS = ("segm/AP", "sem_seg/mIoU")  # the first that was measured is shown by default


def shown_metrics(asked: Sequence[str], figures: Figures) -> list[str]:
    """Return the metrics asked for, or else the usual one of what was measured."""
    return list(asked) or [next((name for name in METRICS if name in figures), METRICS[0])]


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _numbers(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}")
    return sorted({int(word) for word in words})


def _settings(text: str) -> list[str]:
    words = _words(text)
    if not all(word in SETTINGS for word in words):
        names = ", ".join(SETTINGS)
        raise argparse.ArgumentTypeError(
            f"expected some of {names} with commas between them, got {text!r}"
        )
    return words


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line up to `--`."""
    parser = argparse.ArgumentParser(
        description="The paper's ablations.", epilog="-- and then the options of train_net.py"
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--output", type=Path, required=True, help="folder of the results")
    shared.add_argument(
        "--metric",
        type=_words,
        default=[],
        help=f"shown, several with commas between them (default {', or else '.join(METRICS)})",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    table_3 = commands.add_parser(
        "subdivision", parents=[shared], help="Table 3: sides and points at inference"
    )
    table_3.add_argument(
        "--sides", type=_numbers, default=SIDES, help="of the masks (default 28,56,112,224)"
    )
    table_3.add_argument(
        "--point-sides",
        type=_numbers,
        default=POINT_SIDES,
        help="roots of the numbers of points per step (default 14,28,56,112)",
    )
    table_4 = commands.add_parser(
        "sampling", parents=[shared], help="Table 4: the choice of the training points"
    )
    table_4.add_argument(
        "--settings",
        type=_settings,
        default=list(SETTINGS),
        help=f"some of {','.join(SETTINGS)} (default all)",
    )
    table_4.add_argument("--seeds", type=_numbers, default=SEEDS, help="default 1,2,3")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 after an error that the user can put right; with the code of a
            training that failed or was ended.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    own, options = words, []
    if "--" in words:
        own, options = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = build_parser()
    args = parser.parse_args(own)
    if not options:
        parser.error("expected -- and options of train_net.py behind it")
    picture = args.output / f"{args.command}.png"
    with user_errors():
        check_output(args.output, folder=True)
        if args.command == "subdivision":
            sides, point_sides = args.sides, args.point_sides
            rendered = subdivision(options, args.output, sides, point_sides)
            metrics = shown_metrics(args.metric, next(iter(rendered.values())))
            table = format_subdivision(rendered, sides, point_sides, metrics)
            draw_subdivision(rendered, sides, point_sides, metrics, picture)
        else:
            trained = sampling(options, args.output, args.settings, args.seeds)
            metrics = shown_metrics(args.metric, next(iter(trained.values())))
            table = format_sampling(trained, args.settings, metrics)
            draw_sampling(trained, args.settings, metrics, picture)
    print(f"\n{table}")
    write_text(picture.with_suffix(".md"), f"{table}\n")
