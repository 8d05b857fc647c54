"""The example of a server, over loopback, with a model whose instances are known."""

import http.client
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from examples import serve_onnx
from point_rend import Predictor
from tests.commands import ENVIRONMENT
from tests.conftest import REPOSITORY
from tests.runtime.planted import planted
from tests.tiny_datasets import KINDS

Answer = tuple[int, object]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Host and port of a running server."""
    command = [sys.executable, "-m", "uvicorn", "--factory", "examples.serve_onnx:build_app"]
    process = subprocess.Popen(
        [*command, "--port", "0"],
        cwd=REPOSITORY,
        env={**ENVIRONMENT, "POINT_REND_MODEL": str(planted())},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        log = ""
        for line in process.stderr:
            log += line
            if found := re.search(r"running on http://(127\.0\.0\.1:\d+)", line):
                yield found[1]
                break
        else:
            pytest.fail(log)
        process.terminate()
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()


def ask(address: str, method: str, path: str, body: bytes = b"") -> Answer:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def encoded(picture: Image.Image, kind: str = "JPEG", orientation: int = 1) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(file, kind, exif=exif)
    return file.getvalue()


def photograph(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(height // 8, width // 8, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height))


def check(found: object, photo: Path) -> None:
    """Compare instances with those of the predictor; the masks are equal to the bit."""
    instances = Predictor.from_exported(planted())(photo)["instances"]
    assert isinstance(found, list)
    assert len(found) == len(instances) == 2
    masks = np.asarray(instances.pred_masks, dtype=np.uint8)
    for number, one in enumerate(found):
        assert one["name"] == KINDS[instances.pred_classes[number]]
        assert one["score"] == pytest.approx(instances.scores[number].item(), abs=1e-6)
        box = instances.pred_boxes.tensor[number].tolist()
        assert one["box"] == pytest.approx(box, abs=0.01)
        expected = pycocotools.mask.encode(np.asfortranarray(masks[number]))
        assert one["mask"] == {**expected, "counts": expected["counts"].decode()}


# Sizes at which no pixel is exactly undecided.
@pytest.mark.parametrize(
    ("width", "height", "orientation"), [(212, 148, 1), (212, 148, 6), (76, 92, 1)]
)
def test_the_server_answers_with_the_instances_and_masks_of_the_predictor(
    address, tmp_path, width, height, orientation
):
    body = encoded(photograph(width, height), orientation=orientation)
    (tmp_path / "photo.jpg").write_bytes(body)
    status, found = ask(address, "POST", "/instances", body)
    assert status == 200
    check(found, tmp_path / "photo.jpg")


def test_the_server_tells_that_it_is_alive(address):
    assert ask(address, "GET", "/health") == (200, {"status": "ok"})


def test_what_is_no_picture_or_too_large_is_answered_in_one_line(address):
    whole = encoded(photograph(64, 64))
    no_picture = (400, {"detail": "the body is no complete JPEG, PNG or WebP picture"})
    for body in (b"", b"<html>", whole[: len(whole) // 2], encoded(photograph(64, 64), "GIF")):
        assert ask(address, "POST", "/instances", body) == no_picture
    wide = encoded(Image.new("1", (20_000, serve_onnx.MAX_PIXELS // 20_000 + 1)), "PNG")
    for body in (wide, encoded(Image.new("1", (65_000, 3_000)), "PNG")):
        status, answer = ask(address, "POST", "/instances", body)
        assert (status, answer) == (413, {"detail": "the picture has more than 40000000 pixels"})
    status, answer = ask(address, "POST", "/instances", bytes(serve_onnx.MAX_BYTES + 1))
    assert (status, answer) == (413, {"detail": "the body has more than 20000000 bytes"})
    assert ask(address, "POST", "/instances", whole)[0] == 200
