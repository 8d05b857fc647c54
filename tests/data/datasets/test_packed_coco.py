"""COCO files in compact form: the content, the errors and the samples of the plain readers."""

import copy
import pickle
import random
import tracemalloc
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetFromList, get_detection_dataset_dicts
from detectron2.data.datasets import load_coco_json

from point_rend.data.checks.annotations import (
    examine,
    leave_out_impossible_annotations,
    load_data_set,
)
from point_rend.data.datasets.coco import read_coco, register_coco
from point_rend.data.datasets.packed import LazyList, loading_lazily
from point_rend.data.datasets.packed_coco import read_packed_coco
from point_rend.data.loader.records import PackedRecords
from point_rend.utils import json_stream
from tests.tiny_datasets import CocoSet, load_script, process_state_restored, write_coco

tool = load_script("tools/dev/rehearse_large_coco.py")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> CocoSet:
    return write_coco(tmp_path / "tiny")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("drawn")
    return str(tool.generate(folder, 60, 1200, 7)), str(folder / "images")


def outcome(read: Callable[[], Any]) -> Any:
    """Return a result, or the text of an error."""
    try:
        return read()
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def plainly(json_file: str) -> Any:
    """Return images, categories and the annotations of each image, as the plain reader has them."""
    content = read_coco(json_file)
    annotations: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    images = [(x["id"], x["file_name"], x["height"], x["width"]) for x in content["images"]]
    return images, content["categories"], [*annotations.values()]


def compactly(json_file: str) -> Any:
    packed = read_packed_coco(json_file)
    images = [tuple(image) for image in packed.images]
    return images, packed.categories, [[*packed.annotations[k]] for k in range(len(images))]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "3",
        '{"images": [], "images": []}',
        '{"images": [1,], "categories": []}',
        '{"images": [] "categories": []}',
        '{"images": [{"id": 1, "id": 1}], "categories": []}',
        '{"images": 3, "categories": [[[]]], "annotations": {}} ',
        "\ufeff{}",
        '{"a": "\n"}',
        '{"images": [], "categories": [], "annotations": null}',
    ],
)
def test_files_that_are_not_coco_have_the_errors_of_the_plain_reader(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    found = outcome(lambda: compactly(str(path)))
    assert isinstance(found, str)
    assert found == outcome(lambda: plainly(str(path)))


def test_lists_may_come_in_any_order(tiny: CocoSet) -> None:
    content = tiny.read()
    expected = plainly(tiny.json_file)
    numbers = random.Random(0)
    for _ in range(6):
        keys = [*content]
        numbers.shuffle(keys)
        tiny.rewrite({key: content[key] for key in keys})
        assert compactly(tiny.json_file) == expected


def test_records_are_those_of_detectron2(drawn: tuple[str, str]) -> None:
    register_coco("drawn", *drawn)
    expected = load_coco_json(*drawn, "other")
    assert DatasetCatalog.get("drawn") == expected
    with loading_lazily():
        records = DatasetCatalog.get("drawn")
    assert isinstance(records[0]["annotations"], LazyList)
    assert records == expected
    assert pickle.loads(pickle.dumps(records[3])) == expected[3]
    assert type(copy.deepcopy(records[3])["annotations"]) is list


def test_keypoints_are_those_of_detectron2(tiny: CocoSet) -> None:
    content = tiny.read()
    for annotation, points in zip(
        content["annotations"], ([1, 2, 0, 3, 4, 2], [], [5.5, 6, 1]), strict=False
    ):
        annotation["keypoints"] = points
    tiny.rewrite(content)
    register_coco("tiny", *tiny)
    assert DatasetCatalog.get("tiny") == load_coco_json(*tiny, "other")


def test_what_is_changed_in_loaded_records_stays_changed(tiny: CocoSet) -> None:
    register_coco("tiny", *tiny)
    records = DatasetCatalog.get("tiny")
    del records[0]["annotations"][0]["segmentation"]
    assert "segmentation" not in records[0]["annotations"][0]


def test_a_training_gets_the_records_of_detectron2_in_their_order(drawn: tuple[str, str]) -> None:
    register_coco("drawn", *drawn)
    expected = DatasetFromList(get_detection_dataset_dicts("drawn"), copy=False)
    with loading_lazily():
        records = PackedRecords(get_detection_dataset_dicts("drawn"))
    assert [records[k] for k in range(len(records))] == [*expected]
    records[0]["annotations"].clear()
    assert records[0]["annotations"]


def test_records_of_other_loaders_are_kept() -> None:
    plain = [{"file_name": "a", "annotations": [{"bbox": [1, 2]}], "own": np.arange(3)}, {"a": 1}]
    records = PackedRecords(plain)
    assert records[0]["annotations"] == plain[0]["annotations"]
    assert records[0]["own"].tolist() == [0, 1, 2]
    assert records[1] == {"a": 1}


@pytest.mark.parametrize("masks", [True, False])
def test_the_check_of_a_compact_file_finds_the_same(drawn: tuple[str, str], masks: bool) -> None:
    register_coco("drawn", *drawn)
    data = load_data_set("drawn")
    assert isinstance(data.images[0].annotations, LazyList)
    plain = data._replace(images=[x._replace(annotations=[*x.annotations]) for x in data.images])
    found, expected = examine(data, masks=masks), examine(plain, masks=masks)
    assert found.usable == expected.usable
    assert found.usable.faults
    assert found.impossible[:5] == expected.impossible[:5]
    assert found.fatal[:5] == expected.fatal[:5]
    assert found[4:] == expected[4:]


def test_impossible_annotations_are_left_out_of_compact_records(tiny: CocoSet) -> None:
    content = tiny.read()
    content["annotations"][0]["bbox"] = [3, 4, 0, 5]
    content["annotations"][1]["iscrowd"] = "1"
    tiny.rewrite(content)
    register_coco("tiny", *tiny)
    leave_out_impossible_annotations("tiny", masks=True)
    expected = DatasetCatalog.get("tiny")
    with loading_lazily():
        records = DatasetCatalog.get("tiny")
    assert [isinstance(x["annotations"], LazyList) for x in records] == [True, True]
    assert records == expected
    assert [x["iscrowd"] for x in records[0]["annotations"]] == [1, 0]


def test_a_file_is_read_again_only_after_a_change(tiny: CocoSet) -> None:
    register_coco("tiny", *tiny)
    before = read_packed_coco(tiny.json_file)
    assert read_packed_coco(tiny.json_file) is before
    content = tiny.read()
    content["images"] = content["images"][:1]
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] == 1]
    tiny.rewrite(content)
    assert len(DatasetCatalog.get("tiny")) == 1


