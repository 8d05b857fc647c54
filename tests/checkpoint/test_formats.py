"""Files of other programs give what the stock loader gives."""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from tests.checkpoint.nets import (
    assert_same_state,
    detectron_blobs,
    detectron_net,
    load_with_report,
    read,
    read_by_stock,
    write_pickle,
    zoo_file,
)

VARIED_ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float64": np.linspace(0, 1, 5),
    "float16": np.array([0.5, -2], dtype=np.float16),
    "int64": np.array([[-1], [2**62]]),
    "uint8": np.arange(256, dtype=np.uint8),
    "bool": np.array([True, False]),
    "complex64": np.array([1 + 2j], dtype=np.complex64),
    "scalar_array": np.array(3.25, dtype=np.float32),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(12.0)[::2],
    "bytes": np.array([b"ab", b"c"]),
    "text": np.array(["ä", "bcd"]),
}


def assert_same_data(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    match expected:
        case np.ndarray():
            assert actual.dtype == expected.dtype
            assert actual.shape == expected.shape
            assert actual.flags.writeable
            assert actual.flags.f_contiguous == expected.flags.f_contiguous
            assert np.array_equal(actual, expected)
        case dict():
            assert list(actual) == list(expected)
            for key, value in expected.items():
                assert_same_data(actual[key], value)
        case list() | tuple():
            assert len(actual) == len(expected)
            for a, b in zip(actual, expected, strict=True):
                assert_same_data(a, b)
        case _:
            assert actual == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_arrays_is_read_as_the_stock_loader_reads_it(tmp_path: Path, protocol: int):
    shared = np.ones(2, dtype=np.float32)
    state = OrderedDict(a=shared)
    state._metadata = OrderedDict({"": {"version": 2}})
    data = zoo_file(
        dict(VARIED_ARRAYS, shared=shared, again=shared),
        ordered=state,
        scalars=[np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("x")],
        containers={"tuple": (1, 2.5, None, True), "set": {1, 2}, "frozen": frozenset("ab")},
        plain=[b"", b"\x00\xff", "ü", 10**30],
        matching_heuristics=True,
    )
    path = write_pickle(tmp_path / "model.pkl", data, protocol)
    ours, stock = read(path), read_by_stock(path)
    assert_same_data(ours, stock)
    assert ours["model"]["shared"] is ours["model"]["again"]
    assert ours["ordered"]._metadata == stock["ordered"]._metadata


@pytest.mark.parametrize("protocol", [2, 5])
def test_numbers_in_another_byte_order_are_read_in_the_native_one(tmp_path: Path, protocol: int):
    path = write_pickle(
        tmp_path / "model.pkl", zoo_file({"a": np.array([1.5, 2], ">f4")}), protocol
    )
    array = read(path)["model"]["a"]
    assert array.dtype == np.dtype("=f4")
    assert array.tolist() == [1.5, 2]


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_the_modules_of_numpy_1_and_2_are_both_known(tmp_path: Path, module: bytes):
    raw = pickle.dumps(
        zoo_file({"a": np.arange(3.0), "b": np.arange(4)}, x=np.float32(1)), protocol=2
    )
    raw = raw.replace(b"numpy._core", b"numpy.core")
    assert raw.count(b"numpy.core") == 2
    path = tmp_path / "model.pkl"
    path.write_bytes(raw.replace(b"numpy.core", module))
    data = read(str(path))
    assert data["model"]["a"].dtype == np.float64
    assert data["model"]["a"].tolist() == [0, 1, 2]
    assert data["x"] == np.float32(1)


class Python2Pickler(pickle._Pickler):
    """Writes bytes and ASCII text as Python 2 wrote its ``str``."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_str2(self, obj: str | bytes) -> None:
        raw = obj.encode("ascii") if isinstance(obj, str) else obj
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(obj)

    dispatch[bytes] = save_str2
    dispatch[str] = save_str2


@pytest.mark.parametrize("style", ["blobs", "bare"])
@pytest.mark.parametrize("pickler", [Python2Pickler, pickle._Pickler])
def test_a_detectron_file_gives_the_weights_that_the_stock_loader_gives(
    tmp_path: Path, style: str, pickler: type[pickle._Pickler]
):
    blobs = detectron_blobs()
    path = tmp_path / "model.pkl"
    with path.open("wb") as file:
        pickler(file, 2).dump({"blobs": blobs, "cfg": "A: 1"} if style == "blobs" else blobs)
    ours, stock = detectron_net(), detectron_net()
    report = load_with_report(SafeDetectionCheckpointer(ours), str(path))
    load_with_report(DetectionCheckpointer(stock), str(path))
    assert (report.missing_keys, report.unexpected_keys) == ([], [])
    assert_same_state(ours.state_dict(), stock.state_dict())
    score = ours["roi_heads"]["box_predictor"]["cls_score"].weight
    assert np.array_equal(score.detach().numpy(), np.roll(blobs["cls_score_w"], -1, axis=0))


def test_a_pycls_file_gives_the_weights_that_the_stock_loader_gives(tmp_path: Path):
    path = str(tmp_path / "model.pyth")
    state = {"box_head.fc1.weight": torch.rand(5, 4), "bn.num_batches_tracked": torch.tensor(3)}
    torch.save({"model_state": state, "epoch": 1}, path)
    ours, stock = detectron_net(), detectron_net()
    stock.load_state_dict(ours.state_dict())
    reports = [
        load_with_report(checkpointer, path)
        for checkpointer in (SafeDetectionCheckpointer(ours), DetectionCheckpointer(stock))
    ]
    assert reports[0] == reports[1]
    assert_same_state(ours.state_dict(), stock.state_dict())
    assert torch.equal(ours["roi_heads"]["box_head"]["fc1"].weight, state["box_head.fc1.weight"])


def test_a_query_asks_for_the_matching_of_names(tmp_path: Path):
    path = str(tmp_path / "model.pth")
    state = {"fc1.weight": torch.rand(5, 4)}
    torch.save(state, path)
    model = detectron_net()
    SafeDetectionCheckpointer(model).load(f"{path}?matching_heuristics=True")
    assert torch.equal(model["roi_heads"]["box_head"]["fc1"].weight, state["fc1.weight"])


def test_imagenet_weights_load_as_the_stock_loader_loads_them(shared_data: Path):
    path = str(shared_data / "weights" / "R-50.pkl")
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    ours, stock = build_backbone(cfg), build_backbone(cfg)
    reports = [
        load_with_report(checkpointer, path)
        for checkpointer in (SafeDetectionCheckpointer(ours), DetectionCheckpointer(stock))
    ]
    assert reports[0] == reports[1]
    assert reports[0].missing_keys == []
    assert reports[0].incorrect_shapes == []
    assert_same_state(ours.state_dict(), stock.state_dict())
