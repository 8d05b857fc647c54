#!/usr/bin/env python
"""Show how a mask is rendered: what the paper's figures show, of any image and any checkpoint.

    python tools/visualize_points.py --config-file output/my_run/config.yaml \
        --input photograph.jpg --output output/figures --instance 0 \
        --opts MODEL.WEIGHTS output/my_run/model_final.pth

writes four figures, each as PNG, as animated GIF and as PDF:

- `steps`: the mask after each step (7 → 14 → … → 224), with the points that the step predicted;
- `training-points`: where training would sample, for several k and β;
- `uncertainty`: the map by which each step chose its points, and the one at the end;
- `coarse-fine`: the coarse prediction beside the rendered one, enlarged where they differ most.

`--instance N` takes the mask of the N-th detection, best first. `--region X0 Y0 X1 Y1` takes a part
of the picture: of a semantic or panoptic model the labels there, of a model of instances the mask
that it gives to this box for a `--class`. What is drawn is what the model rendered, to the bit.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from point_rend.coordinates import regular_grid
from point_rend.sampling import PointSampler
from point_rend.tracing import Rendering, Step, recorded_renderings
from point_rend.visualize import (
    Colour,
    Panel,
    View,
    check_output,
    colour_of,
    overlay_masks,
    panels_picture,
    places_of_difference,
    save_animation,
    save_figure,
    save_picture,
    uncertainty_picture,
)

# Also when this file is run as a script, beside which `tools` is no package.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import train_net
from tools.predict_model import (
    Legend,
    Predictor,
    build_legend,
    build_parser,
    read_config,
    read_picture,
)

Window = tuple[float, float, float, float]

MAX_COLUMNS = 4
MARGIN = 0.12  # around a box where more than its mask is shown
MASK_COLOUR = colour_of(3)
NUM_ZOOMS = 2
ZOOM = 5  # times, about
SAMPLING = ("grid", "1,0", "3,0.75", "10,0.75")  # table 4 of the paper
FORMATS = ("png", "gif", "pdf")


class Subject(NamedTuple):
    """A region of an image, and how it was rendered.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        rendering: with this region among others.
        region: its number there.
        frame: what the grids of the rendering cover, in pixels of the image.
        window: the part of the image to show.
        colours: of the classes, where the rendering has them all.
    """

    image: np.ndarray
    rendering: Rendering
    region: int
    frame: Window
    window: Window
    colours: Sequence[Colour]

    def logits(self, grids: Tensor) -> np.ndarray:
        """Take this region's (C, H, W) out of grids (N, C, H, W)."""
        return grids[self.region].float().cpu().numpy()

    def view(self, size: int) -> View:
        """Show the window at a size, the length of its longer side in pixels."""
        return View.around(self.window, size, self.frame)

    def with_margin(self) -> "Subject":
        """Show also what lies around the window, inside the image."""
        x0, y0, x1, y1 = self.window
        dx, dy = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
        height, width = self.image.shape[:2]
        larger = (max(x0 - dx, 0), max(y0 - dy, 0), min(x1 + dx, width), min(y1 + dy, height))
        return self._replace(window=larger)

    def squared(self) -> "Subject":
        """Show a square around the window; what is outside the image repeats its border."""
        x0, y0, x1, y1 = self.window
        half = max(x1 - x0, y1 - y0) / 2
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        return self._replace(window=(x - half, y - half, x + half, y + half))

    def labels(
        self, view: View, logits: np.ndarray, mode: Literal["bilinear", "nearest"]
    ) -> np.ndarray:
        """Segment what a view shows by logits (C, h, w): (H, W), 1 for the mask or the class."""
        if len(logits) == 1:
            probabilities = torch.from_numpy(logits).sigmoid().numpy()
            return (view.of_map(probabilities, mode)[0] > 0.5).astype(np.int64)
        return view.of_map(logits, mode).argmax(axis=0)

    def painted(self, view: View, labels: np.ndarray, *, outline: int) -> np.ndarray:
        """Paint labels (H, W) over what a view shows of the image."""
        classes = np.unique(labels)
        colours = [self.colours[k] for k in classes] if self.colours else [MASK_COLOUR]
        if not self.colours:
            classes = np.array([1])
        masks = labels[None] == classes[:, None, None]
        return overlay_masks(view.of_image(self.image), masks, colours, outline=outline)


class Figure(NamedTuple):
    """A figure, and the panels of it that make an animation. A notebook shows it by itself."""

    rows: list[list[Panel]]
    frames: list[Panel]

    def __repr__(self) -> str:
        return f"Figure of {sum(map(len, self.rows))} panels"

    def _repr_jpeg_(self) -> bytes:
        quality = (cv2.IMWRITE_JPEG_QUALITY, 75)
        return cv2.imencode(".jpg", panels_picture(self.rows), quality)[1].tobytes()


