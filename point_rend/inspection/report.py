"""A data report: everything that is measured, as plain values."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from point_rend.data.checks.image_files import ImageRecord
from point_rend.inspection.anchors import AnchorReport, compare_anchors
from point_rend.inspection.classes import ClassReport, Frequencies, compare_classes, count_objects
from point_rend.inspection.duplicates import Copies, ImageFile, find_copies, read_files
from point_rend.inspection.images import (
    Objectness,
    Shapes,
    count_in_images,
    measure_shapes,
    shared_files,
    trained_images,
)
from point_rend.inspection.records import Faults, Objects, read_objects
from point_rend.inspection.resizing import resize_scales
from point_rend.inspection.semantic import Labels, SemanticReport, compare_labels, read_labels
from point_rend.inspection.settings import Settings
from point_rend.inspection.sizes import Sizes, measure_sizes
from point_rend.inspection.suggestions import Suggestion, suggest
from point_rend.utils.errors import shorten
from point_rend.utils.reading import open_regular_file

FORMAT = "pointrend inspect 1"
HEAD = 200  # bytes in which it begins
LISTED = 8  # names in a sentence
SHIFT = 0.15  # difference of two shares
UNEQUAL = 100  # objects or pixels of a class per one of another, which is worth a sentence


class Split(NamedTuple):
    """The sets of training, or those that are evaluated.

    Attributes:
        names: Registered names.
        images: Number of images.
        objects: Objects of the images, for models of instances.
        sizes: Sizes of the objects: original, resized for training, and for tests.
        shapes: Sizes of the images.
        faults: Impossible annotations.
        broken: Image files and label maps that cannot be used, with the reason.
    """

    names: list[str]
    images: int
    objects: Objectness | None
    sizes: list[Sizes]
    shapes: Shapes
    faults: list[Faults]
    broken: list[str]


class Report(NamedTuple):
    """A data report.

    Attributes:
        format: Name and version of the format.
        config_file: The config.
        train: The training sets, if there are any.
        test: The sets that are evaluated, if there are any.
        classes: Classes of instances.
        anchors: Anchors of the config against the objects of training.
        semantic: Classes of label maps.
        copies: Copies among the image files; None if they were not read.
        findings: What should be looked at; one sentence each.
        suggestions: Settings that fit better.
        fitting: What fits; one sentence each.
    """

    format: str
    config_file: str
    train: Split | None
    test: Split | None
    classes: ClassReport | None
    anchors: AnchorReport | None
    semantic: SemanticReport | None
    copies: Copies | None
    findings: list[str]
    suggestions: list[Suggestion]
    fitting: list[str]


class _Set(NamedTuple):
    """What was read of the sets of training, or of evaluation."""

    names: tuple[str, ...]
    objects: Objects | None
    labels: Labels | None
    files: list[str]
    sizes: np.ndarray
    contents: list[ImageFile]


def inspect_data(settings: Settings, config_file: str, *, reads_images: bool = True) -> Report:
    """Read the data sets of a config and compare them with it.

    Args:
        settings: Settings of the config.
        config_file: Its file.
        reads_images: Whether to open all image files, to find broken ones and copies.

    Raises:
        FileNotFoundError: If an annotation file or a folder is missing.
        ValueError: If a data set cannot be loaded.
    """
    sets = [
        _read(names, settings, points=points, reads_images=reads_images) if names else None
        for names, points in ((settings.train, settings.points), (settings.test, False))
    ]
    train, test = sets
    anchors = None
    if settings.anchors and (source := train or test) is not None and source.objects is not None:
        objects = source.objects
        scales = resize_scales(settings.training, objects.sizes)[:, objects.image]
        chosen = objects.usable
        anchors = compare_anchors(objects.sides[chosen], scales[:, chosen], settings.anchors)
    frequencies: list[Frequencies | None] = [
        count_objects(x.objects, len(settings.things)) if x and x.objects is not None else None
        for x in sets
    ]
    classes = compare_classes(settings.things, *frequencies) if settings.instances else None
    semantic = None
    if settings.semantic:
        semantic = compare_labels(settings.stuff, *(x.labels if x else None for x in sets))
    copies = None
    if reads_images:
        pairs = [list(zip(x.files, x.contents, strict=True)) if x else [] for x in sets]
        copies = find_copies(*pairs)
    splits = [_measure(x, settings, training=x is train) if x else None for x in sets]
    advice = suggest(
        settings,
        images=_trained(train, settings) if train else 0,
        objects=train.objects if train else None,
        classes=classes,
        in_train=splits[0].objects if splits[0] else None,
        in_test=splits[1].objects if splits[1] else None,
        sizes=next((x for x in splits[0].sizes if x.stage == "test"), None) if splits[0] else None,
        scale=_median_scale(train, settings) if train else math.nan,
        anchors=anchors if train else None,
        semantic=semantic,
    )
    return Report(
        FORMAT,
        config_file,
        splits[0],
        splits[1],
        classes,
        anchors,
        semantic,
        copies,
        _findings(settings, sets, splits, classes, semantic, copies),
        advice.suggestions,
        advice.fitting,
    )


def _read(names: tuple[str, ...], settings: Settings, *, points: bool, reads_images: bool) -> _Set:
    objects = labels = None
    if settings.instances:
        objects = read_objects(names, masks=settings.masks and not points, points=points)
    if settings.semantic:
        labels = read_labels(
            names, num_classes=len(settings.stuff), ignore_value=settings.ignore_value
        )
    source = objects if objects is not None else labels
    assert source is not None
    contents: list[ImageFile] = []
    if reads_images:
        known = np.isfinite(source.sizes).all(axis=1) & (objects is not None)
        records = [
            ImageRecord(
                file,
                k,
                int(source.sizes[k, 1]) if known[k] else None,
                int(source.sizes[k, 0]) if known[k] else None,
                (),
            )
            for k, file in enumerate(source.files)
        ]
        contents = read_files(records, settings.pixel_format)
    return _Set(names, objects, labels, source.files, source.sizes, contents)


def _trained(train: _Set, settings: Settings) -> int:
    """Return the number of images that are trained on."""
    if train.objects is None:
        return len(train.files)
    return int(trained_images(train.objects, filters_empty=settings.filters_empty).sum())


def _median_scale(train: _Set, settings: Settings) -> float:
    scales = resize_scales(settings.testing, train.sizes)
    return float(np.nanmedian(scales)) if np.isfinite(scales).any() else math.nan


def _measure(read: _Set, settings: Settings, *, training: bool) -> Split:
    objects = read.objects
    testing = resize_scales(settings.testing, read.sizes)
    sizes: list[Sizes | None] = []
    if objects is not None:
        chosen = objects.usable
        area, sides, image = objects.area[chosen], objects.sides[chosen], objects.image[chosen]
        smallest = settings.anchors and min(min(level) for level in settings.anchors.sizes)
        stages = {"original": np.ones((1, len(read.files)))}
        if training:
            stages["train"] = resize_scales(settings.training, read.sizes)
        stages["test"] = testing
        sizes = [
            measure_sizes(
                stage,
                area,
                sides,
                scales[:, image],
                stride=settings.stride,
                smallest_anchor=smallest,
            )
            for stage, scales in stages.items()
        ]
    broken = [
        f"{file} {content.fault}"
        for file, content in zip(read.files, read.contents, strict=False)
        if content.fault
    ]
    return Split(
        list(read.names),
        len(read.files),
        None
        if objects is None
        else count_in_images(
            objects,
            detections=settings.detections,
            filters_empty=settings.filters_empty and training,
        ),
        [x for x in sizes if x is not None],
        measure_shapes(read.sizes, testing[0]),
        objects.faults if objects is not None else [],
        broken + (read.labels.faults if read.labels is not None else []),
    )


def _findings(
    settings: Settings,
    sets: Sequence[_Set | None],
    splits: Sequence[Split | None],
    classes: ClassReport | None,
    semantic: SemanticReport | None,
    copies: Copies | None,
) -> list[str]:
    found = []
    shared = [name for name in settings.train if name in settings.test]
    if shared:
        found.append(
            f"{', '.join(shared)} is both trained on and evaluated: its metrics do not show how "
            "the model does on other images."
        )
    elif all(sets):
        train, test = sets
        assert train is not None
        assert test is not None
        same = shared_files(train.files, test.files)
        if same:
            found.append(f"{same} image files of evaluation are those of training.")
    if copies is not None and not shared:
        for count, kind in ((copies.exact_between, "an exact"), (copies.near_between, "a near")):
            if count:
                found.append(
                    f"{count} images of evaluation have {kind} copy in training, which makes the "
                    "metrics too good."
                )
        for exact, near, split, role in (
            (copies.exact_train, copies.near_train, splits[0], "training"),
            (copies.exact_test, copies.near_test, splits[1], "evaluation"),
        ):
            for count, how in ((exact, "exactly"), (near, "nearly")):
                if count and split is not None:
                    found.append(
                        f"{count} of {split.images} images of {role} repeat another one {how}, "
                        "such as frames of a video: they count several times."
                    )
    for split, role in zip(splits, ("training", "evaluation"), strict=True):
        if split is None:
            continue
        if split.broken:
            found.append(
                f"{len(split.broken)} files of {role} cannot be used: "
                f"{_listed(split.broken, 2, longest=1000)}."
            )
        if split.objects is not None:
            if split.objects.impossible:
                kinds = [f"{x.kind} ({x.number})" for x in split.faults]
                found.append(
                    f"{split.objects.impossible} annotations of {role} are impossible: "
                    f"{_listed(kinds, 3)}."
                )
            if not split.objects.objects:
                found.append(f"There is no object in the sets of {role}.")
            elif 2 * split.objects.crowds >= split.objects.annotations:
                found.append(
                    f"{split.objects.crowds} of {split.objects.annotations} annotations of {role} "
                    "are crowds (iscrowd 1), which are neither trained on nor counted."
                )
    for read in sets:
        for source in (read.objects, read.labels) if read else ():
            found += [f"{text}." for text in source.warnings] if source is not None else []
    if not settings.points:  # the objects of training have boxes, but no areas of masks
        found += _of_shift(splits)
    for report, unit in ((classes, "objects"), (semantic, "pixels")):
        if report is not None and (report.train is not None or report.test is not None):
            found += _of_classes(report, unit)
    return list(dict.fromkeys(found))


def _of_shift(splits: Sequence[Split | None]) -> list[str]:
    """Describe a difference between the sizes of objects in training and evaluation."""
    train, test = (
        next((x for x in split.sizes if x.stage == "test"), None) if split else None
        for split in splits
    )
    if train is None or test is None:
        return []
    return [
        f"{own:.0%} of the objects of training are {kind} after the resize in tests, but "
        f"{other:.0%} of those of evaluation."
        for kind, own, other in (
            ("small", train.small, test.small),
            ("large", train.large, test.large),
        )
        if abs(own - other) > SHIFT
    ]


def _of_classes(report: ClassReport | SemanticReport, unit: str) -> list[str]:
    total, found = len(report.names), []
    if report.absent_train:
        found.append(
            f"{len(report.absent_train)} of {total} classes have no {unit} in training, so that "
            f"they are never learned: {_listed(report.absent_train)}."
        )
    if report.only_test:
        found.append(
            f"{len(report.only_test)} of them have {unit} in evaluation, where they cannot be "
            f"found: {_listed(report.only_test)}."
        )
    absent = [name for name in report.absent_test if name not in report.absent_train]
    if absent:
        found.append(
            f"{len(absent)} of {total} classes that are trained have no {unit} in evaluation, so "
            f"that their metrics are undefined: {_listed(absent)}."
        )
    if report.imbalance is not None and report.imbalance >= UNEQUAL:
        found.append(
            f"The most frequent class has {report.imbalance:.0f} times as many {unit} in training "
            "as the rarest that has any."
        )
    return found


def _listed(names: Sequence[str], count: int = LISTED, longest: int = 100) -> str:
    """Join the first few names, of so many characters at most, and count the others."""
    more = [f"and {len(names) - count} more"] if len(names) > count else []
    return ", ".join([*(shorten(name, longest) for name in names[:count]), *more])


def is_json_report(file: Path) -> bool:
    """Return whether a file is a report in JSON."""
    with open_regular_file(file, what="report") as opened:
        return f'"format": "{FORMAT}"'.encode() in opened.read(HEAD)


def as_plain(value: Any) -> Any:
    """Return a report, or a part of it, as objects, lists, numbers and text of JSON.

    NaN becomes null; the annotations themselves and the names of files are no parts of a report.
    """
    if hasattr(value, "_asdict"):
        hidden = ("files", "sizes") if isinstance(value, Labels) else ()
        return {k: as_plain(v) for k, v in value._asdict().items() if k not in hidden}
    if isinstance(value, dict):
        return {str(k): as_plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return as_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [as_plain(x) for x in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
