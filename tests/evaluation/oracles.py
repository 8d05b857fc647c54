"""Slow and obvious reference implementations of the metrics, and random data to test them on."""

import functools
import itertools
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util

THRESHOLDS = [0.5 + 0.05 * step for step in range(10)]
SIZES = {
    "AP": (0, 1e10),
    "APs": (0, 32**2),
    "APm": (32**2, 96**2),
    "APl": (96**2, 1e10),
}


def eroded(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask whose eight neighbors are in it; outside the image none are."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    shifts = itertools.product(range(3), repeat=2)
    return np.all([padded[y : y + height, x : x + width] for y, x in shifts], axis=0)


def band(mask: np.ndarray, ratio: float = 0.02) -> np.ndarray:
    core = mask
    for _ in range(max(1, round(ratio * float(np.hypot(*mask.shape))))):
        core = eroded(core)
    return mask & ~core


def iou(first: np.ndarray, second: np.ndarray) -> float:
    either = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / either if either else 0.0


def boundary_iou(first: np.ndarray, second: np.ndarray, ratio: float = 0.02) -> float:
    """Return the smaller of mask IoU and Boundary IoU."""
    return min(iou(first, second), iou(band(first, ratio), band(second, ratio)))


def decode(segmentation: Any, image: dict[str, Any]) -> np.ndarray:
    if isinstance(segmentation, list):
        rles = mask_util.frPyObjects(segmentation, image["height"], image["width"])
        segmentation = mask_util.merge(rles)
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, image["height"], image["width"])
    return mask_util.decode(segmentation).astype(bool)


