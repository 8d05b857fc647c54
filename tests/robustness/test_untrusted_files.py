"""Proposals, URLs and checkpoints from strangers: no code, no file elsewhere, no unbounded work."""

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoint.nets import Reduced
from tests.cli.test_predict import write_pictures
from tests.http_server import Answer, Server, redirect, send, send_endless, send_slowly
from tests.robustness.bombs import FILES, PICKLES
from tests.robustness.harness import Row, run_row, table
from tests.tiny_datasets import POINTREND, TINY_MODEL, write_coco

Words = Sequence[str | Path]
Prepare = Callable[[Path], Words]
SENTINEL = "sentinel"
PRECOMPUTED = ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"]
LOAD = [*PRECOMPUTED, "MODEL.LOAD_PROPOSALS", "True"]


def untouched(folder: Path) -> None:
    """Assert that no code ran and that nothing was written outside of the cache."""
    assert not (folder / SENTINEL).exists()
    assert not [path for path in folder.parent.rglob("*.py") if path.is_file()]


def with_limits() -> None:
    """Keep downloads in the working directory, small and short."""
    os.environ["FVCORE_CACHE"] = "cache"
    os.environ["POINT_REND_DOWNLOAD_TIMEOUT"] = "0.25"
    os.environ["POINT_REND_DOWNLOAD_LIMIT"] = "0.001"


def words(command: str, folder: Path, *opts: str | Path) -> Words:
    """Train or evaluate on a tiny set."""
    written = write_coco(folder / "tiny", images=2)
    sets = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    start = [command, "--config-file", POINTREND, "--register-coco", "tiny", *written]
    return [*start, *TINY_MODEL, *sets, "OUTPUT_DIR", "output", *opts]


# Proposals

CALL = Reduced(os.system, f"touch {SENTINEL}")


def proposals(**changes: Any) -> dict[str, Any]:
    boxes, logits = np.float32([[1, 1, 30, 30]]), np.float32([1])
    content = {"ids": [1, 2], "boxes": [boxes] * 2, "objectness_logits": [logits] * 2}
    return content | {"bbox_mode": 0} | changes


def with_proposals(content: Any, command: str = "train", **files: str) -> Prepare:
    """Return a function that writes a proposal file and runs with it for both splits."""

    def prepare(folder: Path) -> Words:
        name = "proposals.pkl"
        if isinstance(content, Exception):
            os.mkfifo(folder / name)
        elif content is not None:
            (folder / name).write_bytes(pickle.dumps(content, 2))
        names = {split: files.get(split, f"('{name}',)") for split in ("TRAIN", "TEST")}
        keys = [(f"DATASETS.PROPOSAL_FILES_{split}", value) for split, value in names.items()]
        return words(command, folder, *LOAD, *[word for pair in keys for word in pair])

    return prepare


def predict(name: str, content: Callable[[], bytes] | None) -> Prepare:
    """Return a function that writes a checkpoint, or a pipe, and predicts with it."""

    def prepare(folder: Path) -> Words:
        if content is None:
            os.mkfifo(folder / name)
        else:
            (folder / name).write_bytes(content())
        write_pictures(folder / "in", [1])
        start = ["predict", "--config-file", POINTREND, "--input", "in", "--output", "out"]
        return [*start, "--opts", *TINY_MODEL, WEIGHTS, name]

    return prepare


NAN = [np.full((1, 4), np.nan)] * 2
PROPOSALS = [
    Row("code", with_proposals(CALL), "proposals.pkl is refused: it asks for", then=untouched),
    Row(
        "code within",
        with_proposals(proposals(x=CALL), "evaluate"),
        "proposals.pkl is refused: it asks for",
        then=untouched,
    ),
    Row("no boxes", with_proposals({"ids": []}), "proposals.pkl: boxes is missing"),
    Row("another set", with_proposals(proposals(ids=[8, 9])), "no proposals for 2 of 2 images"),
    Row("NaN boxes", with_proposals(proposals(boxes=NAN), "evaluate"), "not finite numbers"),
    Row("lengths", with_proposals(proposals(ids=[1])), "1 ids, 2 boxes and 2 objectness_logits"),
    Row("a pipe", with_proposals(ValueError()), "proposals.pkl: a pipe, expected a file"),
    Row("no file", with_proposals(None), "proposal file does not exist: 'proposals.pkl'"),
    Row("no files", with_proposals(None, TRAIN="()"), "0 files, but DATASETS.TRAIN 1 data sets"),
    Row(
        "an upward URL", with_proposals(None, TRAIN="('http://h/%2e%2e/x',)"), r"URL without `\.\."
    ),
    Row("no names", with_proposals(None, TRAIN="(3,)"), "TRAIN must be a list of .* text"),
    Row("predict", lambda f: [*predict("m.pkl", lambda: b"")(f), *PRECOMPUTED], "image alone"),
    Row("no loading", lambda f: words("evaluate", f, *PRECOMPUTED), "LOAD_PROPOSALS is False"),
]


# URLs


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


