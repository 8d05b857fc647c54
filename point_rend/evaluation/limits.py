"""Limits on the number of results that count, and warnings about sets that reach them.

COCO counts the best 100 results of an image and class, LVIS the best 300 of an image. In a set with
more objects, perfect results have a low AP.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from point_rend.config.checks import MAX_DETS
from point_rend.config.defaults import OF_DATASET

logger = logging.getLogger(__name__)
COCO_LIMIT = 100  # results of an image and class
LVIS_LIMIT = 300  # results of an image

Records = Sequence[Mapping[str, Any]]


class Limit(NamedTuple):
    """A limit on the number of results that count.

    Attributes:
        number: The limit.
        setting: Config key or flag that sets it.
        by_class: Whether it holds for each class of an image, or for all together.
        of_model: Number of results that the model returns of an image, if known.
    """

    number: int
    setting: str
    by_class: bool = True
    of_model: int | None = None


def coco_limit(
    number: int = OF_DATASET, setting: str = MAX_DETS, *, of_model: int | None = None
) -> Limit:
    """Return the limit of COCO, or another one if a number is given."""
    return Limit(COCO_LIMIT if number == OF_DATASET else number, setting, of_model=of_model)


def lvis_limit(
    number: int = OF_DATASET, setting: str = MAX_DETS, *, of_model: int | None = None
) -> Limit:
    """Return the limit of LVIS, or another one if a number is given."""
    number = LVIS_LIMIT if number == OF_DATASET else number
    return Limit(number, setting, by_class=False, of_model=of_model)


def warn_of_limit(
    content: Mapping[str, Any], results: Records, limit: Limit, where: str
) -> list[str]:
    """Warn if there are no objects or results, or if they exceed a limit.

    Args:
        content: Annotations in COCO's instances format.
        results: Results in COCO's format.
        limit: The limit.
        where: Data set or file, for the message.

    Returns:
        The warnings, without the data set or file.
    """
    names = {category["id"]: category["name"] for category in content["categories"]}
    warnings = [] if results else ["there are no results at all"]
    if not content["annotations"]:
        warnings.append("the annotations have no objects, so that AP is undefined")
    warnings += limit_warnings(content["annotations"], results, names, limit)
    for warning in warnings:
        logger.warning("%s: %s", where, warning)
    return warnings


def limit_warnings(
    annotations: Records, results: Records, names: Mapping[int, str], limit: Limit
) -> list[str]:
    """Describe the objects and results of a set that exceed a limit.

    Args:
        annotations: Annotations in COCO's format.
        results: Results in COCO's format.
        names: Names of the classes by id.
        limit: The limit.

    Returns:
        Sentences; none if nothing exceeds it.
    """
    of_class = " of a class" if limit.by_class else ""
    counted = f"only the best {limit.number} results of an image{' and class' * limit.by_class}"
    count = _per_class if limit.by_class else _per_image
    objects = [x for x in annotations if not x.get("iscrowd", 0)]
    warnings = []
    crowded = _beyond(count(objects), limit.number)
    if crowded:
        warnings.append(
            f"{_images(crowded)} more than {limit.number} objects{of_class} "
            f"({_most(crowded, names)}), but {counted} count, which bounds AP: raise "
            f"{limit.setting}"
        )
    many = _beyond(count(results), limit.number)
    if many:
        ignored = sum(many.values()) - limit.number * len(many)
        warnings.append(
            f"{_images(many)} more than {limit.number} results{of_class} ({_most(many, names)}): "
            f"{counted} count, the other {ignored} are ignored; {limit.setting} sets this limit"
        )
    of_model = limit.of_model
    dense = {} if of_model is None else _beyond(_per_image(objects), of_model)
    if dense:
        warnings.append(
            f"{_images(dense)} more than {of_model} objects ({_most(dense, names)}), but the model "
            f"returns at most {of_model} results of an image, which bounds AP: raise "
            "TEST.DETECTIONS_PER_IMAGE"
        )
    return warnings


def _per_class(records: Records) -> Mapping[tuple[Any, ...], int]:
    return Counter((x["image_id"], x["category_id"]) for x in records)


def _per_image(records: Records) -> Mapping[tuple[Any, ...], int]:
    return Counter((x["image_id"],) for x in records)


def _beyond(counts: Mapping[tuple[Any, ...], int], limit: int) -> dict[tuple[Any, ...], int]:
    return {group: count for group, count in counts.items() if count > limit}


def _images(groups: Mapping[tuple[Any, ...], int]) -> str:
    """Return how many images have these counts, as the beginning of a sentence."""
    number = len({image for image, *_ in groups})
    return "1 image has" if number == 1 else f"{number} images have"


def _most(groups: Mapping[tuple[Any, ...], int], names: Mapping[int, str]) -> str:
    """Return the largest count and its place."""
    image, *category = most = max(groups, key=groups.__getitem__)
    of_class = "".join(f" of {names.get(number, number)!r}" for number in category)
    return f"the most are {groups[most]}{of_class} in image {image!r}"
