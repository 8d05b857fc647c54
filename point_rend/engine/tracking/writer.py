"""The writers that feed trackers; a tracker that fails never ends a training that has begun."""

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage

from point_rend.engine.output_folder import RUNS_NAME
from point_rend.engine.tracking.trackers import Tracker, build_trackers
from point_rend.utils.errors import USER_ERROR, TrainingStop
from point_rend.utils.files import write_text
from point_rend.utils.json_files import read_json

WINDOW = 20  # iterations over which Detectron2's writers smooth losses

logger = logging.getLogger(__name__)


class TrackerWriter(EventWriter):
    """Sends a tracker the metrics of metrics.json, and the pictures of the storage.

    While a training stops nothing is sent: its checkpoint has to be saved first, and a server that
    does not answer takes its time.

    Args:
        tracker: The tracker, not started.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._is_running = False
        self._last = -1  # iteration of the last metrics
        self._last_picture = -1
        self._held: list[tuple[int, dict[str, float], dict[str, np.ndarray]]] = []

    def start(self, run: str | None) -> str:
        """Start a run or continue one, and return its identity.

        Raises:
            TrainingStop: If the tracker cannot; the training has not begun.
        """
        tracker = self.tracker
        try:
            identity = tracker.start(run)
        except Exception as error:  # of any kind: the network, an account, a database
            reason = (
                f"LOGGING.{tracker.key}: {tracker.title} cannot start ({first_line(error)}); to "
                f"record on this machine, {tracker.advice}; or set LOGGING.{tracker.key} False"
            )
            raise TrainingStop(reason, exit_code=USER_ERROR, saves=False) from error
        self._is_running = True
        return identity

    def write(self) -> None:
        """Send the news, or hold them if the training is stopping."""
        if not self._is_running:
            return
        storage = get_event_storage()
        news: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._last:
                news[iteration][name] = float(value)
        found = pictures_of(storage)  # the writer of TensorBoard's events removes them, if any does
        pictures = {i: found[i] for i in found if i > self._last_picture}
        for iteration in sorted({*news, *pictures}):
            self._held.append((iteration, news.get(iteration, {}), pictures.get(iteration, {})))
        self._last = max([self._last, *news])
        self._last_picture = max([self._last_picture, *pictures])
        if not isinstance(sys.exc_info()[1], TrainingStop):  # this is called while it is handled
            self._send()

    def _send(self) -> None:
        held, self._held = self._held, []
        try:
            for iteration, metrics, pictures in held:
                self.tracker.log(iteration, metrics, pictures)
        except Exception as error:  # of any kind, as at the start
            self._give_up(error)

    def finish(self, exit_code: int) -> None:
        """Send what is held and end the run; the exit code is that of the training."""
        if self._is_running:
            self._send()
        if not self._is_running:
            return
        self._is_running = False
        try:
            self.tracker.finish(exit_code)
        except Exception as error:  # of any kind, as at the start
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._is_running = False
        logger.warning(
            "%s failed and gets nothing more (%s); the training goes on, and its metrics are in "
            "metrics.json",
            self.tracker.title,
            first_line(error),
        )


class TrackedRuns(HookBase):
    """Starts the runs of the trackers before the training, or continues those of its folder.

    Args:
        writers: The writers, by the packages of their trackers.
        output_dir: Folder of the training, which keeps the identities of the runs.
    """

    def __init__(self, writers: Mapping[str, TrackerWriter], output_dir: str) -> None:
        self.writers = writers
        self._file = Path(output_dir, RUNS_NAME)

    def before_train(self) -> None:
        """Start all runs; all processes call this, and stop together.

        Raises:
            TrainingStop: If a tracker cannot start.
        """
        stop = None
        try:
            self._start()
        except TrainingStop as cause:
            stop = cause
        reason = comm.all_gather(stop and stop.reason)[0]
        if reason:
            raise TrainingStop(reason, exit_code=USER_ERROR, saves=False, together=True) from stop

    def _start(self) -> None:
        runs = read_runs(self._file) if self.writers else {}
        for package, writer in self.writers.items():
            identity = writer.start(runs.get(package))
            if runs.get(package) != identity:
                runs[package] = identity
                write_text(self._file, f"{json.dumps(runs)}\n")

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the runs after a block, with its exit code, when everything else has been done."""
        exit_code = 1
        try:
            yield
            exit_code = 0
        except SystemExit as end:
            exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise
        finally:
            for writer in self.writers.values():
                writer.finish(exit_code)


def build_tracker_writers(cfg: CfgNode) -> dict[str, TrackerWriter]:
    """Build a writer for each tracker that the config turns on, by the name of its package."""
    return {package: TrackerWriter(tracker) for package, tracker in build_trackers(cfg).items()}


def read_runs(file: Path) -> dict[str, str]:
    """Read the identities of the runs of a training, by the packages of their trackers.

    Raises:
        TrainingStop: If the file is not one of those that a training writes.
    """
    if not file.exists():
        return {}
    try:
        runs = read_json(file, what="list of runs")
    except ValueError as error:
        raise TrainingStop(str(error), exit_code=USER_ERROR, saves=False) from error
    if not isinstance(runs, dict) or not all(isinstance(x, str) for x in runs.values()):
        reason = f"{file}: expected the runs by tracker; delete it to begin new runs"
        raise TrainingStop(reason, exit_code=USER_ERROR, saves=False)
    return runs


def pictures_of(storage: EventStorage) -> dict[int, dict[str, np.ndarray]]:
    """Return the pictures of the storage by iteration and name, (H, W, 3) uint8 in RGB."""
    found: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
    pictures: Iterable[Any] = storage._vis_data
    for name, picture, iteration in pictures:
        found[iteration][name] = np.ascontiguousarray(np.asarray(picture).transpose(1, 2, 0))
    return found


def first_line(error: Exception) -> str:
    """Return the first line of an error, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:300] if lines else type(error).__name__
