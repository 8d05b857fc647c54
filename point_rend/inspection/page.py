"""A data report as one HTML page."""

import base64
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import Element

from PIL import Image

from point_rend.evaluation.report.elements import (
    NONE,
    Bars,
    bar_chart,
    element,
    scrolling,
    table,
)
from point_rend.evaluation.report.page import page, section
from point_rend.inspection.anchors import RATIO_EDGES, AnchorReport
from point_rend.inspection.classes import ClassReport
from point_rend.inspection.duplicates import Copies
from point_rend.inspection.images import OBJECT_EDGES
from point_rend.inspection.report import Report, Split
from point_rend.inspection.semantic import Labels, SemanticReport
from point_rend.inspection.sizes import EDGES, Sizes
from point_rend.inspection.text import config_name, percent, pixel_range
from point_rend.utils.pictures import PictureError, read_picture
from point_rend.utils.reading import open_regular_file

TITLE = "Data report"
HEAD = 4096  # bytes of a page in which its title begins
STAGES = {"original": "in the image", "train": "resized for training", "test": "resized for tests"}
ROLES = ("training", "evaluation")
PICTURE = 192  # pixels of the longer side of a picture
CLASS_BINS = ("0", "1", "10", "100", "1k", "10k", "100k")  # objects of a class
OPEN_ROWS = 40  # of a table that is not folded
SIZE_NOTE = (
    "The size of an object is the square root of the pixels of its mask. Small, medium and large "
    "are COCO's: below 32² pixels, below 96², and above. COCO's AP by size counts pixels of the "
    "original image; the network sees the resized one."
)
ANCHOR_NOTE = (
    "IoU of each box with the best anchor at its center, after the resize in training. An object "
    "whose best IoU is below the foreground threshold trains only its one best anchor."
)
COPY_NOTE = (
    "Exact copies have the same bytes. Near copies are the same photograph in another size, "
    "format, quality or brightness; consecutive frames of a video that hardly moves look alike, "
    "too. Mirrored, rotated and cropped copies are not found."
)


def format_page(report: Report) -> str:
    """Format a report as HTML that loads nothing."""
    splits = [
        (role, split)
        for role, split in zip(ROLES, (report.train, report.test), strict=True)
        if split is not None
    ]
    sections = [
        section("summary", "Summary", *_summary(report, splits)),
        section("suggestions", "Suggestions", *_suggestions(report)),
        section("images", "Images", *_images(splits)),
    ]
    if any(split.sizes for _, split in splits):
        sections.append(section("sizes", "Sizes of objects", *_sizes(splits)))
    if report.classes is not None:
        sections.append(section("classes", "Classes of instances", *_classes(report.classes)))
    if report.semantic is not None:
        sections.append(section("labels", "Classes of label maps", *_labels(report.semantic)))
    if report.anchors is not None:
        sections.append(section("anchors", "Anchors", *_anchors(report.anchors)))
    if report.copies is not None:
        sections.append(section("copies", "Copies of images", *_copies(report.copies)))
    return page(f"{TITLE}: {Path(report.config_file).name}", sections, has_gallery=False)


def is_page(file: Path) -> bool:
    """Return whether a file is such a page."""
    with open_regular_file(file, what="report") as opened:
        return f"<title>{TITLE}: ".encode() in opened.read(HEAD)


def _notes(texts: Sequence[str]) -> Element:
    return element("ul", {"class": "notes"}, *(element("li", {}, text) for text in texts))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _table(caption: str, columns: Sequence[str], rows: Sequence) -> Element:
    made = scrolling(table(caption, columns, rows), caption)
    made.set("class", "scroll wide")
    return made


def _legend(names: Sequence[str]) -> Element:
    """Build a legend of bars."""
    entries = []
    for k, name in enumerate(names):
        square = element("rect", {"width": "10", "height": "10", "class": f"bar style-{k}"})
        swatch = {"viewBox": "0 0 10 10", "class": "swatch", "aria-hidden": "true"}
        entries.append(element("li", {}, element("svg", swatch, square), name))
    return element("ul", {"class": "legend bars"}, *entries)


