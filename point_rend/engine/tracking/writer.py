"""The writers that feed trackers; a tracker that fails never ends a training that has begun."""

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import HookBase
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

    Args:
        tracker: The tracker, not started.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._is_running = False
        self._last = -1  # iteration that was sent

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
        """Send what is new."""
        if not self._is_running:
            return
        storage = get_event_storage()
        news: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(WINDOW).items():
            if iteration > self._last:
                news[iteration][name] = float(value)
        pictures = pictures_of(storage)
        for iteration in pictures:
            news.setdefault(iteration, {})
        for iteration in sorted(news):
            self._send(iteration, news[iteration], pictures.get(iteration, {}))
            self._last = max(self._last, iteration)

    def _send(
        self, iteration: int, metrics: Mapping[str, float], pictures: Mapping[str, np.ndarray]
    ) -> None:
        if self._is_running:
            try:
                self.tracker.log(iteration, metrics, pictures)
            except Exception as error:  # of any kind, as at the start
                self._give_up(error)

    def close(self) -> None:
        """End the run, with the exit code of the training."""
        if not self._is_running:
            return
        self._is_running = False
        stop = sys.exc_info()[1]  # this is called while it is handled
        exit_code = 0 if stop is None else getattr(stop, "exit_code", 1)
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


class StartTrackers(HookBase):
    """Starts the runs of the trackers before the training, or continues those of its folder.

    Args:
        writers: The writers, by the packages of their trackers.
        output_dir: Folder of the training, which keeps the identities of the runs.
    """

    def __init__(self, writers: Mapping[str, TrackerWriter], output_dir: str) -> None:
        self._writers = writers
        self._file = Path(output_dir, RUNS_NAME)

    def before_train(self) -> None:
        """Start all runs.

        Raises:
            TrainingStop: If a tracker cannot start.
        """
        runs = read_runs(self._file)
        for package, writer in self._writers.items():
            identity = writer.start(runs.get(package))
            if runs.get(package) != identity:
                runs[package] = identity
                write_text(self._file, f"{json.dumps(runs)}\n")


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
