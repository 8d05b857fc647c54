"""`pointrend prepare-ade20k`: write the label maps of ADE20K as Detectron2 reads them.

    pointrend prepare-ade20k datasets/ADEChallengeData2016

The official archive, ADEChallengeData2016.zip, holds `images/` and `annotations/`, each with
`training/` and `validation/`. The label maps that Detectron2 reads are written to
`annotations_detectron2/`. Existing ones are kept, so an interrupted run can be started again.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from point_rend.utils.errors import FAILED, user_errors
from point_rend.utils.program import program


def default_root() -> Path:
    """Return the folder in which Detectron2 looks for ADE20K."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / "ADEChallengeData2016"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=program(), description="Write the label maps of ADE20K as Detectron2 reads them."
    )
    parser.add_argument(
        "root",
        type=Path,
        nargs="?",
        default=default_root(),
        help="the unpacked ADEChallengeData2016 (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 1 if files are missing, with code 2 if nothing can be done.
    """
    root = build_parser().parse_args(argv).root
    from point_rend.data.datasets.ade20k import SPLITS, convert_split, missing_folders

    missing = []
    with user_errors():
        absent = missing_folders(root)
        if absent:
            raise FileNotFoundError(
                f"missing: {', '.join(map(str, absent))}; unpack ADEChallengeData2016.zip, the "
                "archive of the scene parsing challenge, so that they exist"
            )
        for split in SPLITS:
            done = convert_split(root, split)
            numbers = f"{done.written} label maps written, {done.kept} kept"
            print(f"{split}: {numbers}: {done.folder}")
            missing += done.missing
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    if missing:
        raise SystemExit(FAILED)