def _summary(report: Report, splits: Sequence[tuple[str, Split]]) -> list[Element]:
    rows: list[tuple[str, list[str]]] = [
        ("data sets", [", ".join(split.names) for _, split in splits]),
        ("images", [_number(split.images) for _, split in splits]),
    ]
    objects = [split.objects for _, split in splits]
    if all(x is not None for x in objects):
        known = [x for x in objects if x is not None]
        rows += [
            ("objects", [_number(x.objects) for x in known]),
            ("crowds", [_number(x.crowds) for x in known]),
            ("impossible annotations", [_number(x.impossible) for x in known]),
            ("images without annotations", [_number(x.empty) for x in known]),
            (
                "images with crowds or impossible ones only",
                [_number(x.without_objects) for x in known],
            ),
            ("images that a training leaves out", [_number(x.left_out) for x in known]),
            ("objects of an image, median", [_number(x.percentiles[2]) for x in known]),
            ("objects of an image, at most", [_number(x.percentiles[-1]) for x in known]),
            ("masks of several polygons", [_number(x.several_parts) for x in known]),
            ("masks as RLE", [_number(x.runs) for x in known]),
            ("corners of a mask, median", [_number(x.corners) for x in known]),
        ]
    found = report.findings or ["Nothing conspicuous was found."]
    return [
        _table(config_name(report.config_file), ("", *(role for role, _ in splits)), rows),
        element("h3", {}, "To look at"),
        _notes(found),
    ]


def _suggestions(report: Report) -> list[Element]:
    entries = []
    for suggestion in report.suggestions:
        title = element("strong", {}, f"{suggestion.title}. ")
        text = element("p", {}, title, suggestion.reason)
        keys = [element("pre", {}, suggestion.options)] if suggestion.options else []
        entries.append(element("li", {}, text, *keys))
    if not entries:
        entries = [element("li", {}, "None: the config fits the data.")]
    parts = [element("ul", {"class": "notes"}, *entries)]
    if report.fitting:
        parts += [element("h3", {}, "What fits"), _notes(report.fitting)]
    return parts


def _images(splits: Sequence[tuple[str, Split]]) -> list[Element]:
    rows = []
    for role, split in splits:
        shapes = split.shapes
        if not shapes.common:
            continue
        width, height, count = shapes.common[0]
        rows.append(
            (
                role,
                [
                    pixel_range(shapes.width),
                    pixel_range(shapes.height),
                    f"{width} × {height} ({count})",
                    f"{shapes.aspect[0]:.2f} to {shapes.aspect[-1]:.2f}",
                    f"{shapes.scale[2]:.2f} ({shapes.scale[0]:.2f} to {shapes.scale[-1]:.2f})",
                ],
            )
        )
    parts = []
    if rows:
        heads = ("", "width", "height", "most frequent", "width / height", "scale in tests, median")
        parts.append(_table("Pixels of the images", heads, rows))
    counted = [(role, split.objects) for role, split in splits if split.objects is not None]
    if counted:
        bins = [_count_name(a, b) for a, b in pairwise(OBJECT_EDGES)]
        bars = [
            Bars(role, f"style-{k}", _percents(x.histogram)) for k, (role, x) in enumerate(counted)
        ]
        chart = bar_chart(
            "Objects of an image", *_trimmed(bins, bars), labels=("objects", "% of the images")
        )
        parts += [
            _legend([role for role, _ in counted]),
            element("div", {"class": "charts"}, chart),
        ]
    for role, split in splits:
        if split.broken:
            parts.append(element("h3", {}, f"Files of {role} that cannot be used"))
            parts.append(_folded([f"{file}." for file in split.broken]))
    return parts


def _count_name(start: float, end: float) -> str:
    if end == float("inf"):
        return f"≥ {start:g}"
    return f"{start:g}" if end - start == 1 else f"{start:g}–{end - 1:g}"


def _percents(counts: Sequence[float]) -> list[float]:
    return [100 * x / max(1e-12, sum(counts)) for x in counts]


