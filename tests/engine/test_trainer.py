"""Trainings that end early: signals, full disks, broken images, failing evaluations."""

import functools
import os
import random
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.engine import hooks
from detectron2.utils import comm

from point_rend.checkpoint.checkpointer import TAG
from point_rend.cli import train
from point_rend.engine import run, trainer
from point_rend.engine.trainer import resume_command
from point_rend.utils.errors import TrainingStop
from tests.engine.killing import (
    Run,
    command,
    signal_itself,
    tagged_iteration,
    write_mixed,
)
from tests.runs import limit_files, set_up
from tests.tiny_datasets import CocoSet

ENDLESS = ["SOLVER.MAX_ITER", "1000000", "SOLVER.CHECKPOINT_PERIOD", "1000000"]


pytestmark = pytest.mark.usefixtures("_restored")


def last_line(run: Run) -> str:
    line = run.output().splitlines()[-1]
    assert line.startswith("train_net.py: ")
    return line


def test_a_resumed_training_ends_with_the_random_states_of_an_uninterrupted_one(
    mixed: CocoSet, tmp_path: Path
) -> None:
    def states_after(output: Path, iterations: int) -> list[Any]:
        more = ["DATASETS.TEST", "()", "SOLVER.MAX_ITER", str(iterations)]
        train.main(command(mixed, output, *more))
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]

    uninterrupted = states_after(tmp_path / "uninterrupted", 3)
    states_after(tmp_path / "resumed", 2)
    resumed = states_after(tmp_path / "resumed", 3)
    assert resumed[:2] == uninterrupted[:2]
    assert torch.equal(resumed[2], uninterrupted[2])


def test_a_signal_saves_the_iteration_and_prints_the_resuming_command(
    mixed: CocoSet, tmp_path: Path
) -> None:
    argv = command(mixed, tmp_path / "output", *ENDLESS)
    run = Run(argv, tmp_path / "log.txt", forked=True)
    run.wait_for_output("Starting training")
    run.kill(signal.SIGINT)
    assert run.end() == 128 + signal.SIGINT
    assert "Traceback" not in run.output()
    saved = tagged_iteration(tmp_path / "output")
    line = last_line(run)
    assert line.startswith("train_net.py: stopped by SIGINT; the last checkpoint is ")
    assert f"model_{saved:07d}.pth; resume with: " in line
    interpreter, script, *words = shlex.split(line.partition("resume with: ")[2])
    assert os.access(interpreter, os.X_OK)
    assert (script, words) == ("train_net.py", argv)


def test_a_signal_saves_the_iteration_even_if_nobody_reads_the_output_any_more(
    mixed: CocoSet, tmp_path: Path
) -> None:
    def lose_the_reader() -> None:
        reader, writer = os.pipe()
        os.close(reader)  # like a `tee` that Ctrl-C ended as well
        for descriptor in (1, 2):
            os.dup2(writer, descriptor)
        interrupt()

    interrupt = signal_itself(signal.SIGINT, iteration=1)
    argv = command(mixed, tmp_path / "output", *ENDLESS)
    run = Run(argv, tmp_path / "log.txt", forked=True, first=lose_the_reader)
    assert run.end() == 128 + signal.SIGINT
    assert tagged_iteration(tmp_path / "output") == 1


