"""Cards and labels of models in folders, from any bytes and from any values."""

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from point_rend.runtime.model_folder import read_model_folder
from tests.robustness.fuzzing.mutations import Mutation, mutated, mutations
from tests.robustness.fuzzing.test_rle import VALUES
from tests.robustness.test_model_folders import GOOD, LABELS

FOLDER = tempfile.TemporaryDirectory()
PIECES = [
    b"---\n",
    b"sha256: ",
    b"point_rend:",
    b"&a ",
    b"*a",
    b"!!int ",
    b"\t",
    b"\xff",
    b"{",
    b"[",
]
ENTRIES = st.fixed_dictionaries({"name": VALUES, "id": VALUES, "color": VALUES})
FIELDS = st.sampled_from(["thing_classes", "stuff_classes", "x"])


def is_read(**files: bytes) -> bool:
    """Read a folder with changed files: it is read, or there is one error that names it."""
    folder = Path(FOLDER.name)
    for name, content in (GOOD | {name.replace("_", "."): x for name, x in files.items()}).items():
        (folder / name).write_bytes(content)
    try:
        read_model_folder(folder)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())  # as the commands print it
        assert FOLDER.name in message, message
        assert len(message) < 1000, message
        return False
    return True


def test_the_good_folder_is_read() -> None:
    assert is_read()


@example([(0, "end", b".")])
@example([(4, "insert", b"? [1]\n: 2\n")])
@given(mutations(PIECES, len(GOOD["README.md"])))
def test_a_mutated_card_is_read_or_refused(changes: list[Mutation]) -> None:
    is_read(README_md=mutated(GOOD["README.md"], changes))


@example({"point_rend": {"sha256": 10**64}})
@given(VALUES | st.dictionaries(st.just("point_rend"), VALUES))
def test_a_card_of_any_data_is_read_or_refused(value: Any) -> None:
    is_read(README_md=f"---\n{yaml.safe_dump(value, allow_unicode=True)}\n---\n".encode())


@example({"thing_classes": [LABELS["thing_classes"][0] | {"id": 10**400}]})
@example({"thing_classes": [LABELS["thing_classes"][0] | {"name": "\ud800"}]})
@given(VALUES | st.dictionaries(FIELDS, VALUES | st.lists(ENTRIES | VALUES, max_size=4)))
def test_labels_of_any_values_are_read_or_refused(value: Any) -> None:
    is_read(labels_json=json.dumps(value).encode())


@given(mutations([b'"', b"{", b"[", b"null", b"1e999", b"\\ud800"], len(GOOD["labels.json"])))
def test_mutated_labels_are_read_or_refused(changes: list[Mutation]) -> None:
    is_read(labels_json=mutated(GOOD["labels.json"], changes))
