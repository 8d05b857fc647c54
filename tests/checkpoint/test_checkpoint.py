import errno
import hashlib
import io
import logging
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone, build_model
from detectron2.utils import comm
from detectron2.utils.file_io import PathHandler
from iopath.common.file_io import PathManager
from torch import nn

from point_rend import get_config_file, load_config
from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.checkpoint.class_metadata import read_metadata
from point_rend.checkpoint.legacy_keys import upgrade_state_dict
from point_rend.checkpoint.sealed_file import DamagedError
from point_rend.utils.files import NotSavedError
from tests.runs import files_limited_to

# --- helpers ----------------------------------------------------------------------------------


@contextmanager
def log_of(name: str) -> Iterator[list[str]]:
    """Collect what one logger says at INFO or above, whatever other tests did to its parents."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(f"{record.levelname} {record.getMessage()}")
    logger = logging.getLogger(name)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def net(classes: int = 3, width: int = 5, seed: int = 0) -> nn.Module:
    """Return a model with one layer of each kind that a checkpoint can fit or not fit."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.ModuleDict(
            {
                "backbone": nn.Linear(4, width),
                "box_predictor": nn.ModuleDict(
                    {
                        "cls_score": nn.Linear(width, classes + 1),
                        "bbox_pred": nn.Linear(width, 4 * classes),
                    }
                ),
                "mask_head": nn.ModuleDict(
                    {
                        "predictor": nn.Conv2d(width, classes, 1),
                        "coarse_head": nn.ModuleDict({"prediction": nn.Linear(width, 4 * classes)}),
                        "parameter_head": nn.ModuleDict({"prediction": nn.Linear(width, classes)}),
                        "point_head": nn.ModuleDict(
                            {
                                "fc1": nn.Conv1d(width + classes, width, 1),
                                "predictor": nn.Conv1d(width + classes, classes, 1),
                            }
                        ),
                    }
                ),
            }
        )


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {key: value.numpy().copy() for key, value in model.state_dict().items()}


def write_pickle(path: Path, data: Any, protocol: int = 2) -> str:
    path.write_bytes(pickle.dumps(data, protocol))
    return str(path)


def zoo(model: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": model, "__author__": "test", **more}


def assert_same_state(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype
        assert actual[key].shape == value.shape
        assert torch.equal(torch.as_tensor(actual[key]), torch.as_tensor(value)), key


def load_with_report(checkpointer: DetectionCheckpointer, path: str) -> Any:
    """Load ``path``; return the missing and unexpected keys and misfits that would be logged."""
    reports: list[Any] = []
    checkpointer._log_incompatible_keys = reports.append
    checkpointer.load(path)
    (report,) = reports
    return report


def read(filename: str, **settings: bool) -> dict[str, Any]:
    return SafeDetectionCheckpointer(nn.Linear(1, 1), **settings)._load_file(filename)


def read_by_stock(filename: str) -> dict[str, Any]:
    return DetectionCheckpointer(nn.Linear(1, 1))._load_file(filename)


# --- keys of older versions -------------------------------------------------------------------

LEGACY = {
    "roi_heads.mask_point_head.fc1.weight": "roi_heads.mask_head.point_head.fc1.weight",
    "mask_point_head.predictor.bias": "mask_head.point_head.predictor.bias",
    "roi_heads.mask_coarse_head.prediction.bias": "roi_heads.mask_head.coarse_head.prediction.bias",
    "roi_heads.mask_coarse_head.coarse_mask_fc2.weight": (
        "roi_heads.mask_head.coarse_head.fc2.weight"
    ),
    "roi_heads.mask_head.coarse_head.coarse_mask_fc1.bias": (
        "roi_heads.mask_head.coarse_head.fc1.bias"
    ),
    "coarse_mask_fc12.weight": "fc12.weight",
    "module.roi_heads.mask_point_head.fc1.weight": (
        "module.roi_heads.mask_head.point_head.fc1.weight"
    ),
}


@pytest.mark.parametrize(("old", "new"), LEGACY.items())
def test_each_historical_key_gets_its_present_name(old: str, new: str):
    state = {old: 1}
    assert upgrade_state_dict(state) == [(old, new)]
    assert state == {new: 1}


@pytest.mark.parametrize("new", [*LEGACY.values(), "xmask_point_head.w", "mask_point_header.w"])
def test_other_keys_stay_silently(new: str):
    state = {new: 1}
    with log_of("point_rend.checkpoint") as messages:
        assert upgrade_state_dict(state) == []
    assert state == {new: 1}
    assert messages == []


def test_renaming_keeps_order_and_metadata_and_warns_once():
    state = OrderedDict([("a", 1), *((old, i) for i, old in enumerate(LEGACY)), ("z", 2)])
    state._metadata = {"": {"version": 1}}
    with log_of("point_rend.checkpoint") as messages:
        renames = upgrade_state_dict(state)
    assert renames == list(LEGACY.items())
    assert list(state) == ["a", *LEGACY.values(), "z"]
    assert list(state.values()) == [1, *range(len(LEGACY)), 2]
    assert state._metadata == {"": {"version": 1}}
    (message,) = messages
    assert message.startswith(
        f"WARNING The checkpoint is of an older PointRend: {len(LEGACY)} keys"
    )


def test_only_keys_behind_the_prefix_are_renamed():
    state = {"a.mask_point_head.w": 1, "b.mask_point_head.w": 2}
    assert upgrade_state_dict(state, "a.") == [("a.mask_point_head.w", "a.mask_head.point_head.w")]
    assert state == {"a.mask_head.point_head.w": 1, "b.mask_point_head.w": 2}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("mask_point_head.w", "mask_head.point_head.w"),
        ("mask_head.point_head.w", "mask_point_head.w"),
        ("mask_coarse_head.fc1.w", "mask_coarse_head.coarse_mask_fc1.w"),
    ],
)
def test_a_key_in_old_and_new_style_is_an_error_that_names_both(first: str, second: str):
    state = {"mask_point_head.other": 0, first: 1, second: 2}
    before = dict(state)
    with pytest.raises(ValueError, match="twice") as error:
        upgrade_state_dict(state)
    assert repr(first) in str(error.value)
    assert repr(second) in str(error.value)
    assert state == before


