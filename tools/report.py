#!/usr/bin/env python
"""Show an evaluation on one HTML page: tables, curves, and a gallery of masks side by side.

    python tools/report.py --annotations output/demo/shapes/annotations/instances_val.json \
        --image-root output/demo/shapes/val --output output/report.html \
        --results coarse=output/demo/coarse/inference/shapes_val/coco_instances_results.json \
        --results PointRend=output/demo/pointrend/inference/shapes_val/coco_instances_results.json \
        --run PointRend=output/demo/pointrend

Of two results the first is the baseline, over which the other one gains. One result alone is
compared with the truth. The page is one file that any browser opens; it needs no network. No model
is run.
"""

import argparse
import base64
import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any
from xml.etree.ElementTree import Element, tostring

import numpy as np

from point_rend.data.coco import read_coco
from point_rend.evaluation.instance_scores import (
    FIGURES,
    InstanceScores,
    compressed_rle,
    summary,
)
from point_rend.evaluation.scores import has_masks, read_results
from point_rend.visualize import check_output, written_whole

# So that the folder of tools can be imported from a script that lies in it.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from tools.evaluate_json import NAMES, check_names, named_file
from tools.report_gallery import Item, Result, gallery, items_of
from tools.report_parts import NONE, Line, element, legend, line_chart, scrolling, table

PAGE = Path(__file__).parent / "report_page"
KINDS = ("segm", "boundary")
COLUMNS = ("", "all", "IoU 0.50", "IoU 0.75", "small", "medium", "large")  # as FIGURES
CURVES = {0: "0.50", 5: "0.75", 8: "0.90"}  # index of a threshold, and its IoU
MAX_POINTS = 400  # of a training curve; longer ones are averaged
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


def mean_curve(precision: np.ndarray, threshold: int) -> list[tuple[float, float]]:
    """Return recall and precision, the mean over the classes that have objects.

    Args:
        precision: (T, R, K, A).
        threshold: Index of the IoU threshold.
    """
    curves = precision[threshold, :, :, 0]
    known = curves[:, curves[0] > -1]
    if not known.size:
        return []
    return list(zip(np.linspace(0, 1, len(known)), known.mean(axis=1), strict=True))


