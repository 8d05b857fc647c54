"""Published models by name; a local server stands in for the published address."""

import argparse
import functools
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.utils.file_io import PathManager

from point_rend import SafeDetectionCheckpointer, get_config_file
from point_rend.checkpoint import zoo
from point_rend.engine.preflight import check_weights
from tests.checkpoint.nets import arrays, assert_same_state, net, write_pickle, zoo_file
from tests.tiny_datasets import REPOSITORY

NAME = "pointrend_rcnn_R_50_FPN_3x_coco"


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve weights of `net(seed=1)` under the path of NAME; list the paths asked for."""
    served = tmp_path / "served"
    path = zoo.PUBLISHED[NAME].removeprefix(zoo.FOLDER)
    (served / path).parent.mkdir(parents=True)
    write_pickle(served / path, zoo_file(arrays(net(seed=1))))
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(served))
    )
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    folder = f"http://127.0.0.1:{server.server_port}/"
    urls = {name: url.replace(zoo.FOLDER, folder) for name, url in zoo.PUBLISHED.items()}
    monkeypatch.setattr(zoo, "PUBLISHED", urls)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    yield asked
    server.shutdown()
    server.server_close()


def test_every_published_model_has_a_config_of_its_name() -> None:
    for name, url in zoo.PUBLISHED.items():
        folder = url.removeprefix(zoo.FOLDER).split("/")[0]
        assert get_config_file(name) == get_config_file(f"{folder}/{name}.yaml")


def test_the_readme_lists_the_same_files() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\].*\((https://dl\.fbaipublicfiles\S+\.pkl)\)", text, re.M)
    assert dict(rows) == zoo.PUBLISHED


@pytest.mark.parametrize("checkpointer", [SafeDetectionCheckpointer, DetectionCheckpointer])
def test_every_checkpointer_loads_a_name_and_downloads_it_once(
    requests: list[str], checkpointer: type[DetectionCheckpointer]
) -> None:
    for seed in (2, 3):
        model = net(seed=seed)
        checkpointer(model).load(f"zoo://{NAME}")
        assert_same_state(model.state_dict(), net(seed=1).state_dict())
    assert [path.rpartition("/")[2] for path in requests] == ["model_final_edd263.pkl"]


@pytest.mark.usefixtures("requests")
def test_folder_and_suffix_of_the_config_may_be_given() -> None:
    path = PathManager.get_local_path(f"zoo://InstanceSegmentation/{NAME}.yaml")
    assert path == PathManager.get_local_path(f"zoo://{NAME}")
    with PathManager.open(f"zoo://{NAME}", "rb") as file:
        assert file.read() == Path(path).read_bytes()
    assert PathManager.isfile(f"zoo://{NAME}")


def test_an_unknown_name_is_answered_with_the_nearest_ones() -> None:
    name = "zoo://pointrend_rcnn_R_50_FPN_2x_coco"
    message = f"^{name}: no model of this name is published; did you mean .*_R_50_FPN_[13]x_coco or"
    with pytest.raises(FileNotFoundError, match=message):
        SafeDetectionCheckpointer(net()).load(name)
    with pytest.raises(FileNotFoundError, match="; there are pointrend_rcnn_R_50_FPN_1x_coco, "):
        SafeDetectionCheckpointer(net()).load("zoo://")


@pytest.mark.parametrize(("url", "reason"), [("{}", "404 "), ("http://127.0.0.1:9", "refused")])
def test_a_failed_download_names_the_address_and_the_way_around(
    requests: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    url: str,
    reason: str,
) -> None:
    del requests
    url = f"{url.format(zoo.PUBLISHED[NAME].rpartition('/')[0])}/missing.pkl"
    monkeypatch.setitem(zoo.PUBLISHED, NAME, url)
    message = rf"^zoo://{NAME} cannot be downloaded from {url} \(.*{reason}.*\): download the file"
    with pytest.raises(OSError, match=message):
        SafeDetectionCheckpointer(net()).load(f"zoo://{NAME}")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_run_refuses_an_unknown_name_before_it_starts() -> None:
    args = argparse.Namespace(resume=False)
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS = f"zoo://{NAME}"
    assert check_weights(cfg, args)
    cfg.MODEL.WEIGHTS = f"zoo://{NAME}x"
    with pytest.raises(FileNotFoundError, match=f"is published; did you mean {NAME} or"):
        check_weights(cfg, args)
