"""Files of safetensors: the library's own reader and writer are the oracle."""

import hashlib
import io
import json
import resource
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.checkpoint.class_metadata import read_stored_metadata
from point_rend.checkpoint.complete_model import CompleteModelCheckpointer
from point_rend.checkpoint.formats import read_safetensors as read
from point_rend.checkpoint.safetensors_file import (
    MAX_HEADER,
    load_safetensors,
    save_safetensors,
)
from tests.checkpoint.nets import arrays, assert_same_state, net, write_pickle, zoo_file
from tests.checkpoint.test_class_metadata import STORED
from tests.checkpoint.test_legacy_keys import FORMATS, emptied, random_state, small_model
from tests.http_server import Server, send

TYPES = ("float64", "float32", "float16", "bfloat16", "complex64", "bool")
TYPES += ("int64", "int32", "int16", "int8", "uint8")


def varied() -> dict[str, torch.Tensor]:
    """Return tensors of all types and of unusual shapes and strides."""
    random = torch.arange(-7, 8).reshape(5, 3) * 0.7
    tensors = {name: random.to(getattr(torch, name)) for name in TYPES}
    return tensors | {
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 7),
        "transposed": random.t(),
        "part of a larger one": random[1:3],
        "channels last": torch.arange(120.0)
        .reshape(2, 3, 4, 5)
        .to(memory_format=torch.channels_last),
        "näme": torch.tensor([float("nan"), -0.0, float("inf")]),
    }


def saved(state: dict[str, torch.Tensor], **settings: Any) -> bytes:
    file = io.BytesIO()
    digest = save_safetensors(state, file, **settings)
    assert digest == hashlib.sha256(file.getvalue()).hexdigest()
    return file.getvalue()


def write(path: Path, state: dict[str, torch.Tensor], **settings: Any) -> str:
    path.write_bytes(saved(state, **settings))
    return str(path)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    flat = tensor.contiguous().reshape(-1)
    return (
        tensor.dtype,
        tensor.shape,
        flat.view(torch.uint8).numpy().tobytes() if len(flat) else b"",
    )


def assert_same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert bits(actual[name]) == bits(tensor), name


def test_the_library_reads_what_is_written_here_bit_for_bit(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", varied(), metadata=STORED)
    found = safetensors.torch.load_file(path)
    assert_same_bits({name: found[name] for name in varied()}, varied())
    assert found.keys() == varied().keys()
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_what_the_library_writes_is_read_bit_for_bit(tmp_path: Path) -> None:
    path = str(tmp_path / "m.safetensors")
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in varied().items()
    }
    safetensors.torch.save_file(state, path, metadata={"epoch": "3"})
    checkpoint = read(path)
    assert_same_bits({name: checkpoint["model"][name] for name in state}, state)
    assert checkpoint.keys() == {"model"}


def test_a_file_is_aligned_deterministic_and_in_the_order_of_the_model() -> None:
    content = saved(varied())
    assert content == saved(varied())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    assert (8 + length) % 8 == 0
    assert list(header) == list(varied())
    for name, entry in header.items():
        assert entry["data_offsets"][0] % varied()[name].element_size() == 0


def test_tensors_under_several_names_are_stored_once_and_restored(tmp_path: Path) -> None:
    weight = torch.arange(1000.0)
    state = OrderedDict(a=weight, b=torch.ones(1), c=weight)
    content = saved(state)
    assert len(content) < 5000
    (tmp_path / "m.safetensors").write_bytes(content)
    model = read(str(tmp_path / "m.safetensors"))["model"]
    assert_same_bits({name: model[name] for name in state}, state)
    assert model["a"] is model["c"]


