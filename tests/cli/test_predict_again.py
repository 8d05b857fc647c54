"""`pointrend predict` after an interruption, and into folders that hold other files."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from point_rend.inference import run as run_module
from point_rend.inference.progress import RECORD
from tests.cli.test_predict import (
    NAMES,
    Planted,
    checkpoint_of,
    exit_code,
    files_below,
    picture,
    read_frames,
    run,
    write_pictures,
    write_video,
)
from tests.runs import files_limited_to
from tests.tiny_datasets import process_state_restored

ALL = ("--classes", NAMES, "--formats", "pictures", "coco", "masks")


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["predict.py"])
    monkeypatch.setattr(run_module, "Predictor", Planted)
    with process_state_restored():
        yield


class Stopping(Planted):
    """Sends its process a signal with the third image."""

    number = int(signal.SIGTERM)

    def __call__(self, images: Sequence[np.ndarray], *, batch_size: int) -> list[dict[str, Any]]:
        if len(Planted.batch_sizes) == 2:
            os.kill(os.getpid(), Stopping.number)
        return super().__call__(images, batch_size=batch_size)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_same_command_continues_after_a_signal_with_equal_results(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    folder = write_pictures(tmp_path / "in", range(1, 6))
    whole = ["--input", folder, *ALL, "--output"]
    run(*whole, tmp_path / "whole")
    assert Planted.batch_sizes == [1] * 5

    Stopping.number = number
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Predictor", Stopping)
        assert exit_code(*whole, tmp_path / "out") == 128 + number
    partial = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert [x["file_name"] for x in partial["images"]] == ["1.png", "2.png"]
    run(*whole, tmp_path / "out")
    assert Planted.batch_sizes == [1] * 3
    assert "2 of 5 images are finished: 3 are left" in capfd.readouterr().err
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    monkeypatch.setattr(run_module, "Predictor", None)  # nothing is left to build a model for
    run(*whole, tmp_path / "out")
    assert "5 of 5 images are finished: nothing is left to do" in capfd.readouterr().err
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("cut", range(1, 140, 23))
def test_a_record_that_a_kill_has_cut_is_continued(cut: int, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(1, 4))
    arguments = ["--input", folder, "--output", tmp_path / "out", *ALL]
    run(*arguments)
    whole = contents(tmp_path / "out")
    record = tmp_path / "out" / RECORD
    record.write_bytes(record.read_bytes()[:-cut])
    (tmp_path / "out" / "3.png").write_bytes(b"half")
    run(*arguments)
    assert contents(tmp_path / "out") == whole


def test_an_image_that_has_changed_is_segmented_again(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", range(1, 4))
    arguments = ["--input", folder, "--output", tmp_path / "out", *ALL]
    run(*arguments)
    cv2.imwrite(str(folder / "2.png"), np.zeros((40, 40, 3), np.uint8))
    write_pictures(folder, [4])
    run(*arguments)
    assert Planted.batch_sizes == [1, 1]
    found = json.loads((tmp_path / "out" / "instances.json").read_text())
    sizes = {x["file_name"]: x["height"] for x in found["images"]}
    assert sizes == {"1.png": 48, "2.png": 40, "3.png": 48, "4.png": 48}
    # The mask of its former content is gone.
    assert sorted(x.name for x in (tmp_path / "out" / "masks").iterdir()) == ["1", "2", "3", "4"]
    assert list((tmp_path / "out" / "masks" / "2").iterdir()) == []


def test_other_settings_need_another_folder_or_overwrite(tmp_path: Path, capsys: Any) -> None:
    folder = write_pictures(tmp_path / "in", range(1, 4))
    arguments = ["--output", tmp_path / "out", *ALL]
    run("--input", folder, *arguments)
    former = contents(tmp_path / "out")
    other = ["--input", folder / "1.png", *arguments, "--confidence-threshold", 0.6]
    assert exit_code(*other) == 2
    assert "holds the results of another run (different: config)" in capsys.readouterr().err
    assert contents(tmp_path / "out") == former
    run(*other, "--overwrite")
    masks = f"masks/1/000_{NAMES.split(',')[2]}.png"
    assert files_below(tmp_path / "out") == ["1.png", "instances.json", masks]


@pytest.mark.parametrize("name", ["1.png", "instances.json", RECORD, "masks/1"])
def test_files_of_the_user_stay_unless_overwritten(name: str, tmp_path: Path, capsys: Any) -> None:
    folder = write_pictures(tmp_path / "in", [1])
    own = tmp_path / "out" / name
    own.parent.mkdir(parents=True)
    own.mkdir() if name == "masks/1" else own.write_text("mine")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    arguments = ["--input", folder, "--output", tmp_path / "out", *ALL]
    assert exit_code(*arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert str(own) in line
    assert "--overwrite" in line
    assert own.is_dir() or own.read_text() == "mine"
    run(*arguments, "--overwrite")
    assert len(files_below(tmp_path / "out")) == 4
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_picture_and_a_video_of_another_run_stay_unless_overwritten(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", [1])
    video = write_video(tmp_path / "walk.mp4", 2)
    for source in (["--input", folder / "1.png"], ["--video-input", video]):
        own = tmp_path / ("out.png" if source[0] == "--input" else "out.mp4")
        own.write_text("mine")
        assert exit_code(*source, "--output", own) == 2
        assert own.read_text() == "mine"
        run(*source, "--output", own, "--overwrite")
        assert own.stat().st_size > 100


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_input_is_not_overwritten_under_another_name(
    link: Any, tmp_path: Path, capsys: Any
) -> None:
    folder = write_pictures(tmp_path / "in", [1])
    (tmp_path / "out").mkdir()
    link(folder / "1.png", tmp_path / "out" / "1.png")
    before = (folder / "1.png").read_bytes()
    arguments = ["--input", folder, "--output", tmp_path / "out", "--overwrite"]
    assert exit_code(*arguments) == 2
    assert "1.png is the input" in capsys.readouterr().err
    assert (folder / "1.png").read_bytes() == before


def test_names_that_differ_by_suffix_have_results_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(("a.png", "a.jpg", "a.png.png", "a.bmp"), start=1):
        cv2.imwrite(str(folder / name), picture(number))
    run("--input", folder, "--output", tmp_path / "out", *ALL)
    pictures = [x for x in files_below(tmp_path / "out") if "/" not in x and "json" not in x]
    masks = list((tmp_path / "out" / "masks").iterdir())
    assert len(pictures) == len(masks) == 4
    found = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert {x["file_name"] for x in found["images"]} == {x.name for x in folder.iterdir()}


def test_linked_folders_are_read_and_cycles_and_stray_files_are_not(
    tmp_path: Path, capsys: Any
) -> None:
    folder = write_pictures(tmp_path / "in", [1])
    write_pictures(tmp_path / "elsewhere", [2])
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "cycle").symlink_to(folder)
    write_pictures(folder / ".ipynb_checkpoints", [3])
    (folder / "._1.png").write_bytes(b"\0\5\26\7")
    arguments = ["--input", folder, "--output", folder / "out"]
    run(*arguments)
    assert files_below(folder / "out") == ["1.png", "link/2.png"]
    assert f"{folder / 'cycle'} is {folder}, whose images are among" in capsys.readouterr().err
    run(*arguments)  # the results below the input folder are no images
    assert files_below(folder / "out") == ["1.png", "link/2.png"]
    assert f"{folder / 'out'} holds the results" in capsys.readouterr().err


def test_pictures_do_not_mix_with_masks_and_label_maps(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "in"
    write_pictures(folder / "masks", [1])
    arguments = ["--input", folder, "--output", tmp_path / "out"]
    assert exit_code(*arguments, *ALL) == 2
    assert "the picture masks/1.png would lie among the masks" in capsys.readouterr().err
    run(*arguments)
    assert files_below(tmp_path / "out") == ["masks/1.png"]


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_video_on_a_full_disk_is_an_error_and_leaves_no_file(
    suffix: str, tmp_path: Path, capfd: Any
) -> None:
    video = write_video(tmp_path / "walk.mp4", 60)
    (tmp_path / "out").mkdir()
    arguments = ["--video-input", video, "--output", tmp_path / "out" / f"walk{suffix}"]
    with files_limited_to(5000):
        assert exit_code(*arguments) == 2
    assert "could not be saved: " in capfd.readouterr().err.splitlines()[-1]
    assert files_below(tmp_path / "out") == []
    run(*arguments)
    assert len(read_frames(tmp_path / "out" / f"walk{suffix}")) == 60


def test_a_full_disk_is_one_line_and_the_command_continues_later(
    tmp_path: Path, capsys: Any
) -> None:
    folder = write_pictures(tmp_path / "in", range(1, 30))
    arguments = ["--input", folder, "--output", tmp_path / "out", "--formats", "coco", "masks"]
    arguments += ["--classes", NAMES]
    with files_limited_to(4000):
        assert exit_code(*arguments) == 2
    assert f"{RECORD} could not be saved" in capsys.readouterr().err.splitlines()[-1]
    run(*arguments)
    assert 0 < len(Planted.batch_sizes) < 29
    found = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert [x["id"] for x in found["annotations"]] == list(range(1, 30))


@pytest.mark.parametrize("frames", [2, 1])
def test_the_frames_of_a_video_continue(frames: int, tmp_path: Path, monkeypatch: Any) -> None:
    video = write_video(tmp_path / "walk.mp4", 5)
    arguments = ["--video-input", video, "--frames", *ALL, "--batch-size", frames, "--output"]
    run(*arguments, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "Predictor", Stopping)
        exit_code(*arguments, tmp_path / "out")
    run(*arguments, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_pipe_as_video_is_refused(tmp_path: Path, capsys: Any) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert exit_code("--video-input", tmp_path / "pipe.mp4", "--output", tmp_path / "out") == 2
    assert "pipe.mp4: a pipe, expected a file" in capsys.readouterr().err


def test_results_do_not_depend_on_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("sys.argv", ["predict.py"])
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([(48, 64), (64, 48), (47, 63), (30, 90), (64, 64), (48, 64)]):
        image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    weights = checkpoint_of(tmp_path / "m.pth")
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", "3", *weights]
    found = []
    for size in (1, 4):
        output = tmp_path / f"out{size}"
        arguments = ["--input", folder, "--output", output, "--formats", "coco"]
        arguments += ["--confidence-threshold", 0, "--batch-size", size]
        run(*arguments, opts=opts)
        found.append(json.loads((output / "instances.json").read_text()))
    alone, together = found
    assert len(alone["annotations"]) == len(together["annotations"]) > 6
    for one, other in zip(alone["annotations"], together["annotations"], strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["category_id"] == other["category_id"]
        assert one["segmentation"] == other["segmentation"]
        torch.testing.assert_close(one["score"], other["score"], rtol=0, atol=1e-5)
