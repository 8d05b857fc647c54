"""Panoptic quality: how well segments of things and stuff are found and outlined.

A predicted and a true segment of the same class match if their IoU is over 0.5; no segment then has
two matches. With the matches TP, the predicted segments without one FP and the true segments
without one FN, a class has

    SQ = sum of the IoUs of the matches / TP
    RQ = TP / (TP + FP / 2 + FN / 2)
    PQ = SQ * RQ

The means are over the classes that have any of them.

Conventions:
    * Pixels of no true segment are void: they are in no union, and a predicted segment of which
      more than half is void, or crowds of its class, is no FP.
    * A crowd matches nothing, and is no FN.

Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019, section 4, and for crowds section 4.2.

Shape letters: H and W image height and width in pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

VOID = 0
MATCHED = 0.5  # IoU of a match
IGNORED = 0.5  # share of a predicted segment that is void or crowd, above which it does not count

Segments = Mapping[int, int]  # class by id


class Counts(NamedTuple):
    """Segments of one class.

    Attributes:
        iou: Sum of the IoUs of the matches.
        matches: Number of matches.
        wrong: Number of predicted segments without a match.
        missed: Number of true segments without a match.
    """

    iou: float = 0.0
    matches: int = 0
    wrong: int = 0
    missed: int = 0


class Quality(NamedTuple):
    """Panoptic, segmentation and recognition quality, from 0 to 1; NaN without any segment."""

    pq: float
    sq: float
    rq: float


def compare_segments(
    predicted_ids: np.ndarray,
    predicted: Segments,
    true_ids: np.ndarray,
    true: Segments,
    crowds: Iterable[int] = (),
) -> dict[int, Counts]:
    """Count the matches of one image.

    Args:
        predicted_ids: (H, W) ids of segments, 0 for none.
        predicted: Class of each predicted segment.
        true_ids: (H, W) ids of segments, 0 for void.
        true: Class of each true segment.
        crowds: True segments that are crowds.

    Returns:
        The counts of each class that has any.

    Raises:
        ValueError: If the sizes differ, or if a map has an id without a class or lacks one.
    """
    if predicted_ids.shape != true_ids.shape:
        raise ValueError(
            f"expected a prediction of the size of the ground truth, {true_ids.shape[0]} x "
            f"{true_ids.shape[1]}, got {' x '.join(map(str, predicted_ids.shape))}"
        )
    shared = _shared_pixels(predicted_ids, true_ids)
    areas: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for pair, pixels in shared.items():
        for side, identity in zip(areas, pair, strict=True):
            side[identity] = side.get(identity, 0) + pixels
    for of_map, segments, name in zip(
        areas, (predicted, true), ("prediction", "ground truth"), strict=True
    ):
        different = ({*of_map} - {VOID}) ^ {*segments}
        if different:
            raise ValueError(
                f"the map of the {name} and the list of its segments do not have the same ids: "
                f"{min(different)} is in one of them only"
            )
    are_crowds = {*crowds}
    found: dict[int, Counts] = {}

    def add(category: int, **more: float) -> None:
        before = found.get(category, Counts())
        found[category] = before._replace(
            **{key: getattr(before, key) + value for key, value in more.items()}
        )

    matched: set[tuple[int, int]] = set()
    for (own, other), pixels in shared.items():
        if VOID in (own, other) or other in are_crowds or predicted[own] != true[other]:
            continue
        union = areas[0][own] + areas[1][other] - pixels - shared.get((own, VOID), 0)
        if pixels > MATCHED * union:
            matched.add((own, other))
            add(true[other], iou=pixels / union, matches=1)
    for other in true.keys() - {other for _, other in matched} - are_crowds:
        add(true[other], missed=1)
    for own in predicted.keys() - {own for own, _ in matched}:
        ignored = [VOID, *(x for x in are_crowds if true[x] == predicted[own])]
        pixels = sum(shared.get((own, x), 0) for x in ignored)
        if pixels <= IGNORED * areas[0][own]:
            add(predicted[own], wrong=1)
    return found


def _shared_pixels(first: np.ndarray, second: np.ndarray) -> dict[tuple[int, int], int]:
    """Count the pixels of each pair of ids."""
    ids, numbers = zip(*(np.unique(x, return_inverse=True) for x in (first, second)), strict=True)
    pairs = numbers[0].ravel() * len(ids[1]) + numbers[1].ravel()
    found, pixels = np.unique(pairs, return_counts=True)
    rows, columns = np.divmod(found, len(ids[1]))
    return dict(
        zip(
            zip(ids[0][rows].tolist(), ids[1][columns].tolist(), strict=True),
            pixels.tolist(),
            strict=True,
        )
    )


def total(images: Iterable[Mapping[int, Counts]]) -> dict[int, Counts]:
    """Add the counts of images, class by class."""
    found: dict[int, Counts] = {}
    for image in images:
        for category, counts in image.items():
            before = found.get(category, Counts())
            found[category] = Counts(
                before.iou + counts.iou,
                before.matches + counts.matches,
                before.wrong + counts.wrong,
                before.missed + counts.missed,
            )
    return found


def quality_of(counts: Counts) -> Quality:
    """Return the quality of one class."""
    segments = counts.matches + (counts.wrong + counts.missed) / 2
    if not segments:
        return Quality(*[float("nan")] * 3)
    return Quality(
        counts.iou / segments,
        counts.iou / counts.matches if counts.matches else 0.0,
        counts.matches / segments,
    )


def mean_quality(of_classes: Sequence[Quality]) -> Quality:
    """Return the mean over the classes with segments; NaN if none has any."""
    known = [quality for quality in of_classes if not np.isnan(quality.pq)]
    if not known:
        return Quality(*[float("nan")] * 3)
    return Quality(*np.mean(known, axis=0).tolist())


def as_quality_results(
    counts: Mapping[int, Counts], categories: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the metrics in percent, with the names of Detectron2.

    Args:
        counts: Of each class, by its id.
        categories: With "id", "name" and "isthing", as in COCO's panoptic files.

    Returns:
        PQ, SQ and RQ of all classes, of things (`PQ_th`) and of stuff (`PQ_st`), and the PQ of each
        class (`PQ-name`).
    """
    by_id = {x["id"]: quality_of(counts.get(x["id"], Counts())) for x in categories}
    found: dict[str, float] = {}
    for ending, wanted in {"": (0, 1), "_th": (1,), "_st": (0,)}.items():
        mean = mean_quality([by_id[x["id"]] for x in categories if x["isthing"] in wanted])
        for name, value in mean._asdict().items():
            found[f"{name.upper()}{ending}"] = 100 * value
    return found | {f"PQ-{x['name']}": 100 * by_id[x["id"]].pq for x in categories}
