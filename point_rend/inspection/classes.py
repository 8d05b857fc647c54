"""Frequencies of classes in training and validation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from point_rend.inspection.records import Objects

RARE, COMMON = 10, 100  # images with a class: LVIS's bounds of rare and common classes


class Frequencies(NamedTuple):
    """Objects of classes in data sets; K classes.

    Attributes:
        objects: K numbers of objects, without crowds.
        images: K numbers of images in which the class has such objects.
    """

    objects: list[int]
    images: list[int]


class ClassReport(NamedTuple):
    """Frequencies of classes, and which are missing.

    Attributes:
        names: K names.
        train: In the training sets, if there are any.
        test: In the sets that are evaluated, if there are any.
        imbalance: Objects of the most frequent class per object of the rarest one that has any, in
            training.
        rare: Classes with objects in at most `RARE` training images.
        absent_train: Classes without objects in training.
        absent_test: Without objects in the sets that are evaluated.
        only_test: Without objects in training, but with some there.
    """

    names: list[str]
    train: Frequencies | None
    test: Frequencies | None
    imbalance: float | None
    rare: list[str]
    absent_train: list[str]
    absent_test: list[str]
    only_test: list[str]


def count_objects(objects: Objects, num_classes: int) -> Frequencies:
    """Count the usable objects of each class, and the images with them."""
    label, image = objects.label[objects.usable], objects.image[objects.usable]
    pairs = np.unique(label * max(1, len(objects.files)) + image) // max(1, len(objects.files))
    return Frequencies(
        np.bincount(label, minlength=num_classes).tolist(),
        np.bincount(pairs, minlength=num_classes).tolist(),
    )


def compare_classes(
    names: Sequence[str], train: Frequencies | None, test: Frequencies | None
) -> ClassReport:
    """Compare the classes of training and evaluation."""
    in_train = np.array(train.objects if train else [0] * len(names))
    in_test = np.array(test.objects if test else [0] * len(names))
    present = in_train[in_train > 0]

    def chosen(mask: np.ndarray) -> list[str]:
        return [names[k] for k in np.flatnonzero(mask).tolist()]

    nothing = np.zeros(len(names), bool)
    images = np.array(train.images if train else [0] * len(names))
    return ClassReport(
        list(names),
        train,
        test,
        float(present.max() / present.min()) if present.size else None,
        chosen((images > 0) & (images <= RARE)),
        chosen(in_train == 0 if train else nothing),
        chosen(in_test == 0 if test else nothing),
        chosen((in_train == 0) & (in_test > 0) if train else nothing),
    )


def repeat_factors(objects: Objects, images: np.ndarray, threshold: float) -> np.ndarray:
    """Compute how often RepeatFactorTrainingSampler shows images in an epoch, on average.

    The factor of a class in the share f of the images is max(1, √(threshold / f)), that of an image
    the largest of its classes (https://arxiv.org/abs/1908.03195, appendix B.2).

    Args:
        objects: The annotations.
        images: (I,) bool: those that are trained on.
        threshold: DATALOADER.REPEAT_THRESHOLD.

    Returns:
        One factor for each chosen image.
    """
    chosen = objects.kept & images[objects.image]
    label, image = objects.label[chosen], objects.image[chosen]
    pairs = np.unique(np.stack([label, image]), axis=1)
    counts = np.maximum(np.bincount(pairs[0]), 1)
    factors = np.maximum(1.0, np.sqrt(threshold * images.sum() / counts))
    of_images = np.ones(len(images))
    np.maximum.at(of_images, image, factors[label])
    return of_images[images]