class Answered(list[Any]):
    """Rows with the answers of the server, whose URL replaces `{url}` in all words."""

    def add(self, name: str, answer: Answer, line: str, *opts: str, json: str = "") -> None:
        def prepare(folder: Path) -> Words:
            run = list(words("train", folder, *opts))
            if json:
                run[run.index("--register-coco") + 2] = json
            return run

        row = Row(name, prepare, line, first=with_limits, then=untouched)
        self.append(pytest.param(row, answer, id=name))


def stall(handler: Any) -> None:
    send(handler, b"x", 100)
    time.sleep(3)


URLS = Answered()
WEIGHTS, SITE = "MODEL.WEIGHTS", "{url}/bad.pkl"
for name, answer, line in (
    ("a missing file", lambda h: h.send_error(404), "checkpoint http.* cannot be downloaded: 404"),
    ("a stalled server", stall, "stalled for 0.25 seconds; .* POINT_REND_DOWNLOAD_TIMEOUT"),
    ("a slow server", send_slowly, "stalled for 0.25 seconds"),
    ("an endless file", send_endless, "the limit; .* POINT_REND_DOWNLOAD_LIMIT raises it"),
    ("a wrong length", lambda h: send(h, b"x", 100), "ended after 1 of 100 bytes"),
    ("a redirection to a file", lambda h: redirect(h, "file:///etc/passwd"), "302 .*not allowed"),
    ("a web page", lambda h: send(h, b"<html>Sign in</html>"), "it looks like a web page"),
    ("code", lambda h: send(h, pickle.dumps(CALL, 2)), "is refused: it asks for posix.system"),
):
    URLS.add(name, answer, line, WEIGHTS, SITE)
for path in ("/../../x.py", "/%2e%2e/%2e%2e/x.py", "/a%2f..%2f..%2fx.py"):
    URLS.add(f"an upward path {path}", stall, r"URL without `\.\.`", WEIGHTS, "{url}" + path)
URLS.add("an unknown scheme", stall, "expected an http", WEIGHTS, "s3://bucket/m.pkl")
URLS.add("ftp", stall, "expected an http", WEIGHTS, "ftp://127.0.0.1/m.pkl")
URLS.add("no such name", stall, "no model of this name", WEIGHTS, "catalog://ImageNetPretrained/x")
URLS.add("an upward name", stall, r"URL without `\.\.`", WEIGHTS, "detectron2://../x.py")
FILES_TRAIN = "DATASETS.PROPOSAL_FILES_TRAIN"
URLS.add(
    "code in proposals",
    lambda h: send(h, pickle.dumps(CALL, 2)),
    "is refused: it asks for posix.system",
    *(*LOAD, FILES_TRAIN, "('{url}/bad.pkl',)", "DATASETS.TEST", "()"),
)
URLS.add("annotations that stall", stall, "stalled for 0.25 seconds", json="{url}/bad.json")
URLS.add("upward annotations", stall, r"URL without `\.\.`", json="{url}/%2e%2e/bad.json")


# Checkpoints


def resume(content: bytes | None) -> Prepare:
    """Return a function that resumes with a `last_checkpoint` of some content, or a pipe."""

    def prepare(folder: Path) -> Words:
        (folder / "output").mkdir()
        tag = folder / "output" / "last_checkpoint"
        if content is None:
            os.mkfifo(tag)
        else:
            tag.write_bytes(content)
        start, *rest = words("train", folder)
        return [start, "--resume", *rest]

    return prepare


ARCHIVES = (
    *("declared 4 TB", "bytes of 1 TB", "one number repeated 1e12 times", "sparse", "meta"),
    *("a key of doubled tuples", "colliding numbers", "a text of 4 GB", "TorchScript", "HTML"),
    *("half an archive", "half a legacy file", "a member that leads upward", "safetensors"),
)
REFUSED = r"m\.p\w+ (cannot be read, it is damaged or no checkpoint|is refused: it asks for)"
CHECKPOINTS = [Row(name, predict("m.pth", FILES[name]), REFUSED) for name in ARCHIVES]
CHECKPOINTS += [
    Row(f"{name} in a pickle", predict("m.pkl", lambda name=name: PICKLES[name]), REFUSED)
    for name in ("one text for many arrays", "lists within lists", "an array of objects")
]
CHECKPOINTS += [
    Row("pipe", predict("m.pth", None), "there is no checkpoint m.pth|a pipe, expected a file"),
    Row("last_checkpoint is a pipe", resume(None), "last_checkpoint"),
    Row("last_checkpoint is huge", resume(bytes(1 << 26)), "last_checkpoint"),
]


@table(PROPOSALS + CHECKPOINTS)
def test_a_file_of_a_stranger_ends_in_one_line(row: Row, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run_row(row, folder)


@pytest.mark.parametrize(("row", "answer"), URLS)
def test_a_url_of_a_stranger_ends_in_one_line(
    row: Row, answer: Answer, server: Server, tmp_path: Path
) -> None:
    server.answers = {"/bad.pkl": answer, "/bad.json": answer}
    folder = tmp_path / "run"
    folder.mkdir()

    def prepare(folder: Path) -> Words:
        return [str(word).replace("{url}", server.url) for word in row.prepare(folder)]

    run_row(row._replace(prepare=prepare), folder)