# --- every historical format through whole models -----------------------------------------------

SMALL = (
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *(
        "MODEL.RESNETS.OUT_FEATURES",
        "['res2', 'res3']",
        "MODEL.FPN.IN_FEATURES",
        "['res2', 'res3']",
    ),
    *("MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4']", "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32]]", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "3"),
    *("MODEL.POINT_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
    *("MODEL.ROI_MASK_HEAD.FC_DIM", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
)


@cache
def small_model(
    roi_heads: str = "PointRendROIHeads", name: str = "pointrend_rcnn_R_50_FPN_1x_coco"
):
    cfg = load_config(
        get_config_file(f"InstanceSegmentation/{name}.yaml"),
        [*SMALL, "MODEL.ROI_HEADS.NAME", roi_heads],
    )
    return build_model(cfg)


def random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.empty_like(value).uniform_(generator=generator)
        for key, value in model.state_dict().items()
    }


def emptied(model: nn.Module) -> nn.Module:
    for value in model.state_dict().values():
        value.zero_()
    return model


def present(key: str) -> str:
    return key


def coarse_mask_fc(key: str) -> str:
    return key.replace("coarse_head.fc", "coarse_head.coarse_mask_fc")


def heads_beside(key: str) -> str:
    key = key.replace("mask_head.point_head", "mask_point_head")
    return key.replace("mask_head.coarse_head", "mask_coarse_head")


def heads_beside_with_coarse_mask_fc(key: str) -> str:
    return heads_beside(coarse_mask_fc(key))


FORMATS = [present, coarse_mask_fc, heads_beside, heads_beside_with_coarse_mask_fc]


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    return random_state(small_model())


def write_model(path: Path, state: dict[str, torch.Tensor]) -> str:
    if path.suffix == ".pkl":
        return write_pickle(path, zoo({key: value.numpy() for key, value in state.items()}))
    torch.save({"model": state, "iteration": 7}, path)
    return str(path)


# Plain StandardROIHeads never sees the keys beside its mask head: there only our loader knows.
CASES = [
    (checkpointer, roi_heads, names)
    for checkpointer in (DetectionCheckpointer, SafeDetectionCheckpointer)
    for roi_heads in ("PointRendROIHeads", "StandardROIHeads")
    for names in FORMATS
    if not (
        checkpointer is DetectionCheckpointer
        and roi_heads == "StandardROIHeads"
        and names in (heads_beside, heads_beside_with_coarse_mask_fc)
    )
]


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize(("checkpointer", "roi_heads", "names"), CASES)
def test_each_historical_format_loads_without_missing_or_unexpected_key(
    tmp_path: Path,
    trained: dict[str, torch.Tensor],
    checkpointer: type[DetectionCheckpointer],
    roi_heads: str,
    names: Callable[[str], str],
    suffix: str,
):
    old = {names(key): value for key, value in trained.items()}
    assert (set(old) == set(trained)) == (names is present)
    path = write_model(tmp_path / f"model{suffix}", old)
    model = emptied(small_model(roi_heads))
    report = load_with_report(checkpointer(model), path)
    assert (report.missing_keys, report.unexpected_keys, report.incorrect_shapes) == ([], [], [])
    assert_same_state(model.state_dict(), trained)


def test_an_implicit_model_loads_without_missing_or_unexpected_key(tmp_path: Path):
    model = small_model(name="implicit_pointrend_R_50_FPN_1x_coco")
    trained = random_state(model)
    path = write_model(tmp_path / "model.pkl", trained)
    report = load_with_report(SafeDetectionCheckpointer(emptied(model)), path)
    assert (report.missing_keys, report.unexpected_keys, report.incorrect_shapes) == ([], [], [])
    assert_same_state(model.state_dict(), trained)


# --- the same results as the stock loader -------------------------------------------------------

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
    data = zoo(
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
    path = write_pickle(tmp_path / "model.pkl", zoo({"a": np.array([1.5, 2], ">f4")}), protocol)
    array = read(path)["model"]["a"]
    assert array.dtype == np.dtype("=f4")
    assert array.tolist() == [1.5, 2]


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_the_modules_of_numpy_1_and_2_are_both_known(tmp_path: Path, module: bytes):
    raw = pickle.dumps(zoo({"a": np.arange(3.0), "b": np.arange(4)}, x=np.float32(1)), protocol=2)
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


def detectron_blobs() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)

    def blob(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    return {
        "fc6_w": blob(5, 4),
        "fc6_b": blob(5),
        "fc6_w_momentum": blob(5, 4),
        "cls_score_w": blob(4, 5),
        "cls_score_b": blob(4),
        "bbox_pred_w": blob(16, 5),
        "bbox_pred_b": blob(16),
        "lr_momentum": blob(1),
    }


def detectron_net(width: int = 5) -> nn.Module:
    predictor = {"cls_score": nn.Linear(width, 4), "bbox_pred": nn.Linear(width, 12)}
    box_head = {"fc1": nn.Linear(4, width)}
    heads = {"box_head": nn.ModuleDict(box_head), "box_predictor": nn.ModuleDict(predictor)}
    return nn.ModuleDict({"roi_heads": nn.ModuleDict(heads)})


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


# --- no code runs -------------------------------------------------------------------------------


class Reduced:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


class WithState:
    """Runs code when its state is set."""

    def __init__(self, sentinel: str) -> None:
        self.sentinel = sentinel

    def __setstate__(self, state: dict) -> None:
        Path(state["sentinel"]).touch()


class OrderedWithState(OrderedDict):
    """Runs code when it gets an item."""

    def __setitem__(self, key: str, value: str) -> None:
        Path(value).touch()
        super().__setitem__(key, value)


def in_object_array(value: Any) -> np.ndarray:
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


HOSTILE: dict[str, Callable[[str], Any]] = {
    "os.system": lambda s: Reduced(os.system, f"touch '{s}'"),
    "eval": lambda s: Reduced(eval, f"__import__('pathlib').Path({s!r}).touch()"),
    "exec": lambda s: Reduced(exec, f"__import__('pathlib').Path({s!r}).touch()"),
    "open": lambda s: Reduced(Path(s).touch),
    "getattr": lambda s: Reduced(getattr, Path(s), "touch"),
    "in an object array": lambda s: in_object_array(Reduced(os.system, f"touch '{s}'")),
    "in an ordered dict": lambda s: OrderedDict(a=Reduced(os.system, f"touch '{s}'")),
    "as a key": lambda s: {Reduced(os.system, f"touch '{s}'"): 1},
    "__setstate__": WithState,
    "__setitem__ of a subclass": lambda s: OrderedWithState(a=s),
}
EXECUTING = [name for name in HOSTILE if name != "getattr"]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, name: str, protocol: int):
    sentinel = tmp_path / "sentinel"
    payload = HOSTILE[name](str(sentinel))
    for where in (zoo({"a": payload}), zoo({"a": np.ones(1)}, extra=payload), payload):
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
    data = zoo({"a": np.ones(1)}, extra=HOSTILE[name](str(sentinel)))
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
        write_pickle(path, zoo(arrays(net())))
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


@pytest.mark.parametrize("suffix", ["pth", "pyth", "pt"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", EXECUTING)
def test_a_hostile_torch_file_is_refused_and_runs_nothing(
    tmp_path: Path, name: str, zipped: bool, suffix: str
):
    sentinel = tmp_path / "sentinel"
    path = str(tmp_path / f"model.{suffix}")
    state = {"a": torch.ones(1)}
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
    data = zoo({"a": Reduced(os.system, "true")})
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


# --- shapes -------------------------------------------------------------------------------------

CLASS_KEYS = [
    "box_predictor.cls_score.weight",
    "box_predictor.cls_score.bias",
    "box_predictor.bbox_pred.weight",
    "box_predictor.bbox_pred.bias",
    "mask_head.predictor.weight",
    "mask_head.predictor.bias",
    "mask_head.coarse_head.prediction.weight",
    "mask_head.coarse_head.prediction.bias",
    "mask_head.parameter_head.prediction.weight",
    "mask_head.parameter_head.prediction.bias",
    "mask_head.point_head.fc1.weight",
    "mask_head.point_head.predictor.weight",
    "mask_head.point_head.predictor.bias",
]


def save_net(path: Path, **settings: int) -> str:
    torch.save({"model": net(seed=9, **settings).state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("strict", [True, False])
def test_every_shape_that_does_not_fit_is_listed_in_one_error(tmp_path: Path, strict: bool):
    path = save_net(tmp_path / "model.pth", width=6)
    with pytest.raises(ValueError, match="these shapes do not fit") as error:
        SafeDetectionCheckpointer(net(), strict_shapes=strict).load(path)
    message = str(error.value)
    assert path in message
    assert "backbone.weight: (6, 4) in the file, (5, 4) in the model" in message
    expected = net(width=6).state_dict()
    actual = net().state_dict()
    misfits = {key for key in expected if expected[key].shape != actual[key].shape}
    if not strict:  # the inputs of this layer are the width and the classes
        misfits.remove("mask_head.point_head.predictor.weight")
    assert {line.split(":")[0].strip() for line in message.splitlines()[1:]} == misfits


def test_other_class_counts_are_an_error_by_default(tmp_path: Path):
    path = save_net(tmp_path / "model.pth", classes=7)
    with pytest.raises(ValueError, match="these shapes do not fit") as error:
        SafeDetectionCheckpointer(net()).load(path)
    keys = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert keys == CLASS_KEYS


def test_layers_of_another_class_count_keep_their_values_with_one_warning_where_allowed(
    tmp_path: Path,
):
    path = save_net(tmp_path / "model.pth", classes=7)
    source, before, model = net(classes=7, seed=9), net(), net()
    checkpointer = SafeDetectionCheckpointer(model, strict_shapes=False)
    with log_of("fvcore.common.checkpoint") as messages:
        checkpointer.load(path)
    warnings = [message for message in messages if message.startswith("WARNING")]
    (warning,) = warnings
    assert [line.split(":")[0].strip() for line in warning.splitlines()[1:]] == CLASS_KEYS
    expected = source.state_dict() | {key: before.state_dict()[key] for key in CLASS_KEYS}
    assert_same_state(model.state_dict(), expected)


@pytest.mark.parametrize("key", CLASS_KEYS)
def test_only_the_dimension_of_the_classes_may_differ(tmp_path: Path, key: str):
    state = net().state_dict()
    state[key] = torch.zeros(*state[key].shape, 2)
    path = str(tmp_path / "model.pth")
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        SafeDetectionCheckpointer(net(), strict_shapes=False).load(path)


def test_shapes_are_checked_under_the_present_names(tmp_path: Path):
    state = {heads_beside(key): value for key, value in net(classes=7).state_dict().items()}
    path = str(tmp_path / "model.pth")
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match=r"mask_head\.point_head\.fc1\.weight: \(5, 12, 1\)"):
        SafeDetectionCheckpointer(net()).load(path)


def test_a_shape_that_does_not_fit_is_an_error_for_matched_names_too(tmp_path: Path):
    path = write_pickle(tmp_path / "model.pkl", detectron_blobs())
    with pytest.raises(ValueError, match="these shapes do not fit") as error:
        SafeDetectionCheckpointer(detectron_net(width=6), strict_shapes=False).load(path)
    message = str(error.value)
    assert "roi_heads.box_head.fc1.weight: (5, 4) in the file, (6, 4) in the model" in message
    assert "roi_heads.box_predictor.cls_score.weight: (4, 5) in the file, (4, 6)" in message


# --- what a file tells of the classes -----------------------------------------------------------

TOLD = {
    "thing_classes": ["disc", "box"],
    "thing_colors": [[0, 128, 255], [1, 2, 3]],
    "thing_dataset_id_to_contiguous_id": {3: 0, 7: 1},
    "stuff_classes": ["sky"],
}


@pytest.mark.parametrize("checkpointer", [SafeDetectionCheckpointer, DetectionCheckpointer])
def test_a_file_that_tells_its_classes_is_loaded_by_every_checkpointer(
    tmp_path: Path, checkpointer: type[DetectionCheckpointer]
):
    model, again = net(seed=1), net(seed=2)
    SafeDetectionCheckpointer(model, str(tmp_path), metadata=TOLD).save("m", iteration=5)
    path = str(tmp_path / "m.pth")
    assert checkpointer(again).load(path) == {"iteration": 5, "metadata": TOLD}
    assert_same_state(again.state_dict(), model.state_dict())
    assert read_metadata(path) == read_metadata(f"{path}?matching_heuristics=True") == TOLD


def test_a_training_with_classes_resumes_a_file_that_tells_none(tmp_path: Path):
    SafeDetectionCheckpointer(net(seed=1), str(tmp_path)).save("m", iteration=5)
    again = SafeDetectionCheckpointer(net(seed=2), str(tmp_path), metadata=TOLD)
    assert again.resume_or_load("", resume=True) == {"iteration": 5}
    again.save("n")
    assert read_metadata(str(tmp_path / "n.pth")) == TOLD


def test_other_files_tell_nothing(tmp_path: Path):
    path = str(tmp_path / "m.pth")
    for more in ({}, {"metadata": "of another program"}, {"metadata": {"epoch": 3}}):
        torch.save({"model": net().state_dict(), **more}, path)
        assert read_metadata(path) == {}
    assert read_metadata(write_pickle(tmp_path / "m.pkl", zoo(arrays(net())))) == {}
    assert read_metadata("") == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("thing_classes", "disc,box"),
        ("thing_classes", []),
        ("stuff_classes", ["sky", 3]),
        ("thing_colors", [[0, 128, 256]]),
        ("thing_colors", [[0, 128]]),
        ("thing_dataset_id_to_contiguous_id", {"3": 0}),
        ("stuff_dataset_id_to_contiguous_id", [3, 7]),
    ],
)
def test_what_a_file_tells_is_refused_by_its_name_if_it_is_not_sound(
    tmp_path: Path, field: str, value: object
):
    path = str(tmp_path / "m.pth")
    torch.save({"model": net().state_dict(), "metadata": TOLD | {field: value}}, path)
    with pytest.raises(ValueError, match=rf"m\.pth: its metadata has {field} .* not sound"):
        read_metadata(path)


def test_the_checksum_covers_what_a_file_tells(tmp_path: Path):
    SafeDetectionCheckpointer(net(), str(tmp_path), metadata=TOLD).save("m")
    path = tmp_path / "m.pth"
    content = path.read_bytes()
    assert content.count(b"disc") == 1
    path.write_bytes(content.replace(b"disc", b"dish"))
    with pytest.raises(ValueError, match=r"m\.pth cannot be read, it is damaged"):
        read_metadata(str(path))


def test_reading_what_a_file_tells_runs_no_code(tmp_path: Path):
    path, sentinel = str(tmp_path / "m.pth"), tmp_path / "sentinel"
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*m\.pth"):
        read_metadata(path)
    hostile = HOSTILE[EXECUTING[0]](str(sentinel))
    torch.save({"model": {"a": torch.ones(1)}, "extra": hostile, "metadata": TOLD}, path)
    sentinel.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="is refused: it asks for"):
        read_metadata(path)
    assert not sentinel.exists()
    assert read_metadata(path, allow_unsafe=True) == TOLD
    assert sentinel.exists()


# --- the last checkpoint ------------------------------------------------------------------------


def test_resuming_takes_up_the_model_and_the_optimizer(tmp_path: Path):
    model = net(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model["backbone"](torch.ones(1, 4)).sum().backward()
    optimizer.step()
    SafeDetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("m", iteration=5)

    again = net(seed=2)
    other = torch.optim.SGD(again.parameters(), lr=0.5, momentum=0.9)
    checkpointer = SafeDetectionCheckpointer(again, str(tmp_path), optimizer=other)
    assert checkpointer.resume_or_load("unused", resume=True) == {"iteration": 5}
    assert_same_state(again.state_dict(), model.state_dict())
    assert other.param_groups[0]["lr"] == 0.1
    momentum = other.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state_dict()["state"][0]["momentum_buffer"])


def test_the_stock_checkpointer_resumes_what_ours_saved(tmp_path: Path):
    model, again = net(seed=1), net(seed=2)
    SafeDetectionCheckpointer(model, str(tmp_path)).save("m", iteration=5)
    stock = DetectionCheckpointer(again, str(tmp_path))
    assert stock.resume_or_load("unused", resume=True) == {"iteration": 5}
    assert_same_state(again.state_dict(), model.state_dict())


def test_resuming_in_an_empty_directory_starts_afresh_and_says_so(tmp_path: Path):
    weights = save_net(tmp_path / "weights.pth")
    (tmp_path / "empty").mkdir()
    model = net()
    checkpointer = SafeDetectionCheckpointer(model, str(tmp_path / "empty"))
    with log_of("fvcore.common.checkpoint") as messages:
        checkpointer.resume_or_load(weights, resume=True)
    assert any(m.startswith("WARNING Nothing to resume") and weights in m for m in messages)
    assert_same_state(model.state_dict(), net(seed=9).state_dict())


def test_resuming_where_only_some_processes_have_a_checkpoint_is_refused_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    others = [(True, "far"), (False, "far"), (False, "away")]
    monkeypatch.setattr(comm, "all_gather", lambda mine: [(False, "far"), mine, *others])
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path))
    lacking = f"1 of 5 .* for rank 0, 3 in 'far' and rank 1 in '{tmp_path}' and rank 4 in 'away'"
    with pytest.raises(ValueError, match=f"only {lacking}: OUTPUT_DIR has to be one folder"):
        checkpointer.resume_or_load("", resume=True)
    save_run(tmp_path)
    with pytest.raises(ValueError, match=r"only 2 of 5 .* for rank 0, 3 in 'far' and rank 4 in"):
        checkpointer.resume_or_load("", resume=True)


