"""The page: its sections, style sheet and script in one HTML file."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from xml.etree.ElementTree import Element, tostring

from point_rend.data.checks.annotations import check_ground_truth
from point_rend.data.datasets.coco import check_file_names, read_coco
from point_rend.evaluation.coco_ap import CocoAP
from point_rend.evaluation.limits import Limit, coco_limit
from point_rend.evaluation.report.elements import NONE, element, legend, marks_legend
from point_rend.evaluation.report.gallery import gallery
from point_rend.evaluation.report.matched_items import (
    Item,
    Result,
    ground_truth_objects,
    match_items,
    read_result,
)
from point_rend.evaluation.report.tables import (
    class_table,
    metric_tables,
    object_table,
    precision_charts,
)
from point_rend.evaluation.report.training_curves import (
    MAX_POINTS,
    TrainingCurves,
    decisions_of,
    place_of,
    read_training,
    training_charts,
)
from point_rend.utils.reading import open_regular_file

STATIC = Path(__file__).parent / "static"
TITLE = "Evaluation of "  # and the names of the results
HEAD = 4096  # bytes of a page in which its title begins
NUM_STYLES = 4  # line styles in page.css

METRICS_NOTE = (
    "AP of masks as COCO defines it. Boundary AP also compares boundaries: its matching uses the "
    "smaller of mask IoU and Boundary IoU. Small objects have up to 32² pixels, medium ones up to "
    f"96². {NONE} means that there is no such object. Of an image and class, the {{}} results with "
    "the highest scores count."
)
PRECISION_NOTE = (
    "Mean over the classes, interpolated as for AP: AP is the mean height of its curve."
)
TRAINING_NOTE = (
    f"Values from metrics.json, one point per line of the file. Curves of more than {MAX_POINTS} "
    "points are averaged over equally long pieces."
)

MARKS = {  # in charts, by their meaning
    "on the test sets": "dot",
    "of the averaged weights": "ring",
    "best": "best",
    "end, out of patience": "end",
}


def build_report(
    annotations: Path,
    image_root: Path,
    *,
    results: Mapping[str, Path],
    runs: Mapping[str, Path],
    num_items: int,
    min_score: float,
    limit: Limit | None = None,
    without_photographs: bool = False,
) -> str:
    """Build the page of an evaluation.

    Args:
        annotations: COCO annotations.
        image_root: Folder of the images.
        results: One or two COCO result files with masks, by name; the baseline comes first.
        runs: Output folders of trainings, by name.
        num_items: Maximum number of objects in the gallery.
        min_score: Minimum score of results in the gallery.
        limit: Number of results of an image and class that count; that of COCO by default.
        without_photographs: Show plain gray in place of the images.

    Returns:
        The HTML.

    Raises:
        OSError: If a file or folder is missing or cannot be read.
        ValueError: If the files do not fit together.
    """
    if not image_root.is_dir():
        raise FileNotFoundError(f"--image-root: there is no folder {image_root}")
    content = read_coco(str(annotations))
    check_file_names(str(annotations), (x["file_name"] for x in content["images"]), image_root)
    check_ground_truth(annotations, content)
    names = dict.fromkeys([*reversed(list(results)), *runs])
    styles = {name: f"style-{number % NUM_STYLES}" for number, name in enumerate(names)}
    trainings = {name: read_training(folder) for name, folder in runs.items()}
    objects = ground_truth_objects(content)
    limit = limit or coco_limit()
    evaluation = CocoAP(content, max_dets=limit.number)
    evaluated = [
        read_result(name, styles[name], file, content, evaluation, min_score, limit)
        for name, file in results.items()
    ]
    items = match_items(objects, evaluated)

    summary = (
        f"{annotations}: {len(content['images'])} images, {len(items)} objects, "
        f"{len(evaluation.categories)} classes."
    )
    sections = [
        metrics_section(summary, evaluated, evaluation, items),
        precision_section(evaluated),
    ]
    if trainings:
        sections.append(training_section(trainings, styles))
    parts = gallery(
        content,
        items,
        evaluated,
        image_root,
        num_items,
        min_score=min_score,
        without_photographs=without_photographs,
    )
    sections.append(section("gallery", "Gallery", *parts))
    return page(f"{TITLE}{' and '.join(results)}", sections)


def is_report(file: Path) -> bool:
    """Return whether a file is such a page."""
    with open_regular_file(file, what="report") as opened:
        return f"<title>{TITLE}".encode() in opened.read(HEAD)


def metrics_section(
    summary: str,
    results: Sequence[Result],
    evaluation: CocoAP,
    items: Sequence[Item],
) -> Element:
    """Build the section of metric tables."""
    categories = evaluation.categories
    warnings = [f"{result.name}: {text}." for result in results for text in result.warnings]
    return section(
        "scores",
        "Metrics",
        element("p", {}, summary),
        element("p", {}, METRICS_NOTE.format(evaluation.max_dets)),
        *(element("p", {}, warning) for warning in warnings),
        *metric_tables(results, [category["name"] for category in categories]),
        *object_table(results, items),
        class_table(results, categories, items),
    )


def precision_section(results: Sequence[Result]) -> Element:
    """Build the section of precision-recall curves."""
    return section(
        "precision",
        "Precision and recall",
        element("p", {}, PRECISION_NOTE),
        legend({result.name: result.style for result in results}),
        element("div", {"class": "charts"}, *precision_charts(results)),
    )


def training_section(trainings: Mapping[str, TrainingCurves], styles: Mapping[str, str]) -> Element:
    """Build the section of training curves."""
    drawn = {name: training for name, training in trainings.items() if training.curves}
    empty = [name for name in trainings if name not in drawn]
    note = f" Without curves: {', '.join(empty)}." if empty else ""
    decisions = [decisions_of(name, training) for name, training in trainings.items()]
    used = {place_of(key).marker for training in drawn.values() for key in training.curves}
    if any(training.best for training in drawn.values()):
        used.add("best")
    if any(training.stop is not None for training in drawn.values()):
        used.add("end")
    marks = {meaning: mark for meaning, mark in MARKS.items() if mark in used}
    return section(
        "training",
        "Training",
        element("p", {}, f"{TRAINING_NOTE}{note}"),
        *(element("p", {}, text) for text in decisions if text),
        legend({name: styles[name] for name in drawn}),
        *([marks_legend(marks)] if marks else []),
        element("div", {"class": "charts"}, *training_charts(trainings, styles)),
    )


def section(name: str, title: str, *children: Element) -> Element:
    """Build a section of the page with an id and a title."""
    return element("section", {"id": name}, element("h2", {}, title), *children)


def page(title: str, sections: Sequence[Element], *, has_gallery: bool = True) -> str:
    """Assemble a page that loads nothing and runs no script but its own.

    Args:
        title: Title of the page.
        sections: Sections with ids and titles.
        has_gallery: Whether there is a gallery, which needs a script.
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
        (STATIC / f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    script = script if has_gallery else ""
    return Template(template).substitute(
        title=tostring(element("title", {}, title), encoding="unicode", method="html"),
        style_source=source_hash(style),
        script_source=source_hash(script),
        style=style,
        script=script,
        body=tostring(body, encoding="unicode", method="html"),
    )


def source_hash(text: str) -> str:
    """Return the source expression of a style or script for the content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
