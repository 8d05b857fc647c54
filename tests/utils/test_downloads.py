"""Downloads: what a server, a URL or a redirection may not do. All servers are local."""

import hashlib
import importlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.utils.file_io import PathManager

from point_rend.utils import downloads
from point_rend.utils.downloads import DownloadError, check_url, download, local_path, resolve
from tests.http_server import (
    CONTENT,
    Answer,
    Server,
    redirect,
    send,
    send_endless,
    send_slow_headers,
    send_slowly,
)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POINT_REND_DOWNLOAD_TIMEOUT", "0.25")
    running = Server()
    yield running
    running.close()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def test_a_file_arrives_as_it_was_sent_and_once(server: Server) -> None:
    path = download(f"{server.url}/a/model.pkl")
    assert path.read_bytes() == CONTENT
    assert path.name == "model.pkl"
    assert download(f"{server.url}/a/model.pkl") == path
    assert local_path(f"{server.url}/a/model.pkl".replace("http", "HTTP")) == str(path)
    assert server.asked == ["/a/model.pkl"]
    download(f"{server.url}/a/model.pkl", again=True)
    assert len(server.asked) == 2


def test_hosts_schemes_ports_and_queries_share_no_file(server: Server, tmp_path: Path) -> None:
    other = Server()
    server.answers["/x.pkl?b"] = lambda handler: send(handler, b"b")
    other.answers["/x.pkl"] = lambda handler: send(handler, b"other")
    urls = [f"{server.url}/x.pkl", f"{server.url}/x.pkl?b", f"{other.url}/x.pkl"]
    assert [download(url).read_bytes() for url in urls] == [CONTENT, b"b", b"other"]
    assert len(files(tmp_path)) == 3
    other.close()


UPWARD = [
    "/../../x.py",
    "/a/../../x.py",
    "/%2e%2e/x.py",
    "/%2E./x.py",
    "/.%2e/x.py",
    "/%252e%252e/x.py",
    "/a%2f..%2fx.py",
    "/..%5cx.py",
    "/a\\..\\x.py",
    "/a/..",
]


@pytest.mark.parametrize("path", UPWARD)
def test_a_path_that_leads_upward_is_refused_before_any_request(
    server: Server, tmp_path: Path, path: str
) -> None:
    for scheme in (server.url, "detectron2:/"):
        with pytest.raises(ValueError, match=r"without `\.\.` in its path"):
            local_path(f"{scheme}{path}")
    assert not server.asked
    assert not files(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["a%2fb%2fc.pkl", "a%00b.pkl", ".bashrc", "%2e", "a b.pkl?x".replace(" ", "%20"), "", "ü.pkl"],
)
def test_whatever_the_name_the_file_lies_in_its_own_folder_of_the_cache(
    server: Server, tmp_path: Path, name: str
) -> None:
    url = f"{server.url}/{name}"
    path = download(url)
    folder = tmp_path / "cache" / "point_rend" / hashlib.sha256(url.encode()).hexdigest()
    assert path.parent == folder
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", path.name)
    assert files(tmp_path) == [path]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/x.pkl",
        "file:///etc/passwd",
        "s3://bucket/x.pkl",
        "http:///x.pkl",
        "http://[::1/x.pkl",
        "http://a:b/x.pkl",
        "http://user:word@host/x.pkl",
        "http://host/x\ny.pkl",
        "http://host/x y.pkl",
        "http://host/" + "x" * 5000,
        "http://host/%" + "25" * 900 + "2e.",
        "data://text,x",
    ],
)
def test_a_url_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected (a|an) |is no URL"):
        local_path(url)


