"""A model in one folder, as `Predictor.save_pretrained` writes it.

- ``model.safetensors``: the parameters, with the classes and the config of the model;
- ``config.yaml``: the complete config, with an empty MODEL.WEIGHTS;
- ``labels.json``: names, ids in the data set and colors (RGB) of the classes, in their order;
- ``README.md``: the model card, at whose beginning the SHA-256 of the parameters stands.

All of them are read as data, also those of a stranger.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode

from point_rend.config.bounded_yaml import Budget, parse_yaml
from point_rend.config.defaults import value_of
from point_rend.config.dumping import CONFIG_NAME
from point_rend.config.loading import ARGUMENT, parse_config
from point_rend.config.schema import ALWAYS, check_rules
from point_rend.config.tasks import model_outputs
from point_rend.data.datasets.classes import CLASS_COUNTS
from point_rend.utils.json_files import read_json, shown
from point_rend.utils.reading import open_regular_file, read_bytes

WEIGHTS_NAME, LABELS_NAME, CARD_NAME = "model.safetensors", "labels.json", "README.md"
FILES = (WEIGHTS_NAME, CONFIG_NAME, LABELS_NAME, CARD_NAME)
MAX_TEXT = 1_000_000  # bytes of the config and of the card
MAX_LABELS = 16 << 20  # bytes; LVIS has 1203 classes and 100 kB
SECTION = "point_rend"  # key of this package in the data at the beginning of the card

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"name", "id", "color"}  # of a class
_DELIMITER = "---"  # line before and after the data of a card


class ModelFolder(NamedTuple):
    """The checked contents of a folder.

    Attributes:
        path: The folder.
        config: The config as YAML.
        classes: Fields of Detectron2's metadata, as those of a checkpoint.
    """

    path: str
    config: str
    classes: dict[str, Any]

    @property
    def weights(self) -> str:
        """Path of the parameters."""
        return os.path.join(self.path, WEIGHTS_NAME)


def read_model_folder(folder: str | os.PathLike[str]) -> ModelFolder:
    """Read all of a folder but the parameters, which are compared with the card.

    Raises:
        FileNotFoundError: If the folder or one of its files does not exist.
        ValueError: If a file is damaged or too large, or the parameters are not those of the card.
        OSError: If a file cannot be read.
    """
    path = os.fspath(folder)
    if not os.path.isdir(path):
        raise FileNotFoundError(f"there is no folder {path}")
    lacking = [name for name in FILES if not os.path.exists(os.path.join(path, name))]
    if lacking:
        raise FileNotFoundError(
            f"{path} lacks {', '.join(lacking)}: expected a folder with {', '.join(FILES)}, as "
            "Predictor.save_pretrained writes it"
        )
    config = read_bytes(os.path.join(path, CONFIG_NAME), what="config file", max_bytes=MAX_TEXT)
    classes = _read_labels(os.path.join(path, LABELS_NAME))
    model = ModelFolder(path, _decoded(config, os.path.join(path, CONFIG_NAME)), classes)
    expected = _sha256_in_card(os.path.join(path, CARD_NAME))
    with open_regular_file(model.weights, what="checkpoint") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise ValueError(
            f"{model.weights} is not the file of the card: its SHA-256 is {actual}, but "
            f"{CARD_NAME} has {expected}"
        )
    return model


def build_folder_config(
    model: ModelFolder, opts: Sequence[str] = (), *, opts_source: str = ARGUMENT
) -> CfgNode:
    """Build the config of a run of the model in a folder.

    Args:
        model: The folder's contents.
        opts: Config keys and values in turn; they override the config.
        opts_source: Name of their origin for messages.

    Returns:
        The config, not frozen; MODEL.WEIGHTS is the file in the folder.

    Raises:
        ValueError: If the config is damaged, or its class counts are not those of the labels.
    """
    where = os.path.join(model.path, CONFIG_NAME)
    cfg = parse_config(model.config, where, opts, opts_source=opts_source)
    if cfg.MODEL.WEIGHTS not in ("", WEIGHTS_NAME):
        raise ValueError(
            f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS}, but {model.path} has weights of its own: leave "
            "MODEL.WEIGHTS out"
        )
    check_rules(cfg, ALWAYS)
    for count in CLASS_COUNTS:
        number, names = value_of(cfg, count.key), model.classes.get(count.names, ())
        if count.output in model_outputs(cfg) and len(names) != number:
            raise ValueError(
                f"{os.path.join(model.path, LABELS_NAME)} has {len(names)} {count.names}, but "
                f"{count.key} is {number}"
            )
    cfg.MODEL.WEIGHTS = model.weights
    return cfg


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not in UTF-8") from error


# Labels


def labels_text(classes: Mapping[str, Any]) -> str:
    """Write the classes of a model as JSON, one per line.

    Args:
        classes: Detectron2's metadata with names, colors and ids for each kind, things or stuff.
    """
    kinds = []
    for count in CLASS_COUNTS:
        names = classes.get(count.names)
        if not names:
            continue
        to_index = classes[f"{count.kind}_dataset_id_to_contiguous_id"]
        ids = {index: identity for identity, index in to_index.items()}
        colors = classes[f"{count.kind}_colors"]
        lines = [
            json.dumps({"name": name, "id": ids[k], "color": list(colors[k])}, ensure_ascii=False)
            for k, name in enumerate(names)
        ]
        kinds.append(f'"{count.names}": [\n  ' + ",\n  ".join(lines) + "\n]")
    return "{" + ",\n".join(kinds) + "}\n"


def _read_labels(path: str) -> dict[str, Any]:
    """Read what :func:`labels_text` writes as fields of a checkpoint's metadata."""
    content = read_json(path, what="labels", max_bytes=MAX_LABELS)
    known = {count.names: count.kind for count in CLASS_COUNTS}
    if not isinstance(content, dict) or not content.keys() <= known.keys():
        raise ValueError(
            f"{path}: expected an object with {' or '.join(known)}, got {shown(content)}"
        )
    classes: dict[str, Any] = {}
    for field, entries in content.items():
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"{path}: {field} is {shown(entries)}, expected a list of classes")
        for number, entry in enumerate(entries):
            if not _is_class(entry):
                raise ValueError(
                    f"{path}: number {number} of {field} is {shown(entry)}, expected an object "
                    "with a name, an integer id and a color of three numbers from 0 to 255"
                )
        ids = {entry["id"]: number for number, entry in enumerate(entries)}
        if len(ids) < len(entries):
            raise ValueError(f"{path}: two {field} have the same id")
        classes[field] = [entry["name"] for entry in entries]
        classes[f"{known[field]}_colors"] = [entry["color"] for entry in entries]
        classes[f"{known[field]}_dataset_id_to_contiguous_id"] = ids
    return classes


