"""Bad inputs and outputs of `pointrend export`, which are refused before the long computation."""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from tests.cli.test_predict import write_pictures
from tests.robustness.harness import Row, run_row, table
from tests.robustness.test_weights_and_classes import THREE, save, tiny_state
from tests.tiny_datasets import POINTREND, TINY_MODEL, write_coco

OPTS = [*TINY_MODEL, *THREE]


def export(
    *words: str, opts: Sequence[str] = (), output: str = "model.onnx"
) -> Callable[[Path], Sequence[str]]:
    """Prepare a checkpoint and a picture; return the words of `pointrend export`."""

    def prepare(folder: Path) -> list[str]:
        save(folder / "model.pth", tiny_state())
        write_pictures(folder / "in", [1])
        (folder / "taken.onnx").mkdir()
        command = ["export", "--config-file", POINTREND, "--output", output, *words]
        return [*command, "--opts", *OPTS, "MODEL.WEIGHTS", "model.pth", *opts]

    return prepare


def registered(folder: Path) -> list[str]:
    data = write_coco(folder / "data")
    words = list(export("--half", "--register-coco", "tiny", *data)(folder))
    return [*words, "DATASETS.TEST", "('tiny', 'other')"]


def without(package: str) -> Callable[[], None]:
    """Let a package be one that is not installed."""

    def first() -> None:
        find = PathFinder.find_spec
        PathFinder.find_spec = lambda name, *rest: None if name == package else find(name, *rest)  # type: ignore[method-assign]
        sys.modules.pop(package, None)

    return first


def nothing_written(folder: Path) -> None:
    assert not (folder / "model.onnx").exists()
    assert not list(folder.glob(".*.tmp*"))


ROWS = [
    Row("suffix", export(output="model.pt2"), r"--output model\.pt2: expected a name that"),
    Row("folder in the way", export(output="taken.onnx"), r"taken\.onnx .*expected a file"),
    Row("over the checkpoint", export("--format", "folder", output="model.pth"), r"is a file"),
    Row(
        "no exporter",
        export(),
        r'--format onnx needs onnxscript; install it with: pip install "point_rend\[onnx\]"',
        first=without("onnxscript"),
    ),
    Row("no checkpoint", export(opts=["MODEL.WEIGHTS", "a.pth"]), r"there is no checkpoint a\.pth"),
    Row("no weights", export(opts=["MODEL.WEIGHTS", ""]), r"MODEL\.WEIGHTS is empty"),
    Row("no image", export("--verify", "nowhere"), r"--verify: no image found at nowhere"),
    Row("int8 alone", export("--int8"), r"--int8 needs --calibration IMAGES"),
    Row("calibration alone", export("--calibration", "in"), r"--int8 needs --calibration"),
    Row("half, verified", export("--half", "--verify", "in"), r"leave --verify out"),
    Row("half of a trace", export("--half", "--format", "torchscript", output="m.ts"), r"for --"),
    Row("half of a part", export("--half", "--part", "mask-head"), r"--half and --int8 are for"),
    Row("half without data", export("--half"), r"data set 'coco_2017_val'|coco_2017_val"),
    Row("half with two sets", registered, r"expected the one data set on which --half"),
    Row("no picture", export("--verify", "model.pth"), r"model\.pth is not an image"),
    Row("drop of nothing", export("--max-ap-drop", "1"), r"--max-ap-drop: expected --half or --i"),
    Row("data of nothing", export("--register-coco", *"abc"), r"--register-coco: expected --half"),
    Row("impossible drop", export("--half", "--max-ap-drop", "nan"), r"--max-ap-drop: expected 0"),
    Row("folder, verified", export("--format", "folder", "--verify", "in"), r"--verify: --fo"),
    Row("license of a file", export("--license", "mit"), r"are for --format folder"),
    Row(
        "another device",
        export(opts=["MODEL.DEVICE", "cuda"]),
        r"MODEL\.DEVICE is cuda, but an export runs on the CPU",
    ),
    Row(
        "test-time augmentation",
        export(opts=["TEST.AUG.ENABLED", "True"]),
        r"TEST\.AUG\.ENABLED is True, but test-time augmentation has no graph",
    ),
    Row(
        "gray images",
        export(opts=["INPUT.FORMAT", "YUV-BT.601"]),
        r"INPUT\.FORMAT is YUV-BT\.601, which has no exported form: expected BGR or RGB",
    ),
    Row(
        "steps of the box",
        export(opts=["MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL", "1.5"]),
        r"SUBDIVISION_CELLS_PER_PIXEL is 1\.5",
        then=nothing_written,
    ),
    Row(
        "boxes only",
        export(opts=["MODEL.MASK_ON", "False"]),
        r"MODEL\.MASK_ON is False",
        then=nothing_written,
    ),
]


@table(ROWS)
def test_what_cannot_be_exported_is_refused(row: Row, tmp_path: Path):
    run_row(row, tmp_path)
