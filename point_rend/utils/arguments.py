"""Types of command-line arguments."""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

MAX_DETS_FLAG = "--max-dets"


def named_result(text: str) -> tuple[str, Path]:
    """Parse [NAME=]FILE with an existing file."""
    name, file = named_file(text)
    if not file.is_file():
        raise argparse.ArgumentTypeError(f"expected [NAME=]FILE with an existing file, got {text}")
    return name, file


def named_file(text: str) -> tuple[str, Path]:
    """Parse NAME=FILE, or FILE, which is then also the name; only FILE may contain "="."""
    name, equals, file = text.partition("=")
    if not equals or os.path.exists(text):
        return text, Path(text)
    return name or file, Path(file)


def add_results_argument(
    parser: argparse.ArgumentParser, parse: Callable[[str], tuple[str, Path]], help_text: str
) -> None:
    """Add `--results [NAME=]FILE`, which may be repeated.

    Args:
        parser: The parser of a command.
        parse: :func:`named_file` or :func:`named_result`.
        help_text: Explains the files.
    """
    parser.add_argument(
        "--results",
        type=parse,
        action="append",
        required=True,
        metavar="[NAME=]FILE",
        help=help_text,
    )


def add_exported_options(
    parser: argparse._ActionsContainer, models: argparse._ActionsContainer
) -> None:
    """Add `--model` and `--backend`, for models that have their config inside.

    Args:
        parser: The parser of a command, or a group of its options.
        models: The parser, or a group of it, that gets `--model`.
    """
    models.add_argument(
        "--model",
        metavar="MODEL",
        help="a file of `pointrend export` (.onnx, .pt2, .ts), a folder of "
        "Predictor.save_pretrained, or a repository user/model of the Hugging Face Hub, which have "
        "their config inside, in place of --config-file and MODEL.WEIGHTS",
    )
    parser.add_argument(
        "--backend",
        choices=("onnxruntime", "openvino"),
        help="the library that runs an ONNX file (default onnxruntime)",
    )


def add_folder_option(models: argparse._ActionsContainer) -> None:
    """Add `--model` for folders and repositories that have a model with its config."""
    models.add_argument(
        "--model",
        metavar="FOLDER",
        help="a folder of Predictor.save_pretrained, or a repository user/model of the Hugging "
        "Face Hub, which have their config inside, in place of --config-file and MODEL.WEIGHTS",
    )


def add_data_set_options(parser: argparse.ArgumentParser) -> None:
    """Add `--register-coco` and `--register-sem-seg`."""
    parser.add_argument(
        "--register-coco",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGE_ROOT"),
        help="register a data set in COCO format under NAME; may be repeated",
    )
    parser.add_argument(
        "--register-sem-seg",
        nargs=4,
        action="append",
        default=[],
        metavar=("NAME", "IMAGES", "LABELS", "CLASSES"),
        help="register a folder of images and one of label maps (grayscale PNG files of the same "
        "names; 255 is ignored) under NAME; CLASSES is a file with one class name per line, or "
        "the names separated by commas; may be repeated",
    )


def check_backend(backend: str | None, model: str | None) -> None:
    """Refuse a --backend without a --model that is a file.

    Raises:
        ValueError: If there is one.
    """
    if backend is not None and model is None:
        raise ValueError(
            f"--backend {backend} runs the ONNX files of `pointrend export`: expected --model FILE"
        )


def add_max_dets_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--max-dets NUMBER`."""
    parser.add_argument(
        MAX_DETS_FLAG,
        type=int,
        default=-1,
        metavar="NUMBER",
        help="results with the highest scores that count: of an image and class for COCO's metrics "
        "(100), of an image for LVIS's (300); more for images with more objects",
    )


def check_names(flag: str, named: Sequence[tuple[str, Path]]) -> None:
    """Make sure that a flag gives each name once.

    Raises:
        ValueError: If a name is given to several files or folders.
    """
    for name, number in Counter(name for name, _ in named).items():
        if number > 1:
            raise ValueError(f"{flag}: the name {name!r} is given {number} times, expected once")


def check_min_score(number: float) -> None:
    """Refuse a --min-score that is no score.

    Raises:
        ValueError: If it is not in 0..1.
    """
    if not 0 <= number <= 1:
        raise ValueError(f"--min-score: expected 0 to 1, got {number}")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the keys and values of the config, which take the rest of the command line."""
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys and their values, after all options",
    )
