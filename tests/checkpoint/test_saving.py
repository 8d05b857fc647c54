"""Saving is atomic and sealed by a checksum."""

import errno
import hashlib
import io
import os
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils.file_io import PathHandler
from iopath.common.file_io import PathManager
from torch import nn

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.checkpoint.class_metadata import read_metadata
from point_rend.checkpoint.sealed_file import DamagedError
from point_rend.utils.files import NotSavedError
from tests.checkpoint.nets import assert_same_state, contents, net, read
from tests.runs import files_limited_to


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["second", "first"])
def test_an_interrupted_save_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
):
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path))
    checkpointer.save("first")
    before = contents(tmp_path)
    assert set(before) == {"first.pth", "last_checkpoint"}

    def stop_half_way(data: Any, file: Any) -> None:
        buffer = io.BytesIO()
        whole_save(data, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        raise error

    whole_save = torch.save
    monkeypatch.setattr(torch, "save", stop_half_way)
    with pytest.raises(type(error)):
        checkpointer.save(name)
    assert contents(tmp_path) == before


def test_a_save_that_cannot_be_tagged_leaves_the_former_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path))
    checkpointer.save("first")
    whole_replace = os.replace

    def replace(source: str, target: str) -> None:
        if str(target).endswith("last_checkpoint"):
            raise OSError("disk full")
        whole_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save("second")
    assert set(contents(tmp_path)) == {"first.pth", "second.pth", "last_checkpoint"}
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "first.pth")


def test_what_a_killed_process_has_left_goes_with_the_next_save(tmp_path: Path):
    for name in (".model_7.pth.tmp", ".0123456789abcdef.tmp", ".0123456789abcdef.tmp.mp4"):
        (tmp_path / name).write_bytes(b"half")
    SafeDetectionCheckpointer(net(), str(tmp_path)).save("m")
    assert set(contents(tmp_path)) == {"m.pth", "last_checkpoint"}


def test_a_file_is_on_the_disk_before_it_has_its_name_and_is_tagged_behind_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events: list[str] = []
    whole_sync, whole_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(f"sync {re.sub(r'^[.][0-9a-f]+', '', name)}")
        whole_sync(descriptor)

    def replace(source: str, target: str) -> None:
        events.append(f"name {os.path.basename(target)}")
        whole_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    SafeDetectionCheckpointer(net(), str(tmp_path)).save("m")
    folder = f"sync {tmp_path.name}"
    assert events == [
        *("sync .tmp", "name m.pth", folder),
        *("sync .tmp", "name last_checkpoint", folder),
    ]


def test_a_full_disk_is_one_error_that_names_the_file_and_what_to_do(tmp_path: Path):
    checkpointer = SafeDetectionCheckpointer(nn.Linear(1000, 1000), str(tmp_path))
    checkpointer.save("first")
    before = contents(tmp_path)
    with files_limited_to(1_000_000), pytest.raises(NotSavedError) as error:
        checkpointer.save("second")
    assert error.value.errno == errno.EFBIG
    assert str(error.value).startswith(f"{tmp_path / 'second.pth'} could not be saved (File too")
    assert "free some space" in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_disk_that_refuses_a_file_is_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(NotSavedError, match=os.strerror(number)) as error:
        SafeDetectionCheckpointer(net(), str(tmp_path)).save("m")
    assert error.value.errno == number
    assert contents(tmp_path) == {}


def test_a_checkpoint_ends_with_the_checksum_of_all_before_it_in_a_comment_of_its_archive(
    tmp_path: Path,
):
    SafeDetectionCheckpointer(net(), str(tmp_path)).save("m")
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        comment = archive.comment
    content = path.read_bytes()
    assert comment == b"point_rend sha256 " + hashlib.sha256(content[:-64]).hexdigest().encode()
    assert_same_state(torch.load(path, weights_only=True)["model"], net().state_dict())
    mapped = torch.load(path, weights_only=True, mmap=True)["model"]
    assert_same_state(mapped, net().state_dict())


