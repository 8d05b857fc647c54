"""Runs on many images: shards of any number of processes are those of one, also after kills."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from point_rend.batch_inference.claims import Claims
from point_rend.batch_inference.shards import read_shard
from point_rend.engine import launch
from point_rend.inference import run as run_module
from tests.batch_inference.running import (
    Planted,
    contents,
    kill_after,
    pictures,
    plant_slowly,
    predict,
    start,
    start_two,
    words,
)
from tests.cli.test_predict import picture
from tests.tiny_datasets import process_state_restored


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["pointrend", "predict"])
    monkeypatch.setattr(run_module, "Predictor", Planted)
    threads = torch.get_num_threads()
    with process_state_restored():
        yield
    torch.set_num_threads(threads)


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [x for path in sorted(folder.glob("shard-*")) for x in read_shard(path)]


@pytest.mark.parametrize("shards", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_records_are_the_planted_masks_in_the_order_of_the_manifest(
    tmp_path: Path, shards: str, batch_size: int
) -> None:
    source = pictures(tmp_path / "in", 5)
    assert predict(source, tmp_path / "out", "--batch-size", batch_size, shards=shards) == 0
    records = records_of(tmp_path / "out")
    assert [x["image_id"] for x in records] == [1, 2, 3, 4, 5]
    for number, record in enumerate(records):
        assert record["file_name"] == f"{number}.png"
        assert record["uri"] == str(source / f"{number}.png")
        (found,) = record["annotations"]
        truth = picture(number).min(axis=2) > 128
        assert (mask_util.decode(found["segmentation"]) == truth).all()
        y, x = np.nonzero(truth)
        assert found["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert (found["score"], found["area"]) == (0.75, truth.sum())


def test_the_same_command_does_nothing_again_and_writes_only_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = pictures(tmp_path / "in"), tmp_path / "out"
    assert predict(source, output) == 0
    whole = contents(output)
    (output / "shard-000001.jsonl").unlink()
    kept = (output / "shard-000000.jsonl").stat()
    assert predict(source, output) == 0
    assert "2 of 3 shards are finished: 1 are left" in capsys.readouterr().err
    assert contents(output) == whole
    assert (output / "shard-000000.jsonl").stat().st_ino == kept.st_ino
    Planted.batch_sizes = []
    assert predict(source, output) == 0
    assert Planted.batch_sizes == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--batch-size", "2"], "batch size"),
        (["--shard-size", "4"], "shard_size"),
        (["--confidence-threshold", "0.1"], "config"),
        (["--shards", "json"], "shard_format"),
    ],
)
def test_other_settings_are_refused_by_name_and_replace_nothing_without_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], named: str
) -> None:
    source, output = pictures(tmp_path / "in"), tmp_path / "out"
    assert predict(source, output) == 0
    before = contents(output)
    assert predict(source, output, *change) == 2
    assert f"(different: {named})" in capsys.readouterr().err
    assert contents(output) == before
    assert predict(source, output, *change, "--overwrite") == 0
    assert predict(source, output, *change) == 0


def test_other_images_are_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = pictures(tmp_path / "in", 5), tmp_path / "out"
    assert predict(source, output) == 0
    (source / "4.png").rename(source / "5.png")
    assert predict(source, output) == 2
    assert "(different: images)" in capsys.readouterr().err


def test_broken_pictures_are_listed_by_shard_counted_and_end_with_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = pictures(tmp_path / "in", 7), tmp_path / "out"
    (source / "1.png").write_bytes((source / "1.png").read_bytes()[:100])
    (source / "6.png").write_text("nothing")
    for _ in range(2):  # also when nothing is left to do
        assert predict(source, output) == 1
        assert "2 of 7 images have no results" in capsys.readouterr().err
    broken = [x for x in records_of(output) if x["error"] is not None]
    assert [x["file_name"] for x in broken] == ["1.png", "6.png"]
    assert all(x["annotations"] is None and x["height"] is None for x in broken)
    assert (output / "failed-000000.txt").read_text().startswith("1.png: ")
    assert (output / "failed-000002.txt").read_text().count("\n") == 1
    assert not (output / "failed-000001.txt").exists()


def test_without_locks_each_process_begins_with_its_share_and_all_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures(tmp_path / "in")
    assert predict(source, tmp_path / "one") == 0
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    assert predict(source, tmp_path / "two") == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_block_that_another_process_holds_is_taken_once_it_has_ended(tmp_path: Path) -> None:
    source, output = pictures(tmp_path / "in"), tmp_path / "out"
    reader, writer = os.pipe()
    holder = os.fork()
    if not holder:
        claims = Claims(output)
        claims.take(1)
        os.write(writer, b".")
        time.sleep(100)
        os._exit(1)
    os.read(reader, 1)
    waiting = start(words(source, output), tmp_path / "log.txt")
    deadline = time.monotonic() + 60
    while len(list(output.glob("shard-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert waiting.is_alive()
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    waiting.join(60)
    assert waiting.exitcode == 0
    assert len(records_of(output)) == 8


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_two_processes_of_a_launcher_write_the_shards_of_one_and_end_with_one_code(
    tmp_path: Path, launcher: str
) -> None:
    source = pictures(tmp_path / "in", 20)
    (source / "3.png").write_text("nothing")
    assert predict(source, tmp_path / "one") == 1
    both = start_two(launcher, words(source, tmp_path / "two", "--overwrite"), tmp_path)
    for process in both:
        process.join(100)
    logs = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert [x.exitcode for x in both] == [1, 1], logs
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert ["1 of 20 images have no results" in log for log in logs] == [True, False]


def test_a_run_that_is_killed_three_times_loses_nothing_and_doubles_nothing(
    tmp_path: Path,
) -> None:
    source, output = pictures(tmp_path / "in", 24), tmp_path / "out"
    assert predict(source, tmp_path / "whole") == 0
    for shards in (1, 3, 5):
        kill_after(start(words(source, output), tmp_path / "log.txt"), output, shards)
    last = start(words(source, output), tmp_path / "log.txt")
    last.join(100)
    assert last.exitcode == 0, (tmp_path / "log.txt").read_text()
    assert contents(output) == contents(tmp_path / "whole")
    assert not list(output.glob(".*"))


def test_sigterm_ends_a_run_with_its_decoders_and_leaves_whole_shards(tmp_path: Path) -> None:
    source, output = pictures(tmp_path / "in", 24), tmp_path / "out"
    running = start(words(source, output, "--workers", 1), tmp_path / "log.txt")
    deadline = time.monotonic() + 100
    while not list(output.glob("shard-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    assert children
    os.kill(int(running.pid or 0), signal.SIGTERM)
    running.join(60)
    assert running.exitcode == 143, (tmp_path / "log.txt").read_text()
    assert "stopped by SIGTERM" in (tmp_path / "log.txt").read_text()
    assert not [x for x in children if Path(f"/proc/{x}").exists()]
    assert all(len(list(read_shard(x))) == 3 for x in output.glob("shard-*"))


def test_a_process_ends_with_its_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[tuple[int, int]] = []
    monkeypatch.setattr(launch, "end_with_parent", lambda *x: ends.append(x))
    monkeypatch.setattr(launch.dist, "init_process_group", _stop)
    for url, of_torchrun in (("env://", True), ("env://", False), ("tcp://a:1", True)):
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        if of_torchrun:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        with pytest.raises(_StopError):
            launch.join(launch.RankInfo(0, 2, 0, url), "cpu")
    assert ends == [(os.getppid(), signal.SIGTERM)]


class _StopError(Exception):
    pass


def _stop(*_: object, **__: object) -> None:
    raise _StopError


def test_the_decoders_of_a_killed_run_end_too(tmp_path: Path) -> None:
    source, output = pictures(tmp_path / "in", 24), tmp_path / "out"
    running = start(words(source, output, "--workers", 1), tmp_path / "log.txt")
    deadline = time.monotonic() + 100
    while not list(output.glob("shard-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(running.pid or 0), signal.SIGKILL)
    running.join(60)
    while time.monotonic() < deadline and any(Path(f"/proc/{x}").exists() for x in children):
        time.sleep(0.01)
    assert children
    assert not [x for x in children if Path(f"/proc/{x}").exists()]


def test_a_folder_in_use_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = pictures(tmp_path / "in", 24), tmp_path / "out"
    running = start(words(source, output), tmp_path / "log.txt", first=plant_slowly)
    deadline = time.monotonic() + 100
    while not list(output.glob("shard-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(int(running.pid or 0), signal.SIGSTOP)
    try:
        assert predict(source, output, "--overwrite") == 2
        assert "another process writes shards" in capsys.readouterr().err
    finally:
        os.kill(int(running.pid or 0), signal.SIGCONT)
    running.join(100)
    assert running.exitcode == 0


def test_a_continuation_computes_with_the_threads_of_the_first_run(tmp_path: Path) -> None:
    source, output = pictures(tmp_path / "in"), tmp_path / "out"
    torch.set_num_threads(1)
    assert predict(source, output) == 0
    assert json.loads((output / "shards.json").read_text())["settings"]["device"] == (
        "cpu, 1 threads"
    )
    (output / "shard-000001.jsonl").unlink()
    torch.set_num_threads(2)
    assert predict(source, output) == 0
    assert torch.get_num_threads() == 1
