"""`pointrend visualize`: draw the paper's figures for any image and any model.

    pointrend visualize --config-file output/my_run/config.yaml \
        --input photograph.jpg --output output/figures --instance 0 \
        --opts MODEL.WEIGHTS output/my_run/model_final.pth

writes four figures, each as PNG, as animated GIF and as PDF:

- `steps`: the mask after each step (7 → 14 → … → 224), with the points that the step predicted;
- `training-points`: the points that training would sample, for several k and β;
- `uncertainty`: the map by which each step chose its points, and the one at the end;
- `coarse-fine`: the coarse and the rendered prediction, enlarged where they differ most.

`--instance N` selects the mask of the N-th detection, best first. `--region X0 Y0 X1 Y1` selects a
part of the image: of a semantic or panoptic model its labels, of an instance model the mask that it
predicts for this box and a `--class`. The figures show the exact masks that were rendered.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from point_rend.inference import options
from point_rend.utils import errors

FIGURES = ("steps", "training-points", "uncertainty", "coarse-fine")
SAMPLING = ("grid", "1,0", "3,0.75", "10,1")  # table 4 of the paper
FORMATS = ("png", "gif", "pdf")


def sampling(text: str) -> tuple[float, float] | None:
    """Read "k,β", or "grid" as None."""
    if text == "grid":
        return None
    try:
        k, beta = map(float, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected K,BETA or grid, got {text!r}") from error
    return k, beta


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = options.build_parser("Draw how a mask is rendered.")
    parser.add_argument("--input", required=True, type=Path, metavar="IMAGE")
    parser.add_argument("--output", required=True, type=Path, help="folder of the figures")
    parser.add_argument(
        "--instance", type=int, default=0, metavar="N", help="the N-th detection (default 0)"
    )
    parser.add_argument(
        "--region",
        nargs=4,
        type=float,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="a part of the image, in pixels, instead of a detection",
    )
    parser.add_argument(
        "--class", dest="class_name", metavar="NAME", help="class of the instance in --region"
    )
    parser.add_argument(
        "--figures", nargs="+", choices=FIGURES, default=list(FIGURES), help="by default all"
    )
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="by default all"
    )
    parser.add_argument(
        "--sampling",
        nargs="+",
        type=sampling,
        default=[sampling(text) for text in SAMPLING],
        metavar="K,BETA",
        help="settings of training-points; grid is the regular grid, with the next lower square "
        f"number of points (default {' '.join(SAMPLING)}, as in table 4 of the paper)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the training points (default 0)"
    )
    parser.add_argument(
        "--size", type=int, default=448, help="longer side of a panel in pixels (default 448)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The files written.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    args = build_parser().parse_args(argv)
    from point_rend.inference.figures import write_figures

    with errors.user_errors():
        files = write_figures(args)
    print("\n".join(map(str, files)))
    return files
