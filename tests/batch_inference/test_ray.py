"""Prediction on a real Ray of two nodes on this machine, one of which is lost in the middle."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import psutil
import pytest

from point_rend import Predictor
from point_rend.batch_inference import ray_actors, ray_cluster, ray_pipeline
from point_rend.batch_inference.decoding import decode
from point_rend.batch_inference.manifest import Manifest, read_manifest
from point_rend.batch_inference.records import Record, RecordFormat
from point_rend.batch_inference.run import records_of
from point_rend.batch_inference.shards import Run
from point_rend.cli import run_command
from tests.cli.test_predict import THREE_CLASSES, checkpoint_of
from tests.inference.test_pickling import predictor_of
from tests.inference.test_predictor import scene
from tests.tiny_datasets import (
    KINDS,
    POINTREND,
    TINY_MODEL,
    process_state_restored,
)

IMAGES, BLOCK = 25, 10
BROKEN = (3, 17)  # positions
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
Shards = dict[int, list[Record]]
Work = tuple[Predictor, Run, Manifest]


def ray_processes() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray of two nodes with a CPU each; this process is connected to the first."""
    # A handler of Ray for SIGTERM would keep forks of later tests from ending.
    with ray_cluster.own_handlers(), pytest.MonkeyPatch.context() as patch:
        for name, value in (ray_cluster.QUIET | ray_cluster.LOCAL).items():
            patch.setenv(name, value)
        ray = ray_cluster.import_ray()
        from ray.cluster_utils import Cluster

        Path("/tmp/ray").mkdir(exist_ok=True)  # which the cluster takes for granted
        before = ray_processes()
        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        try:
            cluster.add_node(**NODE)
            ray.init(cluster.address, log_to_driver=False, logging_level="CRITICAL")
            yield cluster
        finally:
            started = ray_processes() - before
            ray.shutdown()
            cluster.shutdown()
            for process in ray_cluster.survivors(started, 30):
                process.kill()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images of which two cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    for k in range(IMAGES):
        cv2.imwrite(str(folder / f"{k:03d}.png"), scene(k % 7))
    for k in BROKEN:
        (folder / f"{k:03d}.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[Work]:
    """A tiny model and a run."""
    with process_state_restored():
        predictor = predictor_of(tmp_path_factory.mktemp("model"), paste_masks=False)
        manifest = read_manifest(str(images))
        yield predictor, Run(len(manifest), BLOCK, "jsonl", ["instances"], [], {}), manifest


def of_one_process(
    predictor: Predictor, run: Run, manifest: Manifest, batch_size: int = 1
) -> Shards:
    record_format = RecordFormat(predictor.metadata)
    shards = {}
    for number in range(run.shards):
        items = [manifest[k] for k in run.block(number)]
        images = [decode(item.uri) for item in items]
        shards[number] = records_of(items, images, predictor, record_format, batch_size=batch_size)
    return shards


def of_ray(work: Work, blocks: Any = None, advance: Any = lambda _: None, **options: Any) -> Shards:
    predictor, run, manifest = work
    numbers = range(run.shards) if blocks is None else blocks
    job = ray_pipeline.Job(predictor, **options)
    with ray_cluster.ray_cluster() as ray:
        found = list(ray_pipeline.segment_blocks(ray, job, run, manifest, numbers, advance=advance))
    assert len(found) == len(dict(found)), "a block came twice"
    return dict(found)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_records_are_those_of_one_process(work: Work):
    counts: list[int] = []
    shards = of_ray(work, batch_size=4, advance=counts.append)
    assert sum(counts) == IMAGES
    assert shards == of_one_process(*work, batch_size=4)
    errors = [x["error"] for number in sorted(shards) for x in shards[number]]
    assert [k for k, error in enumerate(errors) if error] == list(BROKEN)
    assert any(x["annotations"] for records in shards.values() for x in records)


@pytest.mark.slow
def test_a_lost_machine_costs_nothing_but_time(
    cluster: Any, work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ray_pipeline, "PIECE_IMAGES", 1)
    lost: list[Any] = []

    def lose(_: int) -> None:
        if not lost:
            lost.extend(cluster.worker_nodes)
            cluster.remove_node(lost[0], allow_graceful=False)

    try:
        shards = of_ray(work, blocks=[0, 2], advance=lose)
    finally:
        cluster.add_node(**NODE)
    assert lost
    expected = of_one_process(*work)
    assert shards == {number: expected[number] for number in (0, 2)}
    assert len(capsys.readouterr().err.splitlines()) <= ray_pipeline.TRIES


@pytest.mark.usefixtures("cluster")
def test_a_model_that_a_worker_cannot_load_is_an_error_in_one_line(work: Work):
    ray = ray_cluster.import_ray()
    manifest = work[2]
    actor = ray_actors.ModelActor(ray.put(_Refusing()), "cpu", 1, None, 1)
    row = ray_actors.row_of(ray_actors.Piece(0, 0, 1), (manifest[:1], [None]))
    _, fault = ray_actors.content_of(actor(row))
    assert "cannot run the model" in fault
    assert "the worker lacks something" in fault
    assert "\n" not in fault


class _Refusing:
    """Fails where it is unpickled."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("the worker lacks something")


# The command


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_command_completes_the_shards_of_one_process_with_the_same_bytes(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
):
    weights = checkpoint_of(tmp_path / "m.pth", thing_classes=list(KINDS))
    words = ["--config-file", POINTREND, "--input", str(images), "--shard-size", str(BLOCK)]
    model = ["--opts", *TINY_MODEL, *THREE_CLASSES, *weights]
    folder = tmp_path / "out"

    def predict(*more: str) -> dict[str, bytes]:
        with process_state_restored(), pytest.raises(SystemExit) as end:
            run_command(
                "predict", [*words, "--batch-size", "4", "--output", str(folder), *more, *model]
            )
        assert end.value.code == 1  # for the images that cannot be read
        return {x.name: x.read_bytes() for x in folder.iterdir() if x.suffix != ".lock"}

    expected = predict("--shards", "parquet", "--workers", "0")
    assert [x for x in sorted(expected) if x.startswith("shard-")] == [
        f"shard-{number:06d}.parquet" for number in range(3)
    ]
    for number in (0, 1):
        (folder / f"shard-{number:06d}.parquet").unlink()
        (folder / f"failed-{number:06d}.txt").unlink()
    kept = (folder / "shard-000002.parquet").stat().st_mtime_ns
    capsys.readouterr()
    assert predict("--engine", "ray") == expected
    assert (folder / "shard-000002.parquet").stat().st_mtime_ns == kept
    assert "1 of 3 shards are finished: 2 are left" in capsys.readouterr().err
    assert predict("--engine", "ray") == expected
    assert "3 of 3 shards are finished: nothing is left to do" in capsys.readouterr().err


def test_options_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--config-file", POINTREND, "--input", "x", "--output", str(tmp_path / "out")]
    for more, reason in [
        (["--ray-address", "auto"], "--ray-address is for --engine ray"),
        (["--engine", "ray", "--workers", "2"], "--workers is not for --engine ray"),
        (["--engine", "ray", "--formats", "masks"], "expected neither --formats"),
    ]:
        with pytest.raises(SystemExit) as end:
            run_command("predict", [*words, *more])
        assert end.value.code == 2
        assert reason in capsys.readouterr().err


# Clusters


@pytest.mark.usefixtures("cluster")
def test_workers_with_another_version_are_named(monkeypatch: pytest.MonkeyPatch):
    ray = ray_cluster.import_ray()
    ray_cluster.check_workers(ray)
    monkeypatch.setattr(ray_cluster, "__version__", "9.9")
    with pytest.raises(ValueError, match=r"has point_rend .*: expected version 9\.9"):
        ray_cluster.check_workers(ray)


@pytest.mark.usefixtures("cluster")
def test_a_device_that_no_machine_has_is_refused(work: Work):
    with pytest.raises(ValueError, match="cuda, but the Ray cluster has no GPU"):
        of_ray(work, device="cuda")


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "127.0.0.1", "head:99999", "a:b"])
def test_addresses_of_another_form_are_refused(address: str):
    with pytest.raises(ValueError, match=r"expected HOST:PORT"):
        ray_cluster._check_address(address)


def test_a_cluster_that_does_not_answer_is_an_error_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(ray_cluster, "ANSWER_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, but never answers
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OSError, match="no Ray cluster that answers within 2 seconds"):
            ray_cluster._check_address(address)
    with pytest.raises(OSError, match=r"there is no Ray cluster: .*refused"):
        ray_cluster._check_address(address)


def test_without_ray_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'pip install "point_rend\[ray\]"'):
        ray_cluster.import_ray()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_local_ray_ends_with_its_command(number: signal.Signals, tmp_path: Path, images: Path):
    weights = checkpoint_of(tmp_path / "m.pth", thing_classes=list(KINDS))
    words = ["--config-file", POINTREND, "--input", str(images), "--shard-size", "1"]
    words += ["--output", str(tmp_path / "out"), "--engine", "ray", "--shards", "jsonl"]
    command = [sys.executable, "-m", "point_rend", "predict", *words, "--opts"]
    process = subprocess.Popen(
        [*command, *TINY_MODEL, *THREE_CLASSES, *weights],
        stderr=subprocess.PIPE,
        text=True,
        env={x: y for x, y in os.environ.items() if x != ray_cluster.ADDRESS},
    )
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").glob("shard-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in x.name() for x in started)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    alive = ray_cluster.survivors(started, 60)
    for survivor in alive:
        survivor.kill()
    assert not alive
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    said = {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "interrupted"}
    assert said.get(number, "") in error
    assert "Traceback" not in error
