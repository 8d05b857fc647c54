"""Semantic data sets: registration of folders, checks of every label map before a run."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from point_rend.data.checks.label_maps import check_semantic_datasets, count_labels
from point_rend.data.datasets.label_maps import register_sem_seg
from tests.tiny_datasets import HEIGHT, WIDTH, process_state_restored
from tests.tiny_semantic import CLASSES, IGNORED, SemSegSet, label_map, write_label, write_sem_seg


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> SemSegSet:
    written = write_sem_seg(tmp_path)
    register_sem_seg("tiny", *written)
    return written


def check(*, train: tuple[str, ...] = ("tiny",), test: tuple[str, ...] = ()) -> None:
    check_semantic_datasets(train, test, ignore_value=IGNORED)


# Registering


def test_each_image_has_the_label_map_with_its_name(tiny: SemSegSet) -> None:
    assert DatasetCatalog.get("tiny") == [
        {"file_name": str(tiny.image(i)), "sem_seg_file_name": str(tiny.label(i))} for i in (0, 1)
    ]
    metadata = MetadataCatalog.get("tiny")
    assert metadata.stuff_classes == list(CLASSES)
    assert metadata.ignore_label == IGNORED
    assert metadata.evaluator_type == "sem_seg"


def test_subfolders_are_part_of_the_names(tmp_path: Path) -> None:
    written = write_sem_seg(tmp_path)
    for folder, number in ((written.image_root, 0), (written.label_root, 0)):
        (Path(folder) / "town").mkdir()
        for file in Path(folder).glob(f"{number:03d}.*"):
            file.rename(Path(folder) / "town" / file.name)
    register_sem_seg("tiny", *written)
    check()
    assert {Path(r["sem_seg_file_name"]).parent.name for r in DatasetCatalog.get("tiny")} == {
        "labels",
        "town",
    }


def test_registering_the_same_has_no_effect_and_another_set_is_refused(
    tiny: SemSegSet, tmp_path: Path
) -> None:
    assert register_sem_seg("tiny", *tiny) == len(CLASSES)
    other = write_sem_seg(tmp_path / "other")
    with pytest.raises(ValueError, match=r"'tiny'.*image_root"):
        register_sem_seg("tiny", *other)
    with pytest.raises(ValueError, match=r"'tiny'.*stuff_classes"):
        register_sem_seg("tiny", *tiny[:2], "a,b")


def test_a_missing_folder_is_named(tiny: SemSegSet) -> None:
    with pytest.raises(FileNotFoundError, match=r"image folder of 'new'.*nowhere"):
        register_sem_seg("new", "nowhere", tiny.label_root, tiny.classes)
    with pytest.raises(FileNotFoundError, match=r"label folder of 'new'.*nowhere"):
        register_sem_seg("new", tiny.image_root, "nowhere", tiny.classes)


def test_a_folder_without_images_and_two_images_of_one_name_are_refused(
    tiny: SemSegSet, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        register_sem_seg("new", str(tmp_path / "empty"), tiny.label_root, tiny.classes)
    tiny.image(0).with_suffix(".png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000\.jpg and .*000\.png"):
        register_sem_seg("new", *tiny)


# Label maps


@pytest.mark.usefixtures("tiny")
def test_pixels_are_counted_by_class() -> None:
    counts = count_labels("tiny", ignore_value=IGNORED)
    maps = np.stack([label_map(0), label_map(1)])
    expected = [(maps == value).sum() for value in range(len(CLASSES))]
    assert counts.shape == (len(CLASSES),)
    assert counts.tolist() == expected


@pytest.mark.usefixtures("tiny")
def test_the_time_of_reading_label_maps_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="point_rend"):
        check()
    assert "tiny: read 2 label maps in" in caplog.text


def test_images_may_have_different_sizes(tmp_path: Path) -> None:
    register_sem_seg("mixed", *write_sem_seg(tmp_path / "mixed", scales=(1, 0.5, 1.75)))
    check(train=("mixed",), test=("mixed",))


def test_a_rotated_photograph_fits_its_upright_label_map(
    tiny: SemSegSet,
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tiny.image(0)).save(tiny.image(0), exif=exif)
    with pytest.raises(ValueError, match="its image"):
        check()
    write_label(tiny.label(0), label_map(0).T)
    check()


def test_a_missing_label_map_is_named(tiny: SemSegSet) -> None:
    tiny.label(1).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 2 label maps.*{tiny.label(1)}"):
        check()


def test_a_label_map_of_another_size_is_named_with_both(tiny: SemSegSet) -> None:
    write_label(tiny.label(1), label_map(1)[:-3])
    sizes = f"{WIDTH} x {HEIGHT - 3} pixels, its image {WIDTH} x {HEIGHT}"
    with pytest.raises(ValueError, match=rf"{tiny.label(1)} is {sizes}"):
        check()


def test_values_outside_the_classes_are_named(tiny: SemSegSet) -> None:
    labels = label_map(0)
    labels[0, :3] = (4, 77, 254)
    write_label(tiny.label(0), labels)
    with pytest.raises(ValueError, match=rf"{tiny.label(0)} has the values 4, 77, 254.*0 to 3"):
        check()


@pytest.mark.parametrize(("mode", "advice"), [("RGB", "one channel"), ("LA", "one channel")])
def test_a_label_map_of_several_channels_is_named(tiny: SemSegSet, mode: str, advice: str) -> None:
    Image.open(tiny.label(0)).convert(mode).save(tiny.label(0))
    with pytest.raises(ValueError, match=rf"{tiny.label(0)} is of mode {mode}.*{advice}"):
        check()


def test_a_color_coded_label_map_is_named(tiny: SemSegSet) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(tiny.label(0))
    with pytest.raises(ValueError, match=r"RGB, which codes classes by colors: .*by an index"):
        check()


@pytest.mark.parametrize("what", ["image", "label"])
def test_a_truncated_file_is_named(tiny: SemSegSet, what: str) -> None:
    file = tiny.image(1) if what == "image" else tiny.label(1)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{file} is truncated"):
        check()


def test_broken_images_of_a_training_may_be_skipped(
    tiny: SemSegSet, caplog: pytest.LogCaptureFixture
) -> None:
    kept = (
        count_labels("tiny", ignore_value=IGNORED)
        - np.bincount(label_map(1).ravel(), minlength=IGNORED + 1)[: len(CLASSES)]
    )
    tiny.image(1).write_bytes(b"")
    with caplog.at_level(logging.WARNING, "point_rend"):
        counts = count_labels("tiny", ignore_value=IGNORED, skip_broken_images=True)
    assert counts.tolist() == kept.tolist()
    assert f"1 of 2 images cannot be used and are skipped: image 1, {tiny.image(1)}" in caplog.text
    check_semantic_datasets(["tiny"], [], ignore_value=IGNORED, skip_broken_images=True)
    with pytest.raises(ValueError, match="1 of 2 images cannot be used: "):
        check_semantic_datasets(["tiny"], ["tiny"], ignore_value=IGNORED, skip_broken_images=True)


def test_a_missing_image_is_named(tiny: SemSegSet) -> None:
    records = DatasetCatalog.get("tiny")
    DatasetCatalog["tiny"] = lambda: records
    tiny.image(0).unlink()
    with pytest.raises(FileNotFoundError, match=str(tiny.image(0))):
        check()


def test_an_image_may_lack_labeled_pixels_but_a_set_may_not(tiny: SemSegSet) -> None:
    nothing = np.full((HEIGHT, WIDTH), IGNORED)
    write_label(tiny.label(0), nothing)
    check(test=("tiny",))
    write_label(tiny.label(1), nothing)
    with pytest.raises(ValueError, match=r"no pixel is labeled in tiny"):
        check()
    with pytest.raises(ValueError, match=r"no pixel is labeled in tiny"):
        check(train=(), test=("tiny",))


@pytest.mark.usefixtures("tiny")
def test_one_training_set_with_labels_suffices(tmp_path: Path) -> None:
    other = write_sem_seg(tmp_path / "other", scales=(1,))
    write_label(other.label(0), np.full((HEIGHT, WIDTH), IGNORED))
    register_sem_seg("other", *other)
    check(train=("tiny", "other"))
    with pytest.raises(ValueError, match="in other"):
        check(test=("tiny", "other"))


def test_a_single_class_cannot_be_trained_but_evaluated(tmp_path: Path) -> None:
    written = write_sem_seg(tmp_path, scales=(1,))
    write_label(written.label(0), np.where(label_map(0) == 0, 0, IGNORED))
    register_sem_seg("ground", *written[:2], "ground")
    check(train=(), test=("ground",))
    with pytest.raises(
        ValueError, match=r"ground has only one class \(ground\).*make the background a class"
    ):
        check(train=("ground",))


@pytest.mark.usefixtures("tiny")
def test_a_different_ignored_value_is_refused_with_both_values() -> None:
    with pytest.raises(ValueError, match=r"IGNORE_VALUE is 0.*value 255 in tiny"):
        check_semantic_datasets(["tiny"], [], ignore_value=0)


def test_a_set_without_label_maps_is_refused_by_name() -> None:
    DatasetCatalog.register("boxes", lambda: [{"file_name": "a.jpg", "annotations": []}])
    with pytest.raises(ValueError, match=r"boxes has no label maps.*--register-sem-seg"):
        check(train=("boxes",))


def test_pairs_matched_only_by_order_are_refused(tiny: SemSegSet) -> None:
    """Detectron2's loader pairs by order if both folders have the same number of files."""
    record = {"file_name": str(tiny.image(0)), "sem_seg_file_name": str(tiny.label(1))}
    DatasetCatalog["tiny"] = lambda: [record]
    with pytest.raises(ValueError, match=r"000\.jpg has no label map; .*001\.png"):
        check()