class SlowAP:
    """AP of masks computed literally from the definition, one result at a time.

    Args:
        content: Annotations.
        results: Records in COCO's result format.
        boundaries: Whether the matching looks at boundaries, too.
        federated: Whether the annotations are LVIS's, which say where classes are absent or not
            marked exhaustively.
    """

    def __init__(
        self,
        content: dict[str, Any],
        results: list[dict[str, Any]],
        *,
        boundaries: bool,
        federated: bool = False,
    ) -> None:
        self.images = {image["id"]: image for image in content["images"]}
        self.overlap = functools.cache(self._boundary_iou if boundaries else self._iou)
        self.federated = federated
        self.gt = self.with_masks(content["annotations"])
        self.results = self.with_masks(results)
        self.names = {category["id"]: category["name"] for category in content["categories"]}

    def with_masks(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        masks = [decode(x["segmentation"], self.images[x["image_id"]]) for x in records]
        return [
            x | {"number": k, "mask": mask}
            for k, (x, mask) in enumerate(zip(records, masks, strict=True))
        ]

    def _iou(self, result: int, annotation: int) -> float:
        return iou(self.results[result]["mask"], self.gt[annotation]["mask"])

    def _boundary_iou(self, result: int, annotation: int) -> float:
        return boundary_iou(self.results[result]["mask"], self.gt[annotation]["mask"])

    def metrics(self) -> dict[str, float]:
        found = {
            (category, size, threshold): self.class_ap(category, SIZES[size], threshold)
            for category in self.names
            for size in SIZES
            for threshold in THRESHOLDS
        }

        def mean(**wanted: Any) -> float:
            aps = [
                ap
                for (category, size, threshold), ap in found.items()
                if wanted["size"] == size
                and wanted.get("category", category) == category
                and wanted.get("threshold", threshold) == threshold
            ]
            return 100 * float(np.mean([ap for ap in aps if ap is not None] or [np.nan]))

        metrics = {size: mean(size=size) for size in SIZES}
        metrics["AP50"] = mean(size="AP", threshold=THRESHOLDS[0])
        metrics["AP75"] = mean(size="AP", threshold=THRESHOLDS[5])
        return metrics | {
            f"AP-{name}": mean(size="AP", category=category)
            for category, name in self.names.items()
        }

    def class_ap(self, category: int, area: tuple[float, float], threshold: float) -> float | None:
        right: list[tuple[float, bool]] = []  # score, whether it is a true positive
        objects = 0
        for image in self.images.values():
            gt = self.of(self.gt, image["id"], category)
            found = sorted(self.of(self.results, image["id"], category), key=lambda x: -x["score"])
            if self.federated and not gt and category not in image["neg_category_ids"]:
                continue
            ignored = [bool(x.get("iscrowd", 0)) or not area[0] <= x["area"] <= area[1] for x in gt]
            objects += ignored.count(False)
            free = set(range(len(gt)))
            for result in found[: 300 if self.federated else 100]:
                match = self.match(result, gt, ignored, free, threshold)
                if match is None:
                    unknown = self.federated and category in image["not_exhaustive_category_ids"]
                    if area[0] <= result["mask"].sum() <= area[1] and not unknown:
                        right.append((result["score"], False))
                    continue
                if not gt[match].get("iscrowd", 0):
                    free.remove(match)
                if not ignored[match]:
                    right.append((result["score"], True))
        return interpolated_ap(right, objects) if objects else None

    @staticmethod
    def of(records: list[dict[str, Any]], image_id: int, category: int) -> list[dict[str, Any]]:
        return [x for x in records if (x["image_id"], x["category_id"]) == (image_id, category)]

    def match(self, result, gt, ignored, free, threshold) -> int | None:
        """Return the best object that counts or, if there is none, the best of the others."""
        for wanted in (False, True):
            best, best_overlap = None, threshold - 1e-12
            for k in sorted(free):
                crowd = gt[k].get("iscrowd", 0)
                if ignored[k] is not wanted:
                    continue
                if crowd:
                    common = np.count_nonzero(result["mask"] & gt[k]["mask"])
                    overlap = common / max(1, np.count_nonzero(result["mask"]))
                else:
                    overlap = self.overlap(result["number"], gt[k]["number"])
                if overlap >= best_overlap:
                    best, best_overlap = k, overlap
            if best is not None:
                return best
        return None


def interpolated_ap(right: list[tuple[float, bool]], objects: int) -> float:
    """Average, over 101 recalls, the best precision at each recall or beyond."""
    right = sorted(right, key=lambda x: -x[0])
    curve = []
    true = 0
    for number, (_, is_right) in enumerate(right, start=1):
        true += is_right
        curve.append((true / objects, true / number))
    beyond = [[p for r, p in curve if r >= recall] for recall in np.linspace(0, 1, 101)]
    return float(np.mean([max(precisions, default=0.0) for precisions in beyond]))


# Data


def blob(rng: np.random.Generator, height: int, width: int, radius: float) -> np.ndarray:
    """Draw a wavy disc (height, width), often cut by the image border."""
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    angle = np.arctan2(y - cy, x - cx)
    waves = 1 + 0.25 * np.sin(int(rng.integers(2, 7)) * angle + rng.uniform(0, 6))
    return np.hypot(y - cy, x - cx) <= radius * waves


def encoded(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return rle | {"counts": rle["counts"].decode()}


def worse(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Return a mask shifted, dilated or eroded by a few pixels."""
    kernel = np.ones((int(rng.integers(1, 6)),) * 2, np.uint8)
    change = cv2.dilate if rng.random() < 0.5 else cv2.erode
    moved = np.roll(mask, rng.integers(-3, 4, 2), axis=(0, 1))
    return change(moved.astype(np.uint8), kernel).astype(bool)


def random_set(
    seed: int, *, images: int = 4, classes: int = 3, size: tuple[int, int] = (90, 120)
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw annotations of all sizes, also crowds, and correct, duplicate and wrong results."""
    rng = np.random.default_rng(seed)
    height, width = size
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def result(mask: np.ndarray, image_id: int, category: int) -> dict[str, Any]:
        return {
            "image_id": image_id,
            "category_id": category,
            "score": round(float(rng.random()), 1),
            "segmentation": encoded(mask),
            "bbox": mask_util.toBbox(encoded(mask)).tolist(),
        }

    for image_id in range(10, 10 + images):
        for _ in range(9):
            mask = blob(rng, height, width, float(rng.choice([6, 14, 22, 60])))
            category = int(rng.integers(1, classes + 1)) * 7
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "iscrowd": int(rng.random() < 0.15),
                    "area": float(mask.sum()),
                    "bbox": mask_util.toBbox(encoded(mask)).tolist(),
                    "segmentation": encoded(mask),
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                results.append(result(worse(rng, mask), image_id, category))
        for _ in range(3):
            category = int(rng.integers(1, classes + 1)) * 7
            results.append(result(blob(rng, height, width, 20), image_id, category))
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": height, "width": width}
            for i in range(10, 10 + images)
        ],
        "categories": [{"id": 7 * k, "name": f"class {k}"} for k in range(1, classes + 2)],
        "annotations": annotations,
    }
    return content, [x for x in results if mask_util.area(x["segmentation"])]
