"""Files appear complete or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from point_rend.utils.files import (
    LEFTOVERS,
    NotSavedError,
    atomic_file,
    atomic_folder,
    atomic_path,
    check_output,
    end_with_whole_line,
    write_bytes,
    write_text,
)


def fill(target: BinaryIO | Path, content: str) -> None:
    """Write into the target of one of the three forms."""
    if isinstance(target, Path):
        (target / "part" if target.is_dir() else target).write_text(content)
    else:
        target.write(content.encode())
        target.flush()
    if content == "half":
        raise RuntimeError


def write(form: Callable, path: Path, content: str) -> None:
    with form(path) as target:
        fill(target, content)


@pytest.mark.parametrize("form", [atomic_file, atomic_path])
def test_the_former_file_stays_until_the_new_one_is_complete(form: Callable, tmp_path: Path):
    file = tmp_path / "new" / "folder" / "file.txt"
    write(form, file, "former")
    with form(file) as target:
        fill(target, "complete")
        assert file.read_text() == "former"
        assert {file, *file.parent.glob(LEFTOVERS)} == set(file.parent.iterdir())
    assert file.read_text() == "complete"
    with pytest.raises(RuntimeError):
        write(form, file, "half")
    assert file.read_text() == "complete"
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_appears_with_all_its_files_or_not_at_all(tmp_path: Path):
    folder = tmp_path / "new" / "data"
    with pytest.raises(RuntimeError):
        write(atomic_folder, folder, "half")
    assert not list(folder.parent.iterdir())
    folder.mkdir()  # it may exist if it is empty
    write(atomic_folder, folder, "complete")
    assert (folder / "part").read_text() == "complete"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_temporary_path_keeps_the_suffix(tmp_path: Path):
    with atomic_path(tmp_path / "a.b.mp4") as unfinished:
        assert unfinished.suffix == ".mp4"
        unfinished.touch()


def test_text_is_utf_8_and_bytes_are_bytes(tmp_path: Path):
    write_text(tmp_path / "text", "14×14")
    write_bytes(tmp_path / "bytes", b"\xff")
    assert (tmp_path / "text").read_bytes() == b"14\xc3\x9714"
    assert (tmp_path / "bytes").read_bytes() == b"\xff"


@pytest.mark.parametrize("form", [atomic_file, atomic_path, atomic_folder])
@pytest.mark.parametrize("refusing", ["fsync", "replace"])
def test_an_error_of_the_system_names_the_file_and_the_reason(
    form: Callable, refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, refusing, refuse)
    with pytest.raises(NotSavedError) as raised:
        write(form, tmp_path / "name", "text")
    assert str(raised.value).startswith(f"{tmp_path / 'name'} could not be saved (No space left")
    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_such_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(NotSavedError, match=r"file/x could not be saved \(File exists\)"):
        write_text(tmp_path / "file" / "x", "text")


def read_a_missing_file(_: object) -> None:
    with open("missing", "rb"):
        pass


def test_a_form_within_a_form_names_the_file_and_the_reason_once(tmp_path: Path):
    with (
        pytest.raises(NotSavedError) as caught,
        atomic_path(tmp_path / "a") as temporary,
        atomic_path(temporary),
    ):
        raise OSError(errno.ENOSPC, "full")
    assert str(caught.value).count("could not be saved (full)") == 1
    assert str(caught.value).startswith(f"{tmp_path / 'a'} could")
    assert not list(tmp_path.iterdir())


def test_an_error_about_another_file_is_unchanged(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="missing"), atomic_file(tmp_path / "x") as file:
        read_a_missing_file(file)
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_cannot_flush_folders_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_text(tmp_path / "x", "text")
    assert (tmp_path / "x").read_text() == "text"


@pytest.mark.parametrize("output", ["/dev/stdout", "/dev/null", "/dev/new"])
def test_nothing_in_the_folder_of_devices_is_replaced(output: str):
    with pytest.raises(ValueError, match="it is a device or a pipe, expected a file"):
        check_output(output)


@pytest.mark.parametrize("folder", [False, True])
def test_a_writable_output_passes_and_nothing_is_created(tmp_path: Path, folder: bool):
    (tmp_path / "there").mkdir()
    for output in ("new", "there/new", "new/deep/new"):
        check_output(tmp_path / output, folder=folder)
    check_output("new", folder=folder)
    assert [file.name for file in tmp_path.rglob("*")] == ["there"]
    (tmp_path / "there" / "file").touch()
    check_output(tmp_path / "there" / "file" if not folder else tmp_path / "there", folder=folder)


@pytest.mark.parametrize(
    ("output", "folder", "reason"),
    [
        ("file", True, "{}/file is not a folder"),
        ("file/new", True, "{}/file is not a folder"),
        ("file/new/newer", False, "{}/file is not a folder"),
        ("nowhere/new", True, "{}/nowhere is not a folder"),
        ("there", False, "it is a folder, expected a file"),
        ("pipe", False, "it is a device or a pipe, expected a file"),
    ],
)
def test_an_unwritable_output_is_named_with_the_reason(
    tmp_path: Path, output: str, folder: bool, reason: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "there").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="cannot be written") as raised:
        check_output(tmp_path / output, folder=folder)
    expected = f"--output {tmp_path / output} cannot be written: {reason.format(tmp_path)}"
    assert str(raised.value) == expected


def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "tmp123")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(ValueError, match="cannot be written") as raised:
        check_output(tmp_path / "a" / "b.json")
    assert str(raised.value).endswith(f"b.json cannot be written: in {tmp_path}: Permission denied")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ""),
        ('{"a": 1}\n', '{"a": 1}\n'),
        ('{"a": 1}\n{"b": 2', '{"a": 1}\n'),
        ('{"a": 1}\n{"b": 2}', '{"a": 1}\n{"b": 2}\n'),
        ('{"a": 1', ""),
        ('{"a": 1}\n' + 9 * "\0", '{"a": 1}\n'),
    ],
)
def test_a_line_that_was_cut_off_is_removed_and_a_whole_one_ended(
    content: str, expected: str, tmp_path: Path
):
    file = tmp_path / "metrics.json"
    file.write_text(content)
    end_with_whole_line(file)
    assert file.read_text() == expected
    file.unlink()
    end_with_whole_line(file)
    assert not file.exists()


def test_the_advice_fits_the_reason(tmp_path: Path):
    full = NotSavedError(tmp_path, OSError(errno.ENOSPC, "No space left"))
    gone = NotSavedError(tmp_path, OSError(errno.ENOENT, "No such file"))
    assert "free some space" in str(full)
    assert "its folder was removed" in str(gone)
