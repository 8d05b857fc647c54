"""Config files and options that no one can use."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.robustness.harness import Row, run_row, table
from tests.tiny_datasets import TINY_MODEL, write_coco

Prepare = Callable[[Path], Sequence[str | Path]]


def files(contents: dict[str, str | bytes]) -> Prepare:
    """Return a function that writes files and trains with the first one."""

    def prepare(folder: Path) -> list[str]:
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else content.encode()
            (folder / name).write_bytes(data)
        return ["train", "--config-file", next(iter(contents))]

    return prepare


def file(content: str | bytes) -> Prepare:
    return files({"bad.yaml": content})


def options(*opts: str) -> Prepare:
    return lambda _: ["train", "--config-file", "pointrend_shapes", *opts]


def pipe(folder: Path) -> list[str]:
    os.mkfifo(folder / "bad.yaml")
    return ["train", "--config-file", "bad.yaml"]


def repeat(count: int, part: str) -> str:
    """Write anchors, each of which holds the one before `count` times, in the form of `part`."""
    lines = [f"a{i}: &a{i} " + part % ", ".join(count * [f"*a{i - 1}"]) for i in range(1, 20)]
    return "\n".join(["a0: &a0 {A: 1}", *lines])


FILES = [
    Row("bomb of lists", file(repeat(9, "[%s]")), "bad.yaml, line 5: too much data"),
    Row("bomb of merges", file(repeat(9, "{<<: [%s]}")), "bad.yaml, line 5: too much data"),
    Row("10,000 unknown keys", file("".join(f"A{i}: 1\n" for i in range(10_000))), "too much data"),
    Row("5,000 unknown keys", file("".join(f"A{i}: 1\n" for i in range(5000))), "unknown config"),
    Row("10 MB of comments", file(2_500_000 * "# x\n"), "10000000 bytes or more, expected at most"),
    Row("brackets", file("SEED: " + 100_000 * "["), "bad.yaml, line 1: nested too deep"),
    Row("closed brackets", file("SEED: " + 500 * "[" + 500 * "]"), "nested too deep"),
    Row("deep sections", file("".join(i * " " + "A:\n" for i in range(999))), "nested too deep"),
    Row("anchor in itself", file("A: &a [*a]"), "anchor 'a' contains itself"),
    Row("long number", file("SEED: " + 100_000 * "9"), "a number of 100000 characters"),
    Row(
        "large number", file("SOLVER: {MAX_ITER: 1" + 60 * "0" + "}"), "must be a number of 64 bits"
    ),
    Row("base 60", file("SEED: " + 200_000 * "1:" + "1"), "a number of 400001 characters"),
    Row("null character", file("SEED: \0"), "bad.yaml is not valid YAML"),
    Row("escaped null", file('OUTPUT_DIR: "a\\0"'), r"OUTPUT_DIR must be without null characters"),
    Row("UTF-16, no mark", file("SEED: 1".encode("utf-16-le")), "bad.yaml is not valid YAML"),
    Row("key twice", file("SEED: 1\nSEED: 2"), "line 2: SEED a second time, after line 1"),
    Row("misused tag", file("SEED: !!timestamp 1"), "a value does not fit its tag"),
    Row("code", file("SEED: !!python/object/apply:os.getpid []"), "refused, never executed"),
    Row("empty", file(""), "expected config keys and values, got None"),
    Row("a picture", file(b"\x89PNG\r\n\x1a\n\0\0"), "bad.yaml is not valid YAML"),
    Row("pipe", pipe, "config file bad.yaml: a pipe, expected a file"),
    Row("device", lambda _: ["train", "--config-file", "/dev/zero"], "/dev/zero: a device"),
    Row("folder", lambda _: ["train", "--config-file", "/"], "config file /: a folder"),
    Row(
        "device as a base",
        file("_BASE_: /dev/zero"),
        r"file \(_BASE_ of bad.yaml\) /dev/zero: a device",
    ),
    Row("base of itself", file("_BASE_: bad.yaml"), "_BASE_ files form a cycle"),
    Row("web base", file("_BASE_: http://127.0.0.1:9/a.yaml"), "expected a file of this machine"),
    Row("null base", file('_BASE_: "a\\0"'), "_BASE_ must be a file or a list of files"),
    Row(
        "bases that double",
        files({f"{i}.yaml": f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]" for i in range(30)}),
        "yaml.* does not exist|expected at most 100 files",
    ),
    Row(
        "base 5,000 times",
        files({"bad.yaml": f"_BASE_: [{5000 * 'base.yaml, '}]", "base.yaml": "SEED: 1"}),
        "expected at most 100 files in all",
    ),
]


def values(*opts: str) -> Prepare:
    """Return a function that writes a data set and trains on it with options."""

    def prepare(folder: Path) -> list[str]:
        tiny = write_coco(folder / "tiny")
        words = ["train", "--config-file", "pointrend_rcnn_R_50_FPN_1x_coco"]
        words += ["--register-coco", "tiny", tiny.json_file, tiny.image_root, *TINY_MODEL]
        return [*words, "DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)", *opts]

    return prepare


VALUES = [
    Row(f"{opts[0]} {opts[1]}", values(*opts), re.escape(line))
    for opts, line in (
        (("MODEL.POINT_HEAD.FC_DIM", "1000000000"), "FC_DIM must be from 1 to 16384, got 10000000"),
        (("MODEL.POINT_HEAD.FC_DIM", "0"), "command line: MODEL.POINT_HEAD.FC_DIM must be from 1"),
        (("MODEL.POINT_HEAD.FC_DIM", "None"), "FC_DIM must be from 1 to 16384, got None"),
        (
            ("MODEL.FPN.OUT_CHANNELS", "-1"),
            "FPN.OUT_CHANNELS must be from 1 to 16384, got -1",
        ),
        (("MODEL.FPN.NORM", "'BatchNorm'"), "MODEL.FPN.NORM must be"),
        (
            ("MODEL.FPN.NORM", "GN"),
            "OUT_CHANNELS must be a multiple of 32 for MODEL.FPN.NORM GN",
        ),
        (("MODEL.FPN.IN_FEATURES", "['res2', 'res4']"), "must be successive levels of"),
        (
            ("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"),
            "PIXEL_STD must be a list of one or more, each",
        ),
        (("MODEL.PIXEL_MEAN", "[1.0, 1.0]"), "MODEL.PIXEL_MEAN must be a list of 3 values"),
        (("INPUT.BITS", "9"), "INPUT.BITS must be one of (8, 10, 12, 14, 16), got 9"),
        (("INPUT.BITS", "True"), "INPUT.BITS"),
        (("INPUT.CHANNELS", "0"), "INPUT.CHANNELS must be from 1 to 1024, or -1 for those of"),
        (("INPUT.CHANNELS", "-3"), "INPUT.CHANNELS must be from 1 to 1024"),
        (("INPUT.CHANNELS", "1000000000"), "INPUT.CHANNELS must be from 1 to 1024"),
        (
            ("INPUT.CHANNELS", "4"),
            "MODEL.PIXEL_MEAN must be a list of 4 values for INPUT.CHANNELS 4",
        ),
        (
            ("INPUT.CHANNELS", "1", "MODEL.PIXEL_MEAN", "[1.0]", "MODEL.PIXEL_STD", "[1.0]"),
            "INPUT.CHANNELS is 1, but INPUT.FORMAT is BGR: expected L",
        ),
        (
            ("INPUT.BITS", "16", "INPUT.FORMAT", "YUV-BT.601"),
            "INPUT.BITS is 16, but INPUT.FORMAT is YUV-BT.601: expected BGR, RGB, L",
        ),
        (
            ("INPUT.BITS", "16", "INPUT.COLOR_AUG_SSD", "True"),
            "INPUT.COLOR_AUG_SSD is True, which needs colors of 8 bits",
        ),
        (
            (
                *("INPUT.CHANNELS", "2", "VIS_PERIOD", "10"),
                *("MODEL.PIXEL_MEAN", "[1.0, 1.0]", "MODEL.PIXEL_STD", "[1.0, 1.0]"),
            ),
            "VIS_PERIOD is 10, which needs gray or colors",
        ),
        (("MODEL.RPN.IOU_LABELS", "[0, 1]"), "MODEL.RPN.IOU_LABELS must be a list of 3 values"),
        (("MODEL.RPN.IN_FEATURES", "['p9']"), "MODEL.RPN.IN_FEATURES must be features of"),
        (("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]"), "one list for all levels or 3 lists"),
        (("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(1.0,)"), "must be a list of 4 values"),
        (("SOLVER.BASE_LR", "1e999"), "SOLVER.BASE_LR must be from 0 to 1e+30, got inf"),
        (("SOLVER.WEIGHT_DECAY", "-0.1"), "SOLVER.WEIGHT_DECAY must be from 0 to 1e+30, got -0.1"),
        (("SOLVER.STEPS", "(5, 3)", "SOLVER.MAX_ITER", "9"), "SOLVER.STEPS must ascend"),
        (
            ("SOLVER.RESCALE_INTERVAL", "True", "SOLVER.MAX_ITER", "9"),
            "SOLVER.WARMUP_ITERS must be less than SOLVER.MAX_ITER, which is 9",
        ),
        (
            ("TEST.EXPECTED_RESULTS", "[[]]"),
            "TEST.EXPECTED_RESULTS must be a list of values, each [task, metric",
        ),
        (("TEST.EXPECTED_RESULTS", "[['segm', 'AP', 35, '1']]"), "TEST.EXPECTED_RESULTS must be"),
        (("INPUT.RANDOM_FLIP", "both"), "INPUT.RANDOM_FLIP must be horizontal, vertical or none"),
        (
            ("DATASETS.TEST", "None"),
            "DATASETS.TEST must be a list of values, each a text",
        ),
        (("DATALOADER.NUM_WORKERS", "1000000000"), "NUM_WORKERS must be from 0 to 1024"),
    )
]
OPTIONS = [
    Row("option of brackets", options("SEED", 50_000 * "["), "SEED must be nested at most 32"),
    Row("option of signs", options("SEED", 9000 * "+" + "1"), "SEED must be a plain value"),
    Row("option of sums", options("SEED", 4000 * "1+" + "1"), "SEED must be a plain value"),
    Row("long option", options("OUTPUT_DIR", 120_000 * "a"), "must be at most 10000 characters"),
    Row(
        "large option", options("SEED", 80 * "9"), "command line: SEED must be a number of 64 bits"
    ),
    Row("long key", options(50_000 * "A.", "1"), r"unknown config key A.A.* \[\d+ characters\]"),
    Row("control character", options("A\x1b[2J", "1"), r"unknown config key A\\x1b\[2J"),
]


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs the devices of Linux")
@table(FILES + OPTIONS + VALUES)
def test_a_config_beyond_use_ends_in_one_line(row: Row, tmp_path: Path) -> None:
    run_row(row._replace(seconds=5, gibibytes=1), tmp_path)
