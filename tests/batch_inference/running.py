"""Commands on planted models, in this process and in others that tests kill."""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch

from point_rend.cli import run_command
from point_rend.inference import run as run_module
from tests.cli.test_predict import Planted, write_pictures
from tests.engine.killing import LAUNCHERS, SERVER
from tests.tiny_datasets import POINTREND, TINY_MODEL

PATIENCE = 120.0


class Slow(Planted):
    """Takes a moment for each batch."""

    def __call__(self, images: Sequence[np.ndarray], *, batch_size: int) -> list[dict[str, Any]]:
        time.sleep(0.02 * len(images))
        return super().__call__(images, batch_size=batch_size)


def plant_slowly() -> None:
    run_module.Predictor = Slow  # type: ignore[misc, assignment]


def words(source: Path | str, output: Path, *more: object, shards: str = "jsonl") -> list[str]:
    """Return the options of a run with blocks of three images."""
    options = ["--config-file", POINTREND, "--input", source, "--output", output]
    options += ["--shards", shards, "--shard-size", 3, "--workers", 0, *more]
    return [*map(str, options), "--opts", *TINY_MODEL, "MODEL.WEIGHTS", "planted.pkl"]


def predict(source: Path | str, output: Path, *more: object, shards: str = "jsonl") -> int:
    """Run the command in this process; return the exit code."""
    try:
        run_command("predict", words(source, output, *more, shards=shards))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def contents(folder: Path) -> dict[str, bytes]:
    """Read the shards and the description of a run."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("sh*")) if path.is_file()}


def start(
    argv: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    first: Callable[[], None] = plant_slowly,
) -> multiprocessing.process.BaseProcess:
    """Start the command in another process, which has imported everything."""
    job = cloudpickle.dumps((list(argv), log, first, {**os.environ, **(environment or {})}))
    process = SERVER.Process(target=_run_fork, args=(job,))
    process.start()
    return process


def start_two(launcher: str, argv: Sequence[str], folder: Path) -> list[Any]:
    """Start two processes with the environment of a launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(
            argv,
            folder / f"rank{rank}.txt",
            environment={k: v.format(rank=rank) for k, v in LAUNCHERS[launcher].items()}
            | rendezvous,
        )
        for rank in range(2)
    ]


def kill_after(process: Any, output: Path, shards: int) -> None:
    """Kill a process by SIGKILL once a number of shards exists."""
    deadline = time.monotonic() + PATIENCE
    while len(list(output.glob("shard-*"))) < shards and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert process.is_alive(), "it has ended before the kill"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _run_fork(job: bytes) -> None:
    argv, log, first, environment = cloudpickle.loads(job)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined]
    code: Any = 1
    try:
        with log.open("a") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        first()
        run_command("predict", argv)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code or 0))


def pictures(folder: Path, number: int = 8) -> Path:
    """Write planted pictures."""
    return write_pictures(folder, range(number))
