"""Command-line options of the commands that run a model; Detectron2 is not imported."""

import argparse

from point_rend.config.files import config_file_option
from point_rend.utils.arguments import add_exported_options, add_folder_option
from point_rend.utils.program import program


def build_parser(
    description: str,
    *,
    exported: bool = False,
    folders: bool = False,
    threshold: float | None = 0.5,
) -> argparse.ArgumentParser:
    """Build a parser with the options that name a model.

    Args:
        description: Of the command.
        exported: Whether the command also runs folders of `save_pretrained` and files of `pointrend
            export`.
        folders: Whether it runs such folders, but no such files.
        threshold: Default of --confidence-threshold; without one there is no such option.
    """
    parser = argparse.ArgumentParser(prog=program(), description=description)
    add_model_options(parser, exported=exported, folders=folders, threshold=threshold)
    return parser


def add_model_options(
    parser: argparse._ActionsContainer,
    *,
    required: bool = True,
    exported: bool = False,
    folders: bool = False,
    threshold: float | None = 0.5,
) -> None:
    """Add the options that name a model.

    Args:
        parser: A parser, or a group of its options.
        required: Whether the user has to name one.
        exported, folders, threshold: As of :func:`build_parser`.
    """
    models = parser.add_mutually_exclusive_group(required=required)
    models.add_argument(
        "--config-file",
        type=config_file_option,
        metavar="FILE",
        help="path, or name of a config of this package",
    )
    if exported:
        add_exported_options(parser, models)
    else:
        parser.set_defaults(model=None, backend=None)
        if folders:
            add_folder_option(models)
    if threshold is None:
        parser.set_defaults(confidence_threshold=None)
    else:
        parser.add_argument(
            "--confidence-threshold",
            type=float,
            default=threshold,
            metavar="SCORE",
            help="drop instances with lower scores (default %(default)g)",
        )
    parser.add_argument(
        "--classes",
        help="names of the classes: a COCO file, a file with one name per line, or the names "
        "separated by commas; by default those of the checkpoint, or else of the data sets of the "
        "config",
    )
    parser.add_argument(
        "--ignore-class-names",
        action="store_true",
        help="take --classes by their position; by default they are matched with the names in the "
        "checkpoint where these are the same",
    )
    parser.add_argument(
        "--allow-unsafe-checkpoint",
        action="store_true",
        help="load a checkpoint even if that executes code in the file; only for files you trust",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys that override the file, such as MODEL.WEIGHTS; these come last",
    )
