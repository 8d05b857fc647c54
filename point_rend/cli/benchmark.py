"""Time, peak memory and agreement of these heads and of Detectron2's own, side by side.

    python tools/benchmark.py masks --boxes 100 --classes 80     # some of the mask head's cases
    python tools/benchmark.py all --threads 2 --output output/benchmark

Both sides of a case have the same weights and the same inputs, from a seed, and run in turn in one
process: ours, rival, ours, rival, … after a warm-up. In each turn a side runs for as long as one
run of the slower side takes: otherwise the faster one would only ever be seen in the wake of the
other. A turn's time is the median of its runs, a side's the median of its turns. The ratio is the
median of the rounds' ratios: what else a machine does, both sides of a round see alike. The rival
is the PointRend project that Detectron2 ships ("stock"), or Detectron2's convolutional mask head.

Weights and inputs are random, but so that agreement means something: features are noise of all
scales, weights keep the size of what passes through them, so that masks and label maps have large
parts and fine boundaries (the share of neighboring pixels that differ stands in the JSON file).
Agreement is the share of decided pixels (probability above 0.5, or best class) that differ, and the
largest difference of a probability. Of training steps it is the largest relative difference of a
loss, or of the norm of a parameter's gradient.

Memory is the peak of one run over what was held before it, so beyond features and weights. On a GPU
the caching allocator counts it. On a CPU it is that of the process, measured in a run of its own:
what the C allocator keeps of earlier runs is given back to the system (malloc_trim), the kernel's
high-water mark is reset (/proc/self/clear_refs) and read after the run (VmHWM). So it holds scratch
memory of libraries, too, which counting tensors would miss; a planted allocation is seen to within
a few pages. Where the system offers none of this, no memory is told.

A case that the stock project would need more memory for than there is (it holds masks for every
class) is not run with it, and one that it fails in is not measured; ours is all the same. On a GPU
the largest batch of images that a training step has memory for is searched, for both sides.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from point_rend.experiments.benchmark.case import AMP_TYPES, Case, Settings
from point_rend.experiments.benchmark.instance_cases import (
    POINTREND,
    conv_cases,
    implicit_cases,
    instance_config,
    masks_cases,
)
from point_rend.experiments.benchmark.measuring import Record, measure
from point_rend.experiments.benchmark.model_cases import model_cases
from point_rend.experiments.benchmark.report import (
    as_json,
    machine,
    markdown,
    save_report,
    table_row,
)
from point_rend.experiments.benchmark.semantic_cases import semantic_cases
from point_rend.experiments.benchmark.training_cases import train_cases
from point_rend.utils.files import check_output

# So that the folder of tools can be imported from a script that lies in it.
CASES: dict[str, Callable[[Settings], list[Case]]] = {
    "masks": masks_cases,
    "implicit": implicit_cases,
    "conv": conv_cases,
    "semantic": semantic_cases,
    "model": model_cases,
    "train": train_cases,
}


# Command line
def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Measure these heads and Detectron2's own side by side."
    )
    kinds = [
        f"{name}: {make.__doc__.split('.')[0]}" for name, make in CASES.items() if make.__doc__
    ]
    parser.add_argument("cases", nargs="+", choices=[*CASES, "all"], help="; ".join(kinds))
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--threads", type=_positive, help="of the CPU; default: torch's own number")
    parser.add_argument("--repeat", type=_positive, default=5, help="timed turns of each side")
    parser.add_argument(
        "--boxes", type=_positive, nargs="+", default=[], help="instead of a case's own"
    )
    parser.add_argument("--classes", type=_positive, nargs="+", default=[], help="likewise")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")
    parser.add_argument("--amp", choices=AMP_TYPES, default="none", help="autocast, on both sides")
    parser.add_argument("--output", type=Path, help="folder for JSON, a plot and the table")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config of our side only"
    )
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    """Take the settings from the arguments; ValueError if this machine or a config refuses them."""
    try:
        kind = torch.device(args.device).type
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"--device {args.device}: expected cpu or cuda ({message})") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: torch finds no GPU here")
    settings = Settings(
        device=args.device,
        repeat=args.repeat,
        seed=args.seed,
        boxes=tuple(args.boxes),
        classes=tuple(args.classes),
        amp=args.amp,
        opts=tuple(args.opts),
    )
    instance_config(POINTREND, 1, settings.opts)
    return settings


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the command line.

    Args:
        argv: the arguments; those of the process if not given.

    Returns:
        What was measured.

    Raises:
        SystemExit: with code 2 after an error that the user can put right.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    names = list(CASES) if "all" in args.cases else list(dict.fromkeys(args.cases))
    records = []
    try:
        settings = _settings(args)
        cases = [case for name in names for case in CASES[name](settings)]
        if args.output:
            check_output(args.output, folder=True)
    except ValueError as error:
        parser.error(str(error))
    try:
        for case in cases:
            torch.manual_seed(settings.seed)
            try:
                contest = case.build(settings)
            except ValueError as error:
                parser.error(str(error))
            records.append(measure(case, contest, settings))
            del contest
            print(" | ".join(table_row(records[-1])), file=sys.stderr, flush=True)
    finally:
        if records:  # what was measured is told, whatever a later case ran into
            stem = "benchmark" if "all" in args.cases else "benchmark_" + "_".join(names)
            _report(records, settings, args.output, stem)
    return records


def _report(records: Sequence[Record], settings: Settings, folder: Path | None, stem: str) -> None:
    """Print the table and, if there is a folder, write the report into it."""
    where = machine(settings.device)
    table = markdown(records, where, settings)
    print(f"\n{table}")
    if folder:
        save_report(folder, stem, records, table, as_json(records, where, settings))