def test_a_set_without_class_names_is_refused_by_name(tiny: SemSegSet) -> None:
    record = {"file_name": str(tiny.image(0)), "sem_seg_file_name": str(tiny.label(0))}
    DatasetCatalog.register("nameless", lambda: [record])
    with pytest.raises(ValueError, match=r"nameless has no class names.*stuff_classes"):
        check(train=("nameless",))


def test_an_assertion_of_detectron2_while_loading_names_the_set() -> None:
    def load() -> list:
        raise AssertionError("No annotations found in there.")

    DatasetCatalog.register("empty", load)
    with pytest.raises(ValueError, match=r"empty cannot be loaded: No annotations found"):
        check(train=("empty",))


# Suspicions


def fill(tiny: SemSegSet, labels: np.ndarray) -> None:
    for number in (0, 1):
        write_label(tiny.label(number), labels)


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    check()
    return caplog.text


@pytest.mark.usefixtures("tiny")
def test_usual_label_maps_raise_no_suspicion(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert warnings_of(caplog) == ""


def test_classes_without_a_pixel_are_named_and_255_suspected(
    tiny: SemSegSet, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tiny, np.where(label_map(0) == 3, IGNORED, label_map(0)).astype(np.uint8))
    expected = f"1 of 4 classes have no pixel: {CLASSES[3]}; 255 is ignored: if it stands for a"
    assert expected in warnings_of(caplog)


def test_labels_that_begin_at_1_are_suspected(
    tiny: SemSegSet, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tiny, np.maximum(label_map(0), 1))
    assert "labels go from 0 to 3: if these begin at 1, lower them" in warnings_of(caplog)
    fill(tiny, label_map(0) + np.uint8(1))
    with pytest.raises(ValueError, match=r"has the values 4: .* from 1 to 4 have to be lowered"):
        check()


def test_labels_that_are_mostly_ignored_are_reported(
    tiny: SemSegSet, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.full((HEIGHT, WIDTH), IGNORED, np.uint8)
    labels[: HEIGHT // 4] = label_map(0)[: HEIGHT // 4]
    fill(tiny, labels)
    assert re.search("7[5-9]% of the pixels are 255, thus ignored", warnings_of(caplog))


def test_resized_and_jpeg_label_maps_are_suspected(
    tiny: SemSegSet, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = np.zeros((HEIGHT // 8, WIDTH // 8), np.uint8)
    blocks[::2, ::2] = 3
    exact = Image.fromarray(blocks).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
    fill(tiny, np.array(exact))
    assert "labels between those of both sides" not in warnings_of(caplog)
    fill(tiny, np.array(Image.fromarray(blocks).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)))
    assert "labels between those of both sides" in warnings_of(caplog)
    for number in (0, 1):
        Image.new("L", (WIDTH, HEIGHT)).save(tiny.label(number), format="JPEG")
    assert "2 label maps are JPEG files, which changes labels" in warnings_of(caplog)


def test_palettes_and_more_bits_are_read_by_index(tiny: SemSegSet) -> None:
    expected = count_labels("tiny", ignore_value=IGNORED)
    for number in (0, 1):
        labels = np.array(Image.open(tiny.label(number)))
        if number == 0:
            image = Image.fromarray(labels)
            image.putpalette([7 * k % 256 for k in range(768)])
        else:
            image = Image.fromarray(labels.astype(np.uint16))
        image.save(tiny.label(number))
    np.testing.assert_array_equal(count_labels("tiny", ignore_value=IGNORED), expected)


def test_a_missing_label_map_is_named_with_what_the_folder_has(tiny: SemSegSet) -> None:
    tiny.label(0).rename(tiny.label(0).with_name("mask_000.png"))
    with pytest.raises(FileNotFoundError, match=r"000\.png; .*labels has 001\.png, mask_000\.png"):
        check()


def test_the_size_of_a_label_map_of_a_turned_image_is_explained(tiny: SemSegSet) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tiny.image(0)).save(tiny.image(0), exif=exif)
    with pytest.raises(ValueError, match="after its EXIF orientation turns it; remove"):
        check()