def test_not_resuming_loads_the_weights_alone_silently(tmp_path: Path):
    weights = save_net(tmp_path / "weights.pth")
    model = net()
    SafeDetectionCheckpointer(net(seed=3), str(tmp_path)).save("m")
    with log_of("fvcore.common.checkpoint") as messages:
        SafeDetectionCheckpointer(model, str(tmp_path)).resume_or_load(weights, resume=False)
    assert not any(message.startswith("WARNING") for message in messages)
    assert_same_state(model.state_dict(), net(seed=9).state_dict())


def test_resuming_is_strict_about_shapes_even_where_loading_is_not(tmp_path: Path):
    SafeDetectionCheckpointer(net(classes=7), str(tmp_path)).save("m")
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path), strict_shapes=False)
    with pytest.raises(ValueError, match="these shapes do not fit"):
        checkpointer.resume_or_load("unused", resume=True)
    checkpointer.resume_or_load(str(tmp_path / "m.pth"), resume=False)


@pytest.mark.parametrize("name", ["../m.pth", "{outside}", "sub/m.pth", "..", ".", "m\0.pth", "/"])
def test_last_checkpoint_cannot_lead_out_of_its_folder(tmp_path: Path, name: str):
    outside = save_net(tmp_path / "m.pth")
    folder = tmp_path / "run"
    (folder / "sub").mkdir(parents=True)
    save_net(folder / "sub" / "m.pth")
    (folder / "last_checkpoint").write_text(name.format(outside=outside))
    with pytest.raises(ValueError, match="must name a file in its own folder") as error:
        SafeDetectionCheckpointer(net(), str(folder)).resume_or_load("", resume=True)
    assert str(folder / "last_checkpoint") in str(error.value)


