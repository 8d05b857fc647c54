"""Checks of images and annotations before a run."""

import io
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_lvis_instances
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.structures import BoxMode
from PIL import Image

from point_rend.data.checks.annotations import (
    Usable,
    check_dataset,
    check_datasets,
    check_ground_truth,
    clean_annotation,
    leave_out_impossible_annotations,
)
from point_rend.data.datasets.coco import read_coco, register_coco
from tests.tiny_datasets import (
    HEIGHT,
    WIDTH,
    CocoSet,
    process_state_restored,
    uncompressed,
    write_coco,
    write_lvis,
)

TRIANGLE = [1.0, 1.0, 9.0, 1.0, 5.0, 8.0]
NAN = float("nan")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> CocoSet:
    """A set of 2 images and 6 annotations, registered under the name "tiny"."""
    written = write_coco(tmp_path)
    register_coco("tiny", *written)
    return written


def spoil(written: CocoSet, kind: str, position: int, **fields: Any) -> None:
    content = written.read()
    content[kind][position].update(fields)
    written.rewrite(content)


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle | {"counts": rle["counts"].decode()}


def bar() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[3:9, 5:40] = True
    return mask


def clean(segmentation: Any, *, masks: bool = True, **fields: Any) -> tuple[Any, str]:
    """The usable part of a segmentation and the faults of the rest."""
    annotation = {"bbox": [1, 1, 8, 7], "segmentation": segmentation} | fields
    left, reasons = clean_annotation(annotation, HEIGHT, WIDTH, masks)
    return left and left["segmentation"], "; ".join(reason.text for reason in reasons)


# Annotations


@pytest.mark.parametrize(
    "segmentation",
    [
        [TRIANGLE],
        [TRIANGLE, [20, 20, 30, 20, 25, 28]],
        [[int(value) for value in TRIANGLE]],
        compressed(bar()),
        uncompressed(compressed(bar())),
        compressed(bar()) | {"counts": compressed(bar())["counts"].encode()},
    ],
)
def test_a_valid_mask_is_unchanged(segmentation: Any) -> None:
    assert clean(segmentation) == (segmentation, "")


@pytest.mark.parametrize("seed", range(20))
def test_compressed_runs_of_any_mask_are_decoded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((HEIGHT, WIDTH)) < rng.random()
    mask[:, : seed * 4] = seed % 2  # long runs too
    mask[0, -1] = True
    assert clean(compressed(mask))[1] == ""


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        (None, "no segmentation"),
        ([], "no segmentation"),
        ([[]], "polygon 1 of 1 has 0 numbers"),
        ([[1, 2, 3, 4]], "polygon 1 of 1 has 4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "polygon 1 of 1 has 7 numbers"),
        ([[*TRIANGLE[:-1], NAN]], "polygon 1 of 1 has coordinates that are not finite"),
        ([[*TRIANGLE[:-1], math.inf]], "not finite"),
        ([[*TRIANGLE[:-1], "x"]], "not numbers"),
        ([[*TRIANGLE[:-1], None]], "not"),
        ([[1, 1, 5, 5, 9, 9]], "area 0"),
        ([[1, 1, 1, 1, 1, 1]], "area 0"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "RLE of 10 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 10**6]}, "RLE of 1000005 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, "RLE of area 0"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "RLE of 0 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": "zzzz"}, "RLE that does not decode: 'z'"),
        ({"size": [HEIGHT, WIDTH], "counts": "o"}, "ends within a number"),
        ({"size": [HEIGHT, WIDTH], "counts": "5!"}, "'!'"),
        ({"size": [WIDTH, HEIGHT], "counts": [5]}, "RLE of size"),
    ],
)
def test_an_impossible_mask_is_removed_with_its_reason(segmentation: Any, said: str) -> None:
    left, reasons = clean(segmentation)
    assert left is None
    assert said in reasons


def test_a_truncated_rle_is_detected_wherever_it_ends() -> None:
    rle = compressed(bar())
    for length in range(len(rle["counts"])):
        assert clean(rle | {"counts": rle["counts"][:length]})[0] is None