def in_rows(panels: Sequence[Panel]) -> Figure:
    """Arrange panels of one size in rows; all of them make the animation."""
    num_rows = math.ceil(len(panels) / MAX_COLUMNS)
    columns = math.ceil(len(panels) / num_rows)
    rows = [list(panels[i : i + columns]) for i in range(0, len(panels), columns)]
    return Figure(rows, list(panels))


def side_text(grid: Tensor | np.ndarray) -> str:
    """Write the height and width of a grid."""
    return "×".join(map(str, grid.shape[-2:]))


# What is looked at


@torch.no_grad()
def find_instances(
    predictor: Predictor, image: np.ndarray, given: tuple[Window, int] | None = None
) -> list[Subject]:
    """Render the masks of all instances, best first.

    Args:
        predictor: with a model of instances.
        image: (H, W, 3) uint8, BGR.
        given: a box in pixels of the image and its class, in place of all detections.

    Raises:
        ValueError: if the model has no point head for masks.
    """
    inputs = predictor.inputs(image)
    scale = _scale(inputs)
    detected = None
    if given is not None:
        box, category = given
        boxes = Boxes(torch.tensor([box]) / torch.tensor(scale * 2))
        detected = Instances(tuple(inputs["image"].shape[1:]), pred_boxes=boxes)
        detected.pred_classes = torch.tensor([category])
        detected = [detected.to(predictor.model.device)]
    model: Any = predictor.model
    with recorded_renderings(model.roi_heads.mask_head) as renderings:
        if detected is None:
            found = model.inference([inputs], do_postprocess=False)
        else:
            found = model.inference([inputs], detected, do_postprocess=False)
    (found,) = found[0] if isinstance(found, tuple) else found  # a panoptic model's labels aside
    subjects = {}
    for rendering in renderings:
        assert rendering.boxes is not None
        assert rendering.classes is not None
        for region, key in enumerate(_keys(rendering.boxes, rendering.classes)):
            x0, y0, x1, y1 = key[0]
            frame = (x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1])
            subjects[key] = Subject(image, rendering, region, frame, frame, ())
    # Boxes that need equally many steps are rendered together (SUBDIVISION_CELLS_PER_PIXEL).
    return [subjects[key] for key in _keys(found.pred_boxes.tensor, found.pred_classes)]


def _keys(boxes: Tensor, classes: Tensor) -> list[tuple[Window, int]]:
    """Name boxes (N, 4) of classes (N,)."""
    return list(zip(map(tuple, boxes.tolist()), classes.tolist(), strict=True))


def find_instance(
    predictor: Predictor, image: np.ndarray, number: int, given: tuple[Window, int] | None
) -> Subject:
    """Render the mask of an instance.

    Args:
        predictor: with a model of instances.
        image: (H, W, 3) uint8, BGR.
        number: of the detection, best first.
        given: a box in pixels of the image and its class, in place of all detections.

    Raises:
        ValueError: if there are fewer detections, or if the model has no point head for masks.
    """
    subjects = find_instances(predictor, image, given)
    if number >= len(subjects):
        raise ValueError(
            f"--instance {number}: the model finds {len(subjects)} in this picture, counted from "
            "0; a lower --confidence-threshold lets more of them count"
        )
    return subjects[number]


@torch.no_grad()
def find_region(
    predictor: Predictor, image: np.ndarray, window: Window | None, colours: Sequence[Colour]
) -> Subject:
    """Render the labels of an image, to show a part of it.

    Args:
        predictor: with a semantic or a panoptic model.
        image: (H, W, 3) uint8, BGR.
        window: in pixels of the image; all of it if None.
        colours: of the classes.
    """
    inputs = predictor.inputs(image)
    scale = _scale(inputs)
    model: Any = predictor.model
    with recorded_renderings(model.sem_seg_head) as renderings:
        model([inputs])
    (rendering,) = renderings
    *_, last = rendering.steps()
    height, width = last.logits.shape[-2:]  # a cell is a pixel of the input
    frame = (0.0, 0.0, width * scale[0], height * scale[1])
    whole = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
    return Subject(image, rendering, 0, frame, window or whole, colours)


def _scale(inputs: dict[str, Any]) -> tuple[float, float]:
    """Return the picture's width and height over those of the model's input."""
    height, width = inputs["image"].shape[1:]
    return inputs["width"] / width, inputs["height"] / height


# The figures


