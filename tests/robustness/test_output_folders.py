"""Output folders: names, earlier runs, runs beside each other, disks that are full or gone."""

import errno
import functools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from point_rend.engine.trainer import Trainer
from point_rend.utils import locks
from tests.robustness.harness import Row, run_command, run_row, table
from tests.runs import limit_files
from tests.tiny_datasets import BASELINE, KINDS, POINTREND, TINY_MODEL, write_coco

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
        for name in (
            *("config.yaml", "log.txt", "metrics.json", "run.lock", "last_checkpoint"),
            *("tracking.json", "model_final.pth", "model_final_ema.pth", "model_best.pth"),
        )
    ),
    *(
        Row(
            f"link {name} to nothing in it",
            after(in_place(name, lambda path: path.symlink_to("/gone")), training("--resume")),
            f"OUTPUT_DIR 'out' cannot be used: out/{name} is a link to /gone, which does not exist",
        )
        for name in ("log.txt", "metrics.json", "run.lock", "inference")
    ),
    *(
        Row(
            f"pipe {name} in it",
            after(in_place(name, os.mkfifo), training("--resume")),
            f"cannot be used: out/{name} is a device or a pipe, expected a file",
        )
        for name in ("config.yaml", "log.txt", "metrics.json", "run.lock")
    ),
    *(
        Row(
            f"file {name} in it",
            after(in_place(name, touch), training()),
            f"cannot be used: out/{name} is a file, expected a folder",
        )
        for name in ("inference", "ema")
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


def own_config(folder: Path) -> list[str]:
    words = [str(word) for word in training()(folder)]
    (folder / OUT).mkdir()
    (folder / OUT / "config.yaml").write_text(f"# mine\n_BASE_: {POINTREND}\n")
    return [f"./{OUT}/config.yaml" if word == POINTREND else word for word in words]


def own_config_stays(folder: Path) -> None:
    assert (folder / OUT / "config.yaml").read_text().startswith("# mine")


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
        "overwritten but for a folder with the name of a checkpoint",
        after(
            lambda out: (earlier_run(out), (out / "model_0000007.pth").mkdir()),
            training("--overwrite", "SOLVER.MAX_ITER", "1"),
        ),
        "Starting training from iteration 0",
        exit_code=0,
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
    Row(
        "config file in the place of that of the training",
        own_config,
        "--config-file is ./out/config.yaml, which a training in OUTPUT_DIR 'out' would replace",
        then=own_config_stays,
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


# Resuming


@functools.cache
def trained(base: Path) -> Path:
    """Train four iterations; return the output folder, of which rows take copies."""
    folder = base / "trained"
    folder.mkdir()
    argv = training("SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.MAX_ITER", "4")(folder)
    assert run_command([str(word) for word in argv], folder).exit_code == 0
    return folder / OUT


def resumed(
    change: Callable[[Path], object], *more: str, kinds: int = 3, config: str = POINTREND
) -> Prepare:
    """Return a function that changes a trained folder and returns a command that resumes there."""

    def prepare(folder: Path) -> list[str]:
        shutil.copytree(trained(folder.parent), folder / OUT)
        change(folder / OUT)
        words = [str(word) for word in training("--resume", *more)(folder)]
        if kinds != len(KINDS):
            shutil.rmtree(folder / "tiny")
            write_coco(folder / "tiny", categories=range(1, 1 + kinds))
        return [config if word == POINTREND else word for word in words]

    return prepare


def nothing(_: Path) -> None:
    pass


def tag(content: bytes) -> Callable[[Path], object]:
    return in_place("last_checkpoint", lambda path: path.write_bytes(content))


def truncate(*names: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for name in names:
            os.truncate(folder / name, 1000)

    return change


def rewrite(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Return a function that changes the contents of the only checkpoint."""

    def change_file(folder: Path) -> None:
        for name in ("model_0000001.pth", "model_0000003.pth"):
            (folder / name).unlink()
        checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, folder / "model_final.pth")

    return change_file


def half_line(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"iteration": 3, "los')


def of_five_iterations(folder: Path) -> None:
    last = torch.load(folder / OUT / "model_final.pth", weights_only=True)
    assert last["trainer"]["iteration"] == 4
    lines = (folder / OUT / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [3, 4]


def untouched(folder: Path) -> None:
    before = trained(folder.parent)
    for name in ("model_0000001.pth", "model_0000003.pth", "metrics.json", "config.yaml"):
        assert (folder / OUT / name).read_bytes() == (before / name).read_bytes()


ONE_MORE = ["SOLVER.MAX_ITER", "5"]
FROM_FINAL = "Resuming from out/model_final.pth, because out/last_checkpoint"
RESUMED = [
    Row(
        "finished training",
        resumed(nothing, "SOLVER.MAX_ITER", "4"),
        "out/model_final.pth is of iteration 4, and SOLVER.MAX_ITER is 4: nothing is left to train",
        exit_code=0,
    ),
    Row(
        "training beyond its end",
        resumed(nothing, "SOLVER.MAX_ITER", "2"),
        "is of iteration 4, and SOLVER.MAX_ITER is 2: nothing is left to train",
        exit_code=0,
    ),
    *(
        Row(
            f"last_checkpoint {name}",
            resumed(change, *ONE_MORE),
            f"{FROM_FINAL} {reason}",
            exit_code=0,
            then=of_five_iterations,
        )
        for name, change, reason in (
            ("missing", in_place("last_checkpoint", Path.unlink), "is missing"),
            ("binary", tag(bytes(range(256))), "names "),
            ("dangling", tag(b"model_0000099.pth"), "names 'model_0000099.pth', but there is no"),
        )
    ),
    Row(
        "last checkpoint truncated",
        resumed(truncate("model_final.pth"), *ONE_MORE),
        "Resuming from out/model_0000003.pth, because out/model_final.pth cannot be read",
        exit_code=0,
        then=of_five_iterations,
    ),
    Row(
        "all checkpoints truncated",
        resumed(truncate("model_final.pth", "model_0000001.pth", "model_0000003.pth"), *ONE_MORE),
        "no checkpoint can be resumed: out/model_final.pth cannot .*; .*3.pth cannot .*1.pth",
    ),
    Row(
        "half a line of metrics",
        resumed(in_place("metrics.json", half_line), *ONE_MORE),
        "Starting training from iteration 4",
        exit_code=0,
        then=of_five_iterations,
    ),
    Row("fewer classes", resumed(nothing, kinds=2), "out/model_final.pth", then=untouched),
    Row(
        "another model",
        resumed(nothing, config=BASELINE),
        "out/model_final.pth",
        then=untouched,
    ),
    Row(
        "other widths",
        resumed(nothing, "MODEL.FPN.OUT_CHANNELS", "8"),
        "out/model_final.pth: these shapes do not fit the configured model",
        then=untouched,
    ),
    Row(
        "frozen layers",
        resumed(nothing, "MODEL.BACKBONE.FREEZE_AT", "2"),
        "out/model_final.pth cannot be resumed: its optimizer has .* which this config freezes",
        then=untouched,
    ),
    *(
        Row(f"checkpoint with {name}", resumed(rewrite(change), *ONE_MORE), line)
        for name, change, line in (
            ("weights alone", lambda x: x.pop("trainer"), "model_final.pth holds no trainer"),
            ("no state", lambda x: x.update(trainer={}), "its state of the training is not"),
            ("a list as state", lambda x: x.update(trainer=[1]), "model_final.pth"),
            ("no hooks", lambda x: x["trainer"].update(hooks=7), "model_final.pth"),
            ("an iteration of text", lambda x: x["trainer"].update(iteration="4"), "model_final"),
            ("no iteration", lambda x: x["trainer"].update(iteration=-5), "model_final.pth"),
            ("data of text", lambda x: x["trainer"].update(data="x"), "model_final.pth"),
            ("no seed", lambda x: x["trainer"]["data"].update(seed=-5), "seed of its data is -5"),
            (
                "an optimizer of text",
                lambda x: x["trainer"]["_trainer"].update(optimizer=""),
                "pth",
            ),
        )
    ),
]


@table(RESUMED)
def test_resuming(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)


# Runs beside each other


def held_here(folder: Path) -> None:
    locks.lock_folder(folder)


def held_elsewhere(folder: Path) -> None:
    here = locks._this_process()._replace(host="elsewhere", boot="another")
    (folder / locks.NAME).write_text(json.dumps(here._asdict()))


def freed(_: Path) -> None:
    locks.unlock_folders()


BESIDE = [
    *(
        Row(
            f"{name} beside a run",
            after(held_here, training(*flags, test=True)),
            r"'out' is in use by another run: process \d+ on .*, since 20.*; wait for its end",
            then=freed,
        )
        for name, flags in (
            ("training", ()),
            ("resumed training", ("--resume",)),
            ("training that overwrites", ("--overwrite",)),
            ("evaluation", ("--eval-only",)),
        )
    ),
    Row(
        "training beside a run on another machine",
        after(held_elsewhere, training()),
        r"'out' is in use by another run: process \d+ on elsewhere, .*; if it has ended, remove /",
    ),
]


@table(BESIDE)
def test_runs_beside_each_other(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)


# Disks


def fail_to_write(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_events() -> None:
    """Make TensorBoard's second write fail, which is one of its thread."""
    from tensorboard.compat.tensorflow_stub.io import gfile

    append, calls = gfile.LocalFileSystem.append, []

    def write(*args: object) -> None:
        calls.append(args)
        if len(calls) > 1:
            fail_to_write()
        append(*args)

    gfile.LocalFileSystem.append = write


def at_iteration(number: int, action: Callable[[], object]) -> Callable[[], None]:
    """Return a function that lets something happen at the start of an iteration."""

    def first() -> None:
        run_step = Trainer.run_step

        def step(trainer: Trainer) -> None:
            if trainer.iter == number:
                action()
            run_step(trainer)

        Trainer.run_step = step

    return first


def in_evaluations(action: Callable[[], object]) -> Callable[[], None]:
    """Return a function that lets something happen before each evaluation."""

    def first() -> None:
        test = Trainer.test.__func__

        def act_and_test(cls: type[Trainer], *args: object, **kwargs: object) -> object:
            action()
            return test(cls, *args, **kwargs)

        Trainer.test = classmethod(act_and_test)

    return first


def remove() -> None:
    """Remove the folder at once; the run's threads must not refill it meanwhile."""
    os.rename(OUT, "gone")
    shutil.rmtree("gone")


FULL = 12 << 20  # bytes of a file; checkpoints are smaller


def metrics_on_full_disk() -> None:
    Path(OUT, "metrics.json").write_text(f"{{}}{(FULL - 100) * ' '}\n")
    limit_files(FULL)


def whole_metrics(folder: Path) -> None:
    whole("model_0000019.pth")(folder)
    assert (folder / OUT / "metrics.json").read_text().strip() == "{}"


def no_folder_of_results() -> None:
    Path(OUT, "inference").write_text("mine")


def full_for_results() -> None:
    """Let the renaming of the results fail, the last step of an atomic write."""
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if str(target).endswith("coco_instances_results.json"):
            fail_to_write()
        replace(source, target)

    os.replace = fail


def whole(*names: str) -> Callable[[Path], None]:
    """Return a function that checks that the last checkpoint is one of these, and whole."""

    def check(folder: Path) -> None:
        tag = (folder / OUT / "last_checkpoint").read_text()
        assert tag in names
        checkpoint = torch.load(folder / OUT / tag, weights_only=True)
        assert checkpoint["trainer"]["iteration"] == checkpoint["iteration"]
        assert not list((folder / OUT).glob(".*"))
        assert not (folder / OUT / locks.NAME).exists()

    return check


EACH = ["SOLVER.CHECKPOINT_PERIOD", "1"]
LONG = [*EACH, "SOLVER.MAX_ITER", "22"]
DISKS = [
    Row(
        "log on a full disk from the start",
        training(),
        r"out/log.txt could not be saved \(File too large\): free some space",
        first=functools.partial(limit_files, 5000),
    ),
    Row(
        "log on a full disk during a training",
        training(*LONG),
        r"out/log.txt could not be saved \(File too large\): free .*; resume with: ",
        first=at_iteration(3, functools.partial(limit_files, 5000)),
        then=whole("model_0000002.pth"),
    ),
    Row(
        "metrics on a full disk",
        training(*LONG),
        r"out/metrics.json could not be saved \(File too large\): free some space",
        first=at_iteration(19, metrics_on_full_disk),
        then=whole_metrics,
    ),
    Row(
        "events on a full disk",
        training(*LONG),
        r"error: out/events.out.tfevents.\* could not be saved \(No space left on device\): free",
        first=full_for_events,
        then=whole("model_0000019.pth", "model_final.pth"),
    ),
    Row(
        "results on a full disk after a training",
        training(*EACH, test=True),
        r"results.json could not be saved \(No space left on device\)",
        first=full_for_results,
        then=whole("model_final.pth"),
    ),
    Row(
        "results on a full disk in an evaluation",
        training("--eval-only", test=True),
        r"results.json could not be saved \(No space left on device\)",
        first=full_for_results,
    ),
    Row(
        "file in place of the results",
        training("--eval-only", test=True),
        r"out/inference.* could not be saved",
        first=in_evaluations(no_folder_of_results),
    ),
    Row(
        "folder removed during a training",
        training(*LONG),
        r"out could not be saved \(No such file or directory\): its folder was removed, .*; the "
        "last checkpoint is out/model_0000003.pth; resume with",
        first=at_iteration(3, remove),
        then=whole("model_0000003.pth"),
    ),
    Row(
        "folder removed during the evaluation after a training",
        training(*EACH, test=True),
        "its folder was removed, .*; the last checkpoint is out/model_final.pth",
        first=in_evaluations(remove),
        then=whole("model_final.pth"),
    ),
]


@table(DISKS)
def test_disks(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)
