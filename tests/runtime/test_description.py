"""The description within an exported file."""

import dataclasses
import json

import pytest

from point_rend.runtime.description import Description

DESCRIPTION = Description(
    task="instances",
    version="1.0",
    classes=("tree", "Straße"),
    image_format="BGR",
    min_size=800,
    max_size=1333,
    divisor=32,
    max_side=2048,
    max_batch=8,
)


def test_a_description_survives_the_file():
    assert Description.from_json(DESCRIPTION.to_json(), "model.onnx") == DESCRIPTION


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", '{"task": "poetry"}', "[" * 100_000])
def test_other_files_are_named(text: str | None):
    with pytest.raises(ValueError, match=r"^model\.onnx is not a model written by `pointrend exp"):
        Description.from_json(text, "model.onnx")


def test_a_file_of_another_format_is_to_be_exported_again():
    other = dataclasses.replace(DESCRIPTION, format=99).to_json()
    with pytest.raises(ValueError, match=r"has format 99 of version 1\.0; expected 1: export"):
        Description.from_json(other, "model.onnx")


@pytest.mark.parametrize("key", ["classes", "divisor"])
def test_a_missing_field_is_named(key: str):
    fields = json.loads(DESCRIPTION.to_json())
    del fields[key]
    with pytest.raises(ValueError, match=rf"^model\.onnx has a damaged description .*{key}"):
        Description.from_json(json.dumps(fields), "model.onnx")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("divisor", 0),
        ("divisor", 1 << 40),
        ("divisor", 32.5),
        ("max_batch", "8"),
        ("max_side", None),
        ("min_size", -1),
        ("min_size", True),
        ("score_threshold", float("nan")),
        ("classes", ["tree", None]),
        ("classes", [1, 2]),
        ("image_format", "CMYK"),
        ("config", ["MODEL"]),
        ("version", {}),
    ],
)
def test_an_impossible_value_is_named(key: str, value: object):
    fields = {**json.loads(DESCRIPTION.to_json()), key: value}
    with pytest.raises(ValueError, match=rf"^model\.onnx has a damaged description \(.*{key}"):
        Description.from_json(json.dumps(fields), "model.onnx")
