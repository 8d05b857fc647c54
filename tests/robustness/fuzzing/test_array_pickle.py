"""Pickles of arrays: mutated files of the model zoo, of Detectron and of proposals."""

import io
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from point_rend.checkpoint.array_pickle import load_arrays
from tests.checkpoint.nets import arrays, detectron_blobs, net, zoo_file
from tests.robustness.bombs import PICKLES
from tests.robustness.fuzzing.mutations import Mutation, loads_or_is_refused, mutated, mutations


def contents() -> list[Any]:
    few = dict(list(arrays(net()).items())[:2])
    proposals = {"ids": [1, "2"], "boxes": [np.ones((2, 4), ">f4")], "bbox_mode": 1}
    ordered = OrderedDict(a=np.float32(1), b=np.array(["ä"]))
    return [zoo_file(few), {"blobs": detectron_blobs()}, zoo_file(few, x=proposals, y=[ordered])]


FILES = [pickle.dumps(content, protocol) for content in contents() for protocol in (0, 2, 4)]
OPERATIONS = [getattr(pickle, name) for name in dir(pickle) if name.isupper()]
PIECES = [code for code in OPERATIONS if isinstance(code, bytes) and len(code) == 1]
PIECES += [b"cnumpy\nndarray\n", b"cos\nsystem\n", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"I-1\n"]
PIECES += [b"q\0h\0\x86", b"(I0\nt", b"S'f4'\n", b"\x8a\x08" + b"\xff" * 7 + b"\x1f", b"}u", b"NNb"]


@pytest.mark.parametrize("number", range(len(FILES)))
def test_the_real_files_are_read(number: int) -> None:
    expected = pickle.loads(FILES[number], encoding="latin1")
    actual = load_arrays(io.BytesIO(FILES[number]))
    assert pickle.dumps(actual) == pickle.dumps(expected) or repr(actual) == repr(expected)


@example(0, [(10**6, "end", b"."), (0, "remove", b"123")])
@example(3, [(1, "replace", b"\xff\xff\xff\xff")])
@given(st.integers(0, len(FILES) - 1), mutations(PIECES, 1 << 16))
def test_a_mutated_file_is_read_or_refused(number: int, changes: list[Mutation]) -> None:
    loads_or_is_refused(mutated(FILES[number], changes), "pkl")


@example([PICKLES["doubled tuples"]])
@example([b"\x80\x02", b"(", b"K\x01", b"K\x02", b"d", b"."])
@example([b"]", b"q\0", b"h\0", b"a", b"."])
@example([b"c__builtin__\nset\n", b"(", b"]", b"l", b"t", b"R", b"."])
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=40))
def test_any_operations_are_read_or_refused(pieces: list[bytes]) -> None:
    loads_or_is_refused(b"".join(pieces), "pkl")
