"""AP and boundary AP of instances as Cityscapes' own scripts define them.

The matching differs from COCO's. A prediction matches every object whose IoU with it exceeds the
threshold. A prediction does not count if a larger share of it lies in ignored regions (void labels,
groups, objects of less than 100 pixels). The precision-recall curve is integrated without
interpolation.

**Boundary AP** uses the smaller of mask IoU and Boundary IoU (see `boundary_iou.py`). Its bands are
0.5 % of the image diagonal wide, as in the authors' code for Cityscapes, whose images are large.

Sources: cityscapesscripts, evalInstanceLevelSemanticLabeling; Cheng et al., "Boundary IoU:
Improving Object-Centric Image Segmentation Evaluation".

Shape letters: H and W image height and width in pixels; P predictions and G ground-truth objects,
both of one class in one image.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from point_rend.evaluation.boundary_iou import band_width, inner_band
from point_rend.rendering.box_masks import Crop

BAND_RATIO = 0.005
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
MIN_PIXELS = 100
FIRST_OBJECT = 1000  # an object has the id 1000 · label + number, a group or a region its label


class Prediction(NamedTuple):
    """One predicted instance.

    Attributes:
        label: Label id of its class.
        score: Confidence.
        mask: (H, W) bool, or a crop of it.
    """

    label: int
    score: float
    mask: np.ndarray | Crop


class Overlaps(NamedTuple):
    """Overlaps of the predictions of one class in one image with the ground truth.

    Attributes:
        scores: (P,) confidences.
        ious: (P, G).
        counted: (G,) bool; false for objects that need not be found.
        ignored: (P,) share of each prediction in ignored regions.
    """

    scores: np.ndarray
    ious: np.ndarray
    counted: np.ndarray
    ignored: np.ndarray


class CityscapesAP:
    """AP of instances over images that are added one by one.

    Args:
        names: Class names by label id.
        void: Ids of ignored labels.
        boundaries: Whether the matching also compares boundaries.
    """

    def __init__(self, names: Mapping[int, str], void: Iterable[int], *, boundaries: bool) -> None:
        self.names = names
        self.void = np.array(sorted(void))
        self.boundaries = boundaries
        self._overlaps: dict[int, list[Overlaps]] = {label: [] for label in names}

    def add(self, predictions: Sequence[Prediction], instance_ids: np.ndarray) -> None:
        """Add one image.

        Args:
            predictions: Predictions of any class; empty ones are skipped.
            instance_ids: (H, W) integers, as in the files `…_instanceIds.png`.

        Raises:
            ValueError: If the size of a mask differs from that of the ground truth.
        """
        crops = [_crop(prediction.mask, instance_ids.shape) for prediction in predictions]
        ids, pixels = np.unique(instance_ids, return_counts=True)
        labels = np.where(ids >= FIRST_OBJECT, ids // FIRST_OBJECT, ids)
        width = band_width((instance_ids.shape[0], instance_ids.shape[1]), BAND_RATIO)
        band_ids = np.full(instance_ids.shape, -1, dtype=np.int64)
        if self.boundaries:
            for identity in ids[np.isin(labels, list(self.names))]:
                band_ids[inner_band(instance_ids == identity, width)] = identity
        void = np.isin(ids, self.void)

        for label, overlaps in self._overlaps.items():
            found = [
                (prediction.score, crop)
                for prediction, crop in zip(predictions, crops, strict=True)
                if prediction.label == label and crop.mask.any()
            ]
            own = labels == label
            # Intersections with all regions of the image: (P, regions).
            common = _counts([instance_ids[crop.window][crop.mask] for _, crop in found], ids)
            areas = np.array([np.count_nonzero(crop.mask) for _, crop in found])[:, None]
            ious = common[:, own] / (areas + pixels[own] - common[:, own])
            touched = common[:, own]
            if self.boundaries:
                bands = [(crop.window, inner_band(crop.mask, width)) for _, crop in found]
                common_band = _counts([band_ids[window][band] for window, band in bands], ids[own])
                band_pixels = _counts([band_ids[band_ids >= 0]], ids[own])
                band_areas = np.array([np.count_nonzero(band) for _, band in bands])[:, None]
                ious = np.minimum(ious, common_band / (band_areas + band_pixels - common_band))
                touched = np.where(common_band > 0, touched, 0)  # as in the authors' code
            group, small = ids[own] < FIRST_OBJECT, pixels[own] < MIN_PIXELS
            ignored = common[:, void].sum(1) + touched[:, group].sum(1) + touched[:, small].sum(1)
            overlaps.append(
                Overlaps(
                    scores=np.array([score for score, _ in found]),
                    ious=ious,
                    counted=~(group | small),
                    ignored=ignored / areas[:, 0],
                )
            )

    def update(self, other: "CityscapesAP") -> None:
        """Add the images of another object."""
        for label, overlaps in self._overlaps.items():
            overlaps += other._overlaps[label]

    def metrics(self) -> dict[str, float]:
        """Return AP, AP50 and "AP-<class>" in percent; NaN if there is no object to find."""
        by_class = np.array(
            [
                [_class_ap(overlaps, threshold) for threshold in THRESHOLDS]
                for overlaps in self._overlaps.values()
            ]
        )
        defined = by_class[~np.isnan(by_class[:, 0])]
        metrics = {"AP": defined, "AP50": defined[:, :1]} | {
            f"AP-{name}": aps for name, aps in zip(self.names.values(), by_class, strict=True)
        }
        return {
            name: 100 * float(aps.mean()) if aps.size else math.nan for name, aps in metrics.items()
        }


def _crop(mask: np.ndarray | Crop, size: tuple[int, ...]) -> Crop:
    """Cut a mask out, unless it is a crop already."""
    if isinstance(mask, Crop):
        return mask
    if mask.shape != size:
        raise ValueError(
            f"expected masks of the size of the ground truth, {size}, got {mask.shape}"
        )
    return Crop.of(mask)


def _counts(regions: Sequence[np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Count how often each id occurs in each of N regions, given as ids of pixels: (N, ids)."""
    counts = np.zeros((len(regions), len(ids)), dtype=np.int64)
    for row, region in zip(counts, regions, strict=True):
        present, number = np.unique(region, return_counts=True)
        known = np.isin(present, ids)
        row[np.searchsorted(ids, present[known])] = number[known]
    return counts