BAD_ANSWERS: dict[str, tuple[Answer, str]] = {
    "a missing file": (lambda handler: handler.send_error(404), "404 "),
    "a stalled body": (lambda handler: (send(handler, b"x", 100), time.sleep(5))[0], "stalled"),
    "a slow body": (send_slowly, "stalled for 0.25 seconds"),
    "slow headers": (send_slow_headers, "stalled for 0.25 seconds"),
    "no answer": (lambda _: time.sleep(5), "stalled for 0.25 seconds"),
    "an endless body": (send_endless, "more than 1073741 bytes, the limit; .*_LIMIT raises it"),
    "a length beyond the limit": (lambda h: send(h, b"x", 10**15), "more than 1073741 bytes"),
    "a length beyond the body": (lambda h: send(h, b"x", 100), "ended after 1 of 100 bytes"),
    "nothing": (lambda handler: send(handler, b""), "it is empty"),
    "no http": (lambda handler: handler.wfile.write(b"\0\r\n\r\n"), "BadStatusLine"),
    "endless headers": (
        lambda h: h.wfile.write(b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 10_000),
        "HTTPException",
    ),
    "to a file": (lambda handler: redirect(handler, "file:///etc/passwd"), "302 .*file:///"),
    "to ftp": (lambda handler: redirect(handler, "ftp://127.0.0.1/x"), "expected an http"),
    "upward": (lambda handler: redirect(handler, "/a/%2e%2e/x"), r"without `\.\.`"),
    "to itself": (lambda handler: redirect(handler, "/bad.pkl"), "302 .*infinite loop"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_bad_answer_is_one_error_and_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("POINT_REND_DOWNLOAD_LIMIT", "0.001")
    server.answers["/bad.pkl"], reason = BAD_ANSWERS[name]
    url = f"{server.url}/bad.pkl"
    start = time.monotonic()
    with pytest.raises(DownloadError, match=rf"^{url} cannot be downloaded: .*{reason}"):
        download(url)
    assert time.monotonic() - start < 4
    assert not files(tmp_path)


def test_a_redirection_to_another_file_is_followed(server: Server) -> None:
    server.answers["/from"] = lambda handler: redirect(handler, "/to.pkl")
    assert download(f"{server.url}/from").read_bytes() == CONTENT
    assert server.asked == ["/from", "/to.pkl"]


def test_the_limit_can_be_raised(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINT_REND_DOWNLOAD_LIMIT", "0.00001")
    with pytest.raises(DownloadError, match="the limit"):
        download(f"{server.url}/a")
    monkeypatch.setenv("POINT_REND_DOWNLOAD_LIMIT", "1")
    assert download(f"{server.url}/a").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=r"more than 10 bytes, the limit$"):
        download(f"{server.url}/b", max_bytes=10)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "many"])
def test_a_limit_that_is_no_positive_number_is_an_error(
    server: Server, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("POINT_REND_DOWNLOAD_LIMIT", value)
    with pytest.raises(ValueError, match=r"POINT_REND_DOWNLOAD_LIMIT is .*positive number"):
        download(f"{server.url}/a")


def test_a_cache_that_cannot_be_written_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot be written .*: set FVCORE_CACHE to a folder"):
        download(f"{server.url}/a")


def test_a_file_that_another_program_cached_is_offered_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache does not record from which host a file came."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    planted = tmp_path / "a" / "model.pkl"
    planted.parent.mkdir()
    planted.write_bytes(CONTENT)
    with pytest.raises(DownloadError, match=rf"{planted} was downloaded by another program"):
        download("http://127.0.0.1:9/a/model.pkl")


def test_the_names_of_detectron2_stand_for_the_urls_that_it_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(PathManager, "_path_handlers", dict(PathManager._path_handlers))

    class Recorder(downloads.UrlHandler):
        def _get_local_path(self, path: str, *_: object, **__: object) -> str:
            asked.append(path)
            return path

    PathManager.register_handler(Recorder(downloads.URLS))
    names = [
        "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
        "catalog://ImageNetPretrained/MSRA/R-101",
        "catalog://Caffe2Detectron/COCO/35857197/e2e_faster_rcnn_R-50-C4_1x",
    ]
    importlib.import_module("detectron2.checkpoint.catalog")
    for name in names:
        PathManager.get_local_path(name)
    assert [resolve(name) for name in names] == asked
    with pytest.raises(FileNotFoundError, match="no model of this name"):
        resolve("catalog://ImageNetPretrained/x")
    check_url(resolve("https://1drv.ms/u/s!abc"))


PROBE = """
import point_rend
from detectron2.utils.file_io import PathManager
print(type(PathManager._path_handlers["http://"]).__module__)
import point_rend.engine.spawned
print(type(PathManager._path_handlers["http://"]).__module__)
"""


def test_only_commands_replace_the_downloads_of_detectron2() -> None:
    importlib.import_module("point_rend.cli")
    handler = PathManager._path_handlers["http://"]
    assert isinstance(handler, downloads.UrlHandler)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["iopath.common.file_io", "point_rend.utils.downloads"]


def test_the_handler_of_urls_reads_and_refuses_to_write(server: Server) -> None:
    paths, url = downloads.safe_paths(), f"{server.url}/a.txt"
    server.answers["/missing"] = lambda handler: handler.send_error(404)
    with paths.open(url, "rb") as file:
        assert file.read() == CONTENT
    assert paths.isfile(url)
    assert paths.exists(url)
    assert not paths.isdir(url)
    assert not paths.exists(f"{server.url}/missing")
    for refused in (paths.ls, paths.mkdirs, paths.rm, lambda path: paths.open(path, "w")):
        with pytest.raises(OSError, match="expected a path on this machine"):
            refused(url)