def test_last_checkpoint_cannot_lead_out_through_a_link(tmp_path: Path):
    outside = save_net(tmp_path / "m.pth")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link.pth").symlink_to(outside)
    (folder / "last_checkpoint").write_text("link.pth")
    with pytest.raises(ValueError, match="must name a file in its own folder"):
        SafeDetectionCheckpointer(net(), str(folder)).get_checkpoint_file()


def test_a_linked_output_folder_is_followed(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path / "link"))
    checkpointer.save("m")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "link" / "m.pth")


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_last_checkpoint_is_an_error(tmp_path: Path, text: str):
    (tmp_path / "last_checkpoint").write_text(text)
    with pytest.raises(ValueError, match="last_checkpoint is empty"):
        SafeDetectionCheckpointer(net(), str(tmp_path)).resume_or_load("", resume=True)


@pytest.mark.parametrize("name", [b"gone.pth", b"\xff\xfe"])
def test_a_last_checkpoint_that_names_no_file_is_an_error(tmp_path: Path, name: bytes):
    (tmp_path / "last_checkpoint").write_bytes(name)
    with pytest.raises(DamagedError, match=r"last_checkpoint names .* no such file"):
        SafeDetectionCheckpointer(net(), str(tmp_path)).resume_or_load("", resume=True)


