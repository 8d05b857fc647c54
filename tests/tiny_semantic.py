"""Semantic data sets of a few small images: label maps of the shapes of tests.tiny_datasets."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from tests.tiny_datasets import KINDS, scene

CLASSES = ("ground", *KINDS)
IGNORED = 255


class SemSegSet(NamedTuple):
    """The last three words of --register-sem-seg."""

    image_root: str
    label_root: str
    classes: str

    def label(self, number: int) -> Path:
        return Path(self.label_root) / f"{number:03d}.png"

    def image(self, number: int) -> Path:
        return Path(self.image_root) / f"{number:03d}.jpg"


def label_map(number: int) -> np.ndarray:
    """The labels (HEIGHT, WIDTH) of a scene: 0 ground, then the kinds; outlines are ignored."""
    image, shapes = scene(number)
    labels = np.zeros(image.shape[:2], dtype=np.uint8)
    for kind, corners in shapes:
        outline = np.round(corners).astype(np.int32)
        cv2.fillPoly(labels, [outline], kind + 1)
        cv2.polylines(labels, [outline], True, IGNORED)
    return labels


def write_sem_seg(folder: Path, *, scales: Sequence[float] = (1, 1)) -> SemSegSet:
    """Write one image and one label map per scale, and a file with the class names."""
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    names = folder / "classes.txt"
    names.write_text("\n".join(CLASSES) + "\n")
    written = SemSegSet(str(images), str(labels), str(names))
    for number, scale in enumerate(scales):
        image = cv2.resize(scene(number)[0], None, fx=scale, fy=scale)
        size = image.shape[1::-1]
        cv2.imwrite(str(written.image(number)), image)
        resized = cv2.resize(label_map(number), size, interpolation=cv2.INTER_NEAREST)
        write_label(written.label(number), resized)
    return written


def write_label(path: Path, labels: np.ndarray) -> None:
    Image.fromarray(labels.astype(np.uint8)).save(path)


def write_train_ids(gt_dir: Path) -> None:
    """Add the label maps for training to a split, with the table of cityscapesscripts."""
    from cityscapesscripts.helpers.labels import id2label

    table = np.array([id2label[i].trainId % 256 if i in id2label else IGNORED for i in range(256)])
    for file in gt_dir.rglob("*_labelIds.png"):
        target = file.with_name(file.name.replace("labelIds", "labelTrainIds"))
        write_label(target, table[np.array(Image.open(file))])
