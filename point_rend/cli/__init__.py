"""The `pointrend` command: one module per sub-command.

A sub-command is imported only when it runs; `pointrend --help` needs the standard library alone.
"""

import importlib
import sys
from collections.abc import Sequence

from point_rend import __version__
from point_rend.utils.errors import USER_ERROR, did_you_mean

GROUPS = {
    "train and evaluate": {
        "train": "train a model; --resume continues from the last checkpoint",
        "evaluate": "evaluate a checkpoint on DATASETS.TEST",
    },
    "use a model": {
        "predict": "segment images, folders, a video or the camera",
        "visualize": "draw how masks are rendered: steps, points, uncertainty",
    },
    "compare results": {
        "report": "one HTML page: metrics, curves and a gallery of masks",
        "score": "AP and boundary AP of COCO result files",
        "compare": "metrics and pictures of several models side by side",
        "compare-semantic": "the same for semantic segmentation",
        "evaluate-with-stock": "one checkpoint through these heads and Detectron2's own",
    },
    "study the method": {
        "analyze": "FLOPs, activations, parameters and points of a config's heads",
        "benchmark": "time and memory against the heads that Detectron2 ships",
        "ablate": "the paper's ablations: subdivision, sampling",
    },
    "set up": {
        "demo": "draw data, train, evaluate and look at the masks, in minutes on a CPU",
        "demo-semantic": "the same for semantic segmentation",
        "prepare-ade20k": "label maps of ADE20K as Detectron2 reads them",
        "prepare-cocofied-lvis": "LVIS annotations of COCO's classes, for AP*",
        "install-detectron2": "install Detectron2 where it is missing",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}


def usage() -> str:
    """The text of `pointrend --help`."""
    lines = ["usage: pointrend COMMAND ...", "", "PointRend for Detectron2."]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<22} {text}" for name, text in commands.items()]
    lines += ["", "`pointrend COMMAND --help` lists the options of a command."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 2 for an unknown sub-command, else with the code of the sub-command.
    """
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
    module = importlib.import_module(f"point_rend.cli.{name.replace('-', '_')}")
    module.main(options)
