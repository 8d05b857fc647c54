"""Pairing of results with a data set by the names of files and classes."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from point_rend.evaluation.coco_results import read_results
from point_rend.evaluation.pairing import find_images

Content = dict[str, Any]
MASK = {"size": [8, 8], "counts": [10, 4, 50]}


def truth(files: list[str], classes: list[str]) -> Content:
    return {
        "images": [
            {"id": 10 * k, "file_name": name, "height": 8, "width": 8}
            for k, name in enumerate(files, start=1)
        ],
        "categories": [{"id": 7 * k, "name": name} for k, name in enumerate(classes, start=1)],
        "annotations": [],
    }


def result(image: Any, category: Any, **fields: Any) -> Content:
    return {"image_id": image, "category_id": category, "score": 0.5, "segmentation": MASK} | fields


def predicted(files: list[str], classes: list[str]) -> Content:
    """Return a file as of `pointrend predict`, with one result per image, of any class."""
    images = [{"id": k, "file_name": name} for k, name in enumerate(files, start=1)]
    return {
        "images": images,
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes)],
        "annotations": [result(k + 1, k % len(classes)) for k in range(len(files))],
    }


def read(folder: Path, value: Any, content: Content) -> list[tuple[Any, Any]]:
    """Return the image and the class of each result."""
    file = folder / "results.json"
    file.write_text(json.dumps(value))
    return [(x["image_id"], x["category_id"]) for x in read_results(file, content)]


def test_images_and_classes_are_paired_by_name_whatever_their_ids(tmp_path: Path) -> None:
    content = truth(["a.png", "b.png", "c.png"], ["cat", "dog"])
    pairs = read(tmp_path, predicted(["c.png", "a.png", "b.png"], ["dog", "cat"]), content)
    assert pairs == [(30, 14), (10, 7), (20, 14)]


def test_ids_that_are_no_images_are_names_of_files_without_folder_and_suffix(
    tmp_path: Path,
) -> None:
    files = ["val/000000000139.jpg", "val/b 1.jpg", "val/30.tar.jpg"]
    content = truth(files, ["cat"])
    numbers = [result(139, 7), result("b 1", 7), result("30.tar", 7)]
    assert read(tmp_path, numbers, content) == [(10, 7), (20, 7), (30, 7)]
    texts = [result("000000000139", 7), result("b 1", 7), result("other", 7)]
    assert read(tmp_path, texts, content) == [(10, 7), (20, 7)]


def test_ids_count_where_at_least_as_many_are_images(tmp_path: Path) -> None:
    content = truth(["20.jpg", "10.jpg", "b.jpg"], ["cat"])
    assert read(tmp_path, [result(10, 7), result(20, 7)], content) == [(10, 7), (20, 7)]
    with pytest.raises(ValueError, match="result 1 is about image 77"):
        read(tmp_path, [result(10, 7), result(77, 7)], content)


def test_a_name_without_suffix_that_fits_several_images_is_refused(tmp_path: Path) -> None:
    content = truth(["a/x.jpg", "b/x.jpg"], ["cat"])
    with pytest.raises(ValueError, match=r"'x' fits 2 images .*'a/x.jpg', 'b/x.jpg': expected one"):
        read(tmp_path, [result("x", 7)], content)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("a.png", "val/a.png"),
        ("val/a.png", "a.png"),
        ("data/val/a.png", "val/a.png"),
        ("val\\a.png", "val/a.png"),
        ("./val/a.png", "val/a.png"),
        ("/data/val/a.png", "val/a.png"),
        ("ma\u0301.png", "m\u00e1.png"),
        ("a.png", "http://images.cocodataset.org/val2017/a.png"),
    ],
)
def test_a_name_that_is_the_end_of_another_one_is_the_same_image(name: str, known: str) -> None:
    assert find_images([name], {known: [1], "b.png": [2]}, "file") == {name: 1}


@pytest.mark.parametrize(
    ("name", "known"),
    [("a.png", "ba.png"), ("a.png", "a.jpg"), ("train/a.png", "val/a.png"), ("A.png", "a.png")],
)
def test_other_names_are_other_images(name: str, known: str) -> None:
    assert find_images([name], {known: [1]}, "file") == {}


def test_an_equal_name_wins_over_one_that_only_ends_alike() -> None:
    known = {"a.png": [1], "val/a.png": [2], "val/b.png": [3]}
    assert find_images(["val/a.png", "a.png"], known, "file") == {"a.png": 1, "val/a.png": 2}


@pytest.mark.parametrize(
    ("names", "known", "message"),
    [
        (["a.png"], ["x/a.png", "y/a.png"], "'a.png' fits 2 images of the annotations, 'x/a.png'"),
        (["x/a.png", "y/a.png"], ["a.png"], "'a.png' of the annotations fits 2 images, 'x/a.png'"),
        (["z/x/a.png"], ["a.png", "x/a.png"], "fits 2 images"),
    ],
)
def test_an_ambiguous_name_is_an_error(names: list[str], known: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_images(names, {name: [k] for k, name in enumerate(known)}, "file")


def test_results_of_unknown_images_and_classes_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = truth(["a.png", "b.png"], ["cat", "owl"])
    value = predicted(["a.png", "x.png", "y.png", "z.png"], ["cat", "dog"])
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, value, content) == [(10, 7)]
    text = "\n".join(caplog.messages)
    assert "1 of the 2 images of the annotations are not in it and have no results: 'b.png'" in text
    assert "3 of 4 results are of images that the annotations do not have" in text
    assert "1 of the 2 classes of the annotations are not in it and have no results: 'owl'" in text


@pytest.mark.parametrize(
    ("files", "classes", "message"),
    [
        (["x.png"], ["cat"], r"none of its 1 images \('x.png'\) is in the annotations \('a.png'\)"),
        (["a.png"], ["dog"], r"none of its 1 classes \('dog'\) is in the annotations \('cat'\)"),
        (["a.png"], ["cat", "cat"], "1 classes have a name twice, 'cat'"),
    ],
)
def test_names_that_do_not_fit_are_an_error_with_both_sides(
    files: list[str], classes: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, predicted(files, classes), truth(["a.png"], ["cat"]))


def test_an_image_of_another_size_is_another_image(tmp_path: Path) -> None:
    value = predicted(["a.png"], ["cat"])
    value["images"][0] |= {"height": 8, "width": 9}
    with pytest.raises(ValueError, match=r"'a.png' is of .*\(8, 9\), in the annotations of \(8, 8"):
        read(tmp_path, value, truth(["a.png"], ["cat"]))


def test_a_class_name_that_two_ids_have_is_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cat' has several ids in the annotations, '7', '14'"):
        read(tmp_path, predicted(["a.png"], ["cat"]), truth(["a.png"], ["cat", "cat"]))


def test_names_that_each_result_of_a_list_repeats_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = truth(["a.png", "b.png"], ["cat", "dog"])
    value = [
        result("b", 0, file_name="b.png", category_name="dog"),
        result("a", 1, file_name="a.png", category_name="cat"),
    ]
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, value, content) == [(20, 14), (10, 7)]
    assert not caplog.messages


def test_names_of_a_list_that_are_wholly_unknown_leave_the_ids_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = truth(["a.png"], ["cat"])
    with caplog.at_level(logging.WARNING):
        pairs = read(tmp_path, [result(10, 7, category_name="x")], content)
    assert pairs == [(10, 7)]
    assert "its category_name ('x') is unknown to the annotations ('cat')" in caplog.text


def test_annotations_taken_out_of_their_file_cause_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = truth(["a.png"], ["cat"])
    with caplog.at_level(logging.WARNING):
        read(tmp_path, [result(10, 7, id=1)], content)
    assert "pass the whole data set to pair images and classes by name" in caplog.text


def test_results_are_not_changed_by_reading_them(tmp_path: Path) -> None:
    content = truth(["a.png"], ["cat"])
    before = json.dumps(content)
    read(tmp_path, predicted(["a.png"], ["cat"]), content)
    assert json.dumps(content) == before
