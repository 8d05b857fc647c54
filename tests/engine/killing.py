"""Trainings in separate processes that tests interrupt; a data set of two image shapes."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import yaml
from detectron2.utils import comm

from point_rend.cli import train
from point_rend.engine import trainer
from tests.tiny_datasets import POINTREND, REPOSITORY, TINY_MODEL, CocoSet, write_coco

PATIENCE = 300.0  # seconds to wait for a process


def write_mixed(folder: Path, *, images: int = 6) -> CocoSet:
    """Write a data set in which every second image is taller than wide."""
    written = write_coco(folder, images=images)
    content = written.read()
    upright = {image["id"]: image for image in content["images"][::2]}
    for image in upright.values():
        path = Path(written.image_root) / image["file_name"]
        image["width"] = image["height"] - 4
        cv2.imwrite(str(path), cv2.imread(str(path))[:, : image["width"]])
    kept = []
    for annotation in content["annotations"]:
        image = upright.get(annotation["image_id"])
        if image is None:
            kept.append(annotation)
        elif annotation["bbox"][0] + annotation["bbox"][2] < image["width"]:
            kept.append(annotation | cropped(annotation["segmentation"], image["width"]))
    written.rewrite(content | {"annotations": kept})
    return written


def cropped(segmentation: Any, width: int) -> dict[str, Any]:
    """Return the mask fields of an annotation, cropped to the columns left of `width`."""
    if isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
    mask = np.asfortranarray(mask_util.decode(segmentation)[:, :width])
    rle = mask_util.encode(mask)
    return {
        "segmentation": rle | {"counts": rle["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": mask_util.toBbox(rle).tolist(),
    }


def command(written: CocoSet, output: Path, *more: str) -> list[str]:
    """Build the arguments of a training with random sizes and flips, and with evaluations."""
    flags = ["--config-file", POINTREND, "--register-coco", "mixed", *written]
    names = ["DATASETS.TRAIN", "('mixed',)", "DATASETS.TEST", "('mixed',)"]
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(56, 64, 72)"]
    return ["--resume", *flags, *TINY_MODEL, *names, *sizes, "OUTPUT_DIR", str(output), *more]


# Forks start at once, but a process that has run a backward pass is no place to fork from: where
# torch sees a GPU it has a thread for it, which a fork lacks. This server only imports.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__, "tests.robustness.harness"])


class Run:
    """A command line of train_net.py in a separate process.

    Args:
        argv: Arguments of train_net.py.
        log: File for the output; output of earlier runs in it is kept.
        forked: Whether the process is a fork, which starts at once.
        first: Called in the fork before the command, for example to replace functions.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        forked: bool,
        first: Callable[[], None] | None = None,
    ) -> None:
        self.log = log
        self.start = log.stat().st_size if log.exists() else 0
        self.process: Any
        if forked:
            job = cloudpickle.dumps((list(argv), log, first, dict(os.environ)))
            self.process = SERVER.Process(target=_run_fork, args=(job,))
            self.process.start()
        else:
            words = [sys.executable, str(REPOSITORY / "train_net.py"), *argv]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            with log.open("a") as file:
                self.process = subprocess.Popen(words, stdout=file, stderr=file, env=environment)

    def output(self) -> str:
        return self.log.read_bytes()[self.start :].decode() if self.log.exists() else ""

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for a condition; fail if the run ends first."""
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < deadline, self.output()
            assert self._exit_code() is None, self.output()
            time.sleep(0.005)

    def wait_for_output(self, words: str) -> None:
        self.wait_until(lambda: words in self.output())

    def kill(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """Wait for the end; return the exit code, negative if a signal ended the process."""
        forked = isinstance(self.process, multiprocessing.process.BaseProcess)
        self.process.join() if forked else self.process.wait()
        code = self._exit_code()
        assert code is not None
        return code

    def _exit_code(self) -> int | None:
        forked = isinstance(self.process, multiprocessing.process.BaseProcess)
        return self.process.exitcode if forked else self.process.poll()


def _run_fork(job: bytes) -> None:
    """Run train_net.py, the body of a fork."""
    argv, log, first, environment = cloudpickle.loads(job)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.process._parent_process = None  # as in a process that a launcher has started
    code: Any = 1
    try:
        with log.open("a") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["train_net.py", *argv]
        if first is not None:
            first()
        train.main(argv)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.flush()
        os._exit(code)


def signal_itself(number: int, *, iteration: int, rank: int = 0) -> Callable[[], None]:
    """Return a function that makes its process signal itself within an iteration, on one rank."""

    def patch() -> None:
        def run_step(self: trainer.Trainer) -> None:
            original_step(self)
            if (self.iter, comm.get_rank()) == (iteration, rank):
                os.kill(os.getpid(), number)

        original_step = trainer.Trainer.run_step
        trainer.Trainer.run_step = run_step  # type: ignore[method-assign]

    return patch


LAUNCHERS = {
    "torchrun": {"RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "{rank}"},
    "srun": {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": "{rank}",
        "SLURM_LOCALID": "{rank}",
        "SLURM_STEP_NODELIST": "localhost",
    },
}


def start_two(
    launcher: str,
    argv: list[str],
    folder: Path,
    *,
    forked: bool = True,
    first: Callable[[], None] | None = None,
) -> list[Run]:
    """Start two ranks with the environment of a launcher; their logs are in a folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    runs = []
    for rank in range(2):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (LAUNCHERS[launcher] | rendezvous).items():
                patch.setenv(name, value.format(rank=rank))
            runs.append(Run(argv, folder / f"rank{rank}.txt", forked=forked, first=first))
    return runs


def final(output: Path) -> dict[str, Any]:
    """Read the last checkpoint of a finished training, without the keys that differ by run."""
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    checkpoint = torch.load(output / "model_final.pth", weights_only=True)
    config = yaml.safe_load(checkpoint["metadata"]["config"])
    assert config.pop("OUTPUT_DIR") == str(output)
    del config["DATALOADER"]["NUM_WORKERS"]
    checkpoint["metadata"]["config"] = config
    return checkpoint


def tagged_iteration(output: Path) -> int:
    """Return the iteration of the last checkpoint, which must be readable; -1 without one."""
    tag = output / "last_checkpoint"
    if not tag.exists():
        return -1
    return torch.load(output / tag.read_text(), weights_only=True)["iteration"]


def assert_identical(actual: Any, expected: Any, path: str = "") -> None:
    """Compare nested states, tensors bit by bit."""
    assert type(actual) is type(expected), path
    if isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype, path
        assert actual.shape == expected.shape, path
        assert torch.equal(actual, expected), path
    elif isinstance(expected, dict):
        assert list(actual) == list(expected), path
        for key, value in expected.items():
            assert_identical(actual[key], value, f"{path}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), path
        for number, value in enumerate(expected):
            assert_identical(actual[number], value, f"{path}/{number}")
    else:
        assert actual == expected, path


def spared(process: Any) -> bool:
    """Send SIGINT and SIGTERM to a process from another one; return whether it survives."""
    for number in (signal.SIGINT, signal.SIGTERM):
        subprocess.run(["kill", f"-{number:d}", str(process.pid)], check=True)
    process.join(0.3)
    return process.is_alive()
