"""Merging: one file of all shards, and nothing of incomplete, damaged or mixed ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
import pytest

from point_rend.batch_inference.merge import Merged, merge
from point_rend.batch_inference.shards import FORMATS, Run, shard_path, write_shard
from point_rend.cli import merge as command
from tests.batch_inference.test_shards import record, run_of

ERROR = "it is broken"


def write_run(folder: Path, *, semantic: bool = False, **fields: Any) -> Run:
    """Write the shards of seven images, of which one could not be read."""
    run = run_of(**fields, outputs=["sem_seg"] if semantic else ["instances"])
    for number in range(run.shards):
        records = [
            record(i, error=ERROR if i == 4 else None, semantic=semantic) for i in run.block(number)
        ]
        write_shard(folder, number, run, records)
    run.write(folder)
    return run


@pytest.mark.parametrize("form", ["coco", "results"])
def test_the_file_is_the_same_from_every_format_and_size_of_shards(
    tmp_path: Path, form: str
) -> None:
    files = set()
    for shard_format in FORMATS:
        for size in (1, 3, 100):
            folder = tmp_path / f"{shard_format}{size}"
            write_run(folder, shard_format=shard_format, shard_size=size)
            merge([folder], tmp_path / "out.json", form=form, overwrite=True)
            files.add((tmp_path / "out.json").read_bytes())
    assert len(files) == 1


def test_the_file_holds_all_images_with_results_and_their_annotations_numbered(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "shards")
    merged = merge([tmp_path / "shards"], tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    records = [record(i) for i in range(7) if i != 4]
    assert content["categories"] == run.categories
    assert content["images"] == [
        {"id": x["image_id"], "file_name": x["file_name"], "height": 6, "width": 5} for x in records
    ]
    expected = [found | {"image_id": x["image_id"]} for x in records for found in x["annotations"]]
    assert content["annotations"] == [
        found | {"id": number} for number, found in enumerate(expected, start=1)
    ]
    assert merged == Merged(images=6, annotations=len(expected), failed=1, missing=0)
    merge([tmp_path / "shards"], tmp_path / "results.json", form="results")
    for found in expected:
        del found["area"], found["iscrowd"]
    assert json.loads((tmp_path / "results.json").read_text()) == expected


def test_segments_of_a_semantic_model_become_annotations(tmp_path: Path) -> None:
    write_run(tmp_path / "shards", semantic=True)
    merge([tmp_path / "shards"], tmp_path / "out.json")
    for found in json.loads((tmp_path / "out.json").read_text())["annotations"]:
        assert found["bbox"] == mask_util.toBbox(found["segmentation"]).tolist()
        assert (found["category_id"], found["iscrowd"]) == (2, 0)
        assert "score" not in found
    with pytest.raises(ValueError, match="--as results: these are segments"):
        merge([tmp_path / "shards"], tmp_path / "results.json", form="results")


def test_missing_shards_are_named_unless_partial_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    run = write_run(folder, shard_size=1)
    for number in range(6):
        shard_path(folder, number, run.shard_format).unlink()
    with pytest.raises(ValueError, match=r"6 of 7 .*\(shard-000000.*-000004\.jsonl and 1 more\)"):
        merge([folder], tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    assert merge([folder], tmp_path / "out.json", partial=True).missing == 6
    assert [x["id"] for x in json.loads((tmp_path / "out.json").read_text())["images"]] == [30]


def test_shards_of_one_run_may_lie_in_several_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    merge([tmp_path / "one"], tmp_path / "whole.json")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "one" / "shard-000001.jsonl").unlink()
    merge([tmp_path / "one", tmp_path / "two" / "shard-000001.jsonl"], tmp_path / "out.json")
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    with pytest.raises(ValueError, match="are the same shard, given twice"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "again.json")


@pytest.mark.parametrize("shard_format", FORMATS)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("cut", "damaged|truncated|has 2 records"),
        ("other run", "is a shard of another run"),
        ("other block", "has 1 records, expected 3"),
        ("twin", "is in two of the shards"),
    ],
)
def test_damage_is_named_and_leaves_no_file(
    tmp_path: Path, damage: str, reason: str, shard_format: str
) -> None:
    folder = tmp_path / "shards"
    write_run(folder, shard_format=shard_format)
    shards = [shard_path(folder, number, shard_format) for number in range(3)]
    if damage == "cut":
        content = shards[1].read_bytes()
        end = content.rstrip().rfind(b"\n") + 1 if shard_format == "jsonl" else len(content) // 2
        shards[1].write_bytes(content[:end])
    elif damage == "other run":
        write_run(tmp_path / "other", shard_format=shard_format, settings={"weights": "y"})
        shutil.copy(tmp_path / "other" / shards[1].name, shards[1])
    else:
        shutil.copy(shards[2 if damage == "other block" else 0], shards[1])
    with pytest.raises(ValueError, match=reason):
        merge([folder], tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_folders_of_two_runs_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", settings={"weights": "y"})
    with pytest.raises(ValueError, match=r"two holds shards of another run than .*one"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "out.json")


def test_the_command_counts_and_overwrites_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "shards")
    words = [str(tmp_path / "shards"), "--output", str(tmp_path / "out.json")]
    command.main(words)
    shown = capsys.readouterr().out
    assert "out.json: 5 annotations of 6 images; 1 images without results are left out" in shown
    with pytest.raises(SystemExit) as end:
        command.main(words)
    assert end.value.code == 2
    assert "exists: choose another name, or pass --overwrite" in capsys.readouterr().err
    command.main([*words, "--overwrite"])


def test_a_shard_is_no_output(tmp_path: Path) -> None:
    write_run(tmp_path / "shards", shard_format="json")
    shard = tmp_path / "shards" / "shard-000000.json"
    with pytest.raises(ValueError, match="which would be overwritten"):
        merge([tmp_path / "shards"], shard, overwrite=True)
    with pytest.raises(ValueError, match="which would be overwritten"):
        merge([tmp_path / "shards"], tmp_path / "shards" / "shards.json", overwrite=True)
    shard.unlink()
    with pytest.raises(ValueError, match="is the name of a shard"):
        merge([tmp_path / "shards"], shard, partial=True)
