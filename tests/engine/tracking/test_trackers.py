"""Trackers: the real packages without a network, interrupted runs, trackers that fail."""

import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from point_rend.cli import train
from point_rend.engine import trainer
from point_rend.engine.signals import STUCK_SECONDS
from point_rend.engine.tracking import trackers, writer
from point_rend.engine.tracking.trackers import allowed
from point_rend.engine.tracking.writer import TrackedRuns, TrackerWriter
from point_rend.utils.errors import TrainingStop
from tests.engine.killing import command
from tests.runs import metrics, refusal, set_up
from tests.tiny_datasets import CocoSet

pytestmark = pytest.mark.usefixtures("_restored")


def wandb_records(folder: Path) -> Iterator[Any]:
    """Records of all offline files of a training, in the order in which they were written."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in log_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            yield record


def log_records(log: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log: blocks of 32 KiB, parts with checksum, length and kind."""
    block, head, whole, last = 1 << 15, 7, 1, 4
    place, data = head, b""  # the file begins with a header of the same size
    while place + head <= len(log):
        if block - place % block < head:
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        data += log[place + head : place + head + length]
        place += head + length
        if kind in (whole, last):
            yield data
            data = b""


def history(records: list[Any]) -> list[dict[str, Any]]:
    """Items of the history by "/" joined keys."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in x.item}
        for x in (record.history for record in records if record.HasField("history"))
    ]


class Interrupting(trainer.Trainer):
    """Receives a signal in iteration 1."""

    def run_step(self) -> None:
        super().run_step()
        if self.iter == 1:
            raise TrainingStop("stopped by SIGTERM", exit_code=143)


def test_an_interrupted_training_continues_the_same_runs_with_config_metrics_and_pictures(
    mixed: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    output = tmp_path / "my run"
    more = ["LOGGING.WANDB", "True", "LOGGING.MLFLOW", "True", "LOGGING.PICTURES", "2"]
    argv = command(mixed, output, "SOLVER.MAX_ITER", "3", *more)
    with pytest.raises(SystemExit):
        train.main(argv, trainer=Interrupting)
    runs = json.loads((output / "tracking.json").read_text())
    client = MlflowClient()
    assert client.get_run(runs["mlflow"]).info.status == "KILLED"
    train.main(argv)
    assert json.loads((output / "tracking.json").read_text()) == runs

    (experiment,) = [x for x in client.search_experiments() if x.name == "point_rend"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (
        *(runs["mlflow"], "my run", "FINISHED"),
    )
    assert run.data.params["MODEL.POINT_HEAD.NAME"] == "StandardPointHead"
    assert run.data.params["SOLVER.MAX_ITER"] == "3"
    written = metrics(output)
    for name in ("total_loss", "lr", "segm/AP"):
        points = client.get_metric_history(runs["mlflow"], name)
        expected = [(x["iteration"], x[name]) for x in written if name in x]
        np.testing.assert_equal(sorted({(x.step, x.value) for x in points}), expected)
    images = [x.path for x in client.list_artifacts(runs["mlflow"], "images")]
    assert sum(x.endswith(".png") for x in images) == 2
    assert "config.yaml" in [x.path for x in client.list_artifacts(runs["mlflow"])]

    records = list(wandb_records(output))
    started = [x.run for x in records if x.HasField("run")]
    assert {x.run_id for x in started} == {runs["wandb"]}
    assert {(x.project, x.display_name) for x in started} == {("point_rend", "my run")}
    config = {x.key: x.value_json for record in records for x in record.config.update}
    config |= {x.key: x.value_json for start in started for x in start.config.update}
    assert json.loads(config["MODEL"])["POINT_HEAD"]["NAME"] == "StandardPointHead"
    items = history(records)
    for name in ("total_loss", "segm/AP"):
        sent = {x["_step"]: float(x[name]) for x in items if name in x}
        np.testing.assert_equal(sent, {x["iteration"]: x[name] for x in written if name in x})
    (last,) = [x for x in items if "predictions/000/_type" in x]
    kind, file_format = last["predictions/000/_type"], last["predictions/000/format"]
    assert (kind, file_format, last["_step"]) == ("image-file", "png", 3)
    assert len(list(output.glob("wandb/offline-run-*/files/media/images/predictions/*.png"))) == 2


def test_a_training_without_trackers_leaves_no_file_of_theirs(
    mixed: CocoSet, tmp_path: Path
) -> None:
    train.main(command(mixed, tmp_path / "output", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"))
    names = {x.name for x in (tmp_path / "output").iterdir()}
    assert not {"tracking.json", "wandb", "mlruns"} & names


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    mixed: CocoSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trackers, "find_spec", {}.get)
    message = refusal(command(mixed, tmp_path / "output", "LOGGING.WANDB", "True"), capsys)
    assert (
        'LOGGING.WANDB: wandb is not installed; install it with: pip install "point_rend[wandb]"'
        in message
    )


def test_a_tracker_that_cannot_start_ends_the_training_before_it_begins_in_one_line(
    mixed: CocoSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)  # MLflow then refuses the folder
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as ended:
        train.main(command(mixed, output, "LOGGING.MLFLOW", "True"))
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train_net.py: error: LOGGING.MLFLOW: MLflow cannot start (The ")
    assert "MLFLOW_ALLOW_FILE_STORE=true; or set LOGGING.MLFLOW False" in line
    assert (output / "metrics.json").read_bytes() == b""
    assert not (output / "tracking.json").exists()


class Planted:
    """A tracker that records what it gets, and fails at an iteration."""

    key, title, advice = "MLFLOW", "Planted", "nothing"

    def __init__(self, *, failing: int = -1) -> None:
        self.failing = failing
        self.sent: list[tuple[int, dict[str, float], list[str]]] = []
        self.exit_code: int | None = None

    def start(self, run: str | None) -> str:
        return run or "new"

    def log(
        self, iteration: int, metrics: Mapping[str, float], pictures: Mapping[str, np.ndarray]
    ) -> None:
        if iteration == self.failing:
            raise ConnectionError("the server\nis gone")
        self.sent.append((iteration, dict(metrics), list(pictures)))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_each_value_is_sent_once_in_the_order_of_the_iterations() -> None:
    tracker = Planted()
    sending = TrackerWriter(tracker)
    assert sending.start("old") == "old"
    with EventStorage() as storage:
        storage.put_scalar("a", 1.0, smoothing_hint=False)
        storage.put_image("p", np.zeros((3, 2, 2), np.uint8))
        storage.step()
        storage.put_scalar("b", 2.0, smoothing_hint=False)
        sending.write()
        storage.clear_images()
        sending.write()
        storage.step()
        storage.put_scalar("a", 3.0, smoothing_hint=False)
        sending.write()
    sending.finish(0)
    assert tracker.sent == [(0, {"a": 1.0}, ["p"]), (1, {"b": 2.0}, []), (2, {"a": 3.0}, [])]
    assert tracker.exit_code == 0


def test_a_tracker_that_fails_later_is_named_once_and_gets_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = Planted(failing=1)
    sending = TrackerWriter(tracker)
    sending.start(None)
    with EventStorage() as storage:
        for value in range(3):
            storage.put_scalar("a", value, smoothing_hint=False)
            sending.write()
            storage.step()
    sending.finish(0)
    assert [x[0] for x in tracker.sent] == [0]
    assert tracker.exit_code is None
    (message,) = [x for x in caplog.messages if "Planted" in x]
    assert "failed and gets nothing more (the server); the training goes on" in message


def test_a_training_that_stops_saves_before_it_sends_the_rest_and_ends_the_runs(
    tmp_path: Path,
) -> None:
    done: list[Any] = []

    class Slow(Planted):
        def log(self, *sent: Any) -> None:
            done.append(sent[0])

        def finish(self, exit_code: int) -> None:
            done.append(exit_code)

    sending = TrackerWriter(Slow())
    tracked = TrackedRuns({"planted": sending}, str(tmp_path))

    def train_and_stop() -> None:
        try:
            with EventStorage(7) as storage:
                storage.put_scalar("a", 1.0)
                raise TrainingStop("stopped", exit_code=143)
        except TrainingStop:
            with EventStorage(7) as storage:
                storage.put_scalar("a", 1.0)
                sending.write()
        done.append("saved")
        raise SystemExit(143)

    tracked.before_train()
    with pytest.raises(SystemExit), tracked.ending():
        train_and_stop()
    assert done == ["saved", 7, 143]


@pytest.mark.parametrize(
    ("end", "exit_code"),
    [(SystemExit(130), 130), (SystemExit(None), 0), (ValueError(), 1), (KeyboardInterrupt(), 1)],
)
def test_a_run_ends_with_the_exit_code_of_its_training(
    end: BaseException, exit_code: int, tmp_path: Path
) -> None:
    sending = TrackerWriter(tracker := Planted())
    tracked = TrackedRuns({"planted": sending}, str(tmp_path))
    tracked.before_train()
    with pytest.raises(type(end)), tracked.ending():
        raise end
    assert tracker.exit_code == exit_code


def test_a_server_that_does_not_answer_is_given_up_soon(
    mixed: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # it does not listen, so that connections are refused
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        for name in ("BACKOFF_FACTOR", "BACKOFF_JITTER"):  # each retry would wait
            monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "0")
        for name in trackers.BOUNDS:
            monkeypatch.delenv(name, raising=False)
        cfg = set_up(command(mixed, tmp_path, "LOGGING.MLFLOW", "True")).cfg
        sending = TrackerWriter(trackers.build_trackers(cfg)["mlflow"])
        with pytest.raises(TrainingStop, match=r"MLflow cannot start \(.*127.0.0.1") as stop:
            sending.start(None)
    assert (stop.value.exit_code, stop.value.saves) == (2, False)
    retries, seconds = (int(os.environ[name]) for name in trackers.BOUNDS)
    assert seconds * (1 + retries) < STUCK_SECONDS  # after which a signal ends without saving


@pytest.mark.parametrize("content", ["[", "[1]", '{"wandb": 1}'])
def test_a_file_of_runs_that_is_damaged_ends_the_training_in_one_line(
    tmp_path: Path, content: str
) -> None:
    (file := tmp_path / "tracking.json").write_text(content)
    with pytest.raises(TrainingStop) as stop:
        writer.read_runs(file)
    assert str(file) in stop.value.reason
    assert stop.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("segm/AP-café", "segm/AP-café"),
        ("a(b)?", "a_b__"),
        ("//a/../b/.", "a/b"),
    ],
)
def test_names_become_those_that_mlflow_allows(name: str, expected: str) -> None:
    assert allowed(name) == expected


def test_a_run_of_mlflow_that_is_gone_or_deleted_is_followed_by_a_new_one(
    mixed: CocoSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    cfg = set_up(command(mixed, tmp_path / "output", "LOGGING.MLFLOW", "True")).cfg

    def started(run: str | None) -> str:
        return trackers.build_trackers(cfg)["mlflow"].start(run)

    first = started("0" * 32)
    assert first != "0" * 32
    assert started(first) == first
    MlflowClient().delete_run(first)
    assert started(first) != first
    assert capsys.readouterr().out.count("or it is deleted: it continues as a new run") == 2


def test_all_processes_stop_together_where_a_tracker_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comm, "all_gather", lambda own: ["the reason", own])
    with pytest.raises(TrainingStop, match="the reason") as stop:
        TrackedRuns({}, str(tmp_path)).before_train()  # of a process other than the first
    assert (stop.value.exit_code, stop.value.saves, stop.value.together) == (2, False, True)
