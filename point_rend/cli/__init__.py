# PYTHON_ARGCOMPLETE_OK
"""The `pointrend` command: one module per sub-command.

A sub-command is imported only when it runs; `pointrend --help` needs the standard library alone.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from point_rend import __version__
from point_rend.utils.errors import USER_ERROR, did_you_mean, say_error
from point_rend.utils.imports import NO_DETECTRON2, after_import, lacks_detectron2
from point_rend.utils.signals import signals_end_the_command
from point_rend.utils.third_party import hide_third_party_warnings
from point_rend.utils.waiting import wait_passively

# Here, because every door imports this before Detectron2 and PyTorch.
hide_third_party_warnings()
wait_passively()


def _guard_detectron2() -> None:
    importlib.import_module("point_rend.utils.downloads").guard_detectron2()


after_import("detectron2.utils.file_io", _guard_detectron2, undisturbed=())

GROUPS = {
    "train and evaluate": {
        "inspect": "report on the data, and suggest settings that fit them",
        "train": "train a model, or continue with --resume",
        "evaluate": "evaluate a model on data sets",
    },
    "use a model": {
        "predict": "segment images, folders, a video or the camera",
        "refine": "render masks for the boxes of any detector or annotator",
        "merge": "one COCO file of the shards of `predict --shards`",
        "visualize": "draw how masks are rendered: steps, points, uncertainty",
    },
    "deploy a model": {
        "export": "write a model as ONNX or PyTorch file, or as one folder",
    },
    "compare results": {
        "report": "one HTML page: metrics, curves, a gallery of masks",
        "score": "AP and boundary AP of COCO result files",
        "compare": "metrics and pictures of several models side by side",
        "compare-semantic": "the same for semantic segmentation",
        "evaluate-with-stock": "one checkpoint, with these heads and with Detectron2's",
    },
    "study the method": {
        "analyze": "FLOPs, activations, parameters and points of the heads",
        "benchmark": "time and memory, compared with the heads in Detectron2",
        "ablate": "ablations: subdivision, sampling, heads, recipes",
    },
    "set up": {
        "demo": "train on drawn shapes in minutes, on a CPU",
        "demo-semantic": "the same for semantic segmentation",
        "prepare-ade20k": "write the label maps of ADE20K as Detectron2 reads them",
        "prepare-cocofied-lvis": "write the LVIS annotations of COCO's classes, for AP*",
        "prepare-panoptic": "write the label maps of stuff for panoptic training",
        "prepare-point-annotations": "draw points from masks, for point supervision",
        "install-detectron2": "install Detectron2 into this environment",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}


def usage() -> str:
    """Return the text of `pointrend --help`."""
    lines = ["usage: pointrend COMMAND ...", "", "PointRend for Detectron2."]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<21} {text}" for name, text in commands.items()]
    lines += ["", "`pointrend COMMAND --help` lists the options; --version prints the version."]
    return "\n".join(lines)


def module_of(name: str) -> ModuleType:
    """Import the module of a sub-command."""
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def run_command(name: str, argv: Sequence[str] | None = None) -> None:
    """Run a sub-command.

    Args:
        name: A key of `COMMANDS`.
        argv: Its arguments; those of the process by default.

    Raises:
        SystemExit: With the code of the sub-command; with code 2 without Detectron2; with 128 + n
            after signal n.
    """
    try:
        with signals_end_the_command():
            module_of(name).main(argv)
    except ImportError as error:
        if not lacks_detectron2(error):
            raise
        say_error(NO_DETECTRON2)
        raise SystemExit(USER_ERROR) from error


def complete(words: Sequence[str]) -> None:
    """Answer a shell that asks for completions, if argcomplete is installed; end the process."""
    try:
        import argcomplete
    except ModuleNotFoundError:
        return
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for name in COMMANDS:
        parents = [module_of(name).build_parser()] if name in words[:1] else []
        commands.add_parser(name, parents=parents, conflict_handler="resolve")
    argcomplete.autocomplete(parser)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 2 for an unknown sub-command, else with the code of the sub-command.
    """
    if "_ARGCOMPLETE" in os.environ:
        complete(os.environ["COMP_LINE"].split()[1:])
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0 if words else USER_ERROR)
    if words[0] == "--version":
        print(f"pointrend {__version__}")
        return
    name, *options = words
    if name not in COMMANDS:
        advice = did_you_mean(name, COMMANDS) or "; `pointrend --help` lists the commands"
        print(f"pointrend: error: unknown command {name}{advice}", file=sys.stderr)
        raise SystemExit(USER_ERROR)
    run_command(name, options)