def test_impossible_parts_are_removed_and_possible_ones_kept() -> None:
    left, reasons = clean([[1, 2, 3], TRIANGLE, [NAN] * 6])
    assert left == [TRIANGLE]
    assert "polygon 1 of 3 has 3 numbers" in reasons
    assert "polygon 3 of 3 has coordinates that are not finite" in reasons


@pytest.mark.parametrize("bbox", [[1, 1, 0, 5], [1, 1, 5, 0], [1, 1, -3, 5]])
def test_a_box_without_area_is_removed(bbox: list[float]) -> None:
    assert clean([TRIANGLE], bbox=bbox)[0] is None


def test_the_corners_of_a_box_are_not_mistaken_for_its_sides() -> None:
    assert clean([TRIANGLE], bbox=(9, 9, 5, 12), bbox_mode=BoxMode.XYXY_ABS)[0] is None
    assert clean([TRIANGLE], bbox=(9, 9, 12, 12), bbox_mode=BoxMode.XYXY_ABS)[0] is not None


def test_masks_are_not_checked_if_none_are_needed() -> None:
    assert clean([[1, 2]], masks=False) == ([[1, 2]], "")


# Data sets


@pytest.mark.usefixtures("tiny")
def test_a_valid_set_keeps_all_its_annotations(caplog: pytest.LogCaptureFixture) -> None:
    assert check_dataset("tiny", training=True, masks=True) == Usable(6, 0)
    assert check_dataset("tiny", training=False, masks=True) == Usable(6, 0)
    assert not caplog.records


def test_crowds_do_not_count_as_usable_annotations(tiny: CocoSet) -> None:
    spoil(tiny, "annotations", 0, iscrowd=1)
    assert check_dataset("tiny", training=True, masks=True) == Usable(5, 0, crowds=1)


