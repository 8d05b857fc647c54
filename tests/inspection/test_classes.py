"""Objects and pixels of classes against slow loops, repeat factors against Detectron2."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data.samplers import RepeatFactorTrainingSampler

from point_rend.data.datasets.label_maps import register_sem_seg
from point_rend.inspection.classes import (
    Frequencies,
    compare_classes,
    count_objects,
    repeat_factors,
)
from point_rend.inspection.images import count_in_images, trained_images
from point_rend.inspection.records import Objects
from point_rend.inspection.semantic import _boundary_pixels, compare_labels, read_labels
from tests.tiny_datasets import process_state_restored
from tests.tiny_semantic import CLASSES, IGNORED, label_map, write_label, write_sem_seg

CROWD, IMPOSSIBLE = "crowd", "impossible"


def objects_of(images: list[list[tuple[int, str]]]) -> Objects:
    """Objects of images, each a list of (class, "" or CROWD or IMPOSSIBLE)."""
    flat = [(k, label, kind) for k, found in enumerate(images) for label, kind in found]
    number = len(flat)
    return Objects(
        files=[f"{k}.png" for k in range(len(images))],
        image_ids=[*range(len(images))],
        sizes=np.full((len(images), 2), 100.0),
        image=np.array([k for k, _, _ in flat], dtype=np.int64),
        label=np.array([label for _, label, _ in flat], dtype=np.int64),
        sides=np.full((number, 2), 10.0),
        area=np.full(number, 80.0),
        crowd=np.array([kind == CROWD for _, _, kind in flat], dtype=bool),
        kept=np.array([kind != IMPOSSIBLE for _, _, kind in flat], dtype=bool),
        parts=np.ones(number, np.int64),
        corners=np.full(number, 4),
        has_hole=np.zeros(number, bool),
        faults=[],
        warnings=[],
    )


def random_images(seed: int) -> list[list[tuple[int, str]]]:
    rng = np.random.default_rng(seed)
    kinds = ["", "", "", "", CROWD, IMPOSSIBLE]
    return [
        [
            (int(min(rng.geometric(0.4), 6)) - 1, kinds[int(rng.integers(6))])
            for _ in range(int(rng.integers(0, 6)))
        ]
        for _ in range(60)
    ]


PLANTED = [
    [(0, ""), (0, ""), (1, "")],
    [(0, ""), (2, CROWD)],
    [],
    [(0, CROWD), (1, IMPOSSIBLE)],
    [(0, "")] * 7,
]


def test_objects_and_images_of_a_class_count_no_crowds_and_nothing_impossible() -> None:
    assert count_objects(objects_of(PLANTED), 4) == Frequencies([10, 1, 0, 0], [3, 1, 0, 0])


def test_images_without_objects_are_told_apart() -> None:
    found = count_in_images(objects_of(PLANTED), detections=5, filters_empty=True)
    assert (found.annotations, found.objects, found.crowds, found.impossible) == (14, 11, 2, 1)
    assert (found.empty, found.without_objects, found.left_out) == (1, 1, 2)
    assert (found.full, found.lost, found.percentiles[-1]) == (1, 2, 7)
    assert sum(found.histogram) == len(PLANTED)
    assert count_in_images(objects_of(PLANTED), detections=5, filters_empty=False).left_out == 0


def test_classes_that_are_missing_on_one_side_are_named() -> None:
    report = compare_classes(
        "abcd", Frequencies([120, 3, 0, 0], [60, 3, 0, 0]), Frequencies([1, 0, 2, 0], [1, 0, 2, 0])
    )
    assert report.imbalance == 40
    assert (report.rare, report.absent_train, report.absent_test) == (["b"], ["c", "d"], ["b", "d"])
    assert report.only_test == ["c"]
    alone = compare_classes("ab", None, Frequencies([1, 0], [1, 0]))
    assert (alone.imbalance, alone.absent_train, alone.absent_test) == (None, [], ["b"])


@pytest.mark.parametrize("threshold", [0.001, 0.1, 0.5, 1.0])
def test_repeat_factors_are_those_of_detectron2(threshold: float) -> None:
    images = random_images(0)
    objects = objects_of(images)
    used = trained_images(objects, filters_empty=True)
    records = [
        {"annotations": [{"category_id": label} for label, kind in images[k] if kind != IMPOSSIBLE]}
        for k in np.flatnonzero(used)
    ]
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, threshold)
    np.testing.assert_allclose(repeat_factors(objects, used, threshold), theirs, rtol=1e-6)


def test_pixels_of_label_maps_are_counted(tmp_path: Path) -> None:
    written = write_sem_seg(tmp_path / "set", scales=(1, 1, 2))
    with process_state_restored():
        register_sem_seg("labels", *written)
        found = read_labels(["labels"], num_classes=4, ignore_value=IGNORED)
    maps = [cv2.imread(str(written.label(k)), cv2.IMREAD_GRAYSCALE) for k in range(3)]
    assert found.pixels.tolist() == [sum(int((x == k).sum()) for x in maps) for k in range(4)]
    assert found.images.tolist() == [sum(k in x for x in maps) for k in range(4)]
    assert found.ignored == sum(int((x == IGNORED).sum()) for x in maps)
    assert found.sizes.tolist() == [[x.shape[1], x.shape[0]] for x in maps]
    assert found.faults == []


def test_unknown_labels_and_missing_maps_are_faults_of_their_file(tmp_path: Path) -> None:
    written = write_sem_seg(tmp_path / "set", scales=(1, 1, 1))
    labels = label_map(0)
    labels[0, 0] = 9
    write_label(written.label(0), labels)
    written.label(1).unlink()
    with process_state_restored():
        register_sem_seg("labels", *written)
        found = read_labels(["labels"], num_classes=4, ignore_value=IGNORED)
    assert len(found.faults) == 2
    assert "000.png has the values 9: expected 0 to 3" in found.faults[0]
    assert "001.png" in found.faults[1]
    # What is counted of the first map includes its valid pixels.
    assert found.images.tolist() == [2, 2, 2, 2]


def test_boundary_pixels_are_those_of_a_plain_loop() -> None:
    labels = np.random.default_rng(1).choice([0, 1, 2, IGNORED], (9, 11)).astype(np.uint8)
    touching, total = [0] * 256, [0] * 256
    for y in range(9):
        for x in range(11):
            total[labels[y, x]] += 1
            near = [
                labels[v, u]
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
                if 0 <= v < 9 and 0 <= u < 11
            ]
            own = labels[y, x]
            touching[own] += own != IGNORED and any(n not in (own, IGNORED) for n in near)
    assert _boundary_pixels(labels, IGNORED).tolist() == [touching, total]


def test_classes_without_pixels_are_named(tmp_path: Path) -> None:
    train, test = (write_sem_seg(tmp_path / name) for name in ("train", "test"))
    for number in (0, 1):
        labels = label_map(number)
        write_label(train.label(number), np.where(labels == 2, 0, labels))
        write_label(test.label(number), np.where(labels == 3, 0, labels))
    with process_state_restored():
        register_sem_seg("one", *train)
        register_sem_seg("two", *test)
        one, two = (read_labels([x], num_classes=4, ignore_value=IGNORED) for x in ("one", "two"))
    report = compare_labels(CLASSES, one, two)
    assert report.absent_train == report.only_test == ["box"]
    assert report.absent_test == ["triangle"]
    assert report.imbalance == one.pixels[0] / one.pixels[one.pixels > 0].min()