def test_records_of_any_depth_are_read_or_refused(tiny: CocoSet) -> None:
    text = Path(tiny.json_file).read_text()
    assert '"iscrowd"' in text
    errors = set()
    for levels in range(100, 5000, 70):  # the parser accepts more than can be packed
        deep = "[" * levels + "]" * levels
        changed = text.replace('"iscrowd"', f'"extra": {deep}, "iscrowd"', 1)
        Path(tiny.json_file).write_text(changed)
        try:
            read_packed_coco(tiny.json_file)
        except ValueError as error:
            errors.add(str(error))
    assert errors == {f"annotation file {tiny.json_file} is nested too deeply"}


def test_spawned_workers_share_the_buffer_of_the_main_process() -> None:
    items = [{"k": [number, "text" * number]} for number in range(200)]
    records = PackedRecords(items)
    sent = ForkingPickler.dumps(records)
    assert len(sent) < 4000 < len(pickle.dumps(items))
    received = ForkingPickler.loads(sent)
    assert [received[k] for k in range(200)] == items == [records[k] for k in range(200)]


def test_memory_is_bounded_by_the_size_of_the_file(
    drawn: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "BLOCK", 1 << 14)
    monkeypatch.setattr(json_stream, "CHECKED_BLOCK", 1 << 14)
    size = Path(drawn[0]).stat().st_size

    def peak(read: Callable[[str], Any]) -> float:
        tracemalloc.start()
        read(drawn[0])
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most / size

    assert peak(read_packed_coco) < 1.8 < 4 < peak(read_coco)