def _trimmed(bins: Sequence[str], bars: Sequence[Bars]) -> tuple[list[str], list[Bars]]:
    """Leave out empty bins at both ends."""
    used = [k for k in range(len(bins)) if any(x.heights[k] for x in bars)] or [0]
    part = slice(used[0], used[-1] + 1)
    return list(bins[part]), [x._replace(heights=x.heights[part]) for x in bars]


def _folded(texts: Sequence[str]) -> Element:
    if len(texts) <= OPEN_ROWS // 4:
        return _notes(texts)
    return element("details", {}, element("summary", {}, f"{len(texts)} files"), _notes(texts))


def _sizes(splits: Sequence[tuple[str, Split]]) -> list[Element]:
    rows, charts = [], []
    bins = ["0", *(f"{edge}" for edge in EDGES[1:-1])]
    for stage in STAGES:
        found = [(role, x) for role, split in splits for x in split.sizes if x.stage == stage]
        if not found:
            continue
        rows += [(f"{role}, {STAGES[stage]}", _size_row(x)) for role, x in found]
        bars = [
            Bars(role, f"style-{ROLES.index(role)}", [100 * y for y in x.histogram])
            for role, x in found
        ]
        labels = ("√area in pixels, from", "% of the objects")
        charts.append(bar_chart(STAGES[stage], *_trimmed(bins, bars), labels=labels))
    heads = (
        *("", "small", "medium", "large", "5%", "median", "95%"),
        *("side < 1 px", "side < 2 px", "side < stride", "< ½ anchor"),
    )
    return [
        element("p", {}, SIZE_NOTE),
        _legend([role for role, _ in splits]),
        element("div", {"class": "charts"}, *charts),
        _table("Sizes of objects", heads, rows),
    ]


def _size_row(sizes: Sizes) -> list[str]:
    resized = sizes.stage != "original"
    limits = (sizes.below_one, sizes.below_two, sizes.below_stride, sizes.below_anchor)
    return [
        *(percent(x) for x in (sizes.small, sizes.medium, sizes.large)),
        *(_number(round(sizes.percentiles[k], 1)) for k in (1, 3, 5)),
        *(NONE if x is None or not resized else percent(x) for x in limits),
    ]


def _classes(report: ClassReport) -> list[Element]:
    columns, heads = [], []
    for role, split in zip(ROLES, (report.train, report.test), strict=True):
        if split is not None:
            columns += [split.objects, split.images]
            heads += [f"objects, {role}", f"images, {role}"]
    order = sorted(range(len(report.names)), key=lambda k: -columns[0][k])
    rows = [(report.names[k], [_number(x[k]) for x in columns]) for k in order]
    if len(rows) <= OPEN_ROWS:
        return [_table("Objects by class", ("", *heads), rows)]
    half = OPEN_ROWS // 4
    return [
        element("div", {"class": "charts"}, _frequency_chart(report)),
        _table("Most frequent classes", ("", *heads), rows[:half]),
        _table("Rarest classes", ("", *heads), rows[-half:]),
        *_class_table("Objects by class", heads, rows),
    ]


def _frequency_chart(report: ClassReport) -> Element:
    """Draw how many classes have how many objects."""
    bars = []
    for role, split in zip(ROLES, (report.train, report.test), strict=True):
        if split is not None:
            digits = [min(len(str(x)), len(CLASS_BINS) - 1) if x else 0 for x in split.objects]
            counts = [digits.count(k) for k in range(len(CLASS_BINS))]
            bars.append(Bars(role, f"style-{ROLES.index(role)}", counts))
    labels = ("objects of a class, from", "number of classes")
    return bar_chart("Classes by their objects", CLASS_BINS, bars, labels=labels)


def _class_table(caption: str, heads: Sequence[str], rows: Sequence) -> list[Element]:
    made = _table(caption, ("", *heads), rows)
    if len(rows) <= OPEN_ROWS:
        return [made]
    return [element("details", {}, element("summary", {}, f"All {len(rows)} classes"), made)]