def test_a_shared_parameter_of_the_library_is_restored(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    path = str(tmp_path / "m.safetensors")
    safetensors.torch.save_model(model, path)
    assert set(read(path)["model"]) == set(model.state_dict())


def test_classes_config_and_versions_of_modules_come_back(tmp_path: Path) -> None:
    state = nn.Sequential(nn.BatchNorm1d(3)).state_dict()
    metadata = STORED | {"config": "SEED: 3\n"}
    path = write(tmp_path / "m.safetensors", state, metadata=metadata)
    assert read_stored_metadata(path) == (STORED, "SEED: 3\n")
    assert read_stored_metadata(f"{path}?matching_heuristics=True") == (STORED, "SEED: 3\n")
    checkpoint = read(path)
    assert checkpoint["metadata"] == metadata
    assert checkpoint["model"]._metadata == state._metadata


def test_a_url_of_a_file_is_loaded_with_its_classes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    content = saved(net(seed=1).state_dict(), metadata=STORED)
    server, model = Server(), net(seed=2)
    server.answers["/m.safetensors"] = lambda handler: send(handler, content)
    CompleteModelCheckpointer(model).load(f"{server.url}/m.safetensors")
    assert read_stored_metadata(f"{server.url}/m.safetensors").classes == STORED
    server.close()
    assert_same_state(model.state_dict(), net(seed=1).state_dict())


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
@pytest.mark.parametrize("names", FORMATS)
def test_every_format_of_a_model_survives_the_round_trip(tmp_path: Path, names, suffix) -> None:
    model = small_model()
    trained = random_state(model)
    old = {names(key): value for key, value in trained.items()}
    first = tmp_path / f"m.{suffix}"
    if suffix == "pth":
        torch.save({"model": old}, first)
    else:
        write_pickle(first, zoo_file({key: value.numpy() for key, value in old.items()}))
    CompleteModelCheckpointer(emptied(model)).load(str(first))
    second = write(tmp_path / "m.safetensors", model.state_dict())
    CompleteModelCheckpointer(emptied(model)).load(second)
    assert_same_bits(dict(model.state_dict()), trained)


@pytest.mark.parametrize("names", FORMATS)
def test_old_names_are_read_from_safetensors_too(tmp_path: Path, names) -> None:
    model = small_model()
    trained = random_state(model)
    old = {names(key): value for key, value in trained.items()}
    path = write(tmp_path / "m.safetensors", old)
    CompleteModelCheckpointer(emptied(model)).load(path)
    assert_same_bits(dict(model.state_dict()), trained)


def test_a_file_that_lacks_or_adds_a_parameter_is_refused_by_its_name(tmp_path: Path) -> None:
    state = net().state_dict()
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match=r"has 1 parameters \(another\.one\) .* the model lacks"):
        CompleteModelCheckpointer(net()).load(write(path, state | {"another.one": torch.ones(1)}))
    del state["backbone.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 \(backbone\.weight\) of the \d+ parameters"):
        CompleteModelCheckpointer(net()).load(write(path, state))


def test_what_the_format_cannot_hold_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"'a' is a tensor of torch.complex128"):
        saved({"a": torch.ones(1, dtype=torch.complex128)})
    with pytest.raises(ValueError, match=r"'a' is a tensor of .* torch.sparse_coo"):
        saved({"a": torch.ones(1).to_sparse()})
    with pytest.raises(ValueError, match="no parameter can have the name '__metadata__'"):
        saved({"__metadata__": torch.ones(1)})


# Damaged and hostile files


