"""The figures of `pointrend visualize`."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from point_rend.config.defaults import pixel_format, with_semantic_point_head
from point_rend.config.tasks import model_outputs
from point_rend.inference.predictor import Predictor
from point_rend.inference.rendered_subjects import find_instance, find_region
from point_rend.inference.settings import read_settings
from point_rend.rendering.sampling import PointSampler
from point_rend.utils.bands import read_pixels
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

FIGURES: dict[str, Callable[..., Figure]] = {
    "steps": steps_figure,
    "training-points": training_points_figure,
    "uncertainty": uncertainty_figure,
    "coarse-fine": comparison_figure,
}


def write_figures(args: argparse.Namespace) -> list[Path]:
    """Draw the figures that the command line selects.

    Args:
        args: The parsed command line of `pointrend visualize`.

    Returns:
        The files written.

    Raises:
        FileNotFoundError, OSError, ValueError: After an error that the user can correct.
    """
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
    return files


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
    image = read_pixels(args.input, pixel_format(cfg))
    window = args.region and tuple(args.region)
    if window is not None:
        x0, y0, x1, y1 = window
        if not (0 <= x0 < x1 <= image.shape[1] and 0 <= y0 < y1 <= image.shape[0]):
            raise ValueError(
                f"--region {x0:g} {y0:g} {x1:g} {y1:g}: expected X0 < X1 and Y0 < Y1 inside the "
                f"image, which is {image.shape[1]} × {image.shape[0]} pixels"
            )
    of_labels = "instances" not in outputs or (window is not None and "sem_seg" in outputs)
    given = None
    if not of_labels and window is not None:
        given = window, class_index(args.class_name, metadata.thing_classes)
    predictor = Predictor(cfg, metadata=metadata, allow_unsafe=args.allow_unsafe_checkpoint)
    if of_labels:
        colors = [color[::-1] for color in metadata.stuff_colors]
        point_head = with_semantic_point_head(cfg).MODEL.POINT_HEAD
        subject = find_region(predictor, image, window, colors)
    else:
        point_head = cfg.MODEL.POINT_HEAD
        subject = find_instance(predictor, image, args.instance, given)
    return subject, point_head.TRAIN_NUM_POINTS
