"""Export of a trained model into a file, as `pointrend export` runs it."""

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.modeling import build_model
from torch import nn

from point_rend.checkpoint.complete_model import CompleteModelCheckpointer
from point_rend.config.checks import check_config
from point_rend.config.defaults import pixel_format
from point_rend.config.loading import COMMAND_LINE
from point_rend.config.trial import check_model
from point_rend.data.augmentation import as_input, build_augmentations
from point_rend.export.accuracy import AccuracyOfFiles
from point_rend.export.build import build_graph
from point_rend.export.describing import check_exportable, describe
from point_rend.export.graph import Graph
from point_rend.export.quantization import FLOAT16, INT8, quantize
from point_rend.export.verification import format_differences, verify
from point_rend.export.writers import write_onnx, write_torch_export, write_torchscript
from point_rend.inference.folder import check_target, save_folder
from point_rend.inference.inputs import find_images
from point_rend.inference.settings import Settings, load_settings
from point_rend.runtime.description import Description
from point_rend.runtime.exported_model import padded_batch
from point_rend.runtime.files import ONNX, TORCH_EXPORT, TORCHSCRIPT
from point_rend.runtime.model_folder import FILES
from point_rend.runtime.sessions import ONNXRUNTIME, OPENVINO, Session, open_session
from point_rend.utils.bands import image_size, read_input
from point_rend.utils.downloads import is_url
from point_rend.utils.files import atomic_path, check_output


class Format(NamedTuple):
    """A format of files.

    Attributes:
        suffix: Of the file's name.
        write: Writes a graph.
        packages: What it needs, by import name; all are in the extra "onnx".
    """

    suffix: str
    write: Callable[[Graph, Path, Description], None]
    packages: tuple[str, ...] = ()


