"""Semantic IoU: mean IoU over classes, and mean Boundary IoU.

**IoU** of a class: intersection over union of its predicted and its true pixels, each summed over
all images first.

**Boundary IoU** of a class: the same for inner bands instead of masks (see `boundary_iou.py`), with
bands of 2 % of the image diagonal.

Conventions:
    * Pixels that the ground truth ignores are removed from prediction and ground truth before
      anything is counted. Like everything beyond the image they are outside every mask, so both
      bands run along them, and predictions there are neither rewarded nor punished.
    * Means are over the classes that occur in the ground truth or in a prediction, as in the
      scripts of Cityscapes; a class that is predicted but absent counts as 0.

Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation",
equation 3, whose code pads images in the same way. They define it per object; here it is per class
and data set, like mean IoU.

Shape letters: K classes, H and W image height and width in pixels.
"""

import math

import numpy as np

from point_rend.evaluation.boundary_iou import band_width, inner_band


class SemanticIoU:
    """IoU and Boundary IoU of each class, over images that are added one by one.

    Args:
        num_classes: K; the labels are 0 to K - 1.
        ignore_value: Label of ignored pixels.
    """

    def __init__(self, num_classes: int, *, ignore_value: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        # Intersection and union in pixels, of masks and of bands: (masks or bands, 2, K).
        self._counts = np.zeros((2, 2, num_classes), dtype=np.int64)

    def add(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Add one image.

        Args:
            prediction: (H, W) integers, 0 to K - 1 except at ignored pixels.
            label: (H, W) integers, 0 to K - 1 or `ignore_value`.

        Raises:
            ValueError: If the sizes differ, or a value is not a class.
        """
        if prediction.shape != label.shape or label.ndim != 2:
            raise ValueError(
                f"expected a prediction and a label map of one size (H, W), got "
                f"{prediction.shape} and {label.shape}"
            )
        counted = label != self.ignore_value
        present: set[int] = set()
        for name, values in (("prediction", prediction), ("label map", label)):
            classes = {int(value) for value in np.unique(values[counted])}
            invalid = sorted(value for value in classes if not 0 <= value < self.num_classes)
            if invalid:
                raise ValueError(
                    f"the {name} has the values {invalid[:5]}, expected 0 to {self.num_classes - 1}"
                )
            present |= classes
        width = band_width((label.shape[0], label.shape[1]))
        for k in present:
            masks = [(values == k) & counted for values in (prediction, label)]
            bands = [inner_band(mask, width) for mask in masks]
            for row, (predicted, true) in enumerate((masks, bands)):
                self._counts[row, 0, k] += np.count_nonzero(predicted & true)
                self._counts[row, 1, k] += np.count_nonzero(predicted | true)

    def update(self, other: "SemanticIoU") -> None:
        """Add the images of another object."""
        self._counts += other._counts

    @property
    def iou(self) -> np.ndarray:
        """(K,) float in 0..1; NaN for a class that does not occur."""
        return self._ratio(0)

    @property
    def boundary_iou(self) -> np.ndarray:
        """(K,) float in 0..1; NaN for a class that does not occur."""
        return self._ratio(1)

    def _ratio(self, row: int) -> np.ndarray:
        intersection, union = self._counts[row]
        return np.where(union > 0, intersection / np.maximum(union, 1), np.nan)

    def means(self) -> dict[str, float]:
        """Return "mIoU" and "boundary mIoU" in percent; NaN if no pixel was counted."""
        by_class = {"mIoU": self.iou, "boundary mIoU": self.boundary_iou}
        return {
            name: 100 * float(np.nanmean(ious)) if np.any(~np.isnan(ious)) else math.nan
            for name, ious in by_class.items()
        }
