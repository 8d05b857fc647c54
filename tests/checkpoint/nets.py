"""Small models, files of many formats and hostile objects for the tests of checkpoints."""

import logging
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer


@contextmanager
def log_of(name: str) -> Iterator[list[str]]:
    """Collect the messages of a logger from INFO on, independently of its parents."""
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


def zoo_file(model: dict[str, Any], **more: Any) -> dict[str, Any]:
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


def save_net(path: Path, **settings: int) -> str:
    torch.save({"model": net(seed=9, **settings).state_dict()}, path)
    return str(path)


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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
