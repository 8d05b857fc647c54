"""The command line of training and evaluation: Detectron2's options and ours.

Parsing needs the standard library alone, so that `--help` answers at once.
"""

import argparse
import re

from point_rend.config.files import config_file_option
from point_rend.utils.arguments import (
    add_data_set_options,
    add_exported_options,
    add_settings,
)
from point_rend.utils.program import program

AUTO = "auto"  # a rendezvous that only this machine knows
MAX_DIGITS = 4  # of a number of processes
SILENCE_SECONDS = 100.0  # without progress, after which a process is named
DESCRIPTION = "Train a model, or evaluate one with --eval-only."


def process_count(text: str) -> int:
    """Parse `--num-gpus`; 0 means 1, as in Detectron2."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number, 0 or more, got {text:.50}")
    if len(text) > MAX_DIGITS:
        raise argparse.ArgumentTypeError(f"expected at most {MAX_DIGITS} digits, got {text:.50}")
    return max(1, int(text))


def rendezvous(text: str) -> str:
    """Parse `--dist-url`."""
    address = re.fullmatch(r"tcp://(\[[^\]]+\]|[^:/\[\]]+):(\d{1,5})", text)
    is_tcp = address is not None and 0 < int(address[2]) < 1 << 16
    if not (is_tcp or text in (AUTO, "env://") or re.match(r"file:///.", text)):
        raise argparse.ArgumentTypeError(f"expected tcp://<address>:<port>, got {text!r}")
    return text


def build_parser(
    description: str = DESCRIPTION, *, exported: bool = False
) -> argparse.ArgumentParser:
    """Build the parser of training and evaluation; its options include all of Detectron2's.

    Args:
        description: Of the command.
        exported: Whether the command also runs files of `pointrend export`.
    """
    prog = program()
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        f"  {prog} --config-file FILE --num-gpus 8\n"
        f"  {prog} --config-file FILE MODEL.WEIGHTS model_final.pth SOLVER.BASE_LR 0.001\n"
        f"  {prog} --config-file FILE MODEL.DEVICE cpu",
    )
    parser.add_argument(
        "--config-file",
        type=config_file_option,
        default="",
        metavar="FILE",
        help="path, or name of a config of this package",
    )
    if exported:
        add_exported_options(parser, parser)
    else:
        parser.set_defaults(model=None, backend=None)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR; without one, start from "
        "MODEL.WEIGHTS",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the checkpoints, the metrics and the TensorBoard events of an earlier "
        "training in OUTPUT_DIR and start anew; without it such a folder is refused",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument(
        "--check",
        action="store_true",
        help="take the first steps of the training and keep none of it: a picture of the first "
        "batches with masks and training points, the number of parameters, memory, time and disk",
    )
    parser.add_argument(
        "--check-output",
        metavar="FOLDER",
        help="where --check writes check.png and check.json (default: OUTPUT_DIR/check)",
    )
    parser.add_argument(
        "--num-gpus",
        type=process_count,
        default=1,
        metavar="N",
        help="number of processes per machine, one per GPU; with MODEL.DEVICE cpu, processes "
        "without a GPU. 0 means 1. Leave it out under torchrun and srun, which start the processes",
    )
    parser.add_argument(
        "--num-machines",
        type=int,
        default=1,
        metavar="N",
        help="number of machines; start the same command on each, with its --machine-rank",
    )
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="N", help="number of this machine, from 0"
    )
    parser.add_argument(
        "--dist-url",
        type=rendezvous,
        default=AUTO,
        metavar="URL",
        help="where the processes meet: tcp://<address of machine 0>:<a free port there>; needed "
        "for several machines only",
    )
    parser.add_argument(
        "--silence-limit",
        type=float,
        default=SILENCE_SECONDS,
        metavar="SECONDS",
        help="name a process that makes no progress for so long (default %(default)g; ten times as "
        "long while it starts, saves or evaluates; 0 for never); it is not ended",
    )
    add_data_set_options(parser)
    parser.add_argument(
        "--ignore-class-names",
        action="store_true",
        help="take the classes of a checkpoint by their position where their names differ from "
        "those of the data sets",
    )
    parser.add_argument(
        "--allow-unsafe-checkpoint",
        action="store_true",
        help="load a checkpoint even if it can run code; only for files you trust",
    )
    add_settings(parser)
    return parser
