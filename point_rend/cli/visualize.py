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
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from point_rend.config.tasks import model_outputs
from point_rend.inference.images import read_image
from point_rend.inference.options import build_parser, read_settings
from point_rend.inference.predictor import Predictor
from point_rend.inference.rendered_subjects import find_instance, find_region
from point_rend.rendering.sampling import PointSampler
from point_rend.utils import errors
from point_rend.utils.files import check_output
from point_rend.visualization.rendering_figures import (
    Figure,
    Subject,
    comparison_figure,
    save,
    steps_figure,
    training_points_figure,
    uncertainty_figure,
)

SAMPLING = ("grid", "1,0", "3,0.75", "10,0.75")  # table 4 of the paper
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


def class_index(text: str | None, names: Sequence[str]) -> int:
    """Read the name or the index of a class of instances.

    Raises:
        ValueError: If there is no such class, or none is given and there are several.
    """
    if text is None and len(names) == 1:
        return 0
    if text in names:
        return names.index(text)
    if text is not None and text.isdecimal() and int(text) < len(names):
        return int(text)
    raise ValueError(
        f"--region needs a --class: expected a number from 0 to {len(names) - 1} or one of "
        f"{', '.join(names)}; got {text}"
    )


def find_subject(args: argparse.Namespace) -> tuple[Subject, int]:
    """Render what the options select; return it with the number of training points.

    Raises:
        FileNotFoundError, ValueError: If the options select nothing.
    """
    cfg, metadata = read_settings(args)
    outputs = model_outputs(cfg)
    image = read_image(args.input)
    window = args.region and tuple(args.region)
    if window is not None:
        x0, y0, x1, y1 = window
        if not (0 <= x0 < x1 <= image.shape[1] and 0 <= y0 < y1 <= image.shape[0]):
            raise ValueError(
                f"--region {x0:g} {y0:g} {x1:g} {y1:g}: expected X0 < X1 and Y0 < Y1 inside the "
                f"image, which is {image.shape[1]} × {image.shape[0]} pixels"
            )
    own = cfg.MODEL.SEM_SEG_HEAD.get("POINT_HEAD")
    of_labels = "instances" not in outputs or (window is not None and "sem_seg" in outputs)
    given = None
    if not of_labels and window is not None:
        given = window, class_index(args.class_name, metadata.thing_classes)
    predictor = Predictor(cfg, metadata=metadata, allow_unsafe=args.allow_unsafe_checkpoint)
    if of_labels:
        colors = [color[::-1] for color in metadata.stuff_colors]
        point_head = own if own is not None and own.NAME else cfg.MODEL.POINT_HEAD
        subject = find_region(predictor, image, window, colors)
    else:
        point_head = cfg.MODEL.POINT_HEAD
        subject = find_instance(predictor, image, args.instance, given)
    return subject, point_head.TRAIN_NUM_POINTS


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The files written.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    parser = build_parser("Draw how a mask is rendered.")
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
    args = parser.parse_args(argv)
    with errors.user_errors():
        if args.instance < 0 or args.size < 32:
            raise ValueError("--instance must be 0 or more, and --size 32 or more")
        check_output(args.output, folder=True)
        subject, num_points = find_subject(args)
        samplers = [
            PointSampler(math.isqrt(num_points) ** 2, on_regular_grid=True)
            if setting is None
            else PointSampler(num_points, *setting)
            for setting in args.sampling
        ]
        files = []
        for name in args.figures:
            more = (samplers, args.seed) if name == "training-points" else ()
            figure = FIGURES[name](subject, args.size, *more)
            files += save(figure, args.output / name, args.formats)
    print("\n".join(map(str, files)))
    return files


FIGURES: dict[str, Callable[..., Figure]] = {
    "steps": steps_figure,
    "training-points": training_points_figure,
    "uncertainty": uncertainty_figure,
    "coarse-fine": comparison_figure,
}
