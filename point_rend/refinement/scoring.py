"""AP of the masks of a file of boxes before and after they are rendered."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from point_rend.data.checks.masks import compressed_rle
from point_rend.evaluation.coco_ap import CocoAP
from point_rend.evaluation.coco_results import is_number, mask_metrics
from point_rend.evaluation.limits import Limit, warn_of_limit
from point_rend.evaluation.matching import match_objects
from point_rend.evaluation.pairing import (
    CLASSES,
    IMAGES,
    check_sizes,
    find_classes,
    find_images,
    ids_by_name,
)
from point_rend.refinement.box_file import BoxFile, is_crowd
from point_rend.refinement.class_map import Category
from point_rend.utils.json_files import shown

Record = dict[str, Any]


class MaskScores:
    """Mask AP and boundary AP of the records of a file of boxes.

    Records of images or categories that the ground truth does not have are left out, and so are
    crowds. Annotations of which none has a score are put into the best order: each has the IoU
    with its object as its score. Otherwise those without a score have the score 1.

    Args:
        file: The file of boxes.
        truth: The ground truth, as `read_coco` returns it.
        images: For each record of a list of results the id of its image in the ground truth, None
            if unknown; of annotations the id in their own file.
        categories: The category of each record.
        limit: Number of results of an image and class that count.

    Raises:
        ValueError: If a result has no score, or images differ in size or have ambiguous names.
    """

    def __init__(
        self,
        file: BoxFile,
        truth: Mapping[str, Any],
        images: Sequence[Any],
        categories: Sequence[Category],
        limit: Limit,
    ) -> None:
        self._file, self._truth, self._limit = file, truth, limit
        self._evaluation = CocoAP(truth, max_dets=limit.number)
        of_image, of_category = self._ids(categories)
        self._has_scores = any("score" in record for record in file.records)
        self._slots: list[tuple[int, Record]] = []
        for index, (record, image, category) in enumerate(
            zip(file.records, images, categories, strict=True)
        ):
            score = record.get("score", None if file.data_set is None else 1.0)
            if not is_number(score):
                raise ValueError(
                    f"{file.path}: result {index} has the score {shown(score)}, expected a number, "
                    "which AP with --annotations needs"
                )
            identity = of_image.get(image) if file.data_set is not None else image
            if identity is not None and category in of_category and not is_crowd(record):
                slot = {"image_id": identity, "category_id": of_category[category], "score": score}
                self._slots.append((index, slot))

    def _ids(self, categories: Sequence[Category]) -> tuple[dict[Any, Any], dict[Category, int]]:
        """Return the ids of the ground truth for images of annotations, and for categories."""
        where, known = str(self._file.path), ids_by_name(self._truth, CLASSES)
        named = {name for _, name in categories if name is not None}
        by_name = find_classes(named, known, where)
        ids = {category["id"] for category in self._truth["categories"]}
        of_category = {}
        for category in dict.fromkeys(categories):
            identity, name = category
            if name is None and identity in ids:
                of_category[category] = identity
            elif name in by_name:
                of_category[category] = by_name[name]
        data_set = self._file.data_set
        if data_set is None:
            return {}, of_category
        check_sizes(data_set["images"], self._truth, Path(where))
        names = {image["id"]: image["file_name"] for image in data_set["images"]}
        found = find_images(names.values(), ids_by_name(self._truth, IMAGES), where)
        return {x: found[name] for x, name in names.items() if name in found}, of_category

    @property
    def number(self) -> int:
        """Number of records that count if they have masks."""
        return len(self._slots)

    def with_masks(self) -> list[Record]:
        """Return those of the records that have masks now, as results of the ground truth."""
        records = self._file.records
        return [
            {**slot, "segmentation": records[index]["segmentation"]}
            for index, slot in self._slots
            if records[index].get("segmentation")
        ]

    def metrics(self, results: Sequence[Record]) -> dict[str, float]:
        """Return AP, AP50, AP75 and boundary AP in percent.

        Args:
            results: As of :meth:`with_masks`.

        Raises:
            ValueError: If a mask cannot be read.
        """
        warn_of_limit(self._truth, results, self._limit, str(self._file.path))
        ordered = list(results) if self._has_scores else self._in_best_order(results)
        return mask_metrics(ordered, self._evaluation)

    def _in_best_order(self, results: Sequence[Record]) -> list[Record]:
        """Score results by the mask IoU with the objects that they match; by 0 without one."""
        sizes = {image["id"]: (image["height"], image["width"]) for image in self._truth["images"]}

        def compressed(records: Sequence[Record]) -> list[Record]:
            return [
                {**x, "segmentation": compressed_rle(x["segmentation"], *sizes[x["image_id"]])}
                for x in records
            ]

        objects = compressed([x for x in self._truth["annotations"] if not is_crowd(x)])
        scored: list[Record] = [{**result, "score": 0.0} for result in results]
        for match in match_objects(objects, compressed(results)):
            if match is not None:
                scored[match.result]["score"] = match.iou
        return scored
