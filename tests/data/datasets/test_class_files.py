"""Class names in files of every encoding, and in lists."""

import os
from pathlib import Path

import pytest

from point_rend.data.datasets.class_files import read_class_names


@pytest.mark.parametrize("classes", ["sky,road, tree", "sky\nroad\n\ntree\n"])
def test_class_names_are_a_list_or_a_file(classes: str, tmp_path: Path) -> None:
    if "\n" in classes:
        (tmp_path / "names").write_text(classes)
        classes = str(tmp_path / "names")
    assert read_class_names(classes) == ["sky", "road", "tree"]


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ("nowhere.txt", FileNotFoundError, "nowhere.txt"),
        (" , ", ValueError, "got 0"),
        ("sky,road,sky", ValueError, "sky more than once"),
        (",".join(map(str, range(256))), ValueError, "got 256"),
    ],
)
def test_unusable_class_names_are_refused(
    classes: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_class_names(classes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_names_are_the_same_in_every_encoding_with_a_mark(
    encoding: str, newline: str, tmp_path: Path
) -> None:
    names = ["ground", "röt", "交通灯"]
    file = tmp_path / "classes.txt"
    file.write_bytes(newline.join([*names, ""]).encode(encoding))
    assert read_class_names(str(file)) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ground\nröt\n".encode("latin-1"), r"line 2: expected text in UTF-8.*byte 0xf6"),
        (b"ground\r\nred\r\n\x80", r"line 3: expected text in UTF-8.*byte 0x80"),
        (b"ground\nred\x00\n", r"line 2: .*a character that cannot be shown"),
        (b"\x89PNG\r\n\x1a\n", r"line 1: expected text in UTF-8"),
        (b"sky\n" + b"x" * 300, r"line 2: .*a line of 300 characters"),
        (b"sky\nroad\n\nsky\n", r"got 3, of which sky more than once \(1 and 4\)"),
        (b"\xef\xbb\xbf\n\n", r"got 0"),
        (b"a\n" * (1 << 20), r"expected at most 1048576"),
    ],
)
def test_a_file_that_is_no_list_of_names_is_named_with_the_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"classes.txt.*{message}"):
        read_class_names(str(file))


def test_folders_pipes_and_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "data.yaml").write_text("names: [a, b]")
    for name, message in {
        "folder": "a folder",
        "pipe.txt": "a pipe",
        "data.yaml": r"one name per line, not \.yaml",
    }.items():
        with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
            read_class_names(str(tmp_path / name))


def test_the_number_of_names_is_that_of_label_maps_unless_another_is_given(tmp_path: Path) -> None:
    file = tmp_path / "lvis.txt"
    file.write_text("\n".join(f"class {k}" for k in range(1203)))
    assert len(read_class_names(str(file), at_most=None)) == 1203
    with pytest.raises(ValueError, match="expected 1 to 255 different names, got 1203"):
        read_class_names(str(file))
