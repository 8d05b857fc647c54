"""The two trackers, behind one interface.

Each follows its own environment variables, such as WANDB_MODE and MLFLOW_TRACKING_URI. Their
packages are imported when a run starts.
"""

import logging
import os
import re
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from detectron2.config import CfgNode

from point_rend.config.dumping import CONFIG_NAME, dump_config
from point_rend.utils.imports import not_installed

PARAMS_AT_ONCE = 100  # MLflow's limit, like those of the lengths
LONGEST_VALUE = 6000
METRICS_AT_ONCE = 1000
FORBIDDEN = re.compile(r"[^\w.\- :/]")  # in MLflow's names
BOUNDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}  # seconds
SIGNALED = 128  # exit codes from here on are those of signals

logger = logging.getLogger(__name__)


class Description(NamedTuple):
    """Description of a run.

    Attributes:
        project: Project of Weights & Biases, experiment of MLflow.
        name: Name of the run.
        folder: Folder of the training.
        config: Its config as dictionaries.
        text: Its config as config.yaml.
    """

    project: str
    name: str
    folder: str
    config: dict[str, Any]
    text: str


class Tracker(Protocol):
    """Records a training somewhere else.

    Attributes:
        key: Key below LOGGING that turns it on.
        title: Its name in messages.
        advice: A way to record without a server.
    """

    key: str
    title: str
    advice: str

    def start(self, run: str | None) -> str:
        """Start a run, or continue one.

        Args:
            run: Identity of the run to continue, or None.

        Returns:
            The identity of the run.
        """

    def log(
        self, iteration: int, metrics: Mapping[str, float], pictures: Mapping[str, np.ndarray]
    ) -> None:
        """Record metrics and pictures, (H, W, 3) uint8 in RGB, of an iteration."""

    def finish(self, exit_code: int) -> None:
        """End the run; the exit code is that of the training."""


class WandbTracker:
    """Weights & Biases.

    Args:
        described: Description of the run.
    """

    key = "WANDB"
    title = "Weights & Biases"
    advice = "set the environment variable WANDB_MODE=offline"

    def __init__(self, described: Description) -> None:
        self._described = described
        self._run: Any = None

    def start(self, run: str | None) -> str:
        """Start a run, or continue one, in the folder `wandb` of the training's folder."""
        import wandb

        settings = wandb.Settings(console="off", silent=True)  # log.txt has the console's lines
        self._run = wandb.init(
            project=self._described.project,
            name=self._described.name,
            dir=self._described.folder,
            id=run,
            resume="allow" if run else None,
            settings=settings,
        )
        # A continued training may have another SOLVER.MAX_ITER.
        self._run.config.update(self._described.config, allow_val_change=True)
        identity = str(self._run.id)
        logger.info("Weights & Biases records run %s of %s", identity, self._described.project)
        return identity

    def log(
        self, iteration: int, metrics: Mapping[str, float], pictures: Mapping[str, np.ndarray]
    ) -> None:
        """Record an iteration. Those of before a continuation are the same again, and ignored."""
        import wandb

        images = {name: wandb.Image(picture) for name, picture in pictures.items()}
        self._run.log({**metrics, **images}, step=iteration)

    def finish(self, exit_code: int) -> None:
        """End the run; a signal marks it as preempted."""
        if exit_code >= SIGNALED:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)


class MLflowTracker:
    """MLflow.

    Args:
        described: Description of the run.
    """

    key = "MLFLOW"
    title = "MLflow"
    advice = (
        "set the environment variables MLFLOW_TRACKING_URI to a folder, and "
        "MLFLOW_ALLOW_FILE_STORE=true"
    )

    def __init__(self, described: Description) -> None:
        self._described = described
        self._client: Any = None
        self._id = ""

    def start(self, run: str | None) -> str:
        """Start a run, or continue one that the tracking server knows."""
        from mlflow import MlflowClient

        # By default a call to a server that does not answer takes 4 minutes, or 18.
        for variable, value in BOUNDS.items():
            os.environ.setdefault(variable, value)
        self._client = client = MlflowClient()
        if run and self._continues(run):
            self._id = run
            client.update_run(run, status="RUNNING")
        else:
            project = self._described.project
            experiment = client.get_experiment_by_name(project)
            number = (
                client.create_experiment(project)
                if experiment is None
                else experiment.experiment_id
            )
            self._id = client.create_run(number, run_name=self._described.name).info.run_id
            self._log_params()
        client.log_text(self._id, self._described.text, CONFIG_NAME)
        logger.info("MLflow records run %s in %s", self._id, client.tracking_uri)
        return self._id

    def _continues(self, run: str) -> bool:
        from mlflow.entities import LifecycleStage
        from mlflow.exceptions import MlflowException

        try:
            if self._client.get_run(run).info.lifecycle_stage == LifecycleStage.ACTIVE:
                return True
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        logger.warning(
            "MLflow has no run %s in %s, where this training began, or it is deleted: it continues "
            "as a new run",
            run,
            self._client.tracking_uri,
        )
        return False

    def _log_params(self) -> None:
        from mlflow.entities import Param

        params = [
            Param(name, str(value)[:LONGEST_VALUE])
            for name, value in flat(self._described.config).items()
            if str(value)  # an empty one is no value to MLflow
        ]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=params[start : start + PARAMS_AT_ONCE])

    def log(
        self, iteration: int, metrics: Mapping[str, float], pictures: Mapping[str, np.ndarray]
    ) -> None:
        """Record an iteration."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(allowed(name), x, now, iteration) for name, x in metrics.items()]
        for start in range(0, len(values), METRICS_AT_ONCE):
            self._client.log_batch(self._id, metrics=values[start : start + METRICS_AT_ONCE])
        for name, picture in pictures.items():
            self._client.log_image(self._id, picture, key=allowed(name), step=iteration)

    def finish(self, exit_code: int) -> None:
        """End the run."""
        status = "KILLED" if exit_code >= SIGNALED else "FAILED" if exit_code else "FINISHED"
        self._client.set_terminated(self._id, status)


TRACKERS: dict[str, type[WandbTracker] | type[MLflowTracker]] = {
    "wandb": WandbTracker,
    "mlflow": MLflowTracker,
}


def check_trackers(cfg: CfgNode) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        ValueError: With the command that installs it.
    """
    for package, tracker in TRACKERS.items():
        if cfg.LOGGING[tracker.key] and find_spec(package) is None:
            raise ValueError(f"LOGGING.{tracker.key}: {not_installed(package, package)}")


def build_trackers(cfg: CfgNode) -> dict[str, Tracker]:
    """Build the trackers that the config turns on, by the names of their packages."""
    described = Description(
        cfg.LOGGING.PROJECT,
        cfg.LOGGING.NAME or Path(cfg.OUTPUT_DIR).absolute().name,
        cfg.OUTPUT_DIR,
        plain(cfg),
        dump_config(cfg),
    )
    return {
        package: tracker(described)
        for package, tracker in TRACKERS.items()
        if cfg.LOGGING[tracker.key]
    }


def plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a config into dictionaries."""
    return {
        key: plain(value) if isinstance(value, Mapping) else value for key, value in node.items()
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries by their dotted keys."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def allowed(name: str) -> str:
    """Replace what MLflow does not allow in the name of a metric or a picture."""
    parts = FORBIDDEN.sub("_", name).split("/")
    return "/".join(part for part in parts if part.strip("."))