def _is_class(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        return False
    name, identity, color = entry["name"], entry["id"], entry["color"]
    return (
        isinstance(name, str)
        and type(identity) is int
        and abs(identity) < 1 << 60
        and isinstance(color, list)
        and len(color) == 3
        and all(type(x) is int and 0 <= x <= 255 for x in color)
    )


# The card


def card_text(data: Mapping[str, Any], body: str) -> str:
    """Write a card: data in YAML between lines of dashes, then Markdown."""
    text = yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)
    return f"{_DELIMITER}\n{text}{_DELIMITER}\n{body}"


def _sha256_in_card(path: str) -> str:
    """Read the SHA-256 of the parameters from the data at the beginning of a card."""
    content = _decoded(read_bytes(path, what="model card", max_bytes=MAX_TEXT), path)
    lines = content.splitlines()
    section: Any = None
    if lines[:1] == [_DELIMITER] and _DELIMITER in lines[1:]:
        end = lines.index(_DELIMITER, 1)
        section = parse_yaml("\n".join(lines[1:end]), f"model card {path}", Budget()).get(SECTION)
    digest = section.get("sha256") if isinstance(section, dict) else None
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(
            f"model card {path}: expected data between two lines {_DELIMITER} at its beginning, "
            f"with {SECTION}: sha256: 64 hexadecimal digits of {Path(path).with_name(WEIGHTS_NAME)}"
        )
    return digest
