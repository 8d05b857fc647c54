"""Files of safetensors: mutated files, and headers of any values."""

import io
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from point_rend.checkpoint.safetensors_file import save_safetensors
from tests.checkpoint.nets import net
from tests.robustness.fuzzing.mutations import Mutation, loads_or_is_refused, mutated, mutations
from tests.robustness.fuzzing.test_rle import VALUES


def saved(**metadata: Any) -> bytes:
    file = io.BytesIO()
    save_safetensors(net().state_dict(), file, metadata=metadata)
    return file.getvalue()


FILES = [saved(), saved(thing_classes=["a", "b", "c"], config="SEED: 1\n")]
LENGTH = int.from_bytes(FILES[1][:8], "little")
HEADER = json.loads(FILES[1][8 : 8 + LENGTH])
DATA = FILES[1][8 + LENGTH :]
PIECES = [
    b'{"',
    b'":',
    b"[",
    b"]",
    b"}",
    b",",
    b"0",
    b"-1",
    b"1e9",
    b"9" * 20,
    b"null",
    b"\xff" * 8,
]
PIECES += [b'"F32"', b'"BOOL"', b'"C64"', b'"dtype"', b'"shape"', b'"data_offsets"', b"\\ud800"]
NUMBERS = st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**400, True, 0.5])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BOOL", "I64", "F4", 1]) | VALUES,
        "shape": st.lists(NUMBERS | st.integers(0, 9), max_size=70) | VALUES,
        "data_offsets": st.lists(NUMBERS | st.integers(0, len(DATA)), max_size=3),
    }
)
OWN = st.fixed_dictionaries(
    {}, optional={"sha256": VALUES, "metadata": VALUES, "versions": VALUES, "x": VALUES}
)
TEXTS = st.dictionaries(st.sampled_from(["format", *HEADER]), st.sampled_from(["pt", *HEADER]))


@pytest.mark.parametrize("number", range(len(FILES)))
def test_the_real_files_are_read(number: int) -> None:
    assert loads_or_is_refused(FILES[number], "safetensors")


@example(0, [(0, "remove", b"12345678")])
@example(0, [(0, "replace", b"\xff" * 8)])
@example(1, [(8, "replace", b"[[")])
@given(st.integers(0, len(FILES) - 1), mutations(PIECES, 1 << 12))
def test_a_mutated_file_is_read_or_refused(number: int, changes: list[Mutation]) -> None:
    loads_or_is_refused(mutated(FILES[number], changes), "safetensors")


@example({"backbone.bias": {"dtype": "F32", "shape": [2**62] * 3, "data_offsets": [0, 20]}}, {}, {})
@example({}, {"versions": {"": {"version": 10**400}}}, {"a": "backbone.bias"})
@given(st.dictionaries(st.sampled_from(sorted(HEADER)), ENTRIES, max_size=2), OWN, TEXTS)
def test_any_header_is_read_or_refused(
    entries: dict[str, Any], own: dict[str, Any], texts: dict[str, str]
) -> None:
    changed = HEADER | entries | {"__metadata__": texts | {"point_rend": json.dumps(own)}}
    text = json.dumps(changed).encode()
    loads_or_is_refused(len(text).to_bytes(8, "little") + text + DATA, "safetensors")