class Progress:
    """Something that is saved beside a model."""

    def __init__(self, iteration: int = -1) -> None:
        self.iteration = iteration

    def state_dict(self) -> dict[str, int]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.iteration = state["iteration"]


def save_run(folder: Path, iterations: int = 3) -> None:
    """Save checkpoints of a training, a second apart, and beside them weights that are newer."""
    for iteration in range(iterations):
        trainer = Progress(iteration)
        name = f"model_{iteration}"
        SafeDetectionCheckpointer(net(seed=iteration), str(folder), trainer=trainer).save(name)
        os.utime(folder / f"{name}.pth", (iteration, iteration))
    save_net(folder / "weights.pth")


def resumed(folder: Path) -> tuple[Progress, list[str]]:
    """Resume in a folder; return the state that has been found, and the warnings."""
    trainer, model = Progress(), net(seed=77)
    with log_of("fvcore.common.checkpoint") as messages:
        checkpointer = SafeDetectionCheckpointer(model, str(folder), trainer=trainer)
        checkpointer.resume_or_load("", resume=True)
    assert_same_state(model.state_dict(), net(seed=trainer.iteration).state_dict())
    return trainer, [message for message in messages if message.startswith("WARNING")]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, os.remove])
def test_resuming_goes_back_to_the_newest_readable_checkpoint_and_says_so(
    tmp_path: Path, damage: Callable[[Path], None]
):
    save_run(tmp_path)
    for name in ("model_2.pth", "model_1.pth"):
        damage(tmp_path / name)
    trainer, (warning,) = resumed(tmp_path)
    assert trainer.iteration == 0
    assert f"Resuming from {tmp_path / 'model_0.pth'}, because" in warning
    assert "model_2.pth" in warning
    assert ("model_1.pth" in warning) == (damage is not os.remove)
    assert "weights.pth holds no trainer" in warning


