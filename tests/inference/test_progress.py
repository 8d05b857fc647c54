"""The record of the images that are finished."""

import errno
import os
from pathlib import Path

import pytest

from point_rend.inference.progress import Progress
from point_rend.utils.files import NotSavedError


def test_a_disk_that_is_full_from_the_start_leaves_no_part_of_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(descriptor, data[:10])

    original = os.write
    progress = Progress(tmp_path, {"config": "x" * 50}, overwrite=False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(NotSavedError):
            progress.start(["a.png"])
    assert [*tmp_path.iterdir()] == []
    again = Progress(tmp_path, {"config": "x" * 50}, overwrite=False)
    again.start(["a.png"])
    again.close()
    assert Progress(tmp_path, {"config": "x" * 50}, overwrite=False).started == {"a.png"}
