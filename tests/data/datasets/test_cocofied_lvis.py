"""LVIS annotations of COCO's classes: category mapping and kept annotations."""

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import lvis_v0_5_categories
from detectron2.data.datasets.builtin_meta import _get_coco_instances_meta

from point_rend.data.datasets.cocofied_lvis import (
    COCO_CLASSES,
    category_mapping,
    cocofy,
    register_cocofied_lvis,
)
from tests.tiny_datasets import process_state_restored
from tests.tiny_lvis import NAMED, V1, lvis_image, write_lvis_v1

# Synsets of COCO's classes published by the authors of LVIS, in the order of their ids.
PUBLISHED = """
    person.n.01 bicycle.n.01 car.n.01 motorcycle.n.01 airplane.n.01 bus.n.01 train.n.01 truck.n.01
    boat.n.01 traffic_light.n.01 fireplug.n.01 stop_sign.n.01 parking_meter.n.01 bench.n.01
    bird.n.01 cat.n.01 dog.n.01 horse.n.01 sheep.n.01 beef.n.01 elephant.n.01 bear.n.01 zebra.n.01
    giraffe.n.01 backpack.n.01 umbrella.n.01 bag.n.04 necktie.n.01 bag.n.06 frisbee.n.01 ski.n.01
    snowboard.n.01 ball.n.06 kite.n.03 baseball_bat.n.01 baseball_glove.n.01 skateboard.n.01
    surfboard.n.01 tennis_racket.n.01 bottle.n.01 wineglass.n.01 cup.n.01 fork.n.01 knife.n.01
    spoon.n.01 bowl.n.03 banana.n.02 apple.n.01 sandwich.n.01 orange.n.01 broccoli.n.01 carrot.n.01
    frank.n.02 pizza.n.01 doughnut.n.02 cake.n.03 chair.n.01 sofa.n.01 pot.n.04 bed.n.01
    dining_table.n.01 toilet.n.02 television_receiver.n.01 laptop.n.01 mouse.n.04
    remote_control.n.01 computer_keyboard.n.01 cellular_telephone.n.01 microwave.n.02 oven.n.01
    toaster.n.02 sink.n.01 electric_refrigerator.n.01 book.n.01 clock.n.01 vase.n.01 scissors.n.01
    teddy.n.01 hand_blower.n.01 toothbrush.n.01
"""


@pytest.mark.parametrize(
    ("categories", "missing"),
    [(lvis_v0_5_categories.LVIS_CATEGORIES, {"frank.n.02", "oven.n.01"}), (V1, {"frank.n.02"})],
    ids=["v0.5", "v1"],
)
def test_the_mapping_is_the_published_one(
    categories: list[dict[str, Any]], missing: set[str]
) -> None:
    assert len(PUBLISHED.split()) == len(COCO_CLASSES) == 80
    mapping = category_mapping(categories)
    synsets = {category["id"]: category["synset"] for category in categories}
    found = {coco_id: synsets[lvis_id] for lvis_id, coco_id in mapping.items()}
    expected = dict(zip(COCO_CLASSES, PUBLISHED.split(), strict=True))
    assert found == {k: synset for k, synset in expected.items() if synset not in missing}


def test_two_categories_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'zebra' could be any of the LVIS categories \[1, 2\]"):
        category_mapping([{"id": k, "synset": "z", "synonyms": ["zebra"]} for k in (1, 2)])


def test_annotations_of_coco_classes_on_val2017_keep_coco_ids(tmp_path: Path) -> None:
    content, missing, left_out = cocofy(str(write_lvis_v1(tmp_path)))
    assert (missing, left_out) == (("hot dog",), 1)
    ids = {name: coco_id for coco_id, name in COCO_CLASSES.items()}
    kept = [(x["image_id"], x["category_id"]) for x in content["annotations"]]
    assert kept == [(7, ids["cow"]), (9, ids["wine glass"]), (9, ids["book"])]
    assert [image["id"] for image in content["images"]] == [7, 9]
    first, second = content["images"]
    assert first["neg_category_ids"] == [ids["zebra"], ids["car"]]
    assert second["not_exhaustive_category_ids"] == [ids["book"]]
    categories = {x["id"]: (x["name"], x["synset"], x["frequency"]) for x in content["categories"]}
    assert [*categories] == [k for k, name in COCO_CLASSES.items() if name != "hot dog"]
    assert categories[ids["cow"]] == ("cow", "beef.n.01", NAMED["cow"]["frequency"])
    assert content["licenses"] == [{"id": 1, "name": "free"}]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("categories", {"synset": None}, r"not in LVIS's format.*categories.*1 has no .*'synset'"),
        ("images", {"neg_category_ids": None}, r"images the one with id 7 has no .*'neg_cat"),
        ("images", {"coco_url": 5}, r"needs a valid 'coco_url'"),
    ],
)
def test_a_file_in_another_format_is_refused(
    kind: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_lvis_v1(tmp_path)
    content = json.loads(path.read_text())
    content[kind][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        cocofy(str(path))


def test_a_file_without_coco_classes_or_images_is_refused(tmp_path: Path) -> None:
    path = write_lvis_v1(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(content | {"images": [lvis_image(8, "train2017")], "annotations": []})
    )
    with pytest.raises(ValueError, match="none of the images is of COCO's val2017"):
        cocofy(str(path))
    path.write_text(json.dumps(content | {"categories": [NAMED["aerosol_can"]], "annotations": []}))
    with pytest.raises(ValueError, match="none of the categories is one of COCO's classes"):
        cocofy(str(path))


def test_the_registered_set_loads_the_prepared_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lvis").mkdir()
    content = cocofy(str(write_lvis_v1(tmp_path))).content
    (tmp_path / "lvis" / "lvis_v1_val_cocofied.json").write_text(json.dumps(content))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with process_state_restored():
        for name in ("lvis_v1_val_cocofied", "lvis_v0.5_val_cocofied"):
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
        register_cocofied_lvis()
        register_cocofied_lvis()
        assert "lvis_v0.5_val_cocofied" in DatasetCatalog
        records = DatasetCatalog.get("lvis_v1_val_cocofied")
        metadata = MetadataCatalog.get("lvis_v1_val_cocofied")
    assert metadata.thing_classes == _get_coco_instances_meta()["thing_classes"]
    assert metadata.evaluator_type == "lvis"
    assert [record["file_name"] for record in records] == [
        f"{tmp_path}/coco/val2017/{number:012d}.jpg" for number in (7, 9)
    ]
    found = [x["category_id"] for record in records for x in record["annotations"]]
    assert [metadata.thing_classes[k] for k in found] == ["cow", "wine glass", "book"]