def save_small(folder: Path) -> bytes:
    SafeDetectionCheckpointer(nn.Linear(2, 3), str(folder)).save("m")
    return (folder / "m.pth").read_bytes()


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path):
    content = save_small(tmp_path)
    path = tmp_path / "changed.pth"
    rng = np.random.default_rng(0)
    unnoticed = []
    ends = [*range(100), *range(len(content) - 200, len(content))]
    for position in [*ends, *rng.choice(len(content), 400, replace=False)]:
        bit = int(rng.integers(8))
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        path.write_bytes(changed)
        with suppress(DamagedError):
            read(str(path))
            unnoticed.append(position)
    assert len(content) > 1000
    assert unnoticed == []


def test_a_missing_end_is_noticed_however_short_it_is(tmp_path: Path):
    content = save_small(tmp_path)
    path = tmp_path / "short.pth"
    for missing in [*range(1, 200), *range(200, len(content), 50)]:
        path.write_bytes(content[:-missing])
        with pytest.raises(DamagedError, match="cannot be read, it is damaged"):
            read(str(path))


def test_weights_are_saved_alone_with_their_metadata_and_are_not_the_last_checkpoint(
    tmp_path: Path,
):
    metadata = {"thing_classes": ["cat"], "config": "VERSION: 2"}
    state = {"head": torch.nn.Linear(2, 2)}
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path), metadata=metadata, **state)
    checkpointer.save_weights("model_best")
    assert set(contents(tmp_path)) == {"model_best.pth"}
    saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert saved.keys() == {"model", "metadata"}
    assert_same_state(saved["model"], net().state_dict())
    assert read_metadata(str(tmp_path / "model_best.pth")) == {"thing_classes": ["cat"]}


@pytest.mark.parametrize("name", ["../m", "sub/m", "/tmp/m"])
def test_a_checkpoint_is_saved_in_its_folder_only(tmp_path: Path, name: str):
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path))
    for save in (checkpointer.save, checkpointer.save_weights):
        with pytest.raises(ValueError, match="must not hold a folder"):
            save(name)


def test_a_process_that_does_not_save_writes_nothing(tmp_path: Path):
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path), save_to_disk=False)
    checkpointer.save("m")
    checkpointer.save_weights("m")
    assert contents(tmp_path) == {}


class Elsewhere(PathHandler):
    """Serves ``elsewhere://`` from a folder, as a handler of some storage would."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _get_supported_prefixes(self) -> list[str]:
        return ["elsewhere://"]

    def _get_local_path(self, path: str, force: bool = False, **_: Any) -> str:  # noqa: ARG002
        return str(self.folder / path.removeprefix("elsewhere://"))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering)

    def _exists(self, path: str, **_: Any) -> bool:
        return os.path.exists(self._get_local_path(path))

    def _isfile(self, path: str, **_: Any) -> bool:
        return os.path.isfile(self._get_local_path(path))


def test_storage_behind_the_path_manager_serves_for_saving_and_resuming(tmp_path: Path):
    model, again = net(seed=1), net(seed=2)
    checkpointers = [SafeDetectionCheckpointer(m, "elsewhere://run") for m in (model, again)]
    for checkpointer in checkpointers:
        checkpointer.path_manager = PathManager()
        checkpointer.path_manager.register_handler(Elsewhere(tmp_path))
    (tmp_path / "run").mkdir()
    checkpointers[0].save("m")
    assert set(contents(tmp_path / "run")) == {"m.pth", "last_checkpoint"}
    checkpointers[1].resume_or_load("", resume=True)
    assert_same_state(again.state_dict(), model.state_dict())
    (tmp_path / "run" / "last_checkpoint").write_text("../m.pth")
    with pytest.raises(ValueError, match="must name a file in its own folder"):
        checkpointers[1].resume_or_load("", resume=True)