def test_impossible_annotations_are_counted_and_named(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(tiny, "annotations", 1, segmentation=[[1, 2, 3, 4]])
    spoil(tiny, "annotations", 5, bbox=[1, 1, 0, 4])
    with caplog.at_level(logging.WARNING):
        assert check_dataset("tiny", training=True, masks=True) == Usable(4, 2)
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(f"tiny ({tiny.json_file}): 2 annotations are impossible")
    assert f"annotation 2 of image 1 ({tiny.image_root}/000.png): polygon 1 of 1 has 4" in said
    assert f"annotation 6 of image 2 ({tiny.image_root}/001.png): bbox of size 0 x 4" in said


def test_of_many_impossible_annotations_the_first_are_named(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    for position in range(6):
        spoil(tiny, "annotations", position, segmentation=[[1, 2, 3, 4]])
    with caplog.at_level(logging.WARNING):
        assert check_dataset("tiny", training=True, masks=True) == Usable(0, 6)
    assert "annotation 5 of" in caplog.text
    assert "annotation 6 of" not in caplog.text
    assert "and 1 more" in caplog.text


def test_a_training_drops_impossible_annotations(tiny: CocoSet) -> None:
    spoil(tiny, "annotations", 0, segmentation=[[NAN] * 6, TRIANGLE])
    spoil(tiny, "annotations", 1, segmentation={"size": [HEIGHT, WIDTH], "counts": [7, 7]})
    spoil(tiny, "annotations", 2, segmentation=None)
    spoil(tiny, "annotations", 3, bbox=[1, 1, 0, 4])
    spoil(tiny, "annotations", 4, segmentation={"size": [HEIGHT, WIDTH], "counts": "zz"})
    leave_out_impossible_annotations("tiny", masks=True)
    first, second = DatasetCatalog.get("tiny")
    assert [a["segmentation"] for a in first["annotations"]] == [[TRIANGLE]]
    assert [a["category_id"] for a in second["annotations"]] == [2]


def test_a_training_without_any_possible_annotation_is_refused(tiny: CocoSet) -> None:
    for position in range(6):
        spoil(tiny, "annotations", position, segmentation=[[1, 2, 3, 4]])
    with pytest.raises(ValueError, match=r"no annotation is left to train on in tiny \("):
        check_datasets(["tiny"], [], masks=True)


def test_broken_images_of_a_training_may_be_skipped(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    broken, other = sorted(Path(tiny.image_root).iterdir())
    broken.write_bytes(broken.read_bytes()[:200])
    check_datasets(["tiny"], [], masks=True, skip_broken_images=True)
    assert "1 of 2 images cannot be used and are skipped" in caplog.text
    assert str(broken) in caplog.text
    with pytest.raises(ValueError, match="1 of 2 images cannot be used: "):
        check_datasets(["tiny"], ["tiny"], masks=True, skip_broken_images=True)
    other.write_bytes(b"")
    with pytest.raises(ValueError, match="2 of 2 images cannot be used: "):
        check_datasets(["tiny"], [], masks=True, skip_broken_images=True)


def test_one_of_several_sets_may_have_only_background(tiny: CocoSet, tmp_path: Path) -> None:
    empty = write_coco(tmp_path / "empty")
    empty.rewrite(empty.read() | {"annotations": []})
    register_coco("empty", *empty)
    spoil(tiny, "annotations", 0, bbox=[1, 1, 0, 0])
    assert check_datasets(["empty", "tiny"], ["empty"], masks=True) == ("tiny",)
    with pytest.raises(ValueError, match="no annotation is left"):
        check_datasets(["empty"], [], masks=True)


def test_a_training_gets_the_annotations_that_pass_the_check(tiny: CocoSet) -> None:
    for position, segmentation in enumerate([[[1, 2, 3]], [[1, 1, 5, 5, 9, 9]], [TRIANGLE]]):
        spoil(tiny, "annotations", position, segmentation=segmentation)
    usable = check_dataset("tiny", training=True, masks=True)
    leave_out_impossible_annotations("tiny", masks=True)
    records = DatasetCatalog.get("tiny")
    assert usable == Usable(sum(len(record["annotations"]) for record in records), 2)


def test_an_evaluation_keeps_annotations_without_area(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(tiny, "annotations", 0, bbox=[1, 1, 0, 4])
    with caplog.at_level(logging.WARNING):
        check_dataset("tiny", training=False, masks=True)
    assert "kept for the evaluation" in caplog.text


@pytest.mark.parametrize("segmentation", [[[1, 2, 3, 4]], [[NAN] * 6], None])
def test_an_evaluation_refuses_unreadable_annotations(tiny: CocoSet, segmentation: Any) -> None:
    spoil(tiny, "annotations", 0, segmentation=segmentation)
    with pytest.raises(
        ValueError, match=r"tiny .*cannot be evaluated: 1 .*annotation 1 of image 1"
    ):
        check_dataset("tiny", training=False, masks=True)


@pytest.mark.parametrize("field", ["area", "iscrowd"])
def test_fields_that_follow_from_the_mask_may_be_missing(tiny: CocoSet, field: str) -> None:
    content = tiny.read()
    for annotation in content["annotations"]:
        del annotation[field]
    tiny.rewrite(content)
    assert check_dataset("tiny", training=True, masks=True) == Usable(6, 0)
    assert check_dataset("tiny", training=False, masks=True) == Usable(6, 0)


def test_an_evaluation_refuses_an_object_without_mask_and_area(tiny: CocoSet) -> None:
    spoil(tiny, "annotations", 0, bbox=[3, 4, 0, 0], segmentation=[])
    assert check_dataset("tiny", training=True, masks=True) == Usable(5, 1)
    with pytest.raises(ValueError, match=r"bbox of size 0 x 0; no segmentation"):
        check_dataset("tiny", training=False, masks=True)
    assert check_dataset("tiny", training=False, masks=False) == Usable(5, 1)


@pytest.mark.usefixtures("tiny")
def test_records_without_annotations_are_unchanged() -> None:
    records = DatasetCatalog.get("tiny")
    for record in records:
        del record["annotations"]
    DatasetCatalog.register("bare", lambda: records)
    MetadataCatalog.get("bare").set(evaluator_type="own")
    leave_out_impossible_annotations("bare", masks=True)
    assert all(not record["annotations"] for record in DatasetCatalog.get("bare"))


def test_the_file_of_a_builtin_set_is_checked_too(tiny: CocoSet) -> None:
    spoil(tiny, "annotations", 0, category_id=55)
    with pytest.raises(ValueError, match="refers to category 55"):
        check_dataset("tiny", training=True, masks=True)


def test_lvis_is_checked_and_its_images_are_found(tmp_path: Path) -> None:
    written = write_lvis(tmp_path)
    register_lvis_instances("tiny_lvis_v1", get_lvis_instances_meta("lvis_v1"), *written)
    assert check_dataset("tiny_lvis_v1", training=True, masks=True) == Usable(6, 0)
    assert check_dataset("tiny_lvis_v1", training=False, masks=True) == Usable(6, 0)
    spoil(written, "annotations", 0, segmentation=[[1, 2]])
    with pytest.raises(ValueError, match=r"cannot be loaded.*annotation 1 of image 1"):
        check_dataset("tiny_lvis_v1", training=True, masks=True)


@pytest.mark.parametrize("sides", [{"height": HEIGHT, "width": WIDTH}, {}])
def test_a_set_of_another_kind_is_loaded_once_and_checked(
    sides: dict[str, int], tiny: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    loads = []

    def load() -> list[dict[str, Any]]:
        loads.append(1)
        broken = {"bbox": [1, 1, 9, 8], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        sound = broken | {"segmentation": [TRIANGLE]}
        file = f"{tiny.image_root}/000.png"
        return [{"file_name": file, "image_id": "a", "annotations": [broken, sound]} | sides]

    DatasetCatalog.register("own", load)
    MetadataCatalog.get("own").set(evaluator_type="cityscapes_instance")
    with caplog.at_level(logging.WARNING):
        assert check_dataset("own", training=True, masks=True) == Usable(1, 1)
    assert "annotation at position 0 of image a" in caplog.text
    leave_out_impossible_annotations("own", masks=True)
    for _ in range(2):
        (record,) = DatasetCatalog.get("own")
        assert [a["segmentation"] for a in record["annotations"]] == [[TRIANGLE]]
        record["annotations"].clear()  # each reader gets a copy
    assert len(loads) == 1


def test_a_model_without_masks_needs_none(tiny: CocoSet) -> None:
    spoil(tiny, "annotations", 0, segmentation=None)
    assert check_dataset("tiny", training=True, masks=False) == Usable(6, 0)


# Annotations that contradict themselves


def change_all(written: CocoSet, **fields: Any) -> None:
    content = written.read()
    for annotation in content["annotations"]:
        annotation.update({k: v(annotation) if callable(v) else v for k, v in fields.items()})
    written.rewrite(content)


def as_corners(annotation: dict[str, Any]) -> list[float]:
    x, y, width, height = annotation["bbox"]
    return [x, y, x + width, y + height]


@pytest.mark.parametrize("training", [True, False])
def test_boxes_in_another_format_are_an_error_with_its_name(tiny: CocoSet, training: bool) -> None:
    change_all(tiny, bbox=as_corners)
    with pytest.raises(ValueError, match=r"boxes seem to be x0, y0, x1, y1, .*: expected x, y, w"):
        check_dataset("tiny", training=training, masks=True)
    with pytest.raises(ValueError, match=r"boxes seem to be x0, y0, x1, y1"):
        check_dataset("tiny", training=training, masks=False)


def test_single_boxes_of_something_else_are_named(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(tiny, "annotations", 3, bbox=[60, 1, 5, 5])
    check_dataset("tiny", training=True, masks=True)
    assert "1 of 6 boxes differ from those of their masks: annotation 4 of image 2" in caplog.text


@pytest.mark.parametrize("shared", [True, False])
def test_a_file_of_two_images_with_objects_is_named_before_a_training(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture, shared: bool
) -> None:
    content = tiny.read()
    content["images"].append(content["images"][0] | {"id": 99})
    if shared:
        content["annotations"][0]["image_id"] = 99
    tiny.rewrite(content)
    check_dataset("tiny", training=True, masks=True)
    assert ("1 files belong to several images" in caplog.text) == shared


def test_boxes_that_the_loader_drops_are_counted_where_masks_are_not_needed(tiny: CocoSet) -> None:
    spoil(tiny, "annotations", 2, segmentation=[[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]])
    spoil(tiny, "annotations", 3, segmentation=[[1, 2], TRIANGLE])
    usable = check_dataset("tiny", training=True, masks=False)
    loaded = [x for record in DatasetCatalog.get("tiny") for x in record["annotations"]]
    assert len(loaded) == usable.annotations == 5
    assert usable.faults == 1


@pytest.mark.parametrize("value", [None, "0", 0.0])
def test_an_iscrowd_that_means_0_is_repaired_for_the_training(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    spoil(tiny, "annotations", 1, iscrowd=value)
    assert check_dataset("tiny", training=True, masks=True) == Usable(6, 0, repaired=1)
    assert "1 of 6 annotations have no valid 'iscrowd'" in caplog.text
    assert check_datasets(["tiny"], [], masks=True) == ("tiny",)
    leave_out_impossible_annotations("tiny", masks=True)
    annotations = [x for record in DatasetCatalog.get("tiny") for x in record["annotations"]]
    assert [type(x["iscrowd"]) for x in annotations] == [int] * 6
    assert sum(x["iscrowd"] for x in annotations) == 0


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("kind", [bool, np.bool_, np.int64])
def test_crowds_of_any_loader_stay_crowds(caplog: pytest.LogCaptureFixture, kind: type) -> None:
    records = DatasetCatalog.get("tiny")
    for number, annotation in enumerate(x for record in records for x in record["annotations"]):
        annotation["iscrowd"] = kind(number % 2)
    DatasetCatalog.register("own", lambda: records)
    MetadataCatalog.get("own").set(evaluator_type="cityscapes_instance")
    assert check_dataset("own", training=True, masks=True) == Usable(3, 0, crowds=3)
    leave_out_impossible_annotations("own", masks=True)
    loaded = [x["iscrowd"] for x in DatasetCatalog.get("own")[0]["annotations"]]
    assert loaded == [0, 1, 0]
    assert "valid 'iscrowd'" not in caplog.text


@pytest.mark.parametrize("value", [None, "12", [12], NAN, -1, math.inf, True, 10**400])
def test_an_area_that_is_none_is_counted_by_kind(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    change_all(tiny, area=value)
    content = read_coco(tiny.json_file)
    check_ground_truth(tiny.json_file, content)
    assert "6 of 6 annotations have no valid 'area'" in caplog.text
    assert all("area" not in annotation for annotation in content["annotations"])


def test_areas_of_something_else_than_the_masks_are_named(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    change_all(tiny, area=1)
    check_dataset("tiny", training=False, masks=True)
    assert "6 of 6 annotations have another 'area' than their mask" in caplog.text
    assert "annotation 1 of image 1" in caplog.text


def test_a_warning_about_a_file_is_given_once(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    change_all(tiny, area=None)
    for _ in range(2):
        check_dataset("tiny", training=True, masks=True)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("crowds", "level"), [(1, logging.INFO), (3, logging.WARNING)])
def test_crowds_are_counted_before_a_training(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture, crowds: int, level: int
) -> None:
    for position in range(crowds):
        spoil(tiny, "annotations", position, iscrowd=1)
    with caplog.at_level(logging.INFO):
        check_dataset("tiny", training=True, masks=True)
    (record,) = [x for x in caplog.records if "crowds" in x.getMessage()]
    assert f"{crowds} of 6 annotations are crowds (iscrowd 1)" in record.getMessage()
    assert record.levelno == level


def test_a_training_on_crowds_alone_is_refused_with_the_reason(tiny: CocoSet) -> None:
    change_all(tiny, iscrowd=1)
    spoil(tiny, "annotations", 0, iscrowd=0, segmentation=[[1, 2]])
    message = r"no annotation is left .*; 5 annotations are crowds .*set iscrowd 0.*; 1 are imposs"
    with pytest.raises(ValueError, match=message):
        check_datasets(["tiny"], [], masks=True)


def test_classes_of_one_name_are_named_with_their_ids(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(tiny, "categories", 1, name="disc")
    check_dataset("tiny", training=True, masks=True)
    said = "1 class names belong to several ids: 'disc': id 3 (2 annotations), id 7 (2 annotations)"
    assert said in caplog.text


# Names of image files


def test_images_may_be_anywhere_in_their_folder(tiny: CocoSet, tmp_path: Path) -> None:
    inner = Path(tiny.image_root) / "inner"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (Path(tiny.image_root) / "000.png").rename(elsewhere / "000.png")
    inner.symlink_to(elsewhere)
    absolute = str(Path(tiny.image_root).absolute() / "001.png")
    spoil(tiny, "images", 0, file_name="inner/000.png")
    spoil(tiny, "images", 1, file_name=absolute)
    assert check_dataset("tiny", training=True, masks=True) == Usable(6, 0)


@pytest.mark.parametrize("name", ["../000.png", "inner/../../000.png", "/etc/passwd", "//x", ".."])
def test_images_outside_their_folder_are_refused(tiny: CocoSet, name: str) -> None:
    spoil(tiny, "images", 1, file_name=name)
    with pytest.raises(
        ValueError, match=r"name the image '.*: expected a file in the image folder"
    ):
        check_dataset("tiny", training=False, masks=True)


def test_images_of_lvis_do_not_leave_their_folder_either(tmp_path: Path) -> None:
    written = write_lvis(tmp_path)
    register_lvis_instances("tiny_lvis_v1", get_lvis_instances_meta("lvis_v1"), *written)
    spoil(written, "images", 0, coco_url="http://images.cocodataset.org/../000.jpg")
    with pytest.raises(ValueError, match="expected a file in the image folder"):
        check_dataset("tiny_lvis_v1", training=True, masks=True)


@pytest.mark.parametrize("field", ["pan_seg_file_name", "sem_seg_file_name", "file_name"])
def test_files_of_other_sets_do_not_leave_their_folders(
    tiny: CocoSet, tmp_path: Path, field: str
) -> None:
    names = {
        "file_name": f"{tiny.image_root}/000.png",
        "pan_seg_file_name": f"{tmp_path}/panoptic/0.png",
        "sem_seg_file_name": f"{tmp_path}/stuff/0.png",
    }
    roots = {"panoptic_root": f"{tmp_path}/panoptic", "sem_seg_root": f"{tmp_path}/stuff"}
    DatasetCatalog.register("inside", lambda: [names])
    DatasetCatalog.register("outside", lambda: [names | {field: f"{tmp_path}/other.png"}])
    for name in ("inside", "outside"):
        MetadataCatalog.get(name).set(
            image_root=tiny.image_root, evaluator_type="coco_panoptic_seg", **roots
        )
    check_dataset("inside", training=False, masks=True)
    with pytest.raises(ValueError, match=r"outside: .*\.\./other.png.*: expected a file in the im"):
        check_dataset("outside", training=False, masks=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "is not in COCO's panoptic format"),
        ({"annotations": 3}, "is not in COCO's panoptic format"),
        ({"annotations": [{"image_id": "a"}]}, "annotation at position 0 needs an image_id of dig"),
        (
            {"annotations": [{"image_id": 1, "file_name": "0.png", "segments_info": [{}]}]},
            "segments_info, each with a category_id",
        ),
    ],
)
def test_a_panoptic_file_is_checked_before_it_is_loaded(
    tiny: CocoSet, tmp_path: Path, content: Any, said: str
) -> None:
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    DatasetCatalog.register("panoptic", list)
    MetadataCatalog.get("panoptic").set(
        panoptic_json=str(tmp_path / "panoptic.json"),
        json_file=tiny.json_file,
        evaluator_type="coco_panoptic_seg",
    )
    with pytest.raises(ValueError, match=f"panoptic.json.*{said}"):
        check_dataset("panoptic", training=True, masks=True)
    spoil(tiny, "annotations", 0, ignore=None)
    with pytest.raises(ValueError, match=r"instances\.json: annotation 1 of image 1: .*'ignore'"):
        check_dataset("panoptic", training=True, masks=True)


def test_the_instances_of_a_panoptic_set_are_checked_for_an_evaluation(tiny: CocoSet) -> None:
    records = DatasetCatalog.get("tiny")
    DatasetCatalog.register("panoptic", lambda: records)
    MetadataCatalog.get("panoptic").set(
        json_file=tiny.json_file, evaluator_type="coco_panoptic_seg"
    )
    assert check_dataset("panoptic", training=False, masks=True) == Usable(6, 0)
    spoil(tiny, "annotations", 0, segmentation=[[1, 2, 3, 4]])  # which the loader drops
    with pytest.raises(ValueError, match=r"instances\.json: 1 annotations cannot be compared"):
        check_dataset("panoptic", training=False, masks=True)


# LVIS and keypoints


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("annotations", {"segmentation": {"size": [64, 96], "counts": [6144]}}, "1 .* have an RLE"),
        ("categories", {"id": 5000}, "'name_2' has the id 5000, which is none of the 1203"),
        ("categories", {"frequency": "x"}, "category 2 has the frequency 'x', expected one of r, "),
        ("images", {"neg_category_ids": None}, "id 2 has no valid 'neg_category_ids'"),
        ("images", {"neg_category_ids": [[]]}, "id 2 has no valid 'neg_category_ids'"),
    ],
)
def test_what_the_loader_of_lvis_cannot_read_is_refused(
    tmp_path: Path, kind: str, fields: dict[str, Any], said: str
) -> None:
    written = write_lvis(tmp_path)
    register_lvis_instances("tiny_lvis_v1", get_lvis_instances_meta("lvis_v1"), *written)
    content = written.read()
    content["annotations"] = [x for x in content["annotations"] if x["category_id"] != 2]
    written.rewrite(content)
    spoil(written, kind, 1, **fields)
    with pytest.raises(ValueError, match=said):
        check_dataset("tiny_lvis_v1", training=True, masks=True)


def with_keypoints(tiny: CocoSet, names: Any = ("left_a", "right_a", "nose")) -> None:
    content = tiny.read()
    content["categories"][0]["keypoints"] = list(names)
    tiny.rewrite(content)
    change_all(tiny, keypoints=[5, 5, 2] * 3, num_keypoints=3)
    DatasetCatalog.remove("tiny")
    MetadataCatalog.remove("tiny")
    register_coco("tiny", *tiny)


def test_the_names_of_keypoints_are_taken_from_the_file(tiny: CocoSet) -> None:
    with_keypoints(tiny)
    metadata = MetadataCatalog.get("tiny")
    assert metadata.keypoint_names == ["left_a", "right_a", "nose"]
    assert metadata.keypoint_flip_map == [("left_a", "right_a")]
    assert check_dataset("tiny", training=True, masks=True, keypoints=3) == Usable(6, 0)
    with pytest.raises(ValueError, match=r"names 3 keypoints, but MODEL.*NUM_KEYPOINTS is 17"):
        check_dataset("tiny", training=True, masks=True, keypoints=17)
    spoil(tiny, "annotations", 2, keypoints=[1, 2, 1])
    with pytest.raises(
        ValueError, match=r"1 annotations have no 3 keypoints .*annotation 3 of ima"
    ):
        check_dataset("tiny", training=True, masks=True, keypoints=3)
    assert check_dataset("tiny", training=True, masks=True) == Usable(6, 0)


def test_keypoints_that_are_not_labeled_are_refused(tiny: CocoSet) -> None:
    with_keypoints(tiny)
    change_all(tiny, keypoints=[5, 5, 0] * 3)
    with pytest.raises(ValueError, match="no keypoint has a visibility of 1 or 2"):
        check_dataset("tiny", training=True, masks=True, keypoints=3)


def test_keypoints_without_names_are_refused(tiny: CocoSet) -> None:
    with_keypoints(tiny, names=())
    with pytest.raises(ValueError, match=r"KEYPOINT_ON is True, but no category .* names its key"):
        check_datasets(["tiny"], [], masks=True, keypoints=3)


# Images


def test_missing_images_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    written = write_coco(tmp_path, images=8)
    register_coco("tiny", *written)
    for number in range(1, 8):
        (Path(written.image_root) / f"{number:03d}.png").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        check_dataset("tiny", training=True, masks=True)
    said = str(caught.value)
    assert said.startswith(f"tiny ({written.json_file}): 7 of 8 images do not exist: image 2, ")
    assert f"image 6, {written.image_root}/005.png; and 2 more" in said


def encode(form: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def check_first_image(written: CocoSet, content: bytes) -> None:
    (Path(written.image_root) / "000.png").write_bytes(content)
    check_dataset("tiny", training=True, masks=True)


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *[("PNG", mode) for mode in ("RGB", "L", "RGBA", "P", "1")],
        *[("JPEG", mode) for mode in ("RGB", "L", "CMYK")],
        *[("BMP", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB")],
    ],
)
def test_complete_images_pass_in_every_format_and_mode(tiny: CocoSet, form: str, mode: str) -> None:
    check_first_image(tiny, encode(form, mode))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("cut", [0.0, 0.01, 0.5, 0.99])
def test_truncated_images_are_named(tiny: CocoSet, form: str, cut: float) -> None:
    content = encode(form)
    fault = "truncated" if cut else r"empty \(0 bytes\)"
    with pytest.raises(ValueError, match=rf"tiny .*1 of 2 images.*image 1, .*000\.png is {fault}"):
        check_first_image(tiny, content[: int(len(content) * cut)])


def test_images_of_16_bits_are_counted(tiny: CocoSet, caplog: pytest.LogCaptureFixture) -> None:
    check_first_image(tiny, encode("PNG", "I;16"))
    assert "1 of 2 images have 16 bits a channel" in caplog.text


def test_an_image_whose_values_fit_no_scale_is_named(tiny: CocoSet) -> None:
    with pytest.raises(ValueError, match=r"image 1, .* has floating-point values .* expected 0 to"):
        check_first_image(tiny, encode("TIFF", "F"))


def test_a_jpeg_may_have_bytes_after_its_end(tiny: CocoSet) -> None:
    check_first_image(tiny, encode("JPEG") + b"appendix of a camera")


def test_a_text_file_is_not_an_image(tiny: CocoSet) -> None:
    with pytest.raises(ValueError, match=r"image 1, .* is not an image, but a text"):
        check_first_image(tiny, b"not an image" * 10)


def test_an_image_of_more_pixels_than_pillow_reads_is_named(
    tiny: CocoSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2 - 1)
    with pytest.raises(ValueError, match=r"image 1, .*000\.png is too large: .* cut it into tiles"):
        check_first_image(tiny, encode("PNG"))


def test_an_image_of_another_size_than_its_record_is_named(tiny: CocoSet) -> None:
    spoil(tiny, "images", 1, width=WIDTH + 1)
    for position in (3, 4, 5):
        spoil(tiny, "annotations", position, segmentation=[TRIANGLE])
    with pytest.raises(ValueError, match=r"001\.png is 96 x 64 pixels, expected 97 x 64"):
        check_dataset("tiny", training=True, masks=True)


def test_the_size_is_that_of_the_upright_image(tiny: CocoSet) -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    turned = encode("JPEG", exif=exif.tobytes())
    expected = "is 64 x 96 pixels, expected 96 x 64, which is its size before its EXIF orientation"
    with pytest.raises(ValueError, match=expected):
        check_first_image(tiny, turned)
    spoil(tiny, "images", 0, width=HEIGHT, height=WIDTH)
    for position in (0, 1, 2):
        spoil(tiny, "annotations", position, segmentation=[TRIANGLE])
    check_first_image(tiny, turned)


@pytest.mark.parametrize("training", [True, False])
def test_test_sets_are_checked_like_training_sets(tiny: CocoSet, training: bool) -> None:
    assert check_dataset("tiny", training=training, masks=True) == Usable(6, 0)
    (Path(tiny.image_root) / "001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image 2, .*001\.png"):
        check_dataset("tiny", training=training, masks=True)