def built(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def described(*offsets: int, dtype: str = "F32", shape: Any = (2,), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


GOOD = saved(net().state_dict())
HOSTILE = {
    "nothing": (b"", "an empty file"),
    "a few bytes": (b"\x05\0", "its header is longer than the file"),
    "half a file": (GOOD[:-300], "its tensors have"),
    "half a header": (GOOD[:100], "its header is longer than the file"),
    "a byte more": (GOOD + b"\0", "its tensors have"),
    "another byte": (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "not those of its checksum"),
    "a header of 2**63": (b"\xff" * 7 + b"\x7f{}", "longer than the file"),
    "a large header": (built(b" " * (MAX_HEADER + 1)), "expected 16777216 at most"),
    "lists within lists": (built(b"[" * MAX_HEADER), "nested too deeply|lists and objects"),
    "many objects": (built(b"[" + b"{}," * 5_500_000 + b"1]"), "lists and objects"),
    "a list": (built([1]), r"\[1\], expected a JSON object"),
    "no JSON": (built(b"{}}"), "truncated or not JSON"),
    "a tensor twice": (built(b'{"a": 1, "a": 2}'), "the key 'a' twice"),
    "a number in place of a tensor": (built({"a": 1}), "'a' is described by 1"),
    "a field more": (built({"a": described(0, 8, x=1)}, bytes(8)), "'a' is described by"),
    "1 TB declared": (built({"a": described(0, 1 << 40, shape=[1 << 38])}), "tensors have"),
    "an endless shape": (built({"a": described(0, 8, shape=[1 << 61] * 60)}), "expected far more"),
    "an endless number": (built(b'{"a": 1' + b"0" * 5000 + b"}"), "too many digits"),
    "a negative side": (built({"a": described(0, 8, shape=[-1, -2])}, bytes(8)), "impossible"),
    "a truth value as a side": (
        built({"a": described(0, 4, shape=[True])}, bytes(4)),
        "impossible",
    ),
    "a negative place": (built({"a": described(-8, 0)}), "impossible"),
    "65 dimensions": (built({"a": described(0, 4, shape=[1] * 65)}, bytes(4)), "impossible"),
    "a wrong size": (built({"a": described(0, 4)}, bytes(4)), "has 4 bytes, expected 8"),
    "tensors on each other": (
        built({"a": described(0, 8), "b": described(4, 12)}, bytes(12)),
        "'b' overlaps another",
    ),
    "a gap": (built({"a": described(4, 12)}, bytes(12)), "leaves a gap"),
    "an unknown type": (built({"a": described(0, 1, dtype="F4")}, b"1"), "type 'F4', expected one"),
    "a truth value of 2": (
        built({"a": described(0, 2, dtype="BOOL")}, b"\1\2"),
        "truth values other than 0 and 1",
    ),
    "a list of texts": (built({"__metadata__": ["pt"]}), "__metadata__ is not a dict of texts"),
    "numbers as texts": (built({"__metadata__": {"a": 1}}), "__metadata__ is not a dict of texts"),
    "damaged classes": (
        built({"__metadata__": {"point_rend": "{"}}),
        "its point_rend is truncated",
    ),
    "a list of classes": (built({"__metadata__": {"point_rend": "[]"}}), "expected a JSON object"),
    "versions of modules that are none": (
        built({"__metadata__": {"point_rend": '{"versions": 1}'}, "a": described(0, 8)}, bytes(8)),
        "versions of modules",
    ),
    "no tensors": (built({}), "holds no parameters"),
    "a .pth": (b"PK\x03\x04" + bytes(100), "name it .pth"),
    "a web page": (b"<!DOCTYPE html><html>" + bytes(9), "a web page"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_short_line_within_bounds(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    before, start = peak_memory(), time.process_time()
    with pytest.raises(ValueError, match=message) as error:
        SafeDetectionCheckpointer(net()).load(str(path))
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 700
    assert str(error.value).isprintable()
    assert time.process_time() - start < 5
    assert peak_memory() - before < 1 << 30


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("metadata", [1, {"thing_classes": 3}, {"thing_colors": [[1]]}])
def test_unsound_classes_are_refused_as_those_of_other_formats(tmp_path: Path, metadata) -> None:
    own = json.dumps({"metadata": metadata})
    path = tmp_path / "m.safetensors"
    path.write_bytes(built({"__metadata__": {"point_rend": own}, "a": described(0, 8)}, bytes(8)))
    if metadata == 1:
        assert read_stored_metadata(str(path)) == ({}, None)
    else:
        with pytest.raises(ValueError, match="which is not sound"):
            read_stored_metadata(str(path))


def test_the_name_of_another_format_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"Hugging Face's safetensors: name it \.safetensors"):
        SafeDetectionCheckpointer(net()).load(str(path))


def test_reading_is_independent_of_the_file_afterwards(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "m.safetensors", {"a": torch.ones(3)}))
    with path.open("rb") as file:
        model = load_safetensors(file)["model"]
    path.write_bytes(bytes(1000))
    model["a"].add_(1)
    assert model["a"].tolist() == [2, 2, 2]


def test_numpy_arrays_of_the_zoo_are_the_same_bits(tmp_path: Path) -> None:
    model = net(seed=3)
    first = write_pickle(tmp_path / "m.pkl", zoo_file(arrays(model)))
    again = net(seed=4)
    CompleteModelCheckpointer(again).load(first)
    second = write(tmp_path / "m.safetensors", again.state_dict())
    assert_same_bits(dict(read(second)["model"]), dict(model.state_dict()))
