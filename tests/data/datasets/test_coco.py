"""Reading and registering annotation files in COCO format."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from point_rend.data.datasets.classes import class_metadata, class_names
from point_rend.data.datasets.coco import read_coco, register_coco
from tests.tiny_datasets import CocoSet, process_state_restored, write_coco, write_lvis


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> CocoSet:
    return write_coco(tmp_path / "tiny")


def test_a_valid_file_is_read_unchanged(tiny: CocoSet) -> None:
    assert read_coco(tiny.json_file) == tiny.read()


def test_a_test_set_without_ground_truth_is_valid(tiny: CocoSet) -> None:
    content = tiny.read()
    del content["annotations"]
    tiny.rewrite(content)
    assert read_coco(tiny.json_file)["annotations"] == []


def test_lvis_names_its_images_by_address(tmp_path: Path) -> None:
    json_file = write_lvis(tmp_path).json_file
    assert len(read_coco(json_file, image_name="coco_url")["images"]) == 2
    with pytest.raises(ValueError, match="file_name"):
        read_coco(json_file)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        read_coco("nowhere.json")


def test_a_folder_is_not_an_annotation_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}: a folder, expected a file"):
        read_coco(str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_named(tiny: CocoSet, share: float) -> None:
    text = Path(tiny.json_file).read_bytes()
    Path(tiny.json_file).write_bytes(text[: int(len(text) * share)])
    with pytest.raises(ValueError, match=r"instances\.json is truncated or not JSON"):
        read_coco(tiny.json_file)


def test_an_image_is_not_json(tiny: CocoSet) -> None:
    with pytest.raises(ValueError, match=r"000\.png is not in UTF-8"):
        read_coco(f"{tiny.image_root}/000.png")


@pytest.mark.parametrize("content", [[], {}, {"images": []}, {"images": {}, "categories": []}, 3])
def test_json_that_is_not_coco_is_named(tiny: CocoSet, content: Any) -> None:
    tiny.rewrite(content)
    with pytest.raises(ValueError, match=r"instances\.json is not in COCO's instances format"):
        read_coco(tiny.json_file)


def change(kind: str, position: int, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[kind][position].update(fields)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("images", 1, id=1), r"image id 1 is given twice"),
        (change("annotations", 1, id=1), r"annotation id 1 is given twice"),
        (change("categories", 1, id=3), r"category id 3 is given twice"),
        (change("annotations", 0, image_id=77), r"annotation 1 refers to image 77"),
        (change("annotations", 0, category_id=77), r"annotation 1 refers to category 77"),
        (change("images", 1, file_name=None), r"image at position 1 needs a valid 'file_name'"),
        (change("images", 1, height="64"), r"image at position 1 needs a valid 'height'"),
        (change("images", 1, height=64.0), r"image at position 1 needs a valid 'height' \(int\)"),
        (change("images", 1, width=0), r"image 2 \(001\.png\) has a size of 0 x 64 pixels"),
        (change("categories", 2, name=None), r"category at position 2 needs a valid 'name'"),
        (change("annotations", 4, bbox=None), r"annotation at position 4 needs a valid 'bbox'"),
        (change("annotations", 4, bbox=[]), r"annotation 5 of image 2: bbox must be 4 numbers"),
        (change("annotations", 4, bbox=[1, 2, 3]), r"annotation 5 of image 2: bbox must be"),
        (change("annotations", 4, bbox=[1, 2, 3, "4"]), r"annotation 5 of image 2: bbox must be"),
        (change("annotations", 4, bbox=[1, 2, 3, float("nan")]), r"annotation 5 of image 2: bbox"),
        (change("annotations", 4, ignore=1), r"annotation 5 of image 2: .*'ignore'"),
        (change("annotations", 4, segmentation="x"), r"annotation 5 of image 2: segmentation"),
        (change("annotations", 4, segmentation=[1, 2]), r"annotation 5 of image 2: segmentation"),
        (change("annotations", 4, segmentation={"size": [64]}), r"annotation 5 of image 2: RLE"),
        (
            change("annotations", 4, segmentation={"size": [64, 96], "counts": [1, -1]}),
            r"annotation 5 of image 2: RLE with the run length -1, expected integers of 0",
        ),
        (lambda content: content["images"].append("x"), r"image at position 2 needs"),
        (lambda content: content.update(annotations={}), r"'annotations' must be a list"),
        (lambda content: content.update(images=[]), r"at least one image"),
        (lambda content: content.update(categories=[], annotations=[]), r"at least one category"),
    ],
)
def test_contradictions_are_named_with_their_file(
    tiny: CocoSet, spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = tiny.read()
    spoil(content)
    tiny.rewrite(content)
    with pytest.raises(ValueError, match=rf"instances\.json: .*{message}"):
        read_coco(tiny.json_file)


def test_a_registered_set_is_loaded_with_contiguous_classes(tiny: CocoSet) -> None:
    assert register_coco("tiny", *tiny) == 3
    records = DatasetCatalog.get("tiny")
    assert [record["image_id"] for record in records] == [1, 2]
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 1, 2]
    assert MetadataCatalog.get("tiny").thing_classes == ["disc", "box", "triangle"]


def test_categories_are_counted_in_the_order_of_their_ids(tiny: CocoSet) -> None:
    content = tiny.read()
    content["categories"].reverse()
    tiny.rewrite(content)
    register_coco("tiny", *tiny)
    assert class_names(["tiny"]) == ["disc", "box", "triangle"]
    DatasetCatalog.get("tiny")  # Detectron2 refuses another order


def test_registering_the_same_set_again_has_no_effect(tiny: CocoSet) -> None:
    register_coco("tiny", *tiny)
    indirect = f"{tiny.image_root}/../instances.json"
    assert register_coco("tiny", indirect, tiny.image_root) == 3


def test_a_name_belongs_to_one_file(tiny: CocoSet, tmp_path: Path) -> None:
    other = write_coco(tmp_path / "other")
    register_coco("tiny", *tiny)
    with pytest.raises(ValueError, match=r"other/instances\.json.*'tiny'.*tiny/instances\.json"):
        register_coco("tiny", *other)
    with pytest.raises(ValueError, match=r"other/images.*tiny/images"):
        register_coco("tiny", tiny.json_file, other.image_root)
    with pytest.raises(ValueError, match="coco_2017_train"):
        register_coco("coco_2017_train", *tiny)


def test_a_missing_image_folder_is_named(tiny: CocoSet) -> None:
    with pytest.raises(FileNotFoundError, match=r"'tiny'.*nowhere"):
        register_coco("tiny", tiny.json_file, "nowhere")


def test_an_invalid_file_registers_nothing(tiny: CocoSet) -> None:
    tiny.rewrite({})
    with pytest.raises(ValueError, match="not in COCO's"):
        register_coco("tiny", *tiny)
    assert "tiny" not in DatasetCatalog


def test_sets_with_different_classes_are_both_named(tiny: CocoSet, tmp_path: Path) -> None:
    register_coco("tiny", *tiny)
    register_coco("pair", *write_coco(tmp_path / "pair", categories=(1, 2)))
    with pytest.raises(ValueError, match=r"tiny \(.*\) has 3 .*pair \(.*\) has 2"):
        class_names(["tiny", "pair"])


def test_sets_with_the_same_classes_under_other_ids_are_compatible(
    tiny: CocoSet, tmp_path: Path
) -> None:
    register_coco("tiny", *tiny)
    register_coco("other", *write_coco(tmp_path / "other", categories=(1, 2, 3)))
    assert class_names(["tiny", "other"]) == ["disc", "box", "triangle"]


def test_an_unregistered_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'balloons' is not registered.*--register-coco"):
        class_names(["balloons"])


def test_sets_without_class_names_give_none() -> None:
    DatasetCatalog.register("silent", list)
    assert class_names(["silent"]) is None


def test_class_metadata_come_from_the_first_set_with_class_names() -> None:
    DatasetCatalog.register("silent", list)
    known = class_metadata(["silent", "coco_2017_val"], "thing")
    names = known.pop("thing_classes")
    assert (len(names), names[0], names[79]) == (80, "person", "toothbrush")
    assert known.pop("thing_colors")[0] == [220, 20, 60]
    assert known.pop("thing_dataset_id_to_contiguous_id")[90] == 79
    assert known == {}
    assert class_metadata(["silent", "coco_2017_val"], "stuff") == {}


def test_class_ids_are_known_after_reading_the_set(tiny: CocoSet) -> None:
    register_coco("tiny", *tiny)
    DatasetCatalog.get("tiny")
    assert class_metadata(["tiny"], "thing") == {
        "thing_classes": ["disc", "box", "triangle"],
        "thing_dataset_id_to_contiguous_id": {3: 0, 7: 1, 12: 2},
    }