@pytest.mark.parametrize(
    "schedule", [[*ENDLESS, "TEST.EVAL_PERIOD", "2"], ["SOLVER.MAX_ITER", "2"]]
)
def test_a_signal_ends_an_evaluation_at_once_and_saves_the_last_iteration(
    schedule: list[str], mixed: CocoSet, tmp_path: Path
) -> None:
    def test(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        print("the evaluation goes on")

    def evaluate_so() -> None:
        trainer.Trainer.test = test

    argv = command(mixed, tmp_path / "output", *schedule)
    run = Run(argv, tmp_path / "log.txt", forked=True, first=evaluate_so)
    assert run.end() == 128 + signal.SIGTERM
    assert "the evaluation goes on" not in run.output()
    assert "stopped by SIGTERM" in last_line(run)
    assert tagged_iteration(tmp_path / "output") == 1
    assert len(list((tmp_path / "output").glob("*.pth"))) == 1


def test_a_signal_while_saving_does_not_truncate_the_file(mixed: CocoSet, tmp_path: Path) -> None:
    def save_under_a_signal() -> None:
        def save(*arguments: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            original_save(*arguments)

        original_save = torch.save
        torch.save = save

    argv = command(mixed, tmp_path / "output", *ENDLESS, "SOLVER.CHECKPOINT_PERIOD", "2")
    run = Run(argv, tmp_path / "log.txt", forked=True, first=save_under_a_signal)
    assert run.end() == 128 + signal.SIGTERM
    assert tagged_iteration(tmp_path / "output") == 1
    assert [path.name for path in (tmp_path / "output").glob("*.pth")] == ["model_0000001.pth"]


def test_a_failing_evaluation_loses_no_iteration(
    mixed: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def test(*_: Any) -> None:
        raise RuntimeError("no such metric")

    monkeypatch.setattr(trainer.Trainer, "test", test)
    argv = command(mixed, tmp_path / "output", *ENDLESS, "TEST.EVAL_PERIOD", "2")
    with pytest.raises(RuntimeError, match="no such metric"):
        train.main(argv)
    assert tagged_iteration(tmp_path / "output") == 1


def test_a_full_disk_ends_a_training_with_one_line_that_names_the_file(
    mixed: CocoSet, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    argv = command(mixed, output, *ENDLESS, "SOLVER.CHECKPOINT_PERIOD", "2")
    run = Run(
        argv, tmp_path / "log.txt", forked=True, first=functools.partial(limit_files, 1_000_000)
    )
    assert run.end() == 2
    assert "Traceback" not in run.output()
    line = last_line(run)
    assert line.startswith(
        f"train_net.py: error: {output / 'model_0000001.pth'} could not be saved"
    )
    assert "resume with: " in line
    assert not list(output.glob("*.pth"))
    assert not list(output.glob(".*"))


def saved_state(output: Path) -> dict[str, Any]:
    """Return the state of the training in the last checkpoint."""
    return torch.load(output / (output / TAG).read_text(), weights_only=True)["trainer"]


def train_with_a_broken_image(tmp_path: Path, *more: str) -> str:
    """Train on a data set in which an image breaks after the start; return its path."""
    written = write_mixed(tmp_path / "broken")
    argv = command(written, tmp_path / "output", *more)
    job = set_up(argv)
    path = Path(written.image_root) / "003.png"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train_net.py", *argv])
        run.run(*job)
    return str(path)


@pytest.mark.parametrize("batches", [1, 3])
def test_a_broken_image_ends_a_training_with_its_name_and_loses_no_iteration(
    batches: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["SOLVER.IMS_PER_BATCH", "1", "SOLVER.ACCUMULATION_STEPS", str(batches)]
    with pytest.raises(SystemExit) as ended:
        train_with_a_broken_image(tmp_path, *ENDLESS, *more)
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train_net.py: error: image 4, file ")
    assert "003.png" in line
    assert "DATALOADER.ON_CORRUPT_IMAGE skip" in line
    iteration = tagged_iteration(tmp_path / "output")
    state = saved_state(tmp_path / "output")
    assert state["iteration"] == iteration
    assert state["data"]["batches"] == batches * (iteration + 1)


def test_a_failure_in_precise_bn_keeps_the_last_checkpoint(
    mixed: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update_stats(_: hooks.PreciseBN) -> None:
        raise TrainingStop("file 003.png cannot be used", exit_code=2)

    monkeypatch.setattr(hooks.PreciseBN, "update_stats", update_stats)
    more = ["TEST.PRECISE_BN.ENABLED", "True", "TEST.EVAL_PERIOD", "2"]
    more += ["SOLVER.CHECKPOINT_PERIOD", "1", "DATASETS.TEST", "()"]
    with pytest.raises(SystemExit):
        train.main(command(mixed, tmp_path / "output", *ENDLESS, *more))
    assert tagged_iteration(tmp_path / "output") == 0
    saved = torch.load(tmp_path / "output" / "model_0000000.pth", weights_only=True)
    assert saved["trainer"]["data"]["batches"] == 1


def test_a_broken_image_may_be_skipped(tmp_path: Path) -> None:
    more = ["SOLVER.MAX_ITER", "4", "DATASETS.TEST", "()", "DATALOADER.ON_CORRUPT_IMAGE", "skip"]
    path = train_with_a_broken_image(tmp_path, *more)
    log = (tmp_path / "output" / "log.txt").read_text()
    assert f"Skipped, number 1 of this run: image 4, file {path}" in log
    assert (tmp_path / "output" / "model_final.pth").exists()


def test_resuming_under_torchrun_names_no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", "a b.yaml"])
    words = "train_net.py --resume --config-file 'a b.yaml'"
    assert resume_command() == f"{shlex.quote(sys.executable)} {words}"
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    assert resume_command() == f"<the same launcher> {shlex.quote(sys.executable)} {words}"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert resume_command() == f"torchrun <with the same options> {words}"


def test_an_unknown_value_of_on_corrupt_image_is_refused(mixed: CocoSet, tmp_path: Path) -> None:
    argv = command(mixed, tmp_path / "output", "DATALOADER.ON_CORRUPT_IMAGE", "ignore")
    with pytest.raises(ValueError, match="ON_CORRUPT_IMAGE must be stop or skip, got 'ignore'"):
        set_up(argv)
