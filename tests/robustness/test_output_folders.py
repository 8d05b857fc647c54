"""Output folders: names, earlier runs, runs beside each other, disks that are full or gone."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.robustness.harness import Row, run_row, table
from tests.tiny_datasets import POINTREND, TINY_MODEL, write_coco

Prepare = Callable[[Path], Sequence[str | Path]]
OUT = "out"
OF_TRAINING = ["model_0000001.pth", "model_0000003.pth", "last_checkpoint", "metrics.json"]


def training(*more: str, out: str = OUT, test: bool = False) -> Prepare:
    """Return a function that writes a data set and returns a training of two iterations."""

    def prepare(folder: Path) -> list[str]:
        written = write_coco(folder / "tiny")
        flags = [word for word in more if word.startswith("--")]
        options = [word for word in more if not word.startswith("--")]
        names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)" if test else "()"]
        return [
            *("train", "--config-file", POINTREND, "--register-coco", "tiny", *written, *flags),
            *(*TINY_MODEL, *names, "OUTPUT_DIR", out, *options),
        ]

    return prepare


def after(change: Callable[[Path], object], prepare: Prepare) -> Prepare:
    """Return a function that also changes the output folder."""

    def changed(folder: Path) -> Sequence[str | Path]:
        words = prepare(folder)
        (folder / OUT).mkdir(exist_ok=True)
        change(folder / OUT)
        return words

    return changed


# Names


def named(out: str, line: str, name: str = "") -> Row:
    return Row(f"folder {name or out!a}", training(out=out), line)


def link_to_nothing(folder: Path) -> None:
    folder.rmdir()
    folder.symlink_to("gone")


def file_instead(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("mine")


def in_place(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: make(folder / name)


def touch(path: Path) -> None:
    path.write_text("mine")


NAMES = [
    named("", "OUTPUT_DIR '' is empty"),
    named(" ", "OUTPUT_DIR ' ' is empty"),
    named("/dev/null", "OUTPUT_DIR '/dev/null' cannot be written: /dev/null is a device"),
    named("/dev/null/out", "cannot be written: /dev/null is a device, not a folder"),
    named("/proc/1/out", "OUTPUT_DIR '/proc/1/out' cannot be written: No such file"),
    named("s3://bucket/out", "OUTPUT_DIR 's3://bucket/out' is a URL: expected a folder"),
    named("http://host/out", "is a URL: expected a folder"),
    named("~/out", "begins with ~, which only a shell replaces: write /"),
    named("~", "begins with ~, which only a shell replaces: write /"),
    named("run.txt", "OUTPUT_DIR 'run.txt' ends as the name of a log file"),
    named("run.log", "OUTPUT_DIR 'run.log' ends as the name of a log file"),
    named("a\nb", "has control characters"),
    named("a\x1b[2Jb", "has control characters"),
    named("\udcff", r"OUTPUT_DIR '\\udcff' is not UTF-8"),
    named(300 * "n", "cannot be written: File name too long", "of 300 letters"),
    named(3000 * "n/", "is too long: expected a path of at most 3000", "of 6000 letters"),
    Row(
        "folder that is a file", after(file_instead, training()), "'out' .* out is a file, not a f"
    ),
    Row(
        "folder below a file",
        after(file_instead, training(out=f"{OUT}/a/b")),
        "cannot be written: out is a file, not a folder",
    ),
    Row(
        "folder that is a link to nothing",
        after(link_to_nothing, training()),
        "out is a link to gone, which does not exist",
    ),
    *(
        Row(
            f"folder {name} in it",
            after(in_place(name, Path.mkdir), training("--resume")),
            f"OUTPUT_DIR 'out' cannot be used: out/{name} is a folder, expected a file",
        )
        for name in ("config.yaml", "log.txt", "metrics.json", "run.lock")
    ),
    *(
        Row(
            f"pipe {name} in it",
            after(in_place(name, os.mkfifo), training("--resume")),
            f"cannot be used: out/{name} is a device or a pipe, expected a file",
        )
        for name in ("config.yaml", "log.txt", "metrics.json", "run.lock")
    ),
    Row(
        "file inference in it",
        after(in_place("inference", touch), training()),
        "cannot be used: out/inference is a file, expected a folder",
    ),
    Row(
        "folder with spaces and letters",
        training("SOLVER.MAX_ITER", "1", out="mein Öfen 模型"),
        "Starting training from iteration 0",
        exit_code=0,
    ),
]


@table(NAMES)
def test_names(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)


# Earlier runs


def earlier_run(folder: Path) -> None:
    """Write the files of a training, whose contents nobody reads."""
    for name in OF_TRAINING:
        (folder / name).write_text("earlier")


def all_of_the_earlier_run(folder: Path) -> None:
    for name in OF_TRAINING:
        assert (folder / OUT / name).read_text() == "earlier"


def only(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).write_text("earlier")

    return change


def replaced(folder: Path) -> None:
    assert not (folder / OUT / "model_0000003.pth").exists()
    assert (folder / OUT / "last_checkpoint").read_text() == "model_final.pth"
    assert (folder / OUT / "mine.pth").read_text() == "mine"
    lines = (folder / OUT / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0]


def earlier_run_and_mine(folder: Path) -> None:
    earlier_run(folder)
    (folder / "mine.pth").write_text("mine")
    (folder / "events.out.tfevents.1").write_text("earlier")


EARLIER = [
    Row(
        "earlier run",
        after(earlier_run, training()),
        r"OUTPUT_DIR 'out' holds an earlier training \(model_0000001.pth, model_0000003.pth, "
        r"last_checkpoint and 1 more files\): pass --resume to continue it, --overwrite to",
        then=all_of_the_earlier_run,
    ),
    *(
        Row(
            f"earlier {name} alone",
            after(only(name), training()),
            rf"holds an earlier training \({name}\)",
        )
        for name in ("model_final.pth", "model_0000001.pth", "last_checkpoint", "metrics.json")
    ),
    Row(
        "overwritten",
        after(earlier_run_and_mine, training("--overwrite", "SOLVER.MAX_ITER", "1")),
        "Starting training from iteration 0",
        exit_code=0,
        then=replaced,
    ),
    Row(
        "weights that would be overwritten",
        after(
            earlier_run,
            training("--overwrite", "MODEL.WEIGHTS", f"{OUT}/../{OUT}/{OF_TRAINING[0]}"),
        ),
        "--overwrite would delete out/../out/model_0000001.pth, which this training reads",
        then=all_of_the_earlier_run,
    ),
    Row(
        "overwritten by a training that cannot start",
        after(earlier_run, training("--overwrite", "MODEL.WEIGHTS", "tiny/instances.json")),
        "instances.json",
        then=all_of_the_earlier_run,
    ),
    Row("overwrite and resume", training("--overwrite", "--resume"), "leave it or --resume out"),
    Row("overwrite, evaluate", training("--overwrite", "--eval-only"), "leave it or --eval-only"),
    Row(
        "resumed without a readable checkpoint",
        after(earlier_run, training("--resume")),
        "no checkpoint can be resumed: out/last_checkpoint names 'earlier', but there is no such",
        then=all_of_the_earlier_run,
    ),
    Row(
        "resumed without last_checkpoint and a readable checkpoint",
        after(only("model_0000001.pth", "model_final.pth"), training("--resume")),
        "no checkpoint can be resumed: out/last_checkpoint is missing; out/model_0000001.pth",
    ),
    *(
        Row(
            f"resumed from {name}",
            after(
                in_place("last_checkpoint", lambda path, name=name: path.write_text(name)),
                training("--resume"),
            ),
            "out/last_checkpoint names .*: it must name a file in its own folder; write the name",
        )
        for name in ("../out/model_final.pth", "/tmp/model_final.pth", "..")
    ),
]


@table(EARLIER)
def test_earlier_runs(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)
