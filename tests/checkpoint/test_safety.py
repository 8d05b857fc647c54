"""Loading executes no code; damaged files are errors."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from tests.checkpoint.nets import (
    EXECUTING,
    HOSTILE,
    Reduced,
    arrays,
    assert_same_state,
    net,
    read,
    write_pickle,
    zoo_file,
)
from tests.pairwise import pairwise_rows


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, name: str, protocol: int):
    sentinel = tmp_path / "sentinel"
    payload = HOSTILE[name](str(sentinel))
    for where in (zoo_file({"a": payload}), zoo_file({"a": np.ones(1)}, extra=payload), payload):
        sentinel.unlink(missing_ok=True)
        path = write_pickle(tmp_path / "model.pkl", where, protocol)
        sentinel.unlink(missing_ok=True)
        with pytest.raises(
            ValueError, match=r"is refused: it asks for .*allow_unsafe=True"
        ) as error:
            read(path)
        assert path in str(error.value)
        assert not sentinel.exists()


@pytest.mark.parametrize("name", EXECUTING)
def test_the_explicit_flag_lets_everything_through(tmp_path: Path, name: str):
    sentinel = tmp_path / "sentinel"
    data = zoo_file({"a": np.ones(1)}, extra=HOSTILE[name](str(sentinel)))
    path = write_pickle(tmp_path / "model.pkl", data)
    sentinel.unlink(missing_ok=True)
    assert read(path, allow_unsafe=True)["model"]["a"].tolist() == [1]
    assert sentinel.exists()


# Written by hand, as no honest pickler would; "%s" is the command or the sentinel.
HAND_WRITTEN = {
    "INST": b"(S'touch %s'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch %s'\no.",
    "REDUCE": b"cos\nsystem\n(S'touch %s'\ntR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'touch %s'\ntR.",
    "path through an admitted module": (
        b"\x80\x04\x8c\x0bcollections\x8c\x18_sys.modules.__getitem__\x93(S'os'\ntR."
    ),
    "path through an admitted class": (
        b"\x80\x04\x8c\x0bcollections\x8c\x1dOrderedDict.fromkeys.__self__\x93)R."
    ),
    "attributes of numpy.ndarray": b"cnumpy\nndarray\n}S'x'\nS'y'\nsb.",
    "slots of OrderedDict": b"ccollections\nOrderedDict\n(N}S'__class__'\nS'y'\nstb.",
    "array of another class": (
        b"cnumpy.core.multiarray\n_reconstruct\n(ccollections\nOrderedDict\n(I0\ntS'b'\ntR."
    ),
    "array of objects": b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
    "scalar of objects": (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\nI0\nI1\ntRS'x'\ntR."
    ),
    "structure with objects": b"cnumpy\ndtype\n(S'f4,O'\nI0\nI1\ntR.",
    "structure": b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR.",
    "encode with another codec": b"c_codecs\nencode\n(VYQ==\nVbase64\ntR.",
    "bytes of a size": b"cbuiltins\nbytes\n(I99999999999\ntR.",
    "bare name": b"ccollections\nOrderedDict\n.",
}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_a_hand_written_pickle_is_refused_and_runs_nothing(tmp_path: Path, name: str):
    sentinel = tmp_path / "sentinel"
    path = tmp_path / "model.pkl"
    path.write_bytes(HAND_WRITTEN[name].replace(b"%s", os.fsencode(sentinel)))
    with pytest.raises(ValueError, match="is refused: it asks for") as error:
        read(str(path))
    assert str(path) in str(error.value)
    assert not sentinel.exists()


DAMAGED = {
    "nothing": b"",
    "text": b"404: Not Found",
    "an array of too few bytes": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I1000000\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntRI00\nS'abcd'\ntb."
    ),
    "an array of negative size": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I-1\nI-1\ntcnumpy\ndtype\n(S'f4'\nI0\nI1\ntRI00\nS'abcd'\ntb."
    ),
    "a made-up type": b"cnumpy\ndtype\n(S'f5'\nI0\nI1\ntR.",
    "an object from elsewhere": b"Pname\n.",
    "a new object of an admitted class": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "a list within itself": b"\x80\x02]q\x00h\x00a.",
    "a missing state": (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR."),
    "a list as a key": b"}c__builtin__\nfrozenset\n((l(lltRI1\ns.",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_pickle_is_an_error_that_names_the_file(tmp_path: Path, name: str):
    path = tmp_path / "model.pkl"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match="cannot be read, it is damaged") as error:
        read(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", ["pkl", "pth", "pyth"])
@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_an_error_that_names_the_file(tmp_path: Path, suffix: str, part: float):
    path = tmp_path / f"model.{suffix}"
    if suffix == "pkl":
        write_pickle(path, zoo_file(arrays(net())))
    else:
        torch.save({"model": net().state_dict(), "model_state": net().state_dict()}, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(part * len(raw))])
    with pytest.raises(ValueError, match="cannot be read, it is damaged") as error:
        SafeDetectionCheckpointer(net()).load(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "must hold a dict, not list"),
        ({"model": [1], "__author__": "x"}, "holds no parameters"),
        ({"model": {}, "__author__": "x"}, "holds no parameters"),
        ({"model": {"a": 1.5}, "__author__": "x"}, "'a' must be an array or tensor, not float"),
    ],
)
def test_a_file_without_a_model_is_an_error_that_names_the_file(
    tmp_path: Path, data: Any, message: str, suffix: str
):
    path = tmp_path / f"model.{suffix}"
    if suffix == "pkl":
        write_pickle(path, data)
    else:
        torch.save(data, path)
    with pytest.raises(ValueError, match=message) as error:
        SafeDetectionCheckpointer(net()).load(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "suffix", "zipped"), pairwise_rows(EXECUTING, ["pth", "pyth", "pt"], [True, False])
)
def test_a_hostile_torch_file_is_refused_and_runs_nothing(
    tmp_path: Path, name: str, zipped: bool, suffix: str
):
    sentinel = tmp_path / "sentinel"
    path = str(tmp_path / f"model.{suffix}")
    state = {"backbone.bias": torch.ones(5)}
    data = {"model": state, "model_state": state, "extra": HOSTILE[name](str(sentinel))}
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    sentinel.unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"is refused: it asks for .*allow_unsafe=True") as error:
        SafeDetectionCheckpointer(net()).load(path)
    assert path in str(error.value)
    assert not sentinel.exists()
    SafeDetectionCheckpointer(net(), allow_unsafe=True).load(path)
    assert sentinel.exists()


def test_a_refusal_names_the_function_that_the_file_asks_for(tmp_path: Path):
    data = zoo_file({"a": Reduced(os.system, "true")})
    path = write_pickle(tmp_path / "model.pkl", data)
    with pytest.raises(ValueError, match=r"asks for posix\.system, and .* could run code"):
        read(path)
    torch.save(data, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"asks for posix\.system, and .* could run code"):
        SafeDetectionCheckpointer(net()).load(str(tmp_path / "model.pth"))


def test_a_download_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    url = "http://127.0.0.1:9/weights.pkl"  # the port where nobody listens
    with pytest.raises(OSError, match=rf"checkpoint {url} cannot be downloaded: "):
        SafeDetectionCheckpointer(net()).load(url)
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize("url", ["s3://bucket/m.pkl", "file:///tmp/m.pkl", "ftp://host/m.pkl"])
def test_a_url_of_another_scheme_is_refused(url: str):
    with pytest.raises(ValueError, match=r"expected .*http"):
        SafeDetectionCheckpointer(net()).load(url)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*nothing\.pth"):
        SafeDetectionCheckpointer(net()).load(str(tmp_path / "nothing.pth"))


def test_a_checkpointer_loads_again_after_an_error(tmp_path: Path):
    good, bad = str(tmp_path / "good.pth"), str(tmp_path / "bad.pth")
    source, model = net(seed=1), net(seed=2)
    torch.save({"model": source.state_dict()}, good)
    Path(bad).write_bytes(b"")
    checkpointer = SafeDetectionCheckpointer(model)
    with pytest.raises(ValueError, match="damaged"):
        checkpointer.load(bad)
    checkpointer.load(good)
    assert_same_state(model.state_dict(), source.state_dict())
