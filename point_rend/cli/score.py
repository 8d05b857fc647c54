"""Score files in COCO's result format, whatever framework has written them.

    python tools/evaluate_json.py --annotations datasets/coco/annotations/instances_val2017.json \
        --lvis-annotations datasets/lvis/lvis_v1_val_cocofied.json \
        --results "PointRend=output/inference/coco_2017_val/coco_instances_results.json"

One table per file: AP, boundary AP and, with LVIS annotations of COCO's classes
(`prepare_cocofied_lvis.py` makes them), AP* and boundary AP*; each at all thresholds together, at
IoU 0.50 and 0.75, and by size. Results without masks have a box AP only.
"""

import argparse
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from point_rend.data.datasets.coco import read_coco
from point_rend.evaluation.coco_ap import FIGURES, InstanceScores
from point_rend.evaluation.coco_results import (
    NAMES,
    check_true_masks,
    format_table,
    has_masks,
    read_results,
)
from point_rend.utils.arguments import check_names, named_file
from point_rend.utils.files import check_output, write_text

Figures = dict[str, float]


def score(
    results: Sequence[Mapping[str, Any]], kinds: Sequence[str], truth: InstanceScores
) -> dict[str, Figures]:
    """Score results by COCO's rule; figures by the names of the rows."""
    return {NAMES[kind]: truth.figures(results, kind) for kind in kinds}


def score_on_lvis(
    results: Sequence[Mapping[str, Any]], kinds: Sequence[str], lvis_file: Path
) -> dict[str, Figures]:
    """Score results by LVIS's rule on those of their images that it has."""
    from lvis import LVIS

    from point_rend.evaluation.lvis_ap import lvis_figures

    logging.getLogger("lvis").setLevel(logging.ERROR)  # it warns of every list of results
    truth = LVIS(str(lvis_file))
    known = [result for result in results if result["image_id"] in truth.imgs]
    return {f"{NAMES[kind]}*": lvis_figures(truth, known, kind) for kind in kinds}


def check_lvis(lvis_file: Path, content: Mapping[str, Any], annotations: Path) -> None:
    """Refuse LVIS annotations that are not of COCO's classes and images.

    Raises:
        ValueError: If they are not, or if lvis is not installed.
    """
    if importlib.util.find_spec("lvis") is None:
        raise ValueError("--lvis-annotations needs the package lvis: pip install lvis")
    lvis = read_coco(str(lvis_file), image_name="coco_url")
    names = {category["id"]: category["name"] for category in content["categories"]}
    for category in lvis["categories"]:
        if names.get(category["id"]) != category["name"]:
            raise ValueError(
                f"{lvis_file} has the category {category['id']} {category['name']!r}, which "
                f"{annotations} has not: tools/prepare_cocofied_lvis.py makes a file of COCO's "
                "classes"
            )
    images = {image["id"] for image in content["images"]}
    if not any(image["id"] in images for image in lvis["images"]):
        raise ValueError(f"{lvis_file} and {annotations} have no image in common")


def by_class(rows: Mapping[str, Figures]) -> dict[str, Figures]:
    """Arrange the APs of single classes: a row for each class."""
    classes = [name for name in next(iter(rows.values())) if name.startswith("AP-")]
    return {
        name.removeprefix("AP-"): {
            row: figures.get(name, float("nan")) for row, figures in rows.items()
        }
        for name in classes
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 if a file cannot be used.
    """
    parser = argparse.ArgumentParser(description="Score files in COCO's result format.")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotations")
    parser.add_argument(
        "--lvis-annotations", type=Path, help="for AP*: LVIS annotations of COCO's classes"
    )
    parser.add_argument(
        "--results",
        type=named_file,
        action="append",
        required=True,
        metavar="[NAME=]FILE",
        help="results; may be repeated",
    )
    parser.add_argument("--by-class", action="store_true", help="show every class, too")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures, in percent")
    args = parser.parse_args(argv)

    try:
        content = read_coco(str(args.annotations))
        if args.lvis_annotations:
            check_lvis(args.lvis_annotations, content, args.annotations)
        check_names("--results", args.results)
        files = {name: (file, read_results(file, content)) for name, file in args.results}
        masks = {name: has_masks(results, file) for name, (file, results) in files.items()}
        if any(masks.values()):
            check_true_masks(args.annotations, content)
        if args.output:
            check_output(args.output)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")

    truth = InstanceScores(content)
    scores = {}
    for name, (_, results) in files.items():
        kinds = ("segm", "boundary") if masks[name] else ("bbox",)
        rows = score(results, kinds, truth)
        if args.lvis_annotations:
            rows |= score_on_lvis(results, kinds, args.lvis_annotations)
        scores[name] = rows
        table = {row: {name: figures[name] for name in FIGURES} for row, figures in rows.items()}
        print(f"\n{name}: {len(results)} results\n{format_table(table)}")
        if args.by_class and len(content["categories"]) > 1:  # the AP of one is that of all
            print(f"\n{format_table(by_class(rows))}")
    if args.output:
        write_text(args.output, json.dumps(scores, indent=1))