@pytest.mark.parametrize("tag", ["", "gone.pth"])
def test_resuming_finds_the_newest_checkpoint_where_the_tag_is_of_no_use(tmp_path: Path, tag: str):
    save_run(tmp_path)
    (tmp_path / "last_checkpoint").write_text(tag)
    trainer, (warning,) = resumed(tmp_path)
    assert trainer.iteration == 2
    assert str(tmp_path / "last_checkpoint") in warning


def test_a_tag_that_can_be_followed_is_followed_to_an_older_checkpoint(tmp_path: Path):
    save_run(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_1.pth")
    trainer, warnings = resumed(tmp_path)
    assert trainer.iteration == 1
    assert warnings == []


def test_resuming_without_any_readable_checkpoint_is_an_error_that_names_all(tmp_path: Path):
    save_run(tmp_path, iterations=2)
    for path in tmp_path.glob("model_*"):
        truncate(path)
    with pytest.raises(DamagedError, match="damaged") as error:
        resumed(tmp_path)
    for name in ("model_0.pth", "model_1.pth", "weights.pth"):
        assert str(error.value).count(str(tmp_path / name)) == 1


# --- saving -------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["second", "first"])
def test_an_interrupted_save_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
):
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path))
    checkpointer.save("first")
    before = contents(tmp_path)
    assert set(before) == {"first.pth", "last_checkpoint"}

    def stop_half_way(data: Any, file: Any) -> None:
        buffer = io.BytesIO()
        whole_save(data, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        raise error

    whole_save = torch.save
    monkeypatch.setattr(torch, "save", stop_half_way)
    with pytest.raises(type(error)):
        checkpointer.save(name)
    assert contents(tmp_path) == before


def test_a_save_that_cannot_be_tagged_leaves_the_former_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpointer = SafeDetectionCheckpointer(net(), str(tmp_path))
    checkpointer.save("first")
    whole_replace = os.replace

    def replace(source: str, target: str) -> None:
        if str(target).endswith("last_checkpoint"):
            raise OSError("disk full")
        whole_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save("second")
    assert set(contents(tmp_path)) == {"first.pth", "second.pth", "last_checkpoint"}
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "first.pth")


