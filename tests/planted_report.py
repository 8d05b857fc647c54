"""An evaluation with planted masks, for the tests of the report page.

Each object is a square of 40 pixels; a result is the same square reduced by some pixels on all
sides, so all IoUs are known.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from point_rend.cli import report
from tests.evaluation.oracles import encoded

SIDE = 100
EVIL = "</script><img src=x onerror=hacked=1>"
CLASSES = {1: "star", 2: "key", 3: EVIL}
FILES = {1: "a.png", 2: 'b "<i>&.png', 3: "c.png"}
# Image, class, and by how much the baseline's and PointRend's squares are smaller; None: not found.
OBJECTS: list[tuple[int, int, int | None, int | None]] = [
    (1, 1, 4, 1),
    (1, 2, 1, 5),
    (2, 1, 6, 0),
    (2, 3, 4, 3),
    (3, 2, None, 2),
    (3, 1, None, None),
]
# Numbers of the objects in the order of the gallery; those without a gain come last.
BY_GAIN_IN_MASK_IOU = [3, 1, 4, 2, 5, 6]
BY_FAILURE_IN_MASK_IOU = [6, 2, 4, 5, 1, 3]
NAMES = ("4×conv", "PointRend")


def square(number: int, smaller: int = 0) -> np.ndarray:
    """Return the mask (SIDE, SIDE) of an object, or of a result that is smaller on all sides."""
    x, y = (5, 5) if number % 2 else (52, 50)
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[y + smaller : y + 40 - smaller, x + smaller : x + 40 - smaller] = True
    return mask


def planted_iou(smaller: int | None) -> float:
    return 0.0 if smaller is None else (40 - 2 * smaller) ** 2 / 40**2


class Planted:
    """The files of the evaluation, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir()
        rng = np.random.default_rng(1)
        for name in FILES.values():
            noise = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            cv2.imwrite(str(self.images / name), cv2.GaussianBlur(noise, (0, 0), 5))
        annotations = [
            self.annotation(number, image, category, square(number))
            for number, (image, category, _, _) in enumerate(OBJECTS, start=1)
        ]
        crowd = np.zeros((SIDE, SIDE), dtype=bool)
        crowd[90:, 60:] = True
        annotations.append(self.annotation(7, 3, 1, crowd) | {"iscrowd": 1})
        self.content = {
            "images": [
                {"id": k, "file_name": name, "height": SIDE, "width": SIDE}
                for k, name in FILES.items()
            ],
            "categories": [{"id": k, "name": name} for k, name in CLASSES.items()],
            "annotations": annotations,
        }
        self.annotations = self.write("truth.json", self.content)
        self.results = [self.results_of(which) for which in (2, 3)]
        # Correct, but with a low score: it counts for AP and is not shown.
        self.results[1].append(self.result(6, 3, 1, square(6), 0.3))
        for name, results in zip(NAMES, self.results, strict=True):
            self.write(f"{name}.json", results)
        self.run = folder / "run"
        self.run.mkdir()
        lines = [
            {"iteration": k, "total_loss": 4 / (k + 1), "loss_mask": 1 / (k + 1), "time": 1.0}
            for k in range(20)
        ]
        (self.run / "metrics.json").write_text("\n".join(map(json.dumps, lines)))

    @staticmethod
    def annotation(number: int, image: int, category: int, mask: np.ndarray) -> dict[str, Any]:
        y, x = np.nonzero(mask)
        return {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": [int(v) for v in (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)],
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": encoded(mask),
        }

    def result(
        self, number: int, image: int, category: int, mask: np.ndarray, score: float
    ) -> dict[str, Any]:
        record = self.annotation(number, image, category, mask)
        keys = ("image_id", "category_id", "bbox", "segmentation")
        return {key: record[key] for key in keys} | {"score": score}

    def results_of(self, which: int) -> list[dict[str, Any]]:
        return [
            self.result(number, planted[0], planted[1], square(number, planted[which]), 0.9)
            for number, planted in enumerate(OBJECTS, start=1)
            if planted[which] is not None
        ]

    def write(self, name: str, content: Any) -> Path:
        path = self.folder / name
        path.write_text(json.dumps(content))
        return path

    def command(self, *options: str, results: tuple[str, ...] = NAMES) -> list[str]:
        words = ["--annotations", self.annotations, "--image-root", self.images]
        for name in results:
            words += ["--results", f"{name}={self.folder / name}.json"]
        return [*map(str, words), "--output", str(self.folder / "report.html"), *options]

    def page(self, *options: str, results: tuple[str, ...] = NAMES) -> Path:
        """Write the page and return it."""
        report.main(self.command(*options, results=results))
        return self.folder / "report.html"
