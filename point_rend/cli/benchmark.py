"""`pointrend benchmark`: time, memory and agreement against a baseline.

    pointrend benchmark masks --boxes 100 --classes 80     # some of the mask head's cases
    pointrend benchmark all --threads 2 --output output/benchmark

`pointrend benchmark overview` measures a choice of cases of all kinds in a few minutes.

Both sides of a case have the same weights and the same inputs, from a seed, and run in turn in one
process: ours, baseline, ours, baseline, … after a warm-up. In each round a side runs for as long as
one run of the slower side takes; otherwise the faster one would only ever be seen in the wake of
the other. The time of a round is the median of its runs, that of a side the median of its rounds.
The ratio is the median of the ratios of all rounds, since other load on the machine affects both
sides of a round alike; in parentheses, and as bars in the plot, are the smallest and the largest of
them. The baseline is the PointRend project that Detectron2 ships ("stock"), or a part of
Detectron2: its convolutional mask head, its pasting of masks; for the residual point head it is our
standard one.

Agreement is the share of pixels whose decision differs (probability above 0.5, or best class), and
the largest difference of a probability; of training steps, the largest relative difference of a
loss or of the norm of a parameter's gradient. Weights and inputs are random, but give masks and
label maps with large regions and fine boundaries; the JSON file states the share of neighboring
pixels that differ. Memory is the peak of one run beyond features and weights.

With `--busy-processes 2`, two other processes compute meanwhile, as on a shared machine. Threads
that wait for each other sleep, as in all commands; the table names the wait. By default they would
spin: `GOMP_SPINCOUNT=300000 pointrend benchmark …` measures that, the default of the OpenMP library
in PyTorch's packages for Linux.

A case for which the stock project would need more memory than there is (it keeps masks for every
class) runs without it, and so does a case in which it fails. On a GPU the largest batch that fits
into memory is measured as well, for training steps of both sides.

`pointrend benchmark end-to-end --threads 1` divides the CPU seconds of a whole model among its
stages, with two columns for ours: as it is built, and as `Predictor` and `evaluate` prepare it.
With `--files onnxruntime openvino` it also exports the model and measures the file.

`pointrend benchmark tiles` segments an image of 10,000 × 10,000 pixels in tiles. Objects lie across
their borders and corners; with a predictor that sees each tile exactly, the table shows how many
come out as one, and how well. With `--checkpoint output/demo/pointrend/model_final.pth`, a model of
the built-in data segments a smaller image, in tiles and as a whole.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from point_rend.experiments.benchmark.settings import AMP_TYPES, FILES, OVERVIEW, Settings
from point_rend.utils.errors import user_errors
from point_rend.utils.files import check_output
from point_rend.utils.program import program

if TYPE_CHECKING:
    from point_rend.experiments.benchmark.measuring import Record

CASES = {
    "masks": "PointRend's mask head, over boxes × classes",
    "implicit": "the implicit mask head, over boxes × classes",
    "conv": "PointRend at 224×224 against Detectron2's convolutional head at 28×28, with pooling",
    "pasting": "masks of boxes to RLEs of the image, against Detectron2's pasting and encoding",
    "semantic": "the semantic head from given coarse logits to the label map",
    "residual": "the residual point head against the standard one, in the mask and semantic head",
    "model": "whole models from the image to masks or the label map, and their heads' share of it",
    "train": "labels of masks, a training step of the ROI heads, and one of the R50-FPN model",
}
END_TO_END = "end-to-end"
TILES = "tiles"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program(),
        description="Measure time, memory and agreement against the heads that Detectron2 ships.",
        epilog="cases: "
        + "; ".join(f"{name}: {text}" for name, text in CASES.items())
        + f"; {OVERVIEW}: a choice of them, in minutes"
        f"; {END_TO_END}, on its own: CPU seconds of the R50-FPN model by stage, from the image "
        "to RLEs, for the stock project, for our model and for the one that Predictor prepares; "
        f"{TILES}, on its own: objects planted across the tiles of a huge image",
    )
    parser.add_argument(
        "cases",
        nargs="+",
        choices=[*CASES, "all", OVERVIEW, END_TO_END, TILES],
        help="see below",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (default cpu)")
    parser.add_argument("--threads", type=_positive, help="CPU threads (default: torch's choice)")
    parser.add_argument(
        "--busy-processes",
        type=_positive,
        default=0,
        metavar="N",
        help="measure while N other processes keep a core busy each (default: none)",
    )
    parser.add_argument("--repeat", type=_positive, default=5, help="timed rounds (default 5)")
    parser.add_argument(
        "--boxes", type=_positive, nargs="+", default=[], help="boxes per image (default: by case)"
    )
    parser.add_argument(
        "--classes", type=_positive, nargs="+", default=[], help="classes (default: by case)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default 0)")
    parser.add_argument("--amp", choices=AMP_TYPES, default="none", help="autocast on both sides")
    parser.add_argument(
        "--files",
        nargs="+",
        choices=list(FILES),
        default=[],
        help="exported files that end-to-end also measures: in float32 by two runtimes, and with "
        "backbone and box head in lower precision, by onnxruntime",
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="model of the built-in data that tiles also measures"
    )
    parser.add_argument("--output", type=Path, help="folder for the table, JSON and a plot")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config of our side only"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> "list[Record]":
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The measurements; none for end-to-end and tiles, whose tables are printed.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    args = build_parser().parse_args(argv)
    settings = Settings(
        device=args.device,
        repeat=args.repeat,
        seed=args.seed,
        boxes=tuple(args.boxes),
        classes=tuple(args.classes),
        amp=args.amp,
        opts=tuple(args.opts),
        busy_processes=args.busy_processes,
        files=tuple(args.files),
    )
    names = list(CASES) if "all" in args.cases else list(dict.fromkeys(args.cases))
    stem = "benchmark" if "all" in args.cases else "benchmark_" + "_".join(names)

    import torch

    from point_rend.experiments.benchmark.end_to_end import check_end_to_end, run_end_to_end
    from point_rend.experiments.benchmark.run import make_cases, run_cases
    from point_rend.experiments.benchmark.tiles import check_tiles, run_tiles

    if args.threads:
        torch.set_num_threads(args.threads)
    with user_errors():
        is_end_to_end, is_tiles = END_TO_END in args.cases, TILES in args.cases
        cases = [] if is_end_to_end or is_tiles else make_cases(names, settings)
        if is_end_to_end:
            check_end_to_end(names, settings)
        elif args.files:
            raise ValueError("--files is for end-to-end")
        if is_tiles:
            check_tiles(names)
        elif args.checkpoint:
            raise ValueError("--checkpoint is for tiles")
        if args.output:
            check_output(args.output, folder=True)
    if is_tiles:
        with user_errors():
            run_tiles(settings, args.checkpoint, args.output, stem)
        return []
    if is_end_to_end:
        run_end_to_end(settings, args.output, stem)
        return []
    return run_cases(cases, settings, args.output, stem)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)
