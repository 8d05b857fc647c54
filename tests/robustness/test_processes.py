"""Rows of bad days of processes: signals, workers that die or hang, launchers that err."""

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from point_rend.data.mapper import NamingDatasetMapper
from point_rend.engine import signals, trainer
from tests.engine.killing import PATIENCE, command, tagged_iteration, write_mixed
from tests.robustness.harness import Row, run_row, table

Act = Callable[[], Any]

WORKERS = ("DATALOADER.NUM_WORKERS", "2")
ENDLESS = ("SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "100000")
NO_TEST = ("DATASETS.TEST", "()", "TEST.EVAL_PERIOD", "0")
STOPPED = r"pointrend train: stopped by {}; the last checkpoint is .*; resume with: "


def training(*more: str, options: Sequence[str] = ()) -> Callable[[Path], Sequence[str]]:
    """Return a function that prepares the command line of a training."""

    def prepare(folder: Path) -> Sequence[str]:
        written = write_mixed(folder / "set", images=3)
        return ["train", *options, *command(written, folder / "output", *more)]

    return prepare


def evaluation(*more: str) -> Callable[[Path], Sequence[str]]:
    """Return a function that prepares the command line of an evaluation."""
    return training(*more, options=["--eval-only"])


# Moments


def after_iteration(act: Act) -> Act:
    """Act within the step of iteration 1, after it has changed the weights."""

    def first() -> None:
        def run_step(self: trainer.Trainer) -> None:
            original(self)
            if self.iter == 1:
                act()

        original = trainer.Trainer.run_step
        trainer.Trainer.run_step = run_step  # type: ignore[method-assign]

    return first


def while_starting(act: Act) -> Act:
    """Act while the model is built."""

    def first() -> None:
        def build(*_: Any) -> None:
            act()
            pytest.fail("the command goes on")

        trainer.Trainer.build_model = build  # type: ignore[method-assign]

    return first


def while_reading(act: Callable[[int], Any]) -> Act:
    """Act in the process that reads the fifth image, in the main process or in each worker."""

    def first() -> None:
        def read(self: NamingDatasetMapper, record: dict[str, Any]) -> dict[str, Any]:
            records.append(record)
            if len(records) == 5:
                act(main)
            return original(self, record)

        main = os.getpid()
        records: list[dict[str, Any]] = []
        original = NamingDatasetMapper.__call__
        NamingDatasetMapper.__call__ = read  # type: ignore[method-assign]
        signals.READING_SECONDS = 0.2

    return first


# Acts


def signals_itself(number: int) -> Act:
    """Return a function by which a process signals itself."""
    return lambda: os.kill(os.getpid(), number)


def kills_workers(number: int) -> Act:
    """Return a function that ends the data workers by a signal."""

    def act() -> None:
        for worker in active_children():
            assert worker.pid is not None
            os.kill(worker.pid, number)

    return act


def reads_forever(main: int) -> None:
    """Signal the main process, then read what never comes."""
    reader, _writer = os.pipe()
    os.kill(main, signal.SIGTERM)
    os.read(reader, 1)


def workers_are_signaled_at_birth() -> None:
    """Signal every worker as soon as it exists, as a signal to the process group does."""

    def bootstrap(self: BaseProcess, *args: Any, **more: Any) -> Any:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        return original(self, *args, **more)

    original = BaseProcess._bootstrap  # type: ignore[attr-defined]
    BaseProcess._bootstrap = bootstrap  # type: ignore[attr-defined]


def evaluation_is_signaled_at_a_fork() -> None:
    """Signal the main process between the start of one worker of an evaluation and the next."""

    def test(*arguments: Any) -> Any:
        tests.append(arguments)
        return original(*arguments)

    tests: list[Any] = []
    original = trainer.Trainer.test.__func__  # type: ignore[attr-defined]
    trainer.Trainer.test = classmethod(test)  # type: ignore[assignment,method-assign]
    os.register_at_fork(after_in_parent=lambda: tests and os.kill(os.getpid(), signal.SIGTERM))


def environment(**values: str) -> Act:
    """Return a function that sets variables of the environment."""
    return lambda: os.environ.update(values)


def port_in_use() -> None:
    """Set the environment of a launcher whose port another program uses."""
    other = socket.create_server(("127.0.0.1", 0))
    occupied.append(other)
    port = str(other.getsockname()[1])
    environment(**TORCHRUN | {"MASTER_PORT": port})()


occupied: list[socket.socket] = []
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


# Ends


def iteration_is_saved(iteration: int) -> Callable[[Path], None]:
    """Return a check of the last checkpoint, and that no process is left."""

    def then(folder: Path) -> None:
        assert tagged_iteration(folder / "output") == iteration
        none_is_left(folder)

    return then


def none_is_left(folder: Path) -> None:
    """Check that no process works in the folder any more: the workers have it from the command."""
    deadline = time.monotonic() + PATIENCE
    while working := [x for x in Path("/proc").glob("[0-9]*") if works_in(x, folder)]:
        assert time.monotonic() < deadline, working
        time.sleep(0.05)


def works_in(process: Path, folder: Path) -> bool:
    """Return whether a folder is the working directory of a process."""
    try:
        return os.readlink(process / "cwd") == str(folder)
    except OSError:
        return False


ROWS = [
    *(
        Row(
            f"{name} in a training",
            training(*ENDLESS, *NO_TEST),
            STOPPED.format(name),
            exit_code=128 + getattr(signal, name),
            first=after_iteration(signals_itself(getattr(signal, name))),
            then=iteration_is_saved(1),
        )
        for name in ("SIGHUP", "SIGUSR1")
    ),
    *(
        Row(
            f"{name} while a training starts",
            training(),
            f"^pointrend train: {words} outside of the training loop: nothing is lost$",
            exit_code=128 + getattr(signal, name),
            first=while_starting(signals_itself(getattr(signal, name))),
        )
        for name, words in [
            ("SIGTERM", "stopped by SIGTERM"),
            ("SIGHUP", "stopped by SIGHUP"),
            ("SIGUSR1", "stopped by SIGUSR1"),
            ("SIGINT", "interrupted"),
        ]
    ),
    Row(
        "SIGTERM while an evaluation starts",
        evaluation(),
        "^pointrend train: stopped by SIGTERM$",
        exit_code=143,
        first=while_starting(signals_itself(signal.SIGTERM)),
    ),
    Row(
        "a signal while an evaluation starts its workers",
        training(*ENDLESS, "TEST.EVAL_PERIOD", "2", *WORKERS),
        STOPPED.format("SIGTERM"),
        exit_code=143,
        first=evaluation_is_signaled_at_a_fork,
        then=iteration_is_saved(1),
    ),
    Row(
        "signals to workers that have just started",
        evaluation(*WORKERS),
        "copypaste: AP,",
        exit_code=0,
        first=workers_are_signaled_at_birth,
        then=none_is_left,
    ),
    *(
        Row(
            f"a read that never returns, {workers} workers",
            training(*ENDLESS, *NO_TEST, "DATALOADER.NUM_WORKERS", workers),
            STOPPED.format("SIGTERM"),
            exit_code=143,
            first=while_reading(reads_forever),
            then=none_is_left,
        )
        for workers in ("0", "1")
    ),
    *(
        Row(
            f"workers that end by {name}",
            training(*ENDLESS, *NO_TEST, *WORKERS),
            rf"data worker [12] of 2 \(process \d+\) was .* by {name}, {cause}.* lower "
            "DATALOADER.NUM_WORKERS.*; the last checkpoint is .*model_0000",
            first=after_iteration(kills_workers(getattr(signal, name))),
            then=none_is_left,
        )
        for name, cause in [
            ("SIGKILL", "as the system does when memory runs out:"),
            ("SIGBUS", "usually because the shared memory is full:"),
        ]
    ),
    Row(
        "RANK without WORLD_SIZE",
        training(),
        "the environment has RANK, but not WORLD_SIZE",
        first=environment(RANK="0"),
    ),
    *(
        Row(
            f"{name} {value}",
            training(),
            f"(environment variable {name}: expected|the launcher set RANK to ).*{value}",
            first=environment(**TORCHRUN | {name: value}),
        )
        for name, value in [
            ("WORLD_SIZE", "two"),
            ("WORLD_SIZE", "-2"),
            ("WORLD_SIZE", "1" * 30),
            ("RANK", "2"),
            ("RANK", "1.0"),
            ("LOCAL_RANK", "7"),
            ("MASTER_PORT", "http"),
            ("MASTER_PORT", "99999"),
        ]
    ),
    Row(
        "srun without its machines",
        training(),
        "srun did not set SLURM_STEP_NODELIST",
        first=environment(**SRUN),
    ),
    Row(
        "a rendezvous at a port in use",
        training(),
        r"cannot meet the others at 127.0.0.1:\d+ \(MASTER_ADDR, MASTER_PORT\): another program",
        first=port_in_use,
    ),
    *(
        Row(
            f"--num-gpus {number:.6}",
            training(options=["--num-gpus", number]),
            "--num-gpus: expected (a number, 0 or more|at most 4 digits), got",
        )
        for number in ("-1", "100000", "two", "9" * 5000)
    ),
    Row(
        "more machines than ranks",
        training(options=["--num-machines", "-2"]),
        "expected 1 machine or more",
    ),
]


@table(ROWS)
def test_a_bad_day_of_processes_ends_with_one_line(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)
