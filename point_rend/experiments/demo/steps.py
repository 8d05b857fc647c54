"""Steps of the demos: commands that are printed, run and timed."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from point_rend.utils.children import run_child
from point_rend.utils.errors import signal_exit_code
from point_rend.utils.files import check_output
from point_rend.utils.program import COMMAND, program
from point_rend.utils.signals import write_line

# Settings of a demo that only shows that everything runs.
QUICK = ("SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1")
PROGRAMS = {
    "python": [sys.executable],
    COMMAND: [sys.executable, "-m", "point_rend"],
}


def build_parser(description: str, folder: str) -> argparse.ArgumentParser:
    """Build the parser of a demo.

    Args:
        description: One sentence.
        folder: Name of the folder in output/ without --output; with --quick another one.
    """
    parser = argparse.ArgumentParser(prog=program(), description=description)
    parser.add_argument("--output", type=Path, help=f"folder (default output/{folder})")
    parser.add_argument(
        "--quick", action="store_true", help="a few images and iterations: shows that it all runs"
    )
    parser.set_defaults(folder=folder)
    return parser


def read_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Read the command line of a demo; `output` is then the folder of the results."""
    args = parser.parse_args(argv)
    args.output = args.output or Path(
        "output", f"{args.folder}-quick" if args.quick else args.folder
    )
    return args


def check_folder(parser: argparse.ArgumentParser, output: Path) -> None:
    """Make sure that the results can be written.

    Raises:
        SystemExit: With code 2 if they cannot.
    """
    try:
        check_output(output, folder=True)
    except ValueError as error:
        parser.error(str(error))


def device_options() -> tuple[str, ...]:
    """Return config keys and values that make the commands use the GPU, if there is one."""
    import torch  # takes seconds, which --help does not need

    return ("MODEL.DEVICE", "cuda") if torch.cuda.is_available() else ()


def run_step(title: str, command: Sequence[object], **variables: object) -> None:
    """Print a command, run it and print how long it took.

    Args:
        title: Purpose of the step.
        command: `pointrend` or `python`, and arguments.
        variables: Environment variables.

    Raises:
        SystemExit: If it fails; the message names the step, the exit code is the command's.
    """
    name, *arguments = [str(word) for word in command]
    values = {key: str(value) for key, value in variables.items()}
    shown = [*(f"{key}={shlex.quote(value)}" for key, value in values.items()), name]
    print(f"\n=== {title}\n$ {' '.join(shown)} {shlex.join(arguments)}\n", flush=True)
    start = time.monotonic()
    code = run_child([*PROGRAMS[name], *arguments], os.environ | values)
    if code > signal_exit_code(0):
        write_line(f"{program()}: stopped in the step: {title}; the same command continues")
    elif code:
        write_line(f"{program()}: error: this step failed: {title}")
    if code:
        raise SystemExit(code)
    print_time(start)


def print_time(start: float) -> None:
    """Print the time of a step that began at `start`, of `time.monotonic`."""
    print(f"--- {time.monotonic() - start:.0f} s", flush=True)


def print_end(start: float, files: Sequence[Path], output: Path) -> None:
    """Print the time since `start`, of `time.monotonic`, and where the results are."""
    minutes = (time.monotonic() - start) / 60
    print(f"\nDone in {minutes:.1f} minutes. Look at:\n  " + "\n  ".join(map(str, files)))
    print(f"To start afresh: rm -r {shlex.quote(str(output))}")
