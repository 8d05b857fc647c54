"""Masks for a file of boxes, as `pointrend refine` renders them."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pycocotools.mask as mask_util
import torch
from tqdm import tqdm

from point_rend.config.checks import check_max_dets
from point_rend.data.checks.annotations import check_ground_truth
from point_rend.data.checks.boxes import MANY_BEYOND
from point_rend.data.datasets.coco import read_coco
from point_rend.evaluation.coco_results import format_table
from point_rend.evaluation.limits import coco_limit
from point_rend.inference.given_boxes import (
    check_given_boxes,
    is_class_agnostic,
    render_given_boxes,
)
from point_rend.inference.predictor import Predictor
from point_rend.inference.settings import read_settings
from point_rend.refinement.box_file import (
    BoxFile,
    Size,
    boxes_of,
    is_crowd,
    read_box_file,
    write_box_file,
)
from point_rend.refinement.class_map import (
    Category,
    ClassMap,
    categories_of,
    describe,
    read_class_map,
    refuse_unmapped,
)
from point_rend.refinement.images import BoxedImage, ImageFolder, images_of
from point_rend.refinement.scoring import MaskScores
from point_rend.runtime.files import exported_file
from point_rend.utils.arguments import MAX_DETS_FLAG
from point_rend.utils.errors import print_result
from point_rend.utils.files import check_output, check_that_inputs_stay
from point_rend.utils.json_files import shown
from point_rend.utils.signals import write_line

MAX_LISTED = 10  # boxes or images of a fault
KEEP = "keep"


@dataclass
class Report:
    """The outcome of a run.

    Attributes:
        failures: A message for each image that has no new masks.
        faults: A message for each box that has no new mask.
        counts: Numbers of boxes and images, by what happened to them.
    """

    failures: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """Return the numbers and the first faults of each kind as sentences."""
        counts, lines = self.counts, []
        if counts["beyond"]:
            many = counts["beyond"] > MANY_BEYOND * (counts["rendered"] + counts["outside"])
            question = ": expected x, y, width, height; are they corners?" if many else ""
            lines.append(
                f"{counts['beyond']} boxes reach beyond their images: their masks are rendered "
                f"inside{question}"
            )
        texts = {
            "outside": "boxes have no area in their images: their masks are empty",
            "tiny": "boxes are smaller than a pixel",
            "empty": "masks have no pixel",
            "scaled": "images are of another size than in --boxes or --annotations, with the same "
            "shape: boxes and masks keep the size given there",
            "crowds": "annotations are crowds, which stay as they are",
            "unmapped": "boxes are of categories without a class, and stay as they are",
        }
        lines += [f"{counts[key]} {text}" for key, text in texts.items() if counts[key]]
        for number, kind, listed in (
            (len(self.faults), "boxes cannot be used and stay as they are", self.faults),
            (len(self.failures), "images failed, and their boxes stay as they are", self.failures),
        ):
            if number:
                lines.append(f"{number} {kind}:")
                lines += listed[:MAX_LISTED]
                lines += [f"and {number - MAX_LISTED} more"] if number > MAX_LISTED else []
        return lines


class _Plan(NamedTuple):
    """Boxes whose masks are rendered.

    Attributes:
        file: The file of boxes.
        images: Their images.
        classes: For each box the index of its class, None if it has none.
        categories: For each box its category.
    """

    file: BoxFile
    images: list[BoxedImage]
    classes: list[int | None]
    categories: list[Category]


def refine(args: argparse.Namespace) -> Report:
    """Render masks for the boxes of a file and write it with them.

    Args:
        args: The parsed command line of `pointrend refine`.

    Raises:
        FileNotFoundError, OSError, ValueError: After an error that stops everything.
    """
    _check_output(args)
    check_max_dets(args.max_dets, MAX_DETS_FLAG)
    given = None if args.class_map is None else read_class_map(args.class_map)
    folder = ImageFolder(args.images)
    file = read_box_file(args.boxes)
    truth = None
    if args.annotations is not None:
        truth = read_coco(str(args.annotations))
        check_ground_truth(args.annotations, truth)
    exported = exported_file(args.model)
    if exported is not None:
        raise ValueError(
            f"--model {exported} is an exported model, which detects its own boxes: expected "
            "--config-file with MODEL.WEIGHTS, or a folder of save_pretrained"
        )
    settings = read_settings(args)
    if os.path.exists(args.output):
        inputs = [settings.cfg.MODEL.WEIGHTS, *folder.files().values()]
        check_that_inputs_stay(inputs, [args.output])
    images, ids = images_of(file, truth, folder)
    known = file.data_set or truth or {"categories": []}
    categories = categories_of(file.records, known["categories"])
    agnostic = is_class_agnostic(settings.cfg)
    class_map = ClassMap(settings.metadata, given, agnostic=agnostic)
    report = Report()
    classes = _classes(file, categories, class_map, report, keep=args.unmapped == KEEP)
    scores = before = None
    if truth is not None:
        scores = MaskScores(file, truth, ids, categories, coco_limit(args.max_dets, MAX_DETS_FLAG))
        before = _score_before(scores)
    predictor = Predictor(
        settings.cfg,
        metadata=settings.metadata,
        allow_unsafe=args.allow_unsafe_checkpoint,
        paste_masks=False,
    )
    check_given_boxes(predictor.cfg, predictor.model)
    _render_all(predictor, _Plan(file, images, classes, categories), report)
    write_box_file(file, args.output)
    print_result(
        f"{args.output}: {report.counts['rendered']} of {len(file.records)} boxes in "
        f"{report.counts['images']} images have new masks"
    )
    if scores is not None:
        _print_scores(scores, before)
    return report


def _check_output(args: argparse.Namespace) -> None:
    """Refuse an output that exists, cannot be written or is an input."""
    inputs = [args.boxes, args.annotations, args.class_map, args.config_file, args.classes]
    check_output(args.output, inputs=[x for x in inputs if x is not None])
    if os.path.lexists(args.output) and not args.overwrite:
        raise ValueError(
            f"--output: {args.output} exists: choose another name, or pass --overwrite to replace "
            "it"
        )


def _classes(
    file: BoxFile,
    categories: Sequence[Category],
    class_map: ClassMap,
    report: Report,
    *,
    keep: bool,
) -> list[int | None]:
    """Find the class of each box, and report which of them have other names or none."""
    found = {category: class_map.find(category) for category in dict.fromkeys(categories)}
    lost: Counter[Category] = Counter()
    for record, category in zip(file.records, categories, strict=True):
        if is_crowd(record):
            report.counts["crowds"] += 1
        elif found[category] is None:
            lost[category] += 1
    if not keep:
        refuse_unmapped(file.path, lost, class_map.names)
    report.counts["unmapped"] = lost.total()
    mapped = {category: index for category, index in found.items() if index is not None}
    pairs = describe(mapped, class_map.names)
    if pairs:
        print(f"classes: {pairs}", file=sys.stderr)
    return [
        None if is_crowd(record) else found[category]
        for record, category in zip(file.records, categories, strict=True)
    ]


def _render_all(predictor: Predictor, plan: _Plan, report: Report) -> None:
    """Render the masks of all images and put them into the records."""
    done = 0
    try:
        for image in tqdm(plan.images, unit="image"):
            _render(predictor, image, plan, report)
            done += 1
    except (KeyboardInterrupt, SystemExit):
        write_line(f"{done} of {len(plan.images)} images were finished; nothing is written")
        raise
    if not report.counts["images"] and report.failures:
        raise ValueError(
            f"no image could be used, so nothing is written, such as {report.failures[0]}"
        )


def _render(predictor: Predictor, image: BoxedImage, plan: _Plan, report: Report) -> None:
    """Render the masks of an image; a failure is reported."""
    chosen = [index for index in image.records if plan.classes[index] is not None]
    if image.file is None:
        report.failures.append(f"{image.name}: there is no such image in --images")
        return
    if not chosen:
        report.counts["images"] += 1
        return
    try:
        inputs = predictor.inputs(image.file)
    except (OSError, ValueError) as error:
        report.failures.append(str(error))
        return
    size = inputs["height"], inputs["width"]
    if image.size is not None and image.size != size:
        if not _has_same_shape(image.size, size):
            report.failures.append(
                f"{image.file} is of (height, width) {size}, expected {image.size} as in --boxes "
                "or --annotations, or another size of the same shape"
            )
            return
        report.counts["scaled"] += 1
        size = inputs["height"], inputs["width"] = image.size
    records = [plan.file.records[index] for index in chosen]
    usable, corners = [], []
    for index, record, box in zip(chosen, records, boxes_of(records, size), strict=True):
        if box.corners is None:
            kind = "result" if plan.file.data_set is None else "annotation"
            number = shown(record["id"]) if plan.file.data_set is not None else index
            report.faults.append(f"{kind} {number} of {image.name} {box.fault}")
            continue
        usable.append(index)
        corners.append(box.corners)
        _count(box.corners, size, report, is_inside=box.is_inside)
    _put_masks(predictor, inputs, usable, corners, plan, report)
    report.counts["images"] += 1


def _count(corners: Sequence[float], size: Size, report: Report, *, is_inside: bool) -> None:
    """Count the properties of a box that a user may want to know."""
    x0, y0, x1, y1 = corners
    if not is_inside:
        report.counts["outside"] += 1
        return
    report.counts["beyond"] += min(x0, y0) < -1 or x1 > size[1] + 1 or y1 > size[0] + 1
    report.counts["tiny"] += min(x1 - x0, y1 - y0) < 1


def _put_masks(
    predictor: Predictor,
    inputs: dict[str, Any],
    indices: Sequence[int],
    corners: Sequence[Sequence[float]],
    plan: _Plan,
    report: Report,
) -> None:
    """Render the masks of boxes of an image and put them into their records."""
    boxes = torch.tensor(corners, dtype=torch.float64).reshape(-1, 4)
    classes = torch.tensor([plan.classes[index] for index in indices], dtype=torch.int64)
    of_index = iter(indices)
    try:
        for chunk in render_given_boxes(predictor.model, inputs, boxes, classes):
            for rle in chunk.rles():
                record = plan.file.records[next(of_index)]
                record["segmentation"] = rle | {"counts": rle["counts"].decode()}
                area = float(mask_util.area(rle))
                if plan.file.data_set is not None or "area" in record:
                    record["area"] = area
                report.counts["rendered"] += 1
                report.counts["empty"] += not area
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"MODEL.DEVICE {predictor.cfg.MODEL.DEVICE} ran out of memory: lower "
            "INPUT.MIN_SIZE_TEST, or pass MODEL.DEVICE cpu"
        ) from error


def _has_same_shape(first: Size, second: Size) -> bool:
    """Return whether two sizes differ by a factor, up to rounding to whole pixels."""
    difference = abs(first[0] * second[1] - first[1] * second[0])
    return difference <= max(sum(first), sum(second))


def _score_before(scores: MaskScores) -> dict[str, float] | None:
    """Compute the metrics of the masks in the file, if it has them."""
    results = scores.with_masks()
    if len(results) == scores.number:
        return scores.metrics(results) if results else None
    if results:
        print(
            f"{len(results)} of {scores.number} boxes that are compared with --annotations have "
            "masks: no AP before",
            file=sys.stderr,
        )
    return None


def _print_scores(scores: MaskScores, before: dict[str, float] | None) -> None:
    results = scores.with_masks()
    if len(results) < scores.number:
        print(
            f"AP counts {len(results)} of {scores.number} boxes, those with masks", file=sys.stderr
        )
    rows = {} if before is None else {"before": before}
    print_result(f"\n{format_table(rows | {'refined': scores.metrics(results)})}")