AP_DROP = 0.5  # the default of --max-ap-drop, in percent
FOLDER = "folder"  # the format that is no graph
FORMATS = {
    "onnx": Format(ONNX, write_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch-export": Format(TORCH_EXPORT, write_torch_export),
    "torchscript": Format(TORCHSCRIPT, write_torchscript),
}


class Report(NamedTuple):
    """The outcome of an export.

    Attributes:
        text: What to print.
        written: Whether there is a file now: it was loaded and run, and passed the comparisons.
    """

    text: str
    written: bool


class _RefusedError(Exception):
    """The file is not what was asked for; the report has the reason."""


def run(args: argparse.Namespace, version: str) -> Report:
    """Export a model.

    Args:
        args: The parsed command line of `pointrend export`.
        version: Version of this package.

    Raises:
        FileNotFoundError, OSError: If a file cannot be read or written.
        ValueError: If options, config and checkpoint do not fit together, or something in the model
            has no graph.
    """
    if args.format == FOLDER:
        _check_folder_options(args)
    else:
        _check_options(args)
    settings = load_settings(
        args.config_file,
        args.opts,
        device="cpu",
        class_names=args.classes,
        ignore_class_names=args.ignore_class_names,
        allow_unsafe=args.allow_unsafe_checkpoint,
        opts_source=COMMAND_LINE,
    )
    cfg = settings.cfg
    read = [x for x in (cfg.MODEL.WEIGHTS, args.config_file) if not is_url(x)]
    check_output(args.output, folder=args.format == FOLDER, inputs=read)
    check_config(cfg, training=False)
    if args.format != FOLDER:
        check_exportable(cfg)
    check_model(cfg, training=False)
    images, typical = (_find(option, getattr(args, option)) for option in ("verify", "calibration"))
    accuracy = AccuracyOfFiles(cfg, args) if args.precision else None

    model = build_model(cfg).eval()
    checkpointer = CompleteModelCheckpointer(model, allow_unsafe=args.allow_unsafe_checkpoint)
    checkpointer.load(cfg.MODEL.WEIGHTS)
    if args.format == FOLDER:
        return _save(args, model, settings)
    graph = build_graph(model, part=args.part)
    description = describe(graph, cfg, settings.metadata, version)
    lines: list[str] = []
    try:
        with atomic_path(args.output) as temporary:
            FORMATS[args.format].write(graph, temporary, description)
            sessions = _open(temporary, args)
            for session in sessions:
                session(*graph.example())
            if images:
                inputs = _read(cfg, images)
                differences = verify(model, graph, description, sessions, inputs)
                lines.append(format_differences(differences, description.task))
                if not all(x.passes for x in differences):
                    raise _RefusedError
            if accuracy is not None:
                before = accuracy.measure(temporary)
                resized = (x["image"] for x in _read(cfg, typical))
                batches = (padded_batch([image], description.divisor) for image in resized)
                arrays = ([x.numpy() for x in batch] for batch in batches)
                quantize(temporary, temporary, precision=args.precision, batches=arrays)
                after = accuracy.measure(temporary)
                lines.append(
                    f"{accuracy.name} on {cfg.DATASETS.TEST[0]}: {before:.2f} in float32, "
                    f"{after:.2f} in {args.precision}"
                )
                most = AP_DROP if args.max_ap_drop is None else args.max_ap_drop
                if not before - after <= most:
                    lines.append(f"it drops by more than --max-ap-drop {most:g}")
                    raise _RefusedError
    except _RefusedError:
        return Report("\n".join([*lines, f"{args.output} was not written"]), written=False)
    size = Path(args.output).stat().st_size / 1e6
    lines.append(f"{args.output}: {size:.1f} MB, {len(description.classes)} class names")
    return Report("\n".join(lines), written=True)


def _save(args: argparse.Namespace, model: nn.Module, settings: Settings) -> Report:
    """Save the model in a folder."""
    folder = save_folder(
        args.output,
        model,
        settings.cfg,
        settings.metadata,
        license=args.license,
        metrics=args.metrics,
        overwrite=args.overwrite,
    )
    return Report(f"{folder}: {', '.join(FILES)}", written=True)


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not fit together, and formats whose packages are not installed.

    The device of a config file does not matter, but one that is asked for would be ignored.

    Raises:
        ValueError: If there are any.
    """
    chosen = FORMATS[args.format]
    settings = dict(zip(args.opts[::2], args.opts[1::2], strict=False))  # keys are checked later
    if settings.get("MODEL.DEVICE", "cpu") != "cpu":
        raise ValueError(
            f"MODEL.DEVICE is {settings['MODEL.DEVICE']}, but an export runs on the CPU: "
            "leave it out"
        )
    if args.license or args.metrics or args.overwrite:
        raise ValueError("--license, --metrics and --overwrite are for --format folder")
    if Path(args.output).suffix.lower() != chosen.suffix:
        raise ValueError(
            f"--output {args.output}: expected a name that ends in {chosen.suffix} for --format "
            f"{args.format}"
        )
    missing = [name for name in chosen.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--format {args.format} needs {', '.join(missing)}; install it with: "
            'pip install "point_rend[onnx]"'
        )
    if args.precision and (args.format != "onnx" or args.part != "model"):
        raise ValueError("--half and --int8 are for --format onnx and whole models")
    if args.precision and args.verify:
        raise ValueError(
            "--verify expects the masks of the model, which --half and --int8 change a little: "
            "leave --verify out, their accuracy is compared in any case"
        )
    if bool(args.calibration) != (args.precision == INT8):
        raise ValueError("--int8 needs --calibration IMAGES, and nothing else does")
    of_accuracy = {
        "--max-ap-drop": args.max_ap_drop is not None,
        "--register-coco": args.register_coco,
        "--register-sem-seg": args.register_sem_seg,
    }
    given = [flag for flag, is_given in of_accuracy.items() if is_given]
    if given and not args.precision:
        raise ValueError(
            f"{', '.join(given)}: expected --half or --int8, whose accuracy is measured"
        )
    if args.max_ap_drop is not None and not args.max_ap_drop >= 0:
        raise ValueError(f"--max-ap-drop: expected 0 or more, got {args.max_ap_drop}")


def _check_folder_options(args: argparse.Namespace) -> None:
    """Refuse options of graphs for --format folder, and a folder that is in use.

    Raises:
        ValueError: If there are any, or it is.
    """
    check_target(args.output, overwrite=args.overwrite)
    of_graphs = {
        "--part": args.part != "model",
        "--verify": args.verify,
        "--half": args.precision == FLOAT16,
        "--int8": args.precision == INT8,
        "--calibration": args.calibration,
    }
    given = [flag for flag, is_given in of_graphs.items() if is_given]
    if given:
        raise ValueError(f"{', '.join(given)}: --format folder saves the model as it is")


def _find(option: str, given: Sequence[str]) -> list[Path]:
    """Find the images of an option.

    Raises:
        ValueError: If it is given and there is one without an image.
        OSError: If one cannot be read.
    """
    found = find_images(given)
    if found.missing:
        raise ValueError(f"--{option}: {'; '.join(found.missing)}")
    for file in found.files.values():  # their headers, before the long computation
        image_size(file)
    return list(found.files.values())


def _read(cfg: CfgNode, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Read images as the model takes them."""
    augmentations = AugmentationList(build_augmentations(cfg, is_train=False))
    for file in files:
        augmented = AugInput(read_input(file, pixel_format(cfg)))
        augmentations(augmented)
        yield {"image": as_input(augmented.image)}


def _open(path: Path, args: argparse.Namespace) -> list[Session]:
    """Load the written file in each runtime that is installed and will be compared."""
    backends: list[str | None] = [None]
    if args.format == "onnx":
        backends = [ONNXRUNTIME]
        if args.verify and importlib.util.find_spec(OPENVINO) is not None:
            backends.append(OPENVINO)
    return [open_session(path, backend=backend, allow_unsafe=True) for backend in backends]
