"""Files that ask for unbounded work end in one error, soon; good files of every age are read."""

import collections
import io
import logging
import os
import resource
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.checkpoint.formats import MAX_PARAMETERS
from point_rend.checkpoint.pickle_machine import Budget, FormatError, check_key
from point_rend.checkpoint.torch_file import check_torch_file
from tests.checkpoint.nets import net, write_pickle, zoo_file
from tests.robustness.bombs import FILES, LEGACY, PICKLES, save

SECONDS, BYTES = 5, 2 << 30


@pytest.fixture
def bounded() -> Iterator[None]:
    """Limit the memory and the processor time of a test."""
    limit, hard = resource.getrlimit(resource.RLIMIT_DATA)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    held = int(status["VmData"].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (held + BYTES, hard))
    start = time.process_time()
    yield
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    assert time.process_time() - start < SECONDS


@pytest.mark.filterwarnings("ignore")  # of the writers of unusual files
@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(
    ("suffix", "name"), [("pkl", n) for n in PICKLES] + [("pth", n) for n in FILES]
)
def test_a_bomb_ends_in_one_short_line_that_names_the_file(
    tmp_path: Path, name: str, suffix: str
) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(PICKLES[name] if suffix == "pkl" else FILES[name]())
    with pytest.raises(ValueError, match=str(path)) as error:
        SafeDetectionCheckpointer(net()).load(str(path))
    message = str(error.value)
    assert len(message) < 900
    assert message.isprintable()


OTHER_FILES = ["TorchScript", "tar", "HTML", "Git LFS", "safetensors", "JSON"]


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_kinds_of_files_are_named_as_such(tmp_path: Path, name: str) -> None:
    kinds = {"HTML": "a web page", "safetensors": "safetensors: name it"}
    path = tmp_path / "model.pth"
    path.write_bytes(FILES[name]())
    with pytest.raises(ValueError, match=kinds.get(name, name)):
        SafeDetectionCheckpointer(net()).load(str(path))


def test_a_pipe_a_folder_and_a_device_are_refused_without_waiting(tmp_path: Path) -> None:
    for suffix in ("pth", "pkl", "pyth"):
        pipe, folder = tmp_path / f"pipe.{suffix}", tmp_path / f"folder.{suffix}"
        os.mkfifo(pipe)
        folder.mkdir()
        for path in (pipe, folder):
            with pytest.raises((ValueError, FileNotFoundError), match=str(path)):
                SafeDetectionCheckpointer(net()).load(str(path))


def test_more_parameters_than_any_model_has_are_refused(tmp_path: Path) -> None:
    model = dict.fromkeys(map(str, range(MAX_PARAMETERS + 1)), np.ones(1))
    path = write_pickle(tmp_path / "model.pkl", zoo_file(model))
    with pytest.raises(ValueError, match=f"{path} holds {MAX_PARAMETERS + 1} parameters"):
        SafeDetectionCheckpointer(net()).load(path)


# Good files


def with_note(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = "x"  # type: ignore[attr-defined]
    return tensor


def contents() -> dict[str, Any]:
    """Return all kinds of values that checkpoints hold."""
    shared = torch.arange(12.0).view(3, 4)
    state = net(seed=4).state_dict()
    return {
        "model": state,
        "shared": [shared, shared.t(), shared[1:, ::2], shared],
        "expanded": torch.zeros(1).expand(3, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "types": [
            torch.ones(2, dtype=dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint16)
        ],
        "complex": torch.ones(2, dtype=torch.complex64),
        "parameter": nn.Parameter(torch.ones(3)),
        "without gradient": nn.Parameter(torch.ones(3), requires_grad=False),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{}]},
        "counter": collections.Counter({30: 1, 10: 2}),
        "ordered": OrderedDict(a=1, b=(2, None)),
        "plain": [1, -(2**70), 1.5, "ü", b"\x00\xff", True, {"x": {1, 2}}, torch.Size([2, 3])],
        "keys": {(0, "a"): 1, 3: 2, "b": 3},
        "complex number": 1 + 2j,
        "attributes": [with_note(torch.ones(2)), with_note(nn.Parameter(torch.ones(2)))],
        "names": [torch.float32, torch.device("cpu")],
    }


def assert_same(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert (actual.dtype, actual.stride()) == (expected.dtype, expected.stride())
        assert actual.requires_grad == expected.requires_grad
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            assert_same(actual[key], value)
        assert getattr(actual, "_metadata", 0) == getattr(expected, "_metadata", 0)
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert_same(a, b)
    else:
        assert actual == expected


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["archive", "legacy"])
def test_whatever_torch_itself_reads_of_what_it_writes_is_read(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    content = contents()
    if options:  # torch does not read its own legacy files of newer types
        content["types"].pop()
    path = tmp_path / "model.pth"
    path.write_bytes(save(content, **options))
    actual = SafeDetectionCheckpointer(net())._torch_load(str(path))
    assert_same(actual, torch.load(path, weights_only=True))
    assert [tensor.note for tensor in actual["attributes"]] == ["x", "x"]
    assert actual["shared"][0].data_ptr() == actual["shared"][3].data_ptr()


def test_an_archive_without_checksums_is_read() -> None:
    buffer = io.BytesIO(save(contents()))
    with zipfile.ZipFile(buffer) as archive:
        offset = archive.getinfo(archive.namelist()[0]).CRC
    raw = buffer.getvalue().replace(offset.to_bytes(4, "little"), bytes(4))
    check_torch_file(io.BytesIO(raw))


def test_the_budget_ends_and_keys_are_numbers_and_strings() -> None:
    budget = Budget(3)
    budget.spend(3)
    with pytest.raises(FormatError):
        budget.spend(1)
    for key in ("a", b"a", 3, -(2**59), 1.5, None, True):
        assert check_key(key) == key
    for key in (1 << 60, (1,), frozenset(), 1j, np.float64(1)):
        with pytest.raises(FormatError):
            check_key(key)


def test_an_honest_checkpoint_is_checked_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, model = net(seed=1), net(seed=2)
    SafeDetectionCheckpointer(source, str(tmp_path)).save("m")
    with caplog.at_level(logging.WARNING):
        SafeDetectionCheckpointer(model).load(str(tmp_path / "m.pth"))
    assert not caplog.records
    assert_same(dict(model.state_dict()), dict(source.state_dict()))
