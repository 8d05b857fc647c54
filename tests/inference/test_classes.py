"""Names, colors and ids of a model's classes."""

from collections.abc import Sequence
from typing import Any

import pytest
from detectron2.data import MetadataCatalog

from point_rend import load_config
from point_rend.checkpoint.class_metadata import read_metadata
from point_rend.inference.classes import build_metadata
from point_rend.visualization.drawing import color_of
from tests.checkpoint.nets import log_of
from tests.cli.test_predict import PANOPTIC, THREE_CLASSES, checkpoint_of
from tests.tiny_datasets import KINDS, POINTREND


def test_classes_are_those_of_the_data_set_if_their_number_fits():
    cfg = load_config(PANOPTIC, ["DATASETS.TEST", "('coco_2017_val',)"])
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    metadata = build_metadata(cfg, {})
    expected = MetadataCatalog.get("coco_2017_val")
    assert metadata.thing_classes == expected.thing_classes
    assert [list(color) for color in metadata.thing_colors] == expected.thing_colors
    ids = metadata.thing_dataset_id_to_contiguous_id
    assert ids == expected.thing_dataset_id_to_contiguous_id
    assert metadata.stuff_classes == ["class 0", "class 1"]
    assert metadata.stuff_dataset_id_to_contiguous_id == {1: 0, 2: 1}


def test_colors_are_those_of_the_checkpoint_if_there_are_as_many():
    colors = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    cfg = load_config(POINTREND, THREE_CLASSES)
    stored = {"thing_classes": list(KINDS), "thing_colors": [list(color) for color in colors]}
    assert build_metadata(cfg, stored).thing_colors == colors
    del stored["thing_colors"][0]
    assert build_metadata(cfg, stored).thing_colors == [color_of(k)[::-1] for k in range(3)]


def test_classes_of_other_outputs_than_the_models_are_ignored(tmp_path):
    stored = {"thing_classes": list(KINDS), "stuff_classes": ["sky", "road"]}
    opts = [*checkpoint_of(tmp_path / "m.pth", **stored), *THREE_CLASSES]
    metadata = build_metadata(load_config(POINTREND, opts), read_metadata(opts[1]))
    assert metadata.thing_classes == list(KINDS)
    assert metadata.get("stuff_classes") is None


def test_given_classes_come_before_those_of_the_checkpoint():
    cfg = load_config(POINTREND, THREE_CLASSES)
    metadata = build_metadata(
        cfg, {"thing_classes": list(KINDS)}, {"thing_classes": ["x", "y", "z"]}
    )
    assert metadata.thing_classes == ["x", "y", "z"]


STORED = {"thing_classes": list(KINDS)}


def given(names: Sequence[str], ids: Sequence[int]) -> dict[str, Any]:
    to_index = {identity: index for index, identity in enumerate(ids)}
    return {"thing_classes": list(names), "thing_dataset_id_to_contiguous_id": to_index}


def test_given_classes_in_another_order_are_matched_by_name_and_keep_their_ids():
    cfg = load_config(POINTREND, THREE_CLASSES)
    fields = given(["triangle", "disc", "box"], [4, 5, 9])
    with log_of("point_rend.inference.classes") as messages:
        metadata = build_metadata(cfg, STORED, fields)
    assert metadata.thing_classes == list(KINDS)
    assert metadata.thing_dataset_id_to_contiguous_id == {5: 0, 9: 1, 4: 2}
    assert messages[0].endswith("only the order differs; they are matched by name")
    with log_of("point_rend.inference.classes") as messages:
        metadata = build_metadata(cfg, STORED, fields, by_position=True)
    assert metadata.thing_classes == fields["thing_classes"]
    assert messages[0].endswith("the classes are renamed by their position")


def test_given_names_of_other_classes_of_the_checkpoint_are_an_error():
    cfg = load_config(POINTREND, THREE_CLASSES)
    with pytest.raises(ValueError, match=r"only the latter has star: .* --ignore-class-names"):
        build_metadata(cfg, STORED, given(["box", "star", "triangle"], [1, 2, 3]))
    with log_of("point_rend.inference.classes") as messages:
        metadata = build_metadata(cfg, STORED, given(["disc", "star", "triangle"], [1, 2, 3]))
    assert metadata.thing_classes == ["disc", "star", "triangle"]
    assert messages[0].endswith("the classes are renamed by their position")


def test_published_weights_have_the_classes_of_their_data_set_whatever_the_config_names():
    cfg = load_config(POINTREND, ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"])
    cfg.MODEL.WEIGHTS = "zoo://pointrend_rcnn_R_50_FPN_3x_coco"
    expected = MetadataCatalog.get("coco_2017_train")
    metadata = build_metadata(cfg, {})
    assert metadata.thing_classes == expected.thing_classes
    ids = metadata.thing_dataset_id_to_contiguous_id
    assert ids == expected.thing_dataset_id_to_contiguous_id