def _labels(report: SemanticReport) -> list[Element]:
    columns: list[list[str]] = []
    heads, rows = [], []
    sources: list[tuple[str, Labels]] = [
        (role, split)
        for role, split in zip(ROLES, (report.train, report.test), strict=True)
        if split is not None
    ]
    for role, split in sources:
        total = max(1, int(split.pixels.sum()))
        heads += [f"pixels, {role}", f"images, {role}", f"at a boundary, {role}"]
        columns += [
            [percent(x / total) for x in split.pixels],
            [_number(x) for x in split.images],
            [NONE if x != x else percent(x) for x in split.boundary],
        ]
    first = sources[0][1]
    order = sorted(range(len(report.names)), key=lambda k: -int(first.pixels[k]))
    rows = [(report.names[k], [x[k] for x in columns]) for k in order]
    ignored = [
        f"{role}: {percent(x.ignored / max(1, int(x.pixels.sum()) + x.ignored))}"
        for role, x in sources
    ]
    note = (
        "A pixel is at a boundary if a neighbor has another class: classes with many such pixels "
        "are thin or small, and gain most from PointRend."
    )
    return [
        element("p", {}, f"Ignored pixels of {', of '.join(ignored)}. {note}"),
        *_class_table("Pixels by class", heads, rows),
    ]


def _anchors(report: AnchorReport) -> list[Element]:
    anchors = report.anchors
    middle = (anchors.background + anchors.foreground) / 2
    sizes = ", ".join(" and ".join(f"{x:g}" for x in level) for level in anchors.sizes)
    ratios = ", ".join(f"{x:g}" for x in anchors.ratios[0])
    rows = []
    for name, fit in (("of the config", report.fit), ("suggested", report.better_fit)):
        if fit is not None:
            rows.append(
                (
                    name,
                    [
                        f"{fit.mean_iou:.2f}",
                        *(
                            percent(x)
                            for x in (
                                fit.below_foreground,
                                fit.below_middle,
                                fit.below_background,
                            )
                        ),
                    ],
                )
            )
    heads = (
        *("", "mean of the best IoU", f"below {anchors.foreground:g}"),
        *(f"below {middle:g}", f"below {anchors.background:g}"),
    )
    names = ("1:8", "1:4", "1:3", "1:2", "2:3", "1:1", "3:2", "2:1", "3:1", "4:1", "8:1")
    bins = [f"< {names[0]}", *names]
    assert len(bins) == len(RATIO_EDGES) - 1
    bars = [Bars("boxes", "style-0", [100 * x for x in report.ratios])]
    labels = ("height : width, from", "% of the objects")
    chart = bar_chart("Aspect ratios of the boxes", *_trimmed(bins, bars), labels=labels)
    return [
        element("p", {}, f"Sizes {sizes} pixels; height / width {ratios}. {ANCHOR_NOTE}"),
        _table("Fit of the anchors", heads, rows),
        element("div", {"class": "charts"}, chart),
    ]


def _copies(copies: Copies) -> list[Element]:
    rows = [
        ("of evaluation, in training", [str(copies.exact_between), str(copies.near_between)]),
        ("within training", [str(copies.exact_train), str(copies.near_train)]),
        ("within evaluation", [str(copies.exact_test), str(copies.near_test)]),
    ]
    parts = [
        element("p", {}, COPY_NOTE),
        _table("Images with a copy", ("", "exact", "near"), rows),
    ]
    pairs = [*copies.between, *copies.within]
    if pairs:
        parts.append(element("ul", {"class": "pairs"}, *(_pair(*pair) for pair in pairs)))
    return parts


def _pair(first: str, second: str, kind: str) -> Element:
    pictures = [picture for file in (first, second) for picture in _picture(file)]
    names = f"{kind}: {Path(first).name}, {Path(second).name}"
    return element("li", {}, *pictures, element("div", {"title": f"{first}\n{second}"}, names))


def _picture(file: str) -> list[Element]:
    """Return a small picture of a file, or nothing if it cannot be drawn."""
    try:
        pixels = read_picture(file, "RGB")
    except (OSError, PictureError):
        return []
    image = Image.fromarray(pixels)
    image.thumbnail((PICTURE, PICTURE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return [element("img", {"src": f"data:image/jpeg;base64,{data}", "alt": Path(file).name})]