@torch.no_grad()
def all_grids(rendering: Rendering) -> list[tuple[Step, str]]:
    """List the coarse grid, those that rendering skips because every cell is chosen, and the steps.

    Returns:
        Each with what its points are.
    """
    first, *steps = rendering.steps()
    grids = []
    coarse, boxes = rendering.coarse_logits, rendering.boxes
    if coarse is not None:
        grids.append((Step(coarse, coarse.new_zeros(len(coarse), 0, 2), None), "coarse head"))
    if boxes is not None:
        if coarse is not None:
            side = 2 * coarse.shape[-1]
            while side < first.logits.shape[-1]:
                coords = regular_grid(len(coarse), side, coarse.device)
                logits = rendering.predict(coords).unflatten(2, (side, side))
                grids.append((Step(logits, coords, None), "every cell"))
                side *= 2
        grids.append((first, "every cell"))
    for step in steps:
        count = step.coords.shape[1]
        covers = count == step.logits[0, 0].numel()
        grids.append((step, "every cell" if covers else f"{count} points"))
    return grids


def steps_figure(subject: Subject, size: int) -> Figure:
    """Show the mask after each step with the points that the step predicted."""
    view = subject.view(size)
    panels = [Panel(view.of_image(subject.image), "input")]
    for step, what in all_grids(subject.rendering):
        logits = subject.logits(step.logits)
        picture = subject.painted(view, subject.labels(view, logits, "nearest"), outline=1)
        points, radius = np.zeros((0, 2)), 1.0
        if what.endswith("points"):
            points = view.of_points(step.coords[subject.region].cpu().numpy())
            radius = _radius(view, logits.shape[-1])
        panels.append(Panel(picture, f"{side_text(logits)}, {what}", points, radius))
    return in_rows(panels)


def _radius(view: View, columns: int) -> float:
    """Return the radius of a point that stands for a cell of a grid with so many columns."""
    shown = (view.frame[2] - view.frame[0]) / (view.window[2] - view.window[0])
    return float(np.clip(0.3 * view.size[1] * shown / columns, 1.2, 5))


def training_points_figure(
    subject: Subject, size: int, samplers: Sequence[PointSampler], seed: int
) -> Figure:
    """Show where training would sample, over the coarse prediction.

    A head that makes no coarse prediction, as the implicit one, trains at uniform points; here its
    first grid takes the place of it.
    """
    rendering = subject.rendering
    coarse = rendering.coarse_logits
    logits = next(rendering.steps()).logits if coarse is None else coarse
    logits = logits[subject.region : subject.region + 1].float().cpu()
    view = subject.view(size)
    labels = subject.labels(view, logits[0].numpy(), "bilinear")
    painted = subject.painted(view, labels, outline=1)
    panels = []
    for sampler in samplers:
        generator = torch.Generator().manual_seed(seed)
        coords = sampler.sample(logits, rendering.uncertainty, generator)
        k, beta = sampler.oversample_ratio, sampler.importance_sample_ratio
        title = "regular grid" if sampler.on_regular_grid else f"k = {k:g}, β = {beta:g}"
        panels.append(Panel(painted, title, view.of_points(coords[0].numpy()), size / 160))
    return in_rows(panels)


def uncertainty_figure(subject: Subject, size: int) -> Figure:
    """Show the maps by which the steps chose their points, and the one that remains."""
    view = subject.view(size)
    maps = []
    for step in subject.rendering.steps():
        if step.uncertainty is not None:
            count = step.coords.shape[1]
            maps.append((step.uncertainty, f"{side_text(step.logits)}, before {count} points"))
    maps.append(
        (subject.rendering.uncertainty(step.logits), f"{side_text(step.logits)}, at the end")
    )
    panels = [Panel(view.of_image(subject.image), "input")]
    for values, title in maps:
        panels.append(Panel(uncertainty_picture(view.of_map(subject.logits(values))[0]), title))
    return in_rows(panels)


