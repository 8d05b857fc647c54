"""Classes and config that a checkpoint stores."""

from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.checkpoint.class_metadata import read_metadata, read_stored_metadata
from tests.checkpoint.nets import (
    EXECUTING,
    HOSTILE,
    arrays,
    assert_same_state,
    net,
    write_pickle,
    zoo_file,
)

STORED = {
    "thing_classes": ["disc", "box"],
    "thing_colors": [[0, 128, 255], [1, 2, 3]],
    "thing_dataset_id_to_contiguous_id": {3: 0, 7: 1},
    "stuff_classes": ["sky"],
}


@pytest.mark.parametrize("checkpointer", [SafeDetectionCheckpointer, DetectionCheckpointer])
def test_a_file_with_metadata_is_loaded_by_every_checkpointer(
    tmp_path: Path, checkpointer: type[DetectionCheckpointer]
):
    model, again = net(seed=1), net(seed=2)
    SafeDetectionCheckpointer(model, str(tmp_path), metadata=STORED).save("m", iteration=5)
    path = str(tmp_path / "m.pth")
    assert checkpointer(again).load(path) == {"iteration": 5, "metadata": STORED}
    assert_same_state(again.state_dict(), model.state_dict())
    assert read_metadata(path) == read_metadata(f"{path}?matching_heuristics=True") == STORED


def test_a_training_with_metadata_resumes_a_file_without(tmp_path: Path):
    SafeDetectionCheckpointer(net(seed=1), str(tmp_path)).save("m", iteration=5)
    again = SafeDetectionCheckpointer(net(seed=2), str(tmp_path), metadata=STORED)
    assert again.resume_or_load("", resume=True) == {"iteration": 5}
    again.save("n")
    assert read_metadata(str(tmp_path / "n.pth")) == STORED


def test_the_config_of_the_training_may_be_stored_too(tmp_path: Path):
    metadata = STORED | {"config": "SEED: 3\n"}
    SafeDetectionCheckpointer(net(), str(tmp_path), metadata=metadata).save("m")
    assert read_stored_metadata(str(tmp_path / "m.pth")) == (STORED, "SEED: 3\n")


def test_other_files_have_no_metadata(tmp_path: Path):
    path = str(tmp_path / "m.pth")
    for more in ({}, {"metadata": "of another program"}, {"metadata": {"epoch": 3}}):
        torch.save({"model": net().state_dict(), **more}, path)
        assert read_metadata(path) == {}
    assert read_metadata(write_pickle(tmp_path / "m.pkl", zoo_file(arrays(net())))) == {}
    assert read_metadata("") == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("thing_classes", "disc,box"),
        ("thing_classes", []),
        ("stuff_classes", ["sky", 3]),
        ("thing_colors", [[0, 128, 256]]),
        ("thing_colors", [[0, 128]]),
        ("thing_dataset_id_to_contiguous_id", {"3": 0}),
        ("stuff_dataset_id_to_contiguous_id", [3, 7]),
        ("config", {"SEED": 3}),
    ],
)
def test_malformed_metadata_is_refused_by_the_name_of_its_field(
    tmp_path: Path, field: str, value: object
):
    path = str(tmp_path / "m.pth")
    torch.save({"model": net().state_dict(), "metadata": STORED | {field: value}}, path)
    with pytest.raises(ValueError, match=rf"m\.pth: its metadata has {field} .* not sound"):
        read_metadata(path)


def test_the_checksum_covers_the_metadata(tmp_path: Path):
    SafeDetectionCheckpointer(net(), str(tmp_path), metadata=STORED).save("m")
    path = tmp_path / "m.pth"
    content = path.read_bytes()
    assert content.count(b"disc") == 1
    path.write_bytes(content.replace(b"disc", b"dish"))
    with pytest.raises(ValueError, match=r"m\.pth cannot be read, it is damaged"):
        read_metadata(str(path))


def test_reading_the_metadata_runs_no_code(tmp_path: Path):
    path, sentinel = str(tmp_path / "m.pth"), tmp_path / "sentinel"
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*m\.pth"):
        read_metadata(path)
    hostile = HOSTILE[EXECUTING[0]](str(sentinel))
    torch.save({"model": {"a": torch.ones(1)}, "extra": hostile, "metadata": STORED}, path)
    sentinel.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="is refused: it asks for"):
        read_metadata(path)
    assert not sentinel.exists()
    assert read_metadata(path, allow_unsafe=True) == STORED
    assert sentinel.exists()
