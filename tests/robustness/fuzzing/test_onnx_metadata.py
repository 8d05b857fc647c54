"""The description in an ONNX file: mutated files are read or refused.

The oracle is the package onnx, which parses whole models with Google's library.
"""

import tempfile
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from hypothesis import example, given

from point_rend.runtime.description import KEY, Description
from point_rend.runtime.files import read_description
from tests.robustness.fuzzing.mutations import Mutation, mutated, mutations
from tests.runtime.test_description import DESCRIPTION


def model() -> bytes:
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    value = onnx.helper.make_tensor_value_info
    ends = [[value(name, onnx.TensorProto.FLOAT, ["n"])] for name in ("x", "y")]
    made = onnx.helper.make_model(onnx.helper.make_graph([node], "graph", *ends))
    onnx.helper.set_model_props(made, {"author": "nobody", KEY: DESCRIPTION.to_json()})
    return made.SerializeToString()


FILE = model()
PIECES = [b"\x72", b"\x0a", b"\x12", b"\x3a", b"\x80", b"\xff" * 9, b"\x00", b"point_rend", b"{"]


def check(content: bytes) -> bool:
    """Read a file; a description that is found is one that onnx finds, too."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(content)
        try:
            found = read_description(path)
        except ValueError as error:
            message = " ".join(str(error).split())
            assert str(path) in message
            assert message.isprintable()
            return False
    try:
        parsed = onnx.ModelProto.FromString(content)
    except DecodeError:
        return True
    texts = [x.value for x in parsed.metadata_props if x.key == KEY]
    assert found in [Description.from_json(text, "") for text in texts[:1]]
    return True


def test_the_real_file_is_read() -> None:
    assert check(FILE)


def test_metadata_before_a_graph_of_any_size_is_found() -> None:
    other = onnx.ModelProto.FromString(FILE)
    del other.metadata_props[:]
    other.doc_string = "x" * (3 << 20)
    assert check(FILE + other.SerializeToString())
    assert check(other.SerializeToString() + FILE)


@example([(0, "replace", b"\x72\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")])
@example([(0, "insert", b"\x08\x00" * 4)])
@given(mutations(PIECES, len(FILE)))
def test_a_mutated_file_is_read_or_refused(changes: list[Mutation]) -> None:
    check(mutated(FILE, changes))
