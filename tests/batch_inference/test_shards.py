"""Shards: what is written is what is read, and damage is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest

from point_rend.batch_inference.shards import (
    FORMATS,
    Run,
    failures_path,
    finished_shards,
    read_shard,
    shard_path,
    write_shard,
)


def run_of(**fields: Any) -> Run:
    values = {"images": 7, "shard_size": 3, "shard_format": "jsonl", "outputs": ["instances"]}
    values |= {"categories": [{"id": 4, "name": "cat"}], "settings": {"weights": "x"}}
    return Run(**(values | fields))


def mask(seed: int, height: int = 6, width: int = 5) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).random((height, width)) > 0.5
    encoded = mask_util.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def record(number: int, *, error: str | None = None, semantic: bool = False) -> dict[str, Any]:
    found = [
        {
            "category_id": 4,
            "bbox": [0.1 + k, 1 / 3, 2.0, 1e-17],
            "score": 0.1 * k + 1e-9,
            "segmentation": mask(10 * number + k),
            "area": 3.0,
            "iscrowd": 0,
        }
        for k in range(number % 3)
    ]
    segments = [{"category_id": 2, "segmentation": mask(number), "area": 9.0}]
    return {
        "image_id": 5 * number,
        "file_name": f"día/{number}.jpg",
        "uri": f"/data/día/{number}.jpg",
        "height": None if error else 6,
        "width": None if error else 5,
        "annotations": None if error or semantic else found,
        "segments": segments if semantic and not error else None,
        "error": error,
    }


def read_or_fault(path: Path) -> tuple[list[dict[str, Any]], str]:
    try:
        return list(read_shard(path)), ""
    except ValueError as error:
        return [], str(error)


RECORDS = [record(1), record(2, error="it is broken"), record(3, semantic=True)]


@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_shard_gives_back_its_records_and_the_same_ones_the_same_bytes(
    tmp_path: Path, shard_format: str
) -> None:
    run = run_of(shard_format=shard_format)
    path = write_shard(tmp_path, 1, run, RECORDS)
    read = list(read_shard(path))
    assert json.dumps(read) == json.dumps([x | {"run": run.identity} for x in RECORDS])
    again = write_shard(tmp_path / "again", 1, run, RECORDS)
    assert again.read_bytes() == path.read_bytes()
    assert failures_path(tmp_path, 1).read_text() == "día/2.jpg: it is broken\n"
    assert finished_shards(tmp_path, run) == {1}


def test_a_block_that_is_written_again_without_failures_has_no_list_of_them(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, run_of(), RECORDS)
    write_shard(tmp_path, 0, run_of(), [RECORDS[0]] * 3)
    assert not failures_path(tmp_path, 0).exists()


@pytest.mark.parametrize(("images", "size"), [(1, 1), (7, 3), (9, 3), (5, 100)])
def test_the_blocks_hold_each_image_once_in_order(images: int, size: int) -> None:
    run = run_of(images=images, shard_size=size)
    blocks = [run.block(number) for number in range(run.shards)]
    assert [i for block in blocks for i in block] == list(range(images))
    assert all(len(block) == size for block in blocks[:-1])


def test_every_field_of_a_run_is_part_of_its_identity(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"images": 8},
        {"shard_size": 4},
        {"shard_format": "json"},
        {"outputs": ["sem_seg"]},
        {"categories": []},
        {"settings": {"weights": "y"}},
    ]
    runs = [run_of(**change) for change in changes]
    assert len({run.identity for run in runs}) == len(runs)
    runs[0].write(tmp_path)
    assert Run.read(tmp_path) == runs[0]


@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_shard_that_is_cut_is_damaged_or_shorter_by_whole_records(
    tmp_path: Path, shard_format: str
) -> None:
    path = write_shard(tmp_path, 0, run_of(shard_format=shard_format), RECORDS)
    content = path.read_bytes()
    whole = list(read_shard(path))
    for length in range(0, len(content), 29):
        path.write_bytes(content[:length])
        read, fault = read_or_fault(path)
        if fault:
            assert str(path) in fault
        else:
            assert shard_format == "jsonl"
            assert read == whole[: len(read)]
            assert len(read) < len(whole)


def test_a_changed_byte_of_parquet_is_found(tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, run_of(shard_format="parquet"), RECORDS)
    content = path.read_bytes()
    whole = list(read_shard(path))
    for position in range(4, len(content), 61):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]
        )
        read, fault = read_or_fault(path)
        # A byte of the footer may be one that no reader needs.
        assert str(path) in fault if fault else read == whole


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_id": "5"}, "record 1 has image_id = '5'"),
        ({"height": 7}, r"has a mask of size \[6, 5\] in an image of size \[7, 5\]"),
        ({"annotations": [1]}, "has the mask None"),
        ({"image_id": 2**63}, "has image_id = 9223372036854775808"),
        ({"annotations": [], "width": None}, r"has results, but the size \[6, None\]"),
        ({"annotations": [], "height": -6}, "has results, but the size"),
        (
            {"annotations": [{"category_id": 1, "segmentation": {"size": [6, 5], "counts": "~"}}]},
            "has a mask",
        ),
    ],
)
def test_a_record_of_another_form_is_named(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "shard-000000.jsonl"
    path.write_text(json.dumps(RECORDS[0] | {"run": "x"} | change) + "\n")
    with pytest.raises(ValueError, match=rf"shard-000000\.jsonl is damaged.*{reason}"):
        list(read_shard(path))


def test_other_files_are_no_shards_of_a_run(tmp_path: Path) -> None:
    run = run_of()
    for name in ("shard-000003.jsonl", "shard-1.jsonl", "shard-000001.json", ".shard-000001.jsonl"):
        (tmp_path / name).touch()
    assert finished_shards(tmp_path, run) == set()
    shard_path(tmp_path, 0, "jsonl").mkdir()
    shard_path(tmp_path, 1, "jsonl").symlink_to(tmp_path / "gone")
    shard_path(tmp_path, 2, "jsonl").touch()
    assert finished_shards(tmp_path, run) == {2}
    with pytest.raises(ValueError, match="expected a shard, a file"):
        list(read_shard(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match="block 2 has 1 images, got 3 records"):
        write_shard(tmp_path, 2, run, RECORDS)
