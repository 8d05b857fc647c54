"""Scores of semantic label maps: the mean IoU over classes, and the same of their boundaries.

**IoU** of a class: the pixels that prediction and truth both give to it over those that at least
one of them does, each summed over all images first.

**Boundary IoU** of a class: the same of inner bands instead of masks (see `boundaries.py`), whose
width is 2 % of the image's diagonal.

Conventions:
    * Ignored pixels of the truth leave prediction and truth before anything is counted. Like all
      beyond the image they are outside every mask, so both bands follow them: a prediction is
      neither rewarded nor punished for what it says there.
    * Means are over the classes that occur in the truth or in a prediction, as the scripts of
      Cityscapes take them; a class that is predicted without being there counts as 0.

Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation",
equation 3, whose code pads images likewise; it is theirs per object, here per class and data set,
as mean IoU is.

Shape letters: K classes, H and W the image sides in pixels.
"""

import math

import numpy as np

from point_rend.evaluation.boundary_iou import band_width, inner_band


class SemanticScores:
    """IoU and boundary IoU of every class, over images that are added one by one.

    Args:
        num_classes: K; the labels are 0 to K - 1.
        ignore_value: label of the pixels that do not count.
    """

    def __init__(self, num_classes: int, *, ignore_value: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        # Common pixels and pixels of either, of whole masks and of their bands.
        self._counts = np.zeros((2, 2, num_classes), dtype=np.int64)

    def add(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Count one image.

        Args:
            prediction: (H, W) integers, 0 to K - 1 wherever the truth counts.
            label: (H, W) integers, 0 to K - 1 or `ignore_value`.

        Raises:
            ValueError: the sizes differ, or a value is no class.
        """
        if prediction.shape != label.shape or label.ndim != 2:
            raise ValueError(
                f"expected a prediction and a label map of one size (H, W), got "
                f"{prediction.shape} and {label.shape}"
            )
        counted = label != self.ignore_value
        present: set[int] = set()
        for name, values in (("prediction", prediction), ("label map", label)):
            found = {int(value) for value in np.unique(values[counted])}
            wrong = sorted(value for value in found if not 0 <= value < self.num_classes)
            if wrong:
                raise ValueError(
                    f"the {name} has the values {wrong[:5]}, expected 0 to {self.num_classes - 1}"
                )
            present |= found
        width = band_width((label.shape[0], label.shape[1]))
        for k in present:
            masks = [(values == k) & counted for values in (prediction, label)]
            bands = [inner_band(mask, width) for mask in masks]
            for kind, (ours, theirs) in enumerate((masks, bands)):
                self._counts[kind, 0, k] += np.count_nonzero(ours & theirs)
                self._counts[kind, 1, k] += np.count_nonzero(ours | theirs)

    def update(self, other: "SemanticScores") -> None:
        """Count the images that another one has counted."""
        self._counts += other._counts

    @property
    def iou(self) -> np.ndarray:
        """(K,) float in 0..1; NaN for a class that occurs nowhere."""
        return self._ratio(0)

    @property
    def boundary_iou(self) -> np.ndarray:
        """(K,) float in 0..1; NaN for a class that occurs nowhere."""
        return self._ratio(1)

    def _ratio(self, kind: int) -> np.ndarray:
        common, either = self._counts[kind]
        return np.where(either > 0, common / np.maximum(either, 1), np.nan)

    def means(self) -> dict[str, float]:
        """Return "mIoU" and "boundary mIoU" in percent; NaN if no pixel has been counted."""
        scores = {"mIoU": self.iou, "boundary mIoU": self.boundary_iou}
        return {
            name: 100 * float(np.nanmean(ious)) if np.any(~np.isnan(ious)) else math.nan
            for name, ious in scores.items()
        }
