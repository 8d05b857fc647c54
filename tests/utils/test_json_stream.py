"""Reading of one list in a JSON file: what the whole file holds, or an error."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from point_rend.utils import json_stream
from point_rend.utils.json_stream import iterate_list


@pytest.fixture(params=[1, 7, 1 << 20])
def _block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "BLOCK", request.param)


def random_value(numbers: random.Random, depth: int = 0) -> Any:
    kinds = ["number", "text", "null", "true", *(["list", "object"] if depth < 3 else [])]
    kind = numbers.choice(kinds)
    if kind == "list":
        return [random_value(numbers, depth + 1) for _ in range(numbers.randrange(4))]
    if kind == "object":
        return {f"k{i}": random_value(numbers, depth + 1) for i in range(numbers.randrange(4))}
    texts = ["", 'a"\\ü\n', "]}", "日本"]
    values = {"number": numbers.choice([0, -12, 3.5e-7, 10**18]), "text": numbers.choice(texts)}
    return values.get(kind, {"null": None, "true": True}.get(kind))


@pytest.mark.usefixtures("_block")
@pytest.mark.parametrize("seed", range(12))
def test_the_items_are_those_of_the_whole_file(tmp_path: Path, seed: int) -> None:
    numbers = random.Random(seed)
    content = {
        "info": random_value(numbers),
        "annotations": [random_value(numbers) for _ in range(5)],
        "images": [random_value(numbers) for _ in range(seed)],
        "number": 12,
    }
    for number, options in enumerate([{}, {"indent": 2}, {"ensure_ascii": False}]):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(content, **options), encoding="utf-8")  # type: ignore[arg-type]
        assert list(iterate_list(path, "images", what="file")) == content["images"]


def test_a_file_that_is_cut_anywhere_is_an_error_and_never_a_shorter_list(tmp_path: Path) -> None:
    text = json.dumps({"info": {"a": [1, 2]}, "images": [{"id": 1}, "é", 25, [3]], "z": 1.5})
    path = tmp_path / "cut.json"
    for length in range(len(text)):
        path.write_text(text[:length])
        with pytest.raises(ValueError, match=r"file .*cut\.json"):
            list(iterate_list(path, "images", what="file"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"images": [1] "b": 2}', "Expecting .,. delimiter"),
        ('{"images": {"a": 1}}', "must be a list"),
        ('{"images": [1], "images": [2]}', "twice"),
        ('{"pictures": []}', "expected an object with the list 'images'"),
        ("[1]", "expected an object with the list 'images'"),
        ('{"images": []} x', "Extra data"),
        ('{1: 2, "images": []}', "Expecting property name"),
        ('{"images": [nothing]}', "truncated or not JSON"),
        (f'{{"images": [{"[" * 100000}]}}', "nested too deeply"),
        (f'{{"images": [{"1" * 5000}]}}', "too many digits"),
    ],
)
def test_other_content_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        list(iterate_list(path, "images", what="file"))


def test_a_value_of_endless_length_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "BLOCK", 16)
    monkeypatch.setattr(json_stream, "LONGEST_VALUE", 100)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": ["x" * 1000]}))
    with pytest.raises(ValueError, match="truncated or not JSON"):
        list(iterate_list(path, "images", what="file"))
