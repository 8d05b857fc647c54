"""The page: served by the command, asked over HTTP and used in headless Chromium.

The tests in the browser are skipped if Chromium is missing.
"""

import argparse
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import pytest
import torch

from point_rend import SafeDetectionCheckpointer
from point_rend.playground import serving
from tests.browser import Browser
from tests.cli.test_predict import THREE_CLASSES, tiny_model
from tests.tiny_datasets import POINTREND, REPOSITORY, TINY_MODEL, process_state_restored, scene

SECONDS = 60  # on a machine under load


class Served(NamedTuple):
    address: str
    examples: Path
    line: str
    process: subprocess.Popen[str]

    def ask(self, path: str, body: Any = None) -> tuple[int, str]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data, {"Content-Type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=SECONDS) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def open_picture(
        self, path: str, session: str, *, photo: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Choose a picture as the page does, or with another request; return the last event."""
        config = json.loads(self.ask("config")[1])
        (function,) = (
            x["id"] for x in config["dependencies"] if "load" in [kind for _, kind in x["targets"]]
        )
        photo = photo or {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = [None, photo, "instances", 1, 0.05, [], True]
        body = {"data": data, "fn_index": function, "session_hash": session}
        status, _ = self.ask("gradio_api/queue/join", body)
        assert status == 200
        _, events = self.ask(f"gradio_api/queue/data?session_hash={session}")
        found = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
        return next(x for x in found if x["msg"] == "process_completed")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page as a process of its own, with a tiny model, two examples and a bad environment."""
    folder = tmp_path_factory.mktemp("<page>")
    examples = folder / "examples"
    examples.mkdir()
    for number in range(2):
        cv2.imwrite(str(examples / f"{number}.png"), scene(number)[0])
    torch.manual_seed(0)
    with process_state_restored():
        model = tiny_model(POINTREND, THREE_CLASSES)
        draw_point_heads(model)
        SafeDetectionCheckpointer(model, str(folder)).save("model")
    command = [sys.executable, "-m", "point_rend", "demo", "--serve", "--port", "0"]
    command += ["--config-file", POINTREND, "--confidence-threshold", "0.05"]
    command += ["--examples", str(examples), "--opts", *TINY_MODEL, *THREE_CLASSES]
    command += ["MODEL.WEIGHTS", str(folder / "model.pth")]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(folder),
        "GRADIO_SHARE": "True",
        "GRADIO_ANALYTICS_ENABLED": "True",
        "GRADIO_ROOT_PATH": "/x",
        "GRADIO_ALLOWED_PATHS": "/",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_TEMP_DIR": "/",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Served(line.split()[0], examples, line, process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def draw_point_heads(model: torch.nn.Module) -> None:
    """Draw weights with which the masks of an untrained model have boundaries."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "point_head.predictor" in name or "prediction" in name:
                parameter.normal_(std=0.5)


# Over HTTP


def test_only_uploads_and_examples_can_be_read(served: Served, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    cv2.imwrite(str(secret), scene(0)[0])
    for path in (secret, served.examples / "../other.txt", "/etc/hostname", Path(__file__)):
        assert served.ask(f"gradio_api/file={path}")[0] == 403
    assert served.ask(f"gradio_api/file={served.examples / '0.png'}")[0] == 200
    refused = served.open_picture(str(secret), "secret")
    assert not refused["success"]
    for number, photo in enumerate(({"path": str(secret)}, {"path": str(secret), "meta": {}})):
        end = served.open_picture("", f"secret{number}", photo=photo)
        assert not end["success"] or "no upload and no example" in end["output"]["data"][0]
    assert served.open_picture(str(served.examples / "0.png"), "example")["success"]


def test_addresses_are_not_fetched(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/photo.png"
        assert served.ask(f"gradio_api/file={address}")[0] == 403
        assert not served.open_picture(address, "address")["success"]
        with pytest.raises(TimeoutError):
            listener.accept()


def test_nothing_but_the_page_is_offered(served: Served) -> None:
    for path in ("monitoring", "gradio_api/mcp/", "gradio_api/runs"):
        assert served.ask(path)[0] in (403, 404), path
    config = json.loads(served.ask("config")[1])
    assert config["analytics_enabled"] is False
    assert served.line.endswith(" can be used by only this machine; Ctrl-C ends it\n")


def test_the_page_does_not_answer_to_the_name_of_another_site(served: Served) -> None:
    place = served.address.removeprefix("http://").rstrip("/")
    for name, status in ((place, 200), ("localhost:80", 200), ("example.org", 400)):
        connection = HTTPConnection(place, timeout=60)
        connection.request("GET", "/config", headers={"Host": name})
        assert connection.getresponse().status == status
        connection.close()


def test_users_at_the_same_time_wait_for_each_other(served: Served) -> None:
    path = str(served.examples / "1.png")
    with ThreadPoolExecutor(6) as pool:
        ends = pool.map(lambda user: served.open_picture(path, f"user{user}"), range(6))
        assert all(end["success"] for end in ends)


def test_only_this_machine_can_reach_the_page_unless_asked_otherwise(served: Served) -> None:
    port = int(served.address.rstrip("/").rpartition(":")[2])
    with socket.socket() as other:  # all of 127.0.0.0/8 is this machine
        assert other.connect_ex(("127.0.0.2", port)) != 0


# The command


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port} cannot be used: Address already in"):
            serving.free_port("127.0.0.1", port)
    assert serving.free_port("127.0.0.1", port) == port
    assert 0 < serving.free_port("127.0.0.1", 0) != port
    with pytest.raises(ValueError, match="--port: expected a number from 0 to 65535, got -1"):
        serving.free_port("127.0.0.1", -1)
    with pytest.raises(ValueError, match=r"--host 192\.0\.2\.1 --port 0 cannot be used: Cannot"):
        serving.free_port("192.0.2.1", 0)


def options(**changed: Any) -> argparse.Namespace:
    default = {"host": None, "port": 0, "confidence_threshold": 0.5, "model": None}
    return argparse.Namespace(**default | changed)


def test_what_cannot_be_served_is_named_before_the_demo_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = tmp_path / "model.onnx"
    exported.touch()
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r'not installed.*pip install "point_rend\[page\]"'):
        serving.check(options())
    monkeypatch.setattr(serving, "import_gradio", lambda: None)
    serving.check(options())
    with pytest.raises(ValueError, match=r"is an exported file, which keeps no steps to show"):
        serving.check(options(model=str(exported)))
    with pytest.raises(ValueError, match=r"expected a number from 0\.05 to 1, got 0\.01"):
        serving.check(options(confidence_threshold=0.01))


# In the browser


@pytest.fixture(scope="module")
def browser(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        started.show(width=1440)
        started.open(served.address)
        yield started


def text(browser: Browser, selector: str) -> str:
    return browser.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)


def wait(read: Callable[[], Any], is_right: Callable[[Any], Any]) -> Any:
    end = time.monotonic() + SECONDS
    while not is_right(value := read()):
        assert time.monotonic() < end, value
        time.sleep(0.05)
    return value


def pictures(browser: Browser, selector: str) -> list[str]:
    """Return the addresses of the pictures before and behind a slider."""
    return browser.run(
        "return [...document.querySelectorAll(arguments[0] + ' img')].map((x) => x.src)", selector
    )


def change(browser: Browser, act: Callable[[], Any], selector: str = "#whole") -> list[str]:
    """Act; return the pictures once they differ."""
    before = pictures(browser, selector)
    act()
    return wait(lambda: pictures(browser, selector), lambda now: len(now) == 2 and now != before)


def set_number(browser: Browser, selector: str, value: float) -> None:
    browser.run(
        """const field = document.querySelector(arguments[0] + " input[type=number]");
        field.value = arguments[1];
        for (const kind of ["input", "change", "blur"])
          field.dispatchEvent(new Event(kind, {bubbles: true}));""",
        selector,
        value,
    )


def upload(browser: Browser, file: Path) -> None:
    browser.choose_file(browser.all("#photo input[type=file]")[0], file)


def png(width: int, height: int) -> bytes:
    """A PNG file that claims a size, and holds hardly any pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


def test_a_picture_can_be_segmented_looked_at_and_replaced(
    served: Served, browser: Browser, tmp_path: Path
) -> None:
    wait(lambda: text(browser, "#message"), lambda now: "segments shown" in now)
    wait(lambda: pictures(browser, "#whole"), lambda now: len(now) == 2)
    assert "/model.pth" in text(browser, "#head")
    assert "7×7, coarse head" in text(browser, "#caption")

    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), scene(5)[0])
    coarse = change(browser, lambda: upload(browser, photo))
    fifth = change(browser, lambda: set_number(browser, "#step", 5))
    assert "112×112, 784 points" in text(browser, "#caption")
    assert (coarse[0] == fifth[0]) != (coarse[1] == fifth[1])  # the rendered side stays
    closeup = pictures(browser, "#closeup")
    plain = change(browser, lambda: browser.run("document.querySelector('#points input').click()"))
    assert plain != fifth
    assert pictures(browser, "#closeup") != closeup

    def enlarge() -> None:
        browser.run(
            """const cell = document.querySelector('[data-testid="cell-1-1"]');
            for (const kind of ["mousedown", "mouseup", "click"])
              cell.dispatchEvent(new MouseEvent(kind, {bubbles: true}));"""
        )

    change(browser, enlarge, "#closeup")
    rows = text(browser, "#message")
    change(browser, lambda: set_number(browser, "#score", 0.99))
    assert text(browser, "#message").startswith("0 of ")
    change(browser, lambda: set_number(browser, "#score", 0.05))
    assert text(browser, "#message").split(" · ")[0] == rows.split(" · ")[0]

    # An example. Its rendered side is the one that was shown at the beginning.
    change(browser, lambda: browser.run("document.querySelector('.gallery-item').click()"))
    requests = browser.requests()
    assert any("/gradio_api/upload" in address for address in requests)
    outside = [x for x in requests if not x.startswith((served.address, "data:", "blob:"))]
    assert not [x for x in outside if x.startswith(("http", "ws", "//"))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"hello", "This file is not an image, but a text."),
        ("empty.jpg", b"", "This file is empty (0 bytes)."),
        ("bomb.png", png(60_000, 60_000), "This file is too large: it has"),
        (
            "large.png",
            png(10_000, 6_000),
            "This file is too large: it has 10000 × 6000 pixels, and this page takes up to 50 m",
        ),
        ("cut.png", png(300, 200), "This file is truncated or broken"),
        ("script.svg", b"<svg onload='alert(1)'/>", "This file is SVG, which is not supported"),
    ],
)
def test_a_bad_upload_is_one_line_and_the_page_goes_on(
    browser: Browser, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    upload(browser, file)
    line = wait(lambda: text(browser, "#message"), lambda now: now.startswith(message))
    assert "\n" not in line
    assert str(tmp_path) not in line
    wait(lambda: browser.all("#photo img"), lambda now: not now)


def test_after_bad_uploads_a_good_one_is_shown(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "good.jpg"
    cv2.imwrite(str(file), scene(7)[0])
    upload(browser, file)
    wait(lambda: text(browser, "#message"), lambda now: "segments shown" in now)
    assert len(wait(lambda: pictures(browser, "#whole"), len)) == 2


@pytest.mark.parametrize("width", [360, 1000, 1920])
def test_the_page_fits_the_width_of_the_screen(browser: Browser, width: int) -> None:
    browser.show(width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_ctrl_c_ends_the_page_at_once(served: Served) -> None:
    """The last test: the page is in use, and a picture is being segmented."""
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(served.open_picture, str(served.examples / "0.png"), "last")
        time.sleep(0.1)
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(SECONDS) == 130
        call.exception(SECONDS)
    left = [x.name for x in served.examples.parent.iterdir() if x.name.startswith("pointrend-page")]
    assert left == []
