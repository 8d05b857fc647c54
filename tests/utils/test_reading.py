import os
import socket
from pathlib import Path

import pytest

from point_rend.utils.reading import check_regular_file, open_regular_file, read_bytes


def test_a_regular_file_and_a_link_to_one_are_read_whole(tmp_path: Path):
    file = tmp_path / "a"
    file.write_bytes(b"content")
    (tmp_path / "link").symlink_to(file)
    assert read_bytes(file, what="file", max_bytes=7) == b"content"
    assert read_bytes(tmp_path / "link", what="file", max_bytes=7) == b"content"
    with open_regular_file(file, what="file") as opened:
        assert opened.read(3) == b"con"


def test_a_file_above_the_limit_is_refused_with_both_sizes(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"content")
    with pytest.raises(ValueError, match=r"config file .*a: 7 bytes or more, expected at most 6"):
        read_bytes(tmp_path / "a", what="config file", max_bytes=6)


def test_a_file_that_hides_its_size_is_refused_too():
    with pytest.raises(ValueError, match="expected at most 3"):
        read_bytes("/proc/self/status", what="file", max_bytes=3)


def test_a_file_that_hides_its_size_is_read_whole():
    content = read_bytes("/proc/filesystems", what="file", max_bytes=1 << 20)
    assert content == Path("/proc/filesystems").read_bytes() != b""


def test_the_limit_is_not_allocated(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"content")
    assert read_bytes(tmp_path / "a", what="file", max_bytes=1 << 60) == b"content"


def test_a_huge_sparse_file_is_refused_without_being_read(tmp_path: Path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(ValueError, match="expected at most 10"):
        read_bytes(tmp_path / "sparse", what="file", max_bytes=10)


def test_pipes_folders_devices_and_sockets_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)  # the address of a socket has to be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        kinds = {"fifo": "a pipe", ".": "a folder", "/dev/zero": "a device", "socket": "a socket"}
        for path, kind in kinds.items():
            with pytest.raises(ValueError, match=f"image .*{kind}.*, expected a file"):
                check_regular_file(path, what="image")


def test_an_absent_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"config file does not exist: 'absent\.yaml'"):
        check_regular_file("absent.yaml", what="config file")


def test_a_name_with_a_null_character_is_refused():
    with pytest.raises(ValueError, match="no file can have this name"):
        check_regular_file("a\0b", what="config file")


def test_a_name_that_is_too_long_is_refused_in_one_line():
    with pytest.raises(OSError, match="config file cannot be read: File name too long"):
        check_regular_file("a" * 10_000, what="config file")
