"""One row of the table: a command on bad input, run with limits in a process of its own."""

import contextlib
import importlib
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import pytest
import torch

from point_rend import cli
from tests.engine.killing import SERVER

PREPARED = (
    "train",
    "evaluate",
    "predict",
    "merge",
    "refine",
    "visualize",
    "report",
    "score",
    "compare",
    "prepare_point_annotations",
)
for name in PREPARED:  # in the server, so that each fork has them
    importlib.import_module(f"point_rend.cli.{name}")

PATIENCE = 120.0  # seconds of a row on a busy machine, where its processor time is far from used up


class Row(NamedTuple):
    """A bad input and its expected end.

    Attributes:
        name: Identifies the row.
        prepare: Makes the files in an empty folder; returns the words of a `pointrend` command.
        line: Regular expression found in one line of the output; in the error's line if the exit
            code is that of a user error.
        exit_code: Exit code of the process.
        seconds: Limit of the processor time.
        gibibytes: Limit of the memory that is allocated after the imports.
        first: Called in the process before the command, for example to make a disk full.
        then: Called with the folder after the end, for example to assert that nothing is lost.
    """

    name: str
    prepare: Callable[[Path], Sequence[str | Path]]
    line: str
    exit_code: int = 2
    seconds: float = 10
    gibibytes: float = 2
    first: Callable[[], None] | None = None
    then: Callable[[Path], None] | None = None


def table(rows: Iterable[Row]) -> Any:
    """Parametrize a test by rows."""
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in rows])


class Outcome(NamedTuple):
    """The end of a command; the exit code is negative if a signal ended it."""

    exit_code: int
    output: str
    errors: str


def run_row(row: Row, folder: Path) -> None:
    """Run a row in a folder, which must be empty, and assert its end."""
    argv = [str(word) for word in row.prepare(folder)]
    outcome = run_command(argv, folder, row.seconds, row.gibibytes, row.first)
    report = f"{outcome.output}\n{outcome.errors}"
    assert "Traceback" not in report, report
    assert outcome.exit_code == row.exit_code, f"exit code {outcome.exit_code}\n{report}"
    lines = report.splitlines()
    if row.exit_code == 2:
        lines = [line for line in lines if re.match(r"pointrend [\w-]+: error: ", line)]
        assert len(lines) == 1, report
        assert outcome.errors.rstrip().endswith(lines[0]), report
    assert any(re.search(row.line, line) for line in lines), report
    if row.then is not None:
        row.then(folder)


def run_command(
    argv: Sequence[str],
    folder: Path,
    seconds: float = 10,
    gibibytes: float = 2,
    first: Callable[[], None] | None = None,
) -> Outcome:
    """Run a `pointrend` command in a fork of a process that has imported everything.

    Args:
        argv: The words after `pointrend`.
        folder: Working directory.
        seconds: Limit of the processor time; the fork is killed beyond it.
        gibibytes: Limit of the memory that the fork allocates.
        first: Called in the fork before the command.
    """
    streams = folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err"
    # The server keeps the environment of the test that happened to start it.
    environment = dict(os.environ)
    job = cloudpickle.dumps((list(argv), folder, streams, seconds, gibibytes, first, environment))
    process = SERVER.Process(target=_run_fork, args=(job,))
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
    texts = [x.read_text(errors="replace") for x in streams]
    # Workers of torch that end by a signal write a null character after their message.
    return Outcome(process.exitcode, *(text.replace("\0", "") for text in texts))


def _run_fork(job: bytes) -> None:
    """Run the command, the body of a fork."""
    argv, folder, streams, seconds, gibibytes, first, environment = cloudpickle.loads(job)
    os.environ.clear()
    os.environ.update(environment)
    code: Any = 1
    try:
        for descriptor, file in enumerate(streams, start=1):
            opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(folder)
        torch.set_num_threads(1)
        _limit(seconds, gibibytes)
        sys.argv = ["pointrend", *argv]
        if first is not None:
            first()
        cli.main(argv)
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code if isinstance(code, int) else 1)


def _limit(seconds: float, gibibytes: float) -> None:
    """Limit the processor time and the memory of this process from here on."""
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 1, hard))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    held = int(status["VmData"].split()[0]) << 10
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + int(gibibytes * 2**30), hard))
