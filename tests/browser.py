"""A headless Chromium for tests, driven by chromedriver's WebDriver protocol: JSON over HTTP."""

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

OPTIONS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium refuses to sandbox root
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's key for a reference
TAB, ENTER, SPACE, LEFT, RIGHT, DOWN = "\ue004", "\ue007", " ", "\ue012", "\ue014", "\ue015"
SECONDS = 60
LOGS = {"browser": "ALL", "performance": "ALL"}


class Browser:
    """A browser with a separate profile in an empty folder; a context manager.

    Skips the test if Chromium is not installed.
    """

    def __init__(self, profile: Path) -> None:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        if not (chromium and driver):
            pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
        self._service = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert self._service.stdout is not None
            starts = (re.search(r"started .* on port (\d+)", x) for x in self._service.stdout)
            port = next(filter(None, starts), None)
            assert port, "chromedriver has not started"
            self._url = f"http://127.0.0.1:{port[1]}/session"
            chrome = {"binary": chromium, "args": [*OPTIONS, f"--user-data-dir={profile}"]}
            wishes = {"goog:chromeOptions": chrome, "goog:loggingPrefs": LOGS}
            session = self._ask("POST", "", {"capabilities": {"alwaysMatch": wishes}})
        except BaseException:
            self._stop()
            raise
        self._url += f"/{session['sessionId']}"

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("DELETE", "")
        finally:
            self._stop()

    def open(self, page: Path | str) -> None:
        """Load a local page, or an address, and clear the console."""
        self.log()
        address = page if isinstance(page, str) else page.resolve().as_uri()
        self._ask("POST", "/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page; return its result."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": arguments})

    def all(self, selector: str) -> list[dict[str, str]]:
        """Find elements; the references may be arguments of `run`."""
        return self._ask("POST", "/elements", {"using": "css selector", "value": selector})

    def press(self, *keys: str) -> None:
        """Press and release keys one after the other, at the current focus."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": strokes}]})

    def choose_file(self, element: dict[str, str], file: Path) -> None:
        """Choose a file in an input for files."""
        self._ask("POST", f"/element/{element[ELEMENT]}/value", {"text": str(file)})

    def drag(self, element: dict[str, str], start: int, end: int) -> None:
        """Press the mouse on an element, move it sideways and let go; pixels from its middle."""
        place = {"type": "pointerMove", "duration": 0, "origin": element, "y": 0}
        moves = [
            place | {"x": start},
            {"type": "pointerDown", "button": 0},
            place | {"x": end},
            {"type": "pointerUp", "button": 0},
        ]
        self._ask(
            "POST", "/actions", {"actions": [{"type": "pointer", "id": "m", "actions": moves}]}
        )

    def show(self, *, width: int, height: int = 900, scheme: str = "light") -> None:
        """Set the size of the window in CSS pixels, and whether the system is dark or light."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._devtools("Emulation.setEmulatedMedia", {"features": [feature]})

    def log(self) -> list[str]:
        """Return the messages of the console since the last call."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Return the addresses that pages have asked for since the last call."""
        entries = self._ask("POST", "/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [x for x in events if x["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def screenshot(self) -> bytes:
        """Return the window as a PNG file."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def _devtools(self, command: str, parameters: dict[str, Any]) -> None:
        self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, method=method)
        # The driver runs on this machine: ignore proxies of the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=SECONDS) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{method} {path}: {error.read().decode()}") from None

    def _stop(self) -> None:
        self._service.terminate()
        self._service.wait(SECONDS)
        assert self._service.stdout is not None
        self._service.stdout.close()
