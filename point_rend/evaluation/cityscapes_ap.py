"""AP and boundary AP of Cityscapes instances, by the rule of Cityscapes' own scripts.

The matching differs from COCO's: a prediction matches what it overlaps by more than a threshold; a
prediction of which more than this lies in ignored regions (void labels, groups, objects of less
than 100 pixels) does not count; the precision-recall curve is integrated without interpolation.

**Boundary AP** takes the lesser of mask IoU and Boundary IoU (see `boundaries.py`). Its bands are
0.5 % of the image's diagonal wide, as in its authors' code for Cityscapes, whose images are large.

Sources: cityscapesscripts, evalInstanceLevelSemanticLabeling; Cheng et al., "Boundary IoU:
Improving Object-Centric Image Segmentation Evaluation".

Shape letters: H and W the image sides in pixels; P predictions and G objects of the truth, both of
one class in one image.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from point_rend.evaluation.boundary_iou import band_width, inner_band

BAND_RATIO = 0.005
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
MIN_PIXELS = 100
FIRST_OBJECT = 1000  # an object has the id 1000 · label + number, a group or a region its label


class Prediction(NamedTuple):
    """One predicted instance.

    Attributes:
        label: Id of its class, as in the label maps.
        score: The higher the surer.
        mask: (H, W) bool.
    """

    label: int
    score: float
    mask: np.ndarray


class Overlaps(NamedTuple):
    """What the predictions of a class in an image have in common with the truth.

    Attributes:
        scores: (P,).
        ious: (P, G).
        counted: (G,) bool, whether an object has to be found.
        ignored: (P,) shares of the predictions in ignored regions.
    """

    scores: np.ndarray
    ious: np.ndarray
    counted: np.ndarray
    ignored: np.ndarray


class CityscapesScores:
    """AP of instances over images that are added one by one.

    Args:
        names: Classes by the ids of their labels.
        void: Ids of the labels that do not count.
        boundaries: Whether the matching looks at boundaries, too.
    """

    def __init__(self, names: Mapping[int, str], void: Iterable[int], *, boundaries: bool) -> None:
        self.names = names
        self.void = np.array(sorted(void))
        self.boundaries = boundaries
        self._overlaps: dict[int, list[Overlaps]] = {label: [] for label in names}

    def add(self, predictions: Sequence[Prediction], instance_ids: np.ndarray) -> None:
        """Count one image.

        Args:
            predictions: Of any class; those without a pixel are left out.
            instance_ids: (H, W) integers, as in the files `…_instanceIds.png`.

        Raises:
            ValueError: If a mask is not of the size of the truth.
        """
        for prediction in predictions:
            if prediction.mask.shape != instance_ids.shape:
                raise ValueError(
                    f"expected masks of the size of the truth, {instance_ids.shape}, got one of "
                    f"{prediction.mask.shape}"
                )
        ids, pixels = np.unique(instance_ids, return_counts=True)
        labels = np.where(ids >= FIRST_OBJECT, ids // FIRST_OBJECT, ids)
        width = band_width((instance_ids.shape[0], instance_ids.shape[1]), BAND_RATIO)
        band_ids = np.full(instance_ids.shape, -1, dtype=np.int64)
        if self.boundaries:
            for identity in ids[np.isin(labels, list(self.names))]:
                band_ids[inner_band(instance_ids == identity, width)] = identity
        void = np.isin(ids, self.void)

        for label, overlaps in self._overlaps.items():
            found = [p for p in predictions if p.label == label and p.mask.any()]
            own = labels == label
            # Pixels in common with every region of the image (P, all regions).
            common = _counts([instance_ids[p.mask] for p in found], ids)
            areas = np.array([np.count_nonzero(p.mask) for p in found])[:, None]
            ious = common[:, own] / (areas + pixels[own] - common[:, own])
            met = common[:, own]
            if self.boundaries:
                bands = [inner_band(p.mask, width) for p in found]
                common_band = _counts([band_ids[band] for band in bands], ids[own])
                band_pixels = _counts([band_ids[band_ids >= 0]], ids[own])
                band_areas = np.array([np.count_nonzero(band) for band in bands])[:, None]
                ious = np.minimum(ious, common_band / (band_areas + band_pixels - common_band))
                met = np.where(common_band > 0, met, 0)  # so the authors' code
            group, small = ids[own] < FIRST_OBJECT, pixels[own] < MIN_PIXELS
            ignored = common[:, void].sum(1) + met[:, group].sum(1) + met[:, small].sum(1)
            overlaps.append(
                Overlaps(
                    scores=np.array([p.score for p in found]),
                    ious=ious,
                    counted=~(group | small),
                    ignored=ignored / areas[:, 0],
                )
            )

    def update(self, other: "CityscapesScores") -> None:
        """Count the images that another one has counted."""
        for label, overlaps in self._overlaps.items():
            overlaps += other._overlaps[label]

    def figures(self) -> dict[str, float]:
        """Return AP, AP50 and "AP-<class>" in percent; NaN where there is no object to find."""
        by_class = np.array(
            [
                [_class_ap(overlaps, threshold) for threshold in THRESHOLDS]
                for overlaps in self._overlaps.values()
            ]
        )
        there = by_class[~np.isnan(by_class[:, 0])]
        figures = {"AP": there, "AP50": there[:, :1]} | {
            f"AP-{name}": aps for name, aps in zip(self.names.values(), by_class, strict=True)
        }
        return {
            name: 100 * float(aps.mean()) if aps.size else math.nan for name, aps in figures.items()
        }


def _counts(regions: Sequence[np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Count in each of N regions, the ids of their pixels, how often each id occurs: (N, ids)."""
    counts = np.zeros((len(regions), len(ids)), dtype=np.int64)
    for row, region in zip(counts, regions, strict=True):
        there, number = np.unique(region, return_counts=True)
        known = np.isin(there, ids)
        row[np.searchsorted(ids, there[known])] = number[known]
    return counts


def _class_ap(images: Sequence[Overlaps], threshold: float) -> float:
    """Compute the AP of a class at a threshold; NaN if it has no object."""
    right: list[float] = []
    wrong: list[float] = []
    missed = 0
    for scores, ious, counted, ignored in images:
        matches = ious > threshold
        for column in matches[:, counted].T:
            matching = np.sort(scores[column])
            right += [*matching[-1:]]
            wrong += [*matching[:-1]]
            missed += not matching.size
        wrong += [*scores[~matches.any(axis=1) & (ignored <= threshold)]]
    if not right and not missed:
        return math.nan
    return _area_under_curve(np.array(right), np.array(wrong), missed)


def _area_under_curve(right: np.ndarray, wrong: np.ndarray, missed: int) -> float:
    """Integrate precision over recall, with the rule of the scripts.

    Args:
        right: Scores of the predictions that are right.
        wrong: Scores of the others.
        missed: Number of objects that were not found.
    """
    if not right.size:
        return 0.0
    thresholds = np.unique(np.concatenate([right, wrong]))
    true = (right >= thresholds[:, None]).sum(1)
    false = (wrong >= thresholds[:, None]).sum(1)
    precision = np.append(true / (true + false), 1.0)
    recall = np.append(true / (right.size + missed), 0.0)
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ (around[:-2] - around[2:])) / 2
