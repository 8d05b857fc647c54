"""Comparison of the semantic results of several models: metrics, and pictures side by side."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from point_rend.data.checks.rle import check_rles
from point_rend.data.datasets.label_maps import IGNORE_LABEL
from point_rend.evaluation.semantic_iou import SemanticIoU
from point_rend.utils.bands import read_view
from point_rend.utils.files import check_that_inputs_stay
from point_rend.utils.json_files import MAX_DATA_SET_BYTES, read_json, shown
from point_rend.utils.pictures import read_label_map
from point_rend.visualization.drawing import color_of, paint_labels
from point_rend.visualization.layout import save_picture, side_by_side

Predictions = Mapping[Path, Sequence[dict[str, Any]]]  # by image, relative to the image root


class Comparison:
    """The results of several models, checked against the label maps of a data set.

    Args:
        results: A `sem_seg_predictions.json` by model.
        image_root: Folder of the images.
        label_root: Folder of the label maps.
        num_classes: Number of classes.

    Raises:
        OSError: If a file or folder is missing or cannot be read.
        ValueError: If the files do not fit together.
    """

    def __init__(
        self, results: Mapping[str, Path], image_root: Path, label_root: Path, num_classes: int
    ) -> None:
        self._predictions = {
            name: read_predictions(file, image_root, num_classes) for name, file in results.items()
        }
        check_images(self._predictions, label_root)
        self._files = sorted(next(iter(self._predictions.values())))
        self._image_root, self._label_root = image_root, label_root
        self._num_classes = num_classes

    def metrics(self) -> dict[str, dict[str, float]]:
        """Compute mIoU and boundary mIoU in percent, by model.

        Raises:
            OSError: If a label map cannot be read.
            ValueError: If a label map does not fit the predictions or the classes.
        """
        ious = {name: SemanticIoU(self._num_classes) for name in self._predictions}
        for file in self._files:
            label_maps, ground_truth = self._labels(file)
            for name, labels in label_maps.items():
                try:
                    ious[name].add(labels, ground_truth)
                except ValueError as error:
                    raise ValueError(
                        f"{label_file_of(file, self._label_root)} and {name!r}, with "
                        f"{self._num_classes} --classes: {error}"
                    ) from error
        return {name: iou.means() for name, iou in ious.items()}

    def choose_pictures(self, output: Path, num_images: int) -> dict[Path, Path]:
        """Choose the images to draw, spread evenly, and a file for each.

        Raises:
            ValueError: If an image or a label map would be overwritten.
        """
        step = max(1, len(self._files) // max(1, num_images))
        pictures = picture_files(self._files[::step][:num_images], output)
        inputs = [self._image_root / file for file in pictures]
        inputs += [label_file_of(file, self._label_root) for file in pictures]
        check_that_inputs_stay(inputs, pictures.values())
        return pictures

    def check_photographs(self, images: Iterable[Path]) -> None:
        """Make sure that images can be read.

        Raises:
            OSError: If one cannot.
        """
        for image in images:
            read_view(self._image_root / image)

    def draw(self, pictures: Mapping[Path, Path], *, without_photographs: bool = False) -> None:
        """Write pictures of images: the photograph, each model's labels and the ground truth.

        Args:
            pictures: The files, as of :meth:`choose_pictures`.
            without_photographs: Leave the images out of the pictures.

        Raises:
            OSError: If an image cannot be read, or a picture cannot be written.
        """
        colors = [color_of(k) for k in range(self._num_classes)]
        for file, picture in pictures.items():
            label_maps, ground_truth = self._labels(file)
            panels = [paint_labels(x, colors) for x in (*label_maps.values(), ground_truth)]
            titles = [*label_maps, "ground truth"]
            if not without_photographs:
                panels.insert(0, read_view(self._image_root / file))
                titles.insert(0, "input")
            save_picture(picture, side_by_side(panels, titles))

    def _labels(self, file: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the label maps (H, W) of the models and of the ground truth of an image."""
        of_models = {name: to_label_map(own[file]) for name, own in self._predictions.items()}
        return of_models, read_label_map(label_file_of(file, self._label_root))