def test_what_a_killed_process_has_left_goes_with_the_next_save(tmp_path: Path):
    for name in (".model_7.pth.tmp", ".0123456789abcdef.tmp", ".0123456789abcdef.tmp.mp4"):
        (tmp_path / name).write_bytes(b"half")
    SafeDetectionCheckpointer(net(), str(tmp_path)).save("m")
    assert set(contents(tmp_path)) == {"m.pth", "last_checkpoint"}


def test_a_file_is_on_the_disk_before_it_has_its_name_and_is_tagged_behind_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events: list[str] = []
    whole_sync, whole_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(f"sync {re.sub(r'^[.][0-9a-f]+', '', name)}")
        whole_sync(descriptor)

    def replace(source: str, target: str) -> None:
        events.append(f"name {os.path.basename(target)}")
        whole_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    SafeDetectionCheckpointer(net(), str(tmp_path)).save("m")
    folder = f"sync {tmp_path.name}"
    assert events == [
        *("sync .tmp", "name m.pth", folder),
        *("sync .tmp", "name last_checkpoint", folder),
    ]


def test_a_full_disk_is_one_error_that_names_the_file_and_what_to_do(tmp_path: Path):
    checkpointer = SafeDetectionCheckpointer(nn.Linear(1000, 1000), str(tmp_path))
    checkpointer.save("first")
    before = contents(tmp_path)
    with files_limited_to(1_000_000), pytest.raises(NotSavedError) as error:
        checkpointer.save("second")
    assert error.value.errno == errno.EFBIG
    assert str(error.value).startswith(f"{tmp_path / 'second.pth'} could not be saved (File too")
    assert "free some space" in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_disk_that_refuses_a_file_is_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(NotSavedError, match=os.strerror(number)) as error:
        SafeDetectionCheckpointer(net(), str(tmp_path)).save("m")
    assert error.value.errno == number
    assert contents(tmp_path) == {}