def read_metrics(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Read the curves of a training: losses, the points' accuracy, AP and the learning rate.

    Args:
        folder: OUTPUT_DIR of a run.

    Returns:
        Iterations and values by name; nothing if the folder has no metrics.json. Of an iteration
        that was done twice, after a resumption, the last counts.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a line is not JSON, other than the last one, which may be cut.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"run folder {folder} does not exist")
    file = folder / "metrics.json"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    curves: dict[str, dict[float, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            iteration = record.pop("iteration")
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{file}: line {number} is no JSON object with an iteration: {line:.60}"
            ) from error
        for key, value in record.items():
            if is_shown(key) and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(key, {})[iteration] = value
    order = sorted(curves, key=lambda key: (key != "total_loss", "loss" not in key, key))
    return {key: averaged(sorted(curves[key].items())) for key in order if len(curves[key]) > 1}


def is_shown(key: str) -> bool:
    """Tell whether a metric is worth a curve."""
    return key in ("total_loss", "point/accuracy", "lr") or (
        key.startswith("loss_") or key.endswith("/AP")
    )


def averaged(
    points: Sequence[tuple[float, float]], most: int = MAX_POINTS
) -> list[tuple[float, float]]:
    """Shorten a curve to means of equally many points in a row, the last perhaps of fewer."""
    length = math.ceil(len(points) / most)
    starts = range(0, len(points), length)
    means = [np.mean(points[start : start + length], axis=0) for start in starts]
    return [(float(x), float(y)) for x, y in means]


# The tables and curves


def percent(value: float, *, sign: bool = False) -> str:
    """Write a figure with one decimal, with its sign if that is asked for."""
    if math.isnan(value):
        return NONE
    return f"{value:+.1f}".replace("-", "−") if sign else f"{value:.1f}"


def difference(figures: Sequence[float]) -> list[str]:
    """Write how much more the last of several figures is; nothing for one alone."""
    return [percent(figures[-1] - figures[0], sign=True)] if len(figures) > 1 else []


def score_tables(results: Sequence[Result], names: Sequence[str]) -> list[Element]:
    """Show AP by size, a table for each kind, and the APs of single classes."""
    tables = []
    scores = [{k: summary(r.precision[k], names) for k in KINDS} for r in results]
    for kind in KINDS:
        rows = [
            (result.name, [percent(own[kind][name]) for name in FIGURES])
            for result, own in zip(results, scores, strict=True)
        ]
        if len(results) > 1:
            columns = [[own[kind][name] for own in scores] for name in FIGURES]
            rows.append(("difference", [difference(column)[0] for column in columns]))
        caption = f"{NAMES[kind]} in percent"
        tables.append(scrolling(table(caption, COLUMNS, rows), caption))
    return tables


def class_table(
    results: Sequence[Result], categories: Sequence[Mapping[str, Any]], items: Sequence[Item]
) -> Element:
    """Show AP and boundary AP of every class."""
    names = [str(category["id"]) for category in categories]
    heads, columns = ["class", "objects"], []
    for kind in KINDS:
        scores = [summary(result.precision[kind], names) for result in results]
        # With one class alone there are no figures of classes: they are those of all.
        values = [[own.get(f"AP-{name}", own["AP"]) for own in scores] for name in names]
        heads += [f"{NAMES[kind]}, {result.name}" for result in results]
        heads += ["difference"] * (len(results) > 1)
        columns.append([[*map(percent, row), *difference(row)] for row in values])
    counts = Counter(item.annotation["category_id"] for item in items)
    rows = [
        (category["name"], [str(counts[category["id"]]), *masks, *boundaries])
        for category, masks, boundaries in zip(categories, *columns, strict=True)
    ]
    caption = "AP by class in percent"
    return scrolling(table(caption, heads, rows), caption)


def object_table(results: Sequence[Result], items: Sequence[Item]) -> list[Element]:
    """Show how many objects the results have, and how well those that all have."""
    rows = []
    common = [item for item in items if None not in item.matches]
    for k, result in enumerate(results):
        matched = sum(item.matches[k] is not None for item in items)
        matches = [item.matches[k] for item in common]
        means = [
            f"{np.mean([getattr(match, measure) for match in matches]):.3f}" if common else NONE
            for measure in ("iou", "boundary_iou")
        ]
        rows.append((result.name, [f"{matched} of {len(items)}", *means]))
    heads = ("", "objects matched", "mean mask IoU", "mean Boundary IoU")
    who = "both" if len(results) > 1 else results[0].name
    note = f"The means are over the {len(common)} objects that {who} matched."
    caption = "Single objects"
    return [scrolling(table(caption, heads, rows), caption), element("p", {}, note)]


def precision_charts(results: Sequence[Result]) -> list[Element]:
    """Draw precision over recall, for masks, and for masks with their boundaries."""
    charts = []
    for kind in KINDS:
        for threshold, iou in CURVES.items():
            curves = [(r, mean_curve(r.precision[kind], threshold)) for r in results]
            lines = [Line(r.name, r.style, points) for r, points in curves if points]
            title = f"{NAMES[kind]} at IoU {iou}"
            if lines:
                labels = ("recall", "precision")
                charts.append(line_chart(title, lines, labels=labels, top=1.0))
    return charts


def training_charts(
    runs: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], styles: Mapping[str, str]
) -> list[Element]:
    """Draw what runs have logged, a chart for each metric."""
    keys = dict.fromkeys(key for curves in runs.values() for key in curves)
    charts = []
    for key in keys:
        lines = [Line(n, styles[n], curves[key]) for n, curves in runs.items() if key in curves]
        charts.append(line_chart(key, lines, labels=("iteration", key)))
    return charts


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


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 if a file cannot be used.
    """
    parser = argparse.ArgumentParser(description="Show an evaluation on one HTML page.")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotations")
    parser.add_argument("--image-root", type=Path, required=True, help="folder of the images")
    parser.add_argument(
        "--results",
        type=named_file,
        action="append",
        required=True,
        metavar="[NAME=]FILE",
        help="COCO results with masks; once, or twice with the baseline first",
    )
    parser.add_argument(
        "--run",
        type=named_file,
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="OUTPUT_DIR of a training, for its curves; may be repeated",
    )
    parser.add_argument("--output", type=Path, required=True, help="the page, an HTML file")
    parser.add_argument(
        "--items", type=int, default=48, help="so many objects are shown at most (48)"
    )
    parser.add_argument(
        "--min-score", type=float, default=0.5, help="of the results in the gallery (0.5)"
    )
    parser.add_argument(
        "--without-photographs",
        action="store_true",
        help="show plain grey, for photographs that must not be passed on",
    )
    args = parser.parse_args(argv)
    try:
        if args.items < 1:
            raise ValueError(f"--items: expected 1 or more, got {args.items}")
        check_output(args.output)
        text = report(args)
        with written_whole(args.output) as unfinished:
            unfinished.write_text(text, encoding="utf-8", errors="replace")
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB. Any browser opens it.")


if __name__ == "__main__":
    main()