def _class_ap(images: Sequence[Overlaps], threshold: float) -> float:
    """Compute the AP of a class at a threshold; NaN if the class has no object."""
    true_positives: list[float] = []
    false_positives: list[float] = []
    missed = 0
    for scores, ious, counted, ignored in images:
        matches = ious > threshold
        for column in matches[:, counted].T:
            matching = np.sort(scores[column])
            true_positives += [*matching[-1:]]
            false_positives += [*matching[:-1]]
            missed += not matching.size
        false_positives += [*scores[~matches.any(axis=1) & (ignored <= threshold)]]
    if not true_positives and not missed:
        return math.nan
    return _area_under_curve(np.array(true_positives), np.array(false_positives), missed)


def _area_under_curve(
    true_positives: np.ndarray, false_positives: np.ndarray, missed: int
) -> float:
    """Integrate precision over recall as the scripts do.

    Args:
        true_positives: Scores of matched predictions.
        false_positives: Scores of the other predictions.
        missed: Number of objects that were not found.
    """
    if not true_positives.size:
        return 0.0
    thresholds = np.unique(np.concatenate([true_positives, false_positives]))
    num_true = (true_positives >= thresholds[:, None]).sum(1)
    num_false = (false_positives >= thresholds[:, None]).sum(1)
    precision = np.append(num_true / (num_true + num_false), 1.0)
    recall = np.append(num_true / (true_positives.size + missed), 0.0)
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ (around[:-2] - around[2:])) / 2
