"""From categories to classes: names, ids, given maps."""

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data.catalog import Metadata

from point_rend.refinement.class_map import (
    ClassMap,
    categories_of,
    describe,
    read_class_map,
    refuse_unmapped,
)

NAMES = ["traffic light", "person", "cat"]


def metadata(names: list[str] | None = None) -> Metadata:
    names = names or NAMES
    ids = {10 * k: k for k in range(1, len(names))} | {5: 0}
    return Metadata(name="m", thing_classes=names, thing_dataset_id_to_contiguous_id=ids)


def found(*categories: tuple[int, str | None], **settings: Any) -> list[int | None]:
    return [ClassMap(metadata(), **settings).find(x) for x in categories]


def test_names_count_and_ids_only_without_names() -> None:
    assert found((10, "cat"), (20, None), (5, None)) == [2, 2, 0]
    assert found((10, "dog"), (30, None)) == [None, None]


def test_spelling_does_not_matter_unless_two_classes_differ_by_it() -> None:
    assert found((1, "Traffic_Light"), (1, "traffic-light"), (1, "PERSON")) == [0, 0, 1]
    ambiguous = ClassMap(metadata(["Cat", "cat"]))
    assert [ambiguous.find((1, x)) for x in ("Cat", "cat", "CAT")] == [0, 1, None]


def test_a_given_map_counts_first_by_name_then_by_id() -> None:
    given = {"cat": "person", "7": "Traffic Light", "dog": "cat"}
    assert found((7, "cat"), (7, "x"), (7, None), (8, "dog"), given=given) == [1, 0, 0, 2]


def test_a_class_agnostic_model_has_a_class_for_everything() -> None:
    assert found((99, "dog"), (99, None), (1, "cat"), agnostic=True) == [0, 0, 2]


def test_a_class_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"dog is mapped to 'cta', .* 3 \(traffic light, person, cat"
    ):
        ClassMap(metadata(), {"dog": "cta"})
    with pytest.raises(ValueError, match="did you mean cat"):
        ClassMap(metadata(), {"dog": "cats"})


def test_categories_without_a_class_are_listed_with_both_sides() -> None:
    refuse_unmapped("boxes.json", {}, NAMES)
    message = (
        r"boxes.json: 2 categories have no class .* dog \(3\), category 9 \(1\); the model's cla"
    )
    with pytest.raises(ValueError, match=message):
        refuse_unmapped("boxes.json", {(1, "dog"): 3, (9, None): 1}, NAMES)


def test_only_classes_of_other_names_are_described() -> None:
    categories = {(1, "cat"): 2, (2, "Person"): 1, (3, None): 0}
    assert describe(categories, NAMES) == "Person -> person, category 3 -> traffic light"
    assert describe({(1, "cat"): 2}, NAMES) == ""


def test_names_of_records_count_before_those_of_categories() -> None:
    records = [{"category_id": 1}, {"category_id": 2}, {"category_id": 1, "category_name": "dog"}]
    assert categories_of(records, [{"id": 1, "name": "cat"}]) == [(1, "cat"), (2, None), (1, "dog")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dog=cat", {"dog": "cat"}),
        (" dog = traffic light , 7=cat,", {"dog": "traffic light", "7": "cat"}),
    ],
)
def test_a_map_is_read_from_the_command_line(text: str, expected: dict[str, str]) -> None:
    assert read_class_map(text) == expected


def test_a_map_is_read_from_a_file(tmp_path: Path) -> None:
    for name in ("map.json", "map"):
        (tmp_path / name).write_text(json.dumps({"a=b, c": "cat"}))
        assert read_class_map(str(tmp_path / name)) == {"a=b, c": "cat"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog", "expected CATEGORY=CLASS,… or a JSON file, got 'dog'"),
        ("=cat", "expected CATEGORY=CLASS"),
        ("dog=", "expected CATEGORY=CLASS"),
        ("", "expected CATEGORY=CLASS"),
        ("dog=cat,dog=person", "--class-map gives 'dog' twice"),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_class_map(text)


@pytest.mark.parametrize("content", [[], "cat", {"dog": 3}, {"dog": None}])
def test_other_files_are_refused(content: Any, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"map.json: expected an object of names of the model's cl"
    ):
        read_class_map(str(tmp_path / "map.json"))
    with pytest.raises(FileNotFoundError, match="--class-map does not exist"):
        read_class_map(str(tmp_path / "no.json"))
