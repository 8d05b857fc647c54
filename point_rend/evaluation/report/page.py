"""The page: sections, style sheet and script in one HTML file."""

import argparse
import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any
from xml.etree.ElementTree import Element, tostring

from point_rend.data.checks.rle import compressed_rle
from point_rend.data.datasets.coco import read_coco
from point_rend.evaluation.coco_ap import InstanceScores
from point_rend.evaluation.coco_results import has_masks, read_results
from point_rend.evaluation.report.elements import (
    NONE,
    element,
    legend,
)
from point_rend.evaluation.report.gallery import gallery
from point_rend.evaluation.report.matched_items import Result, items_of
from point_rend.evaluation.report.tables import (
    KINDS,
    class_table,
    object_table,
    precision_charts,
    score_tables,
)
from point_rend.evaluation.report.training_curves import MAX_POINTS, read_metrics, training_charts
from point_rend.utils.arguments import check_names

PAGE = Path(__file__).parent / "static"
STYLES = 4  # of lines, in page.css


# What is computed
def objects_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objects of the truth, but crowds, with masks in compressed encoding.

    Raises:
        ValueError: If an object has no mask.
    """
    for annotation in content["annotations"]:
        if not annotation.get("segmentation"):
            raise ValueError(f"annotation {annotation['id']} has no 'segmentation'")
    objects = [x for x in content["annotations"] if not x.get("iscrowd", 0)]
    return with_compressed_masks(objects, content)


def with_compressed_masks(
    records: Sequence[dict[str, Any]], content: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return copies of records of a data set with masks in compressed encoding."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    return [
        record
        | {"segmentation": compressed_rle(record["segmentation"], *sizes[record["image_id"]])}
        for record in records
    ]


# The page
def section(name: str, title: str, *children: Element) -> Element:
    """Make a part of the page with an id and a title."""
    return element("section", {"id": name}, element("h2", {}, title), *children)


def page(title: str, sections: Sequence[Element]) -> str:
    """Put a page together that loads nothing and runs no script but its own.

    Args:
        title: Of the page.
        sections: With ids and titles.
    """
    links = [
        element("a", {"href": f"#{part.get('id')}"}, "".join(part[0].itertext()))
        for part in sections
    ]
    body = element(
        "main",
        {},
        element("h1", {}, title),
        element("nav", {"aria-label": "sections"}, *links),
        *sections,
    )
    template, style, script = (
        (PAGE / f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    return Template(template).substitute(
        title=tostring(element("title", {}, title), encoding="unicode", method="html"),
        style_source=source_hash(style),
        script_source=source_hash(script),
        style=style,
        script=script,
        body=tostring(body, encoding="unicode", method="html"),
    )


def source_hash(text: str) -> str:
    """Return the name by which a content security policy allows a style or a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def read_result(
    name: str,
    style: str,
    file: Path,
    content: Mapping[str, Any],
    truth: InstanceScores,
    min_score: float,
) -> Result:
    """Read a result file and score it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not fit the annotations, or has no masks.
    """
    records = read_results(file, content)
    if not has_masks(records, file):
        raise ValueError(f"{file}: result 0 has no 'segmentation'; the page compares masks")
    sure = [record for record in records if record["score"] >= min_score]
    precision = {kind: truth.precision(records, kind) for kind in KINDS}
    return Result(name, style, precision, with_compressed_masks(sure, content))


def report(args: argparse.Namespace) -> str:
    """Make the page that the command line asks for.

    Raises:
        OSError: If a file or folder is missing or cannot be read.
        ValueError: If the files do not fit together.
    """
    check_names("--results", args.results)
    check_names("--run", args.run)
    if len(args.results) > 2:
        raise ValueError(f"--results: expected one or two, got {len(args.results)}")
    if not args.image_root.is_dir():
        raise FileNotFoundError(f"--image-root: there is no folder {args.image_root}")
    content = read_coco(str(args.annotations))
    named = dict.fromkeys(name for name, _ in (*reversed(args.results), *args.run))
    styles = {name: f"style-{number % STYLES}" for number, name in enumerate(named)}
    runs = {name: read_metrics(folder) for name, folder in args.run}
    objects = objects_of(content)
    truth = InstanceScores(content)
    results = [
        read_result(name, styles[name], file, content, truth, args.min_score)
        for name, file in args.results
    ]
    items = items_of(objects, results)

    names = [category["name"] for category in truth.categories]
    intro = (
        f"{args.annotations}: {len(content['images'])} images, {len(items)} objects, "
        f"{len(names)} classes."
    )
    result_names = {result.name: result.style for result in results}
    sections = [
        section(
            "scores",
            "Scores",
            element("p", {}, intro),
            element("p", {}, SCORES),
            *score_tables(results, names),
            *object_table(results, items),
            class_table(results, truth.categories, items),
        ),
        section(
            "precision",
            "Precision and recall",
            element("p", {}, PRECISION),
            legend(result_names),
            element("div", {"class": "charts"}, *precision_charts(results)),
        ),
    ]
    if runs:
        without = [name for name, curves in runs.items() if not curves]
        silent = f" Without curves: {', '.join(without)}." if without else ""
        sections.append(
            section(
                "training",
                "Training",
                element("p", {}, f"{TRAINING}{silent}"),
                legend({name: styles[name] for name, curves in runs.items() if curves}),
                element("div", {"class": "charts"}, *training_charts(runs, styles)),
            )
        )
    parts = gallery(
        content,
        items,
        results,
        args.image_root,
        args.items,
        min_score=args.min_score,
        without_photographs=args.without_photographs,
    )
    sections.append(section("gallery", "Gallery", *parts))
    return page(f"Evaluation of {' and '.join(result_names)}", sections)


SCORES = (
    "AP of masks by COCO's rule. Boundary AP also asks that the boundaries agree: its matching "
    "takes the lesser of mask IoU and Boundary IoU. Small objects have up to 32² pixels, medium "
    f"ones up to 96². {NONE} stands where there is no object."
)
PRECISION = "The mean over the classes, interpolated as AP is: AP is the mean height of its curve."
TRAINING = (
    f"What metrics.json says, a figure per line of it; more than {MAX_POINTS} are shown as means "
    "of equally many in a row."
)
