"""The output folder of a run: usable names, and no training over the files of another."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from point_rend.checkpoint.checkpointer import AVERAGED, BEST, FINAL, TAG, saved_by_training
from point_rend.config.checks import AVERAGED_RESULTS
from point_rend.config.dumping import CONFIG_NAME
from point_rend.utils.errors import USER_ERROR, say_error
from point_rend.utils.files import NotSavedError, check_output, check_writable
from point_rend.utils.locks import NAME as LOCK_NAME

METRICS_NAME = "metrics.json"
RUNS_NAME = "tracking.json"  # identities of the training's runs in trackers
LOG_NAME = "log.txt"
EVENTS = "events.out.tfevents.*"  # of TensorBoard
# All that a run writes under names of its own; the first are opened, the others replaced.
OPENED = (LOG_NAME, METRICS_NAME, LOCK_NAME)
FILES = (*OPENED, CONFIG_NAME, RUNS_NAME, *(f"{name}.pth" for name in (FINAL, AVERAGED, BEST)))
FOLDERS = ("inference", AVERAGED_RESULTS)
# Raised by a full disk, a quota, a file size limit and a read-only disk.
OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
MAX_LENGTH = 3000  # characters of a path, to which the names of files are added
NUM_SHOWN = 3  # files named in a message


def check_output_dir(output_dir: str) -> None:
    """Create the output folder and make sure that a run can write its files there.

    Raises:
        ValueError: If it cannot, or if the name is impossible or most probably a mistake.
    """
    reason = _fault_of_name(output_dir)
    if not reason:
        try:
            os.makedirs(output_dir, exist_ok=True)
            check_writable(output_dir)
            reason = _fault_of_files(Path(output_dir))
        except OSError as error:
            reason = f"cannot be written: {_reason(Path(output_dir), error)}"
    if reason:
        raise ValueError(f"OUTPUT_DIR {output_dir!a:.300} {reason}")


def check_output_name(output_dir: str) -> None:
    """Make sure, without changing anything, that :func:`check_output_dir` will accept a folder.

    Raises:
        ValueError: If it will not.
    """
    reason = _fault_of_name(output_dir)
    path = Path(output_dir)
    if not reason and path.is_dir():
        reason = _fault_of_files(path)
    if reason:
        raise ValueError(f"OUTPUT_DIR {output_dir!a:.300} {reason}")
    check_output(path, flag="OUTPUT_DIR", folder=True)


def _fault_of_name(output_dir: str) -> str:
    if not output_dir.strip():
        return "is empty: expected a folder"
    if len(os.path.abspath(output_dir)) > MAX_LENGTH:
        return f"is too long: expected a path of at most {MAX_LENGTH} characters"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in output_dir):
        return "has control characters: expected a name without them"
    try:
        output_dir.encode()
    except UnicodeEncodeError:
        return f"is not UTF-8, as {CONFIG_NAME} is, which names the folder"
    if "://" in output_dir:
        return "is a URL: expected a folder of this machine"
    if (home := os.path.expanduser(output_dir)) != output_dir:
        return f"begins with ~, which only a shell replaces: write {home}"
    if output_dir.endswith((".txt", ".log")):
        return "ends as the name of a log file, for which Detectron2 takes it: expected another"
    return ""


def _fault_of_files(folder: Path) -> str:
    """Return what stands in the place of a file or a folder of a run, or nothing."""
    for path in (folder / name for name in (*OPENED, *FOLDERS)):
        if path.is_symlink() and not path.exists():
            return f"cannot be used: {path} is a link to {os.readlink(path)}, which does not exist"
    if (folder / TAG).is_dir():
        return f"cannot be used: {folder / TAG} is a folder, expected a file or nothing"
    for path in (folder / name for name in FILES):
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a device or a pipe"
            return f"cannot be used: {path} is {kind}, expected a file or nothing"
    for path in (folder / name for name in FOLDERS):
        if path.exists() and not path.is_dir():
            return f"cannot be used: {path} is a file, expected a folder or nothing"
    return ""


def _reason(path: Path, error: OSError) -> str:
    """Return why a folder cannot be created or written."""
    for part in (path, *path.parents):
        if os.path.islink(part) and not os.path.exists(part):
            return f"{part} is a link to {os.readlink(part)}, which does not exist"
        if os.path.exists(part) and not os.path.isdir(part):
            return f"{part} is a {'file' if os.path.isfile(part) else 'device'}, not a folder"
    return error.strerror or str(error)


def check_unused(output_dir: str) -> None:
    """Refuse to start a training over the checkpoints or the metrics of an earlier one.

    Raises:
        ValueError: If the folder holds some.
    """
    found = files_of_training(Path(output_dir), events=False)
    if not found:
        return
    names = [path.name for path in found[:NUM_SHOWN]]
    more = f" and {len(found) - NUM_SHOWN} more files" if len(found) > NUM_SHOWN else ""
    raise ValueError(
        f"OUTPUT_DIR {output_dir!r} holds an earlier training ({', '.join(names)}{more}): pass "
        "--resume to continue it, --overwrite to delete it and start anew, or another OUTPUT_DIR"
    )


def check_config_file(output_dir: str, config_file: str) -> None:
    """Refuse a config file of the user in the place of the one that a training writes.

    That of an earlier training there is replaced.

    Raises:
        ValueError: If it would be replaced.
    """
    written = os.path.join(output_dir, CONFIG_NAME)
    is_it = os.path.exists(config_file) and os.path.exists(written)
    if is_it and os.path.samefile(config_file, written) and not files_of_training(Path(output_dir)):
        raise ValueError(
            f"--config-file is {config_file}, which a training in OUTPUT_DIR {output_dir!r} would "
            "replace: choose another OUTPUT_DIR"
        )


def check_overwritable(output_dir: str, inputs: Sequence[str]) -> None:
    """Refuse to delete a file that the new training reads, such as its MODEL.WEIGHTS.

    Raises:
        ValueError: If it would be deleted.
    """
    doomed = {os.path.realpath(path) for path in files_of_training(Path(output_dir))}
    for path in inputs:
        if os.path.realpath(path) in doomed:
            raise ValueError(
                f"--overwrite would delete {path}, which this training reads: copy it to another "
                "folder first, or choose another OUTPUT_DIR"
            )


def delete_training(output_dir: str) -> None:
    """Delete the checkpoints, the metrics and the TensorBoard events of an earlier training.

    What it has sent to trackers stays there; the new training begins new runs.

    Raises:
        OSError: If the operating system refuses.
    """
    for path in files_of_training(Path(output_dir)):
        path.unlink()


def files_of_training(folder: Path, *, events: bool = True) -> list[Path]:
    """List the checkpoints and the metrics that a training has left in a folder.

    Args:
        folder: The folder; it exists.
        events: Whether to list the files of TensorBoard, too.
    """
    names = [name for name in saved_by_training(folder) if not (folder / name).is_dir()]
    names += [TAG] * os.path.lexists(folder / TAG)
    metrics = folder / METRICS_NAME
    names += [METRICS_NAME] * (metrics.is_file() and metrics.stat().st_size > 0)
    names += [RUNS_NAME] * os.path.lexists(folder / RUNS_NAME)
    found = [folder / name for name in names]
    return [*found, *sorted(folder.glob(EVENTS))] if events else found


def output_fault(error: OSError, output_dir: str) -> str:
    """Return the reason for the end of a run if an error concerns its output, else nothing.

    Args:
        error: An error of the operating system.
        output_dir: OUTPUT_DIR of the run.
    """
    if isinstance(error, NotSavedError):
        return str(error)
    if isinstance(error, ConnectionError):  # with another process
        return ""
    named = error.filename if isinstance(error.filename, str | bytes) else output_dir
    path = Path(os.fsdecode(named)).absolute()
    is_inside = path.is_relative_to(Path(output_dir).absolute())
    if error.errno in OUTPUT_ERRORS or (is_inside and error.errno is not None):
        return str(NotSavedError(path, error))
    return ""


@contextlib.contextmanager
def output_errors(output_dir: str) -> Iterator[None]:
    """Report an output that cannot be written in one line; other errors keep their traceback.

    Raises:
        SystemExit: With code 2.
    """
    try:
        yield
    except OSError as error:
        reason = output_fault(error, output_dir)
        if not reason:
            raise
        say_error(reason)
        raise SystemExit(USER_ERROR) from error


class FolderGoneError(NotSavedError):
    """The output folder was removed or replaced during a run."""


class WatchedFolder:
    """A folder that a run writes to, which must stay the one that it was at the start.

    Args:
        path: The folder, which is created.
    """

    def __init__(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)
        self._path = path
        self._at_start = os.stat(path)

    def check(self) -> None:
        """Make sure that the folder is still there.

        Raises:
            FolderGoneError: If it was removed or replaced.
        """
        try:
            if os.path.samestat(os.stat(self._path), self._at_start):
                return
            error = OSError(errno.ENOENT, "it was replaced during the run")
        except OSError as gone:
            error = gone
        raise FolderGoneError(Path(self._path), error) from error
