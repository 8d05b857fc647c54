"""`pointrend ablate`: the paper's ablations, several heads and several configs, on any data set.

    pointrend ablate subdivision --output output/subdivision -- \
        --config-file output/demo/pointrend/config.yaml \
        --register-coco shapes_val output/demo/shapes/annotations/instances_val.json \
        output/demo/shapes/val MODEL.WEIGHTS output/demo/pointrend/model_final.pth

evaluates a model with more or fewer points and steps, without any training; a semantic model also
with its coarse logits alone, and with every pixel predicted by its point head.

    pointrend ablate sampling --output output/sampling --seeds 1,2,3 -- \
        --config-file Demo/pointrend_shapes.yaml \
        --register-coco shapes_train output/demo/shapes/annotations/instances_train.json \
        output/demo/shapes/train --register-coco shapes_val \
        output/demo/shapes/annotations/instances_val.json output/demo/shapes/val

trains a model with every choice of the training points and every seed.

    pointrend ablate heads --output output/heads --seeds 1,2,3 -- \
        --config-file Demo/pointrend_shapes.yaml \
        --register-coco shapes_train output/demo/shapes/annotations/instances_train.json \
        output/demo/shapes/train --register-coco shapes_val \
        output/demo/shapes/annotations/instances_val.json output/demo/shapes/val

trains a PointRend model with the standard point head, with a residual one, and with the dense head
of its baseline. `--iterations 200,600` makes trainings of several lengths, and plots learning
curves.

    pointrend ablate recipes --output output/recipes --seeds 1,2,3 \
        --recipes Demo/pointrend_shapes.yaml,Demo/mask_rcnn_shapes.yaml -- \
        --register-coco shapes_train output/demo/shapes/annotations/instances_train.json \
        output/demo/shapes/train --register-coco shapes_val \
        output/demo/shapes/annotations/instances_val.json output/demo/shapes/val

trains the models of several configs with every seed.

The options after `--` are those of `pointrend train`; the settings of the ablation override them.
The metrics of each run are kept in a file, and trainings keep their checkpoints, so that an
interrupted command continues when it is run again; it refuses to do so after a change of the
config, the weights or the annotations. At the end the results are written as a Markdown table and
plotted.
"""

import argparse
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from point_rend.experiments.ablation.settings import (
    ALL_PIXELS,
    HEADS,
    MAP_POINTS,
    POINT_SIDES,
    SAMPLING_SETTINGS,
    SEEDS,
    SIDES,
)
from point_rend.utils.errors import user_errors
from point_rend.utils.files import check_output, write_text
from point_rend.utils.program import program