# --- checksums ----------------------------------------------------------------------------------


def test_a_checkpoint_ends_with_the_checksum_of_all_before_it_in_a_comment_of_its_archive(
    tmp_path: Path,
):
    SafeDetectionCheckpointer(net(), str(tmp_path)).save("m")
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        comment = archive.comment
    content = path.read_bytes()
    assert comment == b"point_rend sha256 " + hashlib.sha256(content[:-64]).hexdigest().encode()
    assert_same_state(torch.load(path, weights_only=True)["model"], net().state_dict())
    mapped = torch.load(path, weights_only=True, mmap=True)["model"]
    assert_same_state(mapped, net().state_dict())


def save_small(folder: Path) -> bytes:
    SafeDetectionCheckpointer(nn.Linear(2, 3), str(folder)).save("m")
    return (folder / "m.pth").read_bytes()


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path):
    content = save_small(tmp_path)
    path = tmp_path / "changed.pth"
    rng = np.random.default_rng(0)
    unnoticed = []
    for position, bit in enumerate(rng.integers(0, 8, len(content))):
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        path.write_bytes(changed)
        with suppress(DamagedError):
            read(str(path))
            unnoticed.append(position)
    assert len(content) > 1000
    assert unnoticed == []


def test_a_missing_end_is_noticed_however_short_it_is(tmp_path: Path):
    content = save_small(tmp_path)
    path = tmp_path / "short.pth"
    for missing in [*range(1, 200), *range(200, len(content), 50)]:
        path.write_bytes(content[:-missing])
        with pytest.raises(DamagedError, match="cannot be read, it is damaged"):
            read(str(path))


@pytest.mark.parametrize("name", ["../m", "sub/m", "/tmp/m"])
def test_a_checkpoint_is_saved_in_its_folder_only(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="must not hold a folder"):
        SafeDetectionCheckpointer(net(), str(tmp_path)).save(name)


def test_a_process_that_does_not_save_writes_nothing(tmp_path: Path):
    SafeDetectionCheckpointer(net(), str(tmp_path), save_to_disk=False).save("m")
    assert contents(tmp_path) == {}


class Elsewhere(PathHandler):
    """Serves ``elsewhere://`` from a folder, as a handler of some storage would."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _get_supported_prefixes(self) -> list[str]:
        return ["elsewhere://"]

    def _get_local_path(self, path: str, force: bool = False, **_: Any) -> str:  # noqa: ARG002
        return str(self.folder / path.removeprefix("elsewhere://"))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering)

    def _exists(self, path: str, **_: Any) -> bool:
        return os.path.exists(self._get_local_path(path))

    def _isfile(self, path: str, **_: Any) -> bool:
        return os.path.isfile(self._get_local_path(path))


def test_storage_behind_the_path_manager_serves_for_saving_and_resuming(tmp_path: Path):
    model, again = net(seed=1), net(seed=2)
    checkpointers = [SafeDetectionCheckpointer(m, "elsewhere://run") for m in (model, again)]
    for checkpointer in checkpointers:
        checkpointer.path_manager = PathManager()
        checkpointer.path_manager.register_handler(Elsewhere(tmp_path))
    (tmp_path / "run").mkdir()
    checkpointers[0].save("m")
    assert set(contents(tmp_path / "run")) == {"m.pth", "last_checkpoint"}
    checkpointers[1].resume_or_load("", resume=True)
    assert_same_state(again.state_dict(), model.state_dict())
    (tmp_path / "run" / "last_checkpoint").write_text("../m.pth")
    with pytest.raises(ValueError, match="must name a file in its own folder"):
        checkpointers[1].resume_or_load("", resume=True)
