"""Files of torch: mutated archives, legacy files and pickles within archives."""

import pickle
import zipfile
from io import BytesIO
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from point_rend.checkpoint.sealed_file import save_sealed
from tests.checkpoint.nets import net
from tests.robustness.bombs import LEGACY, save, with_pickle
from tests.robustness.fuzzing.mutations import Mutation, loads_or_is_refused, mutated, mutations


def content() -> dict[str, Any]:
    momentum = {0: {"momentum_buffer": torch.ones(3), "step": 2}}
    return {
        "model": net().state_dict(),
        "optimizer": {"state": momentum, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
        "iteration": 7,
        "x": [torch.ones(2, 3).t(), torch.nn.Parameter(torch.ones(1)), torch.Size([2])],
    }


def sealed() -> bytes:
    file = BytesIO()
    save_sealed(content(), file)
    return file.getvalue()


FILES = [save(content()), save(content(), **LEGACY), sealed()]
with zipfile.ZipFile(BytesIO(FILES[0])) as archive:
    PICKLE = archive.read("archive/data.pkl")
    STORAGES = [archive.read(name) for name in archive.namelist() if "/data/" in name]
OPERATIONS = [getattr(pickle, name) for name in dir(pickle) if name.isupper()]
PIECES = [code for code in OPERATIONS if isinstance(code, bytes) and len(code) == 1]
PIECES += [b"PK\x03\x04", b"PK\x05\x06", b"PK\x01\x02", b"PK\x06\x06", b"\xff\xff\xff\xff", b"../"]
PIECES += [
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"meta",
    b"J\0\0\0\x80",
]
PIECES += [b"ctorch\nSize\n", b"c__builtin__\nbytearray\n", b"ctorch._utils\n_rebuild_parameter\n"]
PIECES += [b"X\x07\0\0\0storage", b"\x8a\x05\0\0\0\0\x10", b"ccollections\nCounter\n", b"tQ", b")R"]


@pytest.mark.parametrize("number", range(len(FILES)))
def test_the_real_files_are_read(number: int) -> None:
    assert loads_or_is_refused(FILES[number], "pth")


@example(1, [(0, "remove", b"12")])
@example(0, [(100, "replace", b"\xff\xff\xff\xff")])
@given(st.integers(0, len(FILES) - 1), mutations(PIECES, 1 << 16))
def test_a_mutated_file_is_read_or_refused(number: int, changes: list[Mutation]) -> None:
    loads_or_is_refused(mutated(FILES[number], changes), "pth")


@example([(0, "end", b"")])
@given(mutations(PIECES, len(PICKLE)))
def test_a_mutated_pickle_in_an_archive_is_read_or_refused(changes: list[Mutation]) -> None:
    loads_or_is_refused(with_pickle(mutated(PICKLE, changes), *STORAGES), "pth")
