"""Decoding in worker processes: every image in its order, whatever happens to a worker."""

import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from point_rend.batch_inference.decoding import Decoder, Unreadable, decode
from point_rend.batch_inference.manifest import Manifest, read_manifest
from tests.batch_inference.readers import crash_on_two, hang_on_two, lack_a_package
from tests.batch_inference.running import pictures
from tests.cli.test_predict import picture
from tests.http_server import Server, send


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return read_manifest(str(pictures(tmp_path, 6)))


def check(images: list[object], *, without: int | None = None) -> None:
    assert len(images) == 6
    for number, image in enumerate(images):
        if number != without:
            assert isinstance(image, np.ndarray)
            assert image.dtype == np.uint8
            assert (image == picture(number)).all()


def test_images_come_in_order_and_the_workers_go_on_after_dead_ones(
    manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    with Decoder(2) as decoder:
        check(list(decoder.images(manifest)))
        pids = [worker._process.pid for worker in decoder._workers]
        os.kill(int(pids[0] or 0), signal.SIGKILL)
        check(list(decoder.images(manifest)))
        assert "SIGKILL; it is tried again" in capsys.readouterr().err
        next(decoder.images(manifest[:]))  # the rest of these is no longer wanted
        check(list(decoder.images(manifest)))
        pids += [worker._process.pid for worker in decoder._workers]
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_an_image_that_kills_its_decoder_is_the_only_one_without_results(
    manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    with Decoder(1, read=crash_on_two) as decoder:
        images = list(decoder.images(manifest))
    check(images, without=2)
    assert images[2] == Unreadable(f"{manifest[2].uri}: its decoding ended the process by SIGSEGV")
    assert capsys.readouterr().err.count("2.png") == 2


def test_an_image_that_is_never_decoded_is_given_up(manifest: Manifest) -> None:
    with Decoder(1, read=hang_on_two, hang_seconds=1) as decoder:
        images = list(decoder.images(manifest))
    check(images, without=2)
    assert images[2] == Unreadable(f"{manifest[2].uri}: its decoding took more than 1 seconds")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_keeps_every_image_from_being_read_is_an_error(
    manifest: Manifest, workers: int
) -> None:
    reason = "rasterio is not installed"
    with Decoder(workers, read=lack_a_package) as decoder, pytest.raises(ValueError, match=reason):
        list(decoder.images(manifest))


def test_images_of_a_server_are_read_and_their_faults_have_no_temporary_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    content = (pictures(tmp_path, 1) / "0.png").read_bytes()
    with contextlib.closing(Server()) as server:
        url = server.url
        server.answers["/0.png"] = lambda handler: send(handler, content)
        server.answers["/broken.png"] = lambda handler: send(handler, content[:100])
        server.answers["/absent.png"] = lambda handler: handler.send_error(404)
        assert np.array_equal(decode(f"{url}/0.png"), picture(0))
        found = decode(f"{url}/broken.png")
        assert isinstance(found, Unreadable)
        assert found.reason.startswith(f"{url}/broken.png is truncated or broken")
        missing = decode(f"{url}/absent.png")
        assert isinstance(missing, Unreadable)
        assert "absent.png cannot be downloaded: 404" in missing.reason
    assert not (tmp_path / "cache").exists()


def test_broken_pictures_missing_files_and_bombs_are_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_text("no picture")
    assert isinstance(decode(str(tmp_path / "a.png")), Unreadable)
    assert isinstance(decode(str(tmp_path / "b.png")), Unreadable)
    bomb = pictures(tmp_path, 1) / "0.png"
    monkeypatch.setenv("POINT_REND_MAX_PIXELS", "100")
    found = decode(str(bomb))
    assert isinstance(found, Unreadable)
    assert "too large" in found.reason