def comparison_figure(subject: Subject, size: int) -> Figure:
    """Show coarse and fine side by side, and the places where they differ most, enlarged."""
    subject = subject.with_margin()
    view = subject.view(size)
    top, labels = _coarse_and_fine(subject, view)
    zooms = places_of_difference(*labels, side=max(1, size // ZOOM), count=NUM_ZOOMS)
    enlarged = []
    for number, window in enumerate(zooms, start=1):
        x0, y0, x1, y1 = window
        for panel in top:
            cv2.rectangle(panel.picture, (x0, y0), (x1 - 1, y1 - 1), (255, 255, 255), 2)
        zoomed, _ = _coarse_and_fine(subject, view.zoomed(window, view.size[1]))
        enlarged.append([panel._replace(title=f"place {number}") for panel in zoomed])
    return Figure([top, *enlarged], top)


def instances_figure(subjects: Sequence[Subject], size: int) -> Figure:
    """Show coarse and fine of many instances, each in a square, two instances in a row."""
    squares = [subject.with_margin().squared() for subject in subjects]
    panels = [_coarse_and_fine(subject, subject.view(size))[0] for subject in squares]
    pairs = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    return Figure([list(itertools.chain(*pair)) for pair in pairs], list(itertools.chain(*panels)))


def _coarse_and_fine(subject: Subject, view: View) -> tuple[list[Panel], list[np.ndarray]]:
    """Draw the input, the coarse mask and the rendered one; return also the labels of the two."""
    first, *steps = subject.rendering.steps()
    coarse = subject.rendering.coarse_logits
    coarse = first.logits if coarse is None else coarse
    fine = steps[-1].logits if steps else first.logits
    labels = [subject.labels(view, subject.logits(x), "bilinear") for x in (coarse, fine)]
    painted = [subject.painted(view, x, outline=2) for x in labels]
    titles = ("input", f"coarse {side_text(coarse)}", f"fine {side_text(fine)}")
    pictures = (view.of_image(subject.image), *painted)
    return [Panel(*pair) for pair in zip(pictures, titles, strict=True)], labels


# The command


def sampling(text: str) -> tuple[float, float] | None:
    """Read "k,β", or "grid" as None."""
    if text == "grid":
        return None
    try:
        k, beta = map(float, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected K,BETA or grid, got {text!r}") from error
    return k, beta


def save(figure: Figure, path: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure in some formats; `path` has no suffix. Returns the files."""
    writers: dict[str, Callable[[Path], None]] = {
        "png": lambda file: save_picture(file, panels_picture(figure.rows)),
        "gif": lambda file: save_animation(
            file, [panels_picture([[panel]]) for panel in figure.frames]
        ),
        "pdf": lambda file: save_figure(file, figure.rows),
    }
    files = [path.with_suffix(f".{name}") for name in formats]
    for name, file in zip(formats, files, strict=True):
        writers[name](file)
    return files


def class_number(text: str | None, legend: Legend) -> int:
    """Read the name or the number of a class of instances.

    Raises:
        ValueError: if there is no such class, or if none is named and there are several.
    """
    names = legend.things.names
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


def look(args: argparse.Namespace) -> tuple[Subject, int]:
    """Find what the options mean; return it with the number of training points.

    Raises:
        FileNotFoundError, ValueError: if they mean nothing that is there.
    """
    cfg = read_config(args)
    outputs = train_net.model_outputs(cfg)
    unsafe = args.allow_unsafe_checkpoint
    legend = build_legend(cfg, outputs, args.classes, allow_unsafe=unsafe)
    image = read_picture(args.input)
    window = args.region and tuple(args.region)
    if window is not None:
        x0, y0, x1, y1 = window
        if not (0 <= x0 < x1 <= image.shape[1] and 0 <= y0 < y1 <= image.shape[0]):
            raise ValueError(
                f"--region {x0:g} {y0:g} {x1:g} {y1:g}: expected X0 < X1 and Y0 < Y1 inside the "
                f"picture, which is {image.shape[1]} × {image.shape[0]} pixels"
            )
    own = cfg.MODEL.SEM_SEG_HEAD.get("POINT_HEAD")
    of_labels = "instances" not in outputs or (window is not None and "sem_seg" in outputs)
    given = None
    if not of_labels and window is not None:
        given = window, class_number(args.class_name, legend)
    predictor = Predictor(cfg, allow_unsafe=unsafe)
    if of_labels:
        point_head = own if own is not None and own.NAME else cfg.MODEL.POINT_HEAD
        subject = find_region(predictor, image, window, legend.stuff.colours)
    else:
        point_head = cfg.MODEL.POINT_HEAD
        subject = find_instance(predictor, image, args.instance, given)
    return subject, point_head.TRAIN_NUM_POINTS


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Run the command line.

    Args:
        argv: the arguments; those of the process if not given.

    Returns:
        The files written.

    Raises:
        SystemExit: with code 2 after an error that the user can put right.
    """
    parser = build_parser("Show how a mask is rendered.")
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
        help="a part of the picture, in its pixels, in place of a detection",
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
        help="settings of training-points; grid is the regular one, of the next lower square "
        f"number of points (default {' '.join(SAMPLING)}, those of the paper's table 4)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training points (default 0)")
    parser.add_argument(
        "--size", type=int, default=448, help="longer side of a panel in pixels (default 448)"
    )
    args = parser.parse_args(argv)
    with train_net.user_errors():
        if args.instance < 0 or args.size < 32:
            raise ValueError("--instance must be 0 or more, and --size 32 or more")
        check_output(args.output, folder=True)
        subject, num_points = look(args)
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


if __name__ == "__main__":
    main()
