"""Checks of images and annotations before a run."""

import io
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
    clean_annotation,
    leave_out_impossible_annotations,
)
from point_rend.data.datasets.coco import register_coco
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
