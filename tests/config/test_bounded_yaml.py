"""Config files and options beyond any use end in one short error at once."""

import os
import time
from pathlib import Path

import pytest

from point_rend.config.bounded_yaml import Budget, parse_yaml
from point_rend.config.loading import load_config, parse_config


def alias_bomb(part: str) -> str:
    """Write anchors of which each repeats the one before nine times, in the form of `part`."""
    lines = ["a0: &a0 {A: 1, B: 2}"]
    for i in range(1, 20):
        names = [f"*a{i - 1}"] * 9
        lines.append(f"a{i}: &a{i} " + part.format(*names, all=", ".join(names)))
    return "\n".join(lines)


LIST_BOMB, MERGE_BOMB = alias_bomb("[{all}]"), alias_bomb("{{<<: [{all}]}}")
MAP_BOMB = alias_bomb("{{A: {}, B: {}, C: {}, D: {}, E: {}, F: {}, G: {}, H: {}, I: {}}}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LIST_BOMB, "line 5: too much data"),
        (MAP_BOMB, "line 5: too much data"),
        (MERGE_BOMB, "line 5: too much data"),
        ("a: &a " + 5000 * "x" + "\nb: [" + 2000 * "*a," + "]", "line 2: too much data"),
        ("".join(f"K{i}: 1\n" for i in range(10_001)), "line 10000: too much data"),
        ("SEED: " + 20_000 * "[", "line 1: nested too deep, expected at most 32 levels"),
        ("SEED: " + 400 * "[" + 400 * "]", "line 1: nested too deep"),
        ("".join(i * " " + "A:\n" for i in range(500)), "line 32: nested too deep"),
        ("A: &a [" + 30 * "[" + 30 * "]" + "]\nB: [[[*a]]]", "line 2: nested too deep"),
        ("A: &a [1, *a]", "line 1: anchor 'a' contains itself"),
        ("&a {A: *a}", "line 1: anchor 'a' contains itself"),
        ("A: &a {<<: *a}", "line 1: anchor 'a' contains itself"),
        ("# comment\n" * 1_000_000, "10000000 bytes, expected at most 1000000 in all"),
        ("SEED: " + 5000 * "9", "line 1: a number of 5000 characters, expected at most 100"),
        ("SEED: " + 5000 * "1:" + "1", "line 1: a number of 10001 characters"),
        ("SEED: 1\nSOLVER: {}\nSEED: 2", "line 3: SEED a second time, after line 1"),
        ("SOLVER: {MAX_ITER: 1, MAX_ITER: 2}", "line 1: MAX_ITER a second time"),
        ("SEED: !!bool 7", "a value does not fit its tag"),
        ("SEED: !!timestamp 7", "a value does not fit its tag"),
        ("SEED: !!int ''", "a value does not fit its tag"),
        ("SEED: !" + 100_000 * "a" + " 1", r"tag '!aaaa.* \[\d+ characters\] aaa"),
        (100_000 * "a", r"expected config keys and values, got 'aaa.* \[\d+ characters\] aaa"),
    ],
    ids=lambda value: value[:12],
)
def test_a_file_beyond_the_bounds_is_refused_at_once(text, message):
    start = time.process_time()
    with pytest.raises(ValueError, match=f"^here.*{message}") as caught:
        parse_config(text, "here")
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 500


def test_keys_may_be_merged_and_overridden():
    tree = parse_yaml("A: &a {X: 1, Y: 2}\nB: {<<: *a, Y: 3}", "here", Budget())
    assert tree == {"A": {"X": 1, "Y": 2}, "B": {"X": 1, "Y": 3}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_encoding_of_yaml_is_read(tmp_path, encoding):
    (tmp_path / "a.yaml").write_bytes("OUTPUT_DIR: é".encode(encoding))
    assert load_config(str(tmp_path / "a.yaml")).OUTPUT_DIR == "é"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32"])
def test_other_encodings_are_refused(tmp_path, encoding):
    (tmp_path / "a.yaml").write_bytes("OUTPUT_DIR: é".encode(encoding))
    with pytest.raises(ValueError, match=r"a\.yaml is not valid YAML: unacceptable character"):
        load_config(str(tmp_path / "a.yaml"))


def chain(folder: Path, length: int, repeated: int) -> str:
    """Write files of which each names the next one as its base, `repeated` times."""
    for i in range(length):
        bases = ", ".join(repeated * [f"{i + 1}.yaml"])
        (folder / f"{i}.yaml").write_text(f"_BASE_: [{bases}]\n# {2000 * 'x'}")
    (folder / f"{length}.yaml").write_text("SEED: 7")
    return str(folder / "0.yaml")


@pytest.mark.parametrize(("length", "repeated"), [(30, 2), (1, 5000), (500, 1)])
def test_bases_that_include_each_other_many_times_are_refused(tmp_path, length, repeated):
    with pytest.raises(ValueError, match=r"yaml \(_BASE_ of .*yaml\): expected at most 100 files"):
        load_config(chain(tmp_path, length, repeated))


def test_a_chain_of_bases_is_read(tmp_path):
    assert load_config(chain(tmp_path, 20, 1)).SEED == 7


@pytest.mark.parametrize("text", ["SEED: 1\n# " + 20_000 * "x", "A: [" + 3000 * "1, " + "]"])
def test_the_bases_of_a_config_share_its_bounds(tmp_path, text):
    (tmp_path / "big.yaml").write_text(text)
    (tmp_path / "leaf.yaml").write_text(f"_BASE_: [{60 * 'big.yaml, '}]")
    with pytest.raises(ValueError, match=r"big.yaml.* expected at most|too much data"):
        load_config(str(tmp_path / "leaf.yaml"))


def test_a_pipe_and_a_device_are_no_configs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "leaf.yaml").write_text("_BASE_: pipe")
    for path, fault in (
        (tmp_path / "pipe", "a pipe"),
        (tmp_path / "leaf.yaml", "a pipe"),
        ("/dev/zero", "a device"),
    ):
        with pytest.raises(ValueError, match=f"{fault}, expected a file"):
            load_config(str(path))


@pytest.mark.parametrize("key", ["SEED", "SOLVER.STEPS", "OUTPUT_DIR"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5000 * "(", "must be nested at most 32 levels deep, got"),
        (9000 * "-" + "1", "must be a plain value, got"),
        (4000 * "1+" + "1", "must be a plain value, got"),
        (10_000_000 * "x", "must be at most 10000 characters, got 10000000"),
        ("[" + 100 * "9" + "]", "must be a number of 64 bits, got one of 334"),
        ("0x" + 9000 * "f", "must be a number of 64 bits, got one of 36001"),
        ("'a\0b'", r"must be .*a\\x00b"),
    ],
    ids=lambda value: value[:12],
)
def test_a_value_beyond_the_bounds_is_refused_at_once(key, value, message, recwarn):
    start = time.process_time()
    with pytest.raises(ValueError, match=f"^opts: {key} {message}") as caught:
        load_config("pointrend_shapes", [key, value])
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 600
    assert not recwarn.list


def test_a_text_that_python_warns_of_is_a_text(recwarn):
    for text in ("1if", "'\\d'", "1 if 2else"):
        load_config("pointrend_shapes", ["OUTPUT_DIR", text])
    assert not recwarn.list


@pytest.mark.parametrize("key", [100_000 * "A.", 100_000 * "A", "A\0", "\ud800", "\x1b[2J"])
def test_a_key_beyond_any_use_is_quoted_without_control_characters(key):
    with pytest.raises(ValueError, match=r"^opts: unknown config key") as caught:
        load_config("pointrend_shapes", [key, "1"])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
