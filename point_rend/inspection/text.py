"""A data report as text for a terminal."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from point_rend.inspection.classes import ClassReport
from point_rend.inspection.duplicates import Copies
from point_rend.inspection.report import Report, Split
from point_rend.inspection.semantic import SemanticReport
from point_rend.inspection.sizes import EDGES, Sizes
from point_rend.utils.errors import shorten

MOST_CLASSES = 30  # rows of a table
BAR = 24  # characters
NONE = "–"


def format_text(report: Report) -> str:
    """Format a report."""
    blocks = [[f"Data report of {config_name(report.config_file)}"]]
    for title, split in (("Training", report.train), ("Evaluation", report.test)):
        if split is not None:
            blocks.append([f"{title}: {', '.join(split.names)}", *_split(split)])
    if report.classes is not None:
        blocks.append(["Classes of instances", *_classes(report.classes)])
    if report.semantic is not None:
        blocks.append(["Classes of label maps", *_labels(report.semantic)])
    if report.anchors is not None:
        fit = report.anchors.fit
        low, middle, high = report.anchors.ratio_percentiles
        blocks.append(
            [
                "Anchors, after the resize in training",
                f"  height / width of the boxes: {middle:.2f} (5% below {low:.2f}, 5% above "
                f"{high:.2f})",
                f"  best IoU with an anchor: mean {fit.mean_iou:.2f}; below "
                f"{report.anchors.anchors.foreground:g} for {fit.below_foreground:.0%} of the "
                f"objects, below {report.anchors.anchors.background:g} for "
                f"{fit.below_background:.0%}",
            ]
        )
    if report.copies is not None:
        blocks.append(["Copies of images", *_copies(report.copies)])
    findings = [f"  - {text}" for text in report.findings] or ["  none"]
    blocks.append(["To look at", *findings])
    blocks.append(["Suggestions", *(_suggestions(report) or ["  none: the config fits the data"])])
    if report.fitting:
        blocks.append(["Fits", *(f"  - {text}" for text in report.fitting)])
    # Names of files and classes may hold any characters.
    return "\n\n".join("\n".join(shorten(x, len(x)) for x in block) for block in blocks)


def config_name(config_file: str) -> str:
    """Return the name of a config with that of its folder."""
    return "/".join(Path(config_file).parts[-2:])


def pixel_range(values: Sequence[float]) -> str:
    """Format the smallest and the largest of some numbers of pixels."""
    low, high = values[0], values[-1]
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _split(split: Split) -> Iterator[str]:
    shapes, objects = split.shapes, split.objects
    yield f"  images: {split.images}" + (f", {len(split.broken)} unusable" if split.broken else "")
    if shapes.common:
        width, height, count = shapes.common[0]
        yield (
            f"  width {pixel_range(shapes.width)}, height {pixel_range(shapes.height)} pixels, "
            f"{count} of {width} x {height}; scaled by {shapes.scale[2]:.2f} in tests "
            f"({shapes.scale[0]:.2f} to {shapes.scale[-1]:.2f})"
        )
    if objects is None:
        return
    yield (
        f"  objects: {objects.objects}; {objects.crowds} crowds, {objects.impossible} impossible "
        "annotations"
    )
    if objects.percentiles:
        low, _, middle, _, high = objects.percentiles
        yield f"  objects of an image: {middle:.0f} ({low:.0f} to {high:.0f})"
    yield (
        f"  images without annotations: {objects.empty}, with crowds or impossible ones only: "
        f"{objects.without_objects}"
        + (f"; left out by the training: {objects.left_out}" if objects.left_out else "")
    )
    yield (
        f"  masks: {objects.runs} RLE, {objects.several_parts} of several polygons, "
        f"{objects.holes} with a polygon within another; {objects.corners:.0f} corners in the "
        "median"
    )
    if split.sizes:
        yield from _sizes(split.sizes)


def _sizes(sizes: Sequence[Sizes]) -> Iterator[str]:
    names = {"original": "in the image", "train": "in training", "test": "in tests"}
    heads = ("small", "medium", "large", "5%", "50%", "95%", "< 2 px", "< stride")
    title = "sizes of objects, √area"
    yield f"  {title:<26}" + "".join(f"{head:>9}" for head in heads)
    for x in sizes:
        is_original = x.stage == "original" or x.below_stride is None
        cells = [
            *(percent(share) for share in (x.small, x.medium, x.large)),
            *(f"{x.percentiles[k]:.1f}" for k in (1, 3, 5)),
            percent(x.below_two),
            NONE if is_original else percent(x.below_stride or 0.0),
        ]
        yield f"  {names[x.stage]:<26}" + "".join(f"{cell:>9}" for cell in cells)
    last = sizes[-1]
    yield f"  histogram {names[last.stage]}, pixels:"
    filled = [k for k, share in enumerate(last.histogram) if share]
    bins = list(zip(pairwise(EDGES), last.histogram, strict=True))
    for (start, end), share in bins[filled[0] : filled[-1] + 1]:
        bar = "█" * round(BAR * share / max(last.histogram))
        yield f"    {edge_name(start, end):>9} {percent(share):>7} {bar}"


def edge_name(start: float, end: float) -> str:
    """Name a bin of a histogram, such as 4–8."""
    if start == 0:
        return f"< {end:g}"
    return f"≥ {start:g}" if end == float("inf") else f"{start:g}–{end:g}"


def percent(share: float) -> str:
    """Format a share; small ones that are not 0 stay visible."""
    if 0 < share < 0.0005:
        return "< 0.1%"
    return f"{100 * share:.1f}%"


def _classes(report: ClassReport) -> Iterator[str]:
    train, test = report.train, report.test
    zeros = [0] * len(report.names)
    columns = [
        x for split in (train, test) for x in ((split.objects, split.images) if split else ())
    ]
    heads = [
        f"{role} {unit}"
        for role, split in (("train", train), ("val", test))
        if split
        for unit in ("objects", "images")
    ]
    order = sorted(range(len(report.names)), key=lambda k: -(columns or [zeros])[0][k])
    yield from _rows(report.names, heads, columns, order)
    if report.imbalance is not None and len(report.names) > 1:
        yield f"  imbalance: {report.imbalance:.1f} objects of the first per one of the rarest"


def _labels(report: SemanticReport) -> Iterator[str]:
    heads, columns = [], []
    for role, split in (("train", report.train), ("val", report.test)):
        if split is not None:
            total = max(1, int(split.pixels.sum()))
            heads += [f"{role} pixels", f"{role} images"]
            columns += [[percent(x / total) for x in split.pixels], split.images.tolist()]
            if role == "train":
                heads.append("at boundary")
                columns.append([NONE if x != x else percent(x) for x in split.boundary])
    source = report.train or report.test
    assert source is not None
    order = sorted(range(len(report.names)), key=lambda k: -int(source.pixels[k]))
    yield from _rows(report.names, heads, columns, order)
    for role, split in (("training", report.train), ("evaluation", report.test)):
        if split is not None:
            total = int(split.pixels.sum()) + split.ignored
            yield f"  ignored pixels of {role}: {percent(split.ignored / max(1, total))}"


def _rows(
    names: Sequence[str], heads: Sequence[str], columns: Sequence[Sequence], order: Sequence[int]
) -> Iterator[str]:
    """Yield the rows of a table of classes; of many, the first and the last ones."""
    shown = list(order)
    left_out = len(order) - MOST_CLASSES
    if left_out > 0:
        shown = [*order[: MOST_CLASSES // 2], -1, *order[-MOST_CLASSES // 2 :]]
    width = max([len(shorten(names[k], 30)) for k in order] + [5])
    yield f"  {'':<{width}}" + "".join(f"{head:>15}" for head in heads)
    for k in shown:
        if k < 0:
            yield f"  … {left_out} more classes"
            continue
        yield f"  {shorten(names[k], 30):<{width}}" + "".join(f"{c[k]:>15}" for c in columns)


def _copies(copies: Copies) -> Iterator[str]:
    yield (f"  of evaluation in training: {copies.exact_between} exact, {copies.near_between} near")
    yield f"  within training: {copies.exact_train} exact, {copies.near_train} near"
    yield f"  within evaluation: {copies.exact_test} exact, {copies.near_test} near"
    for first, second, kind in [*copies.between, *copies.within][:MOST_CLASSES]:
        yield f"    {kind}: {first} = {second}"


def _suggestions(report: Report) -> list[str]:
    lines = []
    for suggestion in report.suggestions:
        lines += [f"  - {suggestion.title}: {suggestion.reason}"]
        lines += [f"      {suggestion.options}"] if suggestion.options else []
    return lines