if TYPE_CHECKING:
    from point_rend.experiments.ablation.trainings import Results


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line before `--`."""
    parser = argparse.ArgumentParser(
        prog=program(),
        description="Run the paper's ablations.",
        epilog="The options of `pointrend train` follow after --.",
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--output", type=Path, required=True, help="folder of the results")
    shared.add_argument(
        "--metric",
        type=_words,
        default=[],
        help="metrics to show, separated by commas, such as sem_seg/mIoU,sem_seg/IoU-*; quote a * "
        "(default segm/AP, or else sem_seg/mIoU; of heads also the boundary metric)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    subdivision = commands.add_parser(
        "subdivision", parents=[shared], help="Table 3: output side and points at inference"
    )
    subdivision.add_argument(
        "--sides", type=_numbers, help=f"of the masks (default {_listed(SIDES)})"
    )
    subdivision.add_argument(
        "--point-sides",
        type=_numbers,
        help=f"square roots of the points per step of masks (default {_listed(POINT_SIDES)})",
    )
    subdivision.add_argument(
        "--points",
        type=_map_points,
        help="points per step in the maps of a semantic model; 0 leaves the coarse logits, all "
        "predicts every pixel (default 0,512,2048,8192,all)",
    )
    sampling = commands.add_parser(
        "sampling", parents=[shared], help="Table 4: choice of the training points"
    )
    sampling.add_argument(
        "--settings",
        type=_names_from(SAMPLING_SETTINGS),
        default=list(SAMPLING_SETTINGS),
        help=f"some of {_listed(SAMPLING_SETTINGS)} (default all)",
    )
    heads = commands.add_parser(
        "heads", parents=[shared], help="the heads of a PointRend model, and of its baseline"
    )
    heads.add_argument(
        "--heads",
        type=_names_from(HEADS),
        default=list(HEADS[:3]),
        help=f"some of {_listed(HEADS)} (default {_listed(HEADS[:3])}); baseline is the 4×conv "
        "head of instances, and the coarse head alone in semantic segmentation",
    )
    recipes = commands.add_parser("recipes", parents=[shared], help="the models of several configs")
    recipes.add_argument(
        "--recipes", type=_words, required=True, help="config files, separated by commas"
    )
    for command in (sampling, heads, recipes):
        command.add_argument(
            "--seeds", type=_numbers, default=SEEDS, help=f"(default {_listed(SEEDS)})"
        )
        command.add_argument(
            "--iterations",
            type=_numbers,
            default=[],
            help="lengths of trainings, for learning curves; SOLVER.STEPS are scaled with "
            "SOLVER.MAX_ITER (default: the length of the config)",
        )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 2 after an error that the user can correct; with the exit code of a
            training that failed or was interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    own, options = words, []
    if "--" in words:
        own, options = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = build_parser()
    args = parser.parse_args(own)
    if not options:
        parser.error("expected -- and then options of `pointrend train`")
    with user_errors():
        check_output(args.output, folder=True)
        run = {
            "subdivision": _subdivision,
            "sampling": _sampling,
            "heads": _heads,
            "recipes": _recipes,
        }
        table = run[args.command](args, options, args.output / f"{args.command}.png")
        print(f"\n{table}")
        write_text(args.output / f"{args.command}.md", f"{table}\n")


def _subdivision(args: argparse.Namespace, options: list[str], plot: Path) -> str:
    """Run the ablation of Table 3, save its plot and return its table."""
    from point_rend.experiments.ablation import subdivision
    from point_rend.experiments.ablation.results import shown_metrics
    from point_rend.experiments.ablation.subdivision import SubdivisionSetting

    renders_maps = subdivision.renders_maps(options)
    of_others = ("sides", "point_sides") if renders_maps else ("points",)
    for flag in (f"--{x.replace('_', '-')}" for x in of_others if getattr(args, x)):
        kind = "the maps of semantic segmentation" if renders_maps else "masks"
        raise ValueError(f"{flag}: expected none, since the model renders {kind}")
    if renders_maps:
        settings = [SubdivisionSetting(None, points) for points in args.points or MAP_POINTS]
        measured = subdivision.subdivision_ablation(
            options, args.output, settings, metrics=args.metric
        )
        metrics = shown_metrics(args.metric, next(iter(measured.values())))
        subdivision.plot_map_points(measured, metrics, plot)
        return subdivision.format_map_points(measured, metrics)
    sides, roots = args.sides or SIDES, args.point_sides or POINT_SIDES
    settings = [SubdivisionSetting.of(side, root**2) for side in sides for root in roots]
    measured = subdivision.subdivision_ablation(options, args.output, settings, metrics=args.metric)
    metrics = shown_metrics(args.metric, next(iter(measured.values())))
    subdivision.plot_subdivision(measured, sides, roots, metrics, plot)
    return subdivision.format_subdivision(measured, sides, roots, metrics)


def _sampling(args: argparse.Namespace, options: list[str], plot: Path) -> str:
    """Run the ablation of Table 4, save its plot and return its table."""
    from point_rend.experiments.ablation.sampling import sampling_ablation

    measured = sampling_ablation(
        options,
        args.output,
        args.settings,
        args.seeds,
        lengths=args.iterations,
        metrics=args.metric,
    )
    titles = {setting: SAMPLING_SETTINGS[setting].title for setting in args.settings}
    return _trainings(measured, titles, args.metric, plot, "training points")


def _heads(args: argparse.Namespace, options: list[str], plot: Path) -> str:
    """Train a model with several heads, save the plot and return the table."""
    from point_rend.experiments.ablation.heads import head_ablation, head_settings

    settings = head_settings(options, args.heads)
    measured = head_ablation(
        options,
        args.output,
        settings,
        args.seeds,
        lengths=args.iterations,
        metrics=args.metric,
    )
    titles = {head: setting.title for head, setting in settings.items()}
    return _trainings(measured, titles, args.metric, plot, "head", boundary=True)


def _recipes(args: argparse.Namespace, options: list[str], plot: Path) -> str:
    """Train the models of several configs, save the plot and return the table."""
    from point_rend.experiments.ablation.recipes import recipe_ablation, with_averaged_weights

    measured = with_averaged_weights(
        recipe_ablation(
            options,
            args.output,
            args.recipes,
            args.seeds,
            lengths=args.iterations,
            metrics=args.metric,
        )
    )
    titles = {run.setting: run.setting for run in measured}
    return _trainings(measured, titles, args.metric, plot, "config")


def _trainings(
    measured: "Results",
    titles: dict[str, str],
    requested: list[str],
    plot: Path,
    heading: str,
    *,
    boundary: bool = False,
) -> str:
    """Save the plot of trainings and return their table."""
    from point_rend.experiments.ablation import results, trainings

    of_first = next(iter(measured.values()))
    metrics = results.shown_metrics(requested, of_first, boundary=boundary)
    trainings.plot_trainings(measured, list(titles), metrics, plot)
    return trainings.format_trainings(measured, titles, metrics, heading=heading)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _numbers(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise argparse.ArgumentTypeError(
            f"expected numbers from 1, separated by commas, got {text!r}"
        )
    return sorted({int(word) for word in words})


def _map_points(text: str) -> list[int]:
    words = text.split(",")
    if not all(word == "all" or (word.isdecimal() and int(word) < ALL_PIXELS) for word in words):
        raise argparse.ArgumentTypeError(
            f"expected numbers from 0 to {ALL_PIXELS - 1} or all, separated by commas, got {text!r}"
        )
    return sorted({ALL_PIXELS if word == "all" else int(word) for word in words})


def _names_from(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return a parser of names from a list, separated by commas."""

    def parse(text: str) -> list[str]:
        words = _words(text)
        if not all(word in known for word in words):
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(known)}, separated by commas, got {text!r}"
            )
        return words

    return parse


def _listed(values: Iterable[object]) -> str:
    return ",".join(map(str, values))
