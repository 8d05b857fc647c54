"""YAML of a config, from any bytes and from any structure, and any option."""

from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from point_rend.config.defaults import DEFAULTS
from point_rend.config.loading import load_config, parse_config

KEYS = st.sampled_from(
    [key.split(".") for key in (*DEFAULTS, "SEED", "VERSION", "MODEL.WEIGHT", "TEST.AUG_ON")]
)
NUMBERS = st.integers() | st.floats() | st.booleans()
SCALARS = st.none() | NUMBERS | st.text(max_size=20) | st.dates() | st.binary(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=4), below),
    max_leaves=20,
)
# Pieces of the syntax, which random bytes hardly ever form.
PIECES = ["SEED", "MODEL", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a", "<<"]
PIECES += ["!!int ", "!!set ", "!!timestamp ", "!!binary ", "!!omap ", "!x ", "? ", "| ", "> ", "1"]
PIECES += ["'", '"', "#", "%", "---", "...", "0x", "1:2", "2026-01-01", "é", "\\u", "\0", "\t"]


def refused_or_loaded(text: str | bytes) -> None:
    """Parse a config: there is a result, or an error of one short line that names the source."""
    message = "here"
    try:
        parse_config(text, "here")  # type: ignore[arg-type]
    except ValueError as error:
        message = str(error)
    assert message.startswith("here"), message
    assert len(message) < 1000, message


def nested(path: list[str], value: Any) -> dict[str, Any]:
    """Return the sections around a value."""
    for name in reversed(path):
        value = {name: value}
    return value


@example(b"")
@example(b"\xff\xfe")
@example("SEED: 7".encode("utf-16-le"))
@example("SEED: 7".encode("utf-32"))
@example(b"\xef\xbb\xbfSEED: 7")
@example(b"OUTPUT_DIR: \xe9")
@example(b"SEED: " + 100_000 * b"[")
@example(b"VERSION: 1\nMODEL: {WEIGHT: 3}")
@given(st.binary(max_size=300))
def test_any_bytes(content: bytes) -> None:
    refused_or_loaded(content)


@example(["&a ", "[", "*a", "]"])
@example(["SEED", ": ", "!!timestamp ", "1"])
@example(["SEED", ": ", "!!int ", "'", "'"])
@example(["? ", "[", "]", "\n", ": ", "1"])
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30))
def test_any_pieces_of_the_syntax(pieces: list[str]) -> None:
    refused_or_loaded("".join(pieces))


@example(["VERSION"], 10**400)
@example(["VERSION"], float("nan"))
@example(["MODEL", "WEIGHT"], "((((")
@example(["MODEL"], {"DEVICE": {"A": 1}})
@example(["MODEL", "RESNETS", "RES5_MULTI_GRID"], [[{"a": [None]}]])
@given(KEYS, VALUES)
def test_any_value_of_a_key(path: list[str], value: Any) -> None:
    refused_or_loaded(yaml.safe_dump(nested(path, value), allow_unicode=True))


@example(["SEED"], 5000 * "(")
@example(["SEED"], 9000 * "-" + "1")
@example(["OUTPUT_DIR"], "'\\d'")
@example(["OUTPUT_DIR"], "\ud800")
@given(KEYS, st.text(max_size=30) | VALUES.map(repr))
def test_any_option(path: list[str], text: str) -> None:
    message = "opts: "
    try:
        load_config("pointrend_shapes", [".".join(path), text])
    except ValueError as error:
        message = str(error)
    assert message.startswith("opts: "), message
