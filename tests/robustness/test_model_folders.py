"""Models in folders of a stranger, and what is missing to load them."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from point_rend import load_config
from point_rend.config.dumping import dump_config
from point_rend.runtime.model_folder import FILES, card_text
from tests.cli.test_predict import write_pictures
from tests.robustness.bombs import FILES as BOMBS
from tests.robustness.harness import Row, run_row, table
from tests.tiny_datasets import POINTREND, TINY_MODEL

WEIGHTS = b"no parameters"
CONFIG = load_config(POINTREND, [*TINY_MODEL, "MODEL.ROI_HEADS.NUM_CLASSES", "1"])
CONFIG.MODEL.WEIGHTS = ""
LABELS = {"thing_classes": [{"name": "a", "id": 1, "color": [0, 0, 0]}]}


def card(content: bytes) -> bytes:
    sha256 = hashlib.sha256(content).hexdigest()
    return card_text({"point_rend": {"sha256": sha256}}, "# A model\n").encode()


GOOD = {
    "model.safetensors": WEIGHTS,
    "config.yaml": dump_config(CONFIG).encode(),
    "labels.json": json.dumps(LABELS).encode(),
    "README.md": card(WEIGHTS),
}


def write(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Write a model; a file without content is a pipe."""
    folder.mkdir()
    for name, content in files.items():
        if content is None:
            os.mkfifo(folder / name)
        else:
            (folder / name).write_bytes(content)


def predict(
    files: Mapping[str, bytes | None] | None = None, model: str = "model"
) -> Callable[[Path], Sequence[str]]:
    """Prepare a picture and a changed model; return the words of `pointrend predict`."""

    def prepare(folder: Path) -> list[str]:
        write_pictures(folder / "in", [1])
        write(folder / "model", GOOD | (files or {}))
        return ["predict", "--model", model, "--input", "in", "--output", "out"]

    return prepare


def without_hub() -> None:
    sys.modules["huggingface_hub"] = None  # type: ignore[assignment]


def offline() -> None:
    os.environ.update(HF_HUB_OFFLINE="1", HF_HOME="hub")


ROWS = [
    Row("no parameters", predict(), r"model/model\.safetensors cannot be read, it is damaged"),
    Row(
        "parameters that are a bomb",
        predict({"model.safetensors": (x := BOMBS["declared 4 TB"]()), "README.md": card(x)}),
        r"model/model\.safetensors cannot be read, .*it is a zip archive",
    ),
    Row(
        "parameters of another card",
        predict({"model.safetensors": b"others"}),
        r"model/model\.safetensors is not the file of the card",
    ),
    *(Row(f"{name} is a pipe", predict({name: None}), rf"{name}: a pipe, ex") for name in FILES),
    *(
        Row(f"{name} is huge", predict({name: b" " * (1 << 25)}), r"33554432 bytes or more, exp")
        for name in FILES[1:]
    ),
    Row("a picture as labels", predict({"labels.json": b"\x89PNG\r\n"}), "labels.json is not in"),
    Row(
        "deep labels",
        predict({"labels.json": b"[" * (1 << 20)}),
        r"model/labels\.json is nested too deeply",
    ),
    Row(
        "a card of references",
        predict({"README.md": b"---\na: &a [" + b"*a," * 9 + b"]\n---\n"}),
        r"model card model/README\.md, line 1: anchor 'a' contains itself",
    ),
    Row("no folder", predict(model="none"), "there is no folder none"),
    Row("an upward name", predict(model="a/../../b"), r"there is no folder a/\.\./\.\./b"),
    Row(
        "no package of the Hub",
        predict(model="user/model"),
        r'huggingface_hub is not installed; install it with: pip install "point_rend\[hub\]"',
        first=without_hub,
    ),
    Row(
        "no network",
        predict(model="user/model"),
        r"https://huggingface\.co/user/model cannot be reached: ",
        first=offline,
    ),
]


@table(ROWS)
def test_a_folder_of_a_stranger_ends_in_one_line(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)