def label_file_of(image: Path, label_root: Path) -> Path:
    """Return the label map of an image, which is given relative to the image root."""
    return label_root / image.with_suffix(".png")


def picture_files(images: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Choose a file of its own for the picture of each image."""
    files: dict[Path, Path] = {}
    for image in images:
        file = output / "_".join(image.with_suffix(".png").parts)
        while file in files.values():
            file = file.with_stem(f"{file.stem}_")
        files[image] = file
    return files


def read_predictions(file: Path, image_root: Path, num_classes: int) -> Predictions:
    """Read a `sem_seg_predictions.json`, which has one RLE per image and class.

    Raises:
        ValueError: If the file is not of this format or has no predictions, or if a prediction
            refers to an image elsewhere or an unknown class, or is not a mask of its image.
    """
    content = read_json(file, what="result file", max_bytes=MAX_DATA_SET_BYTES)
    if not isinstance(content, list) or not all(map(_is_prediction, content)):
        raise ValueError(
            f"{file} is not a sem_seg_predictions.json as `pointrend evaluate` writes it"
        )
    if not content:
        raise ValueError(f"{file} has no predictions: expected some for every image")
    root = image_root.resolve()
    predictions: dict[Path, list[dict[str, Any]]] = defaultdict(list)
    sizes: list[tuple[int, int]] = []
    for number, record in enumerate(content):
        image = Path(record["file_name"]).resolve()
        if not image.is_relative_to(root):
            raise ValueError(
                f"{file}: prediction {number} refers to {image}, which is not in --images "
                f"{image_root}"
            )
        of_image = predictions[image.relative_to(root)]
        of_image.append(record)
        height, width = of_image[0]["segmentation"]["size"]
        sizes.append((height, width))
        if not 0 <= record["category_id"] < num_classes:
            raise ValueError(
                f"{file}: prediction {number} is of class {shown(record['category_id'])}, expected "
                f"0 to {num_classes - 1}, since --classes has {num_classes}"
            )
    for number, mask in enumerate(check_rles([x["segmentation"] for x in content], sizes)):
        if mask.fault and mask.fault.fatal:
            raise ValueError(f"{file}: prediction {number} has an {mask.fault.text}")
    return predictions


def _is_prediction(record: Any) -> bool:
    """Return whether a record has the fields of a prediction."""
    if not isinstance(record, dict) or not isinstance(record.get("segmentation"), dict):
        return False
    size, counts = (record["segmentation"].get(key) for key in ("size", "counts"))
    return (
        isinstance(record.get("file_name"), str)
        and isinstance(record.get("category_id"), int)
        and isinstance(counts, str)
        and isinstance(size, list)
        and len(size) == 2
        and all(isinstance(side, int) for side in size)
    )


def check_images(predictions: Mapping[str, Predictions], label_root: Path) -> None:
    """Refuse predictions for different images, and for images without a label map.

    Args:
        predictions: Predictions by model.
        label_root: Folder of the label maps.

    Raises:
        FileNotFoundError: If a label map is missing.
        ValueError: If the images differ.
    """
    first, *others = predictions
    for name in others:
        for file in sorted(predictions[first].keys() ^ predictions[name].keys()):
            has, lacks = (first, name) if file in predictions[first] else (name, first)
            raise ValueError(
                f"--results: expected the same images in all, but {file} is in {has!r} and not in "
                f"{lacks!r}"
            )
    for file in sorted(predictions[first]):
        label_file = label_file_of(file, label_root)
        if not label_file.exists():
            raise FileNotFoundError(f"there is no label map {label_file}")


def to_label_map(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Combine the classes' RLEs of an image to (H, W) uint8; 255 where no class is predicted."""
    labels = np.full(records[0]["segmentation"]["size"], IGNORE_LABEL, dtype=np.uint8)
    for record in records:
        labels[mask_util.decode(record["segmentation"]).astype(bool)] = record["category_id"]
    return labels
